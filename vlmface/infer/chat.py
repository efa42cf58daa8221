"""Chat requests to an endpoint: messages with images, and replies, whole or streamed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx2

from vlmface import answers
from vlmface.errors import UserError
from vlmface.infer.endpoint import (
    RETRYABLE,
    UNCOMPRESSED,
    UNREADABLE,
    Endpoint,
    NoAnswerError,
    check_status,
    no_answer_errors,
    parse_json,
    read_body,
    read_reply,
    send_request,
    short_excerpt,
)
from vlmface.utils.files import without_surrogates

_FINISHED = ("stop", "end_turn", "eos", "eos_token", "stop_sequence", "stop_token")


@dataclass(frozen=True)
class Completion:
    """One choice of a reply, or a piece of a streamed one.

    Attributes:
        content: The answer.
        reasoning: The reasoning of a model that sends it in a field of its own.
        refusal: Why the model refuses to answer.
        finish_reason: Why generation ended; None before the end, or if the server does not send it.
    """

    content: str = ""
    reasoning: str = ""
    refusal: str = ""
    finish_reason: str | None = None

    def text(self, format: str) -> str:
        """The generated text as an answer in `format`.

        Reasoning in a field of its own becomes the rationale of the formats that have one between
        tags; for other formats it is dropped.
        """
        if not self.content.strip() and self.refusal:
            return self.refusal.strip()
        if not self.reasoning.strip() or not answers.has_think(format) or "<think>" in self.content:
            return self.content.strip()
        if not self.content.strip():
            return f"<think>{self.reasoning.strip()}"
        return f"<think>{self.reasoning.strip()}</think>\n{self.content.strip()}"

    @property
    def refused(self) -> bool:
        """Whether the model refused and wrote nothing else."""
        return bool(self.refusal) and not self.content.strip()

    def complete(self, tokens: int | None, limit: int) -> bool:
        """Whether generation ended by itself.

        Args:
            tokens: How many were generated; decides if the server sends no finish_reason.
            limit: How many were allowed.
        """
        if self.finish_reason is not None:
            return self.finish_reason in _FINISHED
        return tokens is None or tokens < limit


async def chat(
    client: httpx2.AsyncClient,
    endpoint: Endpoint,
    messages: list[dict[str, Any]],
    request: Mapping[str, Any] | None = None,
) -> tuple[list[Completion], dict[str, int]]:
    """Send one chat request.

    Args:
        client: From `open_client`.
        endpoint: Where it is sent.
        messages: With the images attached.
        request: More fields, which those of the endpoint override.

    Returns:
        (all choices, token counts).

    Raises:
        NoAnswerError: As `send_request`.
        UserError: As `send_request`.
    """
    body = {"model": endpoint.model, "messages": messages} | dict(request or {}) | endpoint.request
    return await send_request(client, endpoint, "chat/completions", body, _choices)


def _choices(reply: httpx2.Response) -> tuple[list[Completion], dict[str, int]]:
    content = parse_json(reply.content)
    _check_error(content)
    choices = [_completion(choice, dict(choice["message"])) for choice in content["choices"]]
    if not choices:
        raise TypeError("no text in it")
    if all(choice.finish_reason == "content_filter" for choice in choices):
        raise NoAnswerError("the endpoint's content filter blocked it", retryable=False)
    return choices, _token_counts(content.get("usage"))


def _completion(choice: Mapping[str, Any], message: Mapping[str, Any] | None) -> Completion:
    """A choice, or a piece of one. Servers omit some fields or send null."""
    message = message or {}
    reasoning = _text_of(message.get("reasoning_content")) or _text_of(message.get("reasoning"))
    reason = choice.get("finish_reason")
    parts = message.get("content")
    refusal = _text_of(message.get("refusal"))
    if isinstance(parts, list):
        refusal = refusal or "".join(_text_of(p.get("refusal")) for p in parts)
    return Completion(
        _text_of(parts), reasoning, refusal, reason if isinstance(reason, str) else None
    )


def _text_of(content: Any) -> str:
    """A text, or the texts of a list of parts joined. Raises TypeError for anything else."""
    if content is None:
        return ""
    if isinstance(content, list):
        return "".join(_text_of(part.get("text")) for part in content)
    if not isinstance(content, str):
        raise TypeError("no text in it")
    return without_surrogates(content)


def _token_counts(usage: Any) -> dict[str, int]:
    """The valid token counts in the `usage` of a reply."""
    if not isinstance(usage, Mapping):
        return {}
    return {
        name: usage[name]
        for name in ("prompt_tokens", "completion_tokens")
        if isinstance(usage.get(name), int)
        and not isinstance(usage[name], bool)
        and 0 <= usage[name] < 2**31
    }


def _check_error(content: Any) -> None:
    """Raises NoAnswerError for an error that a server sends with HTTP 200 instead of choices."""
    error = content.get("error") if isinstance(content, Mapping) else None
    if not error or content.get("choices"):
        return
    code = error.get("code") if isinstance(error, Mapping) else None
    message = error.get("message") if isinstance(error, Mapping) else error
    rejected = isinstance(code, int) and 400 <= code < 500 and code not in RETRYABLE
    raise NoAnswerError(
        f"an error instead of an answer: {short_excerpt(str(message))}", retryable=not rejected
    )


async def stream_chat(
    client: httpx2.AsyncClient,
    endpoint: Endpoint,
    messages: list[dict[str, Any]],
    request: Mapping[str, Any] | None = None,
) -> AsyncIterator[Completion]:
    """Yields the pieces of a reply as the endpoint sends them (server-sent events). Arguments as in
    `chat`, errors as in `send_request`; a failed request is not retried."""
    body = {"model": endpoint.model, "messages": messages} | dict(request or {}) | endpoint.request
    body["stream"] = True
    url = f"{endpoint.url.rstrip('/')}/chat/completions"
    sent = {name: value for name, value in body.items() if value is not None}
    is_empty = True
    try:
        with no_answer_errors(endpoint.timeout_s):
            async with contextlib.AsyncExitStack() as stack:
                opening = stack.enter_async_context(
                    client.stream("POST", url, json=sent, headers=UNCOMPRESSED)
                )
                reply = await asyncio.wait_for(opening, endpoint.timeout_s)
                pieces = read_body(reply, endpoint.timeout_s)
                if reply.status_code != 200:
                    body_bytes = b"".join([piece async for piece in pieces])
                    check_status(read_reply(reply, body_bytes), url, sent)
                async for completion in _streamed(reply, pieces):
                    is_empty = False
                    yield completion
    except UNREADABLE as error:
        raise NoAnswerError(f"unreadable reply ({error})", retryable=True) from error
    if is_empty:
        raise NoAnswerError("the stream held no piece of an answer", retryable=True)


async def _streamed(
    reply: httpx2.Response, pieces: AsyncIterator[bytes]
) -> AsyncIterator[Completion]:
    """The pieces of an answer from those of a reply's body."""
    first = await anext(pieces, b"")
    if first.lstrip()[:1] == b"{":  # the server does not stream
        body = first + b"".join([piece async for piece in pieces])
        yield _choices(read_reply(reply, body))[0][0]
        return
    async for data in _events(first, pieces):
        content = parse_json(data)
        _check_error(content)
        if content["choices"]:  # empty: token counts, or a filter's result on the prompt
            choice = content["choices"][0]
            yield _completion(choice, choice.get("delta"))


async def _events(first: bytes, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The data of each event. Lines end with a line feed alone: other separators are text."""
    parts = [first]  # of lines that have not ended
    while True:
        if b"\n" in parts[-1]:
            *lines, incomplete = b"".join(parts).split(b"\n")
            parts = [incomplete]
            for line in lines:
                name, _, data = line.partition(b":")
                if name == b"data" and data.strip() not in (b"", b"[DONE]"):
                    yield data.strip()
        try:
            parts.append(await anext(pieces))
        except StopAsyncIteration:
            return


def attach_images(
    messages: Sequence[Mapping[str, Any]], uris: Iterable[str]
) -> list[dict[str, Any]]:
    """Replace the blocks of type "image" in chat messages by images.

    Args:
        messages: As a prompt makes them.
        uris: Data URIs, in the order of the blocks.

    Returns:
        Messages of the OpenAI chat format.

    Raises:
        UserError: There are more or fewer images than blocks.
    """
    images = [{"type": "image_url", "image_url": {"url": uri}} for uri in uris]
    expected = sum(part["type"] == "image" for message in messages for part in message["content"])
    if len(images) != expected:
        raise UserError(
            f"the prompt is about {expected} image(s), but {len(images)} were given: give as many"
        )
    remaining = iter(images)
    return [
        {
            **message,
            "content": [
                next(remaining) if part["type"] == "image" else part for part in message["content"]
            ],
        }
        for message in messages
    ]
