"""The settings and the context of a build, and the rationale of one face."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from vlmface.data import option_checks
from vlmface.errors import UserError
from vlmface.label_spaces import LabelSpace
from vlmface.rationale import rules
from vlmface.rationale.ground_truth import GroundTruth
from vlmface.rationale.verify import Limits, Verdict
from vlmface.utils.ranges import (
    Checked,
    Count,
    Natural,
    NotNegative,
    Positive,
    PositiveShare,
    Range,
    Seed,
    Share,
    Unused,
)

if TYPE_CHECKING:
    import datasets
    from PIL import Image

TEACHER_REQUEST = {"temperature": 0.7, "max_tokens": 600}  # default fields of a teacher's requests
_REMOTE_OPTIONS = (
    "api_key_env",
    "concurrency",
    "timeout",
    "attempts",
    "request",
    "image_side",
    "price_in",
    "price_out",
)

WordLimit = Annotated[int, Range(min=16)]
LabelRatio = Annotated[float, Range(min=1)]  # texts of an emotion to those of the rarest one
ImageLoader = Callable[[int], "Image.Image | None"]  # row number -> its picture, None without one


@dataclass(frozen=True)
class BuildSettings(Checked):
    """The options of `vlmface rationale build`, which `vlmface.rationale.cli` documents."""

    dataset: str
    output_dir: str
    dataset_root: str | None = None
    dataset_split: str = "train"
    n: Count | None = None
    dataset_options: dict[str, Any] = field(default_factory=dict)
    label_space: str = "emotion8"
    aus: str | None = None
    au_threshold: Annotated[float, Range(above=0, max=5)] = 1.0
    writer: Literal["rules", "teacher", "model"] = "rules"
    style: str = "varied"
    seed: Seed = 0
    endpoint: str | None = None
    model: str | None = None
    show_label: bool | None = None
    prompt: str | None = None
    api_key_env: str | None = None
    concurrency: Count = 8
    timeout: Positive = 120.0
    attempts: Count = 6
    repairs: Natural = 1
    request: dict[str, Any] = field(default_factory=dict)
    image_side: Annotated[int, Range(min=16)] = 768
    price_in: NotNegative | None = None
    price_out: NotNegative | None = None
    num_samples: Count = 8
    temperature: Positive = 1.0
    top_p: PositiveShare = 1.0
    label_source: Literal["annotated", "vote"] = "annotated"
    min_agreement: Share = 0.5
    max_label_ratio: LabelRatio | None = None
    batch_size: Count = 16
    min_precision: PositiveShare = 1.0
    min_recall: PositiveShare = 1.0
    max_words: WordLimit = 150
    duplicates: Literal["report", "reject"] = "report"
    duplicate_threshold: PositiveShare = 0.85
    num_page_examples: Natural = 12
    overwrite: bool = False

    def check(self) -> None:
        """Raise UserError for options that are not valid."""
        reserved = {
            "n": "n",
            "root": "dataset_root",
            "split": "dataset_split",
            "name": "dataset",
        }
        option_checks.check_options(
            self.dataset, self.dataset_options, reserved=reserved, where="dataset_options"
        )
        if self.style not in rules.STYLES:
            raise UserError(f"unknown style {self.style!r}: use one of {', '.join(rules.STYLES)}")

    def unused(self) -> Iterator[Unused]:
        why = f"writer is {self.writer}"
        model_options = ("endpoint", "model", "show_label", "prompt")
        sampling_options = ("num_samples", "temperature", "top_p", "label_source", "min_agreement")
        names: dict[str, tuple[str, ...]] = {
            "rules": (
                *model_options,
                *_REMOTE_OPTIONS,
                *sampling_options,
                "repairs",
                "batch_size",
            ),
            "teacher": (*sampling_options, "style", "batch_size"),
            "model": ("style", "repairs", "aus"),
        }
        for name in names[self.writer]:
            yield Unused(name, why, ("writer",))
        if self.writer == "model":
            yield from unused_by_model(self.endpoint)
        if self.aus is None:
            yield Unused("au_threshold", "aus names no estimator", ("aus",))

    @property
    def limits(self) -> Limits:
        return Limits(self.min_precision, self.min_recall, self.max_words)


@dataclass
class WrittenRationale:
    """The rationale of one face.

    Attributes:
        index: The face's row.
        id: The face's id.
        truth: Its label and action units.
        text: The completion.
        verdict: Of the verifier.
        record: Of the journal; empty for the rule writer.
    """

    index: int
    id: str
    truth: GroundTruth
    text: str
    verdict: Verdict
    record: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BuildContext:
    """What the steps of a build share.

    Attributes:
        settings: Of the build.
        space: Its label space.
        rows: The data set.
        load_image: Reads the picture of a row.
        work: The folder of the journals.
        skipped: {reason: faces without a rationale}.
    """

    settings: BuildSettings
    space: LabelSpace
    rows: datasets.Dataset
    load_image: ImageLoader
    work: Path
    skipped: Counter[str] = field(default_factory=Counter)


def unused_by_model(endpoint: str | None) -> Iterator[Unused]:
    """The options of a model writer that have no effect with, or without, an endpoint."""
    if endpoint:
        yield Unused("batch_size", "the model answers at an endpoint", ("endpoint",))
        return
    for name in _REMOTE_OPTIONS:
        yield Unused(name, "the model answers in this process, without an endpoint", ("endpoint",))
