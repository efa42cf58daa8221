"""What MediaPipe's face landmarker measures of one face: points, blendshapes.

The face is cut out as a square of fixed size first, so that measurements of one face do not depend
on the size of its picture or on how it was found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from vlmface.data import detect, landmarker_file
from vlmface.errors import UserError
from vlmface.utils import image_conversion

if TYPE_CHECKING:
    from vlmface.data.detect import Box

POINTS = 478  # of a mesh, with those of the irises
BLENDSHAPES = 52  # of which the first is not used
SIZE = 320  # pixels a side of the square in which a face is measured
MARGIN = 0.35  # around the box of the mesh on each side, as a share of its longer side
PATCH = 80  # pixels a side of the upright face in grey
# Outer and inner corners of the eyes, and the base of the nose: mesh points and their places.
_ANCHORS = (33, 133, 362, 263, 2)
_ANCHOR_PLACES = ((0.2, 0.34), (0.395, 0.345), (0.605, 0.345), (0.8, 0.34), (0.5, 0.63))
VERSION = 2  # raise whenever the same picture would be measured differently


@dataclass(frozen=True)
class Measurement:
    """A face as the landmarker sees it.

    Attributes:
        points: float32 (478, 3): x to the right, y down, z away from the camera, all in shares of
            the side of the square that was measured.
        blendshapes: float32 (52,), 0..1, in the landmarker's order.
        patch: uint8 (PATCH, PATCH), the face in grey, turned upright: the outer corners of the
            eyes and the base of the nose are always at about the same place.
    """

    points: np.ndarray
    blendshapes: np.ndarray
    patch: np.ndarray


class Landmarker:
    """Measures faces, one at a time; for one thread. Use it in a `with` block.

    Raises:
        UserError: the package is not installed, or the weights are not the known file.
    """

    def __init__(self) -> None:
        try:
            from mediapipe.tasks.python import BaseOptions, vision
        except ImportError as error:
            raise UserError(
                f"to measure action units, pip install 'vlmface[detect]' ({error})"
            ) from error
        options = vision.FaceLandmarkerOptions(
            base_options=BaseOptions(model_asset_buffer=landmarker_file.read()),
            num_faces=1,
            output_face_blendshapes=True,
        )
        with detect.quiet():
            self._landmarker: Any = vision.FaceLandmarker.create_from_options(options)

    def __enter__(self) -> Landmarker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the landmarker."""
        with detect.quiet():
            self._landmarker.close()

    def measure(self, square: np.ndarray) -> Measurement | None:
        """Measure the face of a square picture.

        Args:
            square: uint8 (SIZE, SIZE, 3), RGB, from `face_square`.

        Returns:
            None if no face is found, or if its points are not finite.
        """
        import mediapipe

        image = mediapipe.Image(
            image_format=mediapipe.ImageFormat.SRGB, data=np.ascontiguousarray(square)
        )
        result = self._landmarker.detect(image)
        if not result.face_landmarks or not result.face_blendshapes:
            return None
        points = np.array([(p.x, p.y, p.z) for p in result.face_landmarks[0]], np.float32)
        blendshapes = np.array([c.score for c in result.face_blendshapes[0]], np.float32)
        if points.shape != (POINTS, 3) or blendshapes.shape != (BLENDSHAPES,):
            return None
        if not (np.isfinite(points).all() and np.isfinite(blendshapes).all()):
            return None
        return Measurement(points, blendshapes, _patch(square, points))


def _patch(square: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The patch of `Measurement`."""
    source = points[list(_ANCHORS), :2].astype(np.float64) * SIZE
    target = np.array(_ANCHOR_PLACES) * PATCH
    # The similarity from the patch to the square, by least squares over complex numbers.
    z, w = (array - array.mean(0) for array in (target, source))
    a, b = z[:, 0] + 1j * z[:, 1], w[:, 0] + 1j * w[:, 1]
    turn = (a.conj() @ b) / max(float((abs(a) ** 2).sum()), 1e-9)
    x, y = target.mean(0)
    shift = complex(*source.mean(0)) - turn * complex(x, y)
    coefficients = (turn.real, -turn.imag, shift.real, turn.imag, turn.real, shift.imag)
    image = Image.fromarray(square).convert("L")
    image = image.transform(
        (PATCH, PATCH), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR
    )
    return np.asarray(image)


def face_square(image: Image.Image, box: Box | Sequence[float]) -> np.ndarray:
    """The square around a face, `SIZE` pixels a side; the picture's edge pixels continue outside.

    Args:
        image: of any mode.
        box: x0, y0, x1, y1 in pixels, as of `detect.bounding_box`.

    Returns:
        uint8 (SIZE, SIZE, 3), RGB.
    """
    image = image_conversion.as_rgb(image)
    left, top, side = _square_around(box)
    inside = (
        max(0, left),
        max(0, top),
        min(image.width, left + side),
        min(image.height, top + side),
    )
    pixels = np.asarray(image.crop(inside))
    outside = (
        (inside[1] - top, top + side - inside[3]),
        (inside[0] - left, left + side - inside[2]),
        (0, 0),
    )
    padded = Image.fromarray(np.pad(pixels, outside, mode="edge"))
    how = Image.Resampling.BOX if side > 2 * SIZE else Image.Resampling.BICUBIC
    return np.asarray(padded.resize((SIZE, SIZE), how))


def mesh_box(measured: Measurement, box: Box | Sequence[float]) -> Box:
    """The box of a face's points in pixels of its picture.

    Args:
        measured: From the square that `face_square` cut out.
        box: That it was cut out around.
    """
    left, top, side = _square_around(box)
    return detect.bounding_box(measured.points[:, :2].astype(np.float64) * side + [left, top])


def _square_around(box: Box | Sequence[float]) -> tuple[int, int, int]:
    """Left, top and side of the square around a box in pixels."""
    x0, y0, x1, y1 = box
    side = max(8, round(max(x1 - x0, y1 - y0) * (1 + 2 * MARGIN)))
    return round((x0 + x1 - side) / 2), round((y0 + y1 - side) / 2), side
