"""Labelled pictures for the tests of training and inference."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

# AUs and the emotion they make: enough variety for texts of different lengths.
FACES: list[tuple[dict[int, float], str]] = [
    ({6: 3.0, 12: 4.0}, "happiness"),
    ({1: 2.0, 4: 3.0, 15: 2.0, 17: 1.0}, "sadness"),
    ({1: 3.0, 2: 3.0, 5: 4.0, 26: 3.0}, "surprise"),
    ({4: 4.0, 5: 2.0, 7: 3.0, 23: 4.0}, "anger"),
    ({9: 4.0, 10: 2.0}, "disgust"),
    ({14: 3.0}, "contempt"),
    ({1: 3.0, 2: 2.0, 4: 3.0, 5: 4.0, 7: 1.0, 20: 3.0, 25: 2.0}, "fear"),
    ({}, "neutral"),
]


def picture(seed: int, size: tuple[int, int] = (40, 40)) -> Image.Image:
    """A random RGB picture, smooth enough to survive resizing."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def samples(n: int) -> list[Any]:
    """FaceSamples with random pictures and the labels of FACES in turn."""
    from vlmface import facs
    from vlmface.schema import AULabel, FaceSample

    found = []
    for i in range(n):
        aus, emotion = FACES[i % len(FACES)]
        buffer = io.BytesIO()
        picture(i).save(buffer, "PNG")
        labels = [AULabel(au, aus.get(au, 0.0), au in aus) for au in facs.SYNTH_AUS]
        found.append(
            FaceSample(
                id=f"face-{i}",
                dataset="test",
                split="train",
                image={"bytes": buffer.getvalue(), "path": None},
                emotion=emotion,
                aus=labels,
            ).validate()
        )
    return found


def rows(n: int) -> Any:
    """`samples(n)` as a datasets.Dataset."""
    from datasets import Dataset

    from vlmface.schema import features

    return Dataset.from_list([sample.to_row() for sample in samples(n)], features=features())
