"""Pairs of rendered faces that differ in exactly one thing, to measure what an answer depends on.

A faithful model changes its answer when an action unit that determines the label is added or
removed, and keeps it when anything else changes; a fair one gives the same answer for every person
who shows the expression (counterfactual pairs, as in Kusner et al., "Counterfactual
Fairness", 2017). Here both faces are drawn from the same random numbers except for the thing that
is changed:

    au          one AU more, at intensity 3, or one AU less
    age         another age: the shape, lines and hair of that age, at least 15 years away
    gender      the person drawn as of the other gender: shape, hair style, brows, lips, beard
    ancestry    the person drawn as of another ancestry: shape, skin, hair, eyes
    light       direction, colour and strength of the light
    background  colours and pattern of the backdrop
    pose        how the head is turned

Whatever an AU or a group does not determine stays, down to the sensor's noise and the texture of
the skin.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from vlmface import facs
from vlmface.errors import UserError
from vlmface.label_spaces import SPACES
from vlmface.schema import FaceSample
from vlmface.synth import dataset
from vlmface.synth.expressions import Expression, compatible, draw_sides
from vlmface.synth.face_parameters import View
from vlmface.synth.faces import Group, Sample, sample_face, sample_view
from vlmface.synth.head import ANCESTRIES
from vlmface.synth.render import render

CLEAR = 3  # FACS C: the intensity of an added AU, the least one of a removed AU
YEARS_APART = 15  # at least, of the two ages
TURNED = 12.0  # degrees at least between two poses
LIGHT_TURNED = 30.0  # degrees at least between two directions of light
COLOUR_APART = 0.2  # sRGB in 0..1: at least, of two backdrops' mean colours in some channel


@dataclass(frozen=True)
class Pair:
    """Two faces that differ in one thing, with their pictures (RGB) in the records.

    `base` is the data set's own row; `changed` has its id with "-KIND" after it and, for "au", the
    label that the changed AUs speak for. `detail` can be written as JSON. For "au" it holds

        au                the AU that differs
        change            "added" or "removed"
        intensity         its intensity, 1..5, where it is present
        supported_before  `facs.supports` of the base's AUs and the base's label
        supported_after   the same of the changed AUs and the base's label
        label_changed     whether these two differ

    and for other kinds "from" and "to": ages in years, words, directions of the light (x right of
    the picture, y up, z to the camera), the backdrop's two colours in sRGB 0..1, or yaw, pitch and
    roll in degrees.
    """

    base: FaceSample
    changed: FaceSample
    kind: str
    detail: dict[str, Any]


def make(
    kind: str,
    n: int,
    *,
    seed: int = 0,
    size: int = 96,
    split: str = "test",
    bases: Sequence[FaceSample] | None = None,
) -> list[Pair]:
    """Pairs of a kind (see KINDS) from the first `n` faces of a split, `size` pixels a side. The
    first faces of pairs are the same for every kind: `bases`, of earlier ones, spare drawing them.

    Pair i follows from kind, seed, split and i alone. Four faces in a row are of one person. Raises
    UserError for an unknown kind or split and for an `n`, a `seed` or a `size` out of range.
    """
    _check_kind(kind)
    dataset.check_request(split, n, seed=seed, size=size)
    pairs = []
    for index in range(n):
        base, changed, detail = draw(kind, index, seed=seed, split=split)

        def record(face: Sample, index: int = index) -> FaceSample:
            picture = Image.fromarray(render(face.face, size).image)
            return dataset.to_sample(face, seed, split, index, picture)

        first, second = bases[index] if bases else record(base), record(changed)
        second.id += f"-{kind}"
        pairs.append(Pair(first, second, kind, detail))
    return pairs


def draw(
    kind: str, index: int, *, seed: int = 0, split: str = "test"
) -> tuple[Sample, Sample, dict[str, Any]]:
    """The two faces behind a pair, not yet rendered, and its `detail`."""
    _check_kind(kind)
    face_seed, identity_seed = dataset.face_seeds(seed, split, index)
    base = sample_face(face_seed, identity_seed)
    rng = np.random.default_rng([31, zlib.crc32(kind.encode()), face_seed])
    if kind == "au":
        # Many a label stands whatever AU is added or removed: with this wish half of them fall.
        changes, adds = rng.random() < 0.75, rng.random() < 0.5
        return base, *_other_unit(base, rng, changes=changes, adds=adds)
    if kind in _VIEWS:
        view, detail = _other_view(kind, base.face.view, rng)
        return base, replace(base, face=replace(base.face, view=view)), detail
    group, detail = _other_group(kind, base, rng)
    return base, sample_face(face_seed, identity_seed, group), detail


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise UserError(f"unknown kind of pairs {kind!r}: use one of {', '.join(KINDS)}")


def _other_unit(
    base: Sample, rng: np.random.Generator, *, changes: bool, adds: bool
) -> tuple[Sample, dict[str, Any]]:
    """The face with one AU more or less. Where the face allows it, the label `changes` or not, as
    wanted; then, an AU is added (`adds`) or removed, as wanted."""
    old = base.expression
    options: list[tuple[tuple[bool, bool], int, dict[int, float], dict[str, Any]]] = []
    for au, aus in _one_unit_away(old.aus).items():
        before, after = (facs.supports(units, old.emotion) for units in (old.aus, aus))
        if before and not after and _strongest(aus) is None:
            continue  # there would be no one label to expect
        added = au in aus
        detail = {
            "au": au,
            "change": "added" if added else "removed",
            "intensity": aus[au] if added else old.aus[au],
            "supported_before": before,
            "supported_after": after,
            "label_changed": before != after,
        }
        options.append((((before != after) == changes, added == adds), au, aus, detail))
    best = max(wish for wish, *_ in options)
    fitting = [option for option in options if option[0] == best]
    _, au, aus, detail = fitting[int(rng.integers(len(fitting)))]

    lost = detail["supported_before"] and not detail["supported_after"]
    emotion = (_strongest(aus) if lost else None) or old.emotion
    sides = draw_sides(rng, {au: CLEAR} if au in aus else {}, emotion)
    left, right = (
        {unit: (side | new)[unit] for unit in aus}
        for side, new in zip((old.left, old.right), sides, strict=True)
    )
    expression = Expression(emotion, aus, left, right)
    return replace(
        base, expression=expression, face=replace(base.face, left=left, right=right)
    ), detail


def _one_unit_away(aus: Mapping[int, float]) -> dict[int, dict[int, float]]:
    """AU -> the AUs (intensities 1..5) with it, if it can join them, or without it."""

    def joins(au: int) -> bool:
        if au in (26, 27):  # a dropped jaw parts the lips
            return 25 in aus and compatible(au, set(aus) - {25})
        return compatible(au, set(aus))

    def leaves(au: int) -> bool:
        return not (au == 25 and aus.keys() & {26, 27})

    added = {
        au: dict(sorted({**aus, au: float(CLEAR)}.items()))
        for au in facs.SYNTH_AUS
        if au not in aus and joins(au)
    }
    removed = {au: {u: aus[u] for u in aus if u != au} for au in aus if leaves(au)}
    clear = {au: remaining for au, remaining in removed.items() if aus[au] >= CLEAR}
    return added | clear or removed


def _strongest(aus: Mapping[int, float]) -> str | None:
    """The emotion that the AUs speak most for; None if several share that place."""
    first = [emotion for emotion in facs.PROTOTYPES if facs.supports(aus, emotion)]
    return first[0] if len(first) == 1 else None


def _other_group(kind: str, base: Sample, rng: np.random.Generator) -> tuple[Group, dict[str, Any]]:
    if kind == "age":
        group_of = SPACES["age_group5"].age_group_of
        ages = [
            age
            for age in range(8, 81)
            if group_of(age) != base.age_group and abs(age - base.age) >= YEARS_APART
        ]
        age = int(rng.choice(ages))
        return Group(age=float(age)), {"from": base.age, "to": age}
    if kind == "gender":
        gender = "male" if base.gender == "female" else "female"
        return Group(gender=gender), {"from": base.gender, "to": gender}
    ancestry = str(rng.choice([word for word in ANCESTRIES if word != base.race]))
    return Group(ancestry=ancestry), {"from": base.race, "to": ancestry}


def _other_view(kind: str, view: View, rng: np.random.Generator) -> tuple[View, dict[str, Any]]:
    fields, differ = _VIEWS[kind]
    while True:
        other = sample_view(rng)
        if differ(view, other):
            break
    changed = replace(view, **{name: getattr(other, name) for name in fields})
    if kind == "background":  # whose seed is the noise's too
        changed = replace(changed, noise_seed=view.background_seed + 1)
    return changed, {"from": _visible_state(kind, view), "to": _visible_state(kind, changed)}


def _visible_state(kind: str, view: View) -> list[Any]:
    if kind == "light":
        return [round(float(x), 3) for x in _direction(view)]
    if kind == "pose":
        return [round(angle, 1) for angle in (view.yaw, view.pitch, view.roll)]
    return [[round(float(x), 3) for x in colour] for colour in view.background]


def _direction(view: View) -> np.ndarray:
    return np.array(view.light) / np.linalg.norm(view.light)


def _light_differs(first: View, second: View) -> bool:
    return bool(_direction(first) @ _direction(second) < np.cos(np.radians(LIGHT_TURNED)))


def _background_differs(first: View, second: View) -> bool:
    means = [np.mean(view.background, axis=0) for view in (first, second)]
    return bool(np.abs(means[0] - means[1]).max() >= COLOUR_APART)


def _pose_differs(first: View, second: View) -> bool:
    turns = np.array([[view.yaw, view.pitch, view.roll] for view in (first, second)])
    return bool(np.linalg.norm(turns[0] - turns[1]) >= TURNED)


# Kind -> the fields of View that it changes, and whether two views differ enough in them.
_VIEWS: dict[str, tuple[tuple[str, ...], Callable[[View, View], bool]]] = {
    "light": (("light", "key", "key_colour", "fill", "ambient"), _light_differs),
    "background": (("background", "background_seed"), _background_differs),
    "pose": (("yaw", "pitch", "roll"), _pose_differs),
}
KINDS: tuple[str, ...] = ("au", "age", "gender", "ancestry", *_VIEWS)
