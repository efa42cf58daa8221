"""Views of many pictures, made once and from then on read from uint8 arrays on the disk.

`shown(rows, views, frames)` gives rows as a model is shown them: one picture each, or several views
of several frames. The pictures lie in the user's cache folder, one folder for each way of cutting:

    NAME.npy       256 pictures (n, size, size, 3), written whole or not at all
    index.sqlite   which view of which picture is where; a picture is known by its content

so that a view is never made twice, whichever data set or copy the picture is from, and an
interrupted run goes on. A picture is then a path such as ".../NAME.npy#17", which `open_crop`
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

from vlmface.data.crops import INVALID_BOX, Box, View, face_locator, render_view, valid_box
from vlmface.data.sources import Source, content, digest, in_threads, sources
from vlmface.errors import UserError
from vlmface.schema import FaceSample
from vlmface.utils import contact_sheet, files
from vlmface.utils.images import open_image

if TYPE_CHECKING:
    import datasets

IMAGES_PER_PACK = 256  # pictures a file
OPEN_PACKS = 64  # files that a process keeps open
_BEFORE_HEADER = 10  # bytes of an .npy file: magic, version, length of the header
KEYS_PER_QUERY = (
    500  # that the index is asked for at once: SQLite bounds the parameters of a statement
)
MAX_FRAMES = 64  # of a clip that a model is shown
FACE_BOXES_FIELD = "face_boxes"  # in `meta`, where a set boxes the face in each frame of a clip
PERSON_BOX_FIELDS = ("person_box", "body_box")  # in `meta`, where a set boxes people
_TABLES = """
create table if not exists faces (key blob primary key, pack text, row integer, found integer);
create table if not exists pictures
    (path text primary key, size integer, mtime integer, digest text);
"""


def is_reference(path: str) -> bool:
    """Whether a path is a face in a cache."""
    return ".npy#" in path


def open_view(path: str) -> Image.Image:
    """The face that a path of `cached` stands for. Raises UserError if its pack is missing, damaged
    or cannot be opened."""
    file, _, row = path.rpartition("#")
    return _pack(file).picture(int(row))


_SPACE = threading.local()  # .pixels: what a thread reads the next picture into


class _Pack:
    """A pack's file, open until nobody uses it any more. Reading moves no file position, so threads
    and forked processes share it."""

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
        fix = "delete that folder, the faces will be cut again"
    return f"the cached faces {path} cannot be read ({error}): {fix}"


@dataclass(frozen=True)
class _Task:
    source: Source
    box: Box | None


@dataclass(frozen=True)
class _Picture:
    """A picture of a row. Boxes are as annotated, NOWHERE if broken; `faces`: whether its row says
    where faces are."""

    source: Source
    face: Box | None
    person: Box | None
    faces: bool

    def task(self, crop: View) -> _Task:
        """What is cut for a view."""
        if crop.show == "scene":
            return _Task(self.source, None)
        if crop.show == "person":
            return _Task(self.source, self.person)
        box = self.face
        if valid_box(box) is None and (not self.faces or not crop.needs_face):
            box = self.person or box  # a person's box is a place to look for a face, or to frame
        return _Task(self.source, box)


def cache_view(
    rows: datasets.Dataset, crop: View, *, workers: int | None = None, progress: bool = True
) -> datasets.Dataset:
    """The rows with one view of their pictures (or of all frames) instead of these, `face_box`
    null; what is not in the cache yet is cut in threads. `encode.open_row_image` opens the
    pictures.

    Warns of pictures without a face, which are taken whole. Raises UserError for a picture that
    cannot be read; what was cut before it is kept.
    """
    cut_out, _ = _cut_rows(_pictures(rows), crop, workers, progress)
    are_stills = rows.with_format("arrow")[:]["image"].is_valid().to_pylist()
    return _with_columns(
        rows,
        {
            "image": [
                faces[0] if is_still else None
                for faces, is_still in zip(cut_out, are_stills, strict=True)
            ],
            "frames": [
                None if is_still else faces
                for faces, is_still in zip(cut_out, are_stills, strict=True)
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
    """The rows as a model is shown them: `image` is the first view of the middle one of `frames`
    frames; where there is more than that, `shown` lists all pictures, the frames of the first view,
    then those of the second, and so on. `frames`, the clip's own, and `face_box` are null then.
    A clip of fewer frames gives some several times, a still picture is a clip of one.

    Where a view is about the face, `face_found` says whether the first such view knew where it is,
    in one frame at least. Warns of pictures for which it did not. Raises as `cached`.
    """
    from vlmface.data.rows import with_still_images as as_stored
    from vlmface.data.video import segment_midpoints

    if not 1 <= frames <= MAX_FRAMES:
        raise UserError(f"frames is {frames}: a model is shown 1 to {MAX_FRAMES} frames of a clip")
    if not views and frames == 1:
        return as_stored(rows)
    chosen = [[row[i] for i in segment_midpoints(len(row), frames)] for row in _pictures(rows)]
    made = []
    for crop in views:
        made.append(_cut_rows(chosen, crop, workers, progress))
    of_views = [cut_out for cut_out, _ in made] or [
        [[_stored(one.source) for one in row] for row in chosen]
    ]
    pictures = [[one for view in of_row for one in view] for of_row in zip(*of_views, strict=True)]
    known = [known for crop, (_, known) in zip(views, made, strict=True) if crop.about_face][:1]
    columns: dict[str, list[Any]] = {
        "image": [row[frames // 2] for row in pictures],
        "frames": [None] * len(pictures),
        "face_box": [None] * len(pictures),
    }
    if len(of_views) * frames > 1:
        columns["shown"] = pictures
    for of_rows in known:
        columns["face_found"] = [any(of_row) for of_row in of_rows]
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
    kinds = {"image": picture, "frames": [picture], "shown": [picture], "face_found": Value("bool")}
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
            columns["id"], sources(rows), columns["face_box"], columns["meta"], strict=True
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
    known = valid_box(box)
    return INVALID_BOX if known is None else tuple(round(x, 2) for x in known)  # type: ignore[return-value]


def _cut_rows(
    pictures: Sequence[Sequence[_Picture]], crop: View, workers: int | None, progress: bool
) -> tuple[list[list[dict[str, Any]]], list[list[bool]]]:
    """(a view of every picture of each row, as it is stored; whether its box was known)."""
    tasks = [[picture.task(crop) for picture in row] for row in pictures]
    every = list(dict.fromkeys(task for row in tasks for task in row))
    places = _places(every, crop, workers, progress)
    if crop.show != "scene" and (whole := [t.source for t in every if not places[t][1]]):
        name = whole[0] if isinstance(whole[0], str) else "a picture without a name"
        what = "person" if crop.show == "person" else "face"
        how = "found" if crop.find == "detect" or crop.is_shape else "boxed"
        taken = "left black" if crop.is_shape else "taken whole"
        warnings.warn(
            f"no {what} {how} in {len(whole):,} of {len(every):,} pictures, which are {taken}: "
            f"{name}, ...",
            stacklevel=3,
        )
    return (
        [[{"bytes": None, "path": places[task][0]} for task in row] for row in tasks],
        [[places[task][1] for task in row] for row in tasks],
    )


def _places(
    tasks: Sequence[_Task], crop: View, workers: int | None, progress: bool
) -> dict[_Task, tuple[str, bool]]:
    """Where each view is, as a path for `open_crop`, and whether its box was known."""
    folder = crop.folder
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(sqlite3.connect(folder / "index.sqlite", timeout=600)) as index:
        index.executescript(_TABLES)
        digests = _digests([task.source for task in tasks], index, workers, progress)
        keys = {task: _key(digests[task.source], task.box) for task in tasks}
        stored = {key: tuple(place) for key, *place in _looked_up(index, "faces", keys.values())}
        missing = list({keys[t]: t for t in tasks if keys[t] not in stored}.items())
        if missing:
            with face_locator([crop]) as find:

                def work(item: tuple[bytes, _Task]) -> tuple[np.ndarray, bool]:
                    image = open_image(item[1].source)
                    box = find(image, item[1].box)
                    pixels = np.asarray(render_view(image, box, crop, find.mesh))
                    return pixels, bool(pixels.any()) if crop.is_shape else box is not None

                faces = in_threads(work, missing, "cutting", workers=workers, progress=progress)
                for start in range(0, len(missing), IMAGES_PER_PACK):
                    part = missing[start : start + IMAGES_PER_PACK]
                    stored |= _write(folder, index, [key for key, _ in part], faces)
    stored_views = {task: stored[key] for task, key in keys.items()}
    return {
        task: (f"{folder / pack}#{row}", bool(box))
        for task, (pack, row, box) in stored_views.items()
    }


def _write(
    folder: Path,
    index: sqlite3.Connection,
    keys: Sequence[bytes],
    faces: Iterator[tuple[np.ndarray, bool]],
) -> dict[bytes, tuple[str, int, bool]]:
    """The next len(keys) faces as one file, then as lines of the index: a face that the index
    names is on the disk."""
    cut_now = [next(faces) for _ in keys]
    name = f"{uuid.uuid4().hex[:12]}.npy"  # several processes may be at work
    buffer = io.BytesIO()
    np.save(buffer, np.stack([pixels for pixels, _ in cut_now]))
    files.atomic_write(folder / name, buffer.getvalue())
    lines = {
        key: (name, row, has_box)
        for row, (key, (_, has_box)) in enumerate(zip(keys, cut_now, strict=True))
    }
    with index:
        index.executemany(
            "insert or ignore into faces values (?, ?, ?, ?)",
            [(key, *line) for key, line in lines.items()],
        )
    return lines


def _digests(
    every: Sequence[Source], index: sqlite3.Connection, workers: int | None, progress: bool
) -> dict[Source, str]:
    """The digest of each picture's content. A file that has its old size and time is not read."""
    every = list(dict.fromkeys(every))
    paths = [source for source in every if isinstance(source, str)]
    known = {
        path: stats_and_digest for path, *stats_and_digest in _looked_up(index, "pictures", paths)
    }
    digest_of: dict[Source, str] = {}
    stats: dict[str, tuple[int, int]] = {}
    unread: list[Source] = []
    for source in every:
        if isinstance(source, str):
            with contextlib.suppress(OSError):  # `content` says what is wrong with it
                stat = os.stat(source)
                stats[source] = stat.st_size, stat.st_mtime_ns
                size, mtime, before = known.get(source, (None, None, ""))
                if stats[source] == (size, mtime):
                    digest_of[source] = before
                    continue
        unread.append(source)

    def read(source: Source) -> str:
        try:
            return digest(content(source))
        except OSError as error:
            raise UserError(f"cannot read {source!r}: {error}") from error

    if unread:
        digests = in_threads(read, unread, "reading", workers=workers, progress=progress)
        digest_of |= zip(unread, digests, strict=True)
    with index:
        index.executemany(
            "insert or replace into pictures values (?, ?, ?, ?)",
            [(s, *stats[s], digest_of[s]) for s in unread if isinstance(s, str)],
        )
    return digest_of


def _looked_up(
    index: sqlite3.Connection, table: Literal["faces", "pictures"], keys: Iterable[str | bytes]
) -> Iterator[tuple[Any, ...]]:
    """The lines of a table with these keys. The index may hold many more."""
    column = {"faces": "key", "pictures": "path"}[table]
    distinct = list(dict.fromkeys(keys))
    for start in range(0, len(distinct), KEYS_PER_QUERY):
        part = distinct[start : start + KEYS_PER_QUERY]
        marks = ", ".join("?" * len(part))
        yield from index.execute(f"select * from {table} where {column} in ({marks})", part)


def _key(of: str, box: tuple[float, ...] | None) -> bytes:
    return hashlib.blake2b(f"{of} {box}".encode(), digest_size=16).digest()


def write_contact_sheet(rows: datasets.Dataset, path: Path, n: int = 64) -> None:
    """A contact sheet of the first `n` faces of `cached` rows, with their labels."""
    tiles: list[contact_sheet.Tile | None] = []
    for row in rows.select(range(min(n, len(rows)))):
        sample = FaceSample.from_row(row)
        stored = sample.image or (sample.frames or [None])[len(sample.frames or ()) // 2]
        title = sample.emotion or sample.gender or "no label"
        tiles.append(contact_sheet.Tile(open_view(stored["path"]), title, (sample.id,)))
    contact_sheet.write(path, contact_sheet.draw(tiles))
