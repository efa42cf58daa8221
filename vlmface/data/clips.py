"""Videos as folders of extracted frames: where they lie, and which frames stand for a clip."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlmface.data.records import read_text
from vlmface.data.rows import Rows, image_names
from vlmface.errors import UserError


def in_order(folder: Path) -> list[str] | None:
    """The names of the images in a folder by the numbers in them, "9.jpg" before "10.jpg"; None if
    there is no such folder."""
    try:
        images, _ = image_names(folder)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return sorted(images, key=_numbers)


def _numbers(name: str) -> list[Any]:
    parts: list[Any] = re.split(r"(\d+)", name)
    parts[1::2] = map(int, parts[1::2])
    return [*parts, name]


def middles(total: int, count: int) -> list[int]:
    """The middles of `count` equal segments of `total` frames, as indices. A clip of fewer frames
    than that gives some of them several times, so that every clip has `count`."""
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]


def with_frames(
    columns: dict[str, Any],
    folders: Sequence[Path],
    count: int,
    left_out: dict[str, list[str]] | None = None,
) -> Rows:
    """The clips of `columns` with `frames` filled: `count` images of the folder of each (n,).

    A clip whose folder is missing or has no images is left out, by reason, beside what `left_out`
    already lists. Raises UserError if that is so for all of them.
    """
    if count < 1:
        raise UserError(f"frames={count}: a clip needs at least one frame, 16 are usual")
    found: list[list[str]] = []
    keep = np.zeros(len(folders), bool)
    dropped: dict[str, list[str]] = {}
    for i, folder in enumerate(folders):
        names = in_order(folder)
        if names:
            keep[i] = True
            found.append([os.path.join(folder, names[j]) for j in middles(len(names), count)])
        else:
            reason = "no folder of frames" if names is None else "no frames in the folder"
            dropped.setdefault(reason, []).append(str(folder))
    if len(folders) and not found:
        raise UserError(
            f"none of the {len(folders)} clips has extracted frames, the first should lie in "
            f"{folders[0]}; {_extract(folders[0].name, folders[0])}"
        )
    kept = Rows(columns).take(keep)
    return Rows(kept.columns | {"frames": found}, (left_out or {}) | dropped)


def frames_root(root: Path, usual: Sequence[str], given: str | None, option: str = "clips") -> Path:
    """The folder that holds one folder of frames for each clip: `root`/`given`, or the first of
    the `usual` ones that exists. Raises UserError that says how to extract frames."""
    places = [root / name for name in (usual if given is None else [given])]
    for place in places:
        if place.is_dir():
            return place
    inside = sorted(p.name for p in root.iterdir())[:8]
    raise UserError(
        f"no folder of extracted frames: looked for {', '.join(map(str, places))}; {root} holds "
        f"{', '.join(inside) or 'nothing'}. Give its path under the root as {option}=..., or "
        f"{_extract('clip', places[0] / 'clip')}"
    )


def _extract(clip: str, folder: Path) -> str:
    return (
        "extract the frames of each video, one folder a clip: "
        f"mkdir -p {folder} && ffmpeg -i {clip}.mp4 {folder}/%05d.jpg"
    )


def first_of(root: Path, names: Sequence[str], what: str) -> Path:
    """The first of `names` that exists under `root`: copies of a set differ in them."""
    for name in names:
        if (root / name).exists():
            return root / name
    raise UserError(
        f"{what} not found: {root} has none of {', '.join(names)}. Give the root as the folder "
        "that the data set's owners distribute"
    )


def read_list(
    path: Path, split: Callable[[str], Sequence[str]], fields: int
) -> tuple[list[Sequence[str]], dict[str, list[str]]]:
    """The lines of a list file, split into `fields` fields each, and what is left out: lines that
    have another number of them. Empty lines are no lines."""
    found, malformed = [], []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        parts = split(line.strip())
        if len(parts) == fields:
            found.append(parts)
        elif line.strip():
            malformed.append(f"{path.name}:{number}: {line[:60]}")
    if not found:
        raise UserError(f"{path} lists no clips in the form that was expected ({fields} fields)")
    return found, {"malformed line": malformed} if malformed else {}
