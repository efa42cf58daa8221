"""The embedded data set: rendered faces as FaceSample rows, cached in shards, made in parallel.

A shard is one Parquet file of 64 faces, written under a temporary name and renamed, so that an
interrupted run goes on where it stopped. Splits never share an identity: each draws its people
from its own range.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmface import facs, files
from vlmface.errors import UserError
from vlmface.schema import AULabel, FaceSample
from vlmface.synth.faces import Sample, sample_face

if TYPE_CHECKING:
    import datasets

# Raise whenever the same seed would give other pixels or labels; tests pin what a version draws.
VERSION = 1
SHARD = 64
FACES_PER_IDENTITY = 4
SPLITS = {"train": 0, "validation": 1, "test": 2, "pretrain": 3}
DEFAULT_N = {"train": 4000, "validation": 400, "test": 600, "pretrain": 30000}
_RANGE = 10_000_000  # faces and identities that a split may have


def face_seeds(seed: int, split: str, index: int) -> tuple[int, int]:
    """(face seed, identity seed) of row `index`: disjoint between splits and between seeds."""
    start = (seed * len(SPLITS) + SPLITS[split]) * _RANGE
    return start + index, start + index // FACES_PER_IDENTITY


def draw(seed: int, split: str, index: int) -> Sample:
    """The face behind row `index` of a split."""
    return sample_face(*face_seeds(seed, split, index))


def to_sample(sample: Sample, seed: int, split: str, index: int, image: Any) -> FaceSample:
    """The labelled record of a drawn face. All of SYNTH_AUS are annotated."""
    view, look, aus = sample.face.view, sample.face.look, sample.expression.aus
    return FaceSample(
        id=f"synth-{seed}-{split}-{index:06d}",
        dataset="synth",
        split=split,
        subject=f"synth-{seed}-{split}-p{index // FACES_PER_IDENTITY:05d}",
        image=image,
        emotion=sample.expression.emotion,
        aus=[AULabel(au, float(aus.get(au, 0.0)), au in aus) for au in facs.SYNTH_AUS],
        age=float(sample.age),
        age_group=sample.age_group,
        gender=sample.gender,
        race=sample.race,
        meta={
            "yaw": round(view.yaw, 1),
            "pitch": round(view.pitch, 1),
            "roll": round(view.roll, 1),
            "gaze": [round(g, 1) for g in view.gaze],
            "hair_style": look.hair_style,
            "hair_colour": look.hair_colour,
            "beard": look.beard > 0,
            "one_sided": [
                au
                for au in aus
                if min(sample.face.left[au], sample.face.right[au])
                < 0.5 * max(sample.face.left[au], sample.face.right[au])
            ],
        },
    )


def _make_shard(path: Path, schema: Any, seed: int, split: str, size: int, indices: range) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from vlmface.synth.render import render

    rows = []
    for index in indices:
        sample = draw(seed, split, index)
        image = {"bytes": render(sample.face, size).jpeg, "path": None}
        rows.append(to_sample(sample, seed, split, index, image).to_row())
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), buffer, compression="zstd")
    files.atomic_write(path, buffer.getvalue())
    return len(rows)


def cache_folder(seed: int, split: str, size: int) -> Path:
    """Where a split's shards lie."""
    return files.cache_dir() / "synth" / f"v{VERSION}" / f"seed{seed}" / f"{size}px" / split


def check_request(split: str, n: int, *, seed: int, size: int) -> None:
    """Raise UserError unless `n` faces of the split can be drawn at `size` x `size` pixels."""
    if split not in SPLITS:
        raise UserError(f"synth has no split {split!r}: use one of {', '.join(SPLITS)}")
    if not 0 < n <= _RANGE:
        raise UserError(f"synth can draw 1 to {_RANGE:,} faces, not {n}")
    if not 32 <= size <= 1024:
        raise UserError(f"synth draws images of 32 to 1024 pixels, not {size}")
    if seed < 0:
        raise UserError(f"the synth seed must not be negative, found {seed}")


def render_split(
    split: str,
    n: int,
    *,
    seed: int = 0,
    size: int = 96,
    workers: int | None = None,
    progress: bool = True,
) -> list[Path]:
    """Make what is missing of a split's first `n` faces; returns the shard paths in order.

    Shards are whole (64 faces) whatever `n`, so a smaller or larger n reuses the same files.
    """
    from joblib import Parallel, cpu_count, delayed
    from tqdm import tqdm

    from vlmface.schema import features

    check_request(split, n, seed=seed, size=size)
    folder = cache_folder(seed, split, size)
    paths = [folder / f"{shard:06d}.parquet" for shard in range(-(-n // SHARD))]
    missing = [(i, path) for i, path in enumerate(paths) if not path.exists()]
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        schema = features().arrow_schema  # made here: `datasets` is slow to import
        jobs = (
            delayed(_make_shard)(path, schema, seed, split, size, range(i * SHARD, (i + 1) * SHARD))
            for i, path in missing
        )
        parallel = Parallel(
            min(workers or cpu_count(), len(missing)), return_as="generator_unordered"
        )
        with tqdm(
            total=len(missing) * SHARD, unit="face", desc=f"rendering {split}", disable=not progress
        ) as bar:
            for done in parallel(jobs):
                bar.update(done)
    return paths


def load(
    split: str, *, n: int | None = None, seed: int = 0, size: int = 96, progress: bool = True
) -> datasets.Dataset:
    """The first `n` faces of a split (train, validation, test, pretrain) as a `datasets.Dataset`.

    Images are `size` x `size` JPEG; rows follow `schema.features()`. Rendered once, then read from
    the user's cache folder. Raises UserError for an unknown split or sizes out of range.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Dataset

    from vlmface.schema import features

    if n is None:
        n = DEFAULT_N.get(split, 1)
    tables = []
    for path in render_split(split, n, seed=seed, size=size, progress=progress):
        try:
            tables.append(pq.read_table(path))
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(
                f"{path} is damaged ({error}): delete it, it will be rendered again"
            ) from error
    table = pa.concat_tables(tables).slice(0, n)
    return Dataset(table.cast(features().arrow_schema))
