"""Batches: a row for every face, or unreadable file, of uploaded files and zip archives.

Archives come from strangers. Their content is never written to disk, their folders and links are
ignored, and the amount that is read is limited by the headers and also by what is unpacked.
"""

from __future__ import annotations

import csv
import io
import json
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from vlmface import facs
from vlmface.demo import model_choices
from vlmface.demo.face_detection import FoundFaces
from vlmface.errors import UserError
from vlmface.utils.images import open_image
from vlmface.utils.spreadsheet import safe_cell

if TYPE_CHECKING:
    from vlmface.data.detect import Box
    from vlmface.demo.face_detection import FaceFinder
    from vlmface.infer.face_report import FaceReport
    from vlmface.infer.predictor import Predictor

MAX_FILES = 200
MAX_FILE_BYTES = 25 * 2**20  # of one picture
MAX_TOTAL_BYTES = 256 * 2**20  # of all pictures of one batch, unpacked
MAX_PIXELS = 48_000_000
_MAX_DIRECTORY_BYTES = 2**20  # an archive's list of files: some ten thousand names
_END_OF_DIRECTORY, _END_OF_DIRECTORY_64 = b"PK\5\6", b"PK\6\7"


@dataclass(frozen=True)
class UploadedFile:
    """A file's content, or the `problem` with it."""

    name: str
    data: bytes = b""
    problem: str | None = None


@dataclass(frozen=True)
class Row:
    """The report on a face of a file (`face` counts from 1; 0: the whole picture), or the file's
    `problem`."""

    file: str
    face: int = 0
    report: FaceReport | None = None
    problem: str | None = None


def upload_error(error: UserError) -> str:
    """The message of an `open_image` error about bytes, for a reader who uploaded a file."""
    return str(error).replace("the image bytes", "this file")


# --- reading files and archives -------------------------------------------------------------------


def read_files(paths: Sequence[Path]) -> list[UploadedFile]:
    """Read pictures and unpack zip archives, in order.

    Args:
        paths: The uploaded files.

    Returns:
        The pictures.

    Raises:
        UserError: An archive is damaged or too large, or there are too many files.
    """
    items: list[UploadedFile] = []
    for path in paths:
        if not path.is_file():
            items.append(UploadedFile(path.name, problem="has been deleted: choose it again"))
        elif is_zip(path):
            budget = MAX_TOTAL_BYTES - sum(len(item.data) for item in items)
            items += _unpack(path, budget)
        elif (size := path.stat().st_size) > MAX_FILE_BYTES:
            items.append(UploadedFile(path.name, problem=_too_large(size)))
        else:
            items.append(UploadedFile(path.name, path.read_bytes()))
        if len(items) > MAX_FILES:
            raise UserError(f"these are more than {MAX_FILES} pictures: give fewer at once")
        if sum(len(item.data) for item in items) > MAX_TOTAL_BYTES:
            raise _total_too_large(path.name)
    if not items:
        raise UserError("no picture was given: choose image files or a zip with images")
    return items


def is_zip(path: Path) -> bool:
    """Whether a file has the signature or the suffix of a zip archive."""
    with path.open("rb") as file:
        signature = file.read(4)
    return signature in (b"PK\3\4", _END_OF_DIRECTORY) or path.suffix.lower() == ".zip"


def _unpack(path: Path, budget: int) -> list[UploadedFile]:
    _check_directory(path)
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise UserError(f"{path.name} is not a zip archive, or is damaged ({error})") from error
    with archive:
        entries = [entry for entry in archive.infolist() if _is_picture_entry(entry)]
        if len(entries) > MAX_FILES:
            raise UserError(
                f"{path.name} holds {len(entries):,} files, the limit is {MAX_FILES}: "
                "split it into several archives"
            )
        claimed = sum(entry.file_size for entry in entries)
        if claimed > budget:
            raise _total_too_large(path.name, claimed)
        items = []
        for entry in entries:
            items.append(_read_entry(archive, entry))
            budget -= len(items[-1].data)
            if budget < 0:
                raise _total_too_large(path.name)
    return items


def _check_directory(path: Path) -> None:
    """Limit the directory before `zipfile` creates an object for each of millions of names."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 22 - 0xFFFF))
        tail = file.read()
    at = tail.rfind(_END_OF_DIRECTORY)
    if at < 0 or len(tail) < at + 22:
        raise UserError(f"{path.name} is not a zip archive, or is cut off: pack it again")
    (size,) = struct.unpack("<I", tail[at + 12 : at + 16])
    is_zip64 = tail[max(0, at - 20) : at].startswith(_END_OF_DIRECTORY_64)
    if size > _MAX_DIRECTORY_BYTES or is_zip64:
        raise UserError(
            f"{path.name} lists too many files, the limit is {MAX_FILES}: split it into several "
            "archives"
        )


def _is_picture_entry(entry: zipfile.ZipInfo) -> bool:
    """Whether a user added the entry: not a folder, a hidden file, or metadata of macOS."""
    parts = PurePosixPath(entry.filename).parts
    return bool(parts) and not (
        entry.is_dir() or parts[-1].startswith(".") or parts[0] == "__MACOSX"
    )


def _read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> UploadedFile:
    name = PurePosixPath(entry.filename.replace("\\", "/")).name or "a file without a name"
    if problem := _entry_problem(entry):
        return UploadedFile(name, problem=problem)
    try:
        with archive.open(entry) as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        return UploadedFile(name, problem=f"cannot be unpacked ({error}): pack it again")
    if len(data) > MAX_FILE_BYTES:
        return UploadedFile(name, problem=_too_large(len(data)))
    return UploadedFile(name, data)


def _entry_problem(entry: zipfile.ZipInfo) -> str | None:
    """Why an entry is not unpacked, None if it is."""
    if stat.S_ISLNK(entry.external_attr >> 16):
        return "is a link to another file, which is not followed"
    if entry.file_size > MAX_FILE_BYTES:
        return _too_large(entry.file_size)
    if entry.flag_bits & 1:
        return "is encrypted: pack it without a password"
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "has an unusual compression: pack it as an ordinary zip"
    return None


def _too_large(size: int) -> str:
    return f"is too large: {size / 2**20:.1f} MiB, the limit is {MAX_FILE_BYTES / 2**20:g} MiB"


def _total_too_large(name: str, size: int | None = None) -> UserError:
    to_size = "" if size is None else f" to {size / 2**20:,.0f} MiB"
    return UserError(
        f"{name} unpacks{to_size}, more than the {MAX_TOTAL_BYTES / 2**20:g} MiB that are accepted "
        "at once: give fewer or smaller pictures"
    )


# --- predictions ----------------------------------------------------------------------------------


def predict_item(item: UploadedFile, predictor: Predictor, finder: FaceFinder) -> list[Row]:
    """Report on each face of a picture.

    Args:
        item: The picture.
        predictor: The model.
        finder: Detects faces.

    Returns:
        A row for each face; one row if there is none or the whole picture is used; one row with the
        problem if the picture cannot be read.
    """
    if item.problem:
        return [Row(item.name, problem=item.problem)]
    try:
        image = open_image(item.data, max_pixels=MAX_PIXELS)
    except UserError as error:
        return [Row(item.name, problem=upload_error(error))]
    faces_found = FoundFaces() if predictor.default_faces == "none" else finder.find(image)
    boxes: list[Box | None] = [*(face.box for face in faces_found.faces)] or [None]
    views = [
        replace(model_choices.face_view(predictor, image, box), search_note=faces_found.note)
        for box in boxes
    ]
    reports = predictor.predict_views(views, predictor.select_prompts(None))
    return [
        Row(item.name, number if faces_found.faces else 0, report)
        for number, report in enumerate(reports, start=1)
    ]


def as_json(rows: Sequence[Row]) -> str:
    """A JSON list of {"file", "face", and the fields of `FaceReport.as_dict`} or {"file",
    "problem"}."""
    entries: list[dict[str, Any]] = []
    for row in rows:
        if row.report is None:
            entries.append({"file": row.file, "problem": row.problem})
        else:
            entries.append({"file": row.file, "face": row.face or None, **row.report.as_dict()})
    return json.dumps(entries, indent=2, ensure_ascii=False)


def as_csv(rows: Sequence[Row], tasks: Sequence[str]) -> str:
    """A CSV table.

    Args:
        rows: One line each.
        tasks: Columns with a label and its probability.
    """
    buffer = io.StringIO()
    table = csv.writer(buffer)
    table.writerow(
        [
            *("file", "face", "face_found", "left", "top", "right", "bottom"),
            *(name for task in tasks for name in (task, f"{task}_probability")),
            *("is_confident", "action_units", "status", "rationale", "search_note", "problem"),
        ]
    )
    for row in rows:
        table.writerow([safe_cell(value) for value in _csv_values(row, tasks)])
    return buffer.getvalue()


def _csv_values(row: Row, tasks: Sequence[str]) -> Iterator[object]:
    report = row.report
    yield from (row.file, row.face or None)
    yield None if report is None or report.face_found is None else _yes_or_no(report.face_found)
    yield from (round(x) for x in report.box) if report and report.box else [None] * 4
    for task in tasks:
        prediction = report.answers[task] if report else None
        label = prediction.answer.label if prediction else None
        yield prediction.answer.text_labels if prediction else None
        probabilities = prediction.probabilities if prediction else None
        yield f"{probabilities[label]:.4f}" if probabilities and label else None
    if report is None:
        yield from (None, None, None, None, None)
    else:
        units = " ".join(map(facs.name, report.aus))
        status = report.status if report.has_prediction else None
        yield from (_yes_or_no(report.is_confident), units, status, report.rationale)
        yield report.search_note
    yield row.problem


def _yes_or_no(value: bool) -> str:
    return "yes" if value else "no"
