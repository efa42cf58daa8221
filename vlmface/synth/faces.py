"""Draw a random face: its identity, appearance, expression and photograph.

One call, `sample_face(seed, identity_seed)`, decides everything from two integers, so that any
face can be rendered again. Faces of one identity share shape, skin and hair colour; expression and
picture differ.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass, replace

import numpy as np

from vlmface.label_spaces import SPACES
from vlmface.synth.appearance import EYE_COLOURS, HAIR_STYLES, Appearance
from vlmface.synth.expressions import Expression, sample_expression
from vlmface.synth.face_parameters import Face, View
from vlmface.synth.head import ANCESTRIES, Identity, head_model


@dataclass(frozen=True)
class Sample:
    """A face with its labels."""

    face: Face
    expression: Expression
    gender: str
    race: str
    age: int

    @property
    def age_group(self) -> str:
        """The age as a label of the space age_group5."""
        return SPACES["age_group5"].age_group_of(self.age)


_DARK_EYES = {"brown": 0.5, "dark brown": 0.5}
_ANY_EYES = {"brown": 0.35, "dark brown": 0.1, "blue": 0.3, "green": 0.13, "grey": 0.12}


def _pick(rng: np.random.Generator, weights: dict[str, float]) -> str:
    shares = np.array(list(weights.values()))
    return str(rng.choice(list(weights), p=shares / shares.sum()))


@dataclass(frozen=True)
class Group:
    """The group of a person; None: drawn from the person's seed. `age` in years, 8 to 80."""

    gender: str | None = None
    age: float | None = None
    ancestry: str | None = None


def sample_identity(seed: int, group: Group | None = None) -> tuple[Identity, Appearance, str, str]:
    """Return (identity, appearance, gender, ancestry) of person `seed`.

    With a `group`, the same random numbers are read as a person of that group: what does not
    depend on it stays as it is.
    """
    rng = np.random.default_rng([17, seed])
    female = bool(rng.random() < 0.5)
    age = float(np.clip(rng.triangular(8, 30, 82), 8, 80))
    main = int(rng.integers(3))
    if group:
        female = female if group.gender is None else group.gender == "female"
        age = age if group.age is None else group.age
        main = main if group.ancestry is None else ANCESTRIES.index(group.ancestry)
    gender = "female" if female else "male"
    shares = np.full(3, 0.0)
    shares[main] = rng.uniform(0.7, 1.0)
    shares[(main + int(rng.integers(1, 3))) % 3] += 1 - shares[main]
    shapes = _draw_shapes(rng)
    identity = Identity(
        age=age,
        female=float(np.clip(rng.normal(0.88 if female else 0.12, 0.08), 0, 1)),
        weight=float(np.clip(rng.normal(0.5, 0.2), 0, 1)),
        ancestry=(float(shares[0]), float(shares[1]), float(shares[2])),
        shapes=shapes,
    )
    tone = float(np.clip(shares @ np.array([0.82, 0.34, 0.16]) + rng.normal(0, 0.10), 0, 1))
    dark = main != 2
    colour = _draw_hair_colour(rng, age, dark)
    styles = _hair_style_weights(age, female=female, african=main == 0)
    hairy = not female and age > 17
    eyes = dict.fromkeys(EYE_COLOURS, 0.0)
    eyes |= _DARK_EYES if dark else _ANY_EYES
    cloth = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.1, 0.7), rng.uniform(0.15, 0.9))
    look = Appearance(
        tone=tone,
        warmth=float(rng.uniform(-1, 1)),
        hair_colour=colour,
        hair_style=_pick(rng, styles),
        brow_thickness=float(np.clip(rng.normal(0.4 if female else 0.65, 0.2), 0, 1)),
        brow_arch=float(rng.uniform(0.1, 1.0) if female else rng.uniform(0.0, 0.7)),
        brow_density=float(rng.uniform(0.4, 1.0)),
        eye_colour=_pick(rng, eyes),
        lip_tint=float(rng.uniform(0.3, 1.0) if female else rng.uniform(0.0, 0.45)),
        stubble=float(rng.uniform(0.2, 1.0)) if hairy and rng.random() < 0.4 else 0.0,
        beard=float(rng.uniform(0.4, 0.9)) if hairy and rng.random() < 0.22 else 0.0,
        age=age,
        cloth=cloth,
        texture_seed=int(rng.integers(1 << 16)),
    )
    if group:  # only men take random numbers for stubble and beard, which come before this one
        look = replace(look, texture_seed=sample_identity(seed)[1].texture_seed)
    return identity, look, gender, ANCESTRIES[main]


def _draw_shapes(rng: np.random.Generator) -> dict[str, float]:
    """Weights of the local shape targets of a head."""
    shapes: dict[str, float] = {}
    for name in head_model().shape_names:
        if name.startswith(("neck", "head-trans", "head-age", "head-scale")):
            continue
        if rng.random() < 0.30:
            shapes[name] = float(abs(rng.normal(0, 0.28)))
    return shapes


def _draw_hair_colour(rng: np.random.Generator, age: float, dark: bool) -> str:
    grey = float(np.clip((age - 42) / 30, 0, 0.92))
    if rng.random() < grey:
        return _pick(rng, {"grey": 0.65, "white": 0.35})
    if dark:
        return _pick(rng, {"black": 0.7, "dark brown": 0.3})
    return _pick(rng, {"black": 0.1, "dark brown": 0.3, "brown": 0.3, "blond": 0.22, "red": 0.08})


def _hair_style_weights(age: float, *, female: bool, african: bool) -> dict[str, float]:
    styles = dict.fromkeys(HAIR_STYLES, 0.0)
    if female:
        styles |= {"short": 0.12, "full": 0.13, "fringe": 0.10}
        styles |= {"bob": 0.25, "long": 0.32, "curly": 0.08}
    else:
        styles |= {"bald": 0.04 + 0.12 * (age > 45), "buzz cut": 0.22, "short": 0.34, "full": 0.22}
        styles |= {"fringe": 0.06, "curly": 0.06, "long": 0.03}
    if african:
        styles |= {"curly": 0.35, "fringe": 0.01, "long": styles["long"] * 0.5}
    return styles


def sample_view(rng: np.random.Generator) -> View:
    """Camera, light and picture quality: poses to about 20 degrees, light from the front half."""
    turn, height = rng.uniform(-70, 70), rng.uniform(-15, 60)
    light = (
        float(np.sin(np.radians(turn))),
        float(np.sin(np.radians(height))),
        float(np.cos(np.radians(turn))),
    )
    warm = rng.uniform(-1, 1)
    key = rng.uniform(0.55, 1.05)

    def backdrop() -> tuple[float, float, float]:
        return colorsys.hsv_to_rgb(rng.random(), rng.uniform(0, 0.6), rng.uniform(0.05, 0.95))

    return View(
        yaw=float(np.clip(rng.normal(0, 10), -22, 22)),
        pitch=float(np.clip(rng.normal(0, 7), -16, 16)),
        roll=float(np.clip(rng.normal(0, 5), -14, 14)),
        gaze=(float(np.clip(rng.normal(0, 9), -20, 20)), float(np.clip(rng.normal(0, 5), -12, 12))),
        zoom=float(rng.uniform(1.0, 1.22)),
        shift=(float(rng.normal(0, 0.015)), float(rng.normal(0, 0.015))),
        light=light,
        key=float(key),
        key_colour=(1.0, float(0.96 + 0.02 * warm), float(0.92 + 0.08 * warm)),
        fill=float(rng.uniform(0.1, 0.4)),
        ambient=float(rng.uniform(0.22, 0.5)),
        background=(backdrop(), backdrop()),
        background_seed=int(rng.integers(1 << 31)),
        blur=float(rng.uniform(0.2, 0.7)) if rng.random() < 0.35 else 0.0,
        noise=float(abs(rng.normal(0, 3.0))),
        jpeg=int(rng.integers(60, 96)),
    )


def sample_face(seed: int, identity_seed: int, group: Group | None = None) -> Sample:
    """Draw face `seed` of person `identity_seed`; each emotion is equally likely. A `group` is what
    the person is drawn as, see `sample_identity`."""
    rng = np.random.default_rng([29, seed])
    identity, look, gender, ancestry = sample_identity(identity_seed, group)
    expression = sample_expression(rng)
    view = sample_view(rng)
    if look.hair_style != "bald" and rng.random() < 0.15:  # the same person, another haircut
        look = replace(look, hair_style="short" if gender == "male" else "bob")
    face = Face(identity, look, expression.left, expression.right, view)
    return Sample(face, expression, gender, ancestry, round(identity.age))
