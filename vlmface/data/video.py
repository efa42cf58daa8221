"""Frames of video files, by the number of frames that can be decoded: what a container states about
their number, rate or times is often wrong.

`frames` gives them as images; `extracted` keeps them as files in the user's cache folder,

    videos/vN-COUNT/DIGEST/0000.jpg ...    COUNT frames of the video with that content
    videos/vN-numbers/DIGEST/000012.jpg    single frames by their number (`frames_by_number`)

written whole or not at all, so that an interrupted run resumes where it stopped.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlmface.data.sources import map_in_threads
from vlmface.errors import UserError
from vlmface.utils import files
from vlmface.utils.image_decoding import MAX_PIXELS, MIN_SIDE

VERSION = 1  # raise whenever the same video would give other frames
SUFFIXES = (".mp4", ".avi", ".webm", ".mkv", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv")
# Others open playlists, which name further files.
_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,asf,flv"
MAX_FRAMES = 20_000  # decoded: a quarter of an hour
MAX_DECODED = 60_000_000_000  # pixels of all frames
MAX_BROKEN = 0.1  # share of packets that cannot be decoded
MIN_COVERED = 0.9  # share of the duration that is in the file
_QUALITY = 95
_BLOCK = 1 << 20
# (a, b, c, d) of a display matrix: x' = ax + cy, y' = bx + dy
_TURNS = {
    (1, 0, 0, 1): None,
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}


def read_frames(path: str | Path, count: int) -> list[Image.Image]:
    """The frames at the middles of `count` equal segments of a video.

    Args:
        path: of the file.
        count: number of frames; a video of fewer frames gives some of them several times.

    Returns:
        RGB images, upright.

    Raises:
        UserError: PyAV is missing; or the file is missing, empty, not a video or sound alone, has
            frames that are too small, too large or too many, is damaged in more than a tenth of its
            packets, or ends before nine tenths of its duration.
    """
    return list(iter_frames(path, count))


def segment_midpoints(total: int, count: int) -> list[int]:
    """Indices of the middles of `count` equal segments of `total` frames. A clip of fewer frames
    gives some of them several times, so that every clip has `count`."""
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]


def iter_frames(path: str | Path, count: int) -> Iterator[Image.Image]:
    """`read_frames`, one at a time, so that not all of them are in memory."""
    if count < 1:
        raise UserError(f"num_frames={count}: a clip needs at least one frame, 16 are usual")
    total = _count(path)
    indices = segment_midpoints(total, count)
    image: Image.Image | None = None
    index = -1
    decoded = enumerate(_decoded(path, _Progress()))
    for frame_index in indices:
        while index < frame_index:
            index, frame = next(decoded)
            if index == frame_index:
                image = _image(frame, path)
        assert image is not None
        yield image


class _Progress:
    """Counts and times of what has been decoded of a file. Times are in seconds."""

    frames = packets = broken = pixels = 0
    until = 0.0
    duration: float | None = None


def _count(path: str | Path) -> int:
    """How many frames can be decoded. Raises UserError as `frames` does."""
    progress = _Progress()
    for _ in _decoded(path, progress):
        pass
    if not progress.frames:
        raise UserError(
            f"'{path}' has no frame that can be decoded ({progress.packets} packets, "
            f"{progress.broken} of them broken): copy it again from its source, or leave it out"
        )
    if progress.broken > MAX_BROKEN * progress.packets:
        raise UserError(
            f"'{path}' is damaged: {progress.broken} of {progress.packets} packets cannot be "
            "decoded; copy it again from its source, or leave it out"
        )
    if progress.duration and progress.until < MIN_COVERED * progress.duration:
        raise UserError(
            f"'{path}' is cut off: its duration is {progress.duration:.1f} s, but it ends after "
            f"{progress.until:.1f} s; copy it again from its source, or leave it out"
        )
    return progress.frames


def _decoded(path: str | Path, progress: _Progress) -> Iterator[Any]:
    """PyAV's frames of the first video stream, in the order in which they are shown."""
    with _opened(path) as container:
        (stream,) = _pictures(container, path)[:1]
        width, height = stream.codec_context.width, stream.codec_context.height
        _check_size(width, height, path)
        if container.duration:
            progress.duration = container.duration / 1_000_000
        for packet in _packets(container, progress):
            if packet.stream.index != stream.index:
                continue
            progress.packets += 1
            try:
                frames = packet.decode()
            except _av().error.FFmpegError:
                progress.broken += 1
                continue
            for frame in frames:
                _check_size(frame.width, frame.height, path)
                progress.frames += 1
                progress.pixels += frame.width * frame.height
                if progress.frames > MAX_FRAMES or progress.pixels > MAX_DECODED:
                    raise UserError(
                        f"'{path}' is too long: more than {progress.frames - 1:,} frames of "
                        f"{frame.width} x {frame.height} pixels; a clip has at most "
                        f"{MAX_FRAMES:,}: cut it, with ffmpeg -ss START -t SECONDS"
                    )
                yield frame


def _packets(container: Any, progress: _Progress) -> Iterator[Any]:
    """The packets of all streams, up to the first that cannot be read. The sound's packets show how
    far the file reaches after the last picture."""
    start = (container.start_time or 0) / 1_000_000
    try:
        for number, packet in enumerate(container.demux()):
            if packet.pts is not None and packet.time_base:
                end = float((packet.pts + (packet.duration or 0)) * packet.time_base) - start
                progress.until = max(progress.until, end)
            if number > 50 * MAX_FRAMES:
                return  # of sound and subtitles there may be more than of pictures, but not so many
            yield packet
    except _av().error.FFmpegError:
        progress.broken += 1


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise UserError(f"to read videos, pip install 'vlmface[video]' ({error})") from error
    return av


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    av = _av()
    file = Path(path)
    if file.is_dir():
        raise UserError(f"'{path}' is a folder: give one video file inside it")
    if not file.is_file():
        raise UserError(f"'{path}' does not exist: check the spelling of the path")
    if not file.stat().st_size:
        raise UserError(f"'{path}' is empty (0 bytes): copy it again from its source")
    options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
    try:
        container = av.open(str(file.absolute()), options=options)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise UserError(
            f"'{path}' is not a video that can be read ({error}): copy it again from its source, "
            f"or convert it to MP4, WebM, Matroska or AVI"
        ) from error
    with container:
        yield container


def _pictures(container: Any, path: str | Path) -> list[Any]:
    """The video streams, without the cover of a song."""
    av = _av()
    cover = av.stream.Disposition.attached_pic
    streams = [s for s in container.streams.video if not s.disposition & cover]
    if not streams:
        kinds = ", ".join(sorted({s.type for s in container.streams})) or "no stream"
        raise UserError(f"'{path}' has no pictures, only {kinds}: give a video file")
    if streams[0].codec_context is None:
        raise UserError(f"'{path}' is in a codec that PyAV does not know: convert it to H.264")
    return streams


def _check_size(width: int, height: int, path: str | Path) -> None:
    if min(width, height) < MIN_SIDE:
        raise UserError(
            f"'{path}' is {width} x {height} pixels, too small to show a face: give a video of at "
            f"least {MIN_SIDE} x {MIN_SIDE}"
        )
    if width * height > MAX_PIXELS:
        raise UserError(
            f"'{path}' is {width} x {height} pixels, the limit is {MAX_PIXELS / 1e6:g} megapixels: "
            "make it smaller, with ffmpeg -vf scale=1280:-2"
        )


def _image(frame: Any, path: str | Path) -> Image.Image:
    try:
        image = Image.fromarray(frame.to_ndarray(format="rgb24"))
    except (_av().error.FFmpegError, ValueError) as error:
        raise UserError(
            f"'{path}': a frame in the format {frame.format.name} cannot be turned into RGB "
            f"({error}): convert the video to H.264"
        ) from error
    turn = _turn(frame)
    return image if turn is None else image.transpose(turn)


def _turn(frame: Any) -> Image.Transpose | None:
    """How the pixels are turned before they are shown; None for any other matrix than a turn by
    right angles."""
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            a, b, _, c, d, *_ = np.frombuffer(bytes(data), np.int32) / 65536
            return _TURNS.get(tuple(round(x) for x in (a, b, c, d)))
    return None


# --- many of them ---------------------------------------------------------------------------------


def video_file_of(folder: Path) -> Path | None:
    """The video file named as the folder with a suffix of SUFFIXES; None if there is none."""
    names = (folder.with_name(folder.name + suffix) for suffix in SUFFIXES)
    return next((path for path in names if path.is_file()), None)


def extract_frames(
    paths: Sequence[Path], count: int, *, workers: int | None = None, progress: bool = True
) -> list[list[str] | UserError]:
    """Extract frames of videos to files in the user's cache folder, unless they are there already.

    Args:
        paths: of the videos.
        count: frames of each.
        workers: number of threads, by default one for each core.
        progress: show a progress bar.

    Returns:
        For each video the paths of its frames, or the error that occurred.

    Raises:
        UserError: PyAV is missing.
    """
    _av()
    root = files.cache_dir() / "videos" / f"v{VERSION}-{count}"

    def work(path: Path) -> list[str] | UserError:
        try:
            folder = root / _digest(path, root)
        except OSError as error:
            return UserError(f"'{path}' cannot be read ({error}): check its permissions")
        if not folder.is_dir():
            try:
                _write(folder, path, count)
            except UserError as error:
                return error
        return [str(folder / f"{i:04d}.jpg") for i in range(count)]

    return list(map_in_threads(work, paths, "decoding", workers=workers, progress=progress))


def frames_by_number(
    requests: Mapping[Path, Callable[[np.ndarray], Sequence[int]]], *, progress: bool = True
) -> dict[Path, dict[int, str] | UserError]:
    """Extract single frames of videos to files in the user's cache folder, unless they are there.

    Args:
        requests: {video: function from the times of its frames, in seconds from the first one
            (frames,), to the numbers of those to extract, counted from 0}. It may raise UserError.
        progress: show a progress bar.

    Returns:
        {video: {number: path of the frame}}, or the error that occurred.

    Raises:
        UserError: PyAV is missing.
    """
    if not requests:
        return {}
    _av()
    root = files.cache_dir() / "videos" / f"v{VERSION}-numbers"

    def work(path: Path) -> dict[int, str] | UserError:
        try:
            folder = root / _digest(path, root)
            paths = {n: folder / f"{n:06d}.jpg" for n in requests[path](_times(path, folder))}
            _write_numbers(path, {n: file for n, file in paths.items() if not file.is_file()})
        except OSError as error:
            return UserError(f"'{path}' cannot be read ({error}): check its permissions")
        except UserError as error:
            return error
        return {n: str(file) for n, file in paths.items()}

    videos = list(requests)
    outcomes = map_in_threads(work, videos, "decoding", progress=progress)
    return dict(zip(videos, outcomes, strict=True))


def _times(path: Path, folder: Path) -> np.ndarray:
    """The time of each frame that can be decoded, in seconds from the first one."""
    stored = folder / "times.txt"
    with contextlib.suppress(OSError, ValueError):
        return np.array([float(line) for line in stored.read_text().split()])
    _count(path)  # raises the errors of a damaged file
    times = [frame.time for frame in _decoded(path, _Progress())]
    if None in times:
        raise UserError(
            f"'{path}' has frames without a time: convert it to MP4, with ffmpeg -i {path} NAME.mp4"
        )
    seconds = np.array(times, np.float64) - times[0]
    files.atomic_write(stored, "\n".join(f"{time:.6f}" for time in seconds))
    return seconds


def _write_numbers(path: Path, files_by_number: Mapping[int, Path]) -> None:
    """Write the frames of these numbers to files."""
    if not files_by_number:
        return
    last = max(files_by_number)
    for number, frame in enumerate(_decoded(path, _Progress())):
        if number in files_by_number:
            content = io.BytesIO()
            _image(frame, path).save(content, "JPEG", quality=_QUALITY, subsampling=0)
            files.atomic_write(files_by_number[number], content.getvalue())
        if number == last:
            return
    raise UserError(f"'{path}' has no frame number {last}, counted from 0")


def _digest(path: Path, root: Path) -> str:
    """32 hex digits that identify a content. A file of unchanged size and time is not
    read again."""
    stat = path.stat()
    key = f"{path.absolute()} {stat.st_size} {stat.st_mtime_ns}"
    note = root / "known" / hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
    with contextlib.suppress(OSError):
        return note.read_text()
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    files.atomic_write(note, digest.hexdigest())
    return digest.hexdigest()


def _write(folder: Path, path: Path, count: int) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{uuid.uuid4().hex[:8]}-", dir=folder.parent))
    try:
        for i, image in enumerate(iter_frames(path, count)):
            content = io.BytesIO()
            image.save(content, "JPEG", quality=_QUALITY, subsampling=0)
            (unfinished / f"{i:04d}.jpg").write_bytes(content.getvalue())
        unfinished.chmod(0o755)
        try:
            unfinished.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
