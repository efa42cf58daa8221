"""Client of an OpenAI-compatible endpoint, for many concurrent requests.

Each request is retried with exponential back-off, or after the delay in the server's Retry-After.
Finished jobs are written to the journal at once, so that a run that was killed does not repeat
them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import re
import time
import zlib
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

import httpx2
import tenacity

from vlmface import answers
from vlmface.errors import UserError
from vlmface.infer import loops
from vlmface.utils.files import without_surrogates
from vlmface.utils.jsonl_journal import Journal

MAX_CONSECUTIVE_FAILURES = 5  # faces in a row without an answer, after which the run stops
# Seconds: the longest Retry-After that is waited for, and the limit of all pauses of one request.
MAX_RETRY_WAIT_S = 600
MAX_REPLY_BYTES = 16 * 2**20  # of one reply, decompressed
_RETRYABLE = (408, 409, 425, 429)


class HasId(Protocol):
    """A job: a request about one face."""

    @property
    def id(self) -> str: ...


J = TypeVar("J", bound=HasId)
T = TypeVar("T")


def is_url(model: object) -> bool:
    """Whether a model was given as the URL of a server."""
    return urlsplit(str(model)).scheme in ("http", "https")


@dataclass(frozen=True)
class Endpoint:
    """Where a model is served and how requests are sent to it.

    Attributes:
        url: The part before /chat/completions.
        model: The model's name there.
        api_key_env: The environment variable that holds the API key.
        concurrency: The most requests at once.
        timeout_s: Of one request with its whole reply.
        attempts: Tries of one request.
        backoff_s: The first pause between two tries.
        request: More fields of each request, which override those of the prompt; None removes a
            field.
    """

    url: str
    model: str
    api_key_env: str | None = None
    concurrency: int = 8
    timeout_s: float = 120.0
    attempts: int = 6
    backoff_s: float = 1.0
    request: dict[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Raises UserError for a URL, number or key that cannot work."""
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(
                f"the endpoint {self.url!r} is not a URL: give the part before /chat/completions, "
                "such as http://localhost:8000/v1"
            )
        if parts.username or parts.password or parts.query:
            raise UserError(
                "the endpoint's URL holds credentials or a query: put the key into an environment "
                "variable and name that with --api_key_env"
            )
        for name in ("concurrency", "attempts", "timeout_s"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name} is {getattr(self, name)}: use a number above 0")
        self.headers()

    def headers(self) -> dict[str, str]:
        if self.api_key_env is None:
            return {}
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise UserError(
                f"the environment variable {self.api_key_env} is not set: put the endpoint's API "
                "key into it, or leave out --api_key_env for an endpoint without keys"
            )
        return {"Authorization": f"Bearer {key}"}


def open_client(endpoint: Endpoint) -> httpx2.AsyncClient:
    """An HTTP client with the endpoint's key, timeout and number of connections."""
    return httpx2.AsyncClient(
        headers=endpoint.headers(),
        timeout=endpoint.timeout_s,
        limits=httpx2.Limits(max_connections=endpoint.concurrency),
    )


class NoAnswerError(Exception):
    """A request got no usable reply.

    Args:
        message: The cause.
        retryable: Whether another try may succeed.
        wait_s: The delay before it that the server asks for.
    """

    def __init__(self, message: str, *, retryable: bool, wait_s: float | None = None) -> None:
        super().__init__(message)
        self.retryable = retryable
        self.wait_s = wait_s


def run_jobs(
    endpoint: Endpoint,
    jobs: Iterator[J],
    run_job: Callable[[httpx2.AsyncClient, J], Awaitable[dict[str, Any]]],
    journal: Journal,
    on_done: Callable[[], Any],
) -> dict[str, str]:
    """Run jobs, `endpoint.concurrency` at a time.

    Args:
        endpoint: Where requests are sent.
        jobs: Drawn as they are needed.
        run_job: Returns the record of a job, which is added to the journal.
        journal: Of finished jobs.
        on_done: Called after each job.

    Returns:
        {id: cause} of the jobs without an answer, which are not in the journal.

    Raises:
        UserError: The endpoint rejects the key or model, or has stopped answering.
    """
    unanswered: dict[str, str] = {}
    try:
        loops.run_sync(_run_jobs(endpoint, jobs, run_job, journal, on_done, unanswered))
    except BaseExceptionGroup as group:  # the first error cancelled the other workers
        raise group.exceptions[0] from None
    return unanswered


async def _run_jobs(
    endpoint: Endpoint,
    jobs: Iterator[J],
    run_job: Callable[[httpx2.AsyncClient, J], Awaitable[dict[str, Any]]],
    journal: Journal,
    on_done: Callable[[], Any],
    unanswered: dict[str, str],
) -> None:
    failures = 0  # in a row

    async def worker(client: httpx2.AsyncClient) -> None:
        nonlocal failures
        for job in jobs:  # shared: each worker draws the next one
            try:
                journal.add(await run_job(client, job))
                failures = 0
            except NoAnswerError as error:
                unanswered[job.id] = str(error)
                failures += 1
                if failures >= MAX_CONSECUTIVE_FAILURES:
                    raise UserError(
                        f"{endpoint.url} gave no answer for {failures} faces in a row (last: "
                        f"{error}): check the server, then rerun the same command to resume; "
                        f"{len(journal.records)} faces are finished and kept"
                    ) from None
            on_done()

    async with open_client(endpoint) as client, asyncio.TaskGroup() as group:
        for _ in range(endpoint.concurrency):
            group.create_task(worker(client))


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


_FINISHED = ("stop", "end_turn", "eos", "eos_token", "stop_sequence", "stop_token")


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
    rejected = isinstance(code, int) and 400 <= code < 500 and code not in _RETRYABLE
    raise NoAnswerError(
        f"an error instead of an answer: {_short(str(message))}", retryable=not rejected
    )


def parse_json(body: bytes) -> Any:
    """Parse a reply. A number of thousands of digits becomes infinity.

    Raises:
        ValueError: The text is not valid JSON, or is nested too deep.
    """
    try:
        return json.loads(
            body, parse_int=lambda digits: int(digits) if len(digits) < 20 else math.inf
        )
    except RecursionError:
        raise ValueError("JSON nested too deep") from None


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
    events = 0
    try:
        async with contextlib.AsyncExitStack() as stack:
            opening = stack.enter_async_context(
                client.stream("POST", url, json=sent, headers=_UNCOMPRESSED)
            )
            reply = await asyncio.wait_for(opening, endpoint.timeout_s)
            pieces = _body(reply, endpoint.timeout_s)
            if reply.status_code != 200:
                body_bytes = b"".join([piece async for piece in pieces])
                _check_status(_read_reply(reply, body_bytes), url, sent)
            first = await anext(pieces, b"")
            if first.lstrip()[:1] == b"{":  # the server does not stream
                body_bytes = first + b"".join([piece async for piece in pieces])
                yield _choices(_read_reply(reply, body_bytes))[0][0]
                return
            async for data in _events(first, pieces):
                content = parse_json(data)
                _check_error(content)
                if content["choices"]:  # empty: token counts, or a filter's result on the prompt
                    choice = content["choices"][0]
                    events += 1
                    yield _completion(choice, choice.get("delta"))
    except TimeoutError:
        raise _too_slow(endpoint.timeout_s) from None
    except httpx2.HTTPError as error:
        raise NoAnswerError(f"{type(error).__name__} {error}".strip(), retryable=True) from error
    except _UNREADABLE as error:
        raise NoAnswerError(f"unreadable reply ({error})", retryable=True) from error
    if not events:
        raise NoAnswerError("the stream held no piece of an answer", retryable=True)


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


# What parsing raises for a reply that is not of the documented form.
_UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
_UNCOMPRESSED = {"Accept-Encoding": "identity"}


async def _body(reply: httpx2.Response, timeout_s: float) -> AsyncIterator[bytes]:
    """Yields the pieces of a reply's body, decompressed. Raises NoAnswerError as soon as they have
    more than MAX_REPLY_BYTES, or take more than `timeout_s` together."""
    encoding = reply.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity", "gzip", "x-gzip", "deflate"):
        raise NoAnswerError(
            f"the reply is compressed ({encoding}), which was not requested", retryable=False
        )
    inflate = None if encoding in ("", "identity") else zlib.decompressobj(47)
    deadline, size = time.monotonic() + timeout_s, 0
    pieces = reply.aiter_raw()
    while True:
        try:
            remaining_s = max(0.0, deadline - time.monotonic())
            piece = await asyncio.wait_for(anext(pieces), remaining_s)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise _too_slow(timeout_s) from None
        if inflate is not None:
            try:
                piece = inflate.decompress(piece, MAX_REPLY_BYTES + 1 - size)
            except zlib.error as error:
                raise NoAnswerError(f"unreadable reply ({error})", retryable=True) from error
        size += len(piece)
        if size > MAX_REPLY_BYTES:
            raise NoAnswerError(
                f"the reply is larger than {MAX_REPLY_BYTES // 2**20} MiB", retryable=False
            )
        yield piece


def _too_slow(timeout_s: float) -> NoAnswerError:
    return NoAnswerError(f"the reply was not complete after {timeout_s:g} s", retryable=True)


def _read_reply(reply: httpx2.Response, body: bytes) -> httpx2.Response:
    """The reply with its decompressed body."""
    body_headers = ("content-encoding", "content-length", "transfer-encoding")
    headers = [(k, v) for k, v in reply.headers.items() if k.lower() not in body_headers]
    return httpx2.Response(reply.status_code, headers=headers, content=body, request=reply.request)


async def send_request(
    client: httpx2.AsyncClient,
    endpoint: Endpoint,
    path: str,
    body: Mapping[str, Any] | None,
    parse: Callable[[httpx2.Response], T],
) -> T:
    """Send a request, with the endpoint's number of attempts.

    Args:
        client: From `open_client`.
        endpoint: Where it is sent.
        path: After the endpoint's URL.
        body: JSON of a POST; None sends a GET.
        parse: Makes the result from the reply. Its ValueError, LookupError, TypeError or
            AttributeError means that the reply is not of the documented form.

    Returns:
        The result of `parse`.

    Raises:
        NoAnswerError: This request got no usable reply.
        UserError: No request would get one.
    """

    def pause(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, NoAnswerError) and error.wait_s is not None:
            return error.wait_s
        start = endpoint.backoff_s
        return tenacity.wait_exponential_jitter(initial=start, max=60, jitter=start)(state)

    def give_up(state: tenacity.RetryCallState) -> bool:
        waited = state.idle_for + state.upcoming_sleep
        return state.attempt_number >= endpoint.attempts or waited > MAX_RETRY_WAIT_S

    retrying = tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception(lambda e: getattr(e, "retryable", False)),
        stop=give_up,
        wait=pause,
        reraise=True,
    )
    return await retrying(_send_once, client, endpoint, path, body, parse)


async def _send_once(
    client: httpx2.AsyncClient,
    endpoint: Endpoint,
    path: str,
    body: Mapping[str, Any] | None,
    parse: Callable[[httpx2.Response], T],
) -> T:
    url = f"{endpoint.url.rstrip('/')}/{path}"
    sent = {name: value for name, value in (body or {}).items() if value is not None}
    method = "GET" if body is None else "POST"
    content = None if body is None else sent
    try:
        async with (
            asyncio.timeout(endpoint.timeout_s),
            client.stream(method, url, json=content, headers=_UNCOMPRESSED) as streaming,
        ):
            pieces = _body(streaming, endpoint.timeout_s)
            reply = _read_reply(streaming, b"".join([piece async for piece in pieces]))
    except TimeoutError:
        raise _too_slow(endpoint.timeout_s) from None
    except httpx2.HTTPError as error:
        kind = type(error).__name__
        raise NoAnswerError(f"{kind} {error}".strip(), retryable=True) from error
    _check_status(reply, url, sent)
    try:
        return parse(reply)
    except _UNREADABLE as error:  # cut off by a proxy, or of another form
        raise NoAnswerError(
            f"unreadable reply ({error}): {_excerpt(reply)}", retryable=True
        ) from error


def _excerpt(reply: httpx2.Response) -> str:
    return _short(reply.content[:1200].decode("utf-8", "replace"))


def _short(text: str) -> str:
    return " ".join(without_surrogates(text)[:300].split())


def _check_status(reply: httpx2.Response, url: str, sent: Mapping[str, Any]) -> None:
    """Raises NoAnswerError or UserError for anything but HTTP 200."""
    status, excerpt = reply.status_code, _excerpt(reply)
    if status in _RETRYABLE or status >= 500:
        raise NoAnswerError(f"HTTP {status} {excerpt}", retryable=True, wait_s=_retry_after(reply))
    if status in (400, 422) and (name := _rejected_field(reply, sent)):
        raise UserError(
            f"{url} does not accept the field {name!r} of the request (HTTP {status} {excerpt}): "
            f"remove it with --request {name}=null, and if the server has another field for it, "
            "add that as NAME=VALUE"
        )
    if status in (400, 413, 422):  # this image may be the cause: too large, or filtered
        raise NoAnswerError(f"HTTP {status} {excerpt}", retryable=False)
    if status != 200:
        raise UserError(f"{url} answers HTTP {status}: {excerpt}; check URL, model and key")


_REJECTION = re.compile(
    r"unsupported|not\s+support|unrecogni[sz]ed|unknown|not\s+permitted|unexpected|extra|not\s+allowed"
    r"|invalid|deprecated|must\s+be|only\s+the\s+default",
    re.IGNORECASE,
)


def _rejected_field(reply: httpx2.Response, sent: Mapping[str, Any]) -> str | None:
    """The field of the request that an error reply names, except messages and model."""
    fields = sent.keys() - {"messages", "model", "stream"}
    try:
        error = parse_json(reply.content)
    except ValueError:
        error = None
    error = error.get("error", error) if isinstance(error, Mapping) else error
    if isinstance(error, Mapping) and isinstance(error.get("param"), str):
        name = re.split(r"[.\[]", error["param"])[0]
        return name if name in fields else None
    excerpt = _excerpt(reply)
    if not _REJECTION.search(excerpt):
        return None
    return next(
        (name for name in sorted(fields) if re.search(rf"\b{re.escape(name)}\b", excerpt)), None
    )


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


def _retry_after(reply: httpx2.Response) -> float | None:
    """The Retry-After header in seconds; it is a number or a date (RFC 9110)."""
    value = reply.headers.get("retry-after", "").strip()
    try:
        wait = float(value)
    except ValueError:
        try:
            wait = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    if math.isnan(wait):
        return None
    if wait > MAX_RETRY_WAIT_S:
        raise UserError(
            f"{reply.request.url.host} asks to wait {wait / 60:.0f} minutes: rerun the same "
            "command after that to resume"
        )
    return max(0.0, wait)
