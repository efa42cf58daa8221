"""A folder of folders that are named by their label, or of pictures whose names hold it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlmface.data.init import divide, labels, people
from vlmface.data.init.choices import Choices, Finding
from vlmface.data.init.columns import NONE
from vlmface.data.init.labels import LabelGuess
from vlmface.data.init.lines import EXAMPLES, counted, line
from vlmface.data.init.writing import FileContent
from vlmface.data.tables.file_index import is_system_file
from vlmface.data.tables.folders import split_folders
from vlmface.data.tables.name_pattern import NamePattern
from vlmface.data.tables.splits import SPLIT_WORDS
from vlmface.errors import UserError
from vlmface.utils.images import SUFFIXES


def look_at_folders(path: Path, target: Path, choices: Choices) -> Finding:
    """What a folder of pictures holds. Raises UserError for what must be named."""
    parts = split_folders(path)
    tops = parts or [path]
    pattern = choices.name_pattern
    in_names = pattern is not None and "label" in NamePattern(pattern).fields
    named = [(top, picture) for top in tops for picture in _pictures(top)]
    if not in_names:  # pictures next to the label folders have no label
        named = [(top, picture) for top, picture in named if picture.parent != top]
    pictures = [picture.relative_to(path).as_posix() for _, picture in named]
    if not named:
        raise _no_labels(path)
    if in_names:
        words = people.column_of_names(pictures, pattern or "", "label").words
    else:
        words = Counter(picture.relative_to(top).parts[0] for top, picture in named)
    where = f"{path}, names of files" if in_names else f"{path}, folders"
    guess = labels.guess_labels(words, choices.labels, where, labels.space_name(path))
    if pattern is None and choices.columns.get("subject") != NONE:
        pattern = people.guess_pattern(pictures)
    subjects = _subjects(pictures, pattern)
    by = choices.split_by or ("image" if len(set(subjects)) < 2 else "subject")
    if by == "subject" and not subjects:
        raise UserError("--split-by subject needs people: --name-pattern '{subject}_*'")
    present = {SPLIT_WORDS[part.name.lower()] for part in parts}
    taken = divide.shares(present, len(set(subjects) if by == "subject" else pictures))
    content = FileContent(
        source=f"the folder {path.name}",
        dataset="table",
        root=os.path.relpath(path, target.parent),
        options=_options(guess, pattern),
        splits={"by": by, **taken, "seed": 0} if taken else None,
        label_space=labels.definition_in(guess, target),
    )
    return Finding(content, _lines(path, guess, pictures, subjects, pattern))


def _pictures(top: Path) -> list[Path]:
    """The pictures in a folder and those below it, without files that systems add."""
    return [
        path
        for path in sorted(top.rglob("*"))
        if path.name.lower().endswith(SUFFIXES)
        and not any(is_system_file(part) for part in path.relative_to(top).parts)
    ]


def _no_labels(path: Path) -> UserError:
    flat = next(iter(_pictures(path)), None)
    hint = "sort the pictures into such folders"
    if flat is not None:
        hint += (
            f", or, if names such as {flat.name!r} hold the label, describe them, "
            "--name-pattern '{subject}_{label}_*'"
        )
    return UserError(
        f"{path} holds no table and no pictures in folders that are named by their label: give a "
        f"table with a column of labels, {hint}. `vlmface predict {path} --model MODEL` asks a "
        "model about pictures without labels"
    )


def _subjects(pictures: Sequence[str], pattern: str | None) -> list[str]:
    """The person of each picture; [] if they are not known."""
    if pattern is None or "subject" not in (names := NamePattern(pattern)).fields:
        return []
    return names.read(pictures)["subject"]


def _options(guess: LabelGuess, pattern: str | None) -> dict[str, Any]:
    options: dict[str, Any] = {"labels": guess.mapping} if guess.mapping else {}
    if pattern is not None:
        options["name_pattern"] = pattern
    return options


def _lines(
    path: Path,
    guess: LabelGuess,
    pictures: Sequence[str],
    subjects: Sequence[str],
    pattern: str | None,
) -> list[str]:
    in_names = pattern is not None and "label" in NamePattern(pattern).fields
    lines = [
        f"{path}: {len(pictures):,} pictures" + ("" if in_names else " in folders named by label"),
        "",
        line("label", people.NAMES if in_names else "folder", counted(guess)),
    ]
    if subjects:
        text = f"{len(set(subjects)):,} people, such as {subjects[0]} ({pattern})"
        lines.append(line("subject", people.NAMES, text))
    else:
        lines.append(line("", "", "people are not known: splits go by picture (see the YAML file)"))
    step = max(1, len(pictures) // EXAMPLES)
    return [*lines, "", *(f"  {picture}" for picture in pictures[::step][:EXAMPLES])]
