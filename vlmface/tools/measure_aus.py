"""`vlmface aus`: the action units of the faces in image files, from landmarks, without a model."""

from __future__ import annotations

import contextlib
import csv
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from vlmface import facs
from vlmface.errors import UserError
from vlmface.infer.input_files import find_files, name_of, open_file
from vlmface.utils.spreadsheet import safe_cell
from vlmface.utils.terminal import json_line, one_line, printable

if TYPE_CHECKING:
    from vlmface.aus.estimator import Estimator, FaceUnits

NO_FACE = "no face found"
BOX = ("left", "top", "right", "bottom")


@dataclass(frozen=True)
class AusOptions:
    """What to estimate, and where the results go.

    Attributes:
        images: Files and folders; `-` stands for the names on standard input.
        as_json: Print one JSON object per face instead of text.
        csv: Write this table instead.
        overwrite: Replace an existing table.
        largest: Only the largest face of each image.
    """

    images: Sequence[str]
    as_json: bool = False
    csv: Path | None = None
    overwrite: bool = False
    largest: bool = False


def aus_command(options: AusOptions) -> int:
    """Estimate the action units of each face of image files and folders.

    A file that cannot be read costs one line on stderr and the exit code 2; an image without a face
    is a result of its own.

    Returns:
        The exit code.

    Raises:
        UserError: `vlmface[detect]` is not installed, the table exists, or there are no images.
    """
    from vlmface.aus.estimator import Estimator

    files = find_files(options.images, null=False)
    failed = 0
    with Estimator() as estimator, _writer(options, estimator) as write:
        for file in files:
            image = open_file(file, 1)
            if isinstance(image, list):
                image = UserError(f"{name_of(file)} is a video: extract its frames first")
            if isinstance(image, UserError):
                failed += 1
                print(f"error: {one_line(image)}", file=sys.stderr)
                continue
            if options.largest:
                face = estimator.largest(image)
                faces = [] if face is None else [face]
            else:
                faces = estimator.faces(image)
            write(name_of(file), faces)
    return 2 if failed else 0


@contextlib.contextmanager
def _writer(options: AusOptions, estimator: Estimator) -> Iterator[Any]:
    if options.csv is None:
        if options.overwrite:
            raise UserError("--overwrite is about the table of --csv: leave it out")
        yield _print_json if options.as_json else _print_text
        return
    if options.csv.exists() and not options.overwrite:
        raise UserError(f"{options.csv} exists: name another file, or replace it with --overwrite")
    try:
        with options.csv.open("w", encoding="utf-8-sig", newline="") as file:
            yield _Table(file, estimator)
    except OSError as error:
        raise UserError(f"--csv {options.csv} cannot be written: {error.strerror}") from error


def _print_json(name: str, faces: Sequence[FaceUnits]) -> None:
    if not faces:
        print(json_line({"image": name, "face": None, "box": None, "aus": {}, "reason": NO_FACE}))
    for number, face in enumerate(faces, 1):
        print(json_line({"image": name, "face": number, **face.as_dict()}), flush=True)


def _print_text(name: str, faces: Sequence[FaceUnits]) -> None:
    if not faces:
        print(f"{printable(name)}: {NO_FACE}")
    for number, face in enumerate(faces, 1):
        title = printable(name) + (f", face {number}" if len(faces) > 1 else "")
        if face.reason is not None:
            print(f"{title}: not estimated: {face.reason}")
            continue
        present = face.present
        print(f"{title}: {', '.join(map(facs.name, present)) or 'no action units'}", flush=True)
        for au in facs.top_down(present):
            print(
                f"    {facs.name(au):6}{present[au]:.1f}  confidence {face.confidence[au]:.2f}  "
                f"{facs.AUS[au].name}"
            )


class _Table:
    """A CSV file with a row for each face: `AUnn_r` intensity and `AUnn_c` presence, as OpenFace
    names them, and `AUnn_p` confidence."""

    def __init__(self, file: IO[str], estimator: Estimator) -> None:
        self._units = estimator.model.units
        self._rows = csv.writer(file, lineterminator="\n")
        columns = [f"AU{au:02d}_{kind}" for kind in "rcp" for au in self._units]
        self._rows.writerow(["image", "face", *BOX, "yaw", "pitch", *columns, "reason"])

    def __call__(self, name: str, faces: Sequence[FaceUnits]) -> None:
        cell = safe_cell(printable(name))
        width = 3 * len(self._units)
        if not faces:
            self._rows.writerow([cell, None, *[None] * 6, *[None] * width, NO_FACE])
        for number, face in enumerate(faces, 1):
            pose = [None if x is None else round(x, 1) for x in (face.yaw, face.pitch)]
            values: list[object] = [None] * width
            if face.reason is None:
                values = [round(face.aus[au], 2) for au in self._units]
                values += [int(face.aus[au] >= 1) for au in self._units]
                values += [round(face.confidence[au], 3) for au in self._units]
            box = [round(x, 1) for x in face.box]
            self._rows.writerow([cell, number, *box, *pose, *values, face.reason])
