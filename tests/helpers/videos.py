"""Small videos whose frames say their number."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

STEP = 12  # of grey between frames
SIZE = (64, 48)
CODECS = {".mp4": "libx264", ".mkv": "libx264", ".avi": "mpeg4", ".webm": "libvpx"}


def picture(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Grey by its number, red in the upper left corner."""
    width, height = size
    pixels = np.full((height, width, 3), STEP * number % 252, np.uint8)
    pixels[: height // 2, : width // 2] = (255, 0, 0)
    return pixels


def number_of(image: Image.Image) -> float:
    """The number of the frame that is seen, as its grey in the lower right corner says."""
    pixels = np.asarray(image)
    height, width, _ = pixels.shape
    return float(pixels[3 * height // 4 :, 3 * width // 4 :].mean() / STEP)


def write(
    path: Path,
    n: int = 20,
    *,
    size: tuple[int, int] = SIZE,
    times: Any = None,
    options: dict[str, str] | None = None,
    sound: bool = False,
    codec: str | None = None,
) -> Path:
    """`n` frames, or no stream of pictures with 0. `times`: the time of each frame in 25ths of a
    second, by default its number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=options or {}) as container:
        if sound:
            audio = container.add_stream("aac" if path.suffix == ".mp4" else "libmp3lame", 44_100)
        if n:
            stream = container.add_stream(codec or CODECS[path.suffix], rate=25)
            stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
            stream.codec_context.gop_size = 4
            stream.bit_rate = 4_000_000
            for i in range(n):
                frame = av.VideoFrame.from_ndarray(picture(i, size), "rgb24")
                frame.pts, frame.time_base = (times[i] if times else i), Fraction(1, 25)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        if sound:
            silence = np.zeros((1, 1024), np.float32)
            for i in range(60):
                frame = av.AudioFrame.from_ndarray(silence, "fltp", "mono")
                frame.sample_rate, frame.pts = 44_100, 1024 * i
                container.mux(audio.encode(frame))
            container.mux(audio.encode())
    return path


def turned(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """Write another display matrix (a, b, c, d) into an MP4's track header."""
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4 + 4 + 20 + 16  # version 0: times, number, duration; layer ...
    a, b, c, d = (x << 16 for x in matrix)
    values = np.array([a, b, 0, c, d, 0, 0, 0, 1 << 30], ">i4")
    content[at : at + 36] = values.tobytes()
    path.write_bytes(content)
    return path
