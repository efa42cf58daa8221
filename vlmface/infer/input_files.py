"""The files of `vlmface predict`: their names and their images."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vlmface.errors import UserError

STDIN = "-"
# A file to open, or a name that does not lead to an image with the reason.
InputFile = Path | tuple[str, UserError]


def find_files(names: Sequence[str], null: bool) -> list[InputFile]:
    """Find the images and videos of files and folders.

    Args:
        names: Files and folders; `-` stands for the names on standard input.
        null: Whether the names on standard input end in NUL and not in a line break.

    Returns:
        The files in order; the images of a folder are sorted.

    Raises:
        UserError: `null` is set, but standard input is not read; or it has no names.
    """
    from vlmface.utils.images import find_images

    if null and STDIN not in names:
        raise UserError("--null is about names on standard input: pass - in place of the images")
    files: list[InputFile] = []
    for name in _with_stdin(names, null):
        try:
            files += find_images([name])
        except UserError as error:
            files.append((name, error))
    return files


def _with_stdin(names: Sequence[str], null: bool) -> Iterator[str]:
    for name in names:
        if name == STDIN:
            yield from _stdin_names(null)
        else:
            yield name


def _stdin_names(null: bool) -> list[str]:
    text = os.fsdecode(sys.stdin.buffer.read())
    lines = text.split("\0") if null else [line.removesuffix("\r") for line in text.split("\n")]
    if not null and "\0" in text:
        raise UserError("the names on standard input end in NUL: pass --null, too")
    if not (names := [line for line in lines if line]):
        raise UserError("standard input has no names: expected those of images, one a line")
    return names


def name_of(file: InputFile) -> str:
    """The name that output and messages use."""
    return str(file) if isinstance(file, Path) else file[0]


def frames_of(files: Sequence[InputFile], run_dir: str | Path) -> int:
    """The frames to read of each video; 1 without videos."""
    from vlmface import manifest
    from vlmface.data import clips

    has_videos = any(_is_video(file) for file in files if isinstance(file, Path))
    needs_frames = has_videos and manifest.is_run(run_dir)
    return clips.frames_to_extract(manifest.load(run_dir)[0].num_frames if needs_frames else 1)


def _is_video(path: Path) -> bool:
    from vlmface.data import video

    return path.suffix.lower() in video.SUFFIXES


def open_file(file: InputFile, frames: int) -> Any:
    """An image, that many frames of a video, or the UserError why there is none."""
    from vlmface.data import video
    from vlmface.utils.images import open_image

    if not isinstance(file, Path):
        return file[1]
    try:
        return video.read_frames(file, frames) if _is_video(file) else open_image(file)
    except UserError as error:
        return error
