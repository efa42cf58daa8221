"""Where the numbers of faces are drawn in a picture: beside each face, not on one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels
Point = tuple[float, float]
GAP = 0.25  # between a badge and its face, in radii
# A badge outside of the picture is not seen, and hides more on its own face than on another badge.
_OUTSIDE, _ON_FACE, _ON_BADGE = 100, 2, 1


def place_badges(faces: Sequence[Box], size: tuple[int, int], radius: float) -> list[Point]:
    """The centre of each face's badge.

    Args:
        faces: Their boxes.
        size: Width and height of the picture in pixels.
        radius: Of a badge, in pixels.

    Returns:
        A point for each face, as near to its upper left corner as there is room. Where there is
        none beside the face, the place that covers least.
    """
    badges: list[Point] = []
    for face in faces:
        places = list(_places(face, radius))
        badges.append(min(places, key=lambda place: _cost(place, faces, badges, size, radius)))
    return badges


def _places(face: Box, radius: float) -> Iterator[Point]:
    """Around the face, then at its corners; the best first."""
    left, top, right, bottom = face
    out, on = radius * (1 + GAP), radius
    yield from ((left - out, top + on), (left + on, top - out))
    yield from ((right + out, top + on), (right - on, top - out))
    yield from ((left - out, bottom - on), (left + on, bottom + out))
    yield from ((right + out, bottom - on), (right - on, bottom + out))
    yield from ((left + on, top + on), (right - on, top + on))
    yield from ((left + on, bottom - on), (right - on, bottom - on))


def _cost(
    place: Point,
    faces: Sequence[Box],
    badges: Sequence[Point],
    size: tuple[int, int],
    radius: float,
) -> float:
    """What a badge at this place covers, in areas of a badge; 0 is best."""
    badge = _around(place, radius)
    area = (2 * radius) ** 2
    outside = area - _common(badge, (0, 0, *size))
    on_faces = sum(_common(badge, face) for face in faces)
    on_badges = sum(_common(badge, _around(other, radius)) for other in badges)
    # Rounded, so that the first of several good places is taken.
    return round((_OUTSIDE * outside + _ON_FACE * on_faces + _ON_BADGE * on_badges) / area, 6)


def _around(point: Point, radius: float) -> Box:
    x, y = point
    return x - radius, y - radius, x + radius, y + radius


def _common(a: Box, b: Box) -> float:
    """The area of two boxes' intersection."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(0.0, width) * max(0.0, height)
