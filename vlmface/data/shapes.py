"""Pictures of a face's shape, drawn from the points of its mesh: the lines of its landmarks, or its
parts, each in one colour. After the streams of landmarks and parsed faces of FineCLIPER
(Chen et al. 2024, arXiv:2407.02157), which takes them from other models.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageChops, ImageDraw

VERSION = 1  # raise whenever the same points would give other pixels
Colour = tuple[int, int, int]

LINE: Colour = (255, 255, 255)
# Parts in the order in which they are painted, later ones over earlier ones, by MediaPipe's names
# of their lines.
PARTS: dict[str, Colour] = {
    "FACE_OVAL": (120, 90, 70),
    "LEFT_EYEBROW": (255, 170, 0),
    "RIGHT_EYEBROW": (255, 170, 0),
    "NOSE": (90, 200, 90),
    "LEFT_EYE": (255, 255, 255),
    "RIGHT_EYE": (255, 255, 255),
    "LIPS": (230, 40, 80),
}
IRIS: Colour = (40, 90, 255)
MOUTH: Colour = (70, 0, 90)  # what is between the lips
_FINER = 4  # times as large as drawn first, so that edges come out smooth
_THIN = 72  # a line's share of the side is one over this


def draw_landmarks(points: np.ndarray, size: int) -> Image.Image:
    """The lines of brows, eyes, irises, nose, lips and the face's edge, white on black, `size`
    pixels a side. `points` (478, 2): MediaPipe's mesh, in shares of the side."""
    picture, scaled = _canvas(points, size)
    canvas = ImageDraw.Draw(picture)
    width = max(_FINER, picture.width // _THIN)
    for part in PARTS:
        for edge in _edges(part):
            canvas.line([scaled[i] for i in edge], fill=LINE, width=width)
    for side in ("LEFT", "RIGHT"):
        canvas.ellipse(_iris(scaled, side), outline=LINE, width=width)
    return _shrunk(picture, size)


def draw_parsing(points: np.ndarray, size: int) -> Image.Image:
    """The parts of PARTS and the mouth, each filled with its colour, on black. `points` as of
    `landmarks`."""
    picture, scaled = _canvas(points, size)
    canvas = ImageDraw.Draw(picture)
    for part, colour in PARTS.items():
        lines = _lines(part)
        if part.endswith("EYEBROW"):  # its upper and its lower edge
            lines = [_joined(lines, points)]
        elif part == "NOSE":
            lines = [_hull(points, lines)]
        elif part == "LIPS":  # their outer edge, then their inner one
            lines = sorted(lines, key=lambda line: -np.ptp(points[line], axis=0).prod())
        for line, fill in zip(lines, (colour, MOUTH), strict=False):
            canvas.polygon([scaled[i] for i in line], fill=fill)
    for side in ("LEFT", "RIGHT"):  # clipped by the lids
        eye, iris = Image.new("L", picture.size), Image.new("L", picture.size)
        (line,) = _lines(f"{side}_EYE")
        ImageDraw.Draw(eye).polygon([scaled[i] for i in line], fill=255)
        ImageDraw.Draw(iris).ellipse(_iris(scaled, side), fill=255)
        picture.paste(IRIS, mask=ImageChops.darker(eye, iris))
    return _shrunk(picture, size)


def _canvas(points: np.ndarray, size: int) -> tuple[Image.Image, list[tuple[float, float]]]:
    side = size * _FINER
    scaled = [(float(x), float(y)) for x, y in points * side]
    return Image.new("RGB", (side, side)), scaled


def _iris(scaled: Sequence[tuple[float, float]], side: str) -> tuple[float, float, float, float]:
    """The box of an iris, as a circle."""
    rim = np.array([scaled[i] for (i, _) in _edges(f"{side}_IRIS")])
    middle = rim.mean(0)
    radius = float(np.linalg.norm(rim - middle, axis=1).mean())
    x, y = middle.tolist()
    return x - radius, y - radius, x + radius, y + radius


def _shrunk(picture: Image.Image, size: int) -> Image.Image:
    return picture.resize((size, size), Image.Resampling.BOX)


@functools.cache
def _edges(part: str) -> tuple[tuple[int, int], ...]:
    from mediapipe.tasks.python.vision import FaceLandmarksConnections

    lines = getattr(FaceLandmarksConnections, f"FACE_LANDMARKS_{part}")
    return tuple((line.start, line.end) for line in lines)


@functools.cache
def _lines(part: str) -> list[list[int]]:
    """The lines of a part, each as its points in their order."""
    return chain_edges(_edges(part))


def chain_edges(edges: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Lines and rings, each as its points in their order, of edges of which no point has more than
    two. An open line starts at one of its ends."""
    neighbours: defaultdict[int, list[int]] = defaultdict(list)
    for a, b in edges:
        neighbours[a].append(b)
        neighbours[b].append(a)
    left = dict.fromkeys(sorted(neighbours, key=lambda point: len(neighbours[point])))
    chains = []
    while left:
        line = [next(iter(left))]
        while line[-1] in left:
            del left[line[-1]]
            line += [point for point in neighbours[line[-1]] if point in left][:1]
        chains.append(line)
    return chains


def _joined(lines: Sequence[Sequence[int]], points: np.ndarray) -> list[int]:
    """Two open lines as one ring."""
    first, second = lines
    near = np.linalg.norm(points[list(second)] - points[first[-1]], axis=1)
    return [*first, *(second if near[0] < near[-1] else second[::-1])]


def _hull(points: np.ndarray, lines: Sequence[Sequence[int]]) -> list[int]:
    from scipy.spatial import ConvexHull, QhullError

    every = sorted({point for line in lines for point in line})
    try:
        return [every[i] for i in ConvexHull(points[every]).vertices]
    except QhullError:  # a face seen exactly from the side
        return every
