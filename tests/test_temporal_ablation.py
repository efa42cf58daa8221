"""Clips beside their frames: where the label is what lasts, a model of clips must win, and where
every frame says all, it must not."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
import torch

from vlmface import label_texts
from vlmface.errors import UserError
from vlmface.pipelines import temporal_ablation
from vlmface.pipelines.temporal_ablation import Part, compare
from vlmface.train.clip.settings import Settings
from vlmface.utils import config

FRAMES, WIDTH, LABELS = 3, 128, 8


def part(n: int, seed: int, *, lasting: int) -> Part:
    """Features in which the label's direction is seen in `lasting` of three frames, and that of
    another label in the others, at random places."""
    draws = torch.Generator().manual_seed(seed)
    directions = torch.randn(LABELS, WIDTH, generator=torch.Generator().manual_seed(0))
    targets = torch.randint(LABELS, (n,), generator=draws)
    others = (targets + torch.randint(1, LABELS, (n,), generator=draws)) % LABELS
    place = torch.rand(n, FRAMES, generator=draws).argsort(1) < lasting
    shown = torch.where(place, targets[:, None], others[:, None])
    features = directions[shown] + 0.3 * torch.randn(n, FRAMES, WIDTH, generator=draws)
    return Part(None, targets, torch.full((n, 2), torch.nan), features)


def settings(folder, **changes) -> Settings:
    file = config.find_config("clip_temporal_tiny")
    values = config.read_yaml(file) | {
        "output_dir": str(folder),
        "num_frames": FRAMES,
        "epochs": 6,
        "batch_size": 32,
        "learning_rate": 2e-3,
        "warmup_steps": 0,
    }
    return config.from_dict(Settings, values | changes, where=file.name)


def truths(test: Part):
    labels = label_texts.load("clip_emotion").space.labels
    return [
        {"id": f"c{i}", "subject": None, "truth": {"emotion": labels[int(t)]}}
        for i, t in enumerate(test.targets)
    ]


def test_what_lasts_needs_all_frames(tmp_path):
    parts = [part(n, seed, lasting=2) for n, seed in ((256, 1), (64, 2), (200, 3))]
    chosen = settings(tmp_path)
    found = compare(chosen, parts, truths(parts[2]))
    assert found["n"] == {"train": 256, "validation": 64, "test": 200}
    assert list(found["models"]) == ["clip", "mean", *(f"frame {k}" for k in range(FRAMES))]
    best = found["best_frame"]
    scores = [found["models"][f"frame {k}"]["validation_uar"] for k in range(FRAMES)]
    assert scores[best] == max(scores)
    difference = found["differences"][f"clip - frame {best}"]["uar"]
    test = {name: one["test"]["uar"] for name, one in found["models"].items()}
    assert difference["difference"] == pytest.approx(test["clip"] - test[f"frame {best}"])
    assert difference["ci95"][0] > 0
    # A frame shows the label in two of three clips; nobody can know better from it.
    assert max(test[f"frame {k}"] for k in range(FRAMES)) < 0.78 < test["clip"]
    assert 0 <= found["still"]["same_label"] <= 1

    # The same again, from what is on the disk; and again after one model was lost.
    assert compare(chosen, parts, truths(parts[2])) == found
    shutil.rmtree(tmp_path / "models" / "mean")
    assert compare(chosen, parts, truths(parts[2])) == found

    text = temporal_ablation.markdown_table(found)
    assert f"| frame {best} (best) |" in text
    assert f"| clip - frame {best} |" in text and "| clip - mean |" in text


def test_where_a_frame_says_all_there_is_no_difference(tmp_path):
    parts = [part(n, seed, lasting=3) for n, seed in ((256, 1), (64, 2), (200, 3))]
    found = compare(settings(tmp_path), parts, truths(parts[2]))
    for one in found["differences"].values():
        low, high = one["uar"]["ci95"]
        assert low <= 0 <= high
    assert found["models"]["clip"]["test"]["uar"] > 0.95
    assert found["still"]["same_label"] > 0.95


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_tower": "lora"}, "found image_tower is lora"),
        ({"temporal": "mean"}, "found temporal is mean"),
        ({"num_frames": 1}, "num_frames 1, 1 view"),
        ({"augment": "flip"}, "augment is flip"),
        ({"views": [{"size": 96}, {"size": 96, "view": "scene"}]}, r"2 view\(s\)"),
        (
            {"validation_split": None, "checkpoint_selection": "last"},
            "are chosen on validation_split: name one",
        ),
    ],
)
def test_other_settings_are_refused(tmp_path, changes, message):
    chosen = dataclasses.replace(settings(tmp_path), **changes)
    with pytest.raises(UserError, match=message):
        temporal_ablation._check(chosen)


@pytest.mark.slow
def test_rendered_clips_need_time(tmp_path):
    folder = tmp_path / "run"
    words = ["--n_train", "320", "--output_dir", str(folder)]
    assert temporal_ablation.main(["--config", "clip_temporal_tiny", *words]) == 0
    found = json.loads((folder / temporal_ablation.RESULT).read_text())
    assert found["n"] == {"train": 320, "validation": 100, "test": 300}
    assert found["differences"][f"clip - frame {found['best_frame']}"]["uar"]["ci95"][0] > 0.2
    assert found["differences"]["clip - mean"]["uar"]["difference"] > 0
    assert (folder / temporal_ablation.TABLE).read_text() == temporal_ablation.markdown_table(found)
