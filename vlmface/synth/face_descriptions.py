"""Descriptions of rendered faces in plain words: no action unit numbers, no emotion words.

The built-in tiny base model is pretrained on these sentences, so that fine-tuning starts from a
model that describes brows, lids and lips but was never trained on FACS or emotion words.
"""

from __future__ import annotations

import numpy as np

from vlmface import facs
from vlmface.au_descriptions import CLAUSES
from vlmface.synth.faces import Sample
from vlmface.synth.v2.parameters import Look, Photo

# Place of the face -> the regions of the catalogue in it.
PLACES = {
    "brows": ("brow",),
    "eyes": ("eye",),
    "nose and cheeks": ("nose", "cheek"),
    "mouth": ("mouth",),
    "chin and jaw": ("chin", "jaw"),
}


def movements(
    sample: Sample, rng: np.random.Generator, regions: tuple[str, ...] = facs.REGIONS
) -> list[str]:
    """One clause per movement that is visible in the `regions`, from the brows down."""
    aus = sample.expression.aus
    clauses = []
    for unit in facs.top_down(aus):
        if facs.AUS[unit].region in regions:
            much = f" {facs.GRADES[facs.grade(aus[unit]) - 1]}" if rng.random() < 0.7 else ""
            clauses.append(str(rng.choice(CLAUSES[unit])).format(how=much))
    return clauses


def appearance(sample: Sample, rng: np.random.Generator) -> list[str]:
    """Clauses on pose, gaze, hair and age, in a random selection."""
    view, look = sample.face.view, sample.face.look
    clauses = []
    if abs(view.yaw) > 4:
        side = "right" if view.yaw > 0 else "left"
        clauses.append(f"the head is turned to the {side} of the picture")
    else:
        clauses.append("the head faces the camera")
    if abs(view.pitch) > 6:
        clauses.append(f"the head is tilted {'down' if view.pitch > 0 else 'up'}")
    if look.hair_style == "bald":
        clauses.append("the head is bald")
    else:
        if not (isinstance(view, Photo) and view.camera.grey):
            clauses.append(f"the hair is {look.hair_colour}")
        clauses.append(f"the hair style is {look.hair_style}")
    if look.beard > 0:
        clauses.append("there is a beard")
    if isinstance(look, Look) and look.glasses is not None:
        clauses.append("the person wears glasses")
    clauses.append(f"the person is about {max(10, round(sample.age, -1))} years old")
    clauses.append(f"the person is {'a woman' if sample.gender == 'female' else 'a man'}")
    return [clauses[i] for i in sorted(rng.permutation(len(clauses))[:3])]


def _sentences(clauses: list[str], rng: np.random.Generator) -> str:
    if rng.random() < 0.6 and len(clauses) > 1:  # one sentence with commas, or one for each clause
        clauses = [f"{', '.join(clauses[:-1])} and {clauses[-1]}"]
    return " ".join(f"{clause[0].upper()}{clause[1:]}." for clause in clauses)


def question_and_answer(sample: Sample, rng: np.random.Generator) -> tuple[str, str]:
    """A question about the picture and its answer: all movements, one place, or the looks."""
    kind = rng.random()
    if kind < 0.7:
        clauses = movements(sample, rng) or ["the face is at rest"]
        if rng.random() < 0.4:
            clauses += appearance(sample, rng)
        question = ("Describe the face.", "What does the face do?", "Which parts of the face move?")
        return str(rng.choice(question)), _sentences(clauses, rng)
    if kind < 0.88:
        part = str(rng.choice(list(PLACES)))
        clauses = movements(sample, rng, PLACES[part])
        return f"What do the {part} do?", _sentences(clauses or [f"the {part} are at rest"], rng)
    return str(rng.choice(("Describe the person.", "What does the person look like?"))), _sentences(
        appearance(sample, rng), rng
    )
