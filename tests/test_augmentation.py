"""Random changes of training images: corruptions, mirror images and the sides in their texts."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.checkpoints import llava
from helpers.run_files import adapter
from helpers.samples import rows, samples
from helpers.trainers import interrupted, starter
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from vlmface import prompts
from vlmface.data import corruptions
from vlmface.data.row_images import open_row_image
from vlmface.encode import Collator
from vlmface.errors import UserError
from vlmface.train.augmentation import (
    Augmentation,
    AugmentedRows,
    EpochSampler,
    mirror_text,
    with_mirrored_rationales,
)
from vlmface.train.rows import encode_rows

PROMPT = prompts.load("face_cot")


# --- texts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "mirrored"),
    [
        ("The left lip corner is raised.", "The right lip corner is raised."),
        ("Right eyebrow up, LEFT one not.", "Left eyebrow up, RIGHT one not."),
        ("AU12L and L14B, au 6R, R2", "AU12R and R14B, au 6L, L2"),
        ("left-sided smile (AUL12)", "right-sided smile (AUR12)"),
        ("AU12 is bright; the upright head (L) lifts at 5.", None),
        ("The mouth is left open, right after the lids close.", None),
        ("Both corners, AU6+12, 3D, AU4B", None),
    ],
)
def test_sides_are_swapped(text: str, mirrored: str | None) -> None:
    assert mirror_text(text) == (mirrored or text)


WORDS = ["left", "Right", "LEFT", "AU12L", "L12", "R2B", "14R", "AU_4L", "up", "open", ";", ","]


@given(st.lists(st.sampled_from(WORDS)))
def test_the_mirror_image_of_a_mirror_image_is_the_same(words: list[str]) -> None:
    text = " ".join(words)
    mirrored = mirror_text(text)
    assert mirror_text(mirrored) == text
    count, other = (Counter(re.findall("[LR](?=[0-9])", part)) for part in (text, mirrored))
    assert count["L"] == other["R"] and count["R"] == other["L"]


# --- images ---------------------------------------------------------------------------------------


def test_images_follow_seed_epoch_and_row() -> None:
    image = open_row_image(samples(1)[0].image)
    changes = Augmentation(0.5, corruptions.NAMES, flip=True, seed=3)

    def pixels(epoch: int, row: int) -> Any:
        (changed,), is_flipped, _ = changes.change([image], epoch, row)
        return np.asarray(changed), is_flipped

    drawn = {(epoch, row): pixels(epoch, row) for epoch in range(4) for row in range(50)}
    for place, (first, is_flipped) in drawn.items():
        again, flipped_again = pixels(*place)
        assert (first == again).all() and is_flipped == flipped_again
    plain, mirrored = np.asarray(image), np.asarray(ImageOps.mirror(image))
    clean = [(first == (mirrored if flip else plain)).all() for first, flip in drawn.values()]
    assert 70 < sum(clean) < 130 and 70 < sum(flip for _, flip in drawn.values()) < 130
    assert any((drawn[0, k][0] != drawn[1, k][0]).any() for k in range(50))
    never = Augmentation(0.0, (), flip=False, seed=3)
    assert all((np.asarray(never.change([image], 0, k)[0][0]) == plain).all() for k in range(20))
    views, *_ = Augmentation(1.0, ["noise"], flip=True, seed=0).change([image] * 2, 0, 0)
    assert (np.asarray(views[0]) == np.asarray(views[1])).all()


def test_a_mirrored_row_has_the_mirrored_text(processor: Any) -> None:
    sided = [sample for sample in samples(6) if sample.emotion != "neutral"]
    for sample in sided:
        sample.rationale = "The left lip corner is raised (AU12)."
        sample.rationale_source = "human"
    from datasets import Dataset

    from vlmface.schema import features

    faces = Dataset.from_list([s.to_row() for s in sided], features=features())
    encoded, skipped = encode_rows(
        with_mirrored_rationales(faces), processor, llava, PROMPT, max_length=512, seed=0
    )
    assert not skipped
    augmented = AugmentedRows(encoded, Augmentation(0.0, (), flip=True, seed=0))
    seen = set()
    for index in range(3 * len(encoded)):
        row = augmented[index]
        stored = open_row_image(faces[index % len(encoded)]["image"])
        is_flipped = row["image"].tobytes() == ImageOps.mirror(stored).tobytes()
        assert is_flipped or row["image"].tobytes() == stored.tobytes()
        ids = [token for token in row["labels"] if token != -100]
        assert ("right lip" if is_flipped else "left lip") in processor.tokenizer.decode(ids)
        assert not any(name.startswith("mirrored") for name in row)
        seen.add(is_flipped)
    assert seen == {True, False}
    batch = Collator(processor, llava)([augmented[0], augmented[1]])
    assert batch["input_ids"].shape == batch["labels"].shape


def test_rows_without_sides_are_encoded_once(processor: Any) -> None:
    assert with_mirrored_rationales(rows(3)).column_names == rows(3).column_names
    assert isinstance(open_row_image(rows(1)[0]["image"]), Image.Image)


def test_the_order_of_an_epoch_contains_the_epoch() -> None:
    sampler = EpochSampler([3] * 10, 2, seed=0)
    orders = []
    for epoch in (0, 2):
        sampler.set_epoch(epoch)
        orders.append([index - 10 * epoch for index in sampler])
    assert all(sorted(order) == list(range(10)) for order in orders) and orders[0] != orders[1]


# --- the recipe -----------------------------------------------------------------------------------

CHANGES = {"corruption_share": 0.8, "corruptions": "[blur,noise,hand]", "augment": "flip"}


def test_a_resumed_run_sees_the_same_images(base: Path, clip_base: Path, tmp_path: Path) -> None:
    start = starter("sft", base, clip_base)
    assert start(tmp_path / "whole", **CHANGES) == 0
    with interrupted("sft", 4):
        start(tmp_path / "run", **CHANGES)
    assert start(tmp_path / "run", **CHANGES) == 0
    assert start(tmp_path / "plain") == 0
    whole, resumed, plain = (adapter(tmp_path / name) for name in ("whole", "run", "plain"))
    assert all(torch.equal(resumed[name], weight) for name, weight in whole.items())
    assert any(not torch.equal(plain[name], weight) for name, weight in whole.items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"corruptions": "[fog]", "corruption_share": 0.5},
            "no corruption 'fog': use some of",
        ),
        ({"corruptions": "[blur]"}, "corruptions is .* but has no effect: corruption_share is 0"),
        ({"corruption_share": 0.5, "cache_features": "true"}, "cache_features is True, but has"),
        ({"augment": "flip", "cache_features": "true"}, "cache_features is True, but has"),
        ({"corruption_share": 1.5}, r"corruption_share is 1\.5, but must be"),
    ],
)
def test_what_has_no_effect_is_refused(
    settings: dict[str, Any], message: str, base: Path, clip_base: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        starter("sft", base, clip_base)(tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()
