"""Videos as folders of extracted frames, or as files: where they are, and which frames represent a
clip."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlmface.data import video
from vlmface.data.rows import Rows, image_names
from vlmface.data.text_files import read_lines
from vlmface.errors import UserError

FRAMES = 16  # of a clip, in published models; the default of data sets


def images_in_order(folder: Path) -> list[str] | None:
    """The names of the images in a folder by the numbers in them, "9.jpg" before "10.jpg"; None if
    the folder does not exist."""
    try:
        images, _ = image_names(folder)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return sorted(images, key=_numbers)


def _numbers(name: str) -> list[Any]:
    parts: list[Any] = re.split(r"(\d+)", name)
    parts[1::2] = map(int, parts[1::2])
    return [*parts, name]


def frames_to_extract(frames: int) -> int:
    """How many frames of a video to extract for a model of `frames` frames: that number, except for
    a model of one frame, which is shown the middle one of as many as data sets have."""
    return frames if frames > 1 else FRAMES


def with_frames(
    columns: dict[str, Any],
    folders: Sequence[Path],
    count: int,
    skipped: dict[str, list[str]] | None = None,
) -> Rows:
    """Fill the column `frames` of clips.

    Args:
        columns: of the clips (n).
        folders: the folder of each clip's images, which are ordered by the numbers in their names.
            If there is a video file of that name with a suffix instead, its frames are extracted
            (`video.extract_frames`).
        count: frames of each clip.
        skipped: what was skipped before.

    Returns:
        The clips that have frames; the others are skipped by reason.

    Raises:
        UserError: no clip has frames, or `count` is below 1.
    """
    if count < 1:
        raise UserError(f"num_frames={count}: a clip needs at least one frame, 16 are usual")
    frames_by_clip: dict[int, list[str]] = {}
    files: dict[int, Path] = {}
    dropped: dict[str, list[str]] = {}
    for i, folder in enumerate(folders):
        names = images_in_order(folder)
        if names:
            frames_by_clip[i] = [
                os.path.join(folder, names[j]) for j in video.segment_midpoints(len(names), count)
            ]
        elif file := video.video_file_of(folder):
            files[i] = file
        else:
            reason = "no folder of frames" if names is None else "no frames in the folder"
            dropped.setdefault(reason, []).append(str(folder))
    if files:
        outcomes = video.extract_frames(list(files.values()), count)
        for i, outcome in zip(files, outcomes, strict=True):
            if isinstance(outcome, UserError):
                dropped.setdefault("a video that cannot be decoded", []).append(str(outcome))
            else:
                frames_by_clip[i] = outcome
    if len(folders) and not frames_by_clip:
        first = next(iter(dropped.values()))[0] if files else f"expected in {folders[0]}"
        raise UserError(
            f"none of the {len(folders)} clips has frames, the first: {first}; "
            f"{_extract(folders[0].name, folders[0])}"
        )
    keep = np.array([i in frames_by_clip for i in range(len(folders))], bool)
    usable = Rows(columns).take(keep)
    of_clips = [frames_by_clip[i] for i in sorted(frames_by_clip)]
    return Rows(usable.columns | {"frames": of_clips}, (skipped or {}) | dropped)


def frames_root(root: Path, usual: Sequence[str], path: str | None, option: str = "clips") -> Path:
    """The folder that holds one folder of frames, or one video file, for each clip.

    Args:
        root: of the data set.
        usual: names under the root, of which the first that exists is taken.
        path: a name under the root that is taken instead.
        option: the name of the data set's option for `path`.

    Raises:
        UserError: the folder does not exist; the message explains how to extract frames.
    """
    places = [root / name for name in (usual if path is None else [path])]
    for folder in places:
        if folder.is_dir():
            return folder
    inside = sorted(p.name for p in root.iterdir())[:8]
    raise UserError(
        f"no folder of extracted frames or videos: looked for {', '.join(map(str, places))}; "
        f"{root} holds {', '.join(inside) or 'nothing'}. Give its path under the root as "
        f"{option}=..., or {_extract('clip', places[0] / 'clip')}"
    )


def _extract(clip: str, folder: Path) -> str:
    return (
        "extract the frames of each video, one folder a clip: "
        f"mkdir -p {folder} && ffmpeg -i {clip}.mp4 {folder}/%05d.jpg"
    )


def first_existing(root: Path, names: Sequence[str], description: str) -> Path:
    """The first of `names` that exists under `root`: copies of a set differ in them."""
    for name in names:
        if (root / name).exists():
            return root / name
    raise UserError(
        f"{description} not found: {root} has none of {', '.join(names)}. Give the root as the "
        "folder that the data set's owners distribute"
    )


def read_list(
    path: Path, split: Callable[[str], Sequence[str]], fields: int
) -> tuple[list[Sequence[str]], dict[str, list[str]]]:
    """The lines of a list file, split into `fields` fields each, and what is skipped: lines that
    have another number of them. Empty lines are ignored."""
    entries: list[Sequence[str]] = []
    malformed = []
    for number, line in enumerate(read_lines(path), 1):
        parts = [part.strip() for part in split(line.strip())]
        if len(parts) == fields:
            entries.append(parts)
        elif line.strip():
            malformed.append(f"{path.name}:{number}: {line[:60]}")
    if not entries:
        raise UserError(f"{path} lists no clips in the form that was expected ({fields} fields)")
    return entries, {"malformed line": malformed} if malformed else {}
