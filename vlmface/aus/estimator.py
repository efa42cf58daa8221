"""Action units of the faces of a picture, estimated from landmarks."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from vlmface.aus import measurement
from vlmface.aus.model import Estimates, Model
from vlmface.data import detect, face_search
from vlmface.utils import image_conversion

if TYPE_CHECKING:
    from PIL import Image

    from vlmface.aus.measurement import Measurement
    from vlmface.data.detect import Box

NAME = "landmarks"  # of this estimator, where others can be named
MAX_YAW = 60.0  # degrees; a face that is turned further is not estimated
MIN_WIDTH = 24.0  # pixels of the mesh's box; a smaller face is not estimated
FULL_WIDTH = 60.0  # from which on the size does not lower the confidence
FULL_YAW = 20.0
MANY_FACES = 32  # faces that are measured before they are estimated together


@dataclass(frozen=True)
class FaceUnits:
    """The action units of one face.

    Attributes:
        box: x0, y0, x1, y1 in pixels of the picture, around the mesh.
        aus: {AU: intensity 0..5} of all AUs that the model can tell; at least 1 is present. Empty
            if the face was not estimated.
        left, right: {AU: intensity 0..5} of the face's own sides, for AUs whose sides it can tell.
        confidence: {AU: 0..1}, how likely "present" or "absent" is right; 0.5 is a guess.
        yaw, pitch: of the head in degrees; None if it could not be measured. Positive yaw turns it
            to the picture's right, positive pitch lowers the chin.
        reason: why the face was not estimated.
    """

    box: Box
    aus: dict[int, float] = field(default_factory=dict)
    left: dict[int, float] = field(default_factory=dict)
    right: dict[int, float] = field(default_factory=dict)
    confidence: dict[int, float] = field(default_factory=dict)
    yaw: float | None = None
    pitch: float | None = None
    reason: str | None = None

    @property
    def present(self) -> dict[int, float]:
        """{AU: intensity 1..5} of the AUs that are present."""
        return {au: intensity for au, intensity in self.aus.items() if intensity >= 1}

    def as_dict(self) -> dict[str, Any]:
        """For JSON: numbers are rounded, and AU numbers are text."""

        def rounded(values: dict[int, float], digits: int = 2) -> dict[str, float]:
            return {str(au): round(value, digits) for au, value in values.items()}

        return {
            "box": [round(float(x), 1) for x in self.box],
            "aus": rounded(self.aus),
            "sides": {
                str(au): {"left": round(self.left[au], 2), "right": round(self.right[au], 2)}
                for au in self.left
            },
            "confidence": rounded(self.confidence, 3),
            "yaw": None if self.yaw is None else round(self.yaw, 1),
            "pitch": None if self.pitch is None else round(self.pitch, 1),
            "reason": self.reason,
        }


class Estimator:
    """Finds faces and estimates their action units. Threads may share one; they take turns. Use it
    in a `with` block.

    Args:
        model: by default the model of the package.

    Raises:
        UserError: `vlmface[detect]` is not installed, or a file is not the known one.
    """

    def __init__(self, model: Model | None = None) -> None:
        self.model = Model.load() if model is None else model
        self._detector = detect.Detector()
        self._landmarker = measurement.Landmarker()
        self._turn = threading.Lock()

    def __enter__(self) -> Estimator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the detector and the landmarker."""
        self._detector.close()
        self._landmarker.close()

    def faces(self, image: Image.Image) -> list[FaceUnits]:
        """All faces that a search of the picture finds, see `detect.Detector.search`."""
        image = image_conversion.as_rgb(image)
        meshes = self._detector.search(image).meshes
        return self.at_boxes(image, [detect.bounding_box(mesh) for mesh in meshes])

    def largest(self, image: Image.Image, near: Sequence[float] | None = None) -> FaceUnits | None:
        """The largest face of a picture.

        Args:
            image: of any mode.
            near: x0, y0, x1, y1: only faces in and around this box.

        Returns:
            None without a face.
        """
        image = image_conversion.as_rgb(image)
        box = self._detector.clear_face(image, near)
        measured = None if box is None else self._measure(image, box)
        if box is not None and measured is not None:
            mesh_box = measurement.mesh_box(measured, box)
            if face_search.is_same(mesh_box, box):
                return self.estimate([mesh_box], [measured])[0]
        box = self._detector.face(image, near)
        return None if box is None else self.at_boxes(image, [box])[0]

    def at_boxes(self, image: Image.Image, boxes: Sequence[Box]) -> list[FaceUnits]:
        """The faces in boxes as `detect.Detector` gives them."""
        faces: list[FaceUnits] = []
        for start in range(0, len(boxes), MANY_FACES):
            part = boxes[start : start + MANY_FACES]
            faces += self.estimate(part, [self._measure(image, box) for box in part])
        return faces

    def _measure(self, image: Image.Image, box: Box) -> Measurement | None:
        square = measurement.face_square(image, box)
        with self._turn:
            return self._landmarker.measure(square)

    def estimate(
        self, boxes: Sequence[Box], measurements: Sequence[Measurement | None]
    ) -> list[FaceUnits]:
        """The faces of measurements, all at once.

        Args:
            boxes: of the faces.
            measurements: of each face; None if it could not be measured.
        """
        measured = [face for face in measurements if face is not None]
        estimates = self.model.estimate(measured) if measured else None
        faces, row = [], 0
        for box, face in zip(boxes, measurements, strict=True):
            if face is None or estimates is None:
                faces.append(FaceUnits(box, reason="the landmarks could not be measured"))
                continue
            faces.append(_face(self.model, box, estimates, row))
            row += 1
        return faces


def _face(model: Model, box: Box, estimates: Estimates, row: int) -> FaceUnits:
    yaw, pitch = float(estimates.yaw[row]), float(estimates.pitch[row])
    width = box[2] - box[0]
    reason = None
    if not estimates.finite[row]:
        reason = "the landmarks are not numbers"
    elif abs(yaw) > MAX_YAW:
        reason = f"the head is turned by {abs(yaw):.0f} degrees, more than {MAX_YAW:.0f}"
    elif width < MIN_WIDTH:
        reason = f"the face is {width:.0f} pixels wide, less than {MIN_WIDTH:.0f}"
    if reason is not None:
        is_finite = bool(estimates.finite[row])
        return FaceUnits(
            box, yaw=yaw if is_finite else None, pitch=pitch if is_finite else None, reason=reason
        )
    trust = _trust(yaw, width)
    return FaceUnits(
        box,
        aus=dict(zip(model.units, estimates.intensity[row].tolist(), strict=True)),
        left=dict(zip(model.sided, estimates.left[row].tolist(), strict=True)),
        right=dict(zip(model.sided, estimates.right[row].tolist(), strict=True)),
        confidence={
            au: 0.5 + abs(probability - 0.5) * trust
            for au, probability in zip(
                model.units, estimates.probability[row].tolist(), strict=True
            )
        },
        yaw=yaw,
        pitch=pitch,
    )


def _trust(yaw: float, width: float) -> float:
    """How far the confidence is that of a large frontal face, 0..1."""
    of_yaw = np.interp(abs(yaw), (FULL_YAW, MAX_YAW), (1.0, 0.2))
    of_width = np.interp(width, (MIN_WIDTH, FULL_WIDTH), (0.4, 1.0))
    return float(of_yaw * of_width)
