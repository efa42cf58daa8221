"""Glasses: frames as tubes in the scene, and clear lenses that tint and reflect."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from vlmface.synth.head import LEFT_EYE, RIGHT_EYE, head_model
from vlmface.synth.v2.layers import FRAME, Layer, Scalp
from vlmface.synth.v2.parameters import Glasses

AROUND = 26  # points of a rim
WRAP = 0.20  # how far a lens bends back at its outer end, dm for dm squared
SIDES = 4  # of a tube


def layers(scalp: Scalp) -> list[Layer]:
    """The frame; none without glasses."""
    glasses = scalp.face.look.glasses
    if glasses is None:
        return []
    fit = Fit(scalp, glasses)
    radius = max(glasses.thickness, 0.007)
    paths: list[tuple[np.ndarray, bool]] = []
    if glasses.thickness > 0:
        paths += [(fit.rim(side), True) for side in (1, -1)]
    paths.append((fit.bridge(), False))
    paths += [(fit.temple(side), False) for side in (1, -1)]
    return [_tube(path, radius, closed=closed) for path, closed in paths]


class Fit:
    """Where glasses sit on a face: in front of the skin, on the bridge of the nose."""

    def __init__(self, scalp: Scalp, glasses: Glasses) -> None:
        model, self.glasses = head_model(), glasses
        left = scalp.vertices[model.part == LEFT_EYE].mean(0)
        right = scalp.vertices[model.part == RIGHT_EYE].mean(0)
        self.middle = (left + right) / 2
        self.apart = float(left[0] - right[0]) / 2
        self.half_width = min(glasses.half_width, self.apart - 0.055)
        self.centre_x = self.apart * 1.02 + 0.01
        self.y = float(self.middle[1]) - 0.02 - glasses.slip
        x, y, z = scalp.vertices[upper_face()].T
        x = np.abs(x - self.middle[0])
        reach = (np.abs(x - self.centre_x) < self.half_width + 0.03) & (
            np.abs(y - self.y) < glasses.half_height + 0.03
        )
        flat = z + WRAP * np.square(x)
        self.z = float(flat[reach].max()) + 0.5 * glasses.thickness + 0.025
        bridge = (x < 0.05) & (np.abs(y - self.y - 0.4 * glasses.half_height) < 0.06)
        self.bridge_z = max(self.z, float(z[bridge].max()) + glasses.thickness + 0.012)
        side = np.flatnonzero(_temples())
        self.wide = float(np.abs(scalp.vertices[side, 0]).max()) + 0.015

    def place(self, side: int, across: np.ndarray, up: np.ndarray) -> np.ndarray:
        """Points (n, 3) on the lens of a side (1 left, -1 right), from its centre outwards."""
        x = self.centre_x + across
        return np.stack(
            [self.middle[0] + side * x, self.y + up, self.z - WRAP * np.square(x)], -1
        ).astype(np.float32)

    def outline(self, angle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(across, up) of the outline of a lens."""
        glasses = self.glasses
        power = 2 / glasses.roundness
        across = self.half_width * np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** power
        up = glasses.half_height * np.sign(np.sin(angle)) * np.abs(np.sin(angle)) ** power
        up = np.where(up < 0, up * (1 + glasses.droop * across / self.half_width * 0.6), up)
        return across, up

    def rim(self, side: int) -> np.ndarray:
        """The line (AROUND, 3) of a rim."""
        angle = np.linspace(0, 2 * np.pi, AROUND, endpoint=False)
        return self.place(side, *self.outline(angle))

    def bridge(self) -> np.ndarray:
        """The line (5, 3) from one lens to the other."""
        inner = self.centre_x - self.half_width * 0.97
        up = 0.35 * self.glasses.half_height
        share = np.linspace(-1, 1, 5)
        start = self.z - WRAP * inner**2
        z = start + (self.bridge_z - start) * (1 - share**2)
        y = self.y + up + 0.03 * (1 - share**2)
        return np.stack([self.middle[0] + share * inner, y, z], -1).astype(np.float32)

    def temple(self, side: int) -> np.ndarray:
        """The line (5, 3) from a lens to the ear."""
        up = np.array([0.45 * self.glasses.half_height])
        hinge = self.place(side, np.array([self.half_width]), up)[0]
        corner = np.array([side * self.wide + self.middle[0], hinge[1] + 0.01, hinge[2] - 0.12])
        ear = np.array([side * self.wide + self.middle[0], self.middle[1] + 0.06, 0.42])
        return np.stack(
            [hinge, (hinge + corner) / 2 + [side * 0.01, 0, 0.02], corner, (corner + ear) / 2, ear]
        ).astype(np.float32)

    def covers(self, points: np.ndarray) -> np.ndarray:
        """Whether points (n, 2), x and y in the head's frame, lie within a lens: (n,) bool."""
        x = np.abs(points[:, 0] - self.middle[0]) - self.centre_x
        glasses = self.glasses
        up = points[:, 1] - self.y
        up = np.where(up < 0, up / (1 + glasses.droop * x / self.half_width * 0.6), up)
        power = glasses.roundness
        inside = np.abs(x / self.half_width) ** power + np.abs(up / glasses.half_height) ** power
        return inside < 1


@lru_cache(maxsize=1)
def upper_face() -> np.ndarray:
    """Numbers of the vertices from the cheeks to the brows."""
    model = head_model()
    x, y, z = model.template.T
    part = (model.part == 0) & (z > 0.7) & (y > 6.7) & (y < 7.75) & (np.abs(x) < 0.75)
    return np.flatnonzero(part & (model.masks["inside_mouth"] < 0.5))


@lru_cache(maxsize=1)
def _temples() -> np.ndarray:
    """Whether a vertex (n,) is at the side of the head where temples pass."""
    model = head_model()
    _, y, z = model.template.T
    level = (y > 7.22) & (y < 7.5) & (z > 0.45) & (z < 1.1)
    return level & (model.part == 0) & (model.masks["ears"] < 0.2)


def _tube(path: np.ndarray, radius: float, *, closed: bool) -> Layer:
    """A tube of SIDES sides along a path (n, 3)."""
    ahead = np.roll(path, -1, 0) - np.roll(path, 1, 0) if closed else np.gradient(path, axis=0)
    ahead /= np.linalg.norm(ahead, axis=1, keepdims=True) + 1e-9
    outward = np.cross(ahead, np.array([0.05, 0.1, 1.0]))
    outward /= np.linalg.norm(outward, axis=1, keepdims=True) + 1e-9
    other = np.cross(ahead, outward)
    angle = np.arange(SIDES) * 2 * np.pi / SIDES + np.pi / SIDES
    normals = (
        outward[:, None] * np.cos(angle)[None, :, None]
        + other[:, None] * np.sin(angle)[None, :, None]
    )
    points = (path[:, None] + radius * normals).reshape(-1, 3)
    rings = len(path)
    ring, corner = np.meshgrid(
        np.arange(rings if closed else rings - 1), np.arange(SIDES), indexing="ij"
    )
    following, beside = (ring + 1) % rings, (corner + 1) % SIDES
    a, b = ring * SIDES + corner, ring * SIDES + beside
    c, d = following * SIDES + beside, following * SIDES + corner
    triangles = np.concatenate(
        [np.stack([a, b, c], -1).reshape(-1, 3), np.stack([a, c, d], -1).reshape(-1, 3)]
    )
    attributes = np.zeros((len(points), 9), np.float32)
    attributes[:, :3], attributes[:, 3:6] = points, normals.reshape(-1, 3)
    attributes[:, 8] = 1
    return Layer(points, attributes, triangles, np.full(len(triangles), FRAME))
