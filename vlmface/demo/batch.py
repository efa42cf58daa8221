"""Many pictures at once: files and zip archives in, a row for every face or unreadable file out.

Archives come from strangers. Nothing of them is written to disk, their folders and links mean
nothing, and how much is read is limited by what the headers say and again by what comes out.
"""

from __future__ import annotations

import csv
import io
import json
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from vlmface import facs
from vlmface.demo import model_choices
from vlmface.errors import UserError
from vlmface.utils.images import open_image

if TYPE_CHECKING:
    from vlmface.data.detect import Box
    from vlmface.demo.face_detection import Finder
    from vlmface.infer.face_report import FaceReport
    from vlmface.infer.predictor import Predictor

MOST_FILES = 200
MOST_BYTES = 25 * 2**20  # of one picture
MOST_BYTES_IN_ALL = 256 * 2**20  # of all pictures of one batch, unpacked
MOST_PIXELS = 48_000_000
_DIRECTORY_BYTES = 2**20  # an archive's list of files: some ten thousand names
_SKIPPED = " \t\r\n\v\f\0\u00a0\u200b\ufeff'\""  # before a formula, by some spreadsheets
_END, _END_64 = b"PK\5\6", b"PK\6\7"


@dataclass(frozen=True)
class Item:
    """A file: what is in it, or why it cannot be had."""

    name: str
    data: bytes = b""
    problem: str | None = None


@dataclass(frozen=True)
class Row:
    """A face of a file (`face` counts from 1, 0: the picture whole), or the file's `problem`."""

    file: str
    face: int = 0
    report: FaceReport | None = None
    problem: str | None = None


def in_words(error: UserError) -> str:
    """An error of `open_image` about bytes, whose name the reader does not know."""
    return str(error).replace("the image bytes", "this file")


# --- what is in the files -------------------------------------------------------------------------


def unpack(paths: Sequence[Path]) -> list[Item]:
    """The pictures in files and zip archives, in order. Raises UserError for an archive that is no
    zip or too large, and for too many files."""
    items: list[Item] = []
    for path in paths:
        if not path.is_file():
            items.append(Item(path.name, problem="is here no longer: choose the file again"))
        elif is_zip(path):
            items += _zipped(path, MOST_BYTES_IN_ALL - sum(len(item.data) for item in items))
        elif (size := path.stat().st_size) > MOST_BYTES:
            items.append(Item(path.name, problem=_too_large(size)))
        else:
            items.append(Item(path.name, path.read_bytes()))
        if len(items) > MOST_FILES:
            raise UserError(f"these are more than {MOST_FILES} pictures: give fewer at once")
        if sum(len(item.data) for item in items) > MOST_BYTES_IN_ALL:
            raise _too_large_in_all(path.name)
    if not items:
        raise UserError("no picture was given: choose image files or a zip with images")
    return items


def is_zip(path: Path) -> bool:
    """By what is in it: names prove nothing."""
    with path.open("rb") as file:
        return file.read(4) in (b"PK\3\4", _END) or path.suffix.lower() == ".zip"


def _zipped(path: Path, budget: int) -> list[Item]:
    _check_directory(path)
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise UserError(f"{path.name} is no zip archive, or damaged ({error})") from error
    with archive:
        entries = [entry for entry in archive.infolist() if _is_meant(entry)]
        if len(entries) > MOST_FILES:
            raise UserError(
                f"{path.name} holds {len(entries):,} files, the limit is {MOST_FILES}: "
                "split it into several archives"
            )
        said = sum(entry.file_size for entry in entries)
        if said > budget:
            raise _too_large_in_all(path.name, said)
        items = []
        for entry in entries:
            items.append(_entry(archive, entry))
            budget -= len(items[-1].data)
            if budget < 0:
                raise _too_large_in_all(path.name)
    return items


def _check_directory(path: Path) -> None:
    """Before `zipfile` makes an object of each of possibly millions of names."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 22 - 0xFFFF))
        tail = file.read()
    at = tail.rfind(_END)
    if at < 0 or len(tail) < at + 22:
        raise UserError(f"{path.name} is no zip archive, or cut off: pack it again")
    (size,) = struct.unpack("<I", tail[at + 12 : at + 16])
    if size > _DIRECTORY_BYTES or tail[max(0, at - 20) : at].startswith(_END_64):
        raise UserError(
            f"{path.name} lists too many files, the limit is {MOST_FILES}: split it into several "
            "archives"
        )


def _is_meant(entry: zipfile.ZipInfo) -> bool:
    """Whether somebody put it there: no folder, no hidden file, nothing that macOS adds."""
    parts = PurePosixPath(entry.filename).parts
    return bool(parts) and not (
        entry.is_dir() or parts[-1].startswith(".") or parts[0] == "__MACOSX"
    )


def _entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Item:
    name = PurePosixPath(entry.filename.replace("\\", "/")).name or "a file without a name"
    if stat.S_ISLNK(entry.external_attr >> 16):
        return Item(name, problem="is a link to another file, which is not followed")
    if entry.file_size > MOST_BYTES:
        return Item(name, problem=_too_large(entry.file_size))
    if entry.flag_bits & 1:
        return Item(name, problem="is encrypted: pack it without a password")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return Item(name, problem="is packed in an unusual way: pack it as an ordinary zip")
    try:
        with archive.open(entry) as file:
            data = file.read(MOST_BYTES + 1)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        return Item(name, problem=f"cannot be unpacked ({error}): pack it again")
    if len(data) > MOST_BYTES:
        return Item(name, problem=_too_large(len(data)))
    return Item(name, data)


def _too_large(size: int) -> str:
    return f"is too large: {size / 2**20:.1f} MiB, the limit is {MOST_BYTES / 2**20:g} MiB"


def _too_large_in_all(name: str, size: int | None = None) -> UserError:
    found = "" if size is None else f" to {size / 2**20:,.0f} MiB"
    return UserError(
        f"{name} unpacks{found}, more than the {MOST_BYTES_IN_ALL / 2**20:g} MiB that are taken at "
        "once: give fewer or smaller pictures"
    )


# --- what is said of them -------------------------------------------------------------------------


def answer(item: Item, predictor: Predictor, finder: Finder) -> list[Row]:
    """A row for each face of a picture; one for the picture, if it has none or is shown as a whole;
    or one with the problem."""
    if item.problem:
        return [Row(item.name, problem=item.problem)]
    try:
        image = open_image(item.data, max_pixels=MOST_PIXELS)
    except UserError as error:
        return [Row(item.name, problem=in_words(error))]
    faces = [] if predictor.default_faces == "none" else finder.find(image)
    boxes: list[Box | None] = [*(face.box for face in faces)] or [None]
    shown = [model_choices.view_of(predictor, image, box) for box in boxes]
    reports = predictor.predict_views(shown, predictor.select_prompts(None))
    return [
        Row(item.name, number if faces else 0, report)
        for number, report in enumerate(reports, start=1)
    ]


def as_json(rows: Sequence[Row]) -> str:
    """A list of objects: {"file", "face", ... as `FaceReport.as_dict`} or {"file", "problem"}."""
    found: list[dict[str, Any]] = []
    for row in rows:
        if row.report is None:
            found.append({"file": row.file, "problem": row.problem})
        else:
            found.append({"file": row.file, "face": row.face or None, **row.report.as_dict()})
    return json.dumps(found, indent=2, ensure_ascii=False)


def as_csv(rows: Sequence[Row], tasks: Sequence[str]) -> str:
    """One line for each row; `tasks` are the columns with a label and its probability each."""
    buffer = io.StringIO()
    table = csv.writer(buffer)
    labels = [name for task in tasks for name in (task, f"{task}_probability")]
    table.writerow(
        [
            "file",
            "face",
            "left",
            "top",
            "right",
            "bottom",
            *labels,
            "sure",
            "action_units",
            "status",
            "rationale",
            "problem",
        ]
    )
    for row in rows:
        table.writerow([_cell(value) for value in _line(row, tasks)])
    return buffer.getvalue()


def _line(row: Row, tasks: Sequence[str]) -> Iterator[object]:
    report = row.report
    yield from (row.file, row.face or None)
    yield from (round(x) for x in report.box) if report and report.box else [None] * 4
    for task in tasks:
        said = report.answers[task] if report else None
        label = said.answer.label if said else None
        yield said.answer.said if said else None
        likely = said.probabilities if said else None
        yield f"{likely[label]:.4f}" if likely and label else None
    if report is None:
        yield from (None, None, None, None)
    else:
        units = " ".join(map(facs.name, report.aus))
        yield from ("yes" if report.is_confident else "no", units, report.status, report.rationale)
    yield row.problem


def _cell(value: object) -> object:
    """Text that a spreadsheet would run as a formula is given as text."""
    if isinstance(value, str):
        start = unicodedata.normalize("NFKC", value.lstrip(_SKIPPED)[:1])
        if start in ("=", "+", "-", "@") or value[:1] in ("\t", "\r", "\n"):
            return f"'{value}"
    return value
