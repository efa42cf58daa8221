"""The people of version 2: shape of the head, face at rest, skin, hair, glasses and clothes."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from vlmface.synth.appearance import EYE_COLOURS, Colour
from vlmface.synth.head import ANCESTRIES, Identity, head_model
from vlmface.synth.v2 import hair_styles
from vlmface.synth.v2.parameters import Clothes, Glasses, Look, Skin

# Suffixes of shape targets that are opposites.
OPPOSITES = (
    ("decr", "incr"),
    ("down", "up"),
    ("in", "out"),
    ("backward", "forward"),
    ("concave", "convex"),
    ("compress", "uncompress"),
)
LEFT_OUT = ("neck", "measure", "head-trans", "head-age", "head-scale-depth", "head-scale-vert")
# Regions whose shape at rest decides what an expression looks like differ most.
EXPRESSIVE = ("eyebrows", "eye-height", "eye-eyefold", "eye-corner", "mouth", "nose-width")
# ARKit face unit at rest -> (mean, standard deviation, standard deviation of a side's own part).
AT_REST: dict[str, tuple[float, float, float]] = {
    "browInnerUp": (0.0, 0.13, 0.0),
    "browOuterUp{}": (0.02, 0.13, 0.06),
    "browDown{}": (-0.04, 0.15, 0.05),
    "eyeBlink{}": (0.04, 0.08, 0.03),
    "eyeSquint{}": (0.10, 0.14, 0.04),
    "eyeWide{}": (0.05, 0.08, 0.02),
    "cheekSquint{}": (0.03, 0.10, 0.04),
    "noseSneer{}": (0.0, 0.07, 0.03),
    "mouthSmile{}": (0.03, 0.09, 0.03),
    "mouthFrown{}": (0.0, 0.13, 0.04),
    "mouthPress{}": (0.0, 0.12, 0.04),
    "mouthStretch{}": (0.0, 0.08, 0.03),
    "mouthRollUpper": (0.0, 0.10, 0.0),
    "mouthRollLower": (0.0, 0.10, 0.0),
    "mouthPucker": (-0.02, 0.08, 0.0),
    "mouthLeft": (0.0, 0.07, 0.0),
    "jawLeft": (0.0, 0.10, 0.0),
    "jawForward": (0.0, 0.25, 0.0),
}
MOST_AT_REST = 0.38  # less than an AU at A is drawn with, by the least gain in head.AU_UNITS
FRAME_COLOURS: tuple[Colour, ...] = (
    (0.04, 0.04, 0.05),
    (0.04, 0.04, 0.05),
    (0.22, 0.12, 0.07),
    (0.40, 0.26, 0.14),
    (0.55, 0.55, 0.58),
    (0.66, 0.54, 0.30),
    (0.35, 0.06, 0.08),
    (0.10, 0.14, 0.30),
)


@dataclass(frozen=True)
class Person:
    """`age` in years; `ancestry` is one of `head.ANCESTRIES`."""

    identity: Identity
    look: Look
    gender: str
    ancestry: str
    age: float


def sample_person(seed: int) -> Person:
    """Person `seed`; the same numbers give another person than version 1."""
    rng = np.random.default_rng([53, seed])
    female = bool(rng.random() < 0.5)
    age = float(np.clip(rng.triangular(8, 28, 84), 8, 82))
    main = int(rng.integers(3))
    shares = np.zeros(3)
    shares[main] = rng.uniform(0.65, 1.0)
    shares[(main + int(rng.integers(1, 3))) % 3] += 1 - shares[main]
    identity = Identity(
        age=age,
        female=float(np.clip(rng.normal(0.85 if female else 0.15, 0.12), 0, 1)),
        weight=float(np.clip(rng.normal(0.5, 0.25), 0, 1)),
        ancestry=(float(shares[0]), float(shares[1]), float(shares[2])),
        shapes=_draw_shapes(rng),
    )
    look = _draw_look(rng, shares, age, female=female)
    return Person(identity, look, "female" if female else "male", ANCESTRIES[main], age)


@lru_cache(maxsize=1)
def _shape_pairs() -> tuple[tuple[str, str | None], ...]:
    """(shape, its opposite or None) of the targets that people differ in."""
    names = [n for n in head_model().shape_names if not n.startswith(LEFT_OUT)]
    pairs: list[tuple[str, str | None]] = []
    paired: set[str] = set()
    for name in names:
        if name in paired:
            continue
        stem, _, end = name.rpartition("-")
        other = next((b for a, b in OPPOSITES if a == end and f"{stem}-{b}" in names), None)
        if other is not None:
            paired.add(f"{stem}-{other}")
        pairs.append((name, None if other is None else f"{stem}-{other}"))
    return tuple(pairs)


def _draw_shapes(rng: np.random.Generator) -> dict[str, float]:
    """Weights of the local shape targets: of two opposites one."""
    shapes: dict[str, float] = {}
    spread = rng.uniform(0.75, 1.25)  # some people are nearer to the mean than others
    for name, opposite in _shape_pairs():
        used, value = rng.random() < 0.6, rng.normal()
        deviation = 0.42 if name.startswith(EXPRESSIVE) else 0.34
        value = float(np.clip(spread * deviation * value, -0.95, 0.95))
        if not used or (value < 0 and opposite is None):
            continue
        if value > 0:
            shapes[name] = value
        elif opposite is not None:
            shapes[opposite] = -value
    return shapes


def _draw_rest(rng: np.random.Generator, age: float) -> dict[str, float]:
    """Face units of a face at rest. Lids and corners of the mouth sink with age."""
    old = float(np.clip((age - 45) / 40, 0, 1))
    sinking = {"eyeBlink{}": 0.08 * old, "mouthFrown{}": 0.12 * old, "mouthRollUpper": 0.08 * old}
    rest: dict[str, float] = {}
    for unit, (mean, deviation, apart) in AT_REST.items():
        both = mean + sinking.get(unit, 0.0) + deviation * rng.normal()
        for side in ("Left", "Right") if "{}" in unit else ("",):
            value = both + apart * rng.normal()
            rest[unit.format(side)] = float(np.clip(value, -MOST_AT_REST, MOST_AT_REST))
    return rest


def _draw_look(rng: np.random.Generator, shares: np.ndarray, age: float, *, female: bool) -> Look:
    dark, african = bool(shares[2] < 0.5), bool(shares[0] > 0.5)
    tone = float(np.clip(shares @ np.array([0.78, 0.32, 0.15]) + rng.normal(0, 0.11), 0, 1))
    style, hair = hair_styles.draw_hair(rng, age, female=female, african=african)
    face_hair, stubble = hair_styles.draw_beard(rng, age, female=female)
    made_up = female and age > 15 and rng.random() < 0.45
    value, saturation = rng.uniform(0.05, 0.95), rng.uniform(0.0, 0.75)
    return Look(
        tone=tone,
        warmth=float(rng.uniform(-1, 1)),
        hair_colour=hair_styles.draw_colour(rng, age, dark=dark),
        hair_style=style,
        brow_thickness=float(np.clip(rng.normal(0.35 if female else 0.7, 0.28), 0, 1.3)),
        brow_arch=float(rng.uniform(0.1, 1.1) if female else rng.uniform(-0.2, 0.8)),
        brow_density=float(rng.uniform(0.25, 1.0)),
        eye_colour=_draw_eyes(rng, dark=dark),
        lip_tint=float(rng.uniform(0.5, 1.1) if made_up else rng.uniform(-0.3, 0.35)),
        stubble=stubble,
        beard=0.0 if face_hair is None else face_hair.density,
        age=age,
        cloth=colorsys.hsv_to_rgb(rng.random(), saturation, value),
        texture_seed=int(rng.integers(1 << 16)),
        hair=hair,
        face_hair=face_hair,
        glasses=_draw_glasses(rng, age),
        skin=_draw_skin(rng, age, tone),
        clothes=_draw_clothes(rng),
        rest=_draw_rest(rng, age),
    )


def _draw_eyes(rng: np.random.Generator, *, dark: bool) -> str:
    shares = (0.5, 0.5, 0, 0, 0) if dark else (0.35, 0.1, 0.3, 0.13, 0.12)
    return str(rng.choice(list(EYE_COLOURS), p=shares))


def _draw_glasses(rng: np.random.Generator, age: float) -> Glasses | None:
    wears = rng.random() < 0.20 + 0.25 * np.clip((age - 35) / 35, 0, 1)
    kind = rng.random()
    thickness = 0.0 if kind < 0.1 else rng.uniform(0.008, 0.014) if kind < 0.55 else 0.0
    thickness = thickness or (rng.uniform(0.018, 0.034) if kind >= 0.55 else 0.0)
    glasses = Glasses(
        half_width=float(rng.uniform(0.215, 0.275)),
        half_height=float(rng.uniform(0.13, 0.235)),
        roundness=float(rng.uniform(2.0, 4.5)),
        droop=float(rng.uniform(0, 0.6)) if rng.random() < 0.4 else 0.0,
        thickness=float(thickness),
        colour=FRAME_COLOURS[int(rng.integers(len(FRAME_COLOURS)))],
        gloss=float(rng.uniform(0.1, 0.7)),
        tint=float(rng.uniform(0.02, 0.14)),
        reflection=float(rng.uniform(0, 1) ** 2),
        slip=float(abs(rng.normal(0, 0.035))),
    )
    return glasses if wears else None


def _draw_skin(rng: np.random.Generator, age: float, tone: float) -> Skin:
    count = int(rng.poisson(1.2 + 0.03 * age))
    moles = tuple(
        (
            float(rng.uniform(-0.62, 0.62)),
            float(rng.uniform(6.2, 7.95)),
            float(rng.uniform(0.006, 0.016)),
        )
        for _ in range(count)
    )
    light = 1 - tone
    old = float(np.clip((age - 40) / 40, 0, 1))
    return Skin(
        pores=float(rng.uniform(0.1, 1.0)),
        blotches=float(np.clip(rng.uniform(0.1, 0.9) + 0.3 * old, 0, 1)),
        freckles=float(rng.uniform(0.2, 1)) * light if rng.random() < 0.15 * light else 0.0,
        circles=float(np.clip(rng.normal(0.35, 0.25) + 0.2 * old, 0, 1)),
        flush=float(rng.uniform(0, 1)),
        gloss=float(rng.uniform(0, 1)),
        depth=float(rng.uniform(0.25, 0.75) + 0.35 * np.clip((age - 20) / 40, 0, 1)),
        shadow=float(rng.uniform(0, 1)),
        moles=moles,
    )


def _draw_clothes(rng: np.random.Generator) -> Clothes:
    neckline = str(rng.choice(("crew", "vee", "collar", "high"), p=(0.4, 0.15, 0.33, 0.12)))
    pattern = str(rng.choice(("plain", "stripes", "checks", "knit"), p=(0.5, 0.15, 0.12, 0.23)))
    bright = rng.uniform(0.4, 1.0) if rng.random() < 0.6 else rng.uniform(0.03, 0.4)
    return Clothes(
        neckline, pattern, colorsys.hsv_to_rgb(rng.random(), rng.uniform(0, 0.5), bright)
    )
