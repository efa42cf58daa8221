"""Five faces with rationales, as `vlmface rationale build` leaves them."""

from __future__ import annotations

from pathlib import Path

ARGUMENTS: dict = {}
ORIGIN = "test"  # the data set that its faces are from


def write(root: Path) -> None:
    from datasets import Dataset
    from helpers.samples import samples

    from vlmface.rationale import rules
    from vlmface.schema import features

    rows = []
    for sample in samples(5):
        sample.rationale = rules.write(sample.intensities(), sample.emotion, body_only=True)
        sample.rationale_source, sample.rationale_saw_label = "rules", True
        rows.append(sample.validate().to_row())
    Dataset.from_list(rows, features()).save_to_disk(root)
