"""A data set in one YAML file: where it is, how its columns are read, its labels and its splits.

    dataset: table
    root: faces.csv
    options: {columns: {image: path, label: state, subject: person}}
    splits: {by: subject, validation: 0.15, test: 0.2, seed: 0}
    label_space: {labels: [bored, confused, engaged], aliases: {engaged: [attentive]}}
    prompt: label

The file can be passed wherever the name of a data set is expected, and as a benchmark: its test
split, scored in its label space. `DatasetFile` explains the keys; `vlmface data init` writes one.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from vlmface import label_spaces
from vlmface.data import estimates, options, splits
from vlmface.data.people import OWN_FILES
from vlmface.data.rows import Rows, resolve_image_paths
from vlmface.data.sources import image_sources
from vlmface.data.splits import PARTS, Splits
from vlmface.errors import UserError
from vlmface.label_spaces import LabelSpace
from vlmface.resources import YAML, is_yaml
from vlmface.schema import features
from vlmface.utils import config

if TYPE_CHECKING:
    import datasets

DEFAULT_SPACE = "emotion8"
_OTHER_KINDS = ("sources", "id", "split")  # keys of mixtures and benchmarks
_DIVIDED = "train"  # the split that shares are taken from


@dataclass(frozen=True)
class Definition:
    """The keys of the file.

    Attributes:
        dataset: The name of a data set; a Python file is relative to the YAML file.
        root: Its folder or file, relative to the YAML file; None: given on the command line.
        options: Options of the data set.
        splits: See `splits.Splits`. None: the splits of the data set itself.
        label_space: A name, a YAML file, or the definition of a label space, of which id, field and
            source may be left out. It is also the `label_space` option of data sets that have one.
        prompt: What recipes train with: a prompt's name or file, or one of `prompts.GENERATED`.
        estimated_aus: A file that `vlmface data add-aus` writes, relative to the YAML file.
        missing: What rows without their image file are: an error, or left out ("drop").
    """

    dataset: str
    root: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    splits: dict[str, Any] | None = None
    label_space: str | dict[str, Any] = DEFAULT_SPACE
    prompt: str = "label"
    estimated_aus: str | None = None
    missing: Literal["error", "drop"] = "error"


def is_dataset_file(name: str | Path) -> bool:
    """Whether a name is the path of a YAML file with the definition of a data set, and not of a
    mixture or of a benchmark.

    Raises:
        UserError: The file exists and cannot be read.
    """
    path = Path(name).expanduser()
    if not is_yaml(name) or not path.exists():
        return False
    content = config.read_yaml(path)
    return "dataset" in content and not any(key in content for key in _OTHER_KINDS)


class DatasetFile:
    """A data set as its file defines it, with what the module of a data set has: SPLITS, `read` and
    `present_splits`.

    Args:
        path: The YAML file.
        find: Returns the module of a data set's name (`catalog.dataset_module`).

    Raises:
        UserError: A key, an option or the label space is not valid.
    """

    def __init__(self, path: str | Path, find: Callable[[str], Any]) -> None:
        self.path = Path(path).expanduser()
        content = config.read_yaml(self.path)
        self.definition = config.from_dict(Definition, content, where=str(self.path))
        self.label_space_name = str(path) if "label_space" in content else DEFAULT_SPACE
        self.label_space = label_spaces.space(self.label_space_name)
        self.splits = config.from_dict(
            Splits, dict(self.definition.splits or {}), where=f"splits of {self.path}"
        )
        self._check_splits()
        self.missing = self.definition.missing
        dataset = self._beside(self.definition.dataset)
        if is_yaml(dataset):
            raise UserError(f"{self.path}: dataset is {dataset}, but must not be a YAML file")
        self._module = find(dataset)
        self.options = self._options()
        self.read = self._reader()

    # --- what the module of a data set has --------------------------------------------------------

    @property
    def TITLE(self) -> str:  # noqa: N802
        """For display."""
        return f"{self.path.stem}: {getattr(self._module, 'TITLE', self.definition.dataset)}"

    @property
    def HOME(self) -> str:  # noqa: N802
        """What a user's copy of it is."""
        return getattr(self._module, "HOME", "home unknown")

    @property
    def LICENCE(self) -> str:  # noqa: N802
        """For display."""
        return getattr(self._module, "LICENCE", "licence unknown")

    @property
    def SPLITS(self) -> tuple[str, ...]:  # noqa: N802
        """The splits that it may have."""
        names = (*self._module.SPLITS, *self.splits.shares)
        return tuple(dict.fromkeys((*(part for part in PARTS if part in names), *names)))

    @property
    def NEEDS_ROOT(self) -> bool:  # noqa: N802
        """Whether the root must be given, because the file does not name it."""
        return self.definition.root is None and getattr(self._module, "NEEDS_ROOT", True)

    @property
    def WHOLE_SCENES(self) -> bool:  # noqa: N802
        """Whether pictures show people in their surroundings."""
        return getattr(self._module, "WHOLE_SCENES", False)

    def present_splits(self, root: Path | None, **values: Any) -> tuple[str, ...]:
        """The splits that the files of the data set and the shares of `splits` give."""
        merged = self.options | values
        present = self._own_splits(self._root(root), merged)
        if _DIVIDED in present:
            present = (*present, *self.splits.shares)
        return tuple(part for part in self.SPLITS if part in present)

    # --- reading ----------------------------------------------------------------------------------

    def _reader(self) -> Callable[..., Rows | datasets.Dataset]:
        """`read(root, split, **options)`, whose signature declares the options of the data set."""

        def read(root: Path | None, split: str, **values: Any) -> Rows | datasets.Dataset:
            rows = self._read(self._root(root), split, self.options | values)
            path = self.estimates_path
            return rows if path is None else estimates.add_to_rows(rows, path)

        declared = dict(options.option_types(self._module.read))
        if self.splits.shares:
            declared.pop("n", None)  # rows are chosen after the split, not before
        first, second, _ = inspect.signature(read).parameters.values()
        named = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind)
            for name, kind in declared.items()
        ]
        read.__signature__ = inspect.Signature([first, second, *named])  # type: ignore[attr-defined]
        return read

    def _read_whole(
        self, root: Path | None, split: str, merged: dict[str, Any]
    ) -> Rows | datasets.Dataset:
        """A split of the data set as it is without `splits`."""
        return options.call_reader(self._module.read, root, split, merged)

    def _read(
        self, root: Path | None, split: str, merged: dict[str, Any]
    ) -> Rows | datasets.Dataset:
        present = self._own_splits(root, merged)
        shares = self.splits.shares if _DIVIDED in present else {}
        other = [name for name in merged if merged[name] != self.options.get(name)]
        if shares and other:
            raise UserError(
                f"{self.path}: the option {other[0]!r} was given, but options decide which rows "
                "are split, and training and evaluation need the same splits: write it into the "
                "file"
            )
        if twice := [part for part in shares if part != _DIVIDED and part in present]:
            raise UserError(
                f"{self.path}: the data have a split {twice[0]!r} already: leave {twice[0]} out of "
                "splits"
            )
        if split not in (*present, *shares):
            raise UserError(
                f"{self.path} has no split {split!r}, only {', '.join(present)}: add `splits: "
                "{by: subject, validation: 0.15, test: 0.2}`"
            )
        if split not in shares:
            return self._read_whole(root, split, merged)
        rows = self._read_whole(root, _DIVIDED, merged)
        parts = np.array(self._assign(rows, shares))
        chosen = parts == split
        if not isinstance(rows, Rows):
            return rows.select(np.flatnonzero(chosen))
        rows = rows.take(chosen)
        return rows if split == _DIVIDED else Rows(rows.columns)  # skipped rows are counted once

    def _assign(self, rows: Rows | datasets.Dataset, shares: Mapping[str, float]) -> list[str]:
        """The part of each row."""
        by, groups = self._groups(rows)
        labels = row_labels(rows, self.label_space)
        units = {"subject": "people", "image": "pictures", "video": "videos"}[by]
        if len(set(groups)) < len(shares):
            raise UserError(
                f"{self.path}: {len(rows)} rows show {len(set(groups))} {units}, too few for the "
                f"splits {', '.join(shares)}: add data, or leave validation out of splits"
            )
        scale = self.label_space.scale
        if scale is not None:  # steps are not classes: low and high numbers are in each part
            labels = splits.thirds([scale.value_of(x or ()) for x in column(rows, "context")])
        is_class = scale is None and not self.label_space.multi_label
        rare = splits.rare_labels(groups, labels) if is_class else {}
        if "test" in shares and rare:
            label, row = next(iter(rare.items()))
            single = {"subject": "person", "image": "picture", "video": "video"}[by]
            raise UserError(
                f"{self.path}: the label {label!r} is on a single {single} ({_ids(rows)[row]}), so "
                "it cannot be in train and in test: add data, correct the label, or leave it out "
                f"with the option labels: {{{label}: null}}"
            )
        return splits.assign(groups, labels, shares, self.splits.seed)

    def _groups(self, rows: Rows | datasets.Dataset) -> tuple[str, list[str]]:
        """(subject, image or video; the person, picture or video of each row)."""
        ids = _ids(rows)
        if self.splits.by == "video":
            return "video", self._videos(rows)
        subjects = column(rows, "subject")
        unnamed = [id for id, subject in zip(ids, subjects, strict=True) if not subject]
        by = self.splits.by or ("image" if unnamed else "subject")
        if by == "subject":
            if unnamed:
                raise UserError(
                    f"{self.path}: splits go by person, but {len(unnamed)} of {len(ids)} rows "
                    f"({unnamed[0]}) name none: fill in the column, name it with columns: "
                    "{subject: NAME}, or set by: image"
                )
            return by, subjects
        if isinstance(rows, Rows):
            rows, _ = resolve_image_paths(rows, str(self.path))
        return by, splits.picture_groups(ids, image_sources(rows))

    def _videos(self, rows: Rows | datasets.Dataset) -> list[str]:
        """The video of each row."""
        videos = [json.loads(meta or "{}").get("video") for meta in column(rows, "meta")]
        if None in videos:
            raise UserError(
                f"{self.path}: splits go by video, but {_ids(rows)[videos.index(None)]} is not a "
                "frame of a video or of a folder of frames: set by: image"
            )
        return videos

    # --- the file ---------------------------------------------------------------------------------

    def _check_splits(self) -> None:
        if sum(self.splits.shares.values()) and self.splits.shares["train"] <= 0:
            raise UserError(
                f"{self.path}: validation and test are {self.splits.validation} and "
                f"{self.splits.test}, which leaves nothing to train on: lower them"
            )
        if self.splits.names and self.splits.column is None:
            raise UserError(f"{self.path}: splits has names, but no column: add the column's name")
        for word, part in self.splits.names.items():
            if part not in PARTS:
                raise UserError(
                    f"{self.path}: splits calls {word!r} {part!r}: use one of {', '.join(PARTS)}"
                )

    def _options(self) -> dict[str, Any]:
        """The options of the data set, with those that other keys of the file stand for."""
        merged = dict(self.definition.options)
        option_names = options.option_types(self._module.read)
        if self.definition.dataset in OWN_FILES and isinstance(merged.get("images"), str):
            merged["images"] = str(self.path.parent / Path(merged["images"]).expanduser())
        if isinstance(merged.get("columns"), dict):
            merged["columns"] = self._columns(merged["columns"])
        if self.splits.column is not None:
            if "split_column" not in option_names:
                raise UserError(
                    f"{self.path}: splits names the column {self.splits.column!r}, but data set "
                    f"{self.definition.dataset} has no columns: leave it out"
                )
            merged |= {"split_column": self.splits.column, "splits": self.splits.names}
        try:
            options.check_options(self.definition.dataset, self._module.read, merged)
        except UserError as error:
            raise UserError(f"options of {self.path}: {error}") from error
        if "label_space" in option_names:
            merged.setdefault("label_space", self.label_space)
            if self.label_space.field == "context":
                merged.setdefault("label_field", "context")
            elif self.label_space.field != "emotion" and "labels" in merged:
                merged["words"] = {self.label_space.field: merged.pop("labels")}
        return merged

    def _columns(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        """The option `columns`, in which `label` stands for the field of the label space. A column
        with the name of another field is not read as that field, too."""
        named = dict(columns)
        if "label" not in named:
            return named
        label = named.pop("label")
        named[self.label_space.field] = label
        same = str(label).casefold()
        if same in features() and same != self.label_space.field:
            named.setdefault(same, None)
        return named

    def _own_splits(self, root: Path | None, merged: dict[str, Any]) -> tuple[str, ...]:
        """The splits that the data set has without `splits`."""
        if not hasattr(self._module, "present_splits"):
            return tuple(self._module.SPLITS)
        return tuple(self._module.present_splits(root, **merged)) or tuple(self._module.SPLITS)

    def _root(self, default_root: Path | None) -> Path | None:
        if self.definition.root is None:
            return default_root
        root = self.path.parent / Path(self.definition.root).expanduser()
        if not root.exists():
            raise UserError(
                f"{self.path}: root is {self.definition.root}, but {root} does not exist"
            )
        return root

    def _beside(self, name: str) -> str:
        """A file's name in the YAML file as a path from here; any other name as it is."""
        if name.endswith((".py", *YAML)):
            return str(self.path.parent / Path(name).expanduser())
        return name

    @property
    def estimates_path(self) -> Path | None:
        """The file of estimated action units, None if the file does not name one."""
        name = self.definition.estimated_aus
        return None if name is None else self.path.parent / Path(name).expanduser()

    @property
    def au_set(self) -> list[int]:
        """The action units that the data annotate; [] if the prompt does not ask for any, or the
        root is not known."""
        if self.definition.prompt == "label" or self.NEEDS_ROOT:
            return []
        rows = self.read(None, self.present_splits(None)[0])
        annotated = column(rows, "aus")
        return sorted({label["au"] for units in annotated for label in units or ()})

    @property
    def prompt(self) -> str:
        """The prompt that recipes train with, a file as its path from here."""
        return self._beside(self.definition.prompt)

    def to_mapping(self) -> dict[str, Any]:
        """The content of the file, for a manifest."""
        return {f.name: getattr(self.definition, f.name) for f in fields(self.definition)}


def row_labels(rows: Rows | datasets.Dataset, space: LabelSpace) -> list[tuple[str, ...]]:
    """The labels of each row in a label space; () for a row without one."""
    columns = {name: column(rows, name) for name in dict.fromkeys((space.field, "age"))}
    labels_of_rows: list[tuple[str, ...]] = []
    for value, age in zip(columns[space.field], columns["age"], strict=True):
        if value is None and space.field == "age_group" and age is not None:
            labels_of_rows.append((space.age_group_of(age),))
            continue
        words = value if isinstance(value, list | tuple) else [value]
        labels_of_rows.append(space.labels_of(word for word in words if word))
    return labels_of_rows


def _ids(rows: Rows | datasets.Dataset) -> list[str]:
    return column(rows, "id")


def column(rows: Rows | datasets.Dataset, name: str) -> list[Any]:
    """The values of a column, None for one that is not filled."""
    if not isinstance(rows, Rows):
        return rows[name][:]
    values: Any = rows.columns.get(name)
    if values is None:
        return [None] * len(rows)
    if hasattr(values, "to_pylist"):
        return values.to_pylist()
    return values.tolist() if isinstance(values, np.ndarray) else list(values)
