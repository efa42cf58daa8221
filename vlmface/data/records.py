"""JSON records, as in instruction data; errors name the file and the record.

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

from vlmface import facs, label_spaces
from vlmface.data.text_files import read_text, split_lines
from vlmface.errors import UserError

LINES = (".jsonl", ".ndjson")  # name endings of JSON lines


@dataclass(frozen=True, slots=True)
class Record:
    """One mapping of a file. `where` is the file and the record's place in it."""

    where: str
    fields: dict[str, Any]

    def refuse(self, name: str, allowed: str) -> NoReturn:
        """Raise the UserError of a field that is not as `allowed`."""
        problem = f"is {short_repr(self.fields[name])}" if name in self.fields else "is missing"
        raise UserError(
            f"{self.where}: {name!r} {problem}, expected {allowed}; correct the record, or take a "
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

    def label(self, name: str, space: str | label_spaces.LabelSpace = "emotion8") -> str:
        """The label of a label space that the text is, up to case and aliases."""
        if isinstance(space, str):
            space = label_spaces.space(space)
        label = match_label(space, self.text(name))
        if label is None:
            self.refuse(name, f"one of {space.candidates}")
        return label

    def units(self, name: str) -> set[int]:
        """The action units of a list such as ["AU1", "AU12"]."""
        try:
            return {facs.parse_name(text) for text in self.texts(name)}
        except UserError as error:
            raise UserError(f"{self.where}: {name!r}: {error}") from error

    def image(self, name: str, folder: Path, *, rooted: bool = False) -> str:
        """The image in `folder` that the path names. `rooted` takes one leading slash for the
        folder itself; any other absolute path that does not begin with the folder, and one with
        "..", is refused."""
        path = self.text(name)
        full_path = path_inside(folder, path.removeprefix("/") if rooted else path)
        if (
            full_path is None
            and path.startswith(f"{folder}{os.sep}")
            and not has_parent_reference(path)
        ):
            full_path = path
        if full_path is None:
            self.refuse(name, f"a path inside the image folder {folder} (see the option images)")
        return full_path

    def images(self, name: str) -> list[str]:
        """The image paths of a field that holds one, a list of them, or nothing."""
        value = self.fields.get(name)
        if not value:
            return []
        return [self.text(name)] if isinstance(value, str) else self.texts(name)


@lru_cache(maxsize=10_000)
def match_label(space: str | label_spaces.LabelSpace, text: str) -> str | None:
    """`LabelSpace.match`, cached: rows have few different texts."""
    if isinstance(space, str):
        space = label_spaces.space(space)
    return space.match(text)


def short_repr(value: Any) -> str:
    """The `repr` of a value, cut to one line."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def path_inside(folder: Path, path: str) -> str | None:
    """The file `path` in `folder`; None for a path that is absolute, has a ".." or is invalid."""
    if not path or path[0] in "/\\" or path[1:2] == ":" or has_parent_reference(path):
        return None
    return os.path.join(folder, path)


def has_parent_reference(path: str) -> bool:
    """Whether a path has a ".." between slashes of either kind, or is not valid."""
    return "\0" in path or (".." in path and ".." in re.split(r"[/\\]", path))


def folder_of_images(images: str | Path | None, otherwise: Path) -> Path:
    """The folder that the option `images` names, or `otherwise`. Raises UserError if it does not
    exist."""
    folder = otherwise if images is None else Path(images).expanduser()
    if not folder.is_dir():
        raise UserError(
            f"images={str(images)!r} is not a folder: give the one that the image paths "
            "of the file start from"
        )
    return folder


def records(path: Path, *, lines: bool | None = None, within: str | None = None) -> list[Record]:
    """The records of a file: JSON lines if `lines` (default: if its name ends in one of LINES, or
    two lines are a record each), else one JSON list, which may also be the field `within` of a
    mapping. Raises UserError with the file and the line or record for whatever is not a list of
    mappings."""
    text = read_text(path)
    if lines is None:
        lines = path.suffix.lower() in LINES or _is_lines(text)
    if lines:
        numbered = enumerate(split_lines(text), 1)
        places = [(f"{path}, line {n}", line) for n, line in numbered if line.strip()]
        entries = [(where, _parsed(line, where)) for where, line in places]
    else:
        content = _parsed(text, str(path))
        if isinstance(content, dict) and within in content:
            content = content[within]
        if not isinstance(content, list):
            raise UserError(
                f"{path} holds {short_repr(content)}, expected a list of records: [{{...}}, ...]"
            )
        entries = [(f"{path}, record {n}", fields) for n, fields in enumerate(content, 1)]
    half_characters = re.search(r"\\u[dD][89a-fA-F]", text) is not None
    for where, fields in entries:
        if not isinstance(fields, dict):
            raise UserError(f"{where}: found {short_repr(fields)}, expected a record: {{...}}")
        if half_characters and not _writable(fields):
            raise UserError(
                f"{where}: a text holds half of a \\ud83d\\ude00 pair, which is not a "
                "character; correct it, or take a fresh copy of the file"
            )
    return [Record(where, fields) for where, fields in entries]


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises UserError for a file that is not JSON."""
    return _parsed(read_text(path), str(path))


def _is_lines(text: str) -> bool:
    """Whether a text is JSON lines, whatever its file's name: a whole record, then another one."""
    first, end, remainder = text.lstrip().partition("\n")
    if not (end and first.startswith("{") and remainder.lstrip().startswith("{")):
        return False
    try:
        return isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


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


_THOUGHT = re.compile(r"<think>(.*?)</think>", re.DOTALL)
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def split_thought(text: str | None) -> tuple[str | None, str | None]:
    """(rationale, answer) of `<think>...</think><answer>...</answer>`: prompts put such tags around
    a rationale themselves. A text without them is all rationale; one whose tags do not pair up
    loses them. None stands for a part that is not there."""
    if text is None:
        return None, None
    thoughts, answers = _THOUGHT.findall(text), _ANSWER.findall(text)
    reasoning = thoughts[0] if len(thoughts) == 1 else _ANSWER.sub(" ", text)
    rationale = re.sub(r"</?(?:think|answer)>", " ", reasoning).strip()
    return rationale or None, answers[-1].strip() if answers else None


def au_numbers(au_set: str | int | Sequence[str | int] | None) -> set[int]:
    """The numbers of the option `au_set`: "AU4", ["AU4", 12] or nothing."""
    units = [au_set] if isinstance(au_set, str | int) else au_set or ()
    return {facs.parse_name(str(unit)) for unit in units}


def check_choice(option: str, value: str, allowed: Sequence[str]) -> str:
    """`value`, if it is allowed for the option; else a UserError that lists what is."""
    if value not in allowed:
        raise UserError(f"{option}={value!r}: use one of {', '.join(map(repr, allowed))}")
    return value
