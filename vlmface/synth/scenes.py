"""synth_scenes: people at a desk, with labels that need both the face and what the person has.

The label (space raer5) is a function of two things, and of nothing else in the picture:

    label("smiling", "book")  -> "Enjoyment"
    label("smiling", "phone") -> "Distraction"

A person with a study object (book, notebook, laptop) is as the face says: relaxed -> Neutrality,
smiling -> Enjoyment, frowning -> Confusion, drowsy -> Fatigue. With a distracting object (phone,
handheld game) they are distracted, unless they are drowsy, which is Fatigue whatever they hold.
Everything else (who it is, the look, light, room, things on the desk, gaze, turn of the head) is
drawn without looking at either.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vlmface.label_spaces import SPACES
from vlmface.schema import FaceSample
from vlmface.synth import sharded_dataset
from vlmface.synth.dataset import unit_labels
from vlmface.synth.expressions import affect, compatible, draw_grades, draw_sides
from vlmface.synth.face_parameters import Face, View
from vlmface.synth.faces import sample_identity, sample_view
from vlmface.synth.scene_render import Camera, Scene, assemble, box, outlines, render_scene

VERSION = 1
STUDY = ("book", "notebook", "laptop")
DISTRACTING = ("phone", "handheld game")
# Face state -> [(chance, units of which one is drawn)], as in `expressions.RECIPES`. The first
# unit makes the state: it is always there, and clearly (at least C).
STATES: dict[str, tuple[tuple[float, tuple[int, ...]], ...]] = {
    "relaxed": (),
    "smiling": ((1.0, (12,)), (0.90, (6,)), (0.50, (25,)), (0.20, (26,))),
    "frowning": ((1.0, (4,)), (0.85, (7,)), (0.20, (17, 24))),
    "drowsy": ((1.0, (43,)), (0.45, (26, 27)), (0.15, (25,))),
}
# The emotion that a state expresses. A frown over a book is not anger, nor are closed eyes any of
# the eight: those have none.
EMOTIONS = {"relaxed": "neutral", "smiling": "happiness"}
EXTRAS = (17, 18, 22, 28, 34)  # not evidence for an emotion, and unlike all states
EXTRA_CHANCE = 0.35
LEAST = 3  # intensity of the unit that makes the state
# Chance of (state, whether the object is for study). Distraction takes 36 % and each other label
# 16 %: with an even share of 20 %, four labels in five would follow from the face alone.
CHANCES: dict[tuple[str, bool], float] = {
    ("relaxed", True): 0.16,
    ("smiling", True): 0.16,
    ("frowning", True): 0.16,
    ("drowsy", True): 0.08,
    ("relaxed", False): 0.12,
    ("smiling", False): 0.12,
    ("frowning", False): 0.12,
    ("drowsy", False): 0.08,
}
_AT_STUDY = {
    "relaxed": "Neutrality",
    "smiling": "Enjoyment",
    "frowning": "Confusion",
    "drowsy": "Fatigue",
}


def label(state: str, thing: str) -> str:
    """The label of a face state of STATES with an object of STUDY or DISTRACTING."""
    studies = thing in STUDY
    return _AT_STUDY[state] if studies or state == "drowsy" else "Distraction"


def needs(state: str, thing: str) -> str:
    """What determines the label of a scene: "face" or "context" if one suffices, else "both"."""
    if len({label(state, other) for other in (*STUDY, *DISTRACTING)}) == 1:
        return "face"
    return "context" if len({label(other, thing) for other in STATES}) == 1 else "both"


def chances() -> dict[tuple[str, str], float]:
    """How likely each (state, object) is."""
    return {
        (state, thing): chance / len(things)
        for (state, studies), chance in CHANCES.items()
        for things in [STUDY if studies else DISTRACTING]
        for thing in things
    }


def bounds(metric: str = "accuracy") -> dict[str, float]:
    """The best that can be reached from the face state alone ("face_only"), from the object alone
    ("context_only") and from "both", exactly, by the sampling table.

    `metric`: "accuracy", or "uar" (mean recall of the labels that are drawn), whose best guess is
    the label of which most is seen, in shares of the label, instead of most often.
    """
    table = chances()
    totals: dict[str, float] = {}
    for pair, chance in table.items():
        totals[label(*pair)] = totals.get(label(*pair), 0.0) + chance
    weight = {
        word: 1.0 if metric == "accuracy" else 1 / (total * len(totals))
        for word, total in totals.items()
    }

    def best(visible: Any) -> float:
        cells: dict[Any, dict[str, float]] = {}
        for pair, chance in table.items():
            cell, word = cells.setdefault(visible(pair), {}), label(*pair)
            cell[word] = cell.get(word, 0.0) + chance * weight[word]
        return round(sum(max(cell.values()) for cell in cells.values()), 9)

    return {
        "face_only": best(lambda pair: pair[0]),
        "context_only": best(lambda pair: pair[1]),
        "both": best(lambda pair: pair),
    }


@dataclass(frozen=True)
class SceneSample:
    """A scene with what it is labelled from. `aus` maps each present AU to 1..5."""

    scene: Scene
    state: str
    aus: Mapping[int, float]
    gender: str
    race: str
    age: int

    @property
    def label(self) -> str:
        """The label of its state and object."""
        return label(self.state, self.scene.object)


def _draw_state(rng: np.random.Generator, state: str) -> dict[int, int]:
    """AU -> intensity 1..5 of a face in this state."""
    aus: set[int] = set()
    for chance, choices in STATES[state]:
        au = int(rng.choice(choices))
        if rng.random() < chance and compatible(au, aus):
            aus.add(au)
    extra = int(rng.choice(EXTRAS))
    if rng.random() < EXTRA_CHANCE and compatible(extra, aus):
        aus.add(extra)
    grades = draw_grades(rng, aus)
    for _, (main, *_) in STATES[state][:1]:
        grades[main] = max(LEAST, grades[main])
    return dict(sorted(grades.items()))


def _draw_view(rng: np.random.Generator) -> View:
    """Turn of the head, gaze and light; people look down or up whatever they have."""
    view = sample_view(rng)
    x, y, z = view.light
    down = rng.random() < 0.6
    return replace(
        view,
        yaw=float(np.clip(rng.normal(0, 7), -14, 14)),
        pitch=float(np.clip(rng.normal(2.5 if down else -1, 3.5), -6, 9)),
        roll=float(np.clip(rng.normal(0, 3.5), -9, 9)),
        gaze=(
            float(np.clip(rng.normal(0, 5), -12, 12)),
            float(rng.uniform(-11, -4) if down else np.clip(rng.normal(1, 3), -5, 6)),
        ),
        light=(x * 0.85, max(y, 0.35), z),
        blur=view.blur * 0.5,  # the face is half as large as in a picture of a face
    )


def _draw_camera(rng: np.random.Generator) -> Camera:
    position = (rng.uniform(-0.6, 0.6), rng.uniform(8.3, 8.8), rng.uniform(9.9, 10.5))
    aim = (rng.uniform(-0.25, 0.25), rng.uniform(6.0, 6.15), 1.5)
    x, y, z = (float(b - a) for a, b in zip(position, aim, strict=True))
    return Camera(
        (float(position[0]), float(position[1]), float(position[2])),
        side=float(np.degrees(np.arctan2(-x, -z))),
        down=float(np.degrees(np.arctan2(-y, -z))),
        field=float(rng.uniform(33.0, 35.0)),
    )


def draw(seed: int, split: str, index: int) -> SceneSample:
    """The scene behind row `index` of a split."""
    row_seed, identity_seed = sharded_dataset.seeds(seed, split, index)
    rng = np.random.default_rng([31, row_seed])
    identity, look, gender, race = sample_identity(identity_seed)
    table = chances()
    state, thing = list(table)[int(rng.choice(len(table), p=list(table.values())))]
    grades = _draw_state(rng, state)
    left, right = draw_sides(rng, grades, EMOTIONS.get(state, ""))
    face = Face(identity, look, left, right, _draw_view(rng))
    scene = Scene(face, _draw_camera(rng), thing, int(rng.integers(1 << 31)))
    aus = {au: float(grade) for au, grade in grades.items()}
    return SceneSample(scene, state, aus, gender, race, round(identity.age))


def make_row(seed: int, split: str, index: int, size: int) -> dict[str, Any]:
    """Row `index` of a split, rendered."""
    sample = draw(seed, split, index)
    built = assemble(sample.scene)
    rendering = render_scene(sample.scene, size, assembly=built)
    lines = outlines(sample.scene, built, size)
    view, emotion = sample.scene.face.view, EMOTIONS.get(sample.state)
    valence, arousal = affect(emotion, sample.aus) if emotion else (None, None)
    return FaceSample(
        **sharded_dataset.names("synth_scenes", seed, split, index),
        image={"bytes": rendering.jpeg, "path": None},
        face_box=box(lines["face"], size),
        emotion=emotion,
        valence=valence,
        arousal=arousal,
        aus=unit_labels(dict(sample.aus)),
        age=float(sample.age),
        age_group=SPACES["age_group5"].age_group_of(sample.age),
        gender=sample.gender,
        race=sample.race,
        context=[sample.label],
        meta={
            "face_state": sample.state,
            "object": sample.scene.object,
            "needs": needs(sample.state, sample.scene.object),
            "person_box": box(lines["person"], size),
            "object_box": box(lines["object"], size),
            "around": built.around,
            "seed": sample.scene.seed,
            "yaw": round(view.yaw, 1),
            "pitch": round(view.pitch, 1),
            "roll": round(view.roll, 1),
            "gaze": [round(g, 1) for g in view.gaze],
        },
    ).to_row()


SCENES = sharded_dataset.RenderedSet(
    name="synth_scenes",
    unit="scene",
    version=VERSION,
    shard=16,
    default_n={"train": 2500, "validation": 300, "test": 500},
    size=192,
    sizes=(64, 1024),
    make_row=make_row,
)
