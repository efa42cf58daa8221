"""A face's measurement as numbers that do not depend on where the face is and how it is turned.

The mesh is aligned in space to a mean face by the points that expressions move least, which removes
place, size and the pose of the head. What remains is the face's own shape and its expression.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Of MediaPipe's mesh: forehead and temples, the corners of the eyes, the ridge of the nose.
STABLE_POINTS = (
    *(10, 338, 297, 332, 284, 251, 389, 356, 454, 127, 234, 162, 21, 54, 103, 67, 109, 151, 9),
    *(33, 133, 263, 362, 168, 6, 197, 195, 5, 4),
)
BLENDSHAPE_FLOOR = 1e-3  # smaller scores are noise


@dataclass(frozen=True)
class Pose:
    """How heads are turned, each (n,) in degrees: positive yaw turns a head to the picture's right,
    positive pitch lowers the chin, positive roll tilts it clockwise."""

    yaw: np.ndarray
    pitch: np.ndarray
    roll: np.ndarray


def align(points: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, Pose]:
    """Meshes turned, moved and scaled onto a reference (Kabsch 1976, Umeyama 1991).

    Args:
        points: (n, 478, 3) as measured.
        reference: (478, 3), seen from the front.

    Returns:
        float32 (n, 478, 3) in the reference's units, and the poses.
    """
    stable = list(STABLE_POINTS)
    target = reference[stable] - reference[stable].mean(0)
    centre = points[:, stable].mean(1, keepdims=True)
    centred = (points - centre).astype(np.float64)
    source = centred[:, stable]
    u, sizes, vt = np.linalg.svd(np.einsum("nia,ib->nab", source, target))
    signs = np.ones_like(sizes)
    signs[:, 2] = np.sign(np.linalg.det(u @ vt))
    rotation = (u * signs[:, None]) @ vt  # source @ rotation lies on the target
    scale = (sizes * signs).sum(1) / np.maximum((source**2).sum((1, 2)), 1e-12)
    aligned = scale[:, None, None] * (centred @ rotation) + reference[stable].mean(0)
    return aligned.astype(np.float32), _pose(rotation)


def _pose(rotation: np.ndarray) -> Pose:
    forward = rotation[:, :, 2]  # the face's axis away from the camera, as the camera sees it
    across = rotation[:, :, 0]
    return Pose(
        yaw=-np.degrees(np.arctan2(forward[:, 0], forward[:, 2])),
        pitch=np.degrees(np.arcsin(np.clip(-forward[:, 1], -1, 1))),
        roll=np.degrees(np.arctan2(across[:, 1], across[:, 0])),
    )


def mirror_points(points: np.ndarray, mirrored: np.ndarray) -> np.ndarray:
    """Meshes as of the mirror image. `mirrored` (478,): which point takes each one's place."""
    return points[..., mirrored, :] * np.array([-1, 1, 1], points.dtype)


def mirrored_order(reference: np.ndarray) -> np.ndarray:
    """Which point lies opposite of each one, (478,), from a mean face."""
    middle = reference[list(STABLE_POINTS), 0].mean()
    flipped = (reference - [middle, 0, 0]) * [-1, 1, 1] + [middle, 0, 0]
    distance = np.linalg.norm(flipped[:, None] - reference, axis=-1)
    from scipy.optimize import linear_sum_assignment

    order = linear_sum_assignment(distance)[1]
    return np.where(order[order] == np.arange(len(order)), order, np.arange(len(order)))


def log_blendshapes(blendshapes: np.ndarray) -> np.ndarray:
    """Scores 0..1 on a logarithmic scale: most are far below 0.1, and differ there, too."""
    return np.log(np.maximum(blendshapes, BLENDSHAPE_FLOOR)).astype(np.float32)


# --- the picture ----------------------------------------------------------------------------------

CELL, ORIENTATIONS = 8, 8  # pixels a side of a cell, and directions of its gradients


def gradients(patches: np.ndarray) -> np.ndarray:
    """Histograms of oriented gradients (Dalal & Triggs 2005), which show wrinkles, lids and lips.

    Each cell is normalised by the nine cells around it, so light and contrast hardly matter.

    Args:
        patches: uint8 (n, side, side).

    Returns:
        float32 (n, cells * ORIENTATIONS).
    """
    side = patches.shape[1]
    cells = side // CELL
    place = np.arange(side) // CELL
    cell = (place[:, None] * cells + place) * ORIENTATIONS
    histograms = np.stack([_histogram(patch, cell, cells) for patch in patches])
    energy = np.square(histograms).sum(-1)
    padded = np.pad(energy, ((0, 0), (1, 1), (1, 1)), mode="edge")
    around = sum(padded[:, i : i + cells, j : j + cells] for i in range(3) for j in range(3))
    floor = 0.02 * energy.mean((1, 2), keepdims=True) + 1
    normalised = np.sqrt(histograms / np.sqrt(around + floor)[..., None])
    return normalised.reshape(len(patches), -1).astype(np.float32)


def _histogram(patch: np.ndarray, cell: np.ndarray, cells: int) -> np.ndarray:
    values = patch.astype(np.float32)
    dx, dy = np.zeros_like(values), np.zeros_like(values)
    dx[:, 1:-1] = values[:, 2:] - values[:, :-2]
    dy[1:-1] = values[2:] - values[:-2]
    size = np.sqrt(dx * dx + dy * dy)
    angle = np.arctan2(dy, dx) % (2 * np.pi) * (ORIENTATIONS / (2 * np.pi))
    lower = angle.astype(np.int64)
    share = (angle - lower) * size
    lower %= ORIENTATIONS
    upper = (lower + 1) % ORIENTATIONS
    count = cells * cells * ORIENTATIONS
    sums = np.bincount((cell + lower).ravel(), (size - share).ravel(), count)
    sums += np.bincount((cell + upper).ravel(), share.ravel(), count)
    return sums.reshape(cells, cells, ORIENTATIONS)
