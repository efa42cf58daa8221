"""The ground truth of a rationale: the action units of a face and its label.

The AUs are the annotated ones (rendered faces are annotated exactly). For faces without
annotations, an estimator can be used: that of landmarks (`vlmface.aus`), or a user's own function
image -> {AU: intensity}.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlmface import facs
from vlmface.data import estimates
from vlmface.errors import UserError
from vlmface.label_spaces import LabelSpace
from vlmface.schema import FaceSample

if TYPE_CHECKING:
    from PIL import Image

Estimator = Callable[["Image.Image"], Mapping[int, float | None] | None]
LANDMARKS = "landmarks"  # the estimator of the package
MIN_CONFIDENCE = 0.6  # of its AUs; rationales neither name nor deny the others


@dataclass(frozen=True)
class GroundTruth:
    """The ground truth of a face.

    Attributes:
        label: Its emotion.
        aus: {present AU: intensity 0..5, None if it was not graded}.
        coded: All AUs that were annotated, present or not.
        source: "annotated" or the estimator's name.
    """

    label: str
    aus: Mapping[int, float | None]
    coded: frozenset[int]
    source: str = "annotated"


def label_of(sample: FaceSample, space: LabelSpace) -> str | None:
    """The sample's emotion as a label of `space`, None if there is none."""
    return space.match(sample.emotion) if sample.emotion else None


def annotated_truth(sample: FaceSample, label: str) -> GroundTruth | None:
    """The ground truth of a sample, None without annotated AUs."""
    if not sample.aus:
        return None
    return GroundTruth(label, sample.intensities(), frozenset(sample.annotated_aus()))


def estimated_truth(
    aus: Mapping[Any, float | None] | None, label: str, *, threshold: float, source: str
) -> GroundTruth | None:
    """The ground truth from an estimator's AUs.

    Args:
        aus: From `run_estimator`; AU numbers may be text, as in JSON.
        label: The emotion.
        threshold: AUs with at least this intensity (0..5) are present.
        source: The estimator's name.

    Returns:
        None if the estimator found no face.
    """
    if aus is None:
        return None
    coded = {int(au): intensity for au, intensity in aus.items()}
    present = {au: x for au, x in coded.items() if x is None or x >= max(threshold, 1e-9)}
    return GroundTruth(label, present, frozenset(coded), source)


class LandmarkEstimator:
    """The estimator `landmarks`, as a function of a picture. AUs that it is unsure about are left
    out, which means that they were not checked. Use it in a `with` block.

    Raises:
        UserError: `vlmface[detect]` is not installed.
    """

    def __init__(self) -> None:
        from vlmface.aus.estimator import Estimator as FaceEstimator

        self._estimator = FaceEstimator()
        self.sha256 = self._estimator.model.sha256

    def __enter__(self) -> LandmarkEstimator:
        return self

    def __exit__(self, *_: object) -> None:
        self._estimator.close()

    def __call__(
        self, image: Image.Image, near: Sequence[float] | None = None
    ) -> dict[int, float | None] | None:
        """The AUs of the largest face, in and around the box `near` if one is given; None without
        a face that can be estimated."""
        face = self._estimator.largest(image, near)
        if face is None or not face.aus:
            return None
        return _sure_aus(face.as_dict())  # rounded, as what is stored

    def stored(self, sample: FaceSample) -> dict[int, float | None] | None:
        """The AUs that `vlmface data add-aus` has stored with the row, if the same model estimated
        them."""
        estimate = sample.meta.get(estimates.FIELD)
        if not isinstance(estimate, Mapping) or estimate.get("sha256") != self.sha256:
            return None
        return _sure_aus(estimate)


def _sure_aus(estimate: Mapping[str, Any]) -> dict[int, float | None]:
    aus, confidence = (
        {int(au): float(x) for au, x in estimate.get(name, {}).items()}
        for name in ("aus", "confidence")
    )
    return {au: x for au, x in aus.items() if confidence.get(au, 1.0) >= MIN_CONFIDENCE}


def load_estimator(name: str) -> Estimator:
    """Import an AU estimator.

    Args:
        name: "landmarks" or "MODULE:FUNCTION".

    Returns:
        The function. It takes an RGB PIL image and returns {AU: intensity 0..5} of all AUs that it
        estimates (0: absent, None: present but not graded), or None if it found no face.

    Raises:
        UserError: The function does not exist.
    """
    if name == LANDMARKS:
        return LandmarkEstimator()
    module, colon, function = name.partition(":")
    try:
        estimator = getattr(importlib.import_module(module), function) if colon else None
    except (ImportError, AttributeError) as error:
        raise UserError(f"cannot load the AU estimator {name!r}: {error}") from error
    if not callable(estimator):
        raise UserError(
            f"the AU estimator {name!r} is not a function: give it as MODULE:FUNCTION, where "
            "MODULE can be imported (for your own file, set PYTHONPATH to its folder)"
        )
    return estimator


def run_estimator(
    estimator: Estimator, name: str, image: Image.Image, box: Sequence[float] | None = None
) -> dict[int, float | None] | None:
    """Run an estimator on a picture.

    Args:
        estimator: From `load_estimator`.
        name: Its name, for messages.
        image: RGB.
        box: Of the face, for the estimator `landmarks`.

    Returns:
        {AU: intensity}, None if it found no face.

    Raises:
        UserError: The result has another form.
    """
    landmarks = isinstance(estimator, LandmarkEstimator)
    aus = estimator(image, box) if landmarks else estimator(image)  # type: ignore[call-arg]
    if aus is None:
        return None
    for au, intensity in aus.items():
        if au not in facs.AUS or not (intensity is None or 0 <= intensity <= 5):
            raise UserError(
                f"the AU estimator {name!r} returned {au!r}: {intensity!r}, expected FACS numbers "
                "with intensities from 0 to 5, or None"
            )
    return {int(au): None if x is None else float(x) for au, x in aus.items()}
