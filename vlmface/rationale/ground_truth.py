"""What a rationale is written from and checked against: the action units of a face and its label.

The AUs are the annotated ones (rendered faces are annotated exactly). For faces without any, an
estimator can be plugged in: a function of one's own, image -> {AU: intensity}.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlmface import facs
from vlmface.errors import UserError
from vlmface.label_spaces import LabelSpace
from vlmface.schema import FaceSample

if TYPE_CHECKING:
    from PIL import Image

Estimator = Callable[["Image.Image"], Mapping[int, float | None] | None]


@dataclass(frozen=True)
class Truth:
    """`aus` maps the present AUs to their intensity 0..5 (None: not graded); `coded` are all that
    were looked for, present or not; `source` is "annotated" or the estimator's name."""

    label: str
    aus: Mapping[int, float | None]
    coded: frozenset[int]
    source: str = "annotated"


def label_of(sample: FaceSample, space: LabelSpace) -> str | None:
    """The sample's emotion as a label of `space`; None if it has none there."""
    return space.canonical(sample.emotion) if sample.emotion else None


def annotated(sample: FaceSample, label: str) -> Truth | None:
    """The truth of a sample with annotated AUs; None where nobody annotated any."""
    if not sample.aus:
        return None
    return Truth(label, sample.intensities(), frozenset(sample.annotated_aus()))


def estimated(
    aus: Mapping[Any, float | None] | None, label: str, *, threshold: float, source: str
) -> Truth | None:
    """The truth from an estimator's AUs: those from intensity `threshold` (0..5) on are present.
    None if it found no face. AU numbers may be text, as in JSON."""
    if aus is None:
        return None
    coded = {int(au): intensity for au, intensity in aus.items()}
    present = {au: x for au, x in coded.items() if x is None or x >= max(threshold, 1e-9)}
    return Truth(label, present, frozenset(coded), source)


def load_estimator(name: str) -> Estimator:
    """The function behind "MODULE:FUNCTION". It is called with an RGB PIL image and returns the AUs
    that it looked for with their intensities 0..5 (0: absent, None: there but not graded), or None
    if it found no face. Raises UserError if there is no such function."""
    module, colon, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function) if colon else None
    except (ImportError, AttributeError) as error:
        raise UserError(f"cannot load the AU estimator {name!r}: {error}") from error
    if not callable(found):
        raise UserError(
            f"the AU estimator {name!r} is not a function: give it as MODULE:FUNCTION, where "
            "MODULE can be imported (for a file of your own, set PYTHONPATH to its folder)"
        )
    return found


def estimate(estimator: Estimator, name: str, image: Image.Image) -> dict[int, float | None] | None:
    """Call the estimator. Raises UserError if it returns anything else than promised."""
    found = estimator(image)
    if found is None:
        return None
    for au, intensity in found.items():
        if au not in facs.AUS or not (intensity is None or 0 <= intensity <= 5):
            raise UserError(
                f"the AU estimator {name!r} returned {au!r}: {intensity!r}, expected FACS numbers "
                "with intensities from 0 to 5, or None"
            )
    return {int(au): None if x is None else float(x) for au, x in found.items()}
