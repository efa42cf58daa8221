"""Find the folder that the paths in a table start from."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

from vlmface.data.image_paths import Folders

_FOLDERS = 2000  # folders that are looked through
_SAMPLE = 50  # paths that a folder is tried with


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


def _candidates(sample: Sequence[str], near: Path) -> list[Path]:
    """`near`, the folder above it, then those below it that hold a file or folder as a path of the
    sample begins with."""
    firsts = {first_part(path) for path in sample}
    below = []
    for count, (folder, folders, files) in enumerate(os.walk(near)):
        if count >= _FOLDERS:
            break
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if firsts & {name.casefold() for name in (*folders, *files)}:
            below.append(Path(folder))
    return list(dict.fromkeys([near, *below, near.parent]))


def first_part(path: str) -> str:
    """The first folder or the file name of a path, without letter case."""
    kind = PureWindowsPath if "\\" in path else PurePosixPath
    parts = [part for part in kind(path).parts if part not in ("/", ".", "\\")]
    return parts[0].casefold() if parts else ""
