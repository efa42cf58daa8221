"""An OpenAI-compatible endpoint, and single requests to it.

Each request is retried with exponential back-off, or after the delay in the server's Retry-After.
`chat` has the messages and replies, `jobs` many requests at once.
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
    Callable,
    Iterator,
    Mapping,
)
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx2
import tenacity

from vlmface.errors import UserError
from vlmface.utils.files import without_surrogates

# Seconds: the longest Retry-After that is waited for, and the limit of all pauses of one request.
MAX_RETRY_WAIT_S = 600
MAX_REPLY_BYTES = 16 * 2**20  # of one reply, decompressed
RETRYABLE = (408, 409, 425, 429)


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
        """The headers of a request. Raises UserError if the key is missing."""
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


# What parsing raises for a reply that is not of the documented form.
UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
UNCOMPRESSED = {"Accept-Encoding": "identity"}


@contextlib.contextmanager
def no_answer_errors(timeout_s: float) -> Iterator[None]:
    """Inside the block, errors of the connection become NoAnswerErrors."""
    try:
        yield
    except TimeoutError:
        raise _too_slow(timeout_s) from None
    except httpx2.HTTPError as error:
        raise NoAnswerError(f"{type(error).__name__} {error}".strip(), retryable=True) from error


async def read_body(reply: httpx2.Response, timeout_s: float) -> AsyncIterator[bytes]:
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


def read_reply(reply: httpx2.Response, body: bytes) -> httpx2.Response:
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
    with no_answer_errors(endpoint.timeout_s):
        async with (
            asyncio.timeout(endpoint.timeout_s),
            client.stream(method, url, json=content, headers=UNCOMPRESSED) as streaming,
        ):
            pieces = read_body(streaming, endpoint.timeout_s)
            reply = read_reply(streaming, b"".join([piece async for piece in pieces]))
    check_status(reply, url, sent)
    try:
        return parse(reply)
    except UNREADABLE as error:  # cut off by a proxy, or of another form
        raise NoAnswerError(
            f"unreadable reply ({error}): {_excerpt(reply)}", retryable=True
        ) from error


def _excerpt(reply: httpx2.Response) -> str:
    return short_excerpt(reply.content[:1200].decode("utf-8", "replace"))


def short_excerpt(text: str) -> str:
    """The start of a server's text on one line, for a message."""
    return " ".join(without_surrogates(text)[:300].split())


def check_status(reply: httpx2.Response, url: str, sent: Mapping[str, Any]) -> None:
    """Raises NoAnswerError or UserError for anything but HTTP 200."""
    status, excerpt = reply.status_code, _excerpt(reply)
    if status in RETRYABLE or status >= 500:
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
