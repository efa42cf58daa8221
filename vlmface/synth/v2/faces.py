"""Draw a random face of version 2: who, which expression, and how it is photographed."""

from __future__ import annotations

import colorsys
from dataclasses import replace

import numpy as np

from vlmface import facs
from vlmface.synth import expressions
from vlmface.synth.expressions import Expression
from vlmface.synth.faces import Sample, sample_view
from vlmface.synth.v2 import backgrounds, hair_styles
from vlmface.synth.v2.parameters import Camera, Look, Photo, PhotoFace
from vlmface.synth.v2.people import sample_person

YAW, PITCH, ROLL = 60.0, 25.0, 18.0  # degrees at most
# AU -> how often it is on one side, or nearly; 14 of contempt more often.
ONE_SIDED = {2: 0.10, 9: 0.03, 10: 0.10, 12: 0.10, 14: 0.35, 15: 0.06, 16: 0.06, 20: 0.08}
CONTEMPT_SIDED = 0.75
WINKS = {"happiness": 0.12, "neutral": 0.12, "contempt": 0.06, "surprise": 0.03}
NO_WINK = {5, 7, 43}  # what the lids do already
ASYMMETRY = 0.09  # standard deviation of the share that the weaker side lacks
BACKDROPS = tuple(backgrounds.KINDS)


def sample_face(seed: int, identity_seed: int) -> Sample:
    """Face `seed` of person `identity_seed`; its `face` is a PhotoFace. Each emotion is equally
    likely. Which of its AUs can be seen is only known once it is rendered."""
    rng = np.random.default_rng([59, seed])
    person = sample_person(identity_seed)
    expression = sample_expression(rng)
    face = PhotoFace(
        person.identity,
        _on_this_day(rng, person.look),
        expression.left,
        expression.right,
        sample_photo(rng),
    )
    return Sample(face, expression, person.gender, person.ancestry, round(person.age))


def sample_expression(rng: np.random.Generator) -> Expression:
    """An expression of version 1, with winks, and sides that differ as in life."""
    drawn = expressions.sample_expression(rng)
    aus = {au: _regraded(rng, grade) for au, grade in drawn.aus.items()}
    emotion = drawn.emotion
    if rng.random() < WINKS.get(emotion, 0.0) and not NO_WINK & set(aus):
        aus[46] = float(rng.integers(2, 6))
    if not facs.supports({au: aus[au] for au in drawn.aus}, emotion) and facs.supports(
        drawn.aus, emotion
    ):
        aus |= drawn.aus  # the other grades would say something else
    left, right = _draw_sides(rng, aus, emotion)
    return Expression(emotion, dict(sorted(aus.items())), left, right)


def _regraded(rng: np.random.Generator, grade: float) -> float:
    """A grade of 1 to 5, more often faint than those of version 1."""
    return float(np.clip(grade - (rng.random() < 0.35) - (rng.random() < 0.1), 1, 5))


def _draw_sides(
    rng: np.random.Generator, aus: dict[int, float], emotion: str
) -> tuple[dict[int, float], dict[int, float]]:
    """Strength (0..1) of each AU on the left and on the right; its intensity is that of the
    stronger side. The same side is the weaker one of most AUs of a face."""
    left, right = {}, {}
    usual = rng.random() < 0.5
    for au, grade in sorted(aus.items()):
        value = expressions.strength(float(np.clip(grade + rng.uniform(-0.4, 0.4), 0.8, 5.2)))
        weaker = value * (1 - min(0.4, abs(rng.normal(0, ASYMMETRY))))
        one_sided = ONE_SIDED.get(au, 0.0) if (au, emotion) != (14, "contempt") else CONTEMPT_SIDED
        if au == 46 or rng.random() < one_sided:
            weaker = 0.0 if au == 46 else value * rng.uniform(0, 0.25)
        side = usual if rng.random() < 0.8 else not usual
        left[au], right[au] = (float(weaker), value) if side else (value, float(weaker))
    return left, right


def _on_this_day(rng: np.random.Generator, look: Look) -> Look:
    """The same person in another picture: hair and stubble change, glasses come off."""
    hair = replace(
        look.hair,
        fringe=float(np.clip(look.hair.fringe + rng.normal(0, 0.1), 0, 1))
        if look.hair.fringe
        else 0.0,
        seed=look.hair.seed + int(rng.integers(1 << 16)),
    )
    style = look.hair_style
    if look.hair.length and rng.random() < 0.12:
        style, hair = "tied back", replace(hair, length=0.0, top=0.06, sides=0.04)
    assert style in hair_styles.STYLES
    return replace(
        look,
        hair=hair,
        hair_style=style,
        glasses=look.glasses if rng.random() < 0.85 else None,
        stubble=float(np.clip(look.stubble * rng.uniform(0.4, 1.3), 0, 1)),
    )


def sample_photo(rng: np.random.Generator) -> Photo:
    """Camera, light and picture quality. Half of the heads face the camera within about 12
    degrees, a third is turned by up to 60."""
    base = sample_view(rng)
    turned = rng.random()
    yaw = rng.normal(0, 9) if turned < 0.5 else rng.normal(0, 22)
    yaw = rng.uniform(-YAW, YAW) if turned > 0.72 else yaw
    pitch = rng.normal(0, 7) if rng.random() < 0.75 else rng.uniform(-PITCH, PITCH)
    values = {name: getattr(base, name) for name in base.__dataclass_fields__}
    dim = rng.random() < 0.3  # little light from the front
    # Lamps are mostly above, and less often at the side.
    turn, height = np.radians(np.clip(rng.normal(0, 38), -80, 80)), np.radians(rng.uniform(-5, 62))
    light = np.sin(turn), np.tan(height) * 0.8, np.cos(turn)
    values |= {
        "yaw": float(np.clip(yaw, -YAW, YAW)),
        "pitch": float(np.clip(pitch, -PITCH, PITCH)),
        "roll": float(np.clip(rng.normal(0, 6), -ROLL, ROLL)),
        "zoom": float(rng.uniform(0.78, 1.22)),
        "shift": (float(rng.normal(0, 0.03)), float(rng.normal(0, 0.03))),
        "light": tuple(float(x) for x in light),
        "key": float(rng.uniform(0.25, 0.6) if dim else rng.uniform(0.6, 1.3)),
        "fill": float(rng.uniform(0.03, 0.35)),
        "ambient": float(rng.uniform(0.15, 0.5)),
        "background": (_backdrop_colour(rng), _backdrop_colour(rng)),
        "blur": 0.0,
        "noise": 0.0,
        "jpeg": int(rng.integers(45, 97)),
    }
    return Photo(
        **values,
        field_of_view=float(rng.uniform(12, 42)),
        environment=_draw_environment(rng),
        softness=float(rng.uniform(0, 1)),
        shadow=float(rng.uniform(0.15, 0.6)),
        backdrop=str(rng.choice(BACKDROPS, p=(0.3, 0.2, 0.15, 0.2, 0.15))),
        camera=_draw_camera(rng),
    )


def _backdrop_colour(rng: np.random.Generator) -> tuple[float, float, float]:
    saturation = rng.uniform(0, 0.6) if rng.random() < 0.35 else rng.uniform(0, 0.18)
    return colorsys.hsv_to_rgb(rng.random(), saturation, rng.uniform(0.03, 0.97))


def _draw_environment(rng: np.random.Generator) -> tuple:
    """Light of one colour, brighter from some sides."""
    warm = rng.normal(0, 0.06)
    colour = np.array([1 + warm, 1.0, 1 - warm])
    slopes = rng.normal(0, (0.25, 0.2, 0.15), 3) + np.array([0, 0.35, 0.3])
    rows = [colour, *(slope * (colour + rng.normal(0, 0.12, 3)) for slope in slopes)]
    return tuple(tuple(float(x) for x in row) for row in rows)


def _draw_camera(rng: np.random.Generator) -> Camera:
    chance = rng.random(8)
    warm, green = rng.normal(0, 0.07), rng.normal(0, 0.025)
    angle, length = rng.uniform(0, np.pi), rng.uniform(0.004, 0.022)
    moving = chance[0] < 0.09
    grainy = rng.uniform(0.02, 0.05) if chance[1] < 0.16 else rng.uniform(0.003, 0.02)
    return Camera(
        exposure=float(np.exp(rng.normal(0.0, 0.25))),
        balance=(float(1 + warm), float(1 + green), float(1 - warm)),
        contrast=float(np.clip(rng.normal(1.15, 0.17), 0.75, 1.6)),
        gamma=float(np.clip(rng.normal(1.0, 0.12), 0.75, 1.35)),
        black=float(rng.uniform(0, 0.1)) if chance[2] < 0.3 else 0.0,
        sensor=float(rng.uniform(0.45, 0.9)) if chance[3] < 0.3 else 1.0,
        defocus=float(rng.uniform(0.002, 0.009)) if chance[4] < 0.33 else 0.0,
        motion=(float(length * np.cos(angle)), float(length * np.sin(angle)))
        if moving
        else (0.0, 0.0),
        shot=float(grainy),
        read=float(grainy * rng.uniform(0.3, 0.8)),
        sharpening=float(rng.uniform(0.2, 1.2)) if chance[5] < 0.3 else 0.0,
        vignette=float(rng.uniform(0, 0.5)) if chance[6] < 0.3 else 0.0,
        grey=bool(chance[7] < 0.2),
        saturation=float(np.clip(rng.normal(0.85, 0.18), 0.3, 1.3)),
        first_jpeg=int(rng.integers(25, 80)) if rng.random() < 0.2 else 0,
    )
