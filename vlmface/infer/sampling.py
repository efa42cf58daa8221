"""Sample and score several completions of each prompt, with one pass over the prompt.

A group's completions share image and prompt. Both are encoded once, and their keys and values are
repeated for the completions: to sample them (finished ones leave the batch) and, with gradients, to
score them. The model sees the same tokens at the same positions as in training and serving: the
prefix is padded on the right, as in training, and the completions start at each row's own length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlmface.families.base import Family

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Distribution:
    """What tokens are drawn from.

    Attributes:
        temperature: Of the softmax.
        top_p: Nucleus sampling.
        never: Token ids that are not drawn: an image token in an answer would require an image when
            the answer is encoded again (huggingface/trl#3847).
    """

    temperature: float = 1.0
    top_p: float = 1.0
    never: Sequence[int] = ()


UNCHANGED = Distribution()  # the model's own distribution


@dataclass(frozen=True, kw_only=True)
class SamplingOptions(Distribution):
    """How completions are drawn.

    Attributes:
        max_new_tokens: Of each completion.
        stops: Token ids that end a completion.
    """

    max_new_tokens: int
    stops: Sequence[int]


@dataclass(frozen=True)
class Rollout:
    """Completions in the order of the prompts, `group` of each.

    Attributes:
        ids: Token ids without padding, including the stop token if there is one.
        log_probs: Of these ids, under the distribution that they were sampled from.
        complete: Whether a completion ended with a stop token rather than at the limit.
    """

    ids: list[list[int]]
    log_probs: list[list[float]]
    complete: list[bool]


@dataclass
class _Prefix:
    """Keys and values of prompts, the logits after their last token (prompts, vocabulary), their
    lengths (prompts) and the mask of the slots (prompts, longest)."""

    cache: Any
    logits: torch.Tensor
    lengths: torch.Tensor
    mask: torch.Tensor


def base_model_of(model: Any) -> Any:
    """The model without its adapter wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _encode_prompts(model: Any, batch: Mapping[str, Any]) -> _Prefix:
    """Run the model over prompts that are padded on the right."""
    import torch

    mask = batch["attention_mask"]
    lengths = mask.sum(1)
    logits_to_keep = int(mask.shape[1] - lengths.min()) + 1
    output = model(**batch, use_cache=True, logits_to_keep=logits_to_keep)
    last = lengths - 1 - (mask.shape[1] - logits_to_keep)
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


def _decode_step_inputs(
    model: Any, family: Family, positions: torch.Tensor, group: int
) -> dict[str, Any]:
    """The family's inputs for tokens after the prefix, whose rows have been repeated."""
    core = base_model_of(model)
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
    options: SamplingOptions,
    *,
    group: int,
    generator: torch.Generator,
) -> Rollout:
    """Sample completions of each prompt of a batch. The model should be in eval mode.

    Args:
        model: Its forward takes the batch.
        family: The model's family.
        batch: From the collator, padded on the right, with images or features.
        options: How completions are drawn.
        group: Completions of each prompt.
        generator: The only source of randomness: equal weights and seeds give equal completions.

    Returns:
        The completions.
    """
    import torch

    with torch.no_grad():
        prefix = _encode_prompts(model, batch)
        prompts = len(prefix.lengths)
        prefix = _repeated(model, prefix, group)
        positions = _positions(prefix.lengths, options.max_new_tokens)
        step_inputs = _decode_step_inputs(model, family, positions, group)
        logits, mask = prefix.logits, prefix.mask
        rows = torch.arange(prompts * group, device=logits.device)  # the unfinished completions
        ids: list[list[int]] = [[] for _ in range(len(rows))]
        log_probs: list[list[float]] = [[] for _ in range(len(rows))]
        ends = torch.tensor(sorted(options.stops), device=logits.device)
        for step in range(options.max_new_tokens):
            probabilities = _top_p(_scaled(logits, options).softmax(-1), options.top_p)
            tokens, token_log_probs = _draw(probabilities, generator)
            for row, token, log_prob in zip(
                rows.tolist(), tokens[:, 0].tolist(), token_log_probs.tolist(), strict=True
            ):
                ids[row].append(token)
                log_probs[row].append(log_prob)
            unfinished = ~torch.isin(tokens[:, 0], ends)
            if step == options.max_new_tokens - 1 or not unfinished.any():
                break
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
            if not unfinished.all():
                prefix.cache.batch_select_indices(unfinished.nonzero()[:, 0])
                mask, tokens, rows = mask[unfinished], tokens[unfinished], rows[unfinished]
            logits = model(
                input_ids=tokens,
                attention_mask=mask,
                cache=prefix.cache,
                use_cache=True,
                **_select(step_inputs, rows, slice(step, step + 1)),
            ).logits[:, -1]
    stop_ids = set(options.stops)
    return Rollout(ids, log_probs, [row[-1] in stop_ids for row in ids])


def _draw(
    probabilities: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """(a token (rows, 1) of each row, its log-probability (rows))."""
    import torch

    tokens = torch.multinomial(probabilities.to(generator.device), 1, generator=generator)
    tokens = tokens.to(probabilities.device)
    return tokens, probabilities.gather(-1, tokens)[:, 0].log()


def _positions(lengths: torch.Tensor, count: int) -> torch.Tensor:
    import torch

    return lengths[:, None] + torch.arange(count, device=lengths.device)


def _select(inputs: Mapping[str, Any], rows: torch.Tensor, columns: slice) -> dict[str, Any]:
    """Some rows and tokens of decode-step inputs, which are (..., rows, tokens) tensors."""
    return {name: tensor[..., rows, columns] for name, tensor in inputs.items()}


def _top_p(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    """Keep the most probable tokens whose probabilities together reach `top_p`, and renormalise."""
    if top_p >= 1:
        return probabilities
    ranked, order = probabilities.sort(-1, descending=True)
    ranked = ranked * (ranked.cumsum(-1) - ranked < top_p)
    nucleus = probabilities.new_zeros(probabilities.shape).scatter(-1, order, ranked)
    return nucleus / nucleus.sum(-1, keepdim=True)


def score(
    model: Any,
    family: Family,
    batch: Mapping[str, Any],
    completions: torch.Tensor,
    mask: torch.Tensor,
    distribution: Distribution,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Score completions with one pass over each prompt.

    Args:
        model: Its forward takes the batch.
        family: The model's family.
        batch: The prompts, from the collator, padded on the right.
        completions: Token ids (prompts x group, tokens), padded on the right.
        mask: Shaped like `completions`, 1 for tokens and 0 for padding.
        distribution: Its temperature and the tokens that are never drawn count; `top_p` does not.

    Returns:
        (log-probabilities, entropies in nats) of each completion token, float32, shaped like
        `completions`. Gradients also flow through the shared prefix; entropies have none.
    """
    import torch

    prefix = _encode_prompts(model, batch)
    group = len(completions) // len(prefix.lengths)
    prefix = _repeated(model, prefix, group)
    positions = _positions(prefix.lengths, completions.shape[1])
    first = prefix.logits[:, None]
    logits = first
    if completions.shape[1] > 1:
        later_logits = model(
            input_ids=completions[:, :-1],
            attention_mask=torch.cat([prefix.mask, mask[:, :-1].to(prefix.mask.dtype)], 1),
            cache=prefix.cache,
            use_cache=True,
            **_select(
                _decode_step_inputs(model, family, positions, group),
                torch.arange(len(completions), device=completions.device),
                slice(0, -1),
            ),
        ).logits
        logits = torch.cat([first, later_logits], 1)
    return _log_probs(_scaled(logits, distribution), completions)


def score_without_cache(
    model: Any,
    batch: Mapping[str, Any],
    completions: torch.Tensor,
    mask: torch.Tensor,
    distribution: Distribution,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`score` with one forward pass over prompts and completions, for gradient checkpointing, which
    cannot keep a cache.

    Args:
        model: Its forward takes the batch.
        batch: A row for each completion: prompt, completion and padding.
        completions: As in `score`.
        mask: As in `score`.
        distribution: As in `score`.

    Returns:
        As `score`.
    """
    import torch

    lengths = batch["attention_mask"].sum(1) - mask.sum(1)
    first = int(lengths.min()) - 1
    logits = model(
        **batch, use_cache=False, logits_to_keep=batch["input_ids"].shape[1] - first
    ).logits
    columns = lengths[:, None] - 1 - first + torch.arange(completions.shape[1], device=mask.device)
    columns = columns.clamp(max=logits.shape[1] - 1)
    logits = logits.gather(1, columns[..., None].expand(-1, -1, logits.shape[-1]))
    return _log_probs(_scaled(logits, distribution), completions)


def _scaled(logits: torch.Tensor, distribution: Distribution) -> torch.Tensor:
    scaled = logits.float() / distribution.temperature
    if distribution.never:
        scaled[..., list(distribution.never)] = float("-inf")
    return scaled


def _log_probs(logits: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    log_probs = logits.log_softmax(-1)
    detached = log_probs.detach()
    entropy = -(detached.exp() * detached.clamp(min=-1e4)).sum(-1)
    return log_probs.gather(-1, ids[..., None])[..., 0], entropy
