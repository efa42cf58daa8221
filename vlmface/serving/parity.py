"""Whether a server answers as a run does: the same prompts, the same answers for the same images,
and nearly the same log-probability of each token.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2

from vlmface import encode, manifest
from vlmface.aus.evidence import EvidenceSource, picture_index
from vlmface.data import crops
from vlmface.errors import UserError
from vlmface.infer.local import LocalModel
from vlmface.infer.remote import image_uris, padding_colour, request_fields
from vlmface.serving.plan import API_KEY_ENV, BASE_MODEL_NAME, ServePlan
from vlmface.utils import rounding

if TYPE_CHECKING:
    import torch

# How far the server's log-probabilities may be from the run's, in multiples of the change that
# another order of summation causes in this process: more than for a merge, since vLLM has other
# kernels.
MAX_LOGPROB_DRIFT = 4.0
TIE_MARGIN = 2.0  # nats by which two tokens may be swapped, in multiples of the largest such change
PARITY_IMAGES = 4


@dataclass(frozen=True)
class Generation:
    """An answer as tokens.

    Attributes:
        prompt: Token ids of the prompt.
        ids: Token ids of the answer.
        log_probs: Of each token of the answer.
        margins: By how much the likeliest token at each position was ahead of the second one.
        rounding: By how much another order of summation changes each log-probability, in nats;
            empty if it was not measured.
    """

    prompt: list[int]
    ids: list[int]
    log_probs: list[float]
    margins: list[float]
    rounding: Sequence[float] = ()


def parity_images() -> list[Any]:
    """The images of the check: rendered faces, one of them in a wide picture, which a server with
    another processor would crop or squeeze differently."""
    from vlmface.evaluate import answering
    from vlmface.synth import dataset

    rows = dataset.load("test", n=PARITY_IMAGES, size=224, progress=False)
    *square, last = answering.images_of(rows)
    return [*square, last.crop((0, 40, 224, 180))]


def generate_local(run: Path, images: Sequence[Any], dtype: str) -> list[Generation]:
    """The run's answers, computed in this process.

    Args:
        run: Its folder.
        images: RGB.
        dtype: Name of a torch dtype.

    Returns:
        An answer for each image, with `rounding`.
    """
    import torch

    model = LocalModel.load(run, dtype=getattr(torch, dtype))
    stops = model.family.stop_token_ids(model.processor)
    collate = encode.Collator(model.processor, model.family)
    generations = []
    prepared = [_apply_views(image, model.views, model.frames) for image in images]
    for row in model.prompt_rows(prepared, evidence=model.evidence_of(prepared)):
        batch = encode.to_model(collate([row]), model.model)
        with torch.inference_mode():
            output = model.model.generate(
                **batch,
                do_sample=False,
                max_new_tokens=model.max_new_tokens,
                eos_token_id=stops,
                pad_token_id=model.processor.tokenizer.pad_token_id,
                output_logits=True,
                return_dict_in_generate=True,
            )
        prompt = list(row["input_ids"])
        ids = output.sequences[0, len(prompt) :]
        logits = torch.stack(output.logits)[:, 0].float()
        rounding.check_finite([logits], str(run))
        all_log_probs = logits.log_softmax(-1)
        top_two = all_log_probs.topk(2).values
        log_probs = all_log_probs.gather(1, ids[:, None])[:, 0]
        min_change = torch.finfo(model.model.dtype).eps * float(logits.abs().max())
        reordered = _reordered_log_probs(model, row, ids.tolist())
        changes = (reordered - log_probs[: len(reordered)]).abs().clamp(min=min_change)
        generation = Generation(
            prompt=prompt,
            ids=ids.tolist(),
            log_probs=log_probs.tolist(),
            margins=(top_two[:, 0] - top_two[:, 1]).tolist(),
            rounding=changes.tolist(),
        )
        generations.append(generation)
    model.close()
    return generations


def _reordered_log_probs(model: LocalModel, row: dict[str, Any], ids: list[int]) -> torch.Tensor:
    """The log-probabilities of an answer's tokens, computed in one pass with another order of
    summation; up to an image token, which an untrained model may generate but which cannot be
    encoded as text."""
    import torch

    image = model.processor.tokenizer.convert_tokens_to_ids(model.processor.image_token)
    ids = ids[: ids.index(image) + 1] if image in ids else ids
    prompt = len(row["input_ids"])
    conversation = [*row["input_ids"], *ids[:-1]]
    token_inputs = model.family.per_token_inputs(model.processor, conversation, prompt)
    collate = encode.Collator(model.processor, model.family)
    batch = collate([{**row, "input_ids": conversation, **token_inputs}])
    with torch.inference_mode(), rounding.reordered(model.model):
        logits = model.model(**encode.to_model(batch, model.model), use_cache=False).logits
    log_probs = logits[0, prompt - 1 :].float().log_softmax(-1)
    return log_probs.gather(1, torch.tensor(ids, device=log_probs.device)[:, None])[:, 0]


def _apply_views(image: Any, views: crops.Views, frames: int) -> Any:
    """A rendered face as the run receives it: the whole image in every view."""
    return crops.image_views(image, None, views, frames)


def generate_remote(
    plan: ServePlan, name: str, run: Path, images: Sequence[Any]
) -> list[Generation]:
    """The server's answers.

    Args:
        plan: Of the running server.
        name: The served name of the model.
        run: The folder with its prompts and views.
        images: RGB.

    Returns:
        An answer for each image, without `margins` and `rounding`.

    Raises:
        UserError: The server rejects a request.
    """
    from vlmface.infer.chat import attach_images

    run_manifest, prompts = manifest.load(run)
    views, padding = crops.parse_views(run_manifest.views), padding_colour(run)
    request = request_fields(run) | {
        "model": name,
        "temperature": 0,
        "logprobs": True,
        "return_token_ids": True,
        "max_tokens": run_manifest.generation["max_new_tokens"],
    }
    generations = []
    prepared = [_apply_views(image, views, run_manifest.num_frames) for image in images]
    texts: list[str | None] = [None] * len(prepared)
    if prompts[0].uses_evidence:
        with EvidenceSource(index=picture_index(views, run_manifest.num_frames)) as source:
            texts = [*source.texts(prepared)]
    for pictures, text in zip(prepared, texts, strict=True):
        uris = image_uris(pictures, padding)
        body = request | {"messages": attach_images(prompts[0].messages(text), uris)}
        reply = httpx2.post(
            f"{plan.url}/chat/completions", json=body, headers=_key_header(), timeout=300
        )
        if reply.status_code != 200:
            raise UserError(f"the server rejects {name}: {' '.join(reply.text[:500].split())}")
        content = reply.json()
        (choice,) = content["choices"]
        log_probs = [float(token["logprob"]) for token in choice["logprobs"]["content"]]
        ids = list(choice["token_ids"])
        generations.append(Generation(content["prompt_token_ids"], ids, log_probs, []))
    return generations


def _key_header() -> dict[str, str]:
    key = os.environ.get(API_KEY_ENV)
    return {"Authorization": f"Bearer {key}"} if key else {}


def check_parity(local: Sequence[Generation], remote: Sequence[Generation], name: str) -> float:
    """Compare the server's answers with the run's.

    The tolerance is measured on the run itself (`Generation.rounding`): in the mean for the
    log-probabilities, at most for two tokens that may be swapped. A number that is not finite is
    never within it.

    Args:
        local: From `generate_local`.
        remote: From `generate_remote`.
        name: Of the model, for messages.

    Returns:
        The mean difference of the log-probabilities of the tokens that are equal.

    Raises:
        UserError: The prompts differ, or rounding does not explain a difference of the answers.
    """
    differences: list[float] = []
    max_mean, max_token = _rounding_bounds(local)
    for ours, theirs in zip(local, remote, strict=True):
        if ours.prompt != theirs.prompt:
            at = _first_difference(ours.prompt, theirs.prompt)
            raise UserError(
                f"the server reads another prompt than {name} was trained with: "
                f"{len(theirs.prompt)} tokens instead of {len(ours.prompt)}, different from token "
                f"{at} on; it has another processor or chat template"
            )
        equal = _first_difference(ours.ids, theirs.ids)
        if equal < max(len(ours.ids), len(theirs.ids)):
            margin = ours.margins[equal] if equal < len(ours.margins) else float("inf")
            if not margin <= TIE_MARGIN * max_token:
                raise UserError(
                    f"{name} gives another answer on the server, from token {equal} on, where the "
                    f"run's margin is {margin:.3g} nats ({TIE_MARGIN * max_token:.1g} is "
                    "rounding): vLLM does not serve this model as it was trained"
                )
        pairs = zip(ours.log_probs[:equal], theirs.log_probs[:equal], strict=True)
        differences += [abs(a - b) for a, b in pairs]
    drift = sum(differences) / max(1, len(differences))
    if not drift <= max_mean:
        raise UserError(
            f"{name} is {drift:.2e} nats a token away from the run ({max_mean:.1e} is rounding): "
            "vLLM does not serve this model as it was trained"
        )
    return drift


def _rounding_bounds(local: Sequence[Generation]) -> tuple[float, float]:
    """(nats a token in the mean, nats of one token) that rounding may change."""
    changes = [value for generation in local for value in generation.rounding]
    mean = sum(changes) / max(1, len(changes))
    return MAX_LOGPROB_DRIFT * mean, MAX_LOGPROB_DRIFT * max(changes, default=0.0)


def _first_difference(a: Sequence[int], b: Sequence[int]) -> int:
    """The first index at which two lists differ; the length of the shorter one if there is none."""
    shorter = min(len(a), len(b))
    return next((i for i in range(shorter) if a[i] != b[i]), shorter)


def check_adapter_active(
    plan: ServePlan,
    name: str,
    local: Sequence[Generation],
    remote: Sequence[Generation],
    images: Sequence[Any],
) -> None:
    """Check that the server applies an adapter.

    Args:
        plan: Of the running server.
        name: The served name of the adapter.
        local: From `generate_local`; only its `rounding` is used.
        remote: The server's answers with the adapter.
        images: Those of the answers.

    Raises:
        UserError: Up to rounding, the base gives the same answers as the adapter.
    """
    max_mean, _ = _rounding_bounds(local)
    base = generate_remote(plan, BASE_MODEL_NAME, plan.models[name], images)
    pairs = list(zip(base, remote, strict=True))
    if any(of_base.ids != of_adapter.ids for of_base, of_adapter in pairs):
        return
    differences = [
        abs(a - b)
        for of_base, of_adapter in pairs
        for a, b in zip(of_base.log_probs, of_adapter.log_probs, strict=True)
    ]
    effect = sum(differences) / max(1, len(differences))
    if not effect > max_mean:
        raise UserError(
            f"the adapter of {name} has no effect on the server, which answers as the base does "
            f"({effect:.1e} nats a token apart, {max_mean:.1e} is rounding): vLLM has not applied "
            "it"
        )
