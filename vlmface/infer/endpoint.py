"""An OpenAI-compatible endpoint, asked about many things at a time.

So many requests run at once as the user allows; each is retried with exponential back-off, or as
the server's Retry-After says. What is finished is in the journal at once, so that a killed run asks
for nothing twice.
"""

from __future__ import annotations

import asyncio
import json
import os
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

from vlmface.errors import UserError
from vlmface.infer import loops
from vlmface.journal import Journal

# Faces in a row without an answer, after which it is the endpoint and not the face.
PATIENCE = 5
LONGEST_WAIT = 600  # s that a server may ask to wait before the run stops instead
_PASSING = (408, 409, 425, 429)


class Named(Protocol):
    """A job: what is asked about one face."""

    @property
    def id(self) -> str: ...


J = TypeVar("J", bound=Named)
T = TypeVar("T")


def is_url(model: object) -> bool:
    """Whether what a user calls a model is a server."""
    return urlsplit(str(model)).scheme in ("http", "https")


@dataclass(frozen=True)
class Endpoint:
    """Where a model is served and how it is asked. `url` is what comes before /chat/completions,
    `key_env` names the environment variable that holds the key, `timeout_s` is for one request,
    `attempts` are tries of one request, `backoff_s` the first pause between two of them, `request`
    further fields of the request's JSON."""

    url: str
    model: str
    key_env: str | None = None
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
                f"the endpoint {self.url!r} is no URL: give what comes before /chat/completions, "
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
        if self.key_env is None:
            return {}
        key = os.environ.get(self.key_env, "").strip()
        if not key:
            raise UserError(
                f"the environment variable {self.key_env} is not set: put the endpoint's API key "
                "into it, or leave out --api_key_env for an endpoint without keys"
            )
        return {"Authorization": f"Bearer {key}"}


class NoAnswerError(Exception):
    """A request that got no usable reply. `passing`: trying again may help, after `wait_s` if the
    server has said so."""

    def __init__(self, message: str, *, passing: bool, wait_s: float | None = None) -> None:
        super().__init__(message)
        self.passing = passing
        self.wait_s = wait_s


def work_through(
    endpoint: Endpoint,
    jobs: Iterator[J],
    work: Callable[[httpx2.AsyncClient, J], Awaitable[dict[str, Any]]],
    journal: Journal,
    done: Callable[[], Any],
) -> dict[str, str]:
    """Do the jobs, which are drawn as they are needed, `endpoint.concurrency` at a time: `work`
    returns the record that the journal is given, `done` is called after each.

    Returns {id: why} of the faces that got no answer; they are not recorded. Raises UserError if
    the endpoint refuses the key or model, or answers nothing any more.
    """
    unanswered: dict[str, str] = {}
    try:
        loops.run(_work_through(endpoint, jobs, work, journal, done, unanswered))
    except BaseExceptionGroup as group:  # the first error cancelled the other workers
        raise group.exceptions[0] from None
    return unanswered


async def _work_through(
    endpoint: Endpoint,
    jobs: Iterator[J],
    work: Callable[[httpx2.AsyncClient, J], Awaitable[dict[str, Any]]],
    journal: Journal,
    done: Callable[[], Any],
    unanswered: dict[str, str],
) -> None:
    in_a_row = 0

    async def worker(client: httpx2.AsyncClient) -> None:
        nonlocal in_a_row
        for job in jobs:  # shared: each worker draws the next one
            try:
                journal.add(await work(client, job))
                in_a_row = 0
            except NoAnswerError as error:
                unanswered[job.id] = str(error)
                in_a_row += 1
                if in_a_row >= PATIENCE:
                    raise UserError(
                        f"{endpoint.url} gave no answer for {in_a_row} faces in a row (last: "
                        f"{error}): see to it, then the same command goes on; "
                        f"{len(journal.records)} faces are done and kept"
                    ) from None
            done()

    async with (
        httpx2.AsyncClient(
            headers=endpoint.headers(),
            timeout=endpoint.timeout_s,
            limits=httpx2.Limits(max_connections=endpoint.concurrency),
        ) as client,
        asyncio.TaskGroup() as group,
    ):
        for _ in range(endpoint.concurrency):
            group.create_task(worker(client))


async def ask(
    client: httpx2.AsyncClient,
    endpoint: Endpoint,
    messages: list[dict[str, Any]],
    request: Mapping[str, Any] | None = None,
) -> tuple[list[str], dict[str, Any]]:
    """(the texts of all choices, token counts) of one request, which may have further fields than
    the endpoint's. Raises what `call` does."""
    body = {"model": endpoint.model, "messages": messages} | endpoint.request | dict(request or {})
    return await call(client, endpoint, "chat/completions", body, _texts)


def _texts(reply: httpx2.Response) -> tuple[list[str], dict[str, Any]]:
    content = reply.json()
    choices = content["choices"]
    texts = [choice["message"].get("content") or "" for choice in choices]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise TypeError("no text in it")
    if all(choice.get("finish_reason") == "content_filter" for choice in choices):
        raise NoAnswerError("the endpoint's content filter held it back", passing=False)
    return texts, content.get("usage") or {}


async def streamed(
    client: httpx2.AsyncClient,
    endpoint: Endpoint,
    messages: list[dict[str, Any]],
    request: Mapping[str, Any] | None = None,
) -> AsyncIterator[tuple[str, str | None]]:
    """(piece of text, why it ended or None) as the endpoint sends them (server-sent events). Raises
    what `call` does; nothing is tried twice."""
    body = {"model": endpoint.model, "messages": messages} | endpoint.request
    body |= {**dict(request or {}), "stream": True}
    url = f"{endpoint.url.rstrip('/')}/chat/completions"
    try:
        async with client.stream("POST", url, json=body) as reply:
            if reply.status_code != 200:
                await reply.aread()
                _check_status(reply, url)
            async for line in reply.aiter_lines():
                name, _, data = line.partition(":")
                if name != "data" or data.strip() == "[DONE]":
                    continue
                choice = json.loads(data)["choices"][0]
                yield choice["delta"].get("content") or "", choice.get("finish_reason")
    except httpx2.TransportError as error:
        raise NoAnswerError(f"{type(error).__name__} {error}".strip(), passing=True) from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise NoAnswerError(f"unreadable reply ({error})", passing=True) from error


async def call(
    client: httpx2.AsyncClient,
    endpoint: Endpoint,
    path: str,
    body: Mapping[str, Any] | None,
    read: Callable[[httpx2.Response], T],
) -> T:
    """What `read` finds in the reply to a POST of `body` as JSON (None: to a GET), tried as often
    as the endpoint says.

    A ValueError, LookupError, TypeError or AttributeError of `read` is a reply that is not what was
    promised. Raises NoAnswerError, and UserError for what no other face would change.
    """

    def pause(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, NoAnswerError) and error.wait_s is not None:
            return error.wait_s
        start = endpoint.backoff_s
        return tenacity.wait_exponential_jitter(initial=start, max=60, jitter=start)(state)

    retrying = tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception(lambda e: getattr(e, "passing", False)),
        stop=tenacity.stop_after_attempt(endpoint.attempts),
        wait=pause,
        reraise=True,
    )
    return await retrying(_call_once, client, endpoint, path, body, read)


async def _call_once(
    client: httpx2.AsyncClient,
    endpoint: Endpoint,
    path: str,
    body: Mapping[str, Any] | None,
    read: Callable[[httpx2.Response], T],
) -> T:
    url = f"{endpoint.url.rstrip('/')}/{path}"
    try:
        if body is None:
            reply = await client.get(url)
        else:
            sent = {name: value for name, value in body.items() if value is not None}
            reply = await client.post(url, json=sent)
    except httpx2.TransportError as error:
        kind = type(error).__name__
        raise NoAnswerError(f"{kind} {error}".strip(), passing=True) from error
    _check_status(reply, url)
    try:
        return read(reply)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        # Cut off by a proxy, or not what was promised.
        said = _said(reply)
        raise NoAnswerError(f"unreadable reply ({error}): {said}", passing=True) from error


def _said(reply: httpx2.Response) -> str:
    return " ".join(reply.text[:300].split())


def _check_status(reply: httpx2.Response, url: str) -> None:
    """Raises NoAnswerError or UserError for anything but HTTP 200."""
    status, said = reply.status_code, _said(reply)
    if status in _PASSING or status >= 500:
        raise NoAnswerError(f"HTTP {status} {said}", passing=True, wait_s=_retry_after(reply))
    if status in (400, 413, 422):  # this face may be the cause: too large, or filtered
        raise NoAnswerError(f"HTTP {status} {said}", passing=False)
    if status != 200:
        raise UserError(f"{url} answers HTTP {status}: {said}; check URL, model and key")


def with_images(messages: Sequence[Mapping[str, Any]], uris: Iterable[str]) -> list[dict[str, Any]]:
    """Chat messages with the pictures of data URIs, in order, where they have blocks of type
    "image". Raises UserError for more or fewer pictures than blocks."""
    pictures = [{"type": "image_url", "image_url": {"url": uri}} for uri in uris]
    wanted = sum(part["type"] == "image" for one in messages for part in one["content"])
    if len(pictures) != wanted:
        raise UserError(
            f"the prompt is about {wanted} picture(s), but {len(pictures)} are shown: give as many"
        )
    left = iter(pictures)
    return [
        {
            **one,
            "content": [next(left) if part["type"] == "image" else part for part in one["content"]],
        }
        for one in messages
    ]


def _retry_after(reply: httpx2.Response) -> float | None:
    """Seconds that the server asks to wait, which it gives as a number or a date (RFC 9110)."""
    value = reply.headers.get("retry-after", "").strip()
    try:
        wait = float(value)
    except ValueError:
        try:
            wait = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    if wait > LONGEST_WAIT:
        raise UserError(
            f"{reply.url.host} asks to wait {wait / 60:.0f} minutes: run the same command again "
            "then, it goes on where it stopped"
        )
    return max(0.0, wait)
