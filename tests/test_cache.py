"""The cache that grows in place holds what transformers' own holds, whatever is done to it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import DynamicCache, LlamaConfig

from vlmface.infer import cache as module
from vlmface.infer.cache import GrowingLayer, growing_cache

CONFIG = LlamaConfig(num_hidden_layers=2)


def states(rows: int, tokens: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, 3, tokens, 4)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


@pytest.mark.parametrize("spare", [1, 3, 128])
def test_equal_to_the_upstream_cache(spare: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEADROOM", spare)
    ours, theirs = growing_cache(CONFIG), DynamicCache(config=CONFIG)
    assert [type(layer) for layer in ours.layers] == [GrowingLayer] * 2
    rows = 2

    def append(tokens: int, seed: int) -> None:
        for layer in range(2):
            new = states(rows, tokens, seed + layer)
            for mine, upstream in zip(
                ours.update(*new, layer), theirs.update(*new, layer), strict=True
            ):
                assert torch.equal(mine, upstream)
        assert ours.get_seq_length() == theirs.get_seq_length()

    both: list[Any] = [ours, theirs]
    append(5, 0)
    append(1, 10)
    for cache in both:
        cache.crop(-3)
    append(2, 20)
    append(4, 30)
    for cache in both:
        cache.batch_repeat_interleave(2)
    rows = 4
    append(1, 40)
    for cache in both:
        cache.batch_select_indices(torch.tensor([0, 2, 3]))
    rows = 3
    append(1, 50)
    for cache in both:
        cache.crop(-1)
    append(1, 60)
    for layer in range(2):
        assert torch.equal(ours.layers[layer].keys, theirs.layers[layer].keys)
        assert torch.equal(ours.layers[layer].values, theirs.layers[layer].values)


def test_a_token_moves_nothing() -> None:
    cache = growing_cache(CONFIG)
    cache.update(*states(2, 5, 0), 0)
    before = cache.layers[0].keys.data_ptr()
    for seed in range(10):
        cache.update(*states(2, 1, seed), 0)
    assert cache.layers[0].keys.data_ptr() == before
    upstream = DynamicCache(config=CONFIG)
    upstream.update(*states(2, 5, 0), 0)
    before = upstream.layers[0].keys.data_ptr()
    upstream.update(*states(2, 1, 0), 0)
    assert upstream.layers[0].keys.data_ptr() != before  # why the layer is there


def test_windows_stay_as_they_are() -> None:
    config = SimpleNamespace(get_text_config=lambda decoder: LlamaConfig(num_hidden_layers=2))
    assert len(growing_cache(config).layers) == 2
    from transformers import Gemma2Config

    mixed = growing_cache(Gemma2Config(num_hidden_layers=4, sliding_window=8))
    kinds = [isinstance(layer, GrowingLayer) for layer in mixed.layers]
    assert any(kinds) and not all(kinds)
