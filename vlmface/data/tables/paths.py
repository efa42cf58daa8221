"""Paths in the cells of a table, which may come from a stranger or another system."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from vlmface.data.records import has_parent_reference, path_inside
from vlmface.data.tables.cells import BadCellError, as_label


def path_in(value: Any, folder: Path) -> tuple[str, str] | None:
    """(the path as it is written, the path of the file) of a cell; None for an empty one.

    Args:
        value: the cell.
        folder: where relative paths start.

    Raises:
        BadCellError: the path leads out of the folder, and is not absolute.
    """
    path = as_label(value)
    if not path:
        return None
    full_path = path if os.path.isabs(path) else path_inside(folder, path)
    if full_path is None or has_parent_reference(path):
        raise BadCellError(
            f"an absolute path or one inside {folder} (images= names the folder that paths start "
            "from)"
        )
    if "\\" in path and not os.path.exists(full_path):
        path, full_path = path.replace("\\", "/"), full_path.replace("\\", "/")
    return path, full_path


def is_plain(paths: Any) -> bool:
    """Whether all texts of an Arrow array are relative paths that need no closer look: with neither
    null, "..", a backslash, a drive, spaces at the ends nor a word for "not annotated"."""
    import pyarrow.compute as pc

    if paths.null_count:
        return False
    plain = r"^[^/\\:\s-][^\\:\0]*\.[A-Za-z0-9]+$"
    return bool(
        pc.all(pc.match_substring_regex(paths, plain)).as_py()
        and not pc.any(pc.match_substring(paths, "..")).as_py()
    )
