"""Which action units can be seen in a picture, and on which side.

The surface that an AU moves on a side is the skin whose displacement is at least LEAST_MOVED of its
largest, each vertex weighted by its displacement and its area, as far as a camera in front of a
face at rest sees it. A vertex is visible if it lies in the picture, a ray from it reaches the
camera, and it is not seen at a grazing angle. An AU is visible on a side if at least VISIBLE of
that surface is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from embreex import mesh_construction, rtcore_scene

from vlmface import facs
from vlmface.schema import AULabel
from vlmface.synth.expressions import Expression, intensity
from vlmface.synth.head import Identity, head_model, unit_weights
from vlmface.synth.head_mesh import vertex_normals
from vlmface.synth.render import FACE_CENTRE

VISIBLE = 0.5  # of the moved surface
LEAST_MOVED = 0.4
GRAZING = 0.3  # cosine between the normal and the ray to the camera, at least
OFF_SKIN = 0.012  # dm, where rays start, so that they do not meet the skin that they leave
Sides = tuple[bool, bool]  # left, right


@dataclass(frozen=True)
class MovedSurface:
    """`vertices` (k,) that some AU moves, and `weights` (AUs, 2, k): of each AU of SYNTH_V2_AUS on
    the left and on the right; they sum to 1."""

    vertices: np.ndarray
    weights: np.ndarray


@lru_cache(maxsize=1)
def moved_surface() -> MovedSurface:
    """The surface of each AU, of an average person."""
    model = head_model()
    rest = model.neutral(Identity(30, 0.5, 0.5, (1 / 3, 1 / 3, 1 / 3)))
    corners = rest[model.triangles]
    area = np.linalg.norm(
        np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1
    )
    area = np.bincount(model.triangles.T.ravel(), np.tile(area, 3), len(rest))
    scene = rtcore_scene.EmbreeScene()
    mesh_construction.TriangleMesh(scene, rest, model.triangles.astype(np.int32))
    outside = (model.part == 0) & (model.masks["inside_mouth"] < 0.5)
    camera = np.array([0, FACE_CENTRE[1], 8], np.float32)
    outside &= _reaches(scene, rest, vertex_normals(rest), camera)
    x = model.template[:, 0]
    weights = np.zeros((len(facs.SYNTH_V2_AUS), 2, len(rest)))
    for row, au in enumerate(facs.SYNTH_V2_AUS):
        units = unit_weights({au: 1.0})
        if au == 25:  # lips part on the lips, whether the chin is in the picture or not
            del units["jawOpen"]
        moved = np.linalg.norm(model.move(rest, units) - rest, axis=1)
        moved[moved < LEAST_MOVED * moved[outside].max()] = 0
        for side, on_side in enumerate((x > 0, x < 0)):
            share = moved * area * (outside & on_side)
            weights[row, side] = share / share.sum()
    vertices = np.flatnonzero(weights.any((0, 1)))
    return MovedSurface(vertices, weights[:, :, vertices].astype(np.float32))


def visible_shares(
    scene: rtcore_scene.EmbreeScene,
    vertices: np.ndarray,
    normals: np.ndarray,
    camera: np.ndarray,
    inside: np.ndarray,
) -> np.ndarray:
    """The share (AUs, 2) of the surface of each AU of SYNTH_V2_AUS that is visible, left and right.

    Args:
        scene: the head with hair and glasses.
        vertices: (n, 3) of the model, in the scene.
        normals: (n, 3) of them.
        camera: (3,) where it is.
        inside: (n,) whether a vertex is within the picture.
    """
    surface = moved_surface()
    points, normals = vertices[surface.vertices], normals[surface.vertices]
    visible = _reaches(scene, points, normals, camera) & inside[surface.vertices]
    return surface.weights @ visible.astype(np.float32)


def _reaches(
    scene: rtcore_scene.EmbreeScene, points: np.ndarray, normals: np.ndarray, camera: np.ndarray
) -> np.ndarray:
    """Whether points (k, 3) with their normals are seen from the camera, not grazing: (k,) bool."""
    towards = camera - points
    towards = towards / np.linalg.norm(towards, axis=1, keepdims=True)
    starts = points + OFF_SKIN * (normals + towards)
    blocked = scene.run(starts.astype(np.float32), towards.astype(np.float32), query="OCCLUDED")
    return ((normals * towards).sum(1) > GRAZING) & (blocked == -1)


def visible_sides(shares: np.ndarray) -> dict[int, Sides]:
    """AU -> whether its left and its right can be seen, by `visible_shares`."""
    return {
        au: (bool(row[0] >= VISIBLE), bool(row[1] >= VISIBLE))
        for au, row in zip(facs.SYNTH_V2_AUS, shares, strict=True)
    }


def annotate(expression: Expression, visible: Mapping[int, Sides]) -> list[AULabel]:
    """The labels of the AUs that can be seen; the others are not annotated.

    An AU needs one visible side. Its intensity is that of the stronger visible side. One that acts
    on the hidden side alone is not annotated, since it is neither visible nor absent. A wink (46)
    needs both eyes; with one eye that is shut, it cannot be told from closed eyes (43).
    """
    labels = []
    for au in facs.SYNTH_V2_AUS:
        sides = visible[au]
        if not any(sides) or (au == 46 and not all(sides)):
            continue
        if au == 43 and 46 in expression.aus and _shut(expression, sides):
            continue
        grade = _grade(expression, au, sides)
        if grade is not None:
            labels.append(AULabel(au, grade, grade > 0))
    return labels


def _shut(expression: Expression, sides: Sides) -> bool:
    """Whether all that is seen of a wink is the eye that is shut."""
    strengths = (expression.left[46], expression.right[46])
    return not all(sides) and strengths[0 if sides[0] else 1] > 0


def _grade(expression: Expression, au: int, sides: Sides) -> float | None:
    """The intensity of an AU by its visible sides, 0 if it is absent; None if it cannot be told."""
    if au not in expression.aus:
        return 0.0
    if all(sides):
        return expression.aus[au]
    seen = expression.left[au] if sides[0] else expression.right[au]
    grade = round(intensity(seen))
    return float(min(grade, 5)) if grade >= 1 else None


def sides_of(expression: Expression, visible: Mapping[int, Sides]) -> dict[str, list[float | None]]:
    """AU -> its intensity 0..5 on the left and on the right, None where it cannot be seen, of the
    AUs that are present."""
    return {
        str(au): [
            round(intensity(side[au]), 1) if seen else None
            for side, seen in zip((expression.left, expression.right), visible[au], strict=True)
        ]
        for au in expression.aus
    }
