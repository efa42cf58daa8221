"""Files of data sets that vlmface reads by themselves: FER2013's csv and FER+'s file of votes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vlmface import label_spaces
from vlmface.data.init.choices import Choices, Finding
from vlmface.data.init.lines import line
from vlmface.data.init.writing import FileContent
from vlmface.data.tables.table import Table
from vlmface.errors import UserError


@dataclass(frozen=True)
class KnownFile:
    """A file of a data set.

    Attributes:
        dataset: The data set's name.
        title: For display.
        columns: The columns that it is recognised by, in lower case.
        label_space: Of its labels.
        about: What its labels and pictures are.
    """

    dataset: str
    title: str
    columns: frozenset[str]
    label_space: str
    about: Mapping[str, str]


_PARTS = "Training, PublicTest and PrivateTest: train, validation and test"
FILES = (
    KnownFile(
        "fer2013",
        "FER2013",
        frozenset({"emotion", "pixels", "usage"}),
        "emotion7",
        {
            "image": "column pixels, 48 x 48 grey values each",
            "label": "column emotion, 0 to 6: anger, disgust, fear, happiness, sadness, surprise, "
            "neutral",
            "split": f"column Usage, {_PARTS}",
        },
    ),
    KnownFile(
        "ferplus",
        "FER+",
        frozenset({"usage", "image name", "neutral", "contempt", "nf"}),
        "emotion8",
        {
            "image": "the faces of fer2013.csv row by row, or the folders FER2013Train, ...Valid, "
            "...Test",
            "label": "the majority of ten votes; protocol: distribution keeps all votes",
            "split": f"column Usage, {_PARTS}",
        },
    ),
)


def of_table(table: Table) -> KnownFile | None:
    """The data set whose file a table is; None if it is not one."""
    names = {name.strip().casefold() for name in table.columns}
    return next((file for file in FILES if file.columns <= names), None)


def find_in(folder: Path) -> Path | None:
    """FER+'s file of votes in a folder that also has FER2013's csv, which it belongs to."""
    votes, faces = folder / "fer2013new.csv", folder / "fer2013.csv"
    return votes if votes.is_file() and faces.is_file() else None


def look_at(file: KnownFile, path: Path, table: Table, target: Path, choices: Choices) -> Finding:
    """The data set file of a known file. Raises UserError for options that do not apply to it."""
    _refuse(file, path, choices)
    space = choices.labels.space or file.label_space
    label_spaces.space(space)
    if space.endswith((".yaml", ".yml")):
        space = os.path.relpath(space, target.parent)
    content = FileContent(
        source=path.name,
        dataset=file.dataset,
        root=os.path.relpath(path, target.parent),
        options={},
        splits=None,
        label_space=space,
    )
    described = [line(role, "", text) for role, text in file.about.items()]
    head = f"{path}: {len(table):,} rows, the file of {file.title}"
    return Finding(content, [head, "", *described])


def _refuse(file: KnownFile, path: Path, choices: Choices) -> None:
    unused_options = [role for role, column in choices.columns.items() if column is not None]
    labels = choices.labels
    others = {
        "images": choices.images,
        "split-by": choices.split_by,
        "labels": labels.words,
        "ordered": labels.ordered,
        "multi-label": labels.several,
        "scale": labels.scale is not None,
    }
    unused_options += [name for name, value in others.items() if value]
    if unused_options:
        option = unused_options[0].replace("_", "-")
        raise UserError(
            f"{path} is read as the file of {file.title}, whose columns, labels and splits are "
            f"known: leave --{option} out, or change the YAML file afterwards"
        )
