"""Faces cut out once, and from then on read from memory-mapped uint8 arrays.

`cached(rows, Crop(...))` gives the same rows with pictures of the faces alone. They lie in the
user's cache folder, one folder for each way of cutting:

    NAME.npy       256 faces (n, size, size, 3), written whole or not at all
    index.sqlite   which face of which picture is where; a picture is known by its content

so that a face is never cut twice, whichever data set or copy it is from, and an interrupted run
goes on. A row's picture is then a path such as ".../NAME.npy#17", which `open_crop` opens.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import os
import sqlite3
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image, ImageDraw

from vlmface import config, files, sheet
from vlmface.data import detect
from vlmface.data.sources import Source, content, digest, in_threads, sources
from vlmface.errors import UserError
from vlmface.images import open_image
from vlmface.schema import FaceSample

if TYPE_CHECKING:
    import datasets

VERSION = 1  # raise whenever the same picture would give other pixels
PACK = 256  # faces a file
MOST_SIDE = 8_192  # pixels of a square around a face, before it is made smaller
FRAME = (255, 0, 0)  # colour of a box that is drawn
PERSON = "person_box"  # in `meta`, where a set boxes people instead of faces
_TABLES = """
create table if not exists faces (key blob primary key, pack text, row integer, found integer);
create table if not exists pictures
    (path text primary key, size integer, mtime integer, digest text);
"""


@dataclass(frozen=True)
class Crop:
    """How a face is cut out of a picture: as a square, `size` pixels a side, with `margin` times
    the longer side of its box on each side; what lies outside of the picture is black.

    `find`: "given" takes the data set's own box (of the face, or else of the person), "detect" that
    of the largest face that `detect.Detector` finds, in and around a given box if there is one.
    Without any box the whole picture is taken.

    `show`: "boxed" does not cut, but takes the whole picture with a red frame around the box and
    its margin, so that a prompt can ask about one person among several.
    """

    size: int = 224
    margin: float = 0.2
    find: Literal["given", "detect"] = "given"
    show: Literal["face", "boxed"] = "face"

    def __post_init__(self) -> None:
        if not 16 <= self.size <= 2048:
            raise UserError(f"crop: size is {self.size}, expected 16 to 2048 pixels")
        if not 0 <= self.margin <= 2:
            raise UserError(f"crop: margin is {self.margin}, expected 0 to 2 times the box's side")

    @property
    def folder(self) -> Path:
        """Where faces that are cut out in this way are kept."""
        by = self.find if self.find == "given" else detect.NAME
        name = f"v{VERSION}-{self.size}px-margin{self.margin:g}-{by}"
        return files.cache_dir() / "crops" / (name if self.show == "face" else f"{name}-boxed")


def parse(values: Mapping[str, Any] | None) -> Crop | None:
    """The `crop` of a settings file or manifest; None for none. Raises UserError."""
    return None if values is None else config.build(Crop, dict(values), where="crop")


def cut(image: Image.Image, box: Sequence[float] | None, crop: Crop) -> Image.Image:
    """The square around the box, or the whole picture with black bars if there is no box, or if it
    shall be shown as a frame."""
    whole = _square((0, 0, *image.size), 0)
    around = whole if box is None else _square(box, crop.margin)
    left, top, right, bottom = whole if crop.show == "boxed" else around
    face = _resized(image, (left, top, right, bottom), crop.size)
    if crop.show == "boxed" and box is not None:
        scale = crop.size / (right - left)
        moved = (around[0] - left, around[1] - top, around[2] - left, around[3] - top)
        corners = [min(max(round(x * scale), 0), crop.size - 1) for x in moved]
        ImageDraw.Draw(face).rectangle(corners, outline=FRAME, width=max(2, crop.size // 100))
    return face


def _resized(image: Image.Image, square: tuple[int, int, int, int], size: int) -> Image.Image:
    """A square of the picture, black outside of it, `size` pixels a side."""
    side = square[2] - square[0]
    if side > MOST_SIDE:  # around a long strip: far more pixels than the strip has
        scale = MOST_SIDE / side
        small = image.resize(
            (max(1, round(image.width * scale)), max(1, round(image.height * scale))),
            Image.Resampling.LANCZOS,
        )
        return _resized(small, tuple(round(x * scale) for x in square), size)  # type: ignore[arg-type]
    return image.crop(square).resize((size, size), Image.Resampling.LANCZOS)


def _square(box: Sequence[float], margin: float) -> tuple[int, int, int, int]:
    """The square with the box in its middle, in whole pixels: left, top, right, bottom."""
    x0, y0, x1, y1 = box
    side = max(1, round(max(x1 - x0, y1 - y0) * (1 + 2 * margin)))
    left, top = round((x0 + x1 - side) / 2), round((y0 + y1 - side) / 2)
    return left, top, left + side, top + side


@contextlib.contextmanager
def cutter(crop: Crop) -> Iterator[Any]:
    """A function (image, box or None) -> (face, whether its box is known), by the crop's own way
    of finding it. For many threads."""
    if crop.find == "given":
        yield lambda image, box=None: (cut(image, box, crop), box is not None)
        return
    with detect.Detector() as detector:

        def find_and_cut(
            image: Image.Image, box: Sequence[float] | None = None
        ) -> tuple[Image.Image, bool]:
            found = detector.face(image, box)
            return cut(image, found, crop), found is not None

        yield find_and_cut


def is_reference(path: str) -> bool:
    """Whether a path is a face in a cache."""
    return ".npy#" in path


def open_crop(path: str) -> Image.Image:
    """The face that a path of `cached` stands for. Raises UserError if the cache was deleted."""
    file, _, row = path.rpartition("#")
    return Image.fromarray(_mapped(file)[int(row)])


@functools.cache
def _mapped(path: str) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise UserError(
            f"the cached faces {path} cannot be read ({error}): delete that folder, the faces will "
            "be cut again"
        ) from error


# --- many of them ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Task:
    source: Source
    box: tuple[float, ...] | None


def cached(
    rows: datasets.Dataset, crop: Crop, *, workers: int | None = None, progress: bool = True
) -> datasets.Dataset:
    """The rows with the faces of their pictures (or frames) instead of these, `face_box` null;
    what is not in the cache yet is cut in threads. `encode.open_row_image` opens the pictures.

    Warns of pictures without a face, which are taken whole. Raises UserError for a picture that
    cannot be read; what was cut before it is kept.
    """
    import pyarrow as pa
    from datasets import Dataset
    from datasets import Image as ImageFeature
    from datasets.table import InMemoryTable

    from vlmface.schema import features

    boxes = [None if box is None else tuple(round(x, 2) for x in box) for box in _boxes(rows)]
    tasks = [
        [_Task(source, box) for source in pictures]
        for pictures, box in zip(sources(rows), boxes, strict=True)
    ]
    every = list(dict.fromkeys(task for row in tasks for task in row))
    places, whole = _places(every, crop, workers, progress)
    if whole:
        names = [s if isinstance(s, str) else "a picture without a name" for s in whole]
        warnings.warn(
            f"no face found in {len(whole):,} of {len(every):,} pictures, which are taken whole: "
            f"{names[0]}, ...",
            stacklevel=2,
        )
    table = rows.with_format("arrow")[:]
    stored = features()  # in which pictures stay as they are: only open_row_image can open these
    stored |= {"image": ImageFeature(decode=False), "frames": [ImageFeature(decode=False)]}
    schema = stored.arrow_schema
    found = [[{"bytes": None, "path": places[task]} for task in row] for row in tasks]
    still = table["image"].is_valid().to_pylist()
    columns = {
        "image": [faces[0] if one else None for faces, one in zip(found, still, strict=True)],
        "frames": [None if one else faces for faces, one in zip(found, still, strict=True)],
        "face_box": [None] * len(table),
    }
    for name, values in columns.items():
        at = table.schema.get_field_index(name)
        table = table.set_column(at, name, pa.array(values, schema.field(name).type))
    return Dataset(InMemoryTable(table.cast(schema)))


def _boxes(rows: datasets.Dataset) -> list[list[float] | None]:
    table = rows.select_columns(["face_box", "meta"]).with_format("arrow")[:]
    return [
        box or (json.loads(meta).get(PERSON) if meta and PERSON in meta else None)
        for box, meta in zip(table["face_box"].to_pylist(), table["meta"].to_pylist(), strict=True)
    ]


def _places(
    tasks: Sequence[_Task], crop: Crop, workers: int | None, progress: bool
) -> tuple[dict[_Task, str], list[Source]]:
    """Where each face is, as paths for `open_crop`; and the pictures that are taken whole for lack
    of a face."""
    folder = crop.folder
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(sqlite3.connect(folder / "index.sqlite", timeout=600)) as index:
        index.executescript(_TABLES)
        digests = _digests([task.source for task in tasks], index, workers, progress)
        keys = {task: _key(digests[task.source], task.box) for task in tasks}
        known = {
            key: (pack, row, found)
            for key, pack, row, found in index.execute("select key, pack, row, found from faces")
        }
        missing = list({keys[t]: t for t in tasks if keys[t] not in known}.items())
        if missing:
            with cutter(crop) as cut_face:

                def work(item: tuple[bytes, _Task]) -> tuple[np.ndarray, bool]:
                    face, found = cut_face(open_image(item[1].source), item[1].box)
                    return np.asarray(face), found

                faces = in_threads(work, missing, "cutting", workers=workers, progress=progress)
                for start in range(0, len(missing), PACK):
                    part = missing[start : start + PACK]
                    known |= _write(folder, index, [key for key, _ in part], faces)
    places, whole = {}, []
    for task, key in keys.items():
        pack, row, found = known[key]
        places[task] = f"{folder / pack}#{row}"
        if crop.find == "detect" and not found:
            whole.append(task.source)
    return places, whole


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
    lines = {key: (name, row, found) for row, (key, (_, found)) in
             enumerate(zip(keys, cut_now, strict=True))}  # fmt: skip
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
    known = {path: rest for path, *rest in index.execute("select * from pictures")}
    found: dict[Source, str] = {}
    stats: dict[str, tuple[int, int]] = {}
    unread: list[Source] = []
    for source in dict.fromkeys(every):
        if isinstance(source, str):
            with contextlib.suppress(OSError):  # `content` says what is wrong with it
                stat = os.stat(source)
                stats[source] = stat.st_size, stat.st_mtime_ns
                size, mtime, before = known.get(source, (None, None, ""))
                if stats[source] == (size, mtime):
                    found[source] = before
                    continue
        unread.append(source)

    def read(source: Source) -> str:
        try:
            return digest(content(source))
        except OSError as error:
            raise UserError(f"cannot read {source!r}: {error}") from error

    if unread:
        digests = in_threads(read, unread, "reading", workers=workers, progress=progress)
        found |= zip(unread, digests, strict=True)
    with index:
        index.executemany(
            "insert or replace into pictures values (?, ?, ?, ?)",
            [(s, *stats[s], found[s]) for s in unread if isinstance(s, str)],
        )
    return found


def _key(of: str, box: tuple[float, ...] | None) -> bytes:
    return hashlib.blake2b(f"{of} {box}".encode(), digest_size=16).digest()


def draw(rows: datasets.Dataset, path: Path, n: int = 64) -> None:
    """A contact sheet of the first `n` faces of `cached` rows, with their labels."""
    tiles: list[sheet.Tile | None] = []
    for row in rows.select(range(min(n, len(rows)))):
        sample = FaceSample.from_row(row)
        stored = sample.image or (sample.frames or [None])[len(sample.frames or ()) // 2]
        title = sample.emotion or sample.gender or "no label"
        tiles.append(sheet.Tile(open_crop(stored["path"]), title, (sample.id,)))
    sheet.write(path, sheet.draw(tiles))


def as_dict(crop: Crop | None) -> dict[str, Any] | None:
    """The crop as settings and manifests write it."""
    return None if crop is None else dataclasses.asdict(crop)
