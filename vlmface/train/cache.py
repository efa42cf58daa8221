"""Keys and values that grow in place."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import DynamicLayer

_ROOM = 64  # slots that are allocated ahead


class GrowingLayer(DynamicLayer):
    """transformers' layer copies all keys and values at each token; this one has room for more.
    Without gradients only: what is written in place would change what backward needs."""

    def __init__(self, layer: DynamicLayer) -> None:
        super().__init__()
        assert layer.keys is not None
        self.lazy_initialization(layer.keys, layer.keys)
        self.keys, self.values = layer.keys, layer.values
        self.rooms: list[torch.Tensor] = []

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        filled = self.get_seq_length()
        end = filled + key_states.shape[-2]
        if not self.rooms or self.rooms[0].shape[-2] < end:
            self.rooms = [_with_room(old, end + _ROOM) for old in (self.keys, self.values)]
        for room, new in zip(self.rooms, (key_states, value_states), strict=True):
            room[..., filled:end, :] = new
        self.keys, self.values = (room[..., :end, :] for room in self.rooms)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self.rooms = [room[indices] for room in self.rooms]
        super().batch_select_indices(indices)
        if self.rooms:
            filled = self.get_seq_length()
            self.keys, self.values = (room[..., :filled, :] for room in self.rooms)


def _with_room(old: Any, slots: int) -> torch.Tensor:
    room = old.new_empty((*old.shape[:-2], slots, old.shape[-1]))
    room[..., : old.shape[-2], :] = old
    return room


def let_grow(cache: Any) -> None:
    """Give the plain layers of a cache room; sliding windows stay as they are."""
    cache.layers = [
        GrowingLayer(layer) if type(layer) is DynamicLayer and layer.is_initialized else layer
        for layer in cache.layers
    ]
