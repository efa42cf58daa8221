"""Tables of programs that measure faces, as `data init` recognises them by their columns."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from vlmface.data import video
from vlmface.data.init.columns import Column, column_of
from vlmface.data.tables.columns import columns_like
from vlmface.data.tables.options import TableOptions
from vlmface.data.tables.table import Table
from vlmface.data.tables.tools import COLUMNS, EMOTIONS, with_usual_options
from vlmface.data.tables.units import au_columns

TITLES = {"openface": "OpenFace", "pyfeat": "py-feat", "libreface": "LibreFace"}
# The columns that each program writes; any other is the user's.
_WRITTEN = {
    "openface": r"frame|face|face_id|timestamp|confidence|success|(gaze|pose|eye_lmk|p)_\w+"
    r"|[xyz]_\d+|au\d+_[rc]",
    "pyfeat": r"facerect\w+|facescore|framewidth|frameheight|au\d+|[xyz]_?\d*|pitch|roll|yaw"
    r"|gaze_\w+|identity_\d+|input|frame|approx_time|" + "|".join(EMOTIONS),
    "libreface": r"frame_idx|frame_time_in_ms|pitch|yaw|roll|lm_\w+|au_\d+(_intensity)?"
    r"|facial_expression|input_image_path|aligned_\w+",
}


@dataclass(frozen=True)
class ToolTable:
    """A table that a program wrote, perhaps with columns of the user's.

    Attributes:
        tool: The option `tool` of the table.
        columns: The names of the program's own columns.
        files: Its column of pictures or videos; None where the table is named as its video.
        videos: The video of each row, where rows are frames of videos; else None.
        label: Its column of emotions.
        votes: Its columns of probabilities of emotions.
        units: The numbers of the action units that it measured.
    """

    tool: str
    columns: frozenset[str]
    files: Column | None = None
    videos: Sequence[str | None] | None = field(default=None, repr=False)
    label: str | None = None
    votes: Sequence[str] = ()
    units: Sequence[int] = ()

    @property
    def title(self) -> str:
        """The program's name."""
        return TITLES[self.tool]


def of_table(table: Table) -> ToolTable | None:
    """What a program wrote into a table; None if the columns are not those of one."""
    tool = _tool_of(table)
    if tool is None:
        return None
    written = re.compile(_WRITTEN[tool])
    written_columns = frozenset(
        name for name in table.columns if written.fullmatch(name.strip().lower())
    )
    name = table.find(COLUMNS[tool].get("image", "")) if "image" in COLUMNS[tool] else None
    files = None if name is None else column_of(table, name)
    expression = COLUMNS[tool].get("emotion")
    votes = columns_like(table, EMOTIONS) if tool == "pyfeat" else []
    return ToolTable(
        tool,
        written_columns,
        files,
        _videos(table, tool, files),
        table.find(expression) if expression else None,
        votes if len(votes) == len(EMOTIONS) else (),
        _units(table, tool),
    )


def _tool_of(table: Table) -> str | None:
    def has(*names: str) -> bool:
        return any(table.find(name) for name in names)

    if columns_like(table, ["au[0-9][0-9]_[rc]"]) and has("success", "confidence"):
        return "openface"
    if has("FaceScore") and has("FaceRectX"):
        return "pyfeat"
    markers = ("facial_expression", "frame_idx", "input_image_path")
    if columns_like(table, ["au_[0-9]", "au_[0-9][0-9]", "au_*_intensity"]) and has(*markers):
        return "libreface"
    return None


def _videos(table: Table, tool: str, files: Column | None) -> list[str | None] | None:
    """The video of each row; None if rows are not frames of videos."""
    import numpy as np

    if table.find(COLUMNS[tool]["frame"]) is None:
        return None
    if files is None:
        return list(table.stems(np.arange(len(table))))
    is_video = files.share(lambda word: word.lower().endswith(video.SUFFIXES)) > 0
    return files.texts() if is_video else None


def _units(table: Table, tool: str) -> list[int]:
    options = with_usual_options(TableOptions(tool=tool), table)
    units = {
        au
        for option in ("aus", "au_intensities")
        if (names := getattr(options, option)) is not None
        for au in au_columns(table, names, option)
    }
    return sorted(units)
