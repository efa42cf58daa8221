"""The embedded data set: faces rendered with exactly known action units."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from vlmface.errors import UserError
from vlmface.schema import FaceSample
from vlmface.utils.ranges import Natural, Range, Seed

if TYPE_CHECKING:
    import datasets

TITLE = "vlmface's rendered faces"
HOME = "docs/synth.md"
LICENCE = "CC0"
SPLITS = ("train", "validation", "test")
NEEDS_ROOT = False
PUBLISHED: dict[str, dict[str, int]] = {}
AtLeastOne = Annotated[float, Range(min=1)]


def read(
    root: Path | None,
    split: str,
    *,
    n: int | None = None,
    seed: Seed = 0,
    size: int = 96,
    annotators: Natural = 0,
    label_ratio: AtLeastOne = 1,
    progress: bool = True,
) -> datasets.Dataset:
    """The first `n` faces of a split; rendered where they are not cached.

    Args:
        root: None.
        split: one of SPLITS.
        n: number of faces, by default that of the split.
        seed: of the set.
        size: pixels of a side.
        annotators: simulated annotators of each face, whose votes are `label_votes` and whose
            majority is the emotion; 0: the emotion is the rendered one.
        label_ratio: keep a part of the faces, in which the most frequent emotion has so many times
            the faces of the rarest; 1: keep all.
        progress: show a progress bar.
    """
    from vlmface.synth.annotation import unbalanced
    from vlmface.synth.dataset import FACES

    if root is not None:
        raise UserError(f"synth is rendered, not read from a folder: leave out the root ({root})")
    rows = FACES.load(split, n=n, seed=seed, size=size, progress=progress)
    if label_ratio > 1:
        rows = rows.select(unbalanced(rows["emotion"][:], label_ratio))
    return _with_votes(rows, annotators) if annotators else rows


def _with_votes(rows: datasets.Dataset, annotators: int) -> datasets.Dataset:
    """The rows as a number of simulated annotators label them."""
    from datasets import Dataset, Features, concatenate_datasets

    from vlmface.synth.annotation import draw_votes, majority, vote_probabilities

    votes = []
    for row in rows.remove_columns(["image", "frames"]):
        sample = FaceSample.from_row(row)
        assert sample.emotion is not None
        probabilities = vote_probabilities(sample.emotion, sample.intensities())
        votes.append(draw_votes(sample.id, probabilities, annotators))
    columns = {
        "emotion": [majority(of_face) for of_face in votes],
        "label_votes": [json.dumps(of_face, sort_keys=True) for of_face in votes],
    }
    features = {name: rows.features[name] for name in columns}
    voted = Dataset.from_dict(columns, features=Features(features))
    joined = concatenate_datasets([rows.remove_columns(list(columns)), voted], axis=1)
    return joined.select_columns(rows.column_names)
