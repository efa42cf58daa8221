"""The likelihood of each label's tokens after prompts that a model has already read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlmface.families.base import Family

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Decoder:
    """A model that reads tokens one after the other.

    Attributes:
        model: Its forward takes ids, mask and cache.
        family: The model's family.
        pad_token_id: Fills short rows.
    """

    model: Any
    family: Family
    pad_token_id: int

    def padded(self, rows: Sequence[list[int]]) -> torch.Tensor:
        """(rows, longest), padded on the right."""
        import torch

        pad, longest = self.pad_token_id, max(map(len, rows))
        return torch.tensor(
            [row + [pad] * (longest - len(row)) for row in rows], device=self.model.device
        )


@dataclass(frozen=True)
class CachedRows:
    """What the slots of a key-value cache hold.

    Attributes:
        cache: The cache.
        ids: Of each row: its prompt, then the generated tokens.
        prompt_lengths: Tokens of each row's prompt.
        first_slots: The slot of each row's first prompt token.
        width: The first slot after the prompts.
    """

    cache: Any
    ids: Sequence[list[int]]
    prompt_lengths: Sequence[int]
    first_slots: Sequence[int]
    width: int


def label_log_probs(
    decoder: Decoder, candidates: Sequence[list[list[int]]], cached: CachedRows
) -> tuple[torch.Tensor, list[list[int]]]:
    """Score labels after prompts that are in a cache.

    Cached tokens that are equal are reused. What else the labels of a row have in common is
    processed once, then each label's own tokens.

    Args:
        decoder: The model.
        candidates: For each row the ids of its conversation with each label.
        cached: What the model has read.

    Returns:
        (log-likelihoods (rows, labels) of each label's own tokens, the number of these tokens for
        each row and label).
    """
    import torch

    device, cache = decoder.model.device, cached.cache
    filled = cache.get_seq_length()
    common = [len(common_prefix(ids)) for ids in candidates]
    # The last reusable token is processed again: its output predicts what follows.
    reused = []
    for row_candidates, row_ids, prompt_length in zip(
        candidates, cached.ids, cached.prompt_lengths, strict=True
    ):
        cached_ids = row_ids[: prompt_length + filled - cached.width]
        reused.append(min(_common_length(cached_ids, other) for other in row_candidates) - 1)
    slots = torch.arange(filled, device=device)
    count, length, first, start = (
        torch.tensor(values, device=device)[:, None]
        for values in (reused, cached.prompt_lengths, cached.first_slots, common)
    )
    visible = (slots >= first) & (slots < first + torch.minimum(count, length))
    width = cached.width
    visible = (visible | ((slots >= width) & (slots < width + count - length))).long()
    shared = [ids[0][a:b] for ids, a, b in zip(candidates, reused, common, strict=True)]
    mask, logits = _feed(decoder, cache, visible, shared, count)
    visible = torch.cat([visible, mask], 1)
    last = logits[torch.arange(len(shared), device=device), mask.sum(1) - 1]
    first_log_probs = last.float().log_softmax(-1)

    scores = []
    for j in range(len(candidates[0])):
        label_tokens = [ids[j][a:] for ids, a in zip(candidates, common, strict=True)]
        ids = decoder.padded(label_tokens)
        score = first_log_probs.gather(-1, ids[:, :1])[:, 0]
        if ids.shape[1] > 1:
            mask, logits = _feed(
                decoder, cache, visible, [tokens[:-1] for tokens in label_tokens], start
            )
            cache.crop(-mask.shape[1])
            log_p = logits.float().log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
            score = score + (log_p * mask).sum(1)
        scores.append(score)
    counts = [[len(ids) - a for ids in row] for row, a in zip(candidates, common, strict=True)]
    return torch.stack(scores, 1), counts


def _feed(
    decoder: Decoder,
    cache: Any,
    visible: torch.Tensor,
    rows: Sequence[list[int]],
    start: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the model over the ids `rows` from position `start` (rows, 1) on. They attend to the
    cache slots that `visible` (rows, slots) flags. Returns (mask of the tokens that are not
    padding, logits)."""
    import torch

    ids = decoder.padded(rows)
    lengths = torch.tensor([[len(row)] for row in rows], device=ids.device)
    steps = torch.arange(ids.shape[1], device=ids.device)
    mask = (steps < lengths).long()
    logits = decoder.model(
        input_ids=ids,
        attention_mask=torch.cat([visible, mask], 1),
        cache=cache,
        use_cache=True,
        **decoder.family.decode_step_inputs(decoder.model, start + steps),
    ).logits
    return mask, logits


def common_prefix(rows: Sequence[list[int]]) -> list[int]:
    """The ids that all rows begin with."""
    return rows[0][: min(_common_length(rows[0], row) for row in rows)]


def _common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common prefix."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))
