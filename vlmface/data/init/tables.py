"""What a table holds, as `data init` guesses it: columns, pictures, labels, AUs and splits."""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmface.data.init import columns as guesses
from vlmface.data.init import divide, label_columns, labels, raters
from vlmface.data.init.boxes import face_box
from vlmface.data.init.choices import Choices, Finding
from vlmface.data.init.columns import Column
from vlmface.data.init.labels import LabelGuess
from vlmface.data.init.layout import Layout, find_layout
from vlmface.data.init.lines import counted, examples, line, role_lines, unused
from vlmface.data.init.locating import Located, locate, locate_files_of_table
from vlmface.data.init.writing import FileContent
from vlmface.data.tables.columns import FIELDS, NUMBERS
from vlmface.data.tables.folders import table_splits
from vlmface.data.tables.options import TableOptions
from vlmface.data.tables.splits import SPLIT_WORDS
from vlmface.data.tables.table import Table
from vlmface.data.tables.tools import COLUMNS
from vlmface.errors import UserError

_FEW = 20  # different words of a column that is proposed as the label


@dataclass(frozen=True, kw_only=True)
class Guesses(Layout):
    """What the columns of a table hold.

    Attributes:
        units: The options about columns of action units; {} without any, and under a tool.
        au_labels: Whether the action units are the labels.
        label: The label space, and the rows of each label.
    """

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
    layout = find_layout(path, table, choices)
    located = _locate(path, layout, choices)
    folder = located.folder
    labelled = _labelled(path, layout, choices)
    note, splits = _splits(labelled, choices)
    options = options | _options(labelled) | dict(located.options)
    base = path if path.is_dir() else path.parent
    if folder is not None and folder.resolve() != base.resolve():
        options["images"] = os.path.relpath(folder, target.parent)
    content = FileContent(
        source=path.name,
        dataset="table",
        root=os.path.relpath(path, target.parent),
        options=options | dict(labelled.units),
        splits=splits,
        label_space=labels.definition_in(labelled.label, target),
        prompt=labelled.prompt,
    )
    lines = [f"{path}: {len(table):,} rows, columns {table.names()}", ""]
    lines += _lines(labelled, located, options)
    if note:
        lines.append(note)
    example_columns = labelled.used or list(table.columns)[:5]
    return Finding(content, [*lines, "", *examples(table, example_columns)])


# --- columns and labels ---------------------------------------------------------------------------


def _labelled(path: Path, layout: Layout, choices: Choices) -> Guesses:
    """The labels: those of a column, or of raters, or of columns of labels, or else the action
    units."""
    columns, tool, choice = layout.columns, layout.tool, choices.labels
    units = {} if tool else guesses.units(columns)
    name = layout.roles.get("label")
    if name is None and tool and not layout.raters and not layout.marks:
        name = tool.label
    marks = layout.marks.names if layout.marks else tool.votes if tool else ()
    numbers = tool.units if tool else [int(unit[2:]) for unit in units.get("aus", ())]
    id = labels.space_name(path)
    if layout.raters:
        words = raters.words_of([columns[name] for name in layout.raters])
        guess = labels.guess_labels(words, choice, f"{path}, columns of raters", id)
    elif name is not None:
        column = columns.get(name) or guesses.column_of(layout.table, name)
        rated = name if name in layout.table.columns else ""  # not a part of file names
        guess = labels.guess_labels(column.words, choice, f"{path}, column {name!r}", id, rated)
    elif marks:
        several = choice.several or (layout.marks is not None and layout.marks.several)
        choice = dataclasses.replace(choice, several=several)
        where = f"{path}, columns of labels"
        guess = labels.guess_labels(dict.fromkeys(marks, 1), choice, where, id)
    elif numbers and not choice.any_given:
        guess = labels.of_action_units(numbers, id)
    else:
        raise _no_label(path, layout)
    if guess.space.multi_label and layout.repeated:
        raise UserError(
            f"{path}: {layout.repeated:,} pictures have several rows: of faces with several "
            "labels, keep one row for each picture"
        )
    au_labels = not (layout.raters or name or marks)
    values = {field.name: getattr(layout, field.name) for field in dataclasses.fields(layout)}
    return Guesses(**values, units=units, au_labels=au_labels, label=guess)


def _no_label(path: Path, layout: Layout) -> UserError:
    """The error about a missing label, with the columns that may hold it."""
    free = {n: c for n, c in layout.columns.items() if n not in layout.roles.values()}
    few = [name for name, column in free.items() if 2 <= len(column.words) <= _FEW]
    hint = "name it with --label COLUMN"
    if few:
        hint += f", such as --label {shlex.quote(few[0])}"
    if len(marks := label_columns.mark_columns(free)) > 1:
        hint += (
            "; columns of 0 and 1, one for each label, with --label-columns "
            f"{' '.join(map(shlex.quote, marks))}"
        )
    return UserError(
        f"{path}: no column was recognised as the label ({layout.table.names()}): {hint}"
    )


def _locate(path: Path, layout: Layout, choices: Choices) -> Located:
    """Where the pictures are."""
    roles, tool = layout.roles, layout.tool
    role = next((role for role in ("image", "video") if role in roles), None)
    column = layout.columns[roles[role]] if role else tool.files if tool else None
    if column is None:
        return locate_files_of_table(path, layout.table, choices.images)
    return locate(path, column, choices.images)


# --- splits ---------------------------------------------------------------------------------------


def _splits(layout: Guesses, choices: Choices) -> tuple[str | None, dict[str, Any]]:
    """(a line about people, `splits`)."""
    by, groups, note = _groups(layout, choices)
    table, roles, guess = layout.table, layout.roles, layout.label
    splits: dict[str, Any] = {}
    present = set(table_splits(table.path, TableOptions())) if table.path.is_dir() else set()
    if "split" in roles:
        column = layout.columns[roles["split"]]
        splits["column"] = column.name
        if names := guesses.split_names(column):
            splits["names"] = names
        words = {word: names.get(word) or SPLIT_WORDS[word.casefold()] for word in column.words}
        present = set(words.values())
    is_checked = "label" in roles and not layout.repeated and not guess.space.multi_label
    if is_checked and "test" not in present:
        row_labels = _row_labels(layout.columns[roles["label"]], guess)
        divide.check_number(table, row_labels)
        if guess.space.scale is None:
            divide.check_rare(table, groups, row_labels, by=by)
    taken = divide.shares(present, len(set(groups)))
    if taken:
        splits = {**splits, "by": by, **taken, "seed": 0}
    if by != "subject" and taken and note is None:
        each = "picture" if by == "image" else "video"
        note = line("", "", f"people are not known: splits go by {each} (see the YAML file)")
    return (note if taken or by == "subject" else None), splits


def _groups(layout: Guesses, choices: Choices) -> tuple[str, list[str], str | None]:
    """(subject, video or image; the person, video or picture of each row; a line about why)."""
    roles, rows = layout.roles, [str(i) for i in range(len(layout.table))]
    if layout.repeated:
        rows = [str(code) for code in layout.columns[roles["image"]].codes.tolist()]
    if choices.split_by == "image":
        return "image", rows, None
    people = layout.columns[roles["subject"]].texts() if "subject" in roles else None
    videos = layout.tool.videos if layout.tool and not layout.names_pictures else None
    if choices.split_by == "subject" and people is None:
        raise UserError("--split-by subject needs a column that names people: --subject COLUMN")
    if choices.split_by == "video" and videos is None:
        raise UserError("--split-by video is for tables of programs that measure videos")
    note = None
    if people is not None and choices.split_by != "video":
        if None in people:
            raise UserError(
                f"{layout.table.where(people.index(None))}: {roles['subject']!r} is empty, so the "
                "person is not known: fill it in, or split by picture, --split-by image"
            )
        if len(set(people)) > 1:
            return "subject", list(map(str, people)), None
        note = line("", "", f"all rows are of one person, {people[0]}: splits go by picture")
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


def _options(layout: Guesses) -> dict[str, Any]:
    """The options of `table`."""
    named: dict[str, Any] = {
        role: name
        for role, name in layout.roles.items()
        if role != "split" and name in layout.table.columns
    }
    box, box_options = face_box(layout.columns)
    if box is not None:
        named["face_box"] = box
    used = {*layout.roles.values(), *(box if isinstance(box, list) else [box])}
    of_tool = COLUMNS[layout.tool.tool] if layout.tool else {}
    for name in FIELDS:  # columns that would be read by their names alone
        column = layout.table.find(name)
        if name in named or column is None or name in of_tool:
            continue
        is_id = name == "id" and len(layout.columns[column].values) == len(layout.table)
        if not is_id and (name == "id" or column not in used):
            named[name] = None
    if layout.tool and layout.tool.label and "label" in layout.roles:
        named.setdefault("emotion", None)  # the label is the user's, and not the program's
        if layout.label.space.field == "emotion":
            del named["emotion"]
    options: dict[str, Any] = {"tool": layout.tool.tool} if layout.tool else {}
    if named:
        options["columns"] = named
    options |= box_options
    if layout.label.mapping:
        options["labels"] = layout.label.mapping
    numeric = [layout.roles[role] for role in NUMBERS if role in layout.roles]
    if layout.label.space.scale is not None:
        numeric += [name for name in (layout.roles.get("label"), *layout.raters) if name]
    if any(layout.columns[name].has_decimal_commas for name in numeric):
        options["decimal"] = ","
    if layout.marks is not None:
        options["votes"] = list(layout.marks.names)
    if layout.raters:
        options["raters"] = list(layout.raters)
    if layout.repeated:
        options["votes_in_rows"] = True
    if layout.pattern is not None:
        options["name_pattern"] = layout.pattern
    if layout.au_labels:
        options["au_labels"] = True
    return options


def _lines(layout: Guesses, located: Located, options: Mapping[str, Any]) -> list[str]:
    roles, tool, guess = layout.roles, layout.tool, layout.label
    lines = role_lines(layout.columns, roles, guess, located.text)
    if tool is not None:
        if not layout.names_pictures:
            what = "video" if tool.videos else "image"
            lines.insert(0, line(what, tool.files.name if tool.files else "", located.text))
        lines.insert(0, line("program", tool.title, "its columns are read as it writes them"))
        if tool.label and "label" not in roles:
            lines.append(line("label", tool.label, counted(guess)))
        if tool.units:
            lines.append(line("action units", f"{len(tool.units)}", _named(tool.units)))
    lines += _label_lines(layout)
    box = options.get("columns", {}).get("face_box") or []
    written = tool.columns if tool else ()
    return lines + unused(
        layout.table, [*layout.used, *written, *layout.units.get("aus", {}).values(), *box]
    )


def _label_lines(layout: Guesses) -> list[str]:
    """Lines about labels that are not in one column."""
    roles, tool, guess = layout.roles, layout.tool, layout.label
    lines = []
    if layout.pattern is not None:
        lines.append(line("", "", f"names of files are read as {layout.pattern}"))
    if layout.marks or (tool and tool.votes and "label" not in roles):
        kind = "all that are 1" if guess.space.multi_label else "most votes"
        lines.append(line("label", kind, ", ".join(guess.space.labels)))
    if layout.raters:
        kind = "most" if guess.space.scale is None else "mean"
        lines.append(line("label", f"{kind} of {len(layout.raters)} raters", counted(guess)))
    if layout.repeated:
        how = "each row is counted as a vote" if guess.space.scale is None else "their mean is used"
        text = f"{layout.repeated:,} pictures have several rows: {how}"
        lines.append(line("", "", text))
    if units := layout.units.get("aus"):
        lines.append(line("action units", f"{len(units)} columns", ", ".join(units)))
    if layout.au_labels:
        text = "no column holds another label: a model learns to name the action units"
        lines.append(line("label", "action units", text))
    return lines


def _named(units: Sequence[int]) -> str:
    return ", ".join(f"AU{unit}" for unit in units)
