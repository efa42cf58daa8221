"""Beards and moustaches: short hairs on the moved skin, so that they follow the mouth."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from vlmface.synth.appearance import bump, smoothstep
from vlmface.synth.head import head_model
from vlmface.synth.shading import beard_area
from vlmface.synth.v2.layers import BEARD, Layer, Scalp, ribbons, scatter
from vlmface.synth.v2.parameters import Beard

HAIRS = 1100


def area(template: np.ndarray, lips: np.ndarray, beard: Beard) -> np.ndarray:
    """Where (n,) a beard grows, 0..1."""
    x, y, z = np.abs(template[:, 0]), template[:, 1], template[:, 2]
    upper = smoothstep(6.645, 6.68, y) * smoothstep(6.86, 6.81, y + 0.3 * np.clip(x - 0.1, 0, 1))
    upper = upper * smoothstep(0.36, 0.26, x)
    corners = bump(x - 0.30, 0.06) * smoothstep(6.40, 6.50, y) * smoothstep(6.72, 6.62, y)
    chin = smoothstep(0.36, 0.26, x) * smoothstep(6.50, 6.42, y - 0.4 * np.clip(x - 0.12, 0, 1))
    cheeks = smoothstep(0.24, 0.34, x)
    wanted = np.maximum.reduce(
        [
            min(beard.moustache, beard.chin) * corners,
            beard.chin * np.maximum(chin, 0.6 * bump(x, 0.05) * bump(y - 6.46, 0.05)),
            beard.cheeks * cheeks,
            min(beard.cheeks, beard.chin) * smoothstep(6.30, 6.22, y),
        ]
    )
    wanted = np.clip(wanted, 0, 1) * beard_area(template, lips)
    return np.maximum(wanted, beard.moustache * upper * (1 - lips)) * (z > 0.3)


@lru_cache(maxsize=1)
def _lower_face() -> np.ndarray:
    """Triangles (m, 3) of the skin on which beards can grow."""
    model = head_model()
    usable = (model.part == 0) & (model.masks["inside_mouth"] < 0.3) & (model.masks["ears"] < 0.3)
    usable &= (model.template[:, 1] > 5.95) & (model.template[:, 1] < 7.2)
    return model.triangles[usable[model.triangles].all(1)]


def layers(scalp: Scalp) -> list[Layer]:
    """The hairs of a beard; none without one."""
    beard = scalp.face.look.face_hair
    if beard is None:
        return []
    model, triangles = head_model(), _lower_face()
    weights = area(model.template, model.masks["lips"], beard)[triangles].min(1)
    corners = scalp.vertices[triangles]
    weights = weights * np.linalg.norm(
        np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1
    )
    if weights.sum() <= 0:
        return []
    rng = np.random.default_rng([67, scalp.face.look.texture_seed])
    count = max(60, round(HAIRS * beard.density * min(1.0, float(weights.sum() / 0.5) ** 0.5)))
    roots = scatter(rng, triangles, weights, count, (scalp.vertices, scalp.normals, model.template))
    # Down, and apart below the nose; the longer, the more they hang.
    ahead = np.tile(np.array([0, -1.0, 0.05], np.float32), (count, 1))
    upper = (roots.template[:, 1] > 6.62) & (np.abs(roots.template[:, 0]) < 0.34)
    ahead[:, 0] += np.where(upper, 1.6 * np.sign(roots.template[:, 0]), 0.0)
    ahead += rng.normal(0, 0.25, (count, 3))
    ahead += roots.normals * rng.uniform(0.15, 0.5, (count, 1))
    ahead /= np.linalg.norm(ahead, axis=1, keepdims=True)
    length = beard.length * rng.uniform(0.5, 1.3, count) * np.where(upper, 0.7, 1.0)
    way = length[:, None, None] * np.linspace(0, 1, 3)[None, :, None]
    paths = (roots.points + 0.002 * roots.normals)[:, None] + ahead[:, None] * way
    paths[..., 1] -= (way**2)[..., 0] * 1.5
    width = rng.uniform(0.006, 0.015, count) * (1 + 3 * beard.length)
    outward = roots.normals[:, None]
    return [ribbons(paths.astype(np.float32), outward, width, rng.uniform(-1, 1, count), BEARD)]
