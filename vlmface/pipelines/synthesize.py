"""Rationales by a trained model, for faces that have none: sample, verify, vote, keep."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from vlmface.rationale import build, cli
from vlmface.rationale.types import BuildSettings, LabelRatio, WordLimit, unused_by_model
from vlmface.train import checks
from vlmface.utils import distributed
from vlmface.utils.ranges import Checked, Count, Positive, PositiveShare, Seed, Share, Unused


@dataclass(frozen=True)
class Settings(Checked):
    """One run of recipes/synthesize.py.

    Args:
        model: a run folder, or the model's name at the endpoint
        dataset: name of a data set, or the YAML file of one or of a mixture
        output_dir: folder to write: data set, README.md, rationale.html
        endpoint: URL of a server with the OpenAI API, which receives the images; null: none
        prompt: null: the run's first; the model of a server needs one
        api_key_env: environment variable with the endpoint's key
        concurrency: requests at a time
        dataset_root: folder of the data set as its owners distribute it; null: it is rendered
        dataset_split: split to write for
        dataset_options: options of the data set, such as {seed: 1}
        n: faces to write for; null: the whole split
        label_space: of the labels
        label_source: annotated: answers must agree with the label, if any; vote: ignore labels
        show_label: give the model the label and action units, as Facial-R1 does; it is recorded
        num_samples: answers for each face
        temperature: of the answers
        top_p: of the answers
        batch_size: faces at a time, without an endpoint
        min_agreement: least share of a face's answers that conclude the same label
        min_precision: least share of the action units in the text that are annotated
        min_recall: least share of the annotated action units that are in the text
        max_words: longer texts are rejected
        max_label_ratio: texts of an emotion, at most so many times those of the rarest; null: all
        duplicates: count texts that nearly repeat an earlier one, or reject them
        duplicate_threshold: from which two texts are near duplicates
        seed: of the sampling
        overwrite: replace the build in output_dir
    """

    model: str
    dataset: str
    output_dir: str
    endpoint: str | None = None
    prompt: str | None = None
    api_key_env: str | None = None
    concurrency: Count = 8
    dataset_root: str | None = None
    dataset_split: str = "train"
    dataset_options: dict[str, Any] = field(default_factory=dict)
    n: Count | None = None
    label_space: str = "emotion8"
    label_source: Literal["annotated", "vote"] = "annotated"
    show_label: bool = False
    num_samples: Count = 8
    temperature: Positive = 1.0
    top_p: PositiveShare = 1.0
    batch_size: Count = 16
    min_agreement: Share = 0.5
    min_precision: PositiveShare = 1.0
    min_recall: PositiveShare = 1.0
    max_words: WordLimit = 150
    max_label_ratio: LabelRatio | None = None
    duplicates: Literal["report", "reject"] = "report"
    duplicate_threshold: PositiveShare = 0.85
    seed: Seed = 0
    overwrite: bool = False

    def check(self) -> None:
        """Refuse options that the data set lacks. Raises UserError."""
        checks.dataset_options(self, n="n")

    def unused(self) -> Iterator[Unused]:
        """The fields that have no effect beside the others."""
        fields = self.__dataclass_fields__
        yield from (unused for unused in unused_by_model(self.endpoint) if unused.name in fields)
        if not checks.reads_root(self.dataset):
            yield Unused("dataset_root", f"{self.dataset} is not read from a folder", ("dataset",))


def run(settings: Settings) -> int:
    """Write and check rationales in `settings.output_dir`, or resume there.

    Args:
        settings: Of the run.

    Returns:
        The exit code: 2 if some faces got no answer from a server.

    Raises:
        UserError: The settings do not fit the model, the data or the folder.
    """
    distributed.set_cpu_threads()
    build_settings = BuildSettings(writer="model", **asdict(settings))
    return cli.print_summary(build.build(build_settings), build_settings)
