"""The geometry of rendered faces, used to pretrain a vision tower.

It contains neither action units nor emotions: only the places of points of the skin in the picture,
how far each has moved from its place at rest, how the head is turned, and what part of the face a
patch shows.
"""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path

import numpy as np

from vlmface.synth import dataset
from vlmface.synth.face_parameters import Face
from vlmface.synth.head import head_model
from vlmface.synth.render import render
from vlmface.utils import files, subprocesses

SHARD = 200  # faces in a cached file
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


def known_geometry(face: Face, size: int, grid: int) -> dict[str, np.ndarray]:
    """Render `face` and return what is known of the picture.

    image (size, size, 3) uint8; points (k, 2) positions of the landmarks in -1..1; shift (k, 3)
    their displacement from the face at rest, in dm, in the head's own frame; pose (5,) yaw, pitch,
    roll, gaze in units of 10 degrees; parts (grid, grid, PART_CLASSES) share of each part in each
    patch.
    """
    rendering = render(face, size)
    vertices, _ = landmark_vertices()
    view = face.view
    part = np.full(rendering.part.shape, 1)
    part[rendering.part == -1] = 0
    part[(rendering.part == 1) | (rendering.part == 2)] = 2
    part[rendering.part >= 6] = 3
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


def _make_shard(path: Path, start: int, size: int, grid: int) -> None:
    faces = range(start, start + SHARD)
    rows = [known_geometry(dataset.draw(0, "pretrain", i).face, size, grid) for i in faces]
    arrays = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    arrays["points"], arrays["shift"] = arrays["points"].astype("f2"), arrays["shift"].astype("f2")
    arrays["parts"] = (arrays["parts"] * 255).round().astype("u1")
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    files.atomic_write(path, buffer.getvalue())


def load_geometry(count: int, size: int, grid: int) -> dict[str, np.ndarray]:
    """`known_geometry` of the first `count` pretrain faces, stacked; rendered where not cached.

    points and shift are float16, parts uint8 (255 = all of the patch).
    """
    from joblib import Parallel, delayed
    from tqdm import tqdm

    folder = files.cache_dir() / "geometry" / f"v{dataset.VERSION}" / f"{size}px{grid}"
    paths = [folder / f"{shard:05d}.npz" for shard in range(-(-count // SHARD))]
    jobs = [
        delayed(_make_shard)(path, shard * SHARD, size, grid)
        for shard, path in enumerate(paths)
        if not path.exists()
    ]
    parallel = Parallel(-1, return_as="generator_unordered", **subprocesses.joblib_arguments())
    for _ in tqdm(parallel(jobs), "rendering", len(jobs), unit="shard"):
        pass
    shards = [np.load(path) for path in paths]
    return {name: np.concatenate([shard[name] for shard in shards])[:count] for name in shards[0]}
