"""What decides how one picture of version 2 looks, in addition to what version 1 has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vlmface.synth.appearance import Appearance, Colour
from vlmface.synth.face_parameters import Face, View


@dataclass(frozen=True)
class Hair:
    """Hair of the head.

    Attributes:
        top, sides: thickness in dm on top and at the sides; 0 on top: shaved.
        line: how far the hair line is above the usual one, dm.
        recession: 0..1, how far it recedes at the temples.
        crown: whether the top of the head is bald.
        parting: where the hair parts, x in dm; None: it is combed back.
        fringe: share 0..1 of the forehead that hair covers; 0: none.
        sweep: how the fringe is combed, -1 (to its right) to 1 (to its left).
        length: of hair that hangs down, dm; 0: none.
        curl: 0 (straight) to 1.
        gloss: 0..1.
        seed: of the strands.
    """

    top: float
    sides: float
    line: float
    recession: float
    crown: bool
    parting: float | None
    fringe: float
    sweep: float
    length: float
    curl: float
    gloss: float
    seed: int


@dataclass(frozen=True)
class Beard:
    """Hair of the face: `density` 0..1, `length` of a hair in dm; where it grows: `moustache`,
    `chin`, `cheeks` 0..1 each."""

    density: float
    length: float
    moustache: float
    chin: float
    cheeks: float


@dataclass(frozen=True)
class Glasses:
    """Glasses with clear lenses.

    Attributes:
        half_width, half_height: of a lens, dm.
        roundness: exponent of the lens's outline: 2 is an ellipse, more is more rectangular.
        droop: how far the lower outer part hangs down, 0..1.
        thickness: radius of the frame, dm; 0: without rims.
        colour: of the frame, sRGB.
        gloss: of the frame, 0..1.
        tint: share of the light that the lenses take away.
        reflection: how strongly they reflect.
        slip: how far they have slipped down the nose, dm.
    """

    half_width: float
    half_height: float
    roundness: float
    droop: float
    thickness: float
    colour: Colour
    gloss: float
    tint: float
    reflection: float
    slip: float


@dataclass(frozen=True)
class Skin:
    """Details of the skin, 0..1 each. `moles` holds (x, y, radius) in template coordinates and
    `depth` scales the furrows of action units and age."""

    pores: float
    blotches: float
    freckles: float
    circles: float
    flush: float
    gloss: float
    depth: float
    shadow: float
    moles: tuple[tuple[float, float, float], ...]


@dataclass(frozen=True)
class Clothes:
    """`neckline` is crew, vee, collar or high; `pattern` is plain, stripes, checks or knit."""

    neckline: str
    pattern: str
    second: Colour


@dataclass(frozen=True, kw_only=True)
class Look(Appearance):
    """One person. `rest` maps ARKit face units to their weights at rest: brows, lids and corners
    of the mouth differ between people, and between the sides of a face."""

    hair: Hair
    face_hair: Beard | None
    glasses: Glasses | None
    skin: Skin
    clothes: Clothes
    rest: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Camera:
    """How the picture is taken and stored.

    Attributes:
        exposure: factor of the light.
        balance: factors of red, green and blue.
        contrast: of the tone curve; 1 as it is.
        gamma: of the tone curve.
        black: level that black is raised to, 0..1.
        sensor: pixels that the camera has, as share of the picture's.
        defocus: standard deviation of the blur, share of the picture's size.
        motion: (x, y) length of the motion blur, share of the picture's size.
        shot, read: noise, standard deviations at white and at black, 0..1.
        sharpening: 0: none.
        vignette: share of the light that corners lose.
        grey: without colours.
        saturation: factor of the colours.
        first_jpeg: quality of a file that it was stored in before; 0: none.
    """

    exposure: float
    balance: Colour
    contrast: float
    gamma: float
    black: float
    sensor: float
    defocus: float
    motion: tuple[float, float]
    shot: float
    read: float
    sharpening: float
    vignette: float
    grey: bool
    saturation: float
    first_jpeg: int


@dataclass(frozen=True, kw_only=True)
class Photo(View):
    """A view of version 2. `environment` (4 x RGB): light from everywhere, and its slopes along x,
    y and z; `softness` 0..1 of shadows; `backdrop` one of `backgrounds.KINDS`."""

    field_of_view: float
    environment: tuple[Colour, Colour, Colour, Colour]
    softness: float
    shadow: float
    backdrop: str
    camera: Camera


@dataclass(frozen=True)
class PhotoFace(Face):
    """A face of version 2."""

    look: Look
    view: Photo
