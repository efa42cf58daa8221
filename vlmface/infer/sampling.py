"""Sampling and scoring of several completions of one prompt, each prompt read once.

A group's completions share image and prompt. Both are encoded once, and their keys and values are
repeated for the completions: to sample them (finished ones leave the batch) and, with gradients, to
score them. The model sees the same tokens at the same positions as in training and serving: the
prefix is padded on the right, as training pads, and the completions follow at each row's own
length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlmface.families.base import Family

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Rollout:
    """Completions in the order of the prompts, `group` of each: `ids` without padding, the stop
    token included where there is one; `log_probs` of these ids, by the distribution that they were
    drawn from; whether they are `complete`, ended by a stop token rather than by the limit."""

    ids: list[list[int]]
    log_probs: list[list[float]]
    complete: list[bool]


@dataclass
class _Prefix:
    """Keys and values of prompts, the logits behind their last token (prompts, vocabulary), their
    lengths (prompts) and the mask of the slots (prompts, longest)."""

    cache: Any
    logits: torch.Tensor
    lengths: torch.Tensor
    mask: torch.Tensor


def core_of(model: Any) -> Any:
    """The family's model under an adapter."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _read(model: Any, batch: Mapping[str, Any]) -> _Prefix:
    """Run the model over prompts that are padded on the right."""
    import torch

    mask = batch["attention_mask"]
    lengths = mask.sum(1)
    kept = int(mask.shape[1] - lengths.min()) + 1
    output = model(**batch, use_cache=True, logits_to_keep=kept)
    last = lengths - 1 - (mask.shape[1] - kept)
    logits = output.logits[torch.arange(len(lengths), device=last.device), last]
    return _Prefix(output.cache, logits, lengths, mask)


def _repeated(model: Any, prefix: _Prefix, group: int) -> _Prefix:
    """Each prompt `group` times."""
    prefix.cache.batch_repeat_interleave(group)
    return _Prefix(
        prefix.cache,
        *(
            tensor.repeat_interleave(group, 0)
            for tensor in (prefix.logits, prefix.lengths, prefix.mask)
        ),
    )


def _later(model: Any, family: Family, positions: torch.Tensor, group: int) -> dict[str, Any]:
    """What the forward takes for tokens behind the prefix, whose rows have been repeated."""
    core = core_of(model)
    deltas = getattr(getattr(core, "model", None), "rope_deltas", None)
    if deltas is None:
        return family.decode_step_inputs(model, positions)
    core.model.rope_deltas = deltas.repeat_interleave(group, 0)
    try:
        return family.decode_step_inputs(model, positions)
    finally:
        core.model.rope_deltas = deltas


def sample(
    model: Any,
    family: Family,
    batch: Mapping[str, Any],
    *,
    group: int,
    max_new_tokens: int,
    stops: Sequence[int],
    generator: torch.Generator,
    temperature: float = 1.0,
    top_p: float = 1.0,
    never: Sequence[int] = (),
) -> Rollout:
    """Draw `group` completions of each prompt of a batch.

    `batch` is the collator's, padded on the right, with images or features as the family's forward
    takes them. Tokens are drawn by `generator` alone, so that equal weights and seeds give equal
    completions. `never` are ids that are not drawn: an image token in an answer would ask for an
    image when the answer is read back (huggingface/trl#3847). The model should be in eval mode.
    """
    import torch

    with torch.no_grad():
        prefix = _read(model, batch)
        prompts = len(prefix.lengths)
        prefix = _repeated(model, prefix, group)
        lengths = prefix.lengths
        everything = _later(model, family, _positions(lengths, max_new_tokens), group)
        logits, mask = prefix.logits, prefix.mask
        rows = torch.arange(prompts * group, device=logits.device)  # those still in the batch
        ids: list[list[int]] = [[] for _ in range(len(rows))]
        log_probs: list[list[float]] = [[] for _ in range(len(rows))]
        ends = torch.tensor(sorted(stops), device=logits.device)
        for step in range(max_new_tokens):
            chances = _cut(_tempered(logits, temperature, never).softmax(-1), top_p)
            drawn = torch.multinomial(chances.to(generator.device), 1, generator=generator)
            drawn = drawn.to(logits.device)
            found = chances.gather(-1, drawn)[:, 0].log()
            for row, token, value in zip(
                rows.tolist(), drawn[:, 0].tolist(), found.tolist(), strict=True
            ):
                ids[row].append(token)
                log_probs[row].append(value)
            going = ~torch.isin(drawn[:, 0], ends)
            if step == max_new_tokens - 1 or not going.any():
                break
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
            if not going.all():
                prefix.cache.batch_select_indices(going.nonzero()[:, 0])
                mask, drawn, rows = mask[going], drawn[going], rows[going]
            logits = model(
                input_ids=drawn,
                attention_mask=mask,
                cache=prefix.cache,
                use_cache=True,
                **_columns(everything, rows, slice(step, step + 1)),
            ).logits[:, -1]
    last = set(stops)
    return Rollout(ids, log_probs, [row[-1] in last for row in ids])


def _positions(lengths: torch.Tensor, count: int) -> torch.Tensor:
    import torch

    return lengths[:, None] + torch.arange(count, device=lengths.device)


def _columns(inputs: Mapping[str, Any], rows: torch.Tensor, columns: slice) -> dict[str, Any]:
    """The part of `decode_step_inputs` for some rows and tokens: (..., rows, tokens) tensors."""
    return {name: tensor[..., rows, columns] for name, tensor in inputs.items()}


def _cut(chances: torch.Tensor, top_p: float) -> torch.Tensor:
    """Keep the likeliest tokens whose probabilities reach `top_p` together."""
    if top_p >= 1:
        return chances
    ranked, order = chances.sort(-1, descending=True)
    ranked = ranked * (ranked.cumsum(-1) - ranked < top_p)
    kept = chances.new_zeros(chances.shape).scatter(-1, order, ranked)
    return kept / kept.sum(-1, keepdim=True)


def score(
    model: Any,
    family: Family,
    batch: Mapping[str, Any],
    completions: torch.Tensor,
    mask: torch.Tensor,
    *,
    group: int,
    temperature: float = 1.0,
    never: Sequence[int] = (),
) -> tuple[torch.Tensor, torch.Tensor]:
    """(log-probabilities, entropies in nats) of each completion token, float32, shaped like
    `completions` (prompts x group, tokens; padded on the right, `mask` 1 for tokens).

    Gradients flow through the shared prefix too. Entropies have none.
    """
    import torch

    prefix = _read(model, batch)
    prefix = _repeated(model, prefix, group)
    positions = _positions(prefix.lengths, completions.shape[1])
    first = prefix.logits[:, None]
    logits = first
    if completions.shape[1] > 1:
        rest = model(
            input_ids=completions[:, :-1],
            attention_mask=torch.cat([prefix.mask, mask[:, :-1].to(prefix.mask.dtype)], 1),
            cache=prefix.cache,
            use_cache=True,
            **_columns(
                _later(model, family, positions, group),
                torch.arange(len(completions), device=completions.device),
                slice(0, -1),
            ),
        ).logits
        logits = torch.cat([first, rest], 1)
    return _log_probs(_tempered(logits, temperature, never), completions)


def score_whole(
    model: Any,
    batch: Mapping[str, Any],
    completions: torch.Tensor,
    mask: torch.Tensor,
    *,
    temperature: float = 1.0,
    never: Sequence[int] = (),
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `score`, one forward over prompts and completions: for gradient checkpointing, which
    cannot keep a cache. `batch` has a row for each completion: prompt, completion and padding."""
    import torch

    lengths = batch["attention_mask"].sum(1) - mask.sum(1)
    first = int(lengths.min()) - 1
    logits = model(
        **batch, use_cache=False, logits_to_keep=batch["input_ids"].shape[1] - first
    ).logits
    places = lengths[:, None] - 1 - first + torch.arange(completions.shape[1], device=mask.device)
    places = places.clamp(max=logits.shape[1] - 1)
    logits = logits.gather(1, places[..., None].expand(-1, -1, logits.shape[-1]))
    return _log_probs(_tempered(logits, temperature, never), completions)


def _tempered(logits: torch.Tensor, temperature: float, never: Sequence[int]) -> torch.Tensor:
    scaled = logits.float() / temperature
    if never:
        scaled[..., list(never)] = float("-inf")
    return scaled


def _log_probs(logits: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    all_ = logits.log_softmax(-1)
    found = all_.gather(-1, ids[..., None])[..., 0]
    sure = all_.detach()
    entropy = -(sure.exp() * sure.clamp(min=-1e4)).sum(-1)
    return found, entropy
