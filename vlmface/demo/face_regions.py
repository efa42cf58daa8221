"""The outlines of the regions of `facs.REGIONS` in a picture, from the points of a face mesh."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.spatial import ConvexHull, QhullError

Outline = list[tuple[float, float]]

# Region -> (growth, point indices of MediaPipe's mesh) groups; an outline is a group's grown hull.
_GROUPS: dict[str, tuple[tuple[float, tuple[int, ...]], ...]] = {
    "brow": (
        (1.12, (70, 63, 105, 66, 107, 55, 65, 52, 53, 46)),
        (1.12, (300, 293, 334, 296, 336, 285, 295, 282, 283, 276)),
    ),
    "eye": (
        (1.45, (33, 246, 161, 160, 159, 158, 157, 173, 133, 155, 154, 153, 145, 144, 163, 7)),
        (1.45, (263, 466, 388, 387, 386, 385, 384, 398, 362, 382, 381, 380, 374, 373, 390, 249)),
    ),
    "cheek": (
        (1.0, (117, 118, 101, 36, 203, 205, 187, 147, 123, 50)),
        (1.0, (346, 347, 330, 266, 423, 425, 411, 376, 352, 280)),
    ),
    "nose": ((1.06, (168, 193, 417, 122, 351, 129, 358, 98, 327, 2, 64, 294)),),
    "mouth": (
        (
            1.12,
            (
                61,
                185,
                40,
                39,
                37,
                0,
                267,
                269,
                270,
                409,
                291,
                375,
                321,
                405,
                314,
                17,
                84,
                181,
                91,
                146,
            ),
        ),
    ),
    "chin": ((1.0, (200, 201, 421, 194, 418, 208, 428, 171, 396, 148, 377, 152)),),
}
# The jaw is a band along the lower edge of the face, from ear to ear.
_JAW = (132, 58, 172, 136, 150, 149, 176, 148, 152, 377, 400, 378, 379, 365, 397, 288, 361)
_MOUTH_CORNERS = (61, 291)
_BAND = 0.2  # of the way from the edge to the mouth


def outlines(points: np.ndarray) -> dict[str, list[Outline]]:
    """The outlines of a face.

    Args:
        points: Of its mesh, (n, 2) in pixels.

    Returns:
        {region: outlines in pixels}.
    """
    by_region = {
        region: [_grown_hull(points[list(group)], growth) for growth, group in groups]
        for region, groups in _GROUPS.items()
    }
    edge = points[list(_JAW)]
    inner = edge + _BAND * (points[list(_MOUTH_CORNERS)].mean(0) - edge)
    by_region["jaw"] = [_outline(np.concatenate([edge, inner[::-1]]))]
    return by_region


def _grown_hull(points: np.ndarray, growth: float) -> Outline:
    try:
        hull = points[ConvexHull(points).vertices]
    except QhullError:  # a face seen exactly from the side has groups without area
        hull = points
    centre = hull.mean(0)
    return _outline(centre + growth * (hull - centre))


def _outline(points: np.ndarray) -> Outline:
    return [(float(x), float(y)) for x, y in points.round(1)]


def svg_path(outline: Sequence[tuple[float, float]]) -> str:
    """The `d` of a closed SVG path with round corners, which runs through the midpoints of the
    outline's edges."""
    corners = np.array(outline)
    midpoints = (corners + np.roll(corners, -1, axis=0)) / 2
    start = f"M{midpoints[-1][0]:.1f} {midpoints[-1][1]:.1f}"
    curves = [
        f"Q{x:.1f} {y:.1f} {to_x:.1f} {to_y:.1f}"
        for (x, y), (to_x, to_y) in zip(corners, midpoints, strict=True)
    ]
    return " ".join([start, *curves, "Z"])
