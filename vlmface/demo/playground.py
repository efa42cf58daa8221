"""A rendered head with chosen action units, and whether a model's answer names them."""

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
MAX_PERSON = 9999
_JAW_DROP, _LIPS_PART = (26, 27), 25


@dataclass(frozen=True)
class Scene:
    """What is rendered; angles in degrees (positive: the picture's right, up).

    Attributes:
        person: The number of the person.
        aus: {AU: intensity 1..5}.
        yaw: Of the head.
        pitch: Of the head.
        light: Horizontal direction of the light.
        light_height: Its vertical direction.
    """

    person: int
    aus: Mapping[int, int]
    yaw: float = 0.0
    pitch: float = 0.0
    light: float = 20.0
    light_height: float = 30.0


def drawn_aus(intensities: Mapping[int, float]) -> dict[int, int]:
    """The AUs that are rendered.

    Args:
        intensities: {AU: value of its slider}.

    Returns:
        {AU: intensity 1..5}; a dropped jaw also parts the lips.
    """
    aus = {au: round(value) for au, value in intensities.items() if round(value) > 0}
    jaw_drop = max((aus[au] for au in _JAW_DROP if au in aus), default=0)
    if jaw_drop:
        aus.setdefault(_LIPS_PART, max(2, jaw_drop))
    return dict(sorted(aus.items()))


def render_head(scene: Scene) -> Image.Image:
    """Render a scene with the generator of the training data; the person is one of its own."""
    from PIL import Image

    from vlmface.synth.face_parameters import Face, View
    from vlmface.synth.render import render

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
    strengths = {au: strength(intensity) for au, intensity in scene.aus.items()}
    return Image.fromarray(render(Face(identity, look, strengths, strengths, view), SIZE).image)


def incompatible_aus(aus: Mapping[int, int]) -> list[int]:
    """The AUs whose muscles cannot act together with all the others; no training face has such a
    combination."""
    selected = set(aus)
    if selected & set(_JAW_DROP):
        selected.discard(_LIPS_PART)
    return [au for au in sorted(selected) if not compatible(au, selected - {au})]


def supported_emotions(aus: Mapping[int, int]) -> list[str]:
    """The emotions that these AUs are most evidence of, by EMFACS."""
    intensities = {au: float(intensity) for au, intensity in aus.items()}
    return [emotion for emotion in facs.PROTOTYPES if facs.supports(intensities, emotion)]


def prototype(emotion: str, intensity: int) -> dict[int, int]:
    """The core AUs of an emotion (of alternatives the first) at one intensity."""
    return {group[0]: intensity for group in facs.PROTOTYPES[emotion].core}


@dataclass(frozen=True)
class AUComparison:
    """The rendered AUs that were named, those that were missed, and AUs that were named but not
    rendered."""

    matched: list[int]
    missed: list[int]
    extra: list[int]


def compare_aus(aus: Mapping[int, int], report: FaceReport) -> AUComparison:
    """Compare the rendered AUs with those of a report."""
    true, predicted = set(aus), set(report.aus)
    return AUComparison(
        facs.top_down(true & predicted),
        facs.top_down(true - predicted),
        facs.top_down(predicted - true),
    )
