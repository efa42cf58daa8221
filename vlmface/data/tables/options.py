"""The options of the data set `table`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlmface import label_spaces
from vlmface.data.records import check_choice
from vlmface.errors import UserError
from vlmface.label_spaces import LabelSpace
from vlmface.schema import RATIONALE_SOURCES
from vlmface.utils.ranges import Count, Natural

Column = str | int  # the name of a column, or its number where there is no header
SPLITS = ("train", "validation", "test")
AU_VALUES = {"presence": 1.0, "intensity": 1.0, "probability": 0.5}  # and their usual au_threshold
CHOICES = {
    "au_values": tuple(AU_VALUES),
    "box_format": ("xyxy", "xywh", "cxcywh"),
    "box_units": ("pixels", "relative"),
    "box_outside": ("keep", "clip", "error"),
    "decimal": (".", ","),
    "file_split": SPLITS,
    "find_images": ("path", "name", "stem"),
    "label_field": ("emotion", "context"),
    "rationale_source": tuple(s for s in RATIONALE_SOURCES if s != "none"),
    "time_unit": ("seconds", "frames"),
    "tool": ("openface", "pyfeat", "libreface"),
}


@dataclass(frozen=True)
class TableOptions:
    """How a table, or a folder of label folders, is read.

    A cell that is empty or one of `cells.NULLS` is "not annotated" (of names and ids: an empty
    one). Columns are named in any letter case. Of a header that repeats a name, the columns are
    named `label (1)`, `label (2)`.

    Attributes:
        columns: {field: the column that holds it, or None to ignore it}, by default the column of
            the field's own name, if there is one. Fields: image, frames (a list of files, a
            pattern such as clips/7/*.jpg or a folder), video (a file), start and end (of the clip
            in it), frame (the number of one frame of a video, or of a folder of frames), id,
            emotion, context (your own words; several are separated by `;` or `|`, or a JSON list),
            label_votes (JSON or "anger:0.3;fear:0.7"), subject, age_group, gender, race,
            rationale, valence, arousal, age, and face_box: one column with four numbers, or a list
            of four columns.
        labels: emotions of words and numbers, as in {"0": "anger", "bored": None}; None stands for
            none of the eight emotions. Aliases such as "Happy" and "sad" are known. A number may
            be written as "3.0" or "3".
        words: the same for gender, race and age_group, as in {"gender": {"0": "male"}}; F, W and M
            are known.
        label_field: "emotion" or "context": the field for the names of label folders and for the
            majority of votes. "context" keeps your own words.
        label_space: what the labels of `label_field` are: a name, a YAML file or a LabelSpace. By
            default emotions are the eight of FaceSample, and words of "context" are not checked.
        votes: columns of votes, probabilities or 0 and 1, one for each word: a pattern of names, a
            list, or {word: column}. They become `label_votes`, and the label is the word with most
            votes, if no column holds the label; a tie has no label. In a label space with
            multi_label they mark all labels of a face, with 1 or a probability of at least 0.5.
        raters: columns with the labels that one rater each gave: a pattern of names or a list. They
            are counted as `votes`.
        votes_in_rows: whether each row is one person's rating of its picture. The rows of a picture
            become one, their labels votes, their numbers means.
        images: the folder that relative paths start from (default: the file's).
        find_images: how a cell names its picture: "path", "name" (a picture of that name in
            `images` or below it, whatever folders the cell has, as in paths of another computer) or
            "stem" (the same without the ending, as in ids; 7 also finds 007.png).
        name_pattern: what the names of pictures say, as in "{subject}_{label}_*", where * stands
            for anything: the person, the label of `label_field`, or both.
        num_frames: frames of a clip.
        time_unit: "seconds" or "frames": the unit of start and end.
        first_frame: the number of a video's first frame in the columns frame, start and end (0 by
            default, 1 with tool="openface").
        box_format: "xyxy" (left, top, right, bottom), "xywh" (left, top, width, height) or "cxcywh"
            (centre, width, height).
        box_units: "pixels", or "relative": shares of the picture's width and height, 0 to 1.
        box_outside: a box that reaches out of its picture: "keep" it (views clip it), "clip" it or
            "error". The last two read the size of every picture.
        aus: columns of action units: a pattern of names ("AU*_c"), a list, or {"AU1": "column"}.
            Columns of the left and right side of one AU are joined: present if either is.
        au_values: "presence": 0 or 1; "intensity": 0 to 5 or A to E; "probability": 0 to 1.
        au_threshold: the least value of an AU that is present; by default 1 of intensities and 0.5
            of probabilities.
        au_intensities: columns of intensities next to those of presence in `aus`, in the same
            forms.
        au_missing: codes for "not annotated", such as 9 or [9, 999, -1].
        au_labels: whether the action units that are present are also the words of `context`: AU1,
            AU12, ..., or "no action unit".
        where: rows to keep, such as "confidence > 0.8 and label not in ('none', 'other')"; see
            `vlmface.data.tables.where`.
        split_column: the column that holds train, validation or test.
        splits: splits of other words in it, as in {"PublicTest": "validation"}.
        file_split: the split of all rows, where neither a column nor names of files or folders
            state it. The other splits are empty, so that one file is not trained on and tested on
            by mistake.
        tool: "openface", "pyfeat" or "libreface": usual options for the tables of these programs.
        header: False for a file without a header; its columns are named 1, 2, 3, ...
        encoding: of a text file that is neither UTF-8 nor has a byte order mark, such as cp1252.
        decimal: "," for numbers such as 0,5.
        sheet: the sheet of a workbook (xlsx).
        rationale_source: who wrote the rationales.
        rationale_saw_label: whether the writer was given the labels.
    """

    columns: Mapping[str, Column | Sequence[Column] | None] | None = None
    labels: Mapping[Any, str | None] | None = None
    words: Mapping[str, Mapping[Any, str | None]] | None = None
    label_field: str = "emotion"
    label_space: str | LabelSpace | None = None
    votes: str | Sequence[str] | Mapping[Any, Column] | None = None
    raters: str | Sequence[str] | None = None
    votes_in_rows: bool = False
    images: str | None = None
    find_images: str = "path"
    name_pattern: str | None = None
    num_frames: Count = 16
    time_unit: str = "seconds"
    first_frame: Natural | None = None
    box_format: str = "xyxy"
    box_units: str = "pixels"
    box_outside: str = "keep"
    aus: str | Sequence[str] | Mapping[Any, Column | Sequence[Column]] | None = None
    au_values: str = "presence"
    au_threshold: float | None = None
    au_intensities: str | Sequence[str] | Mapping[Any, Column | Sequence[Column]] | None = None
    au_missing: float | str | Sequence[float | str] = ()
    au_labels: bool = False
    where: str | None = None
    split_column: Column | None = None
    splits: Mapping[Any, str] | None = None
    file_split: str = "train"
    tool: str | None = None
    header: bool = True
    encoding: str | None = None
    decimal: str = "."
    sheet: str | None = None
    rationale_source: str = "human"
    rationale_saw_label: bool = False

    @property
    def space_of_labels(self) -> LabelSpace | None:
        """The label space of `label_field`; None for any words."""
        space = self.label_space
        if isinstance(space, str):
            space = label_spaces.space(space)
        if space is not None and space.field == self.label_field:
            return space
        return label_spaces.space("emotion8") if self.label_field == "emotion" else None

    def __post_init__(self) -> None:
        for option, allowed in CHOICES.items():
            if (value := getattr(self, option)) is not None:
                check_choice(option, value, allowed)
        top = 1 if self.au_values == "probability" else 5
        if self.au_threshold is not None and not 0 < self.au_threshold <= top:
            kind = "a probability" if top == 1 else "an intensity"
            raise UserError(f"au_threshold={self.au_threshold!r}: give {kind} above 0, up to {top}")
        if self.au_intensities is not None and (self.au_values != "presence" or self.aus is None):
            raise UserError(
                "au_intensities= is for columns next to those of presence: set aus= to the columns "
                "of presence, or leave au_intensities out"
            )
        if self.au_labels and self.label_field != "context":
            raise UserError(
                "au_labels makes words of the field context: set label_field='context', or name "
                "the action units as labels of a label space with field: context"
            )
