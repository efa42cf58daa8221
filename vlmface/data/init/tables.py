"""What a table holds, as `data init` guesses it: columns, pictures, labels, AUs and splits."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmface.data.init import columns as guesses
from vlmface.data.init import divide, label_columns, labels, people, raters
from vlmface.data.init.boxes import face_box
from vlmface.data.init.choices import Choices, Finding
from vlmface.data.init.columns import NONE, Column
from vlmface.data.init.label_columns import LabelColumns
from vlmface.data.init.labels import LabelGuess
from vlmface.data.init.lines import counted, examples, line, role_lines, unused
from vlmface.data.init.locating import Located, column_of_ids, locate
from vlmface.data.init.writing import FileContent
from vlmface.data.tables.columns import FIELDS, NUMBERS
from vlmface.data.tables.folders import table_splits
from vlmface.data.tables.options import TableOptions
from vlmface.data.tables.splits import SPLIT_WORDS
from vlmface.data.tables.table import Table
from vlmface.errors import UserError
from vlmface.utils.images import SUFFIXES

_PICTURE_AND_WORD = re.compile(rf"({'|'.join(map(re.escape, SUFFIXES))})\s+\S", re.IGNORECASE)
_FEW = 20  # different words of a column that is proposed as the label


@dataclass(frozen=True)
class Layout:
    """Which column of a table has which role.

    Attributes:
        table: The table.
        columns: By name; also one of what the names of files say.
        roles: {role: column}.
        raters: Columns with the labels of one rater each.
        marks: Columns of 0 and 1, of votes or of probabilities, one for each label; or None.
        pattern: What the names of files say, or None.
        repeated: How many pictures have several rows, each of which is one person's rating.
    """

    table: Table
    columns: Mapping[str, Column]
    roles: Mapping[str, str]
    raters: Sequence[str] = ()
    marks: LabelColumns | None = None
    pattern: str | None = None
    repeated: int = 0

    @property
    def used(self) -> list[str]:
        """The columns of the table that are read as a role or a label."""
        marks = self.marks.names if self.marks else ()
        names = dict.fromkeys((*self.roles.values(), *self.raters, *marks))
        return [name for name in names if name in self.table.columns]


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
    layout, located = _layout(path, table, choices)
    guess = _label(path, layout, choices)
    note, splits = _splits(layout, guess, choices)
    units = guesses.units(layout.columns)
    options = options | _options(layout, guess) | located.options
    base = path if path.is_dir() else path.parent
    if located.folder is not None and located.folder.resolve() != base.resolve():
        options["images"] = os.path.relpath(located.folder, target.parent)
    content = FileContent(
        source=path.name,
        dataset="table",
        root=os.path.relpath(path, target.parent),
        options=options | units,
        splits=splits,
        label_space=labels.definition_in(guess, target),
        prompt="rationale" if "rationale" in layout.roles else "au_rationale" if units else "label",
        unknown_people=splits.get("by") == "image",
    )
    lines = [f"{path}: {len(table):,} rows, columns {table.names()}", ""]
    lines += _lines(layout, guess, located, options | units)
    if note:
        lines.append(note)
    return Finding(content, [*lines, "", *examples(table, layout.used)])


# --- columns and labels ---------------------------------------------------------------------------


def _layout(path: Path, table: Table, choices: Choices) -> tuple[Layout, Located]:
    columns = guesses.columns_of(table)
    chosen = dict(choices.columns)
    by_raters = [table.need(name, "--raters") for name in choices.raters]
    marked = [table.need(name, "--label-columns") for name in choices.label_columns]
    if not chosen.get("label") and not by_raters and not marked:
        by_raters = raters.rater_columns(columns)
    if by_raters or marked:
        chosen["label"] = NONE
    rest = {name: c for name, c in columns.items() if name not in (*by_raters, *marked)}
    if not (chosen.get("image") or chosen.get("video")) and not any(
        guesses.files_column(role, rest) for role in ("image", "video")
    ):
        near = Path(choices.images) if choices.images else path if path.is_dir() else path.parent
        chosen["image"] = column_of_ids(rest, near)
    has_box = face_box(columns)[0] is not None
    is_person = (lambda column, image: True) if has_box else raters.names_people
    roles = guesses.guess(table, rest, chosen, is_person)
    if "image" not in roles and "video" not in roles:
        hint = "name it with --image COLUMN"
        if any(_PICTURE_AND_WORD.search(name) for name in columns):
            hint = "put a comma or a tab between the columns"
        if "messages" in columns or "conversations" in columns:
            hint = "conversations are read by `llava_json` (docs/tables.md)"
        raise UserError(f"{path}: no column holds names of picture files ({table.names()}): {hint}")
    located = locate(path, columns[roles.get("image") or roles["video"]], choices.images)
    layout = Layout(table, columns, roles, by_raters)
    layout = _with_names(layout, choices)
    if "label" in layout.roles or by_raters:
        return _with_rows_as_ratings(layout, has_box), located
    if marked:
        marks: LabelColumns | None = label_columns.of_columns(columns, marked)
    else:
        free = {n: c for n, c in columns.items() if n not in layout.roles.values()}
        marks = label_columns.find_label_columns(free)
    return dataclasses.replace(layout, marks=marks), located


def _with_names(layout: Layout, choices: Choices) -> Layout:
    """The layout with the people or labels that the names of pictures hold."""
    image = layout.columns.get(layout.roles.get("image", ""))
    no_people = choices.columns.get("subject") == NONE or "subject" in layout.roles
    pattern = choices.name_pattern
    if image is None or not image.words or (pattern is None and no_people):
        return layout
    pattern = pattern or people.guess_pattern(list(image.words))
    if pattern is None:
        return layout
    roles, columns = dict(layout.roles), dict(layout.columns)
    for field in people.fields_of(pattern):
        if field in roles:
            raise UserError(
                f"--name-pattern {pattern!r} and the column {roles[field]!r} both hold the {field}:"
                f" leave the column out, --{field} none"
            )
        name = f"{people.NAMES} ({field})"
        columns[name] = people.column_of_names(image.texts(), pattern, field)
        roles[field] = name
    return dataclasses.replace(layout, columns=columns, roles=roles, pattern=pattern)


def _with_rows_as_ratings(layout: Layout, has_box: bool) -> Layout:
    """The layout in which rows of one picture are ratings of it. Raises UserError for a column of
    people that was named although the rows of a picture differ in it."""
    image = layout.columns.get(layout.roles.get("image", ""))
    repeated = 0 if image is None or has_box else raters.num_repeated(image)
    if not repeated:
        return layout
    person = layout.roles.get("subject")
    if person is not None and not raters.names_people(layout.columns[person], image):
        raise UserError(
            f"{layout.table.path}: the rows of one picture differ in {person!r}, so it names who "
            "rated the picture, and not who is in it: leave it out, --subject none"
        )
    if layout.raters:
        raise UserError(
            f"{layout.table.path}: {repeated:,} pictures have several rows, but there are columns "
            "of several raters, too: keep one row for each picture"
        )
    return dataclasses.replace(layout, repeated=repeated)


def _label(path: Path, layout: Layout, choices: Choices) -> LabelGuess:
    """The label space. Raises UserError if no column holds labels."""
    columns, roles = layout.columns, layout.roles
    choice = choices.labels
    if layout.raters:
        words = raters.words_of([columns[name] for name in layout.raters])
        where = f"{path}, columns of raters"
    elif "label" in roles:
        words, where = columns[roles["label"]].words, f"{path}, column {roles['label']!r}"
    elif layout.marks is not None:
        words = dict.fromkeys(layout.marks.names, 1)
        where = f"{path}, columns of labels"
        choice = dataclasses.replace(choice, several=choice.several or layout.marks.several)
    else:
        raise _no_label(path, layout)
    guess = labels.guess_labels(words, choice, where, labels.space_name(path))
    if guess.space.multi_label and layout.repeated:
        raise UserError(
            f"{path}: {layout.repeated:,} pictures have several rows: of faces with several "
            "labels, keep one row for each picture"
        )
    return guess


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


# --- splits ---------------------------------------------------------------------------------------


def _splits(
    layout: Layout, guess: LabelGuess, choices: Choices
) -> tuple[str | None, dict[str, Any]]:
    """(a line about people, `splits`)."""
    table, columns, roles = layout.table, layout.columns, layout.roles
    by, groups, note = _groups(layout, choices)
    splits: dict[str, Any] = {}
    present = set(table_splits(table.path, TableOptions())) if table.path.is_dir() else set()
    if "split" in roles:
        column = columns[roles["split"]]
        splits["column"] = column.name
        if names := guesses.split_names(column):
            splits["names"] = names
        words = {word: names.get(word) or SPLIT_WORDS[word.casefold()] for word in column.words}
        present = set(words.values())
    if "label" in roles and not layout.repeated:
        row_labels = _row_labels(columns[roles["label"]], guess)
        if "test" not in present and not guess.space.multi_label:
            divide.check_rows(table, groups, row_labels, by_person=by == "subject")
    taken = divide.shares(present, len(set(groups)))
    if taken:
        splits = {**splits, "by": by, **taken, "seed": 0}
    if by == "image" and taken and note is None:
        note = line("", "", "people are not known: splits go by picture (see the YAML file)")
    return note, splits


def _groups(layout: Layout, choices: Choices) -> tuple[str, list[str], str | None]:
    """(subject or image, the person or picture of each row, a line about why)."""
    table, columns, roles = layout.table, layout.columns, layout.roles
    image = columns.get(roles.get("image", ""))
    pictures = [str(i) for i in range(len(table))]
    if layout.repeated and image is not None:
        pictures = [str(code) for code in image.codes.tolist()]
    people_of_rows = columns[roles["subject"]].texts() if "subject" in roles else None
    if choices.split_by == "subject" and people_of_rows is None:
        raise UserError("--split-by subject needs a column that names people: --subject COLUMN")
    if people_of_rows is None or choices.split_by == "image":
        return "image", pictures, None
    if None in people_of_rows:
        raise UserError(
            f"{table.where(people_of_rows.index(None))}: {roles['subject']!r} is empty, so it is "
            "not known who that is: fill it in, or split by picture, --split-by image"
        )
    if len(set(people_of_rows)) < 2:
        text = f"all rows are of one person, {people_of_rows[0]}: splits go by picture"
        return "image", pictures, line("", "", text)
    return "subject", [str(person) for person in people_of_rows], None


def _row_labels(column: guesses.Column, guess: LabelGuess) -> list[tuple[str, ...]]:
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


def _options(layout: Layout, guess: LabelGuess) -> dict[str, Any]:
    """The options of `table`."""
    table, columns, roles = layout.table, layout.columns, layout.roles
    named: dict[str, Any] = {
        role: name for role, name in roles.items() if role != "split" and name in table.columns
    }
    box, box_options = face_box(columns)
    if box is not None:
        named["face_box"] = box
    used = {*roles.values(), *(box if isinstance(box, list) else [box])}
    for name in FIELDS:  # columns that would be read by their names alone
        column = table.find(name)
        if name in named or column is None:
            continue
        is_id = name == "id" and len(columns[column].values) == len(table)
        if not is_id and (name == "id" or column not in used):
            named[name] = None
    options: dict[str, Any] = {"columns": named, **box_options}
    if any(columns[roles[role]].has_decimal_commas for role in NUMBERS if role in roles):
        options["decimal"] = ","
    if guess.mapping:
        options["labels"] = guess.mapping
    if layout.marks is not None:
        options["votes"] = list(layout.marks.names)
    if layout.raters:
        options["raters"] = list(layout.raters)
    if layout.repeated:
        options["votes_in_rows"] = True
    if layout.pattern is not None:
        options["name_pattern"] = layout.pattern
    return options


def _lines(
    layout: Layout, guess: LabelGuess, located: Located, options: Mapping[str, Any]
) -> list[str]:
    lines = role_lines(layout.columns, layout.roles, guess, located.text)
    if layout.pattern is not None:
        lines.append(line("", "", f"names of files are read as {layout.pattern}"))
    if layout.marks is not None:
        kind = "all that are 1" if guess.space.multi_label else "most votes"
        lines.append(line("label", kind, ", ".join(guess.space.labels)))
    if layout.raters:
        lines.append(line("label", f"most of {len(layout.raters)} raters", counted(guess)))
    if layout.repeated:
        text = f"{layout.repeated:,} pictures have several rows: each row is counted as a vote"
        lines.append(line("", "", text))
    units = options.get("aus", {})
    if units:
        lines.append(line("action units", f"{len(units)} columns", ", ".join(units)))
    box = options["columns"].get("face_box") or []
    return lines + unused(layout.table, [*layout.used, *units.values(), *box])
