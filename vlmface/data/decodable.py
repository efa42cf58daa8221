"""Rows whose pictures can be decoded, for `data.load(..., broken=...)`.

Decoding is what costs: each file that was decoded without a fault is recorded in the user's cache
folder by its path, size and time, so that the next run only decodes new files.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vlmface.data.sources import Source, image_sources, map_in_threads
from vlmface.errors import UserError
from vlmface.utils import files
from vlmface.utils.images import open_image

if TYPE_CHECKING:
    import datasets

_TABLE = "create table if not exists whole (path text primary key, size integer, mtime integer)"
Stats = tuple[int, int]  # size in bytes, time of the last change in nanoseconds


def decodable_rows(rows: datasets.Dataset, description: str, broken: str) -> datasets.Dataset:
    """Find rows with pictures that cannot be decoded.

    Args:
        rows: FaceSample rows.
        description: name of the rows in messages.
        broken: "drop" such rows, with a warning, or "error".

    Returns:
        The other rows.

    Raises:
        UserError: a picture cannot be decoded and `broken` is "error", or no row is left.
    """
    pictures = image_sources(rows)
    faults = _faults(list(dict.fromkeys(source for row in pictures for source in row)))
    if not faults:
        return rows
    lost = [
        row for row, of_row in enumerate(pictures) if any(source in faults for source in of_row)
    ]
    first = next(iter(faults.values()))
    if broken == "error":
        raise UserError(
            f"{description}: {len(lost):,} of {len(rows):,} rows have a picture that cannot be "
            f"decoded, the first: {first}; to leave such rows out, load with broken='drop'"
        )
    warnings.warn(
        f"{description}: {len(lost):,} of {len(rows):,} rows with a picture that cannot be decoded "
        f"are left out, the first: {first}",
        stacklevel=3,
    )
    if len(lost) == len(rows):
        raise UserError(
            f"{description}: no row is left, as no picture can be decoded, such as {first}"
        )
    gone = set(lost)
    return rows.select([row for row in range(len(rows)) if row not in gone])


def _faults(every: Sequence[Source]) -> dict[Source, str]:
    """Why pictures cannot be decoded, of those that cannot be."""
    database = files.cache_dir() / "decoded.sqlite"
    database.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(sqlite3.connect(database, timeout=600)) as index:
        index.execute(_TABLE)
        paths = [source for source in every if isinstance(source, str)]
        stats = {path: stat for path in paths if (stat := _stats(path))}
        checked_paths = {path for path, stat in stats.items() if _is_known(index, path, stat)}
        unseen = [source for source in every if source not in checked_paths]
        checked = zip(unseen, map_in_threads(_fault, unseen, "decoding"), strict=True)
        faults = {source: fault for source, fault in checked if fault}
        whole = [path for path in stats if path not in checked_paths and path not in faults]
        with index:
            index.executemany(
                "insert or replace into whole values (?, ?, ?)",
                [(os.path.abspath(s), *stats[s]) for s in whole],
            )
    return faults


def _is_known(index: sqlite3.Connection, source: str, stats: Stats) -> bool:
    key = (os.path.abspath(source),)
    return index.execute("select size, mtime from whole where path = ?", key).fetchone() == stats


def _stats(source: str) -> Stats | None:
    with contextlib.suppress(OSError):  # `open_image` says what is wrong with it
        stat = os.stat(source)
        return stat.st_size, stat.st_mtime_ns
    return None


def _fault(source: Source) -> str | None:
    """Why a picture cannot be decoded; None if it can be."""
    try:
        open_image(source)
    except UserError as error:
        return str(error)
    return None
