"""Votes of several annotators, or a classifier's probabilities, as a distribution over labels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from vlmface.label_spaces import LabelSpace


@dataclass(frozen=True)
class LabelDistribution:
    """The votes of one sample over the labels of a label space.

    Attributes:
        probabilities: {label: share}, every label of the space in its order; the shares sum to 1.
            None if no vote is for a label of the space.
        outside: The share of all votes, 0 to 1, that were for words outside the space and do not
            count in `probabilities`; 0 if there are no votes.
    """

    probabilities: dict[str, float] | None
    outside: float

    def majority(self) -> str | None:
        """The label with most votes; None for a tie, and where no vote is for a label."""
        if self.probabilities is None:
            return None
        most = max(self.probabilities.values())
        winners = [label for label, share in self.probabilities.items() if share == most]
        return winners[0] if len(winners) == 1 else None


def distribution(votes: Mapping[str, float], space: LabelSpace) -> LabelDistribution:
    """Votes as a distribution over a label space.

    Args:
        votes: {word: count or probability >= 0}, as `FaceSample.label_votes`; they need not sum to
            1. Words are matched up to case and aliases, and the votes of several words for one
            label are added up.
        space: The label space.
    """
    counts = dict.fromkeys(space.labels, 0.0)
    outside = 0.0
    for word, count in votes.items():
        if (label := space.match(word)) is None:
            outside += count
        else:
            counts[label] += count
    inside = math.fsum(counts.values())
    total = inside + outside
    return LabelDistribution(
        {label: count / inside for label, count in counts.items()} if inside > 0 else None,
        outside / total if total > 0 else 0.0,
    )
