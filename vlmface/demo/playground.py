"""A rendered head whose action units somebody sets, and whether a model's answer follows them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlmface import facs
from vlmface.synth.expressions import compatible, strength
from vlmface.synth.faces import sample_identity

if TYPE_CHECKING:
    from PIL import Image

    from vlmface.infer.face_report import FaceReport

SIZE = 320  # pixels a side
MOST_PEOPLE = 9999
_JAW_DROP, _LIPS_PART = (26, 27), 25


@dataclass(frozen=True)
class Scene:
    """What is drawn: the person's number, `aus` {AU: intensity 1..5}, how the head is turned and
    from where the light comes, in degrees (positive: the picture's right, up)."""

    person: int
    aus: Mapping[int, int]
    yaw: float = 0.0
    pitch: float = 0.0
    light: float = 20.0
    light_height: float = 30.0


def shown(intensities: Mapping[int, float]) -> dict[int, int]:
    """What of the sliders is drawn: what is not 0, and lips that a dropped jaw parts."""
    aus = {au: round(value) for au, value in intensities.items() if round(value) > 0}
    dropped = max((aus[au] for au in _JAW_DROP if au in aus), default=0)
    if dropped:
        aus.setdefault(_LIPS_PART, max(2, dropped))
    return dict(sorted(aus.items()))


def draw(scene: Scene) -> Image.Image:
    """The picture, as the generator of the training data draws: the person is one of its own."""
    from PIL import Image

    from vlmface.synth.render import Face, View, render

    identity, look, _, _ = sample_identity(scene.person)
    side, height = math.radians(scene.light), math.radians(scene.light_height)
    view = View(
        yaw=scene.yaw,
        pitch=scene.pitch,
        roll=0.0,
        gaze=(0.0, 0.0),
        zoom=1.08,
        shift=(0.0, 0.0),
        light=(math.sin(side), math.sin(height), math.cos(side)),
        key=0.8,
        key_colour=(1.0, 0.97, 0.94),
        fill=0.28,
        ambient=0.38,
        background=((0.55, 0.6, 0.66), (0.72, 0.74, 0.76)),
        background_seed=scene.person,
        blur=0.0,
        noise=1.0,
        jpeg=93,
    )
    drawn = {au: strength(grade) for au, grade in scene.aus.items()}
    return Image.fromarray(render(Face(identity, look, drawn, drawn, view), SIZE).image)


def clashing(aus: Mapping[int, int]) -> list[int]:
    """The AUs whose muscles cannot act together with all the others: no training face shows them
    so."""
    rest = set(aus)
    if rest & set(_JAW_DROP):
        rest.discard(_LIPS_PART)
    return [au for au in sorted(rest) if not compatible(au, rest - {au})]


def speaks_for(aus: Mapping[int, int]) -> list[str]:
    """The emotions that these AUs speak for most, by EMFACS."""
    graded = {au: float(grade) for au, grade in aus.items()}
    return [emotion for emotion in facs.PROTOTYPES if facs.supports(graded, emotion)]


def prototype(emotion: str, intensity: int) -> dict[int, int]:
    """The core AUs of an emotion, each alternative by its first, at one intensity."""
    return {group[0]: intensity for group in facs.PROTOTYPES[emotion].core}


@dataclass(frozen=True)
class Followed:
    """Which of the true AUs were named, which were not, and which were named but not there."""

    named: list[int]
    missed: list[int]
    extra: list[int]


def followed(aus: Mapping[int, int], report: FaceReport) -> Followed:
    true, said = set(aus), set(report.aus)
    return Followed(
        facs.top_down(true & said), facs.top_down(true - said), facs.top_down(said - true)
    )
