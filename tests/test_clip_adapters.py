"""Adapters start as nothing, learn, see time, and are kept with a run."""

from __future__ import annotations

import pytest
import torch
from helpers.clip_rows import picture, rows_of

from vlmface import label_texts
from vlmface.clip import checkpoint, tiny_clip
from vlmface.clip.adapters import Adapted, add_adapters
from vlmface.clip.classifier import Classifier, ClassifierConfig
from vlmface.errors import UserError
from vlmface.train.clip.settings import Settings
from vlmface.train.clip.trainer import part_of, train


def squares(clip, rows: int, pictures: int, seed: int = 0) -> torch.Tensor:
    draws = torch.Generator().manual_seed(seed)
    shape = (rows, pictures, 3, clip.side, clip.side)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=draws)


def wake(model: Classifier) -> None:
    """Give adapters other weights than zeros."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".adapters." in name:
                parameter.normal_(std=0.1)


@pytest.mark.parametrize("frames", [1, 3])
def test_untrained_adapters_change_nothing(frames):
    clip = tiny_clip.build()
    shown = squares(clip, 2, 2 * frames)
    before = clip.image_features(shown.flatten(0, 1))
    shape = ClassifierConfig(
        image_tower="adapters", num_views=2, num_frames=frames, temporal="mean"
    )
    model = Classifier(clip, label_texts.load("clip_emotion"), shape).eval()
    # Up to rounding: on some processors a layer with an adapter adds its sums in another order.
    torch.testing.assert_close(clip.image_features(shown.flatten(0, 1)), before, atol=1e-6, rtol=0)
    wake(model)
    assert not torch.allclose(clip.image_features(shown.flatten(0, 1)), before, atol=1e-2)


def test_only_adapters_are_trained_of_the_tower():
    model = Classifier(
        tiny_clip.build(),
        label_texts.load("clip_emotion"),
        ClassifierConfig(image_tower="adapters"),
    )
    names = checkpoint.names(model)
    blocks = len(model.model.visual.transformer.resblocks)
    assert len(names) == blocks * 2 * 4
    assert all(".adapters." in name and part_of(name) == "image_tower" for name in names)


def test_frames_of_a_clip_see_each_other_and_other_clips_do_not():
    clip = tiny_clip.build()
    shape = ClassifierConfig(image_tower="adapters", num_views=2, num_frames=3, temporal="mean")
    model = Classifier(clip, label_texts.load("clip_emotion"), shape).eval()
    wake(model)
    shown = squares(clip, 2, 6)
    before = model.image_features(shown)
    changed = shown.clone()
    changed[0, 1] = 255 - changed[0, 1]  # the second frame of the first view of the first row
    moved = (model.image_features(changed) - before).abs().amax(-1) > 1e-3
    assert moved.tolist() == [[True] * 3 + [False] * 3, [False] * 6]


def test_batches_and_single_rows_are_equal():
    clip = tiny_clip.build()
    shape = ClassifierConfig(image_tower="adapters", num_frames=3, temporal="transformer")
    model = Classifier(clip, label_texts.load("clip_emotion"), shape).eval()
    wake(model)
    shown = squares(clip, 3, 3)
    together, _ = model.answer(shown)
    alone = torch.cat([model.answer(one[None])[0] for one in shown])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_training_moves_them_and_a_run_keeps_them(tmp_path):
    colours = {"anger": (200, 60, 60), "fear": (60, 60, 200)}
    rows = rows_of(
        [
            (name, [picture(colours[name], 10 * i + k) for k in range(2)])
            for i, name in enumerate(["anger", "fear"] * 8)
        ]
    )
    settings = Settings(
        base_model="tiny",
        dataset="synth",
        benchmark="synth",
        prompt="clip_emotion",
        limitations="",
        output_dir=str(tmp_path),
        image_tower="adapters",
        num_frames=2,
        temporal="mean",
        epochs=4,
        batch_size=8,
        learning_rate=3e-3,
        logging_steps=1,
    )
    asked = label_texts.load("clip_emotion")
    model = Classifier(tiny_clip.build(), asked, settings.shape(1))
    found = train(model, rows, settings)
    assert found["loss_last"] < found["loss_first"] - 0.2
    shown = squares(model.clip, 2, 2)
    expected, _ = model.eval().answer(shown)
    again = Classifier(tiny_clip.build(), asked, settings.shape(1)).eval()
    assert not torch.allclose(again.answer(shown)[0], expected, atol=1e-3)
    checkpoint.load_trained(again, checkpoint.trained_state(model), "memory")
    again.reset_cache()
    torch.testing.assert_close(again.answer(shown)[0], expected)


def test_towers_of_other_make_are_refused():
    clip = tiny_clip.build()
    clip.model.visual.transformer = torch.nn.Identity()
    with pytest.raises(UserError, match="image_tower is adapters, but the image tower"):
        add_adapters(clip, 1)
    assert not any(isinstance(one, Adapted) for one in clip.model.visual.modules())
