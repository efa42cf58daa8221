"""Rows for tests of CLIP classifiers: pictures of noise around a colour for each label."""

from __future__ import annotations

import io
from collections.abc import Sequence

import datasets
import numpy as np
from PIL import Image

from vlmface.schema import FaceSample, features


def picture(colour: Sequence[int], number: int, side: int = 32) -> dict[str, object]:
    """A PNG as a row holds it."""
    noise = np.random.default_rng(number).normal(0, 40, (side, side, 3))
    pixels = (np.asarray(colour) + noise).clip(0, 255).astype(np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return {"bytes": content.getvalue(), "path": None}


def rows_of(clips: Sequence[tuple[str, list[dict[str, object]]]]) -> datasets.Dataset:
    """(emotion, the pictures that are shown of it) -> rows with the column `images`, or, where one
    picture is shown, with it as their image."""
    several = len(clips[0][1]) > 1
    stored = [
        FaceSample(id=f"c{i}", dataset="test", image=pictures[0], emotion=emotion).to_row()
        | ({"images": pictures} if several else {})
        for i, (emotion, pictures) in enumerate(clips)
    ]
    kinds = features() | {"image": datasets.Image(decode=False)}
    if several:
        kinds["images"] = [datasets.Image(decode=False)]
    return datasets.Dataset.from_list(stored, features=datasets.Features(kinds))
