"""Several data sets as one: `data.load("mixture.yaml")`, or `--dataset mixture.yaml` of a recipe.

    sources:
      - {dataset: rafdb, root: ~/RAF-DB, weight: 2}
      - {dataset: affectnet, root: ~/AffectNet, cap: 50000, labels: {contempt: null}}
    balanced: true
    size: 40000

`Mixture` and `Source` are the keys that may be used.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from vlmface import label_spaces
from vlmface.data.catalog import dataset_module, is_mixture
from vlmface.data.loading import load_dataset
from vlmface.data.sources import content_digest, image_sources
from vlmface.errors import UserError
from vlmface.resources import YAML
from vlmface.utils import config
from vlmface.utils.ranges import Count, Positive, Seed

if TYPE_CHECKING:
    import datasets

T = TypeVar("T")
FIELDS = ("emotion", "gender", "age_group", "race")


@dataclass(frozen=True)
class Source:
    """A data set of a mixture.

    `dataset`, `root`, `split` and `options` are what `data.load` takes. A relative root, or Python
    or YAML file of a data set, starts from the folder of the mixture's file. A source without root
    or split takes those of the mixture.
    `labels` turns one word into another, or into null, which leaves such rows out. `cap`: so many
    rows at most, chosen at random. `weight`: see `Mixture`.
    """

    dataset: str
    root: str | None = None
    split: str | None = None
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    labels: dict[str, Any] = dataclasses.field(default_factory=dict)
    weight: Positive | None = None
    cap: Count | None = None


@dataclass(frozen=True)
class Mixture:
    """A mixture.yaml.

    `weight` of the sources: how many rows each gives, in proportion; either all have one or none,
    and then all rows count alike. `field` is what `labels` and `balanced` speak of; `labels` apply
    to every source that does not map that word itself. `balanced` draws every label equally
    often; rows without one are left out. `size` is the number of rows; without it, the most that
    is possible without taking any row twice. With a larger one rows occur again, each as often as
    the others of its kind, or one time more. `seed` decides what is drawn, and the order.
    """

    sources: list[dict[str, Any]]
    field: str = "emotion"
    labels: dict[str, Any] = dataclasses.field(default_factory=dict)
    balanced: bool = False
    size: Count | None = None
    seed: Seed = 0


def load(
    path: str | Path,
    root: str | Path | None = None,
    split: str = "train",
    *,
    missing: str = "error",
    broken: str = "keep",
    n: int | None = None,
    seed: Seed | None = None,
    **unknown: Any,
) -> datasets.Dataset:
    """Load a mixture; the same file, seed and data give the same rows in the same order.

    Args:
        path: of the mixture.yaml.
        root: of sources without a root.
        split: of sources without a split.
        missing: as of `data.load`, for each source.
        broken: as of `data.load`, for each source.
        n: replaces the file's `size`.
        seed: replaces the file's `seed`.
        **unknown: options that do not exist.

    Raises:
        UserError: an error in the file or a source; the message names the file and the key.
    """
    from datasets import concatenate_datasets

    path = Path(path).expanduser()
    if unknown:
        raise UserError(f"{path}, a mixture, has no option {next(iter(unknown))!r}; it has seed")
    mixture, sources = read(path)
    chance = np.random.default_rng(mixture.seed if seed is None else seed)
    parts: list[datasets.Dataset] = []
    words: set[str | None] = set()
    for number, source in enumerate(sources, 1):
        where = f"{path}, source {number}"
        part = _load_source(
            source, where, path.parent, root, split, {"missing": missing, "broken": broken}
        )
        part_labels = set(part[mixture.field])
        _check_words(where, mixture.field, source.labels, part_labels)
        part = _harmonise(part, mixture.field, mixture.labels | source.labels)
        if source.cap is not None and source.cap < len(part):
            part = part.select(np.sort(chance.choice(len(part), source.cap, replace=False)))
        if not len(part):
            raise UserError(f"{where}: `labels` leave no row of {source.dataset}")
        parts.append(part)
        words |= part_labels
    _check_words(str(path), mixture.field, mixture.labels, words)
    rows = concatenate_datasets(_with_own_ids(parts, path))
    part_of = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    weights = None if sources[0].weight is None else [source.weight or 0.0 for source in sources]
    kinds = _kinds(np.array(rows[mixture.field][:], object), part_of, weights, mixture.balanced)
    if not kinds:
        raise UserError(
            f"{path}: `balanced` needs rows with a label in the field {mixture.field!r}"
        )
    return rows.select(_draw(kinds, mixture.size if n is None else n, chance))


def _with_own_ids(parts: list[datasets.Dataset], path: Path) -> list[datasets.Dataset]:
    """The parts, in which no two rows have one id: two tables may name their pictures alike. The
    ids of a part that has one of an earlier part end in "@" and its number. Raises UserError for a
    row that is the same in two parts, because its picture is."""
    ids = [part["id"][:] for part in parts]
    often = Counter(id for of_part in ids for id in set(of_part))
    pictures: dict[str, set[str]] = {}
    result, same = [], 0
    for number, (part, of_part) in enumerate(zip(parts, ids, strict=True), 1):
        shared = [row for row, id in enumerate(of_part) if often[id] > 1]
        keys = map(_identity, image_sources(part.select(shared)))
        sources = [(of_part[row], key) for row, key in zip(shared, keys, strict=True)]
        same += sum(key in pictures.get(id, ()) for id, key in sources)
        if any(id in pictures for id, _ in sources):
            part = _replaced(part, "id", [f"{id}@{number}" for id in of_part])
        for id, key in sources:
            pictures.setdefault(id, set()).add(key)
        result.append(part)
    if same:
        raise UserError(
            f"{path}: {same} rows come from two of its sources: name each split of a data set "
            "once, and use `weight` to draw from it more often"
        )
    return result


def _identity(pictures: list[str | bytes]) -> str:
    """The files of a row, wherever the list names them from, or the content of its pictures."""
    return "\n".join(
        content_digest(p) if isinstance(p, bytes) else os.path.realpath(p) for p in pictures
    )


def read(path: Path) -> tuple[Mixture, list[Source]]:
    """The mixture file and its sources, checked as far as is possible without their data. Raises
    UserError that names the file and the key."""
    mixture = _build(Mixture, config.read_yaml(path), str(path))
    if not mixture.sources:
        raise UserError(f"{path}: `sources` is empty: name at least one data set")
    if mixture.field not in FIELDS:
        raise UserError(f"{path}: `field` is {mixture.field!r}, expected {', '.join(FIELDS)}")
    _check_labels(str(path), mixture.field, mixture.labels)
    sources = []
    for number, values in enumerate(mixture.sources, 1):
        where = f"{path}, source {number}"
        source = _build(Source, values, where)
        _check_labels(where, mixture.field, source.labels)
        if source.dataset.endswith((".py", *YAML)):
            file = path.parent / Path(source.dataset).expanduser()
            source = dataclasses.replace(source, dataset=str(file))
        sources.append(source)
    weighted = [source.weight is not None for source in sources]
    if any(weighted) and not all(weighted):
        number = weighted.index(False) + 1
        raise UserError(
            f"{path}, source {number}: `weight` is missing: give every source one, or none"
        )
    return mixture, sources


def _build(cls: type[T], values: dict[str, Any], where: str) -> T:
    try:
        return config.from_dict(cls, values, where=where)
    except UserError as error:
        raise UserError(str(error) if where in str(error) else f"{where}: {error}") from error


def _load_source(
    source: Source,
    where: str,
    folder: Path,
    root: str | Path | None,
    split: str,
    load_options: Mapping[str, str],
) -> datasets.Dataset:
    if is_mixture(source.dataset):
        raise UserError(f"{where}: {source.dataset} is a mixture itself: name data sets")
    try:
        source_root: str | Path | None = None
        if source.root is not None:
            source_root = folder / Path(source.root).expanduser()
        elif getattr(dataset_module(source.dataset), "NEEDS_ROOT", True):
            source_root = root
        options = {**load_options, **source.options}
        return load_dataset(source.dataset, source_root, source.split or split, **options)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _check_labels(where: str, name: str, labels: dict[Any, Any]) -> None:
    for word, to in labels.items():
        if not isinstance(word, str) or not (to is None or isinstance(to, str)):
            raise UserError(
                f"{where}: `labels` has {word!r}: {to!r}, expected a word and what it becomes, a "
                "word or null"
            )
    if name == "emotion":
        _check_words(where, name, [*labels, *labels.values()], label_spaces.EMOTIONS)


def _check_words(
    where: str, name: str, words: Iterable[str | None], vocabulary: Collection[str | None]
) -> None:
    """A word that no row holds is a misspelt one, except that a set may lack an emotion."""
    odd = [word for word in words if word is not None and word not in vocabulary]
    if odd and not (name == "emotion" and odd[0] in label_spaces.EMOTIONS):
        vocabulary_text = (
            ", ".join(sorted(word for word in vocabulary if word is not None)) or "empty"
        )
        raise UserError(
            f"{where}: `labels` has {odd[0]!r}, but {name} is one of: {vocabulary_text}"
        )


def _harmonise(
    rows: datasets.Dataset, name: str, labels: dict[str, str | None]
) -> datasets.Dataset:
    """The rows with the words of column `name` replaced, without those whose word becomes null."""
    if not labels:
        return rows
    words = rows[name][:]
    keep = [i for i, word in enumerate(words) if word is None or labels.get(word, word) is not None]
    rows = rows.select(keep)
    new = [None if words[i] is None else labels.get(words[i], words[i]) for i in keep]
    return _replaced(rows, name, new)


def _replaced(rows: datasets.Dataset, name: str, values: list[Any]) -> datasets.Dataset:
    """The rows with other values in a column."""
    feature, order = rows.features[name], rows.column_names
    return rows.remove_columns(name).add_column(name, values, feature=feature).select_columns(order)


# --- drawing --------------------------------------------------------------------------------------

# Rows that are drawn equally often, and of them the pools that sources give, each with its share.
Kind = list[tuple[np.ndarray, float]]


def _kinds(
    labels: np.ndarray, part_of: np.ndarray, weights: Sequence[float] | None, balanced: bool
) -> list[Kind]:
    words = sorted({word for word in labels if word is not None}) if balanced else [None]
    kinds = []
    for word in words:
        selection = labels == word if balanced else np.ones(len(labels), bool)
        if weights is None:
            kinds.append([(np.flatnonzero(selection), 1.0)])
            continue
        pools = [
            (np.flatnonzero(selection & (part_of == k)), weight) for k, weight in enumerate(weights)
        ]
        total = sum(weight for pool, weight in pools if len(pool))
        kinds.append([(pool, weight / total) for pool, weight in pools if len(pool)])
    return kinds


def _draw(kinds: list[Kind], size: int | None, chance: np.random.Generator) -> np.ndarray:
    """Indices of rows, shuffled."""
    if size is None:
        most = min(min(len(pool) / share for pool, share in kind) for kind in kinds)
        counts = [int(most + 1e-9)] * len(kinds)
    else:
        counts = _split(size, [1 / len(kinds)] * len(kinds))
    indices = [
        draw_evenly(pool, count, chance)
        for kind, total in zip(kinds, counts, strict=True)
        for (pool, _), count in zip(kind, _split(total, [s for _, s in kind]), strict=True)
    ]
    return chance.permutation(np.concatenate(indices))


def _split(total: int, shares: Sequence[float]) -> list[int]:
    """Whole numbers in proportion to the shares (which add up to 1), with that sum."""
    exact = np.array(shares) * total
    counts = np.floor(exact + 1e-9).astype(int)
    rounded_up = np.argsort(counts - exact, kind="stable")[: total - counts.sum()]
    counts[rounded_up] += 1
    return counts.tolist()


def draw_evenly(pool: np.ndarray, count: int, chance: np.random.Generator) -> np.ndarray:
    """`count` items of the pool; an item is repeated only after all others were drawn as often."""
    rounds, remainder = divmod(count, len(pool))
    return np.concatenate([np.tile(pool, rounds), chance.choice(pool, remainder, replace=False)])
