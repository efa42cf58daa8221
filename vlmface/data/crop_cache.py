"""Views of many pictures, made once and from then on read from uint8 arrays on the disk.

`apply_views(rows, views, frames)` returns rows as a model is shown them: one picture each, or
several views of several frames. The pictures are stored in the user's cache folder, in one folder
for each kind of view:

    NAME.npy       256 pictures (n, size, size, 3), written whole or not at all
    index.sqlite   which view of which picture is where; a picture is known by its content

so that a view is never made twice, whichever data set or copy the picture is from, and an
interrupted run resumes. A picture is then a path such as ".../NAME.npy#17", which `open_view`
opens.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import io
import json
import math
import os
import sqlite3
import threading
import uuid
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

from vlmface.data import detect
from vlmface.data.crops import INVALID_BOX, Box, View, face_locator, render_view, valid_box
from vlmface.data.sources import Source, content_digest, image_sources, map_in_threads, read_content
from vlmface.errors import UserError
from vlmface.schema import FaceSample
from vlmface.utils import contact_sheet, files
from vlmface.utils.images import open_image

if TYPE_CHECKING:
    import datasets

IMAGES_PER_PACK = 256  # pictures a file
OPEN_PACKS = 64  # files that a process keeps open
_BEFORE_HEADER = 10  # bytes of an .npy file: magic, version, length of the header
# How the index says that no face was detected. A lower number is from a search that found fewer:
# such a picture is searched again.
_NOT_DETECTED = -detect.SEARCH_VERSION
KEYS_PER_QUERY = 500  # SQLite bounds the parameters of a statement
MAX_FRAMES = 64  # of a clip that a model is shown
FACE_BOXES_FIELD = "face_boxes"  # in `meta`, where a set boxes the face in each frame of a clip
PERSON_BOX_FIELDS = ("person_box", "body_box")  # in `meta`, where a set boxes people
_TABLES = """
create table if not exists faces (key blob primary key, pack text, row integer, found integer);
create table if not exists pictures
    (path text primary key, size integer, mtime integer, digest text);
"""


def is_reference(path: str) -> bool:
    """Whether a path is that of a picture in the cache."""
    return ".npy#" in path


def open_view(path: str) -> Image.Image:
    """Open a picture of the cache.

    Args:
        path: as in the rows of `apply_views`.

    Raises:
        UserError: its pack is missing, damaged or cannot be opened.
    """
    file, _, row = path.rpartition("#")
    return _pack(file).picture(int(row))


_SPACE = threading.local()  # .pixels: what a thread reads the next picture into


class _Pack:
    """A pack's file, open as long as it is referenced. Reading does not move the file position, so
    threads and forked processes share it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.file = io.FileIO(path)
        try:
            lengths = self.file.read(_BEFORE_HEADER) or b""
            header = lengths + (self.file.read(int.from_bytes(lengths[-2:], "little")) or b"")
            self.rows, self.shape = _rows_and_shape(header)
        except BaseException:
            self.file.close()
            raise
        self.start, self.size = len(header), math.prod(self.shape)

    def picture(self, row: int) -> Image.Image:
        pixels = getattr(_SPACE, "pixels", b"")
        if len(pixels) != self.size:  # to allocate it each time takes as long as to read
            pixels = _SPACE.pixels = bytearray(self.size)
        count = 0
        if 0 <= row < self.rows:
            try:
                start = self.start + row * self.size
                count = os.preadv(self.file.fileno(), [pixels], start)
            except OSError as error:
                raise UserError(_unreadable(self.path, error)) from error
        if count < self.size:
            raise UserError(_unreadable(self.path, ValueError(f"it ends before face {row}")))
        height, width, _ = self.shape
        return Image.frombytes("RGB", (width, height), pixels)

    def __del__(self) -> None:
        if hasattr(self, "file"):
            self.file.close()


@functools.lru_cache(maxsize=2 * IMAGES_PER_PACK)
def _rows_and_shape(header: bytes) -> tuple[int, tuple[int, ...]]:
    """(how many pictures a pack holds, the shape of one). To parse a header takes longer than to
    read a picture, and most packs have the same."""
    stream = io.BytesIO(header)
    version = np.lib.format.read_magic(stream)
    (rows, *shape), in_columns, kind = np.lib.format.read_array_header_1_0(stream)
    if version != (1, 0) or in_columns or kind != np.uint8 or shape[2:] != [3]:
        raise ValueError(f"it holds {kind}, version {version}")
    return rows, tuple(shape)


@functools.lru_cache(maxsize=OPEN_PACKS)
def _pack(path: str) -> _Pack:
    try:
        return _Pack(path)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(_unreadable(path, error)) from error


def _unreadable(path: str, error: Exception) -> str:
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        fix = "raise the limit of open files (ulimit -n)"
    elif isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
        fix = "check the disk and who may read the file"
    else:
        fix = "delete that folder, the faces will be rendered again"
    return f"the cached faces {path} cannot be read ({error}): {fix}"


@dataclass(frozen=True)
class _RenderJob:
    source: Source
    box: Box | None


@dataclass(frozen=True)
class _Picture:
    """A picture of a row. Boxes are as annotated, INVALID_BOX if not valid; `faces`:
    whether the row annotates where faces are."""

    source: Source
    face: Box | None
    person: Box | None
    faces: bool

    def job(self, view: View) -> _RenderJob:
        """The picture and the box that a view is rendered from."""
        if view.view == "scene":
            return _RenderJob(self.source, None)
        if view.view == "person":
            return _RenderJob(self.source, self.person)
        box = self.face
        if valid_box(box) is None and (not self.faces or not view.needs_face):
            box = self.person or box  # a person's box is a place to look for a face, or to frame
        return _RenderJob(self.source, box)


def cache_view(
    rows: datasets.Dataset, view: View, *, workers: int | None = None, progress: bool = True
) -> datasets.Dataset:
    """Replace the pictures of rows, or all frames of their clips, by one view of them.

    Warns of pictures without a face, which are taken whole.

    Args:
        rows: FaceSample rows.
        view: rendered in threads where it is not in the cache yet.
        workers: number of threads, by default one for each core.
        progress: show a progress bar.

    Returns:
        The rows, with `face_box` null; `row_images.open_row_image` opens the pictures.

    Raises:
        UserError: a picture cannot be read. What was rendered before it stays in the cache.
    """
    rendered, _ = _render_rows(_pictures(rows), view, workers, progress)
    are_stills = rows.with_format("arrow")[:]["image"].is_valid().to_pylist()
    return _with_columns(
        rows,
        {
            "image": [
                pictures[0] if is_still else None
                for pictures, is_still in zip(rendered, are_stills, strict=True)
            ],
            "frames": [
                None if is_still else pictures
                for pictures, is_still in zip(rendered, are_stills, strict=True)
            ],
            "face_box": [None] * len(are_stills),
        },
    )


def apply_views(
    rows: datasets.Dataset,
    views: Sequence[View],
    frames: int = 1,
    *,
    workers: int | None = None,
    progress: bool = True,
) -> datasets.Dataset:
    """Replace the pictures of rows by what a model is shown of them.

    Warns of pictures in which no face was found, where a view is about the face.

    Args:
        rows: FaceSample rows.
        views: () for the pictures as they are.
        frames: frames of a clip, 1 to MAX_FRAMES. A clip of fewer frames gives some of them several
            times; a still picture is a clip of one.
        workers: number of threads, by default one for each core.
        progress: show progress bars.

    Returns:
        The rows, with `image` the first view of the middle frame. If there is more than that,
        `images` lists all pictures: the frames of the first view, then those of the next. The
        clip's own `frames` and `face_box` are null then. If a view is about the face, `face_found`
        says whether the first such view found it, in at least one frame.

    Raises:
        UserError: `frames` is out of range, or as `cache_view`.
    """
    from vlmface.data.dataset_rows import with_still_images
    from vlmface.data.video import segment_midpoints

    if not 1 <= frames <= MAX_FRAMES:
        raise UserError(
            f"num_frames is {frames}: a model is shown 1 to {MAX_FRAMES} frames of a clip"
        )
    if not views and frames == 1:
        return with_still_images(rows)
    sampled = [[row[i] for i in segment_midpoints(len(row), frames)] for row in _pictures(rows)]
    rendered = []
    for view in views:  # in a comprehension, warnings would not name the caller's line
        rendered.append(_render_rows(sampled, view, workers, progress))
    by_view = [pictures for pictures, _ in rendered] or [
        [[_stored(picture.source) for picture in row] for row in sampled]
    ]
    pictures = [
        [picture for view in views_of_row for picture in view]
        for views_of_row in zip(*by_view, strict=True)
    ]
    columns: dict[str, list[Any]] = {
        "image": [row[frames // 2] for row in pictures],
        "frames": [None] * len(pictures),
        "face_box": [None] * len(pictures),
    }
    if len(by_view) * frames > 1:
        columns["images"] = pictures
    for view, (_, has_face) in zip(views, rendered, strict=True):
        if view.about_face:
            columns.setdefault("face_found", [any(in_frames) for in_frames in has_face])
    return _with_columns(rows, columns)


def _stored(source: Source) -> dict[str, Any]:
    is_path = isinstance(source, str)
    return {"bytes": None if is_path else source, "path": source if is_path else None}


def _with_columns(rows: datasets.Dataset, columns: Mapping[str, list[Any]]) -> datasets.Dataset:
    """The rows with other columns, pictures as they are stored."""
    import pyarrow as pa
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature
    from datasets.table import InMemoryTable

    picture = ImageFeature(decode=False)  # only open_row_image can open these
    kinds = {
        "image": picture,
        "frames": [picture],
        "images": [picture],
        "face_found": Value("bool"),
    }
    features = Features({**rows.features, **{k: v for k, v in kinds.items() if k in columns}})
    schema = features.arrow_schema
    table = rows.with_format("arrow")[:]
    for name, values in columns.items():
        column = pa.array(values, schema.field(name).type)
        at = table.schema.get_field_index(name)
        table = table.append_column(name, column) if at < 0 else table.set_column(at, name, column)
    return Dataset(InMemoryTable(table.select(schema.names).cast(schema)))


def _pictures(rows: datasets.Dataset) -> list[list[_Picture]]:
    """The pictures of each row with the boxes that are annotated for them."""
    columns = rows.select_columns(["id", "face_box", "meta"]).with_format("arrow")[:].to_pydict()
    return [
        _boxed(id, pictures, box, json.loads(text) if text else {})
        for id, pictures, box, text in zip(
            columns["id"], image_sources(rows), columns["face_box"], columns["meta"], strict=True
        )
    ]


def _boxed(id: str, pictures: list[Source], box: Any, meta: Mapping[str, Any]) -> list[_Picture]:
    if not pictures:
        raise UserError(f"{id} has neither an image nor frames: leave such rows out")
    person = person_box(meta)
    faces, boxes = box is not None, [box] * len(pictures)
    if box is None and isinstance(meta.get(FACE_BOXES_FIELD), list):
        faces, boxes = True, meta[FACE_BOXES_FIELD]
        if len(boxes) != len(pictures):
            raise UserError(
                f"{id} has {len(boxes)} {FACE_BOXES_FIELD} in its meta, but {len(pictures)} "
                "pictures: one is needed for each, null where no face was found"
            )
    return [
        _Picture(source, _rounded(face_box), _rounded(person), faces)
        for source, face_box in zip(pictures, boxes, strict=True)
    ]


def person_box(meta: Mapping[str, Any]) -> Any:
    """The box of the person, if a sample's `meta` has one, as it is annotated."""
    return next((meta[name] for name in PERSON_BOX_FIELDS if meta.get(name) is not None), None)


def _rounded(box: object) -> Box | None:
    if box is None:
        return None
    usable_box = valid_box(box)
    return INVALID_BOX if usable_box is None else tuple(round(x, 2) for x in usable_box)  # type: ignore[return-value]


def _render_rows(
    pictures: Sequence[Sequence[_Picture]], view: View, workers: int | None, progress: bool
) -> tuple[list[list[dict[str, Any]]], list[list[bool]]]:
    """(a view of every picture of each row, as it is stored; whether its box was known)."""
    jobs = [[picture.job(view) for picture in row] for row in pictures]
    distinct = list(dict.fromkeys(job for row in jobs for job in row))
    stored = _stored_views(distinct, view, workers, progress)
    if view.view != "scene" and (whole := [j.source for j in distinct if not stored[j][1]]):
        name = whole[0] if isinstance(whole[0], str) else "a picture without a name"
        subject = "person" if view.view == "person" else "face"
        verb = "found" if view.box_source == "detector" or view.is_shape else "boxed"
        fallback = "left black" if view.is_shape else "taken whole"
        warnings.warn(
            f"no {subject} {verb} in {len(whole):,} of {len(distinct):,} pictures, which are "
            f"{fallback}: {name}, ...",
            stacklevel=3,
        )
    return (
        [[{"bytes": None, "path": stored[job][0]} for job in row] for row in jobs],
        [[stored[job][1] for job in row] for row in jobs],
    )


def _stored_views(
    jobs: Sequence[_RenderJob], view: View, workers: int | None, progress: bool
) -> dict[_RenderJob, tuple[str, bool]]:
    """Where each view is stored, as a path for `open_view`, and whether its box was known."""
    folder = view.folder
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(sqlite3.connect(folder / "index.sqlite", timeout=600)) as index:
        index.executescript(_TABLES)
        digests = _digests([job.source for job in jobs], index, workers, progress)
        keys = {job: _key(digests[job.source], job.box) for job in jobs}
        detects = view.box_source == "detector" or view.is_shape
        stored = {
            key: tuple(location)
            for key, *location in _select_rows(index, "faces", keys.values())
            if not detects or location[2] in (True, _NOT_DETECTED)
        }
        missing = list({keys[job]: job for job in jobs if keys[job] not in stored}.items())
        if missing:
            with face_locator([view]) as locate:

                def work(item: tuple[bytes, _RenderJob]) -> tuple[np.ndarray, bool]:
                    image = open_image(item[1].source)
                    box = locate(image, item[1].box)
                    pixels = np.asarray(render_view(image, box, view, locate.mesh))
                    return pixels, bool(pixels.any()) if view.is_shape else box is not None

                faces = map_in_threads(work, missing, "cutting", workers=workers, progress=progress)
                absent = _NOT_DETECTED if detects else 0
                for start in range(0, len(missing), IMAGES_PER_PACK):
                    part = missing[start : start + IMAGES_PER_PACK]
                    stored |= _write(folder, index, [key for key, _ in part], faces, absent)
    places = {job: stored[key] for job, key in keys.items()}
    return {
        job: (f"{folder / pack}#{row}", has_box > 0) for job, (pack, row, has_box) in places.items()
    }


def _write(
    folder: Path,
    index: sqlite3.Connection,
    keys: Sequence[bytes],
    faces: Iterator[tuple[np.ndarray, bool]],
    absent: int,
) -> dict[bytes, tuple[str, int, int]]:
    """Write the next len(keys) faces to one file, then to the index, `absent` for those without a
    box: a face that is in the index is on the disk."""
    rendered = [next(faces) for _ in keys]
    name = f"{uuid.uuid4().hex[:12]}.npy"  # several processes may be at work
    buffer = io.BytesIO()
    np.save(buffer, np.stack([pixels for pixels, _ in rendered]))
    files.atomic_write(folder / name, buffer.getvalue())
    lines = {
        key: (name, row, 1 if has_box else absent)
        for row, (key, (_, has_box)) in enumerate(zip(keys, rendered, strict=True))
    }
    with index:
        index.executemany(
            "insert or replace into faces values (?, ?, ?, ?)",
            [(key, *line) for key, line in lines.items()],
        )
    return lines


def _digests(
    pictures: Sequence[Source], index: sqlite3.Connection, workers: int | None, progress: bool
) -> dict[Source, str]:
    """The digest of each picture's content. A file of unchanged size and time is not read."""
    pictures = list(dict.fromkeys(pictures))
    paths = [source for source in pictures if isinstance(source, str)]
    stored = {path: values for path, *values in _select_rows(index, "pictures", paths)}
    digest_of: dict[Source, str] = {}
    stats: dict[str, tuple[int, int]] = {}
    unread: list[Source] = []
    for source in pictures:
        if isinstance(source, str):
            with contextlib.suppress(OSError):  # `content` says what is wrong with it
                stat = os.stat(source)
                stats[source] = stat.st_size, stat.st_mtime_ns
                size, mtime, before = stored.get(source, (None, None, ""))
                if stats[source] == (size, mtime):
                    digest_of[source] = before
                    continue
        unread.append(source)

    def read(source: Source) -> str:
        try:
            return content_digest(read_content(source))
        except OSError as error:
            raise UserError(f"cannot read {source!r}: {error}") from error

    if unread:
        digests = map_in_threads(read, unread, "reading", workers=workers, progress=progress)
        digest_of |= zip(unread, digests, strict=True)
    with index:
        index.executemany(
            "insert or replace into pictures values (?, ?, ?, ?)",
            [(s, *stats[s], digest_of[s]) for s in unread if isinstance(s, str)],
        )
    return digest_of


def _select_rows(
    index: sqlite3.Connection, table: Literal["faces", "pictures"], keys: Iterable[str | bytes]
) -> Iterator[tuple[Any, ...]]:
    """The lines of a table with these keys. The index may hold many more."""
    column = {"faces": "key", "pictures": "path"}[table]
    distinct = list(dict.fromkeys(keys))
    for start in range(0, len(distinct), KEYS_PER_QUERY):
        part = distinct[start : start + KEYS_PER_QUERY]
        marks = ", ".join("?" * len(part))
        yield from index.execute(f"select * from {table} where {column} in ({marks})", part)


def _key(picture_digest: str, box: tuple[float, ...] | None) -> bytes:
    return hashlib.blake2b(f"{picture_digest} {box}".encode(), digest_size=16).digest()


def write_contact_sheet(rows: datasets.Dataset, path: Path, n: int = 64) -> None:
    """A contact sheet of the first `n` faces of `cache_view`'s rows, with their labels."""
    tiles: list[contact_sheet.Tile | None] = []
    for row in rows.select(range(min(n, len(rows)))):
        sample = FaceSample.from_row(row)
        stored = sample.image or (sample.frames or [None])[len(sample.frames or ()) // 2]
        title = sample.emotion or sample.gender or "no label"
        tiles.append(contact_sheet.Tile(open_view(stored["path"]), title, (sample.id,)))
    contact_sheet.write(path, contact_sheet.draw(tiles))
