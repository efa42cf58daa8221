"""synth_v2: the rendered faces of version 2 as FaceSample rows.

Its people are in no other rendered set, and its splits share none. AUs that cannot be seen are not
annotated (`visibility`). A face whose visible AUs no longer support its emotion, though all of them
do, has none: neither emotion nor valence and arousal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from vlmface import facs
from vlmface.schema import AULabel, FaceSample
from vlmface.synth import sharded_dataset
from vlmface.synth.expressions import affect
from vlmface.synth.faces import Sample
from vlmface.synth.v2.faces import sample_face
from vlmface.synth.v2.parameters import PhotoFace
from vlmface.synth.v2.render import render
from vlmface.synth.v2.visibility import Sides, annotate, sides_of

NAME = "synth_v2"
# Raise whenever the same seed would give other pixels or labels; tests pin what a version draws.
VERSION = 1


def draw(seed: int, split: str, index: int) -> Sample:
    """The face behind row `index` of a split; its `face` is a PhotoFace."""
    return sample_face(*sharded_dataset.seeds(seed, split, index))


def photo_face(sample: Sample) -> PhotoFace:
    """The face of a sample of this set."""
    assert isinstance(sample.face, PhotoFace)
    return sample.face


def as_seen(sample: Sample, labels: Sequence[AULabel]) -> Sample:
    """The sample with those AUs that are annotated as present, at their annotated intensity."""
    aus = {label.au: label.intensity or 0.0 for label in labels if label.present}
    return replace(sample, expression=replace(sample.expression, aus=aus))


def visible_emotion(sample: Sample, labels: Sequence[AULabel]) -> str | None:
    """The emotion, or None if hidden AUs take its support away."""
    emotion, drawn = sample.expression.emotion, sample.expression.aus
    visible_aus = as_seen(sample, labels).expression.aus
    is_hidden = facs.supports(drawn, emotion) and not facs.supports(visible_aus, emotion)
    return None if is_hidden else emotion


def to_sample(
    sample: Sample, visible: Mapping[int, Sides], seed: int, split: str, index: int, image: Any
) -> FaceSample:
    """The labelled record of a drawn face.

    Args:
        sample: the face.
        visible: AU -> whether its left and its right can be seen.
        seed: of the set.
        split: of the set.
        index: of the row.
        image: the picture, as `FaceSample.image`.
    """
    labels = annotate(sample.expression, visible)
    emotion = visible_emotion(sample, labels)
    valence, arousal = None, None
    if emotion is not None:
        valence, arousal = affect(emotion, as_seen(sample, labels).expression.aus)
    names = sharded_dataset.names(NAME, seed, split, index)
    names["subject"] = names["subject"].replace("synth-", f"{NAME}-", 1)
    return FaceSample(
        **names,
        image=image,
        emotion=emotion,
        valence=valence,
        arousal=arousal,
        aus=labels,
        age=float(sample.age),
        age_group=sample.age_group,
        gender=sample.gender,
        race=sample.race,
        meta=_meta(sample, visible),
    )


def _meta(sample: Sample, visible: Mapping[int, Sides]) -> dict[str, Any]:
    """What else is known of a face. `sides` holds the intensity of each present AU on the left and
    the right of the person, null where it is hidden; `hidden` the AUs that cannot be seen."""
    face = photo_face(sample)
    view, look = face.view, face.look
    return {
        "yaw": round(view.yaw, 1),
        "pitch": round(view.pitch, 1),
        "roll": round(view.roll, 1),
        "gaze": [round(angle, 1) for angle in view.gaze],
        "hair_style": look.hair_style,
        "hair_colour": look.hair_colour,
        "beard": look.beard > 0,
        "glasses": look.glasses is not None,
        "grey": view.camera.grey,
        "sides": sides_of(sample.expression, visible),
        "hidden": {
            side: [au for au, sides in visible.items() if not sides[k]]
            for k, side in enumerate(("left", "right"))
        },
    }


def make_row(seed: int, split: str, index: int, size: int) -> dict[str, Any]:
    """Row `index` of a split, rendered."""
    sample = draw(seed, split, index)
    rendered = render(photo_face(sample), size)
    image = {"bytes": rendered.jpeg, "path": None}
    return to_sample(sample, rendered.visible, seed, split, index, image).to_row()


FACES_V2 = sharded_dataset.RenderedSet(
    name=NAME,
    unit="face",
    version=VERSION,
    shard=64,
    default_n={"train": 4000, "validation": 400, "test": 600, "pretrain": 30000},
    size=96,
    sizes=(32, 1024),
    make_row=make_row,
)
