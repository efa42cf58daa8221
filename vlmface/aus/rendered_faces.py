"""Rendered faces, measured by the landmarker: what the estimator is fitted on.

Some faces are those of `synth`. Others are varied: turned further, drawn with any AUs on either
side, with stronger shapes of the head, and photographed in grey, blurred or over-exposed, because
real faces differ more from each other than those of `synth`.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from vlmface import facs
from vlmface.aus import measurement
from vlmface.data import detect
from vlmface.synth import dataset, expressions, sharded_dataset
from vlmface.synth.faces import Sample, sample_face
from vlmface.utils import files, subprocesses

VERSION = 1  # raise whenever the same index would give another face
VARIED_SEED = 9001  # of people that are in no other rendered set
VARIED_SHARD = 100
VARIED_SIZES = (96, 128, 160)  # pixels a side
UNITS = facs.SYNTH_AUS
# AUs that the renderer draws on each side by itself.
SIDED = (2, 4, 5, 6, 7, 9, 10, 12, 14, 15, 16, 20, 24, 25, 43)


@dataclass(frozen=True)
class MeasuredFaces:
    """Measurements of n faces with what was rendered.

    Attributes:
        points: float32 (n, 2, 478, 3) of the picture and of its mirror image.
        blendshapes: float32 (n, 2, 52).
        patch: uint8 (n, 2, PATCH, PATCH).
        grade: float32 (n, 24), FACS intensity 0..5 of `UNITS`.
        left, right: float32 (n, 24), how strongly each side was drawn, as an intensity 0..5.
        yaw: float32 (n,), degrees.
        index: int64 (n,) of the face.
    """

    points: np.ndarray
    blendshapes: np.ndarray
    patch: np.ndarray
    grade: np.ndarray
    left: np.ndarray
    right: np.ndarray
    yaw: np.ndarray
    index: np.ndarray


def _varied_face(index: int) -> Sample:
    seeds = sharded_dataset.seeds(VARIED_SEED, "train", index)
    return _vary(sample_face(*seeds), np.random.default_rng([31, seeds[0]]))


def _vary(sample: Sample, rng: np.random.Generator) -> Sample:
    face = sample.face
    shapes = {k: w * rng.uniform(0.8, 2.0) for k, w in face.identity.shapes.items()}
    view = dataclasses.replace(
        face.view,
        yaw=float(rng.uniform(-55, 55)) if rng.random() < 0.5 else face.view.yaw,
        pitch=float(rng.uniform(-22, 22)),
        zoom=float(rng.uniform(0.85, 1.15)),
    )
    expression = sample.expression
    if rng.random() < 0.6:
        expression = _any_expression(rng, expression)
    return dataclasses.replace(
        sample,
        expression=expression,
        face=dataclasses.replace(
            face,
            identity=dataclasses.replace(face.identity, shapes=shapes),
            left=expression.left,
            right=expression.right,
            view=view,
        ),
    )


def _any_expression(
    rng: np.random.Generator, expression: expressions.Expression
) -> expressions.Expression:
    """An expression of up to five AUs that can act together, a quarter of them on one side."""
    aus: set[int] = set()
    for au in rng.permutation(UNITS)[: int(rng.integers(0, 8))].tolist():
        if expressions.compatible(au, aus):
            aus.add(au)
    grades = {au: int(rng.integers(1, 6)) for au in sorted(aus)}
    if {26, 27} & aus:
        grades.setdefault(25, max(2, grades.get(26, 0), grades.get(27, 0)))
    left, right = expressions.draw_sides(rng, grades, "neutral")
    for au in grades:
        if au in SIDED and rng.random() < 0.25:
            (left if rng.random() < 0.5 else right)[au] *= float(rng.uniform(0, 0.3))
    return expressions.Expression(
        expression.emotion, {au: float(g) for au, g in grades.items()}, left, right
    )


def photograph(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The picture as other cameras take it: grey, blurred, of other contrast."""
    if rng.random() < 0.4:
        image = ImageOps.grayscale(image).convert("RGB")
    if rng.random() < 0.4:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 1.2) * image.width / 96))
    if rng.random() < 0.4:
        gamma, gain = rng.uniform(0.6, 1.6), rng.uniform(0.8, 1.25)
        values = np.clip(gain * (np.arange(256) / 255) ** gamma * 255, 0, 255)
        image = image.point(values.astype(np.uint8).tolist() * 3)
    return image


def measure_synth(split: str, n: int, size: int = 96, workers: int = 1) -> MeasuredFaces:
    """The first n faces of a split of `synth`, measured; kept in the cache.

    Args:
        split: of `synth`.
        n: number of faces. Those that the landmarker does not find are left out.
        size: pixels a side.
        workers: processes.
    """
    paths = dataset.render_split(split, n, size=size, workers=workers, progress=False)
    jobs = [
        (f"{split}-{size}px/{path.stem}", _SynthShard(path, split, number * dataset.SHARD))
        for number, path in enumerate(paths)
    ]
    return _measured(jobs, n, workers)


def measure_varied(n: int, workers: int = 1) -> MeasuredFaces:
    """n varied faces, of people that no split of `synth` has; see `measure_synth`."""
    jobs = [(f"varied/{start:06d}", _VariedShard(start)) for start in range(0, n, VARIED_SHARD)]
    return _measured(jobs, n, workers)


@dataclass(frozen=True)
class _SynthShard:
    """Yields (index, face, picture) of a shard of `synth`."""

    path: Path
    split: str
    start: int

    def __call__(self) -> Iterator[tuple[int, Sample, Image.Image]]:
        import pyarrow.parquet as pq

        for k, stored in enumerate(pq.read_table(self.path, columns=["image"])["image"]):
            index = self.start + k
            picture = Image.open(io.BytesIO(stored["bytes"].as_py())).convert("RGB")
            yield index, dataset.draw(0, self.split, index), picture


@dataclass(frozen=True)
class _VariedShard:
    start: int

    def __call__(self) -> Iterator[tuple[int, Sample, Image.Image]]:
        from vlmface.synth.render import render

        for index in range(self.start, self.start + VARIED_SHARD):
            rng = np.random.default_rng([37, index])
            sample = _varied_face(index)
            picture = render(sample.face, int(rng.choice(VARIED_SIZES))).jpeg
            yield index, sample, photograph(Image.open(io.BytesIO(picture)).convert("RGB"), rng)


Shard = Callable[[], Iterator[tuple[int, Sample, Image.Image]]]


def _measured(jobs: Sequence[tuple[str, Shard]], n: int, workers: int) -> MeasuredFaces:
    from joblib import Parallel, delayed

    folder = files.cache_dir() / "aus" / f"v{VERSION}-{measurement.VERSION}-{dataset.VERSION}"
    paths = [folder / f"{name}.npz" for name, _ in jobs]
    parallel = Parallel(workers, **subprocesses.joblib_arguments())
    parallel(
        delayed(_measure_shard)(path, shard)
        for path, (_, shard) in zip(paths, jobs, strict=True)
        if not path.exists()
    )
    shards = []
    for path in paths:
        with np.load(path) as data:
            shards.append({name: data[name] for name in data.files})
    joined = {name: np.concatenate([shard[name] for shard in shards]) for name in shards[0]}
    in_request = joined["index"] < n
    return MeasuredFaces(**{name: values[in_request] for name, values in joined.items()})


def _measure_shard(path: Path, shard: Shard) -> None:
    with measurement.Landmarker() as landmarker, detect.Detector() as detector:
        rows = [
            row
            for index, sample, picture in shard()
            if (row := _measure_face(landmarker, detector, sample, picture, index)) is not None
        ]
    buffer = io.BytesIO()
    names = [field.name for field in dataclasses.fields(MeasuredFaces)]
    arrays: dict[str, Any] = {name: np.stack([row[name] for row in rows]) for name in names}
    np.savez(buffer, **arrays)
    files.atomic_write(path, buffer.getvalue())


def _measure_face(
    landmarker: measurement.Landmarker,
    detector: detect.Detector,
    sample: Sample,
    picture: Image.Image,
    index: int,
) -> dict[str, Any] | None:
    square = padded_square(detector, picture)
    views = [] if square is None else [landmarker.measure(s) for s in (square, square[:, ::-1])]
    if not views or any(view is None for view in views):
        return None
    face = sample.face
    return {
        "points": np.stack([view.points for view in views if view]),
        "blendshapes": np.stack([view.blendshapes for view in views if view]),
        "patch": np.stack([view.patch for view in views if view]),
        "grade": _of_units(sample.expression.aus),
        "left": _of_units({au: expressions.intensity(x) for au, x in face.left.items()}),
        "right": _of_units({au: expressions.intensity(x) for au, x in face.right.items()}),
        "yaw": np.float32(face.view.yaw),
        "index": np.int64(index),
    }


def padded_square(detector: detect.Detector, image: Image.Image) -> np.ndarray | None:
    """The square around the largest face of a picture that it fills; None without a face."""
    margin = image.width // 4
    pixels = np.pad(np.asarray(image), ((margin, margin), (margin, margin), (0, 0)), mode="edge")
    padded = Image.fromarray(pixels)
    mesh = detector.mesh(padded)
    return None if mesh is None else measurement.face_square(padded, detect.bounding_box(mesh))


def _of_units(values: Mapping[int, float]) -> np.ndarray:
    return np.array([values.get(au, 0.0) for au in UNITS], np.float32)
