"""Simple solids as triangle meshes, and their colours and textures, to build scenes of.

Coordinates are decimetres, x to the left of the person (the right of the picture), y up, z towards
the camera. A mesh carries texture coordinates, (0, 0) at the top left of a texture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from vlmface.synth.appearance import Colour

Vector = Sequence[float] | np.ndarray  # of three numbers


@dataclass(frozen=True)
class Mesh:
    """`points` (n, 3), unit `normals` (n, 3), `triangles` (m, 3), `uv` (n, 2) in 0..1."""

    points: np.ndarray
    normals: np.ndarray
    triangles: np.ndarray
    uv: np.ndarray

    def moved(self, turn: np.ndarray | None, by: Vector = (0, 0, 0)) -> Mesh:
        """Turned by a rotation matrix (3, 3), then shifted."""
        points, normals = self.points, self.normals
        if turn is not None:
            points, normals = points @ turn.T, normals @ turn.T
        return Mesh(points + np.asarray(by, np.float32), normals, self.triangles, self.uv)


@dataclass(frozen=True)
class Part:
    """A mesh of one material: an sRGB colour 0..1 or a texture (h, w, 3) uint8; `gloss` 0..1."""

    mesh: Mesh
    cover: Colour | np.ndarray
    gloss: float = 0.04


def moved(parts: Sequence[Part], turn: np.ndarray | None, by: Vector = (0, 0, 0)) -> list[Part]:
    """All parts, turned and shifted together."""
    return [Part(part.mesh.moved(turn, by), part.cover, part.gloss) for part in parts]


def _grid(rows: int, columns: int) -> np.ndarray:
    """Triangles (m, 3) between rows x columns points."""
    corner = (np.arange(rows - 1)[:, None] * columns + np.arange(columns - 1)).ravel()
    squares = np.stack([corner, corner + columns, corner + columns + 1, corner + 1], 1)
    return np.concatenate([squares[:, [0, 1, 2]], squares[:, [0, 2, 3]]])


def surface(points: np.ndarray) -> Mesh:
    """The surface through points (rows, columns, 3); its front is where rows run down and columns
    to the right. Normals follow from the neighbours."""
    rows, columns = points.shape[:2]
    down, right = np.gradient(points, axis=0), np.gradient(points, axis=1)
    normals = np.cross(down, right).reshape(-1, 3)
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    normals = np.where(length > 1e-9, normals / np.maximum(length, 1e-9), [0.0, 1.0, 0.0])
    across, along = np.meshgrid(np.linspace(0, 1, columns), np.linspace(0, 1, rows))
    return Mesh(
        points.reshape(-1, 3).astype(np.float32),
        normals.astype(np.float32),
        _grid(rows, columns),
        np.stack([across, along], -1).reshape(-1, 2).astype(np.float32),
    )


def sheet(width: float, height: float) -> Mesh:
    """A rectangle around the origin that faces +z."""
    corners = np.array([(-1, 1, 0), (1, 1, 0), (-1, -1, 0), (1, -1, 0)], np.float32) / 2
    return Mesh(
        corners * np.array([width, height, 1], np.float32),
        np.tile(np.array([0, 0, 1], np.float32), (4, 1)),
        np.array([(0, 2, 3), (0, 3, 1)]),
        np.array([(0, 0), (1, 0), (0, 1), (1, 1)], np.float32),
    )


_SIDES = (  # where a rectangle that faces +z has to look: its right, its up
    ((1, 0, 0), (0, 1, 0)),
    ((-1, 0, 0), (0, 1, 0)),
    ((0, 0, -1), (0, 1, 0)),
    ((0, 0, 1), (0, 1, 0)),
    ((1, 0, 0), (0, 0, -1)),
    ((1, 0, 0), (0, 0, 1)),
)


def box(width: float, height: float, depth: float) -> Mesh:
    """A cuboid around the origin; each side has the whole texture."""
    cube = _cube()
    size = np.array([width, height, depth], np.float32)
    return Mesh(cube.points * size, cube.normals, cube.triangles, cube.uv)


@lru_cache(maxsize=1)
def _cube() -> Mesh:
    sides = []
    for right, up in _SIDES:
        out = np.cross(right, up)
        turn = np.stack([right, up, out], 1).astype(np.float32)
        sides.append(sheet(1, 1).moved(turn, out / 2))
    return joined(sides)


def ellipsoid(radii: Vector, rows: int = 10, columns: int = 14) -> Mesh:
    """An ellipsoid around the origin with half axes `radii` (3)."""
    down = np.linspace(0, np.pi, rows)[:, None]
    around = np.linspace(0, 2 * np.pi, columns)[None]
    height = np.broadcast_to(np.cos(down), (rows, columns))
    unit = np.stack([np.sin(down) * np.sin(around), height, np.sin(down) * np.cos(around)], -1)
    mesh = surface(unit * np.asarray(radii))
    normals = unit.reshape(-1, 3) / np.asarray(radii)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    return Mesh(mesh.points, normals.astype(np.float32), mesh.triangles, mesh.uv)


def tube(path: Sequence[Vector], radii: Sequence[float], sides: int = 12) -> Mesh:
    """A round limb along a path of points (k, 3) with a radius at each, its ends rounded."""
    centres, widths = np.asarray(path, float), np.asarray(radii, float)
    rings_at, rings_wide = [], []
    ends = np.cos(np.linspace(0, np.pi / 2, 4))[:-1]
    first, last = centres[1] - centres[0], centres[-1] - centres[-2]
    first, last = first / np.linalg.norm(first), last / np.linalg.norm(last)
    for share in ends:  # from the pole inwards
        rings_at.append(centres[0] - first * widths[0] * share)
        rings_wide.append(widths[0] * np.sqrt(max(0.0, 1 - share**2)))
    # Between the given points, a smooth curve: corners of arms are round.
    at = np.linspace(0, len(centres) - 1, 5 * (len(centres) - 1) + 1)
    smooth = _smooth(centres, at)
    rings_at += list(smooth)
    rings_wide += list(np.interp(at, np.arange(len(widths)), widths))
    for share in ends[::-1]:
        rings_at.append(centres[-1] + last * widths[-1] * share)
        rings_wide.append(widths[-1] * np.sqrt(max(0.0, 1 - share**2)))
    line = np.array(rings_at)
    along = np.gradient(line, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True) + 1e-9
    side = np.cross(along, _away_from(along.mean(0)))
    side /= np.linalg.norm(side, axis=1, keepdims=True) + 1e-9
    other = np.cross(along, side)
    angle = np.linspace(0, 2 * np.pi, sides + 1)
    out = side[:, None] * np.cos(angle)[:, None] + other[:, None] * np.sin(angle)[:, None]
    mesh = surface(line[:, None] + out * np.array(rings_wide)[:, None, None])
    normals, radial = out.copy(), np.sqrt(np.maximum(0, 1 - ends**2))[:, None, None]
    normals[:3] = out[:3] * radial - along[:3, None] * ends[:, None, None]
    normals[-3:] = out[-3:] * radial[::-1] + along[-3:, None] * ends[::-1, None, None]
    return Mesh(mesh.points, normals.reshape(-1, 3).astype(np.float32), mesh.triangles, mesh.uv)


def _away_from(direction: np.ndarray) -> np.ndarray:
    """The axis that is most across a direction."""
    axis = np.zeros(3)
    axis[np.abs(direction).argmin()] = 1
    return axis


def _smooth(points: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Catmull-Rom curve (m, 3) through points (k, 3) at parameters 0..k-1."""
    padded = np.concatenate([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
    start = np.minimum(at.astype(int), len(points) - 2)
    t = (at - start)[:, None]
    a, b, c, d = (padded[start + k] for k in range(4))
    return 0.5 * (
        2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3
    )


def joined(meshes: Sequence[Mesh]) -> Mesh:
    """Several meshes as one."""
    starts = np.cumsum([0] + [len(mesh.points) for mesh in meshes])
    return Mesh(
        np.concatenate([mesh.points for mesh in meshes]),
        np.concatenate([mesh.normals for mesh in meshes]),
        np.concatenate([mesh.triangles + k for mesh, k in zip(meshes, starts, strict=False)]),
        np.concatenate([mesh.uv for mesh in meshes]),
    )


def sample(texture: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """Colours (k, 3) in 0..1 of a texture (h, w, 3) uint8 at uv (k, 2), interpolated."""
    high, wide = texture.shape[:2]
    x = np.clip(uv[:, 0] * wide - 0.5, 0, wide - 1)
    y = np.clip(uv[:, 1] * high - 0.5, 0, high - 1)
    left, top = np.minimum(x.astype(int), wide - 2), np.minimum(y.astype(int), high - 2)
    fx, fy = (x - left)[:, None], (y - top)[:, None]
    colours = texture.astype(np.float32) / 255
    upper = colours[top, left] * (1 - fx) + colours[top, left + 1] * fx
    lower = colours[top + 1, left] * (1 - fx) + colours[top + 1, left + 1] * fx
    return upper * (1 - fy) + lower * fy


def rotation(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """Rotation matrix (3, 3) for angles in degrees: roll after pitch after yaw."""
    a, b, c = np.radians([yaw, pitch, -roll])
    turn = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    nod = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    tilt = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return (tilt @ nod @ turn).astype(np.float32)
