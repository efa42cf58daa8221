"""The embedded data set: faces rendered with exactly known action units."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from vlmface.schema import FaceSample
from vlmface.synth.sharded_dataset import PUBLIC_SPLITS, RenderOptions
from vlmface.utils.ranges import Natural, Range

if TYPE_CHECKING:
    import datasets

TITLE, HOME, LICENCE = "vlmface's rendered faces", "docs/synth.md", "CC0"
SPLITS, NEEDS_ROOT = PUBLIC_SPLITS, False


@dataclass(frozen=True)
class Options(RenderOptions):
    """Options of the faces.

    Args:
        annotators: simulated annotators of each face, whose votes are `label_votes` and whose
            majority is the emotion; 0: the emotion is the rendered one.
        label_ratio: keep a part of the faces, in which the most frequent emotion has so many times
            the faces of the rarest; 1: keep all.
    """

    annotators: Natural = 0
    label_ratio: Annotated[float, Range(min=1)] = 1


def read(root: Path | None, split: str, options: Options) -> datasets.Dataset:
    """The first faces of a split; see `RenderedSet.read`."""
    from vlmface.synth.annotation import unbalanced
    from vlmface.synth.dataset import FACES

    rows = FACES.read(root, split, options)
    if options.label_ratio > 1:
        rows = rows.select(unbalanced(rows["emotion"][:], options.label_ratio))
    return _with_votes(rows, options.annotators) if options.annotators else rows


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
