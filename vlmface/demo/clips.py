"""Videos of visitors: the frames that are looked at, and the face in each of them."""

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
from vlmface.demo.face_detection import Face, largest
from vlmface.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from vlmface.data.detect import Box
    from vlmface.demo.face_detection import Finder

MOST_SIDE = 1920  # pixels of a frame that is kept: all of them are in memory at once
INSTALL = "pip install 'vlmface[video]'"


@dataclass(frozen=True)
class Clip:
    """The frames that are shown, the largest face of each, and whether one of them has several."""

    frames: list[Image.Image]
    faces: list[Face | None]
    crowded: bool = False

    @property
    def boxes(self) -> list[Box | None]:
        return [None if face is None else face.box for face in self.faces]

    @property
    def without(self) -> list[int]:
        """The places of the frames in which no face was found."""
        return [i for i, face in enumerate(self.faces) if face is None]


def readable() -> bool:
    """Whether videos can be read here."""
    return find_spec("av") is not None


def middle(clip: Clip) -> int:
    """The place of the frame that a model of one frame is shown."""
    return segment_midpoints(len(clip.frames), 1)[0]


def read(path: str | Path, count: int, finder: Finder) -> Clip:
    """`count` frames of an uploaded video with their faces. Raises UserError."""
    if not Path(path).is_file():
        raise UserError("the video is no longer here, uploads are soon deleted: upload it again")
    frames = []
    try:
        for frame in video.iter_frames(path, count):  # one by one, as a hostile file's are large
            frame.thumbnail((MOST_SIDE, MOST_SIDE))
            frames.append(frame)
    except UserError as error:
        raise UserError(str(error).replace(f"'{path}'", "this file")) from error
    found = [finder.find(frame) for frame in frames]
    chosen = [None if (one := largest(faces)) is None else faces[one] for faces in found]
    return Clip(frames, chosen, any(len(faces) > 1 for faces in found))


def write(path: Path, frames: Sequence[Image.Image], rate: int) -> None:
    """Frames of one even size as an MP4."""
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
