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


@dataclass(frozen=True)
class FoundFaces:
    """The faces of a picture.

    Attributes:
        faces: From left to right.
        selected: The index of the face that the model is asked about first; None without faces.
        note: Which faces may have been missed; None if there is no detector.
    """

    faces: list[Face] = field(default_factory=list)
    selected: int | None = None
    note: str | None = None

    @property
    def selected_face(self) -> Face | None:
        """The face that the model is asked about first."""
        return None if self.selected is None else self.faces[self.selected]


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

    def find(self, image: Image.Image) -> FoundFaces:
        """All faces of an RGB picture."""
        return self._find(image, quick=False)

    def find_quickly(self, image: Image.Image) -> FoundFaces:
        """The faces of a frame of a clip; small ones are only searched for if there is no other."""
        return self._find(image, quick=True)

    def _find(self, image: Image.Image, *, quick: bool) -> FoundFaces:
        if self._detector is None:
            return FoundFaces()
        result = self._detector.search(image, quick=quick)
        faces = [
            Face(box, face_regions.outlines(mesh))
            for box, mesh in zip(result.boxes, result.meshes, strict=True)
        ]
        from_left = sorted(faces, key=lambda face: face.box[0] + face.box[2])
        return FoundFaces(from_left, from_left.index(faces[0]) if faces else None, result.note)

    def close(self) -> None:
        """Release the detector."""
        if self._detector is not None:
            self._detector.close()
            self._detector = None
