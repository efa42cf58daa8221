"""A model behind an OpenAI-compatible server, asked the same prompts as one in this process."""

from __future__ import annotations

import asyncio
import base64
import io
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmface import answers, families, manifest, prompts
from vlmface.errors import UserError
from vlmface.infer import loops
from vlmface.infer.endpoint import (
    Completion,
    Endpoint,
    NoAnswerError,
    ask,
    call,
    json_of,
    streamed,
    with_images,
)
from vlmface.infer.local import Prediction
from vlmface.prompts import Prompt
from vlmface.utils.files import without_surrogates
from vlmface.utils.images import ImageOrImages, as_list

if TYPE_CHECKING:
    import httpx2
    from PIL import Image


@dataclass(frozen=True)
class Server:
    """`endpoint` names the model there; it is asked greedily and may write `max_new_tokens`.
    `constrained`: it is held to the prompt's form and labels (vLLM's `structured_outputs`; a server
    that does not know them ignores them or refuses). `padding`: the colour that pictures are padded
    to a square with before they are sent (`Family.padding`), None to send them as they are."""

    endpoint: Endpoint
    prompts: Sequence[Prompt]
    max_new_tokens: int
    constrained: bool = False
    padding: tuple[int, ...] | None = None

    def _request(self, prompt: Prompt) -> dict[str, Any]:
        request: dict[str, Any] = {"temperature": 0, "max_tokens": self.max_new_tokens}
        if self.constrained:
            pattern = answers.constraint_regex(prompt.space, prompt.form)
            request["structured_outputs"] = {"regex": pattern}
        return request

    async def answer(
        self, client: httpx2.AsyncClient, prompt: Prompt, shown: ImageOrImages
    ) -> Prediction:
        """What it writes about the picture or pictures (RGB), which are sent without loss. Raises
        NoAnswerError, and UserError for what no other picture would change."""
        began = time.perf_counter()
        messages = await asyncio.to_thread(_messages, prompt, shown, self.padding)
        (first, *_), usage = await ask(client, self.endpoint, messages, self._request(prompt))
        complete = first.complete(usage.get("completion_tokens"), self.max_new_tokens)
        return _prediction(prompt, first, time.perf_counter() - began, complete)

    async def stream(
        self, client: httpx2.AsyncClient, prompt: Prompt, shown: ImageOrImages
    ) -> AsyncIterator[str | Prediction]:
        """What it has written so far, again and again, and at the end the answer. Raises as
        `answer`; nothing is tried twice."""
        began = time.perf_counter()
        messages = await asyncio.to_thread(_messages, prompt, shown, self.padding)
        whole = Completion()
        pieces = streamed(client, self.endpoint, messages, self._request(prompt))
        async for piece in pieces:
            whole = Completion(
                whole.content + piece.content,
                whole.reasoning + piece.reasoning,
                whole.refusal + piece.refusal,
                piece.reason or whole.reason,
            )
            yield whole.text(prompt.form)
        # Without a reason at its end a stream was cut off.
        complete = whole.complete(self.max_new_tokens, self.max_new_tokens)
        yield _prediction(prompt, whole, time.perf_counter() - began, complete)

    def silence(self, prompt: Prompt) -> Prediction:
        """A face without an answer: no label, which counts as wrong."""
        return Prediction("", prompt.parse(""), None, 0.0, False)


def _prediction(prompt: Prompt, said: Completion, latency: float, complete: bool) -> Prediction:
    text = said.text(prompt.form)
    answer = answers.Answer(None, (), "refused", "") if said.refused else prompt.parse(text)
    return Prediction(text, answer, None, latency, complete)


def server_of(
    endpoint: Endpoint,
    run: str | Path | None,
    prompt: str | Path | Prompt | None,
    max_new_tokens: int | None = None,
    constrained: bool = False,
) -> Server:
    """A server that answers the prompts of the `run` that it serves, or of these the one that
    `prompt` is or names; without a run, `prompt`. The model of an endpoint that names none is the
    only one there. Raises UserError."""
    padding = None
    if run is not None:
        found, asked = manifest.load(run)
        padding = padding_of(run)
        if prompt is not None:
            asked = [manifest.among(asked, prompt, run)]
        limit = max_new_tokens or found.generation["max_new_tokens"]
        endpoint = replace(endpoint, request=requests_of(run) | endpoint.request)
    elif prompt is not None:
        asked = [prompt if isinstance(prompt, Prompt) else prompts.load(prompt)]
        limit = max_new_tokens or 256
    else:
        raise UserError(
            "a server does not say what its model was trained to be asked: give --run, the folder "
            "of the run that it serves, or --prompt"
        )
    endpoint.check()
    if not endpoint.model:
        endpoint = replace(endpoint, model=served_model(endpoint))
    return Server(endpoint, asked, limit, constrained, padding)


# What a server takes from the checkpoint's generation_config.json unless a request says otherwise.
NEUTRAL = {"repetition_penalty": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


def requests_of(run: str | Path) -> dict[str, Any]:
    """What a vLLM server must be told with each request, to read, answer and end as the run was
    trained."""
    found, _ = manifest.load(run)
    family = families.get(found.family)
    processor = families.load_processor(family, run)
    flags = family.vllm_flags(processor, max_length=found.max_length, policy=found.policy)
    stops = list(family.stop_token_ids(processor))
    return {**NEUTRAL, **flags["extra_body"], "stop_token_ids": stops}


def padding_of(run: str | Path) -> tuple[int, ...] | None:
    """The colour that pictures are padded with before a server is shown them."""
    found, _ = manifest.load(run)
    family = families.get(found.family)
    return family.padding(family.load_processor(run))


def _messages(
    prompt: Prompt, shown: ImageOrImages, padding: tuple[int, ...] | None
) -> list[dict[str, Any]]:
    pictures = [png_uri(families.padded(picture, padding)) for picture in as_list(shown)]
    return with_images(prompt.messages(), pictures)


def png_uri(image: Image.Image) -> str:
    """The picture as a data URI."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def served_model(endpoint: Endpoint) -> str:
    """The model of a server that has only one. Raises UserError if it has others, or does not
    answer."""
    import httpx2

    async def names() -> list[str]:
        async with httpx2.AsyncClient(
            headers=endpoint.headers(), timeout=endpoint.timeout_s
        ) as client:
            return await call(client, endpoint, "models", None, _names)

    endpoint.check()
    try:
        found = loops.run(names())
    except NoAnswerError as error:
        raise UserError(
            f"{endpoint.url} does not answer ({error}): start the server, or check the URL, which "
            "is what comes before /chat/completions"
        ) from None
    if len(found) != 1:
        raise UserError(
            f"{endpoint.url} serves {', '.join(found) or 'nothing'}: say which with --served"
        )
    return found[0]


def _names(reply: Any) -> list[str]:
    return [without_surrogates(str(model["id"])) for model in json_of(reply.content)["data"]]
