"""Uploaded videos: the frames that are used, and the face in each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlmface.data import video
from vlmface.data.video import segment_midpoints
from vlmface.demo.face_detection import Face
from vlmface.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from vlmface.data.detect import Box
    from vlmface.demo.face_detection import FaceFinder

MAX_SIDE = 1920  # pixels of a stored frame: all frames are in memory at once
INSTALL = "pip install 'vlmface[video]'"


@dataclass(frozen=True)
class Clip:
    """A clip.

    Attributes:
        frames: The frames that are used.
        faces: The largest face of each frame, None in a frame without one.
        has_several_faces: Whether a frame has more than one face.
    """

    frames: list[Image.Image]
    faces: list[Face | None]
    has_several_faces: bool = False

    @property
    def boxes(self) -> list[Box | None]:
        """The face's box in each frame, None where no face was found."""
        return [None if face is None else face.box for face in self.faces]

    @property
    def frames_without_face(self) -> list[int]:
        """Indices of the frames in which no face was found."""
        return [i for i, face in enumerate(self.faces) if face is None]


def can_read_videos() -> bool:
    """Whether the video decoder is installed."""
    return find_spec("av") is not None


def middle_frame(clip: Clip) -> int:
    """The index of the frame that a single-frame model receives."""
    return segment_midpoints(len(clip.frames), 1)[0]


def read_clip(path: str | Path, count: int, finder: FaceFinder) -> Clip:
    """Read an uploaded video and detect its faces.

    Args:
        path: The uploaded file.
        count: Frames to read.
        finder: Detects faces.

    Returns:
        The clip.

    Raises:
        UserError: The file has been deleted, or is not a video.
    """
    if not Path(path).is_file():
        raise UserError("the video has been deleted, as uploads are after a while: upload it again")
    frames = []
    try:
        for frame in video.iter_frames(
            path, count
        ):  # one by one: those of a hostile file are large
            frame.thumbnail((MAX_SIDE, MAX_SIDE))
            frames.append(frame)
    except UserError as error:
        raise UserError(str(error).replace(f"'{path}'", "this file")) from error
    found_by_frame = [finder.find_quickly(frame) for frame in frames]
    several = any(len(frame_faces.faces) > 1 for frame_faces in found_by_frame)
    return Clip(frames, [frame_faces.selected_face for frame_faces in found_by_frame], several)


def write_video(path: Path, frames: Sequence[Image.Image], rate: int) -> None:
    """Write an MP4.

    Args:
        path: The file.
        frames: Of one size, whose sides are even.
        rate: Frames per second.
    """
    import av

    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=rate)
        stream.width, stream.height = frames[0].size
        stream.pix_fmt, stream.bit_rate = "yuv420p", 250_000
        for number, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.asarray(image), "rgb24")
            frame.pts, frame.time_base = number, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
