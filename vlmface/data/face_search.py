"""The geometry of a search for all faces of a picture: tiles, candidates, and which of them are
the same face."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels
INPUT_SIDE = 128  # pixels of a side of the face detector's input
# Sides of the tiles, as shares of the square root of the picture's area: about 34 tiles, whatever
# the picture's size and shape. Of a tile's side, `overlap` is shared with the next.
TILES = ((0.6, 0.5), (0.3, 0.35))
MIN_TILE = 192  # pixels; faces that are much smaller than a tenth of it show nothing
FACE_SHARE = 0.13  # of a tile's side: narrower faces are often missed
MAX_FACES = 40  # faces that are looked for in one picture
MIN_SCORE = 0.5  # of a candidate, 0 to 1
MAX_IOU, MAX_INSIDE = 0.3, 0.7  # of two boxes; beyond either, they are of one face
READ_MARGIN = 0.75  # of a candidate's side, on each side, is shown to the landmarker
READ_SIDE = 512  # pixels of that crop's longer side at most
# Scales, in sides of the face, at which the detector has to see a face again.
CHECK_SCALES = (2.2, 3.0, 1.7)
# Points of a mesh as the detector names them: right eye, left eye, tip of the nose, mouth.
_KEYPOINTS = ((33, 133), (263, 362), (1,), (13, 14))


@dataclass(frozen=True)
class Candidate:
    """A place that may be a face.

    Attributes:
        box: in pixels of the picture in which it was detected.
        score: of the detector, 0 to 1.
        keypoints: (4, 2) right eye, left eye, tip of the nose and mouth, in the same pixels.
    """

    box: Box
    score: float
    keypoints: np.ndarray

    def moved(self, scale: float, left: float, top: float) -> Candidate:
        """In the pixels of the picture that it was cropped from and reduced by `scale`."""
        offset = np.array([left, top])
        x0, y0, x1, y1 = (np.array(self.box) / scale + np.tile(offset, 2)).tolist()
        return Candidate((x0, y0, x1, y1), self.score, self.keypoints / scale + offset)


DetectCandidates = Callable[[Image.Image], Sequence[Candidate]]


@dataclass(frozen=True)
class FaceSearch:
    """What a search for all faces of a picture found.

    Attributes:
        meshes: the points (n, 2) of each face's mesh in pixels. The first is that of the face that
            a search for one face finds; the others follow by size, the largest first.
        min_width: pixels; narrower faces may have been missed.
        unread: places that look like a face, but in which no mesh was found.
        is_crowded: whether there were more places to look at than `MAX_FACES`.
    """

    meshes: list[np.ndarray]
    min_width: int
    unread: int = 0
    is_crowded: bool = False

    @property
    def boxes(self) -> list[Box]:
        """The boxes of the faces, in the order of `meshes`."""
        return [bounding_box(mesh) for mesh in self.meshes]

    @property
    def note(self) -> str:
        """A sentence about the faces that may have been missed."""
        sentence = f"Faces less than about {self.min_width} pixels wide may have been missed"
        if self.is_crowded:
            sentence += f", and others, because only the {MAX_FACES} likeliest places were read"
        if self.unread:
            places = "1 place" if self.unread == 1 else f"{self.unread} places"
            sentence += (
                f"; {places} that may show a face, turned away or covered, could not be read"
            )
        return f"{sentence}."


def bounding_box(mesh: np.ndarray) -> Box:
    """The box that spans a face's points."""
    (left, top), (right, bottom) = mesh.min(0).tolist(), mesh.max(0).tolist()
    return left, top, right, bottom


def is_same(a: Box, b: Box) -> bool:
    """Whether two boxes are of one face, rather than of two that overlap."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return False
    common, smaller, larger = width * height, *sorted((_area(a), _area(b)))
    return common > MAX_IOU * (smaller + larger - common) or common > MAX_INSIDE * smaller


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def by_size(box: Box) -> tuple[float, float]:
    """A sorting key that puts the largest box first; of two that are equally large the left one."""
    return -_area(box), box[0] + box[2]


# --- tiles ----------------------------------------------------------------------------------------


def tile_sides(size: tuple[int, int]) -> list[tuple[float, float]]:
    """(side in pixels, share that a tile overlaps the next) of each scale, the largest first."""
    mean_side = math.sqrt(size[0] * size[1])
    sides = {max(share * mean_side, MIN_TILE): overlap for share, overlap in TILES}
    return [(side, overlap) for side, overlap in sides.items() if side < max(size)]


def min_width(size: tuple[int, int]) -> int:
    """The width in pixels from which on a search finds most faces of a picture."""
    sides = [side for side, _ in tile_sides(size)] or [float(max(size))]
    return math.ceil(FACE_SHARE * sides[-1])


def find_candidates(image: Image.Image, detect: DetectCandidates) -> list[Candidate]:
    """The places of a picture that may be faces, one each, the likeliest first.

    Args:
        image: RGB. It is reduced once for each scale of tiles, so that time and memory hardly
            depend on its size.
        detect: detects faces in a tile.
    """
    candidates: list[Candidate] = []
    for side, overlap in tile_sides(image.size):
        scale = INPUT_SIDE / side
        small = _reduced(image, scale)
        for left, top in _corners(small.size, overlap):
            right = min(left + INPUT_SIDE, small.width)
            tile = small.crop((left, top, right, min(top + INPUT_SIDE, small.height)))
            candidates += [
                candidate.moved(scale, left / scale, top / scale) for candidate in detect(tile)
            ]
    return _distinct(candidates)


def _reduced(image: Image.Image, scale: float) -> Image.Image:
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)


def _corners(size: tuple[int, int], overlap: float) -> Iterator[tuple[int, int]]:
    """Left and top of the tiles, evenly spread over a picture."""
    for top in _starts(size[1], overlap):
        for left in _starts(size[0], overlap):
            yield left, top


def _starts(length: int, overlap: float) -> list[int]:
    uncovered = max(0, length - INPUT_SIDE)
    steps = math.ceil(uncovered / (INPUT_SIDE * (1 - overlap)))
    return [round(uncovered * step / max(1, steps)) for step in range(steps + 1)]


def _distinct(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Non-maximum suppression: of candidates for one face the one with the highest score."""
    distinct: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda c: -c.score):
        if not any(is_same(candidate.box, other.box) for other in distinct):
            distinct.append(candidate)
    return distinct


# --- crops of single faces ------------------------------------------------------------------------


def crop_around(image: Image.Image, box: Box) -> tuple[Image.Image, float, float, float]:
    """The surroundings of a candidate as the landmarker reads them.

    Returns:
        The crop, by how much it is reduced, and its left and top in pixels of the picture.
    """
    margin = READ_MARGIN * max(box[2] - box[0], box[3] - box[1])
    left, top = max(0, round(box[0] - margin)), max(0, round(box[1] - margin))
    right = min(image.width, round(box[2] + margin))
    bottom = min(image.height, round(box[3] + margin))
    size = max(1, right - left), max(1, bottom - top)
    scale = min(1.0, READ_SIDE / max(size))
    area = (left, top, left + size[0], top + size[1])
    if scale == 1:
        return image.crop(area), scale, left, top
    small = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
    crop = image.resize(small, Image.Resampling.BILINEAR, box=area, reducing_gap=2.0)
    return crop, scale, left, top


def agreement(image: Image.Image, mesh: np.ndarray, detect: DetectCandidates) -> Iterator[float]:
    """How well the detector confirms a face, at several scales: its score, less four times the
    distance, in sides of the face, between its eyes, nose and mouth and those of the mesh. Yields
    numbers up to 1; of faces the largest is 0.65 and more, of other things 0.6 and less."""
    points = np.array([mesh[list(group)].mean(0) for group in _KEYPOINTS])
    for scale in CHECK_SCALES:
        crop, zoom, left, top = _padded_square(image, bounding_box(mesh), scale)
        expected = (points - np.array([left, top])) * zoom
        side = INPUT_SIDE / scale
        distances = (
            (candidate.score, np.abs(candidate.keypoints - expected).mean())
            for candidate in detect(crop)
        )
        yield max((score - 4 * float(pixels) / side for score, pixels in distances), default=0.0)


def strength(image: Image.Image, box: Box, detect: DetectCandidates) -> float:
    """The detector's score for a place, 0 to 1: the lowest of several scales."""
    scores = []
    for scale in CHECK_SCALES:
        crop, zoom, left, top = _padded_square(image, box, scale)
        candidates = (candidate.moved(zoom, left, top) for candidate in detect(crop))
        scores.append(
            max(
                (candidate.score for candidate in candidates if is_same(candidate.box, box)),
                default=0.0,
            )
        )
    return min(scores)


def _padded_square(
    image: Image.Image, box: Box, scale: float
) -> tuple[Image.Image, float, float, float]:
    """The square of `scale` sides of a box around it as the detector's input, edge pixels repeated
    outside of the picture; its zoom, left and top as of `crop_around`."""
    side = max(2, round(scale * max(box[2] - box[0], box[3] - box[1])))
    left, top = round((box[0] + box[2] - side) / 2), round((box[1] + box[3] - side) / 2)
    zoom = INPUT_SIDE / side
    x0, x1, before_x, width = _inside(left, side, image.width)
    y0, y1, before_y, height = _inside(top, side, image.height)
    small = image.resize((width, height), Image.Resampling.BILINEAR, (x0, y0, x1, y1), 2.0)
    after_x, after_y = INPUT_SIDE - before_x - width, INPUT_SIDE - before_y - height
    padding = ((before_y, after_y), (before_x, after_x), (0, 0))
    return Image.fromarray(np.pad(np.asarray(small), padding, mode="edge")), zoom, left, top


def _inside(start: int, side: int, length: int) -> tuple[int, int, int, int]:
    """Along one axis: start and end of the part of a square within the picture, at least a pixel;
    the pixels of the detector's input before that part, and those of the part."""
    first = min(max(0, start), length - 1)
    end = max(first + 1, min(length, start + side))
    zoom = INPUT_SIDE / side
    before = min(max(0, round((first - start) * zoom)), INPUT_SIDE - 1)
    return first, end, before, max(1, min(INPUT_SIDE - before, round((end - first) * zoom)))
