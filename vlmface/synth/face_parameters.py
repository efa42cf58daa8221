"""All that decides what one rendered face looks like, as numbers."""

from __future__ import annotations

from dataclasses import dataclass

from vlmface.synth.appearance import Appearance, Colour
from vlmface.synth.head import Identity


@dataclass(frozen=True)
class View:
    """Camera, light and picture quality. Angles in degrees: positive yaw turns the head to its
    left (the picture's right), positive pitch lowers the chin, positive roll tilts it clockwise in
    the picture.

    `zoom` 1 fits a face from hair line to chin; `shift` moves it in shares of the picture. `light`
    is the direction (x right of the picture, y up, z to the camera) of the key light; `blur` in
    pixels, `noise` in grey levels, drawn from `noise_seed` (None: from the background's).
    """

    yaw: float
    pitch: float
    roll: float
    gaze: tuple[float, float]
    zoom: float
    shift: tuple[float, float]
    light: tuple[float, float, float]
    key: float
    key_colour: Colour
    fill: float
    ambient: float
    background: tuple[Colour, Colour]
    background_seed: int
    blur: float
    noise: float
    jpeg: int
    noise_seed: int | None = None


@dataclass(frozen=True)
class Face:
    """All that makes one picture: identity, look, AU strengths (0..1, left, right) and view."""

    identity: Identity
    look: Appearance
    left: dict[int, float]
    right: dict[int, float]
    view: View
