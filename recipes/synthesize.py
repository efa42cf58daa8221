"""Let a trained model write rationales for faces that have none: each face is answered several
times without being told anything, and what passes the verifier and the vote becomes training data
(Facial-R1's third stage).

    python recipes/synthesize.py                              # by the run of recipes/grpo.py
    python recipes/synthesize.py --model runs/small --labels vote --output_dir runs/voted
    python recipes/synthesize.py --endpoint http://localhost:8000/v1 --model NAME --prompt face_cot

Stopped at any moment, the same command goes on where it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from vlmface import config, distributed
from vlmface.rationale import build, options
from vlmface.train import sft


@dataclass(frozen=True)
class Settings:
    """The files recipes/configs/synthesize_*.yaml explain every field."""

    model: str
    data: str
    output_dir: str
    endpoint: str | None = None
    prompt: str | None = None
    api_key_env: str | None = None
    concurrency: int = 8
    data_root: str | None = None
    data_split: str = "train"
    data_options: dict[str, Any] = field(default_factory=dict)
    n: int | None = None
    label_space: str = "emotion8"
    labels: Literal["annotated", "vote"] = "annotated"
    saw_label: bool = False
    samples: int = 8
    temperature: float = 1.0
    top_p: float = 1.0
    batch_size: int = 16
    min_agreement: float = 0.5
    min_precision: float = 1.0
    min_recall: float = 1.0
    max_words: int = 150
    balance: float | None = None
    duplicates: Literal["report", "reject"] = "report"
    similarity: float = 0.85
    seed: int = 0
    overwrite: bool = False


def main(argv: Sequence[str]) -> int:
    distributed.check_alone("recipes/synthesize.py")
    settings = config.parse(Settings, argv, default="synthesize_tiny", usage=__doc__ or "")
    sft.use_all_cores()
    same = {name: getattr(settings, name) for name in Settings.__dataclass_fields__}
    for name, here in (("output_dir", "output"), ("data_root", "root"), ("data_split", "split"),
                       ("data_options", "option")):  # fmt: skip
        same[here] = same.pop(name)
    return options.tell(build.build(build.Settings(writer="model", **same)), settings.output_dir)


if __name__ == "__main__":
    config.command(main)
