"""What a mesh is put together of: layers of triangles, and ribbons for single hairs and locks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vlmface.synth.head_mesh import CURTAIN, HAIR
from vlmface.synth.v2.parameters import PhotoFace

# Kinds of triangles, in addition to the parts of the model and its hair.
BEARD, FRAME, LOCK = 8, 9, 10
__all__ = ["BEARD", "CURTAIN", "FRAME", "HAIR", "LOCK"]


@dataclass(frozen=True)
class Layer:
    """Points (n, 3), attributes (n, 9) as in `HeadMesh`, triangles (m, 3) of the points, and the
    kind (m,) of each triangle. Of hair, the attributes 6 and 7 are the tone of a lock, -1 to 1, and
    the way along it, 0 to 1."""

    points: np.ndarray
    attributes: np.ndarray
    triangles: np.ndarray
    kind: np.ndarray


@dataclass(frozen=True)
class Scalp:
    """Vertices (n, 3) of the model with an expression, their normals, and whose they are."""

    vertices: np.ndarray
    normals: np.ndarray
    face: PhotoFace


@dataclass(frozen=True)
class Roots:
    """Points (k, 3) on a surface, their normals and their template coordinates."""

    points: np.ndarray
    normals: np.ndarray
    template: np.ndarray


def scatter(
    rng: np.random.Generator,
    triangles: np.ndarray,
    weights: np.ndarray,
    count: int,
    arrays: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> Roots:
    """`count` random points on triangles (m, 3), each drawn by its weight (m,); `arrays` are the
    points, normals and template coordinates of the vertices."""
    total = np.cumsum(weights)
    chosen = triangles[np.searchsorted(total, rng.random(count) * total[-1] * 0.999999)]
    share = rng.dirichlet((1.0, 1.0, 1.0), count).astype(np.float32)[..., None]
    points, normals, template = ((array[chosen] * share).sum(1) for array in arrays)
    normals = normals / (np.linalg.norm(normals, axis=1, keepdims=True) + 1e-9)
    return Roots(points, normals, template)


def ribbons(
    paths: np.ndarray,
    outward: np.ndarray,
    width: np.ndarray,
    tone: np.ndarray,
    kind: int,
) -> Layer:
    """Flat ribbons, narrower towards their ends.

    Args:
        paths: (k, s, 3) the middle lines.
        outward: (k, s, 3) or (k, 1, 3) where their flat sides look.
        width: (k,) at the root, dm.
        tone: (k,) of each, -1 to 1.
        kind: of the triangles.
    """
    count, steps = paths.shape[:2]
    along = np.gradient(paths, axis=1)
    outward = np.broadcast_to(outward, paths.shape)
    across = np.cross(along, outward)
    across /= np.linalg.norm(across, axis=2, keepdims=True) + 1e-9
    share = np.linspace(0, 1, steps, dtype=np.float32)
    taper = (1 - 0.8 * share**2)[None, :, None]
    half = across * (0.5 * width[:, None, None] * taper)
    points = np.stack([paths - half, paths + half], 2).reshape(-1, 3)
    # Normals lean to both sides, so that a ribbon looks round.
    normals = np.stack([outward - 0.7 * across, outward + 0.7 * across], 2).reshape(-1, 3)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True) + 1e-9
    attributes = np.zeros((len(points), 9), np.float32)
    attributes[:, :3] = points
    attributes[:, 3:6] = normals
    attributes[:, 6] = np.repeat(tone, 2 * steps)
    attributes[:, 7] = np.tile(np.repeat(share, 2), count)
    attributes[:, 8] = 1
    corner = (np.arange(count)[:, None] * 2 * steps + 2 * np.arange(steps - 1)).ravel()
    triangles = np.concatenate(
        [
            np.stack([corner, corner + 1, corner + 3], 1),
            np.stack([corner, corner + 3, corner + 2], 1),
        ]
    )
    return Layer(points, attributes, triangles, np.full(len(triangles), kind))
