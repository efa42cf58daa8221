"""synth_clips: clips of a sustained expression, with brief ones before or after it.

The label is the emotion of the sustained expression: at least five frames of sixteen. About half of
the clips also show another emotion, as strongly, but for one to three frames only. When the
sustained expression comes differs from clip to clip, so no single frame shows it in most clips, and
a model that takes the strongest expression in the clip is wrong where a brief one was stronger.
Neutral clips have no sustained expression: brief ones, speech or blinks are all that happens.

A frame counts from 0. All lengths are for 16 frames and grow with their number: more frames are a
finer look at the same course.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlmface import facs
from vlmface.errors import UserError
from vlmface.label_spaces import EMOTIONS, SPACES
from vlmface.schema import FaceSample
from vlmface.synth import sharded_dataset
from vlmface.synth.dataset import unit_labels
from vlmface.synth.expressions import (
    Expression,
    affect,
    draw_sides,
    intensity,
    sample_expression,
    strength,
)
from vlmface.synth.face_parameters import Face, View
from vlmface.synth.faces import sample_identity, sample_view
from vlmface.synth.head import head_model
from vlmface.synth.render import render

VERSION = 1
FRAMES = 16
SUSTAINED = {5: 0.6, 6: 0.2, 7: 0.2}  # frames at half strength and more, with their chances
BRIEF = (1, 2, 3)  # frames, equally likely
BRIEF_CHANCE = 0.5  # of a brief other expression; in a neutral clip of one in each half
STARTS_OR_ENDS_THERE = 0.7  # chance that an expression in the first (last) frames was there before
TALKS = 0.4  # chance, in a neutral clip
BLINKS = 0.6


@dataclass(frozen=True)
class Episode:
    """An expression that is shown in `length` frames from `start` on. `rise` and `fall` say in how
    many frames it comes and goes (0: it is there from the first frame, or until the last); `shift`
    moves each AU's course by up to half a frame."""

    expression: Expression
    start: int
    length: int
    rise: float
    fall: float
    shift: Mapping[int, float]

    def course(self, times: np.ndarray, au: int) -> np.ndarray:
        """The AU's share (n,) of its full strength at times in frames: 1/2 half a frame before
        `start` and half a frame after the last."""
        at = np.asarray(times, float) - self.shift.get(au, 0.0)
        share = np.ones(len(at))
        if self.rise:
            share *= _ramp((at - self.start + 0.5) / self.rise)
        if self.fall:
            share *= _ramp((self.start + self.length - 0.5 - at) / self.fall)
        return share


@dataclass(frozen=True)
class ClipSample:
    """A clip with what it is labelled from: the sustained expression (None: neutral), brief ones,
    and movements without emotion (speech, blinks). `views` has the camera's view of each frame."""

    face: Face
    label: str
    sustained: Episode | None
    brief: tuple[Episode, ...]
    idle: tuple[Episode, ...]
    views: tuple[View, ...]
    gender: str
    race: str
    age: int

    @property
    def apex(self) -> int | None:
        """The frame in the middle of the sustained expression at its full strength; the first
        (last) one if the clip begins (ends) with it."""
        if self.sustained is None:
            return None
        if self.sustained.rise == 0:
            return 0
        if self.sustained.fall == 0:
            return len(self.views) - 1
        return self.sustained.start + (self.sustained.length - 1) // 2

    def moves(self) -> list[tuple[dict[int, float], dict[int, float]]]:
        """The drawn strength (0..1) of each AU on the left and on the right, for each frame."""
        times = np.arange(len(self.views))
        episodes = [e for e in (self.sustained, *self.brief, *self.idle) if e]
        frames: list[tuple[dict[int, float], dict[int, float]]] = [({}, {}) for _ in times]
        for episode in episodes:
            for au in episode.expression.aus:
                course = episode.course(times, au)
                for k in np.flatnonzero(course > 0):
                    for frame, full in zip(
                        frames[k], (episode.expression.left, episode.expression.right), strict=True
                    ):
                        frame[au] = max(frame.get(au, 0.0), float(full[au] * course[k]))
        return frames

    def intensities(self) -> list[dict[int, float]]:
        """AU -> FACS intensity (0, 5] for each frame: what is drawn, on the scale of
        `expressions.strength`; AUs that are not to be seen are left out."""
        times = np.arange(len(self.views))
        frames: list[dict[int, float]] = [{} for _ in times]
        for episode in [e for e in (self.sustained, *self.brief, *self.idle) if e]:
            for au, grade in episode.expression.aus.items():
                for k, share in enumerate(episode.course(times, au)):
                    value = round(intensity(strength(grade) * share), 2)
                    if value > frames[k].get(au, 0.0):
                        frames[k][au] = value
        return [dict(sorted(frame.items())) for frame in frames]

    def shows_label(self) -> list[bool]:
        """Whether each frame shows what the clip is labelled with: the sustained expression at
        half its strength or more; in a neutral clip, none of the brief ones at half of theirs."""
        frames = range(len(self.views))
        if self.sustained is not None:
            first, last = self.sustained.start, self.sustained.start + self.sustained.length
            return [first <= k < last for k in frames]
        return [not any(b.start <= k < b.start + b.length for b in self.brief) for k in frames]


def _ramp(x: np.ndarray) -> np.ndarray:
    """From 0 at -1/2 to 1 at 1/2, smoothly."""
    t = np.clip(x + 0.5, 0, 1)
    return t * t * (3 - 2 * t)


# --- when things happen ---------------------------------------------------------------------------


def _scaled(length: int, frames: int) -> int:
    return max(1, round(length * frames / FRAMES))


def _places(length: int, frames: int) -> list[int]:
    """Where a sustained expression may start, equally likely. The clip is cut into as many pieces
    of its length as fit, shifted by what is left over: so no frame is in it too often."""
    pieces = frames // length
    spare = frames - pieces * length
    return [piece * length + shift for piece in range(pieces) for shift in range(spare + 1)]


def _brief_places(length: int, half: int, frames: int) -> list[int]:
    """Where a brief expression of a neutral clip may start in the clip's first or second half."""
    low, high = (0, frames // 2) if half == 0 else (frames // 2 + 1, frames)
    return list(range(low, high - length + 1))


def bounds(frames: int = FRAMES) -> list[float]:
    """For each frame, the share of clips in which it shows the label's expression (see
    `ClipSample.shows_label`), exactly: an upper bound for a model that sees that frame alone."""
    sustained = np.zeros(frames)
    for length, chance in SUSTAINED.items():
        wide = _scaled(length, frames)
        places = _places(wide, frames)
        for start in places:
            sustained[start : start + wide] += chance / len(places)
    quiet = np.ones(frames)
    for half in (0, 1):
        for length in BRIEF:
            wide = _scaled(length, frames)
            places = _brief_places(wide, half, frames)
            for start in places:
                quiet[start : start + wide] -= BRIEF_CHANCE / len(BRIEF) / len(places)
    neutral = 1 / len(EMOTIONS)
    return [round(float(x), 6) for x in (1 - neutral) * sustained + neutral * quiet]


# --- drawing --------------------------------------------------------------------------------------


def _episode(
    rng: np.random.Generator, expression: Expression, start: int, length: int, speed: float
) -> Episode:
    """`speed`: frames in which it comes and goes, at most."""
    rise, fall = (float(rng.uniform(0.55, 1.0) * speed) for _ in range(2))
    most = 0.35 if speed > 2 else 0.05
    shift = {au: float(rng.uniform(-most, most)) for au in sorted(expression.aus)}
    return Episode(expression, start, length, rise, fall, shift)


def _expression(rng: np.random.Generator, emotion: str) -> Expression:
    """One whose units speak for the emotion: in a clip, only time makes the label uncertain."""
    while True:
        expression = sample_expression(rng, emotion)
        if expression.aus and facs.supports(expression.aus, emotion):
            return expression


def _other(rng: np.random.Generator, label: str) -> Expression:
    others = [word for word in EMOTIONS if word not in (label, "neutral")]
    return _expression(rng, str(rng.choice(others)))


def _idle(
    rng: np.random.Generator, aus: Mapping[int, int], start: int, length: int, speed: float
) -> Episode:
    left, right = draw_sides(rng, aus, "neutral")
    graded = {au: float(grade) for au, grade in aus.items()}
    return _episode(rng, Expression("neutral", graded, left, right), start, length, speed)


def _sustained(rng: np.random.Generator, label: str, frames: int) -> Episode:
    length = _scaled(int(rng.choice(list(SUSTAINED), p=list(SUSTAINED.values()))), frames)
    start = int(rng.choice(_places(length, frames)))
    unit = frames / FRAMES
    episode = _episode(rng, _expression(rng, label), start, length, 3.0 * unit)
    cut_off = rng.random() < STARTS_OR_ENDS_THERE
    if start == 0 and cut_off:
        return dataclasses.replace(episode, rise=0.0)
    if start + length == frames and cut_off:
        return dataclasses.replace(episode, fall=0.0)
    return episode


def _beside(rng: np.random.Generator, around: Episode, frames: int) -> tuple[Episode, ...]:
    """A brief other expression before or after the sustained one, with two still frames between."""
    length = _scaled(int(rng.choice(BRIEF)), frames)
    unit = frames / FRAMES
    gap = _scaled(2, frames)
    after = around.start + around.length + gap
    places = [*range(around.start - gap - length + 1), *range(after, frames - length + 1)]
    if not places:  # little room: only a shorter one fits
        length = _scaled(1, frames)
        places = [*range(around.start - gap - length + 1), *range(after, frames - length + 1)]
    start = int(rng.choice(places))
    return (_episode(rng, _other(rng, around.expression.emotion), start, length, 1.1 * unit),)


def _views(rng: np.random.Generator, frames: int) -> tuple[View, ...]:
    """One camera and light; the head sways by a few degrees and the gaze wanders a little."""
    base = sample_view(rng)
    at = np.arange(frames) / frames
    sway = []
    for _ in range(5):
        turns, phase = rng.uniform(0.4, 1.2), rng.random()
        sway.append(rng.uniform(0.8, 3.0) * np.sin(2 * np.pi * (turns * at + phase)))
    first = base.background_seed + 1
    return tuple(
        dataclasses.replace(
            base,
            yaw=0.8 * base.yaw + float(sway[0][k]),
            pitch=0.8 * base.pitch + float(sway[1][k]) * 0.7,
            roll=0.8 * base.roll + float(sway[2][k]) * 0.6,
            gaze=(base.gaze[0] + float(sway[3][k]), base.gaze[1] + float(sway[4][k]) * 0.6),
            noise_seed=first + k,
        )
        for k in range(frames)
    )


def draw(seed: int, split: str, index: int, frames: int = FRAMES) -> ClipSample:
    """The clip behind row `index` of a split."""
    row_seed, identity_seed = sharded_dataset.seeds(seed, split, index)
    rng = np.random.default_rng([37, row_seed])
    identity, look, gender, race = sample_identity(identity_seed)
    label = str(rng.choice(EMOTIONS))
    unit = frames / FRAMES
    sustained: Episode | None = None
    brief: list[Episode] = []
    idle: list[Episode] = []
    if label != "neutral":
        sustained = _sustained(rng, label, frames)
        if rng.random() < BRIEF_CHANCE:
            brief += _beside(rng, sustained, frames)
    else:
        for half in (0, 1):
            if rng.random() < BRIEF_CHANCE:
                length = _scaled(int(rng.choice(BRIEF)), frames)
                start = int(rng.choice(_brief_places(length, half, frames)))
                brief.append(_episode(rng, _other(rng, label), start, length, 1.1 * unit))
        if rng.random() < TALKS:
            for start in range(int(rng.integers(0, 3)), frames - 1, _scaled(3, frames)):
                grade = int(rng.integers(2, 5))
                shape = {25: grade, 26: grade} if rng.random() < 0.7 else {18: grade}
                idle.append(_idle(rng, shape, start, _scaled(2, frames), 2.0 * unit))
    if rng.random() < BLINKS:
        start = int(rng.integers(0, frames))
        idle.append(_idle(rng, {43: 5}, start, _scaled(1, frames), 1.1 * unit))
    views = _views(rng, frames)
    face = Face(identity, look, {}, {}, views[0])
    clip = ClipSample(
        face, label, sustained, tuple(brief), (), views, gender, race, round(identity.age)
    )
    return dataclasses.replace(clip, idle=_apart(idle, clip))


def _apart(idle: list[Episode], clip: ClipSample) -> tuple[Episode, ...]:
    """The idle movements that leave all expressions alone: an eye cannot blink and be wide."""
    expressions = [e for e in (clip.sustained, *clip.brief) if e]
    return tuple(
        episode
        for episode in idle
        if all(
            episode.start + episode.length < e.start - e.rise / 2
            or episode.start > e.start + e.length + e.fall / 2
            for e in expressions
        )
    )


def faces(sample: ClipSample) -> list[Face]:
    """The face of each frame."""
    return [
        dataclasses.replace(sample.face, left=left, right=right, view=view)
        for (left, right), view in zip(sample.moves(), sample.views, strict=True)
    ]


def make_row(seed: int, split: str, index: int, size: int, frames: int = FRAMES) -> dict[str, Any]:
    """Row `index` of a split, rendered."""
    sample = draw(seed, split, index, frames)
    rest_pose = head_model().neutral(sample.face.identity)
    pictures = [render(face, size, rest_pose=rest_pose).jpeg for face in faces(sample)]
    aus = sample.sustained.expression.aus if sample.sustained else {}
    valence, arousal = affect(sample.label, aus)
    visible: list[int] = []
    if sample.sustained is not None:
        courses = [sample.sustained.course(np.arange(frames), au) for au in aus]
        visible = np.flatnonzero(np.max(courses, axis=0) > 0).tolist() if courses else []
    return FaceSample(
        **sharded_dataset.names("synth_clips", seed, split, index),
        frames=[{"bytes": picture, "path": None} for picture in pictures],
        emotion=sample.label,
        valence=valence,
        arousal=arousal,
        aus=unit_labels(dict(aus)),
        age=float(sample.age),
        age_group=SPACES["age_group5"].age_group_of(sample.age),
        gender=sample.gender,
        race=sample.race,
        meta={
            "frame_aus": [
                {str(au): value for au, value in frame.items()} for frame in sample.intensities()
            ],
            "apex": sample.apex,
            "onset": visible[0] if visible else None,
            "offset": visible[-1] if visible else None,
            "shows_label": sample.shows_label(),
            "brief": [
                {"emotion": b.expression.emotion, "start": b.start, "frames": b.length}
                for b in sample.brief
            ],
        },
    ).to_row()


CLIPS = sharded_dataset.RenderedSet(
    name="synth_clips",
    unit="clip",
    version=VERSION,
    shard=8,
    default_n={"train": 900, "validation": 100, "test": 300},
    size=96,
    sizes=(32, 512),
    make_row=make_row,
)


def check_frames(frames: int) -> None:
    """Raise UserError unless a clip can have so many frames."""
    if not FRAMES <= frames <= 64:
        raise UserError(f"synth_clips draws clips of {FRAMES} to 64 frames, not {frames}")
