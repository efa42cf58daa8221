"""Let a trained model write rationales for faces that have none: each face is answered several
times without being told anything, and what passes the verifier and the vote becomes training data
(Facial-R1's third stage).

    python recipes/synthesize.py                              # by the run of recipes/grpo.py
    python recipes/synthesize.py --model runs/small --labels vote --output_dir runs/voted
    python recipes/synthesize.py --endpoint http://localhost:8000/v1 --model NAME --prompt face_cot

Stopped at any moment, the same command goes on where it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from vlmface.rationale import build, cli
from vlmface.rationale.types import BuildSettings, LabelRatio, WordLimit, unused_by_model
from vlmface.train import checks
from vlmface.utils import config, distributed
from vlmface.utils.ranges import Checked, Count, Positive, PositiveShare, Seed, Share, Unused


@dataclass(frozen=True)
class Settings(Checked):
    """The files recipes/configs/synthesize_*.yaml explain every field."""

    model: str
    data: str
    output_dir: str
    endpoint: str | None = None
    prompt: str | None = None
    api_key_env: str | None = None
    concurrency: Count = 8
    data_root: str | None = None
    data_split: str = "train"
    data_options: dict[str, Any] = field(default_factory=dict)
    n: Count | None = None
    label_space: str = "emotion8"
    labels: Literal["annotated", "vote"] = "annotated"
    saw_label: bool = False
    samples: Count = 8
    temperature: Positive = 1.0
    top_p: PositiveShare = 1.0
    batch_size: Count = 16
    min_agreement: Share = 0.5
    min_precision: PositiveShare = 1.0
    min_recall: PositiveShare = 1.0
    max_words: WordLimit = 150
    balance: LabelRatio | None = None
    duplicates: Literal["report", "reject"] = "report"
    similarity: PositiveShare = 0.85
    seed: Seed = 0
    overwrite: bool = False

    def check(self) -> None:
        checks.data_options(self, n="n")

    def unused(self) -> Iterator[Unused]:
        known = self.__dataclass_fields__
        yield from (one for one in unused_by_model(self.endpoint) if one.name in known)
        if not checks.reads_root(self.data):
            yield Unused("data_root", f"{self.data} is not read from a folder", ("data",))


def main(argv: Sequence[str]) -> int:
    distributed.check_alone("recipes/synthesize.py")
    settings = config.parse(Settings, argv, default="synthesize_tiny", usage=__doc__ or "")
    distributed.set_cpu_threads()
    same = {name: getattr(settings, name) for name in Settings.__dataclass_fields__}
    for name, here in (("output_dir", "output"), ("data_root", "root"), ("data_split", "split"),
                       ("data_options", "option")):  # fmt: skip
        same[here] = same.pop(name)
    return cli.print_summary(
        build.build(BuildSettings(writer="model", **same)), settings.output_dir
    )


if __name__ == "__main__":
    config.command(main)
