"""A model behind an OpenAI-compatible server, asked the same prompts as one in this process."""

from __future__ import annotations

import asyncio
import base64
import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlmface.errors import UserError
from vlmface.infer.endpoint import Endpoint, NoAnswerError, ask, call, with_image
from vlmface.infer.local import Prediction
from vlmface.prompts import Prompt

if TYPE_CHECKING:
    import httpx2
    from PIL import Image


@dataclass(frozen=True)
class Server:
    """`endpoint` names the model there; it is asked greedily and may write `max_new_tokens`."""

    endpoint: Endpoint
    prompts: Sequence[Prompt]
    max_new_tokens: int

    async def answer(
        self, client: httpx2.AsyncClient, prompt: Prompt, image: Image.Image
    ) -> Prediction:
        """What it writes about the picture (RGB), which is sent without loss. Raises NoAnswerError,
        and UserError for what no other picture would change."""
        began = time.perf_counter()
        messages = with_image(prompt.messages(), await asyncio.to_thread(png_uri, image))
        greedy = {"temperature": 0, "max_tokens": self.max_new_tokens}
        texts, usage = await ask(client, self.endpoint, messages, greedy)
        text = texts[0].strip()
        complete = (usage.get("completion_tokens") or 0) < self.max_new_tokens
        latency = time.perf_counter() - began
        return Prediction(text, prompt.parse(text), None, latency, complete)

    def silence(self, prompt: Prompt) -> Prediction:
        """A face without an answer: no label, which counts as wrong."""
        return Prediction("", prompt.parse(""), None, 0.0, False)


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
        found = asyncio.run(names())
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
    return [str(model["id"]) for model in reply.json()["data"]]
