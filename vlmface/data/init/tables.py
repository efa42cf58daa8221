"""What a table holds, as `data init` guesses it: columns, pictures, labels, AUs and splits."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmface.data.init import columns as guesses
from vlmface.data.init import divide, labels, pictures, tools
from vlmface.data.init.boxes import face_box
from vlmface.data.init.choices import Choices, Finding
from vlmface.data.init.columns import Column
from vlmface.data.init.labels import LabelGuess
from vlmface.data.init.lines import counted, examples, line, role_lines
from vlmface.data.init.tools import ToolTable
from vlmface.data.init.writing import FileContent
from vlmface.data.tables.columns import FIELDS
from vlmface.data.tables.folders import table_splits
from vlmface.data.tables.options import TableOptions
from vlmface.data.tables.splits import SPLIT_WORDS
from vlmface.data.tables.table import Table
from vlmface.data.tables.tools import COLUMNS
from vlmface.errors import UserError
from vlmface.utils.images import SUFFIXES

_PICTURE_AND_WORD = re.compile(rf"({'|'.join(map(re.escape, SUFFIXES))})\s+\S", re.IGNORECASE)


@dataclass(frozen=True)
class Layout:
    """Which column of a table has which role.

    Attributes:
        table: The table.
        columns: Those that may have a role, by name.
        roles: {role: column}.
        tool: What a program wrote into the table, or None.
    """

    table: Table
    columns: Mapping[str, Column]
    roles: Mapping[str, str]
    tool: ToolTable | None

    @property
    def names_pictures(self) -> bool:
        """Whether a column of the user's, and not of a program, names the pictures or videos."""
        return bool({"image", "video"} & self.roles.keys())


@dataclass(frozen=True)
class Guesses(Layout):
    """What the columns of a table hold.

    Attributes:
        votes: Columns of votes or probabilities, if the label is the word with most votes.
        units: The options about columns of action units; {} without any, and under a tool.
        au_labels: Whether the action units are the labels.
        label: The label space, and the rows of each label.
    """

    votes: Sequence[str]
    units: Mapping[str, Any]
    au_labels: bool
    label: LabelGuess

    @property
    def prompt(self) -> str:
        """What recipes train with."""
        if "rationale" in self.roles:
            return "rationale"
        has_units = self.units or (self.tool is not None and self.tool.units)
        return "au_rationale" if has_units and not self.au_labels else "label"


def look_at_table(
    path: Path, table: Table, options: dict[str, Any], target: Path, choices: Choices
) -> Finding:
    """What a table holds.

    Args:
        path: The file, or the folder of files.
        table: Its rows.
        options: Those of `table` that it was opened with.
        target: The file that is written.
        choices: What the command line says.

    Raises:
        UserError: Something must be named.
    """
    layout = _layout(path, table, choices)
    picture_text, folder = _locate(path, layout, choices)
    found = _labelled(path, layout, choices)
    note, splits = _splits(found, choices)
    options = options | _options(found)
    base = path if path.is_dir() else path.parent
    if folder is not None and folder.resolve() != base.resolve():
        options["images"] = os.path.relpath(folder, target.parent)
    content = FileContent(
        source=path.name,
        dataset="table",
        root=os.path.relpath(path, target.parent),
        options=options | dict(found.units),
        splits=splits,
        label_space=labels.definition_in(found.label, target),
        prompt=found.prompt,
    )
    lines = [f"{path}: {len(table):,} rows, columns {table.names()}", ""]
    lines += _lines(found, picture_text)
    if note:
        lines.append(note)
    shown = [*found.roles.values()] or list(table.columns)[:5]
    return Finding(content, [*lines, "", *examples(table, shown)])


# --- columns and labels ---------------------------------------------------------------------------


def _layout(path: Path, table: Table, choices: Choices) -> Layout:
    tool = tools.of_table(table)
    named = {name.casefold() for name in choices.columns.values() if name}
    written = tool.columns if tool else frozenset()
    columns = {
        name: guesses.column_of(table, name)
        for name in table.columns
        if name not in written or name.casefold() in named
    }
    roles = guesses.guess(table, columns, choices.columns)
    layout = Layout(table, columns, roles, tool)
    if not layout.names_pictures and tool is None:
        hint = "name it with --image COLUMN"
        if any(_PICTURE_AND_WORD.search(name) for name in columns):
            hint = "put a comma or a tab between the columns"
        raise UserError(f"{path}: no column holds names of picture files ({table.names()}): {hint}")
    return layout


def _labelled(path: Path, layout: Layout, choices: Choices) -> Guesses:
    """The labels: those of a column, or else of columns of votes, or else the action units."""
    table, columns, roles, tool = layout.table, layout.columns, layout.roles, layout.tool
    units = {} if tool else guesses.units(columns)
    name = roles.get("label") or (tool.label if tool else None)
    votes = [] if name or tool else _votes(columns)
    all_votes = votes or (tool.votes if tool else ())
    numbers = tool.units if tool else [int(unit[2:]) for unit in units.get("aus", ())]
    id = labels.space_name(path)
    if name is not None:
        column = columns.get(name) or guesses.column_of(table, name)
        words, where = column.words, f"{path}, column {name!r}"
        guess = labels.guess_labels(words, choices.labels, where, id)
    elif all_votes:
        where = f"{path}, columns of votes"
        guess = labels.guess_labels(dict.fromkeys(all_votes, 1), choices.labels, where, id)
    elif numbers and not choices.labels.any_given:
        guess = labels.of_action_units(numbers, id)
    else:
        raise UserError(
            f"{path}: no column was recognised as the label ({table.names()}): name it with "
            "--label COLUMN"
        )
    au_labels = name is None and not all_votes
    return Guesses(table, columns, roles, tool, votes, units, au_labels, guess)


def _votes(columns: Mapping[str, Column]) -> list[str]:
    """Columns that are named by emotions and hold votes or probabilities."""
    space = labels.label_spaces.space("emotion8")
    voted = [
        name
        for name, column in columns.items()
        if space.match(name) and column.numbers and min(column.numbers) >= 0
    ]
    return voted if len(voted) > 2 else []


# --- pictures -------------------------------------------------------------------------------------


def _locate(path: Path, layout: Layout, choices: Choices) -> tuple[str, Path | None]:
    """(how many pictures exist, the folder that their paths start from)."""
    roles, tool = layout.roles, layout.tool
    role = next((role for role in ("image", "video") if role in roles), None)
    column = layout.columns[roles[role]] if role else tool.files if tool else None
    if column is None:
        return _locate_files_of_table(path, layout.table, choices)
    paths = list(column.words)
    if not paths:
        return f"{len(column.codes):,} pictures inside the table", None
    near = path if path.is_dir() else path.parent
    folder = Path(choices.images) if choices.images else pictures.find_folder(paths, near)
    existing = 0 if folder is None else pictures.count_existing(paths, folder)
    if folder is None or not existing:
        raise UserError(
            f"{path}: no file of column {column.name!r} exists, such as {paths[0]!r}, which was "
            f"looked for in and around {folder or near}: name the folder that the paths start "
            "from, --images FOLDER"
        )
    return f"{existing:,} of {len(paths):,} files exist in {folder}", folder


def _locate_files_of_table(path: Path, table: Table, choices: Choices) -> tuple[str, Path | None]:
    """`_locate` of a table whose pictures or videos are named as its files."""
    names = [part.path.stem for part in table.parts]
    near = path if path.is_dir() else path.parent
    if choices.images:
        folder: Path | None = Path(choices.images)
    else:
        folder = pictures.find_folder_of_names(names, near)
    existing = pictures.count_named(names, folder) if folder else 0
    if folder is None or not existing:
        raise UserError(
            f"{path}: no video, picture or folder of frames is named as the table, {names[0]!r} "
            f"with any ending, which was looked for in and around {folder or near}: name the "
            "folder that holds it, --images FOLDER, or the column of pictures, --image COLUMN"
        )
    return f"{existing:,} of {len(names):,} named as their tables exist in {folder}", folder


# --- splits ---------------------------------------------------------------------------------------


def _splits(found: Guesses, choices: Choices) -> tuple[str | None, dict[str, Any]]:
    """(a line about people, `splits`)."""
    by, groups, note = _groups(found, choices)
    table, roles, guess = found.table, found.roles, found.label
    splits: dict[str, Any] = {}
    present = set(table_splits(table.path, TableOptions())) if table.path.is_dir() else set()
    if "split" in roles:
        column = found.columns[roles["split"]]
        splits["column"] = column.name
        if names := guesses.split_names(column):
            splits["names"] = names
        words = {word: names.get(word) or SPLIT_WORDS[word.casefold()] for word in column.words}
        present = set(words.values())
    if "label" in roles and "test" not in present and not guess.space.multi_label:
        row_labels = _row_labels(found.columns[roles["label"]], guess)
        divide.check_rows(table, groups, row_labels, by=by)
    taken = divide.shares(present, len(set(groups)))
    if taken:
        splits = {**splits, "by": by, **taken, "seed": 0}
    if by != "subject" and taken and note is None:
        each = "picture" if by == "image" else "video"
        note = line("", "", f"people are not known: splits go by {each} (see the YAML file)")
    return (note if taken or by == "subject" else None), splits


def _groups(found: Guesses, choices: Choices) -> tuple[str, list[str], str | None]:
    """(subject, video or image; the person, video or picture of each row; a line about why)."""
    roles, rows = found.roles, [str(i) for i in range(len(found.table))]
    if choices.split_by == "image":
        return "image", rows, None
    people = found.columns[roles["subject"]].texts() if "subject" in roles else None
    videos = found.tool.videos if found.tool and not found.names_pictures else None
    if choices.split_by == "subject" and people is None:
        raise UserError("--split-by subject needs a column that names people: --subject COLUMN")
    if choices.split_by == "video" and videos is None:
        raise UserError("--split-by video is for tables of programs that measure videos")
    note = None
    if people is not None and choices.split_by != "video":
        if None in people:
            raise UserError(
                f"{found.table.where(people.index(None))}: {roles['subject']!r} is empty, so it is "
                "not known who that is: fill it in, or split by picture, --split-by image"
            )
        if len(set(people)) > 1:
            return "subject", list(map(str, people)), None
        note = line("", "", f"all rows are of one person, {people[0]}: split by picture")
    if videos is not None:
        if len(set(videos)) > 1:
            return "video", list(map(str, videos)), None
        note = line("", "", "all rows are frames of one video: test scores will be too high")
    return "image", rows, note


def _row_labels(column: Column, guess: LabelGuess) -> list[tuple[str, ...]]:
    """The labels of each row."""
    mapping = {labels.normalise(word): label for word, label in guess.mapping.items()}
    of_value = []
    for value in column.values:
        word = str(value).strip()
        word = mapping.get(labels.normalise(word), word) or ""
        label = guess.space.match(word)
        of_value.append((label,) if label else ())
    return [() if code < 0 else of_value[code] for code in column.codes.tolist()]


# --- the file -------------------------------------------------------------------------------------


def _options(found: Guesses) -> dict[str, Any]:
    """The options of `table`."""
    named: dict[str, Any] = {role: name for role, name in found.roles.items() if role != "split"}
    box, box_options = face_box(found.columns)
    if box is not None:
        named["face_box"] = box
    used = {*found.roles.values(), *(box if isinstance(box, list) else [box])}
    of_tool = COLUMNS[found.tool.tool] if found.tool else {}
    for name in FIELDS:  # columns that would be read by their names alone
        column = found.table.find(name)
        if name in named or column is None or name in of_tool:
            continue
        is_id = name == "id" and len(found.columns[column].values) == len(found.table)
        if not is_id and (name == "id" or column not in used):
            named[name] = None
    if found.tool and found.tool.label and "label" in found.roles:
        named.setdefault("emotion", None)  # the label is the user's, and not the program's
        if found.label.space.field == "emotion":
            del named["emotion"]
    options: dict[str, Any] = {"tool": found.tool.tool} if found.tool else {}
    if named:
        options["columns"] = named
    options |= box_options
    if found.label.mapping:
        options["labels"] = found.label.mapping
    if found.votes:
        options["votes"] = list(found.votes)
    if found.au_labels:
        options["au_labels"] = True
    return options


def _lines(found: Guesses, picture_text: str) -> list[str]:
    roles, tool, guess = found.roles, found.tool, found.label
    lines = role_lines(found.columns, roles, guess, picture_text)
    if tool is not None:
        if not found.names_pictures:
            what = "video" if tool.videos else "image"
            lines.insert(0, line(what, tool.files.name if tool.files else "", picture_text))
        lines.insert(0, line("program", tool.title, "its columns are read as it writes them"))
        if tool.label and "label" not in roles:
            lines.append(line("label", tool.label, counted(guess)))
        if tool.units:
            lines.append(line("action units", f"{len(tool.units)}", _named(tool.units)))
    if found.votes or (tool and tool.votes and "label" not in roles):
        lines.append(line("label", "most votes", ", ".join(guess.space.labels)))
    if units := found.units.get("aus"):
        lines.append(line("action units", f"{len(units)} columns", ", ".join(units)))
    if found.au_labels:
        text = "no column holds another label: a model learns to name the action units"
        lines.append(line("label", "action units", text))
    return lines


def _named(units: Sequence[int]) -> str:
    return ", ".join(f"AU{unit}" for unit in units)
