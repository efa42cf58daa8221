"""A model behind an OpenAI-compatible server, with the same prompts as one in this process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmface import answers, families, manifest, prompts
from vlmface.aus.evidence import check_trained
from vlmface.errors import UserError
from vlmface.infer import loops
from vlmface.infer.chat import Completion, attach_images, chat, stream_chat
from vlmface.infer.endpoint import Endpoint, NoAnswerError, open_client, parse_json, send_request
from vlmface.infer.local import DEFAULT_MAX_NEW_TOKENS
from vlmface.infer.prediction import Prediction
from vlmface.prompts import Prompt
from vlmface.utils.files import without_surrogates
from vlmface.utils.images import ImageOrImages, as_list, data_uri

if TYPE_CHECKING:
    import httpx2


@dataclass(frozen=True)
class RemoteModel:
    """A model at an endpoint, which generates greedily.

    Attributes:
        endpoint: Where the model is served.
        prompts: What it was trained to answer.
        max_new_tokens: The limit of a reply.
        guided_decoding: Whether vLLM's `structured_outputs` constrains replies to the prompt's
            format and labels; other servers ignore or reject that field.
        padding: The colour that images are padded to a square with before they are sent
            (`families.padding`); None to send them unchanged.
    """

    endpoint: Endpoint
    prompts: Sequence[Prompt]
    max_new_tokens: int
    guided_decoding: bool = False
    padding: tuple[int, ...] | None = None

    def _request(self, prompt: Prompt) -> dict[str, Any]:
        request: dict[str, Any] = {"temperature": 0, "max_tokens": self.max_new_tokens}
        if self.guided_decoding:
            pattern = answers.constraint_regex(prompt.space, prompt.format)
            request["structured_outputs"] = {"regex": pattern}
        return request

    async def predict(
        self,
        client: httpx2.AsyncClient,
        prompt: Prompt,
        image: ImageOrImages,
        evidence: str | None = None,
    ) -> Prediction:
        """Send one image, or several (RGB), without loss and parse the reply.

        Args:
            client: Of the endpoint.
            prompt: The prompt.
            image: With the run's views already applied.
            evidence: Of the face, for a prompt that contains any.

        Raises:
            NoAnswerError: This image got no usable reply.
            UserError: No image would get one.
        """
        start_time = time.perf_counter()
        messages = await asyncio.to_thread(_messages, prompt, image, self.padding, evidence)
        (first, *_), usage = await chat(client, self.endpoint, messages, self._request(prompt))
        complete = first.complete(usage.get("completion_tokens"), self.max_new_tokens)
        return _prediction(prompt, first, time.perf_counter() - start_time, complete)

    async def stream(
        self,
        client: httpx2.AsyncClient,
        prompt: Prompt,
        image: ImageOrImages,
        evidence: str | None = None,
    ) -> AsyncIterator[str | Prediction]:
        """Yields the text received so far, then the final Prediction. Raises as `predict`; a failed
        request is not retried."""
        start_time = time.perf_counter()
        messages = await asyncio.to_thread(_messages, prompt, image, self.padding, evidence)
        received = Completion()
        async for piece in stream_chat(client, self.endpoint, messages, self._request(prompt)):
            received = Completion(
                received.content + piece.content,
                received.reasoning + piece.reasoning,
                received.refusal + piece.refusal,
                piece.finish_reason or received.finish_reason,
            )
            yield received.text(prompt.format)
        # A stream that ends without a finish_reason was cut off.
        complete = received.complete(self.max_new_tokens, self.max_new_tokens)
        yield _prediction(prompt, received, time.perf_counter() - start_time, complete)

    def empty_prediction(self, prompt: Prompt) -> Prediction:
        """The prediction of a face without an answer: no label, which counts as wrong."""
        return Prediction("", prompt.parse(""), None, 0.0, False)


def _prediction(
    prompt: Prompt, completion: Completion, latency_s: float, complete: bool
) -> Prediction:
    text = completion.text(prompt.format)
    refusal = answers.Answer(None, (), "refused", "")
    answer = refusal if completion.refused else prompt.parse(text)
    return Prediction(text, answer, None, latency_s, complete)


def open_remote_model(
    endpoint: Endpoint,
    run_dir: str | Path | None,
    prompt: str | Path | Prompt | None,
    max_new_tokens: int | None = None,
    guided_decoding: bool = False,
) -> RemoteModel:
    """Connect to a model at an endpoint.

    Args:
        endpoint: If it names no model, the only one there is used.
        run_dir: The folder of the run that is served.
        prompt: The prompt to use; by default all prompts of the run.
        max_new_tokens: Overrides the limit in the manifest.
        guided_decoding: See `RemoteModel`.

    Returns:
        The model with its prompts.

    Raises:
        UserError: The endpoint does not respond, or neither `run_dir` nor `prompt` was given.
    """
    padding = None
    if run_dir is not None:
        run_manifest, run_prompts = manifest.load(run_dir)
        check_trained(run_manifest.evidence, run_prompts, run_dir)
        padding = padding_colour(run_dir)
        if prompt is not None:
            run_prompts = [manifest.select_prompt(run_prompts, prompt, run_dir)]
        limit = max_new_tokens or run_manifest.generation["max_new_tokens"]
        endpoint = replace(endpoint, request=request_fields(run_dir) | endpoint.request)
    elif prompt is not None:
        run_prompts = [prompt if isinstance(prompt, Prompt) else prompts.load(prompt)]
        limit = max_new_tokens or DEFAULT_MAX_NEW_TOKENS
    else:
        raise UserError(
            "a server does not report which prompts its model was trained on: give --run_dir, the "
            "folder of the run that it serves, or --prompt"
        )
    endpoint.check()
    if not endpoint.model:
        endpoint = replace(endpoint, model=only_model_name(endpoint))
    return RemoteModel(endpoint, run_prompts, limit, guided_decoding, padding)


# Without these, a server uses the sampling parameters of the checkpoint's generation_config.json.
NEUTRAL_SAMPLING = {"repetition_penalty": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


def request_fields(run_dir: str | Path) -> dict[str, Any]:
    """The request fields with which vLLM encodes, generates and stops as in training."""
    run_manifest, _ = manifest.load(run_dir)
    family = families.get(run_manifest.family)
    processor = families.load_processor(family, run_dir)
    flags = family.vllm_flags(
        processor, max_length=run_manifest.max_length, trainable=run_manifest.trainable
    )
    stops = list(family.stop_token_ids(processor))
    return {**NEUTRAL_SAMPLING, **flags["extra_body"], "stop_token_ids": stops}


def padding_colour(run_dir: str | Path) -> tuple[int, ...] | None:
    """The colour that images are padded with before they are sent to a server."""
    run_manifest, _ = manifest.load(run_dir)
    family = families.get(run_manifest.family)
    return family.padding(family.load_processor(run_dir))


def image_uris(images: ImageOrImages, padding: tuple[int, ...] | None) -> list[str]:
    """The images of a request, as lossless data URIs."""
    return [
        data_uri(families.padded(image, padding), image_format="PNG") for image in as_list(images)
    ]


def _messages(
    prompt: Prompt, images: ImageOrImages, padding: tuple[int, ...] | None, evidence: str | None
) -> list[dict[str, Any]]:
    return attach_images(prompt.messages(evidence), image_uris(images, padding))


def only_model_name(endpoint: Endpoint) -> str:
    """The name of the model at a server that has only one.

    Raises:
        UserError: The server has more or none, or does not respond.
    """

    async def list_models() -> list[str]:
        async with open_client(endpoint) as client:
            return await send_request(client, endpoint, "models", None, _model_names)

    endpoint.check()
    try:
        names = loops.run_sync(list_models())
    except NoAnswerError as error:
        raise UserError(
            f"{endpoint.url} does not answer ({error}): start the server, or check the URL, which "
            "is the part before /chat/completions"
        ) from None
    if len(names) != 1:
        raise UserError(
            f"{endpoint.url} serves {', '.join(names) or 'nothing'}: choose one with "
            "--served_model_name"
        )
    return names[0]


def _model_names(reply: Any) -> list[str]:
    return [without_surrogates(str(model["id"])) for model in parse_json(reply.content)["data"]]
