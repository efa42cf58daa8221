"""Rendered data sets as FaceSample rows, cached in shards, made in parallel.

A shard is one Parquet file of so many rows, written under a temporary name and renamed, so that an
interrupted run resumes where it stopped. Splits never share an identity: each draws its people
from its own range, which is the same in all rendered sets. A person of one set's training split is
in no other set's test split.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmface import schema
from vlmface.errors import UserError
from vlmface.utils import files, subprocesses
from vlmface.utils.ranges import Seed

if TYPE_CHECKING:
    import datasets

SPLITS = {"train": 0, "validation": 1, "test": 2, "pretrain": 3}
PUBLIC_SPLITS = ("train", "validation", "test")  # those that are data sets to users
PER_IDENTITY = 4  # rows of one person
_RANGE = 10_000_000  # rows and identities that a split may have


def seeds(seed: int, split: str, index: int) -> tuple[int, int]:
    """(row seed, identity seed) of row `index`: disjoint between splits and between seeds."""
    start = (seed * len(SPLITS) + SPLITS[split]) * _RANGE
    return start + index, start + index // PER_IDENTITY


def names(name: str, seed: int, split: str, index: int) -> dict[str, Any]:
    """The fields that identify a row."""
    return {
        "id": f"{name}-{seed}-{split}-{index:06d}",
        "dataset": name,
        "split": split,
        "subject": f"synth-{seed}-{split}-p{index // PER_IDENTITY:05d}",
    }


@dataclass(frozen=True)
class RenderOptions:
    """Options of a rendered data set.

    Args:
        n: number of rows, by default that of the split.
        seed: of the set.
        size: pixels of a side, by default those that are usual for the set.
        progress: show a progress bar.
    """

    n: int | None = None
    seed: Seed = 0
    size: int | None = None
    progress: bool = True


@dataclass(frozen=True)
class RenderedSet:
    """A data set that is rendered.

    `version` is raised whenever the same seed would give other pixels or labels. `make_row(seed,
    split, index, size, **options)` gives a row of the schema; it is a function of a module, since
    other processes call it. The keys of `default_n` are the splits; `sizes` are the least and the
    most pixels a side.
    """

    name: str
    unit: str
    version: int
    shard: int
    default_n: Mapping[str, int]
    size: int
    sizes: tuple[int, int]
    make_row: Callable[..., dict[str, Any]]

    def cache_folder(self, seed: int, split: str, size: int, **options: int) -> Path:
        """The folder of a split's shards."""
        options_text = "-".join(
            [f"{size}px", *(f"{value}{key}" for key, value in sorted(options.items()))]
        )
        version = f"v{self.version}-schema{schema.VERSION}"
        return files.cache_dir() / self.name / version / f"seed{seed}" / options_text / split

    def check_request(self, split: str, n: int, *, seed: int, size: int) -> None:
        """Raise UserError unless `n` rows of the split can be drawn at `size` pixels."""
        if split not in self.default_n:
            split_names = ", ".join(self.default_n)
            raise UserError(f"{self.name} has no split {split!r}: use one of {split_names}")
        if not 0 < n <= _RANGE:
            raise UserError(f"{self.name} can draw 1 to {_RANGE:,} {self.unit}s, not {n}")
        low, high = self.sizes
        if not low <= size <= high:
            raise UserError(f"{self.name} draws images of {low} to {high} pixels, not {size}")
        if seed < 0:
            raise UserError(f"the {self.name} seed must not be negative, found {seed}")

    def render_split(
        self,
        split: str,
        n: int,
        *,
        seed: int = 0,
        size: int | None = None,
        workers: int | None = None,
        progress: bool = True,
        **options: int,
    ) -> list[Path]:
        """Make what is missing of a split's first `n` rows; returns the shard paths in order.

        Shards are whole whatever `n`, so a smaller or larger n reuses the same files.
        """
        from joblib import Parallel, cpu_count, delayed
        from tqdm import tqdm

        size = self.size if size is None else size
        self.check_request(split, n, seed=seed, size=size)
        folder = self.cache_folder(seed, split, size, **options)
        paths = [folder / f"{shard:06d}.parquet" for shard in range(-(-n // self.shard))]
        missing = [(i * self.shard, path) for i, path in enumerate(paths) if not path.exists()]
        if missing:
            folder.mkdir(parents=True, exist_ok=True)
            columns = schema.features().arrow_schema  # made here: `datasets` is slow to import
            request = {"seed": seed, "split": split, "size": size, **options}
            make = delayed(_make_shard)
            jobs = (
                make(path, columns, self.make_row, range(start, start + self.shard), request)
                for start, path in missing
            )
            parallel = Parallel(
                min(workers or cpu_count(), len(missing)),
                return_as="generator_unordered",
                **subprocesses.joblib_arguments(),
            )
            with tqdm(
                total=len(missing) * self.shard,
                unit=self.unit,
                desc=f"rendering {split}",
                disable=not progress,
            ) as bar:
                for row_count in parallel(jobs):
                    bar.update(row_count)
        return paths

    def read(
        self, root: Path | None, split: str, options: RenderOptions, **further: int
    ) -> datasets.Dataset:
        """The first rows of a split, rendered where they are not cached.

        Args:
            root: None.
            split: one of PUBLIC_SPLITS.
            options: which rows.
            **further: options of `make_row`.

        Raises:
            UserError: a root is given, or an option is out of range.
        """
        if root is not None:
            raise UserError(
                f"{self.name} is rendered, not read from a folder: leave out the root ({root})"
            )
        return self.load(
            split,
            n=options.n,
            seed=options.seed,
            size=options.size,
            progress=options.progress,
            **further,
        )

    def load(
        self,
        split: str,
        *,
        n: int | None = None,
        seed: int = 0,
        size: int | None = None,
        progress: bool = True,
        **options: int,
    ) -> datasets.Dataset:
        """The first `n` rows of a split as a `datasets.Dataset`, as `schema.features()` has them.

        Pictures are `size` x `size` JPEG. Rendered once, then read from the user's cache folder.
        Raises UserError for an unknown split or sizes out of range.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq
        from datasets import Dataset

        if n is None:
            n = self.default_n.get(split, 1)
        tables = []
        for path in self.render_split(split, n, seed=seed, size=size, progress=progress, **options):
            try:
                tables.append(pq.read_table(path))
            except (pa.ArrowInvalid, OSError) as error:
                raise UserError(
                    f"{path} is damaged ({error}): delete it, it will be rendered again"
                ) from error
        table = pa.concat_tables(tables).slice(0, n)
        return Dataset(table.cast(schema.features().arrow_schema))


def _make_shard(
    path: Path,
    columns: Any,
    make_row: Callable[..., dict[str, Any]],
    indices: range,
    row_options: Any,
) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [make_row(index=index, **row_options) for index in indices]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=columns), buffer, compression="zstd")
    files.atomic_write(path, buffer.getvalue())
    return len(rows)
