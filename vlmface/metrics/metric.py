"""What a metric is: one definition, from which all tables, pages and comparisons derive.

A metric is a decorated function:

    from vlmface.metrics import metric

    @metric("answers that give a reason", applies_to="rationale")
    def says_why(row, scope):
        return "because" in row["text"]

A benchmark file names it, `metrics: [my_metrics.py:says_why]`. It then is in metrics.json with its
95 % interval, in the report, in `vlmface compare`, sweeps, robustness curves and lmms-eval tasks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from vlmface.errors import UserError, did_you_mean
from vlmface.label_spaces import LabelSpace
from vlmface.metrics.statistics import Array
from vlmface.registry import Registry

Row = Mapping[str, Any]  # a line of predictions.jsonl, see `metrics`

Kind = Literal[
    "emotion",
    "attributes",
    "scale",
    "labels",
    "au",
    "affect",
    "rationale",
    "calibration",
    "answers",
]
"""The block of metrics.json that has a metric: the emotion, each other label space of one label a
face, numbers of a scale, several labels a face, action units, valence and arousal, the model's
rationales, label probabilities, and the answers as a whole. The last two have no intervals."""

KINDS: tuple[Kind, ...] = get_args(Kind)
Input = Literal["row", "sums", "weights", "probabilities"]
INPUTS: tuple[Input, ...] = get_args(Input)
# What a metric of these kinds may take; those of other kinds take _USUAL_INPUTS.
_INPUTS_OF: dict[str, tuple[Input, ...]] = {
    "affect": ("sums",),
    "rationale": ("row", "weights"),
    "calibration": ("probabilities",),
    "answers": ("row",),
}
_USUAL_INPUTS: tuple[Input, ...] = ("row", "sums", "weights")
PREFIXES = {"labels": "labels_", "au": "au_", "rationale": "rationale_"}
# Keys of the blocks, and of metrics.json itself, that are not scores.
_RESERVED = {
    "n",
    "ci95",
    "no_ci95",
    "clusters",
    "answered",
    "constant",
    "labels",
    "confusion",
    "per_class",
    "per_label",
    "per_au",
    "groups",
    "gaps",
    "equalised_odds",
    "intersections",
    "calibration",
    "readings",
    "bins",
    "reliability",
    "schema",
    "benchmark",
    "model",
    "served_model",
    "unanswered",
    "prompt",
    "prompts",
    "label_space",
    "scoring",
    "parse",
    "wall_s",
    "peak_rss_gib",
    *KINDS,
}


@dataclass(frozen=True)
class Scope:
    """What the rows of one prompt are scored by: its label space, and the AUs (numbers)."""

    space: LabelSpace
    au_set: Sequence[int] = ()


@dataclass(frozen=True)
class Metric:
    """The definition of a metric.

    Attributes:
        name: How the command line and benchmark files name it; unique.
        title: Its line in tables and pages.
        function: Computes it, from what `takes` names.
        applies_to: The kinds of blocks that have it.
        takes: The input of `function`:
            "row": a row and its `Scope`; the metric is the mean of the results over the rows. None
                leaves a row out.
            "sums": what `counts` of the block (`labels.count_labels`, ...) adds up to, an array of
                any leading shape; returns values of that leading shape. It is called with the
                sums of all bootstrap resamples at once.
            "weights": the rows and the `Scope`; returns a function from weights (R, rows), how
                often each row occurs, to values (R,). None if the rows cannot be scored.
            "probabilities": label probabilities (N, K) and the indices (N,) of the true labels.
        key: Its key in the block of metrics.json; `name` by default.
        higher_is_better: Its direction, which colours comparisons and ranks sweeps.
        unit: "%" for a share, "" for anything else.
        scale: What a value is multiplied by to be shown.
        digits: Decimal places of a shown value.
        published: Its name in eval/published.yaml, "" if papers do not report it.
        short_title: Its column beside published results; `title` by default.
        hub_type: Its id among the hub's metrics, for model cards; `name` by default.
        main: Whether it is in the markdown table and the pair matrices of comparisons.
        headline: Whether it is drawn over corruptions, and decides sweeps where none is named.
        in_tables: Whether tables show it.
        summary: {kind: its part of the one-line summary} with {block}, {value}, {interval}.
        share: Of a share of rows, the (hits, totals) of each row from the counts (rows, D1, D2):
            its interval and test are then exact.
    """

    name: str
    title: str
    function: Callable[..., Any]
    applies_to: tuple[Kind, ...]
    takes: Input = "row"
    key: str = ""
    higher_is_better: bool = True
    unit: str = "%"
    scale: float = 100
    digits: int = 1
    published: str = ""
    short_title: str = ""
    hub_type: str = ""
    main: bool = False
    headline: bool = False
    in_tables: bool = True
    summary: Mapping[str, str] = field(default_factory=dict)
    share: Callable[[Array], tuple[Array, Array]] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", self.key or self.name)
        object.__setattr__(self, "short_title", self.short_title or self.title)
        for name in (self.name, self.key):
            if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name in _RESERVED:
                raise UserError(
                    f"a metric cannot be named {name!r}: use lower-case letters, digits and _, and "
                    "a name that metrics.json does not use for something else"
                )
        unknown = next((kind for kind in self.applies_to if kind not in KINDS), None)
        if unknown is not None:
            raise UserError(
                f"metric {self.name} applies to {unknown!r}{did_you_mean(unknown, KINDS)}: "
                f"use one of {', '.join(KINDS)}"
            )
        if self.takes not in INPUTS:
            raise UserError(
                f"metric {self.name} takes {self.takes!r}{did_you_mean(self.takes, INPUTS)}: "
                f"use one of {', '.join(INPUTS)}"
            )
        for kind in self.applies_to:
            allowed = _INPUTS_OF.get(kind, _USUAL_INPUTS)
            if self.takes not in allowed:
                raise UserError(
                    f"metric {self.name} applies to {kind} and takes {self.takes}: a metric of "
                    f"that kind takes {' or '.join(allowed)}"
                )

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)

    @property
    def label(self) -> str:
        """The title, with the direction where it is not the usual one."""
        return self.title if self.higher_is_better else f"{self.title}, lower is better"

    @property
    def is_share(self) -> bool:
        """Whether its values are shares from 0 to 1."""
        return self.unit == "%"

    def text(self, value: float | None) -> str:
        """A value as tables show it."""
        return "\N{EN DASH}" if value is None else f"{self.scale * value:.{self.digits}f}"

    def with_unit(self, value: float | None) -> str:
        """A value as tables show it, with its unit."""
        return f"{self.text(value)} {self.unit}".rstrip()

    def interval_text(self, ci95: Sequence[float] | None) -> str:
        """An interval as tables show it, "" without one."""
        if ci95 is None:
            return ""
        separator = " to " if ci95[0] < 0 else "\N{EN DASH}"
        return separator.join(map(self.text, ci95))

    def difference_text(self, difference: float) -> str:
        """A difference of two values, with its sign."""
        return f"{self.scale * difference:+.{self.digits}f}"

    def points(self, difference: float) -> str:
        """`difference_text` with a typographic minus sign."""
        return self.difference_text(difference).replace("-", "\N{MINUS SIGN}")

    def gain(self, difference: float) -> float:
        """The difference, positive where it is an improvement."""
        return difference if self.higher_is_better else -difference


METRICS: Registry[Metric] = Registry("metric", "vlmface.metrics")


def metric(
    title: str, *, applies_to: Kind | Sequence[Kind], **fields: Any
) -> Callable[[Callable[..., Any]], Metric]:
    """A decorator that makes a function a `Metric`.

    Args:
        title: Its line in tables and pages.
        applies_to: The kind of block that has it, or several.
        **fields: Further fields of `Metric`; `name` is the function's name by default.

    Returns:
        The decorator. The module then holds the `Metric` under the function's name.
    """

    def define(function: Callable[..., Any]) -> Metric:
        kinds = (applies_to,) if isinstance(applies_to, str) else tuple(applies_to)
        values = {"name": function.__name__} | fields
        return Metric(title=title, function=function, applies_to=kinds, **values)

    return define


def built_in(
    title: str, *, applies_to: Kind | Sequence[Kind], **fields: Any
) -> Callable[[Callable[..., Any]], Metric]:
    """As `metric`, for the metrics of the package, which every evaluation computes."""

    def define(function: Callable[..., Any]) -> Metric:
        definition = metric(title, applies_to=applies_to, **fields)(function)
        return METRICS.register(definition.name)(definition)

    return define


def load_metric(reference: str) -> Metric:
    """The metric of a name, `FILE.py:NAME` or `MODULE:NAME`.

    This imports code: a reference must come from the user's command line or benchmark file, never
    from a run folder.

    Raises:
        UserError: There is no such metric, or what has that name is something else.
    """
    definition = METRICS.get(reference)
    if not isinstance(definition, Metric):
        raise UserError(
            f"{reference} is not a metric but {type(definition).__name__}: decorate the function "
            "with vlmface.metrics.metric"
        )
    return definition


def with_built_in(extra: Iterable[Metric]) -> list[Metric]:
    """The built-in metrics, then those that are not.

    Raises:
        UserError: Two metrics have one name, or one key in the same block.
    """
    metrics = list(METRICS.built_in.values())
    metrics += [definition for definition in extra if definition not in metrics]
    names: set[str] = set()
    keys: set[tuple[str, str]] = set()
    for definition in metrics:
        own_keys = {(kind, definition.key) for kind in definition.applies_to}
        if definition.name in names or keys & own_keys:
            raise UserError(
                f"there are two metrics named {definition.name!r} (key {definition.key!r} in "
                "metrics.json): give yours another name"
            )
        names.add(definition.name)
        keys |= own_keys
    return metrics


def of_kind(metrics: Iterable[Metric], kind: str) -> list[Metric]:
    """The metrics that apply to a kind of block, in their order."""
    return [definition for definition in metrics if kind in definition.applies_to]


# --- the blocks of metrics.json -------------------------------------------------------------------


@dataclass(frozen=True)
class ScoredBlock:
    """A block of metrics.json, or of the differences of two runs: {key of a metric: value}."""

    kind: Kind
    title: str
    scores: Mapping[str, Any]

    def get(self, definition: Metric) -> Any:
        """The value of a metric, or its difference; None if this block does not have it."""
        return self.scores.get(definition.key) if self.kind in definition.applies_to else None

    def ci95(self, definition: Metric) -> Sequence[float] | None:
        """The interval of a metric, None if it has none."""
        return self.scores.get("ci95", {}).get(definition.key)


def scored_blocks(scores: Mapping[str, Any]) -> Iterator[ScoredBlock]:
    """The blocks that have intervals: emotion, each attribute, scales, several labels a face,
    action units, valence and arousal, rationales."""
    blocks: list[tuple[Kind, str, Any]] = [("emotion", "emotion", scores.get("emotion"))]
    blocks += [("attributes", *item) for item in (scores.get("attributes") or {}).items()]
    blocks += [("scale", *item) for item in (scores.get("scale") or {}).items()]
    blocks.append(("labels", "labels that apply", scores.get("labels")))
    blocks.append(("au", "action units", scores.get("au")))
    blocks += [("affect", *item) for item in (scores.get("affect") or {}).items()]
    blocks.append(("rationale", "rationale", scores.get("rationale")))
    return (ScoredBlock(kind, title, block) for kind, title, block in blocks if block)


def lookup(scores: Mapping[str, Any], definition: Metric) -> tuple[ScoredBlock, Any] | None:
    """(the first block that has a metric, its value or difference there); None if none has it."""
    for block in scored_blocks(scores):
        if (value := block.get(definition)) is not None:
            return block, value
    return None
