"""JSON records, as instruction data comes: what is wrong names the file and the record.

The files are downloads, so nothing in them is trusted: not their encoding, their shape, the types
of their fields, nor that an image path stays in the image folder.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

from vlmface import facs, taxonomy
from vlmface.errors import UserError


@dataclass(frozen=True, slots=True)
class Record:
    """One mapping of a file. `where` is the file and the record's place in it."""

    where: str
    fields: dict[str, Any]

    def refuse(self, name: str, allowed: str) -> NoReturn:
        """Raise the UserError of a field that is not as `allowed`."""
        found = f"is {shown(self.fields[name])}" if name in self.fields else "is missing"
        raise UserError(
            f"{self.where}: {name!r} {found}, expected {allowed}; correct the record, or take a "
            "fresh copy of the file"
        )

    def but(self, **fields: Any) -> Record:
        """The record with some fields replaced."""
        return Record(self.where, self.fields | fields)

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self.fields.get(name) is not None

    def text(self, name: str) -> str:
        """A text that is not blank."""
        value = self.fields.get(name)
        if not isinstance(value, str) or not value.strip():
            self.refuse(name, "a text")
        return value

    def optional(self, name: str) -> str | None:
        """A text; None if the field is missing, null or blank."""
        value = self.fields.get(name)
        if value is None or (isinstance(value, str) and not value.strip()):
            return None
        return self.text(name)

    def word(self, name: str) -> str:
        """A text or a whole number, as text: what ids and codes are written as."""
        value = self.fields.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        return self.text(name)

    def texts(self, name: str) -> list[str]:
        """A list of texts; it may be empty."""
        value = self.fields.get(name)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self.refuse(name, "a list of texts")
        return value

    def label(self, name: str, space: str = "emotion8") -> str:
        """The label of a space of the taxonomy that the text is, up to case and aliases."""
        label = canonical(space, self.text(name))
        if label is None:
            self.refuse(name, f"one of {', '.join(taxonomy.space(space).labels)}")
        return label

    def units(self, name: str) -> set[int]:
        """The action units of a list such as ["AU1", "AU12"]."""
        try:
            return {facs.parse_name(text) for text in self.texts(name)}
        except UserError as error:
            raise UserError(f"{self.where}: {name!r}: {error}") from error

    def image(self, name: str, folder: Path, *, rooted: bool = False) -> str:
        """The image in `folder` that the path names. `rooted` takes one leading slash for the
        folder itself; any other absolute path, and one with "..", is refused."""
        path = self.text(name)
        found = below(folder, path.removeprefix("/") if rooted else path)
        if found is None:
            self.refuse(name, "a path inside the image folder")
        return found

    def images(self, name: str) -> list[str]:
        """The image paths of a field that holds one, a list of them, or nothing."""
        value = self.fields.get(name)
        if not value:
            return []
        return [self.text(name)] if isinstance(value, str) else self.texts(name)


@lru_cache(maxsize=10_000)
def canonical(space: str, text: str) -> str | None:
    """The label of a space that a text is; asked of every row, for few different texts."""
    return taxonomy.space(space).canonical(text)


def shown(value: Any) -> str:
    """A value as an error shows it: no more than a line of it."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def below(folder: Path, path: str) -> str | None:
    """The file `path` in `folder`; None for a path that is absolute, leads up or is no path."""
    if not path or path[0] in "/\\" or path[1:2] == ":" or leads_up(path):
        return None
    return os.path.join(folder, path)


def leads_up(path: str) -> bool:
    """Whether a path has a ".." between slashes of either kind, or is no path at all."""
    return "\0" in path or (".." in path and ".." in re.split(r"[/\\]", path))


def folder_of_images(images: str | Path | None, otherwise: Path) -> Path:
    """The folder that the option `images` names, or `otherwise`. Raises UserError if it is none."""
    folder = otherwise if images is None else Path(images).expanduser()
    if not folder.is_dir():
        raise UserError(f"images={str(images)!r} is no folder: give the one that the image paths "
                        "of the file start from")  # fmt: skip
    return folder


def records(path: Path, *, lines: bool | None = None, within: str | None = None) -> list[Record]:
    """The records of a file: JSON lines if `lines` (default: if its name ends in .jsonl), else one
    JSON list, which may also be the field `within` of a mapping. Raises UserError with the file and
    the line or record for whatever is not a list of mappings."""
    text = read_text(path)
    if path.suffix == ".jsonl" if lines is None else lines:
        # Not splitlines(): JSON texts may hold other line separators as they are.
        numbered = enumerate(text.split("\n"), 1)
        places = [(f"{path}, line {n}", line) for n, line in numbered if line.strip()]
        found = [(where, _parsed(line, where)) for where, line in places]
    else:
        content = _parsed(text, str(path))
        if isinstance(content, dict) and within in content:
            content = content[within]
        if not isinstance(content, list):
            raise UserError(
                f"{path} holds {shown(content)}, expected a list of records: [{{...}}, ...]"
            )
        found = [(f"{path}, record {n}", fields) for n, fields in enumerate(content, 1)]
    half_characters = re.search(r"\\u[dD][89a-fA-F]", text) is not None
    for where, fields in found:
        if not isinstance(fields, dict):
            raise UserError(f"{where}: found {shown(fields)}, expected a record: {{...}}")
        if half_characters and not _writable(fields):
            raise UserError(f"{where}: a text holds half of a \\ud83d\\ude00 pair, which is no "
                            "character; correct it, or take a fresh copy of the file")  # fmt: skip
    return [Record(where, fields) for where, fields in found]


def read_text(path: Path) -> str:
    """The text of a UTF-8 file. Raises UserError for a file that cannot be read, another encoding
    and a Git LFS pointer."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if raw.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a Git LFS pointer, not the data: run `git lfs pull` there")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        byte = raw[error.start : error.start + 1]
        raise UserError(
            f"{path}, line {line}: byte {byte!r} is not UTF-8; save the file as UTF-8, or take a "
            "fresh copy"
        ) from error


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError as error:
        raise UserError(f"{where}: nested too deeply to be data of this kind") from error
    except ValueError as error:  # also a number of more than 4300 digits
        raise UserError(f"{where}: not JSON ({error}); is the download complete?") from error


def _writable(fields: dict[str, Any]) -> bool:
    try:
        json.dumps(fields, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


# --- conversations --------------------------------------------------------------------------------


def pairs(record: Record) -> list[tuple[str, str]]:
    """(question, answer) of each pair of turns of LLaVA's `conversations`, without the "<image>"
    placeholder. Turns before the first of a human, such as a system's, are passed over."""
    turns = record.fields.get("conversations")
    allowed = '[{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}, ...]'
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        record.refuse("conversations", allowed)
    while turns and turns[0].get("from") != "human":
        turns = turns[1:]
    roles = [turn.get("from") for turn in turns]
    if not turns or roles != ["human", "gpt"] * (len(turns) // 2):
        record.refuse("conversations", allowed)
    texts = [Record(record.where, turn).text("value") for turn in turns]
    questions = [text.replace("<image>", "").strip() for text in texts[::2]]
    return list(zip(questions, texts[1::2], strict=True))


_THOUGHT = re.compile(r"<think>(.*?)</think>", re.DOTALL)
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def thought(text: str | None) -> tuple[str | None, str | None]:
    """(rationale, answer) of `<think>...</think><answer>...</answer>`: prompts put such tags around
    a rationale themselves. A text without them is all rationale; one whose tags do not pair up
    loses them. None stands for a part that is not there."""
    if text is None:
        return None, None
    thoughts, answers = _THOUGHT.findall(text), _ANSWER.findall(text)
    said = thoughts[0] if len(thoughts) == 1 else _ANSWER.sub(" ", text)
    rationale = re.sub(r"</?(?:think|answer)>", " ", said).strip()
    return rationale or None, answers[-1].strip() if answers else None


def au_numbers(au_set: str | int | Sequence[str | int] | None) -> set[int]:
    """The numbers of the option `au_set`: "AU4", ["AU4", 12] or nothing."""
    units = [au_set] if isinstance(au_set, str | int) else au_set or ()
    return {facs.parse_name(str(unit)) for unit in units}


def one_of(option: str, value: str, allowed: Sequence[str]) -> str:
    """`value`, if it is allowed for the option; else a UserError that says what is."""
    if value not in allowed:
        raise UserError(f"{option}={value!r}: use one of {', '.join(map(repr, allowed))}")
    return value
