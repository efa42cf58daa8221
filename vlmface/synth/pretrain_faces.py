"""The faces of the split "pretrain" with their geometry, rendered once and cached."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vlmface import facs
from vlmface.synth import dataset
from vlmface.synth.faces import Sample
from vlmface.synth.geometry import known_geometry
from vlmface.synth.render import render
from vlmface.synth.v2 import dataset as dataset_v2
from vlmface.synth.v2 import visibility
from vlmface.synth.v2.render import render as render_v2
from vlmface.utils import files, subprocesses

SHARD = 200  # faces in a cached file


def _version_1(index: int, size: int, grid: int) -> dict[str, np.ndarray]:
    face = dataset.draw(0, "pretrain", index).face
    return known_geometry(render(face, size), face.view, grid)


def _version_2(index: int, size: int, grid: int) -> dict[str, np.ndarray]:
    """Also intensities (AUs,) as annotated, of SYNTH_V2_AUS: 0 absent, nan not annotated."""
    sample = dataset_v2.draw(0, "pretrain", index)
    rendering = render_v2(dataset_v2.photo_face(sample), size)
    labels = visibility.annotate(sample.expression, rendering.visible)
    graded = {label.au: label.intensity for label in labels}
    intensities = [graded.get(au, np.nan) for au in facs.SYNTH_V2_AUS]
    geometry = known_geometry(rendering, sample.face.view, grid)
    return geometry | {"intensities": np.array(intensities, np.float32)}


# Data set -> its version, and what is known of one of its pretrain faces.
_SETS: dict[str, tuple[int, Callable[[int, int, int], dict[str, np.ndarray]]]] = {
    "synth": (dataset.VERSION, _version_1),
    dataset_v2.NAME: (dataset_v2.VERSION, _version_2),
}
SETS = tuple(_SETS)


def shard_paths(name: str, count: int, size: int, grid: int) -> list[Path]:
    """The cached files of the first `count` faces of a set."""
    version = f"v{_SETS[name][0]}"
    root = files.cache_dir() / ("geometry" if name == "synth" else f"geometry_{name}")
    folder = root / version / f"{size}px{grid}"
    return [folder / f"{shard:05d}.npz" for shard in range(-(-count // SHARD))]


def _make_shard(path: Path, name: str, indices: range, size: int, grid: int) -> None:
    rows = [_SETS[name][1](index, size, grid) for index in indices]
    arrays = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
    arrays["points"], arrays["shift"] = arrays["points"].astype("f2"), arrays["shift"].astype("f2")
    arrays["parts"] = (arrays["parts"] * 255).round().astype("u1")
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    files.atomic_write(path, buffer.getvalue())


def load_geometry(name: str, count: int, size: int, grid: int) -> dict[str, np.ndarray]:
    """`known_geometry` of the first pretrain faces of a set, stacked; rendered where not cached.

    Args:
        name: one of SETS.
        count: number of faces.
        size: pixels of a side of the pictures.
        grid: patches of a side.

    Returns:
        The arrays of `known_geometry`; points and shift are float16, parts uint8 (255 = all of the
        patch). Of synth_v2 also "intensities" (count, AUs): those of SYNTH_V2_AUS as annotated, 0
        if absent and nan if the AU is not annotated.
    """
    from joblib import Parallel, delayed
    from tqdm import tqdm

    paths = shard_paths(name, count, size, grid)
    jobs = [
        delayed(_make_shard)(path, name, range(start, start + SHARD), size, grid)
        for start, path in zip(range(0, count, SHARD), paths, strict=True)
        if not path.exists()
    ]
    parallel = Parallel(-1, return_as="generator_unordered", **subprocesses.joblib_arguments())
    for _ in tqdm(parallel(jobs), f"rendering {name}", len(jobs), unit="shard"):
        pass
    shards = [np.load(path) for path in paths]
    return {key: np.concatenate([shard[key] for shard in shards])[:count] for key in shards[0]}


@dataclass(frozen=True)
class PretrainFaces:
    """`samples` with the AUs that can be seen, and `geometry`: the arrays of `known_geometry`,
    stacked as by `load_geometry`."""

    samples: list[Sample]
    geometry: dict[str, np.ndarray]


def load(names: Sequence[str], count: int, size: int, grid: int) -> PretrainFaces:
    """`count` faces of one or several sets in equal shares: face i is number i // k of the set
    number i % k, of k of them. `size` and `grid` as in `load_geometry`."""
    from tqdm import tqdm

    of_each = -(-count // len(names))
    loaded = {name: load_geometry(name, of_each, size, grid) for name in names}
    no_faces = np.zeros((0, len(facs.SYNTH_V2_AUS)))
    intensities = loaded.get(dataset_v2.NAME, {}).pop("intensities", no_faces)
    geometry = {}
    for key in list(loaded[names[0]]):
        columns = [arrays.pop(key) for arrays in loaded.values()]
        geometry[key] = np.stack(columns, 1).reshape(-1, *columns[0].shape[1:])[:count]
    samples = []
    for i in tqdm(range(count), "sampling"):
        name, index = names[i % len(names)], i // len(names)
        if name == dataset_v2.NAME:
            samples.append(_as_seen(dataset_v2.draw(0, "pretrain", index), intensities[index]))
        else:
            samples.append(dataset.draw(0, "pretrain", index))
    return PretrainFaces(samples, geometry)


def _as_seen(sample: Sample, intensities: np.ndarray) -> Sample:
    """The sample with the AUs that can be seen, from `intensities` of SYNTH_V2_AUS."""
    values = zip(facs.SYNTH_V2_AUS, intensities.tolist(), strict=True)
    aus = {au: value for au, value in values if value > 0}
    return replace(sample, expression=replace(sample.expression, aus=aus))
