"""The geometry of rendered faces, used to pretrain a vision tower.

It contains neither action units nor emotions: only the places of points of the skin in the picture,
how far each has moved from its place at rest, how the head is turned, and what part of the face a
patch shows.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from vlmface.synth.face_parameters import View
from vlmface.synth.head import head_model
from vlmface.synth.render import Render
from vlmface.synth.v2.layers import FRAME

PART_CLASSES = 5  # background, skin, eyes, hair, teeth and tongue


def _spread(candidates: np.ndarray, count: int) -> np.ndarray:
    """`count` of the candidate vertices, far from one another on the template."""
    points = head_model().template[candidates]
    indices = [int(np.abs(points[:, 0]).argmin())]
    distance = np.linalg.norm(points - points[indices[0]], axis=1)
    while len(indices) < min(count, len(candidates)):
        indices.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(points - points[indices[-1]], axis=1))
    return candidates[indices]


@lru_cache(maxsize=1)
def landmark_vertices() -> tuple[np.ndarray, np.ndarray]:
    """(vertex numbers (k,), mirror (k,)): skin points of the face, dense at brows, lids and lips.

    `mirror[i]` is the landmark on the other side of the face.
    """
    model = head_model()
    x, y, z = model.template.T
    left = (
        (model.part == 0)
        & (model.masks["inside_mouth"] < 0.5)
        & (x > 0.012)
        & (z > 0.85)
        & (y > 6.15)
    )
    lips = left & (model.masks["lips"] > 0.5)
    lids = left & (np.hypot(x - 0.308, y - 7.284) < 0.19)
    brows = left & (y > 7.38) & (y < 7.62)
    elsewhere = left & ~lips & ~lids & ~brows & (y < 8.0)
    indices = np.concatenate(
        [
            _spread(np.flatnonzero(region), n)
            for region, n in ((lips, 18), (lids, 16), (brows, 14), (elsewhere, 32))
        ]
    )
    others = np.flatnonzero((model.part == 0) & (model.masks["inside_mouth"] < 0.5) & (x < -0.012))
    mirror_images = model.template[indices] * np.array([-1, 1, 1], np.float32)
    mirrored = others[
        np.linalg.norm(model.template[others][None] - mirror_images[:, None], axis=2).argmin(1)
    ]
    k = len(indices)
    return np.concatenate([indices, mirrored]), np.r_[k : 2 * k, 0:k]


def known_geometry(rendering: Render, view: View, grid: int) -> dict[str, np.ndarray]:
    """What is known of a rendered face.

    image (size, size, 3) uint8; points (k, 2) positions of the landmarks in -1..1; shift (k, 3)
    their displacement from the face at rest, in dm, in the head's own frame; pose (5,) yaw, pitch,
    roll, gaze in units of 10 degrees; parts (grid, grid, PART_CLASSES) share of each part in each
    patch.
    """
    size = len(rendering.image)
    vertices, _ = landmark_vertices()
    part = np.full(rendering.part.shape, 1)
    part[rendering.part == -1] = 0
    part[(rendering.part == 1) | (rendering.part == 2)] = 2
    part[rendering.part >= 6] = 3
    part[rendering.part == FRAME] = 1
    part[(rendering.part >= 3) & (rendering.part <= 5)] = 4
    shares = np.eye(PART_CLASSES, dtype=np.float32)[part]
    cell = size // grid
    shares = shares.reshape(grid, cell, grid, cell, PART_CLASSES).mean((1, 3))
    return {
        "image": rendering.image,
        "points": (rendering.pixels[vertices] / size * 2 - 1).astype(np.float32),
        "shift": (rendering.moved - rendering.rest_pose)[vertices].astype(np.float32),
        "pose": np.array([view.yaw, view.pitch, view.roll, *view.gaze], np.float32) / 10,
        "parts": shares,
    }
