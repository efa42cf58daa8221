"""Find the folder that the paths in a table start from."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

from vlmface.data.image_paths import Folders
from vlmface.data.tables.single_frames import find_video
from vlmface.utils.images import SUFFIXES

_FOLDERS = 2000  # folders that are looked through
_SAMPLE = 50  # paths that a folder is tried with
_DEPTH = 2  # of folders below the one above the table's


def find_folder(paths: Sequence[str], near: Path) -> Path | None:
    """The folder from which most of some paths lead to a file: `near`, or one below or above it.

    Args:
        paths: As the table has them.
        near: The folder of the table.

    Returns:
        None if no path leads to a file from any of them.
    """
    sample = list(paths[:: max(1, len(paths) // _SAMPLE)])[:_SAMPLE]
    best: tuple[int, Path | None] = (0, None)
    for folder in _candidates(sample, near):
        num_existing = count_existing(sample, folder)
        if num_existing > best[0]:
            best = num_existing, folder
        if num_existing == len(sample):
            break
    return best[1]


def count_existing(paths: Sequence[str], folder: Path) -> int:
    """How many of the paths lead to a file from a folder, in any letter case."""
    folders = Folders()
    return sum(folders.find(os.path.join(folder, path)) is not None for path in paths)


def find_folder_of_names(names: Sequence[str], near: Path) -> Path | None:
    """The folder with most files or folders that are named as some tables: `near`, one below it, or
    the one above it with those in that, as programs write tables into a folder of their own.

    Args:
        names: Without endings.
        near: The folder of the tables.

    Returns:
        None if there is none in any of them.
    """
    folders = [*_below(near, _FOLDERS), near.parent, *_below(near.parent, _FOLDERS, _DEPTH)]
    counts = {folder: count_named(names, folder) for folder in dict.fromkeys(folders)}
    best = max(counts, key=counts.__getitem__)
    return best if counts[best] else None


def count_named(names: Sequence[str], folder: Path) -> int:
    """How many names are those of a video, a picture or a folder of frames in a folder."""
    return sum(
        find_video(str(folder / name)) is not None
        or any((folder / f"{name}{suffix}").is_file() for suffix in SUFFIXES)
        for name in names
    )


def _below(top: Path, most: int, depth: int | None = None) -> list[Path]:
    """A folder and those below it, down to a depth, without hidden ones."""
    below: list[Path] = []
    for folder, folders, _ in os.walk(top):
        if len(below) >= most:
            break
        below.append(Path(folder))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if depth is not None and len(Path(folder).relative_to(top).parts) >= depth:
            folders[:] = []
    return below


def _candidates(sample: Sequence[str], near: Path) -> list[Path]:
    """`near`, the folder above it, then those below it that hold a file or folder as a path of the
    sample begins with."""
    firsts = {first_part(path) for path in sample}
    below = [
        folder
        for folder in _below(near, _FOLDERS)
        if firsts & {name.casefold() for name in os.listdir(folder)}
    ]
    return list(dict.fromkeys([near, *below, near.parent]))


def first_part(path: str) -> str:
    """The first folder or the file name of a path, without letter case."""
    kind = PureWindowsPath if "\\" in path else PurePosixPath
    parts = [part for part in kind(path).parts if part not in ("/", ".", "\\")]
    return parts[0].casefold() if parts else ""
