"""Losses for labels and captions, against torch's and open_clip's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given
from hypothesis import strategies as st
from open_clip.loss import ClipLoss

from vlmface.train.clip import augment, losses


def _features(n: int, seed: int) -> torch.Tensor:
    made = torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))
    return F.normalize(made, dim=-1)


@given(st.integers(2, 12), st.integers(0, 99))
def test_distinct_captions_give_clips_own_loss(n: int, seed: int) -> None:
    images, words = _features(n, seed), _features(n, seed + 1000)
    ours = losses.caption_loss(images, words, torch.arange(n), 20.0)
    assert torch.allclose(ours, ClipLoss()(images, words, torch.tensor(20.0)), atol=1e-5)


def test_faces_of_one_caption_are_no_negatives_of_each_other() -> None:
    images, words = _features(4, 0), _features(4, 1)
    groups = torch.tensor([0, 0, 1, 2])
    nudge = torch.zeros(4, 6)
    nudge[0] = 0.01 * words[1]  # towards the other caption of the same group
    closer = F.normalize(images + nudge, dim=-1)
    ours = [losses.caption_loss(one, words, groups, 10.0) for one in (images, closer)]
    clips = [ClipLoss()(one, words, torch.tensor(10.0)) for one in (images, closer)]
    assert ours[1] < ours[0]
    assert clips[1] > clips[0]


@given(st.integers(0, 99))
def test_the_least_loss_is_reached_where_groups_are_apart(seed: int) -> None:
    words = _features(2, seed)[[0, 0, 1, 1]]
    found = losses.caption_loss(words, words, torch.tensor([0, 0, 1, 1]), 1000.0)
    assert float(found) == pytest.approx(0.6931, abs=1e-3)  # log 2: each has two right answers


def test_order_of_pairs_does_not_matter() -> None:
    images, words, groups = _features(8, 0), _features(8, 1), torch.tensor([0, 1, 1, 2, 3, 3, 3, 4])
    order = torch.randperm(8)
    whole = losses.caption_loss(images, words, groups, 5.0)
    mixed = losses.caption_loss(images[order], words[order], groups[order], 5.0)
    assert torch.allclose(whole, mixed, atol=1e-6)


def test_label_loss_is_torchs_with_its_options() -> None:
    logits, truth = torch.randn(9, 4), torch.randint(4, (9,))
    weights = torch.tensor([1.0, 2.0, 0.5, 0.5])
    ours = losses.label_loss(logits, truth, scale=3.0, smoothing=0.1, weights=weights)
    options = {"weight": weights, "label_smoothing": 0.1}
    each = F.cross_entropy(logits * 3, truth, reduction="none", **options)  # type: ignore[arg-type]
    assert torch.allclose(ours, each.mean())  # not divided by the sum of the batch's weights
    one_hot = F.one_hot(truth, 4).float()
    for some in (None, weights):
        hard, soft = (losses.label_loss(logits, x, weights=some) for x in (truth, one_hot))
        assert torch.allclose(hard, soft)
    shares = torch.rand(9, 4).softmax(1)
    expected = -(shares * (logits * 3).log_softmax(1)).sum(1).mean()
    assert torch.allclose(losses.label_loss(logits, shares, scale=3.0), expected)
    several = (torch.rand(9, 4) < 0.5).float()
    ours = losses.multilabel_loss(logits, several, scale=2.0)
    assert torch.allclose(ours, F.binary_cross_entropy_with_logits(logits * 2, several))


def test_margins_make_the_true_label_harder() -> None:
    margins = losses.ldam_margins([1000, 10, 0])
    assert margins[1] == losses.LDAM_MARGIN and margins[2] == 0
    assert margins[0] == pytest.approx(losses.LDAM_MARGIN * (10 / 1000) ** 0.25)
    logits, truth = torch.randn(5, 3), torch.tensor([0, 1, 1, 0, 0])
    by_hand = logits.clone()
    for row, label in enumerate(truth.tolist()):
        by_hand[row, label] -= margins[label]
    ours = losses.label_loss(logits, truth, scale=7.0, margins=margins)
    assert torch.allclose(ours, F.cross_entropy(by_hand * 7, truth))
    assert ours > losses.label_loss(logits, truth, scale=7.0)


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_label_weights_favour_the_rare(power: float) -> None:
    weights = losses.label_weights([100, 10, 0], power)
    assert weights is not None
    assert weights[1] > weights[0] > 0 and weights[2] == 0
    assert float(weights @ torch.tensor([100.0, 10, 0])) == pytest.approx(110)
    assert float(weights[1] / weights[0]) == pytest.approx(10**power)
    assert losses.label_weights([1, 2], 0) is None


# --- changes of pictures --------------------------------------------------------------------------


def test_changed_pictures_stay_pictures_and_follow_the_seed() -> None:
    squares = torch.randint(256, (6, 2, 3, 20, 20), dtype=torch.uint8)
    assert augment.augment_squares(squares, "none") is squares
    for kind in ("flip", "face"):
        torch.manual_seed(3)
        first = augment.augment_squares(squares, kind)
        torch.manual_seed(3)
        assert torch.equal(first, augment.augment_squares(squares, kind))
        assert first.shape == squares.shape and first.dtype == torch.uint8
        assert not torch.equal(first, squares)
    torch.manual_seed(0)
    flipped = augment.augment_squares(squares, "flip")
    same = [torch.equal(a, b) for a, b in zip(flipped, squares, strict=True)]
    turned = [torch.equal(a, b.flip(-1)) for a, b in zip(flipped, squares, strict=True)]
    assert all(a != b for a, b in zip(same, turned, strict=True)) and any(same) and any(turned)


def test_pictures_of_a_row_change_together() -> None:
    one = torch.randint(256, (4, 1, 3, 16, 16), dtype=torch.uint8)
    torch.manual_seed(1)
    both = augment.augment_squares(one.repeat(1, 2, 1, 1, 1), "face")
    assert torch.equal(both[:, 0], both[:, 1])


# --- several processes ----------------------------------------------------------------------------


def _gradients(kind: str, rows: slice) -> dict[str, torch.Tensor]:
    """Gradients of the loss of some of eight rows, by a tower that all of them share."""
    torch.manual_seed(0)
    image, text = torch.nn.Linear(6, 4), torch.nn.Linear(5, 4)
    scale = torch.nn.Parameter(torch.ones(()))
    pictures, words, affects = torch.randn(8, 6), torch.randn(8, 5), torch.rand(8, 2)
    affects[[0, 1, 2, 6]] = torch.nan
    labels = torch.tensor([0, 0, 1, 0, 2, 1, 1, 3])
    seen = image(pictures[rows])
    weights = losses.label_weights([3, 3, 1, 1], 1)
    if kind == "captions":
        said = text(words[rows])
        joined = losses.of_all_processes(seen, said, labels[rows])
        loss = losses.caption_loss(*joined, scale)
    elif kind == "affect":
        loss = losses.affect_loss(seen[:, :2] * scale, affects[rows])
    elif kind == "several":
        goal = torch.nn.functional.one_hot(labels, 4).float()[rows]
        loss = losses.multilabel_loss(seen, goal, scale=scale, weights=weights)
    elif kind == "soft":
        shares = torch.nn.functional.one_hot(labels, 4).float()[rows] * 0.6 + 0.1
        loss = losses.label_loss(seen, shares, scale=scale, weights=weights)
    else:
        smoothing = 0.1 if kind == "smoothed" else 0.0
        own = None if kind == "plain" else weights
        loss = losses.label_loss(seen, labels[rows], scale=scale, weights=own, smoothing=smoothing)
    loss.backward()
    named = {"image": image.weight, "text": text.weight, "scale": scale}
    found = {name: weight.grad for name, weight in named.items() if weight.grad is not None}
    return found | {"loss": loss.detach()}


KINDS = ("plain", "weighted", "smoothed", "soft", "several", "affect", "captions")


def _in_process(rank: int, folder: str) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found = {}
    for kind in KINDS:
        found[kind] = _gradients(kind, slice(4 * rank, 4 * rank + 4))
        for value in found[kind].values():  # what data parallel training does
            dist.all_reduce(value)
            value /= 2
    if rank == 0:
        torch.save(found, f"{folder}/found.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_the_mean_over_processes_is_the_whole_batch(tmp_path: Path) -> None:
    """Labels, weights and annotation are unevenly divided between the two."""
    torch.multiprocessing.start_processes(
        _in_process, (str(tmp_path),), nprocs=2, start_method="fork"
    )
    found = torch.load(tmp_path / "found.pt")
    for kind in KINDS:
        alone = _gradients(kind, slice(0, 8))
        assert found[kind].keys() == alone.keys() and alone.keys() >= {"image", "scale"}
        for name, value in alone.items():
            assert torch.allclose(found[kind][name], value, atol=1e-6), (kind, name)
