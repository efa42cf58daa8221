"""A key-value cache that grows in place.

transformers' own cache copies all keys and values with every token (`torch.cat` in
DynamicLayer.update): with images of hundreds of tokens that takes longer than the other work of the
step on a CPU. Here the tensors are allocated larger than needed, and tokens are appended in place.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

HEADROOM = 128  # tokens that are allocated in advance


class GrowingLayer(DynamicLayer):
    """`keys` and `values` are the filled parts of larger tensors. Not for passes with gradients,
    which need earlier values unchanged."""

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self.keys = self.key_room = key_states[..., :0, :]
        self.values = self.value_room = value_states[..., :0, :]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        self.key_room, self.keys = _append(self.keys, self.key_room, key_states)
        self.value_room, self.values = _append(self.values, self.value_room, value_states)
        return self.keys, self.values


def _append(
    filled: torch.Tensor, room: torch.Tensor, new: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(the larger tensor, its filled part with `new` appended). If another operation of the cache
    (selecting, repeating or cropping rows) has replaced `filled`, it is not a part of `room`
    and is copied."""
    length, new_length = filled.shape[-2], new.shape[-2]
    if (
        filled.data_ptr() != room.data_ptr()
        or filled.stride() != room.stride()
        or length + new_length > room.shape[-2]
    ):
        larger = new.new_empty(*new.shape[:-2], length + new_length + HEADROOM, new.shape[-1])
        larger[..., :length, :] = filled
        room = larger
    room[..., length : length + new_length, :] = new
    return room, room[..., : length + new_length, :]


def growing_cache(config: Any) -> DynamicCache:
    """An empty cache for a model of this configuration. Layers with a sliding window are those of
    transformers."""
    cache = DynamicCache(config=config)
    cache.layers = [
        GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache
