"""Labelled photographs, which the model is fitted to as well.

The labels are a CSV file with the columns `image` (a path), `subject` and `AU12`, `AU25`, ...: 1
present, 0 absent, empty for unknown. On photographs without any AU that is labelled, all others
count as absent, too: most people are photographed at rest or smiling.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vlmface.aus import measurement
from vlmface.aus.rendered_faces import UNITS
from vlmface.data import detect
from vlmface.errors import UserError
from vlmface.utils.images import open_image

AT_REST = (12, 25, 43)  # all of these must be labelled 0 on a face at rest


@dataclass(frozen=True)
class Photographs:
    """n measured photographs.

    Attributes:
        points, blendshapes, patch: as of `rendered_faces.MeasuredFaces`.
        labels: float32 (n, units) 1 present, 0 absent, nan unknown, as annotated.
        subject: (n,) of text.
    """

    points: np.ndarray
    blendshapes: np.ndarray
    patch: np.ndarray
    labels: np.ndarray
    subject: np.ndarray

    @property
    def completed_labels(self) -> np.ndarray:
        """The labels, with unknown AUs of faces at rest as absent."""
        columns = [UNITS.index(au) for au in AT_REST]
        at_rest = (self.labels[:, columns] == 0).all(1) & ~(self.labels == 1).any(1)
        labels = self.labels.copy()
        labels[at_rest] = 0
        without_parted_lips = labels[:, UNITS.index(25)] == 0
        for au in (26, 27):  # a dropped jaw parts the lips
            labels[without_parted_lips, UNITS.index(au)] = 0
        return labels


def read(folder: Path, labels: Path) -> Photographs:
    """Measure the labelled photographs of a folder.

    Raises:
        UserError: the table has no usable columns, or a picture cannot be read. Pictures without a
            face are printed and left out.
    """
    rows, columns = _table(labels)
    measured, used_rows = [], []
    with measurement.Landmarker() as landmarker, detect.Detector() as detector:
        for row in rows:
            image = open_image(folder / row["image"])
            box = detector.face(image)
            square = None if box is None else measurement.face_square(image, box)
            views = (
                [] if square is None else [landmarker.measure(s) for s in (square, square[:, ::-1])]
            )
            if not views or any(view is None for view in views):
                print(f"no face in {row['image']}: left out")
                continue
            measured.append([view for view in views if view is not None])
            used_rows.append(row)
    if not used_rows:
        raise UserError(f"no photograph of {labels} in {folder} shows a face")
    return Photographs(
        points=np.array([[view.points for view in views] for views in measured]),
        blendshapes=np.array([[view.blendshapes for view in views] for views in measured]),
        patch=np.array([[view.patch for view in views] for views in measured]),
        labels=np.array([_labels(row, columns, labels) for row in used_rows], np.float32),
        subject=np.array([row["subject"] for row in used_rows]),
    )


def _table(path: Path) -> tuple[list[dict[str, str]], dict[str, list[int]]]:
    """The rows, and the AUs of each column."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"the labels {path} cannot be read: {error}") from error
    names = list(rows[0]) if rows else []
    columns = {
        name: [au for au in map(int, re.findall(r"\d+", name)) if au in UNITS]
        for name in names
        if name and name.upper().startswith("AU")
    }
    if not {"image", "subject"} <= set(names) or not columns:
        raise UserError(
            f"{path} has the columns {', '.join(map(str, names)) or 'none'}, expected image, "
            "subject and AU12, AU25, ..."
        )
    return rows, columns


def _labels(row: dict[str, str], columns: dict[str, list[int]], path: Path) -> list[float]:
    values = dict.fromkeys(UNITS, float("nan"))
    for name, aus in columns.items():
        cell = (row[name] or "").strip()
        if cell not in ("", "0", "1"):
            raise UserError(f"{path}: {name} of {row['image']} is {cell!r}, expected 0, 1 or empty")
        values |= {au: float(cell) for au in aus if cell}
    return list(values.values())
