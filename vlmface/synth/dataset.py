"""synth: the rendered faces as FaceSample rows (`sharded_dataset.py` renders and caches them)."""

from __future__ import annotations

from typing import Any

from vlmface import facs
from vlmface.schema import AULabel, FaceSample
from vlmface.synth import sharded_dataset
from vlmface.synth.expressions import affect
from vlmface.synth.faces import Sample, sample_face

# Raise whenever the same seed would give other pixels or labels; tests pin what a version draws.
VERSION = 2
SPLITS = tuple(sharded_dataset.SPLITS)


def draw(seed: int, split: str, index: int) -> Sample:
    """The face behind row `index` of a split."""
    return sample_face(*sharded_dataset.seeds(seed, split, index))


def to_sample(sample: Sample, seed: int, split: str, index: int, image: Any) -> FaceSample:
    """The labelled record of a drawn face. All of SYNTH_AUS are annotated."""
    view, look, aus = sample.face.view, sample.face.look, sample.expression.aus
    valence, arousal = affect(sample.expression.emotion, aus)
    return FaceSample(
        **sharded_dataset.names("synth", seed, split, index),
        image=image,
        emotion=sample.expression.emotion,
        valence=valence,
        arousal=arousal,
        aus=unit_labels(aus),
        age=float(sample.age),
        age_group=sample.age_group,
        gender=sample.gender,
        race=sample.race,
        meta={
            "yaw": round(view.yaw, 1),
            "pitch": round(view.pitch, 1),
            "roll": round(view.roll, 1),
            "gaze": [round(g, 1) for g in view.gaze],
            "hair_style": look.hair_style,
            "hair_colour": look.hair_colour,
            "beard": look.beard > 0,
            "one_sided": [
                au
                for au in aus
                if min(sample.face.left[au], sample.face.right[au])
                < 0.5 * max(sample.face.left[au], sample.face.right[au])
            ],
        },
    )


def unit_labels(aus: dict[int, float]) -> list[AULabel]:
    """The annotation of a rendered face: all of SYNTH_AUS, those of `aus` present."""
    return [AULabel(au, float(aus.get(au, 0.0)), au in aus) for au in facs.SYNTH_AUS]


def make_row(seed: int, split: str, index: int, size: int) -> dict[str, Any]:
    """Row `index` of a split, rendered."""
    from vlmface.synth.render import render

    sample = draw(seed, split, index)
    image = {"bytes": render(sample.face, size).jpeg, "path": None}
    return to_sample(sample, seed, split, index, image).to_row()


FACES = sharded_dataset.RenderedSet(
    name="synth",
    unit="face",
    version=VERSION,
    shard=64,
    default_n={"train": 4000, "validation": 400, "test": 600, "pretrain": 30000},
    size=96,
    sizes=(32, 1024),
    make_row=make_row,
)
# Most of the project uses the faces, under the module's own names.
DEFAULT_N, SHARD, FACES_PER_IDENTITY = FACES.default_n, FACES.shard, sharded_dataset.PER_IDENTITY
face_seeds, cache_folder, check_request = (
    sharded_dataset.seeds,
    FACES.cache_folder,
    FACES.check_request,
)
render_split, load = FACES.render_split, FACES.load
