"""The settings of a build, and the rationale of one face as a build writes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image


from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from vlmface.data import option_checks
from vlmface.errors import UserError
from vlmface.rationale import rules
from vlmface.rationale.ground_truth import Truth
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

REQUEST = {"temperature": 0.7, "max_tokens": 600}  # of a teacher, unless the user says otherwise


Words = Annotated[int, Range(min=16)]


Times = Annotated[float, Range(min=1)]  # as many texts as of the rarest emotion


@dataclass(frozen=True)
class BuildSettings(Checked):
    """The options of `vlmface rationale build`; `vlmface.rationale.cli` explains them."""

    data: str
    output: str
    root: str | None = None
    split: str = "train"
    n: Count | None = None
    option: dict[str, Any] = field(default_factory=dict)
    label_space: str = "emotion8"
    aus: str | None = None
    au_threshold: Annotated[float, Range(above=0, max=5)] = 1.0
    writer: Literal["rules", "teacher", "model"] = "rules"
    style: str = "varied"
    seed: Seed = 0
    endpoint: str | None = None
    model: str | None = None
    saw_label: bool | None = None
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
    samples: Count = 8
    temperature: Positive = 1.0
    top_p: PositiveShare = 1.0
    labels: Literal["annotated", "vote"] = "annotated"
    min_agreement: Share = 0.5
    balance: Times | None = None
    batch_size: Count = 16
    min_precision: PositiveShare = 1.0
    min_recall: PositiveShare = 1.0
    max_words: Words = 150
    duplicates: Literal["report", "reject"] = "report"
    similarity: PositiveShare = 0.85
    faces: Natural = 12
    overwrite: bool = False

    def check(self) -> None:
        """Refuse what cannot be built, as far as it is known before any work. Raises UserError."""
        taken = {"n": "--n", "root": "--root", "split": "--split", "name": "--data"}
        option_checks.check(self.data, self.option, taken=taken, where="option")
        if self.style not in rules.STYLES:
            raise UserError(
                f"there is no style {self.style!r}: use one of {', '.join(rules.STYLES)}"
            )

    def unused(self) -> Iterator[Unused]:
        why = f"writer is {self.writer}"
        asks = ("endpoint", "model", "saw_label", "prompt")
        remote = (
            "api_key_env",
            "concurrency",
            "timeout",
            "attempts",
            "request",
            "image_side",
            "price_in",
            "price_out",
        )
        several = ("samples", "temperature", "top_p", "labels", "min_agreement")
        names = {
            "rules": (*asks, *remote, *several, "repairs", "batch_size"),
            "teacher": (*several, "style", "batch_size"),
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
class Written:
    """One face with its text: `index` is its row, `record` the teacher's (empty for rules)."""

    index: int
    id: str
    truth: Truth
    text: str
    verdict: Verdict
    record: Mapping[str, Any] = field(default_factory=dict)


Pictures = Callable[[int], "Image.Image | None"]  # row number -> picture, None if there is none


def unused_by_model(endpoint: str | None) -> Iterator[Unused]:
    """Options of a model writer that only an endpoint, or only a model in this process, reads."""
    if endpoint:
        yield Unused("batch_size", "the model answers at an endpoint", ("endpoint",))
        return
    for name in (
        "api_key_env",
        "concurrency",
        "timeout",
        "attempts",
        "request",
        "image_side",
        "price_in",
        "price_out",
    ):
        yield Unused(name, "the model answers in this process, without an endpoint", ("endpoint",))
