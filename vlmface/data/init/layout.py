"""Which column of a table has which role, as `data init` guesses it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vlmface.data.init import columns as guesses
from vlmface.data.init import label_columns, people, raters, rating_columns, tools
from vlmface.data.init.boxes import face_box
from vlmface.data.init.choices import Choices
from vlmface.data.init.columns import NONE, Column
from vlmface.data.init.label_columns import LabelColumns
from vlmface.data.init.locating import column_of_ids
from vlmface.data.init.tools import ToolTable
from vlmface.data.tables.table import Table
from vlmface.errors import UserError
from vlmface.utils.images import SUFFIXES

_PICTURE_AND_WORD = re.compile(rf"({'|'.join(map(re.escape, SUFFIXES))})\s+\S", re.IGNORECASE)


@dataclass(frozen=True)
class Layout:
    """Which column of a table has which role.

    Attributes:
        table: The table.
        columns: Those that may have a role, by name; also those of what the names of files say.
        roles: {role: column}.
        tool: What a program wrote into the table, or None.
        raters: Columns with the labels of one rater each.
        marks: Columns of 0 and 1, of votes or of probabilities, one for each label; or None.
        pattern: What the names of files say, or None.
        repeated: How many pictures have several rows, each of which is one person's rating.
    """

    table: Table
    columns: Mapping[str, Column]
    roles: Mapping[str, str]
    tool: ToolTable | None = None
    raters: Sequence[str] = ()
    marks: LabelColumns | None = None
    pattern: str | None = None
    repeated: int = 0

    @property
    def names_pictures(self) -> bool:
        """Whether a column of the user's, and not of a program, names the pictures or videos."""
        return bool({"image", "video"} & self.roles.keys())

    @property
    def used(self) -> list[str]:
        """The columns of the table that are read as a role or a label."""
        marks = self.marks.names if self.marks else ()
        names = dict.fromkeys((*self.roles.values(), *self.raters, *marks))
        return [name for name in names if name in self.table.columns]


def find_layout(path: Path, table: Table, choices: Choices) -> Layout:
    """Find out which column has which role.

    Args:
        path: Of the table.
        table: The table.
        choices: What the command line says.

    Raises:
        UserError: Something must be named.
    """
    tool = tools.of_table(table)
    named = {name.casefold() for name in choices.columns.values() if name}
    written = tool.columns if tool else frozenset()
    columns = {
        name: guesses.column_of(table, name)
        for name in table.columns
        if name not in written or name.casefold() in named
    }
    chosen = dict(choices.columns)
    by_raters = [table.need(name, "--raters") for name in choices.raters]
    marked = [table.need(name, "--label-columns") for name in choices.label_columns]
    if not chosen.get("label") and not by_raters and not marked:
        by_raters = raters.rater_columns(columns)
    if by_raters or marked:
        chosen["label"] = NONE
    other_columns = {name: c for name, c in columns.items() if name not in (*by_raters, *marked)}
    if tool is None and not _names_files(other_columns, chosen):
        near = Path(choices.images) if choices.images else path if path.is_dir() else path.parent
        chosen["image"] = column_of_ids(other_columns, near)
    has_box = tool is not None or face_box(columns)[0] is not None
    is_person = _anyone if has_box else raters.names_people
    layout = Layout(
        table, columns, guesses.guess(table, other_columns, chosen, is_person), tool, by_raters
    )
    if not layout.names_pictures and tool is None:
        raise _no_pictures(path, layout)
    layout = _with_marks(_with_names(layout, choices), marked)
    if chosen.get("label") is None:
        layout = _with_rating(layout)
    return layout if has_box else _with_rows_as_ratings(layout)


def _names_files(columns: Mapping[str, Column], chosen: Mapping[str, str | None]) -> bool:
    """Whether a column of pictures or videos was chosen, or is found."""
    return any(
        chosen.get(role) or guesses.files_column(role, columns) for role in ("image", "video")
    )


def _anyone(column: Column, image: Column | None) -> bool:
    return True


def _no_pictures(path: Path, layout: Layout) -> UserError:
    hint = "name it with --image COLUMN"
    if any(_PICTURE_AND_WORD.search(name) for name in layout.columns):
        hint = "put a comma or a tab between the columns"
    if {"messages", "conversations"} & layout.columns.keys():
        hint = "conversations are read by `llava_json` (docs/tables.md)"
    return UserError(
        f"{path}: no column holds names of picture files ({layout.table.names()}): {hint}"
    )


def _with_marks(layout: Layout, marked: Sequence[str]) -> Layout:
    """The layout with the columns of labels that were named, or that are found if no other column
    holds the label."""
    columns, roles = layout.columns, layout.roles
    if marked:
        return dataclasses.replace(layout, marks=label_columns.of_columns(columns, marked))
    if "label" in roles or layout.raters or layout.tool:
        return layout
    free = {name: c for name, c in columns.items() if name not in roles.values()}
    return dataclasses.replace(layout, marks=label_columns.find_label_columns(free))


def _with_rating(layout: Layout) -> Layout:
    """The layout with the column of ratings, if nothing else holds the label."""
    roles, columns = layout.roles, layout.columns
    if "label" in roles or layout.marks:
        return layout
    box = face_box(columns)[0] or []
    taken = {*roles.values(), *(box if isinstance(box, list) else [box])}
    free = {name: column for name, column in columns.items() if name not in taken}
    others = layout.tool is not None or any(map(guesses.is_unit, columns))
    name = rating_columns.find_column(free, others)
    return layout if name is None else dataclasses.replace(layout, roles={**roles, "label": name})


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
        name = f"file names: {field}"
        columns[name] = people.column_of_names(image.texts(), pattern, field)
        roles[field] = name
    return dataclasses.replace(layout, columns=columns, roles=roles, pattern=pattern)


def _with_rows_as_ratings(layout: Layout) -> Layout:
    """The layout in which rows of one picture are ratings of it. Raises UserError for a column of
    people that was named although the rows of a picture differ in it."""
    image = layout.columns.get(layout.roles.get("image", ""))
    repeated = 0 if image is None else raters.num_repeated(image)
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
