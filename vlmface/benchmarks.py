"""Protocols: what a benchmark asks and scores, which rows it has, and what others report on it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmface import data, label_spaces
from vlmface.data import crop_cache, crops
from vlmface.errors import UserError, did_you_mean
from vlmface.metrics.groups import GROUPED
from vlmface.metrics.metric import METRICS, Metric, load_metric, with_built_in
from vlmface.resources import YAML, resource
from vlmface.utils import config

if TYPE_CHECKING:
    import datasets

ATTRIBUTES = GROUPED
# The names of scores in eval/published.yaml: those of metrics, and the accuracy of an attribute.
PUBLISHED_SCORES = (
    *dict.fromkeys(metric.published for metric in METRICS.built_in.values() if metric.published),
    *ATTRIBUTES,
)
_FOLD = re.compile(r"(.+)_fold(\d+)")


@dataclass(frozen=True)
class Benchmark:
    """A protocol file, eval/benchmarks/NAME.yaml.

    Attributes:
        label_space: What is scored, or a list of such; each is asked by the model's prompt with
            that space. Without one the AUs alone are scored. A YAML file is relative to the
            protocol file, and so is a Python file of `dataset`.
        protocol: The data set's own options (n, seed, fold, ...).
        folds: How many test parts it has of which `protocol` names one (papers give the mean over
            all).
        au_set: The AUs that are scored.
        au_threshold: The intensity (0..5) from which an AU counts as present (null: as annotated).
        metrics: Metrics that are computed in addition to the built-in ones, each a name,
            `FILE.py:NAME` (a file beside the protocol) or `MODULE:NAME`. A built-in one that is
            named is shown among the main scores.
        baseline: A JSON file beside the protocol with the scores of a plain model, shown next to
            ours.
    """

    id: str
    dataset: str
    split: str
    source: str
    label_space: str | list[str] | None = None
    protocol: dict[str, Any] = field(default_factory=dict)
    folds: int | None = None
    au_set: list[int] = field(default_factory=list)
    au_threshold: float | None = None
    metrics: list[str] = field(default_factory=list)
    baseline: str | None = None
    notes: str | None = None

    @cached_property
    def spaces(self) -> list[label_spaces.LabelSpace]:
        """The label spaces that are scored."""
        names = [self.label_space] if isinstance(self.label_space, str) else self.label_space
        return [label_spaces.space(name) for name in names or ()]

    @property
    def extra_metrics(self) -> list[Metric]:
        """The definitions of `metrics`. Files and modules are imported. Raises UserError."""
        return [load_metric(name) for name in self.metrics]

    @property
    def all_metrics(self) -> list[Metric]:
        """The built-in metrics, then the further ones of `metrics`. Raises UserError."""
        return with_built_in(self.extra_metrics)

    @property
    def kinds(self) -> set[str]:
        """The kinds of blocks (`metrics.metric.Kind`) that it may score."""
        kinds = {"affect", "rationale", "answers", "calibration"}
        if self.au_set:
            kinds.add("au")
        for space in self.spaces:
            one_label = "emotion" if space.field == "emotion" else "attributes"
            one_label = one_label if space.scale is None else "scale"
            kinds.add("labels" if space.multi_label else one_label)
        return kinds

    @property
    def needs_root(self) -> bool:
        """Whether its data lie in a folder of the user's; rendered faces lie in none."""
        return getattr(data.dataset_module(self.dataset), "NEEDS_ROOT", True)

    def root_beside(self, dataset_root: str | None) -> str | None:
        """Where its data lie if nothing else is said: with the training data, if anywhere."""
        return dataset_root if self.needs_root else None

    @property
    def published(self) -> list[dict[str, Any]]:
        """The results of eval/published.yaml that it can be compared with."""
        fold = _FOLD.fullmatch(self.id)
        return load_published().get(fold[1] if fold else self.id, [])


def load_benchmark(name_or_path: str) -> Benchmark:
    """A benchmark by name ("synth"), another fold of one ("disfa8_fold2"), from a YAML file of your
    own, or the YAML file of a data set. Raises UserError."""
    if data.is_dataset_file(name_or_path):
        return _of_dataset(name_or_path)
    path, fold = Path(name_or_path), None
    if path.suffix not in (".yaml", ".yml"):
        name = name_or_path
        if match := _FOLD.fullmatch(name):
            name, fold = match[1], int(match[2])
        if name not in benchmark_names():
            _check_no_data(name_or_path)
            raise UserError(f"there is no benchmark {name!r}{_use_one_of(name)}")
        path = resource("eval/benchmarks") / f"{name}.yaml"
    benchmark = config.from_dict(Benchmark, _with_paths(path), where=str(path))
    fields = [space.field for space in benchmark.spaces]
    if not fields and not benchmark.au_set:
        raise UserError(f"{path} has neither label_space nor au_set: say what is scored")
    if len(set(fields)) < len(fields):
        raise UserError(
            f"{path}: label_space is {benchmark.label_space!r}: name one, or several of which no "
            f"two speak of the same ({', '.join(fields)})"
        )
    if benchmark.baseline is not None:  # a file beside the protocol
        benchmark = replace(benchmark, baseline=str(path.parent / benchmark.baseline))
    benchmark = replace(
        benchmark, metrics=[_from_folder(name, path.parent) for name in benchmark.metrics]
    )
    _check_metrics(benchmark, path)
    return benchmark if fold is None else _of_fold(benchmark, fold)


def _check_no_data(name: str) -> None:
    """Raises UserError for a table or a folder of pictures in place of a benchmark."""
    if Path(name).exists():
        raise UserError(
            f"{name} is not a benchmark. If it has labels, `vlmface data init {name}` writes a "
            "YAML file that is one. Without labels nothing can be scored; `vlmface predict FOLDER "
            "--model MODEL --csv answers.csv` asks a model about pictures"
        )


def _of_dataset(path: str) -> Benchmark:
    """The test split of a data set's file, scored in the file's label space."""
    dataset = data.DatasetFile(path, data.dataset_module)
    if "test" not in dataset.SPLITS:
        raise UserError(f"{path} has no test split: add `splits: {{by: subject, test: 0.2}}`")
    space = dataset.label_space
    return Benchmark(
        id=dataset.path.stem,
        dataset=path,
        split="test",
        source=str(dataset.path.name),
        label_space=space.id if space.is_built_in else path,
        au_set=dataset.au_set,
    )


def _with_paths(path: Path) -> dict[str, Any]:
    """The content of a protocol file, in which the names of files are paths from here."""
    content = config.read_yaml(path)
    for key in ("label_space", "dataset"):
        names = content.get(key)
        if isinstance(names, list):
            content[key] = [_beside(path, name) for name in names]
        elif names is not None:
            content[key] = _beside(path, names)
    return content


def _beside(path: Path, name: Any) -> Any:
    """A file's name in `path` as a path from here; anything else as it is."""
    if isinstance(name, str) and name.endswith((*YAML, ".py")):
        return str(path.parent / Path(name).expanduser())
    return name


def _from_folder(reference: str, folder: Path) -> str:
    """A reference to a metric, the file of one beside the protocol as its whole path."""
    file, colon, name = reference.rpartition(":")
    if not colon or not file.endswith(".py"):
        return reference
    return f"{(folder / Path(file).expanduser()).resolve()}:{name}"


def _check_metrics(benchmark: Benchmark, path: Path) -> None:
    """Raises UserError for metrics that do not exist, or are of what is not scored."""
    try:
        metrics = benchmark.extra_metrics
        with_built_in(metrics)
    except UserError as error:
        raise UserError(f"{path}: metrics: {error}") from error
    for metric in metrics:
        if not benchmark.kinds.intersection(metric.applies_to):
            raise UserError(
                f"{path}: metrics: {metric.name} is of {' and '.join(metric.applies_to)}, which "
                f"benchmark {benchmark.id} does not score: leave it out"
            )
        if len(benchmark.spaces) > 1 and set(metric.applies_to) <= {"rationale", "answers"}:
            raise UserError(
                f"{path}: metrics: {metric.name} is of {' and '.join(metric.applies_to)}, but "
                f"benchmark {benchmark.id} has several prompts, one for each label space: name it "
                "in benchmarks of one label space"
            )


def _of_fold(benchmark: Benchmark, fold: int) -> Benchmark:
    if benchmark.folds is None:
        raise UserError(f"benchmark {benchmark.id} has no folds: leave _fold{fold} out")
    if not 1 <= fold <= benchmark.folds:
        raise UserError(
            f"benchmark {benchmark.id} has folds 1 to {benchmark.folds}: there is no fold {fold}"
        )
    options = benchmark.protocol | {"fold": fold}
    return replace(benchmark, id=f"{benchmark.id}_fold{fold}", protocol=options)


def benchmark_names() -> list[str]:
    """The names that `load_benchmark` knows, sorted, without those of single folds."""
    return sorted(file.stem for file in resource("eval/benchmarks").glob("*.yaml"))


def _use_one_of(name: str) -> str:
    """The end of a sentence about an unknown benchmark."""
    names = benchmark_names()
    return f"{did_you_mean(name.lower(), names, 3)}: use one of {', '.join(names)}"


def load_published(path: Path | None = None) -> dict[str, list[dict[str, Any]]]:
    """eval/published.yaml: benchmark -> results that papers report on it. Each names its `model`
    and `source`, has scores (0..1) under names of PUBLISHED_SCORES, and may have `notes` on how its
    protocol differs. Raises UserError."""
    path = path or resource("eval/published.yaml")
    results = config.read_yaml(path)
    names = benchmark_names()
    for name, entries in results.items():
        if name not in names:
            raise UserError(f"{path}: there is no benchmark {name!r}{_use_one_of(str(name))}")
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise UserError(f"{path}: {name} should hold a list of {{model, scores, source}}")
        for number, entry in enumerate(entries, 1):
            _check_result(entry, where=f"{path}: result {number} of {name}")
    return results


def _check_result(entry: Mapping[str, Any], where: str) -> None:
    for key in ("model", "source"):
        if not isinstance(entry.get(key), str) or not entry[key].strip():
            raise UserError(f"{where} has {key} {entry.get(key)!r}: give a text")
    scores = entry.keys() - {"model", "source", "notes"}
    if not scores or not scores <= set(PUBLISHED_SCORES):
        unknown = ", ".join(sorted(map(str, scores - set(PUBLISHED_SCORES)))) or "none"
        raise UserError(
            f"{where} ({entry['model']}) should have scores named {', '.join(PUBLISHED_SCORES)}, "
            f"found {unknown}"
        )
    for key in scores:
        if type(entry[key]) not in (int, float) or not 0 <= entry[key] <= 1:
            raise UserError(
                f"{where} ({entry['model']}) has {key} {entry[key]!r}, expected a share from 0 to "
                "1: divide a percentage by 100"
            )


def load_baseline(benchmark: Benchmark) -> dict[str, Any] | None:
    """The plain model's scores that a report shows beside ours, if the benchmark names any."""
    if benchmark.baseline is None:
        return None
    path = benchmark.baseline
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"benchmark {benchmark.id}: cannot read its baseline {path} ({error}): restore the "
            "file, or take the `baseline` line out of the benchmark"
        ) from error


def load_rows(
    benchmark: Benchmark,
    root: str | None,
    n: int | None,
    views: crops.Views = (),
    frames: int = 1,
) -> datasets.Dataset:
    """The benchmark's rows as `crop_cache.apply_views` makes them, images as stored without views;
    `n` takes another number of them (not comparable with published results)."""
    options = benchmark.protocol | ({"n": n} if n is not None else {})
    rows = data.load(benchmark.dataset, root, benchmark.split, **options)
    return crop_cache.apply_views(rows, views, frames)
