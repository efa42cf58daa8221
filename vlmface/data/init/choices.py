"""What the command line of `data init` says, and what was found out about the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vlmface.data.init.labels import LabelChoices
from vlmface.data.init.writing import FileContent


@dataclass(frozen=True)
class Choices:
    """The options of the command.

    Attributes:
        columns: {role: column, "none", or None to guess}, of `column_roles.COLUMN_ROLES`.
        images: The folder that paths start from.
        split_by: "subject", "image" or "video"; None: subject where people are known, else video
            where rows are frames of several videos.
        labels: About the labels.
        raters: Columns with the labels of one rater each.
        label_columns: Columns of 0 and 1, of votes or of probabilities, one for each label.
        name_pattern: What names of files say, such as {subject}_{label}_*.
        sheet: Of a workbook.
        encoding: Of a text file.
        output: The file to write; None: beside a table, or in the working folder.
        overwrite: Whether an existing file is replaced.
    """

    columns: Mapping[str, str | None] = field(default_factory=dict)
    images: str | None = None
    split_by: str | None = None
    labels: LabelChoices = field(default_factory=LabelChoices)
    raters: Sequence[str] = ()
    label_columns: Sequence[str] = ()
    name_pattern: str | None = None
    sheet: str | None = None
    encoding: str | None = None
    output: Path | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class Finding:
    """What was found out about some data: the file to write, and lines about it."""

    content: FileContent
    lines: Sequence[str]
