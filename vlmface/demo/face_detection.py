"""The faces of a picture, with the regions that action units belong to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vlmface.data import detect
from vlmface.demo import face_regions
from vlmface.errors import UserError

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Face:
    """`box` in pixels; `regions` {region of facs.REGIONS: outlines in pixels}."""

    box: detect.Box
    regions: dict[str, list[face_regions.Outline]] = field(default_factory=dict)


class FaceFinder:
    """Detects faces if the detector is installed; otherwise `missing` is the reason and no face is
    found."""

    def __init__(self) -> None:
        self.missing: str | None = None
        self._detector: detect.Detector | None = None
        try:
            self._detector = detect.Detector()
        except UserError as error:
            self.missing = str(error)

    def find(self, image: Image.Image) -> list[Face]:
        """The faces of an RGB picture, from left to right."""
        if self._detector is None:
            return []
        meshes = self._detector.meshes(image)
        faces = [Face(detect.bounding_box(mesh), face_regions.outlines(mesh)) for mesh in meshes]
        return sorted(faces, key=lambda face: face.box[0] + face.box[2])

    def close(self) -> None:
        """Release the detector."""
        if self._detector is not None:
            self._detector.__exit__(None, None, None)
            self._detector = None


def largest_face(faces: list[Face]) -> int | None:
    """The index of the largest face, None if there is none."""
    if not faces:
        return None

    def area(index: int) -> float:
        left, top, right, bottom = faces[index].box
        return (right - left) * (bottom - top)

    return max(range(len(faces)), key=area)
