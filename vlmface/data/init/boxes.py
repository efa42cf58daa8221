"""Columns that hold the box of a face."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlmface.data.init.columns import Column
from vlmface.data.init.names import plain

# Names of four columns, and `box_format` of the table.
_FOUR = (
    (("x1", "y1", "x2", "y2"), "xyxy"),
    (("x0", "y0", "x1", "y1"), "xyxy"),
    (("xmin", "ymin", "xmax", "ymax"), "xyxy"),
    (("left", "top", "right", "bottom"), "xyxy"),
    (("x", "y", "w", "h"), "xywh"),
    (("x", "y", "width", "height"), "xywh"),
    (("left", "top", "width", "height"), "xywh"),
    (("cx", "cy", "w", "h"), "cxcywh"),
)
_BEFORE = ("", "bbox", "box", "face", "facebox", "facerect")


def face_box(columns: Mapping[str, Column]) -> tuple[list[str] | None, dict[str, Any]]:
    """(the four columns of the box, options of the table about it); (None, {}) without them.

    Columns of shares of the picture's sides, 0 to 1, are recognised by their values.
    """
    names = {plain(name): name for name, column in columns.items() if column.numbers}
    for before in _BEFORE:
        for four, box_format in _FOUR:
            wanted = [before + side for side in four]
            if all(name in names for name in wanted):
                corner_columns = [names[name] for name in wanted]
                values = [value for name in corner_columns for value in columns[name].numbers or ()]
                options: dict[str, Any] = {"box_format": box_format}
                if max(values) <= 1:
                    options["box_units"] = "relative"
                return corner_columns, options
    return None, {}
