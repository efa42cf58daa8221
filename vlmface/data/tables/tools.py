"""The tables of programs that measure faces: OpenFace 2, py-feat and LibreFace.

Columns: OpenFace 2.2's wiki (Output Format), py-feat's `feat.utils` (FEAT_FACEBOX_COLUMNS,
FEAT_EMOTION_COLUMNS), LibreFace's `format_output` and `get_frames_from_video_ffmpeg`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from vlmface.data.tables.cells import numbers, texts
from vlmface.data.tables.columns import columns_like
from vlmface.data.tables.options import TableOptions
from vlmface.data.tables.table import Table

BOX = ["FaceRectX", "FaceRectY", "FaceRectWidth", "FaceRectHeight"]
EMOTIONS = ["anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral"]
COLUMNS: dict[str, dict[str, Any]] = {
    "openface": {"frame": "frame"},
    "pyfeat": {"image": "input", "frame": "frame", "face_box": BOX},
    "libreface": {
        "frame": "frame_idx",
        "image": "input_image_path",
        "emotion": "facial_expression",
    },
}
USUAL: dict[str, dict[str, Any]] = {
    "openface": {"aus": "AU*_c", "au_intensities": "AU*_r", "first_frame": 1},
    "pyfeat": {
        "box_format": "xywh",
        "aus": "AU*",
        "au_values": "probability",
        "votes": EMOTIONS,
    },
    # Presence and intensity are of different sets of AUs.
    "libreface": {"aus": ["au_[0-9]", "au_[0-9][0-9]"], "au_intensities": "au_*_intensity"},
}
OF_UNITS = ("aus", "au_values", "au_intensities")
OF_COLUMNS = ("aus", "au_intensities", "votes")
DEFAULT = {field.name: field.default for field in dataclasses.fields(TableOptions)}
LOST = {
    "openface": "OpenFace did not find the face (success is 0)",
    "pyfeat": "py-feat did not find a face",
    "libreface": "LibreFace did not find a face",
}


def with_usual_options(options: TableOptions, table: Table) -> TableOptions:
    """The options with those that are usual for their tool, where they are not given.

    A usual column that the table lacks is left out. Of OF_UNITS all are usual or none. Where a
    column is named as the label, the tool's votes for emotions are not read.
    """
    if options.tool is None:
        return options
    columns = {
        field: column
        for field, column in COLUMNS[options.tool].items()
        if all(table.find(name) for name in ([column] if isinstance(column, str) else column))
    }
    changes = dict(USUAL[options.tool])
    if (options.columns or {}).get(options.label_field):
        changes.pop("votes", None)
    if any(option in changes for option in OF_UNITS if getattr(options, option) != DEFAULT[option]):
        changes = {o: value for o, value in changes.items() if o not in OF_UNITS}
    changes = {
        option: value
        for option, value in changes.items()
        if getattr(options, option) == DEFAULT[option]
        and (option not in OF_COLUMNS or columns_like(table, value))
    }
    if "au_intensities" in changes and "aus" not in changes:
        changes |= {"aus": changes.pop("au_intensities"), "au_values": "intensity"}
    return dataclasses.replace(options, columns=columns | dict(options.columns or {}), **changes)


def lost_rows(table: Table, rows: np.ndarray, options: TableOptions) -> tuple[str, np.ndarray]:
    """(reason, mask (n,) of the rows in which the tool found no face). Tables of OpenFace are also
    known by their columns `success` and `confidence`: it writes zeros as the AUs of a lost face."""
    tool = options.tool
    success, confidence, score, expression = (
        table.find(name) for name in ("success", "confidence", "FaceScore", "facial_expression")
    )
    of_openface = tool == "openface" or (tool is None and confidence and options.aus is not None)
    if of_openface and success:
        return LOST["openface"], numbers(table, success, rows, options.decimal, flags=True) == 0
    if tool == "pyfeat" and score:
        return LOST[tool], np.isnan(numbers(table, score, rows, options.decimal))
    if tool == "libreface" and expression:
        lost = [word is None for word in texts(table, expression, rows)]
        return LOST[tool], np.array(lost, bool)
    return "", np.zeros(len(rows), bool)
