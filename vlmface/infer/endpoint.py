"""An OpenAI-compatible endpoint, asked about many things at a time.

So many requests run at once as the user allows; each is retried with exponential back-off, or as
the server's Retry-After says. What is finished is in the journal at once, so that a killed run asks
for nothing twice.
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

# Faces in a row without an answer, after which it is the endpoint and not the face.
MAX_CONSECUTIVE_FAILURES = 5
MAX_RETRY_WAIT_S = (
    600  # s that a server may ask to wait before the run stops instead; all pauses of one
)
# request together are bounded by it too
MAX_REPLY_BYTES = 16 * 2**20  # of one reply, decompressed
_PASSING = (408, 409, 425, 429)


class HasId(Protocol):
    """A job: what is asked about one face."""

    @property
    def id(self) -> str: ...


J = TypeVar("J", bound=HasId)
T = TypeVar("T")


def is_url(model: object) -> bool:
    """Whether what a user calls a model is a server."""
    return urlsplit(str(model)).scheme in ("http", "https")


@dataclass(frozen=True)
class Endpoint:
    """Where a model is served and how it is asked. `url` is what comes before /chat/completions,
    `key_env` names the environment variable that holds the key, `timeout_s` is for one request with
    its whole reply, `attempts` are tries of one request, `backoff_s` the first pause between two of
    them. `request` has further fields of the request's JSON, which override those that a prompt
    sets; null removes a field."""

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


def run_jobs(
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
        loops.run_sync(_work_through(endpoint, jobs, work, journal, done, unanswered))
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
                if in_a_row >= MAX_CONSECUTIVE_FAILURES:
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


@dataclass(frozen=True)
class Completion:
    """One choice of a reply, or a piece of a streamed one. `content` is the answer, `reasoning`
    what a reasoning model sends in a field of its own, `refusal` why it does not answer, `reason`
    why it ended (`finish_reason`), None while it has not, or if the server does not tell."""

    content: str = ""
    reasoning: str = ""
    refusal: str = ""
    reason: str | None = None

    def text(self, form: str) -> str:
        """What the model wrote, as an answer in `form`: reasoning in its own field is the rationale
        of the forms that have one between tags, and no part of the others."""
        if not self.content.strip() and self.refusal:
            return self.refusal.strip()
        if not self.reasoning.strip() or not answers.has_think(form) or "<think>" in self.content:
            return self.content.strip()
        if not self.content.strip():
            return f"<think>{self.reasoning.strip()}"
        return f"<think>{self.reasoning.strip()}</think>\n{self.content.strip()}"

    @property
    def refused(self) -> bool:
        return bool(self.refusal) and not self.content.strip()

    def complete(self, written: int | None, limit: int) -> bool:
        """Whether it ended by itself. A server that gives no reason is judged by the number of
        tokens `written`, of which `limit` were allowed."""
        if self.reason is not None:
            return self.reason in _ENDED
        return written is None or written < limit


_ENDED = ("stop", "end_turn", "eos", "eos_token", "stop_sequence", "stop_token")


async def chat(
    client: httpx2.AsyncClient,
    endpoint: Endpoint,
    messages: list[dict[str, Any]],
    request: Mapping[str, Any] | None = None,
) -> tuple[list[Completion], dict[str, int]]:
    """(all choices, token counts) of one request. `request` has further fields, which those of the
    endpoint override. Raises what `call` does."""
    body = {"model": endpoint.model, "messages": messages} | dict(request or {}) | endpoint.request
    return await send_request(client, endpoint, "chat/completions", body, _choices)


def _choices(reply: httpx2.Response) -> tuple[list[Completion], dict[str, int]]:
    content = parse_json(reply.content)
    _check_error(content)
    found = [_completion(choice, dict(choice["message"])) for choice in content["choices"]]
    if not found:
        raise TypeError("no text in it")
    if all(one.reason == "content_filter" for one in found):
        raise NoAnswerError("the endpoint's content filter held it back", passing=False)
    return found, _counts(content.get("usage"))


def _completion(choice: Mapping[str, Any], message: Mapping[str, Any] | None) -> Completion:
    """A choice, or a piece of one, of whose fields servers leave out some or send null."""
    message = message or {}
    reasoning = _words(message.get("reasoning_content")) or _words(message.get("reasoning"))
    reason = choice.get("finish_reason")
    parts = message.get("content")
    refusal = _words(message.get("refusal"))
    if isinstance(parts, list):
        refusal = refusal or "".join(_words(p.get("refusal")) for p in parts)
    return Completion(
        _words(parts), reasoning, refusal, reason if isinstance(reason, str) else None
    )


def _words(content: Any) -> str:
    """Text, of a list of parts those of type text together. Raises TypeError for anything else."""
    if content is None:
        return ""
    if isinstance(content, list):
        return "".join(_words(part.get("text")) for part in content)
    if not isinstance(content, str):
        raise TypeError("no text in it")
    return without_surrogates(content)


def _counts(usage: Any) -> dict[str, int]:
    """The token counts that a server tells, of whatever `usage` it sends."""
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
    """Raises NoAnswerError for an error that a server sends in place of choices, with HTTP 200."""
    error = content.get("error") if isinstance(content, Mapping) else None
    if not error or content.get("choices"):
        return
    code = error.get("code") if isinstance(error, Mapping) else None
    message = error.get("message") if isinstance(error, Mapping) else error
    passing = not (isinstance(code, int) and 400 <= code < 500 and code not in _PASSING)
    raise NoAnswerError(f"an error instead of an answer: {_short(str(message))}", passing=passing)


def parse_json(body: bytes) -> Any:
    """A reply's JSON. Raises ValueError for what is none, or is nested too deep; a number of
    thousands of digits is infinite."""
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
    """The pieces of an answer as the endpoint sends them (server-sent events). Raises what `call`
    does; nothing is tried twice."""
    body = {"model": endpoint.model, "messages": messages} | dict(request or {}) | endpoint.request
    body["stream"] = True
    url = f"{endpoint.url.rstrip('/')}/chat/completions"
    sent = {name: value for name, value in body.items() if value is not None}
    events = 0
    try:
        async with contextlib.AsyncExitStack() as stack:
            begun = stack.enter_async_context(client.stream("POST", url, json=sent, headers=_PLAIN))
            reply = await asyncio.wait_for(begun, endpoint.timeout_s)
            pieces = _body(reply, endpoint.timeout_s)
            if reply.status_code != 200:
                whole = b"".join([piece async for piece in pieces])
                _check_status(_read_reply(reply, whole), url, sent)
            first = await anext(pieces, b"")
            if first.lstrip()[:1] == b"{":  # it does not stream
                whole = first + b"".join([piece async for piece in pieces])
                yield _choices(_read_reply(reply, whole))[0][0]
                return
            async for data in _events(first, pieces):
                content = parse_json(data)
                _check_error(content)
                if content["choices"]:  # none: token counts, or what a filter says of the prompt
                    choice = content["choices"][0]
                    events += 1
                    yield _completion(choice, choice.get("delta"))
    except TimeoutError:
        raise _too_slow(endpoint.timeout_s) from None
    except httpx2.HTTPError as error:
        raise NoAnswerError(f"{type(error).__name__} {error}".strip(), passing=True) from error
    except _UNREADABLE as error:
        raise NoAnswerError(f"unreadable reply ({error})", passing=True) from error
    if not events:
        raise NoAnswerError("the stream held no piece of an answer", passing=True)


async def _events(first: bytes, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The data of each event. Lines end with a line feed alone: other separators are text."""
    parts = [first]  # of lines that have not ended
    while True:
        if b"\n" in parts[-1]:
            *lines, rest = b"".join(parts).split(b"\n")
            parts = [rest]
            for line in lines:
                name, _, data = line.partition(b":")
                if name == b"data" and data.strip() not in (b"", b"[DONE]"):
                    yield data.strip()
        try:
            parts.append(await anext(pieces))
        except StopAsyncIteration:
            return


# What reading a reply raises that is not what was promised.
_UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
_PLAIN = {"Accept-Encoding": "identity"}


async def _body(reply: httpx2.Response, timeout_s: float) -> AsyncIterator[bytes]:
    """The pieces of a reply's body, decompressed. Raises NoAnswerError as soon as there are more
    than MOST_BYTES of them, or they take more than `timeout_s` together."""
    encoding = reply.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity", "gzip", "x-gzip", "deflate"):
        raise NoAnswerError(f"the reply is compressed ({encoding}), unasked", passing=False)
    inflate = None if encoding in ("", "identity") else zlib.decompressobj(47)
    deadline, size = time.monotonic() + timeout_s, 0
    pieces = reply.aiter_raw()
    while True:
        try:
            left = max(0.0, deadline - time.monotonic())
            piece = await asyncio.wait_for(anext(pieces), left)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise _too_slow(timeout_s) from None
        if inflate is not None:
            try:
                piece = inflate.decompress(piece, MAX_REPLY_BYTES + 1 - size)
            except zlib.error as error:
                raise NoAnswerError(f"unreadable reply ({error})", passing=True) from error
        size += len(piece)
        if size > MAX_REPLY_BYTES:
            raise NoAnswerError(
                f"the reply is larger than {MAX_REPLY_BYTES // 2**20} MiB", passing=False
            )
        yield piece


def _too_slow(timeout_s: float) -> NoAnswerError:
    return NoAnswerError(f"the reply was not complete after {timeout_s:g} s", passing=True)


def _read_reply(reply: httpx2.Response, body: bytes) -> httpx2.Response:
    """The reply with its decompressed body."""
    of_the_body = ("content-encoding", "content-length", "transfer-encoding")
    headers = [(k, v) for k, v in reply.headers.items() if k.lower() not in of_the_body]
    return httpx2.Response(reply.status_code, headers=headers, content=body, request=reply.request)


async def send_request(
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

    def enough(state: tenacity.RetryCallState) -> bool:
        waited = state.idle_for + state.upcoming_sleep
        return state.attempt_number >= endpoint.attempts or waited > MAX_RETRY_WAIT_S

    retrying = tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception(lambda e: getattr(e, "passing", False)),
        stop=enough,
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
    sent = {name: value for name, value in (body or {}).items() if value is not None}
    method = "GET" if body is None else "POST"
    content = None if body is None else sent
    try:
        async with (
            asyncio.timeout(endpoint.timeout_s),
            client.stream(method, url, json=content, headers=_PLAIN) as streaming,
        ):
            pieces = _body(streaming, endpoint.timeout_s)
            reply = _read_reply(streaming, b"".join([piece async for piece in pieces]))
    except TimeoutError:
        raise _too_slow(endpoint.timeout_s) from None
    except httpx2.HTTPError as error:
        kind = type(error).__name__
        raise NoAnswerError(f"{kind} {error}".strip(), passing=True) from error
    _check_status(reply, url, sent)
    try:
        return read(reply)
    except _UNREADABLE as error:
        # Cut off by a proxy, or not what was promised.
        raise NoAnswerError(f"unreadable reply ({error}): {_said(reply)}", passing=True) from error


def _said(reply: httpx2.Response) -> str:
    return _short(reply.content[:1200].decode("utf-8", "replace"))


def _short(text: str) -> str:
    return " ".join(without_surrogates(text)[:300].split())


def _check_status(reply: httpx2.Response, url: str, sent: Mapping[str, Any]) -> None:
    """Raises NoAnswerError or UserError for anything but HTTP 200."""
    status, said = reply.status_code, _said(reply)
    if status in _PASSING or status >= 500:
        raise NoAnswerError(f"HTTP {status} {said}", passing=True, wait_s=_retry_after(reply))
    if status in (400, 422) and (name := _refused_field(reply, sent)):
        raise UserError(
            f"{url} does not take the field {name!r} of the request (HTTP {status} {said}): remove "
            f"it with --request {name}=null, and set what the server takes in its place with "
            "NAME=VALUE beside it"
        )
    if status in (400, 413, 422):  # this face may be the cause: too large, or filtered
        raise NoAnswerError(f"HTTP {status} {said}", passing=False)
    if status != 200:
        raise UserError(f"{url} answers HTTP {status}: {said}; check URL, model and key")


_NOT_TAKEN = re.compile(
    r"unsupported|not\s+support|unrecogni[sz]ed|unknown|not\s+permitted|unexpected|extra|not\s+allowed"
    r"|invalid|deprecated|must\s+be|only\s+the\s+default",
    re.IGNORECASE,
)


def _refused_field(reply: httpx2.Response, sent: Mapping[str, Any]) -> str | None:
    """The field of the request that a refusal names, other than the messages and the model."""
    fields = sent.keys() - {"messages", "model", "stream"}
    try:
        error = parse_json(reply.content)
    except ValueError:
        error = None
    error = error.get("error", error) if isinstance(error, Mapping) else error
    if isinstance(error, Mapping) and isinstance(error.get("param"), str):
        name = re.split(r"[.\[]", error["param"])[0]
        return name if name in fields else None
    said = _said(reply)
    if not _NOT_TAKEN.search(said):
        return None
    return next(
        (name for name in sorted(fields) if re.search(rf"\b{re.escape(name)}\b", said)), None
    )


def attach_images(
    messages: Sequence[Mapping[str, Any]], uris: Iterable[str]
) -> list[dict[str, Any]]:
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
    if math.isnan(wait):
        return None
    if wait > MAX_RETRY_WAIT_S:
        raise UserError(
            f"{reply.request.url.host} asks to wait {wait / 60:.0f} minutes: run the same command "
            "again then, it goes on where it stopped"
        )
    return max(0.0, wait)
