"""The teacher writer: a large model behind an OpenAI-compatible endpoint writes the rationales.

So many requests run at a time as the user allows; each is retried with exponential back-off, or as
the server's Retry-After says. A text with faults goes back to the teacher with the faults in words.
What is finished is in the journal at once, so that a killed build asks for nothing twice.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import httpx2
import tenacity

from vlmface.errors import UserError
from vlmface.rationale.journal import Journal
from vlmface.rationale.teacher_prompts import TeacherPrompt
from vlmface.rationale.verify import Verdict

# Faces in a row without an answer, after which it is the endpoint and not the face.
PATIENCE = 5
LONGEST_WAIT = 600  # s that a server may ask to wait before the build stops instead
_PASSING = (408, 409, 425, 429)


@dataclass(frozen=True)
class Endpoint:
    """Where the teacher is and how it is asked. `url` is what comes before /chat/completions,
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


@dataclass(frozen=True)
class Job:
    """One face: its id, the messages to send, and the check of what comes back."""

    id: str
    messages: list[dict[str, Any]]
    check: Callable[[str], Verdict]


class NoAnswerError(Exception):
    """A request that got no usable reply. `passing`: trying again may help, after `wait_s` if the
    server has said so."""

    def __init__(self, message: str, *, passing: bool, wait_s: float | None = None) -> None:
        super().__init__(message)
        self.passing = passing
        self.wait_s = wait_s


class Teacher:
    """Asks `endpoint` about jobs and writes what it answers to a journal, a record each:

    {"id", "text", "requests", "prompt_tokens", "completion_tokens", "uncounted" (replies without
    token counts)}, and, where the first text had faults that were sent back, "first" and
    "first_reasons". Faces that got no answer are not recorded; `unanswered` maps their ids to why.
    """

    def __init__(self, endpoint: Endpoint, prompt: TeacherPrompt, repairs: int = 1) -> None:
        endpoint.check()
        self.endpoint = endpoint
        self.prompt = prompt
        self.repairs = repairs
        self.unanswered: dict[str, str] = {}
        self._in_a_row = 0

    def write(self, jobs: Iterator[Job], journal: Journal, done: Callable[[], Any]) -> None:
        """Work through the jobs, which are drawn as they are needed; `done` is called after each.
        Raises UserError if the endpoint refuses the key or model, or answers nothing any more."""
        try:
            asyncio.run(self._write(jobs, journal, done))
        except BaseExceptionGroup as group:  # the first error cancelled the other workers
            raise group.exceptions[0] from None

    async def _write(self, jobs: Iterator[Job], journal: Journal, done: Callable[[], Any]) -> None:
        n = self.endpoint.concurrency

        async def work(client: httpx2.AsyncClient) -> None:
            for job in jobs:  # shared: each worker draws the next one
                try:
                    journal.add(await self._ask(client, job))
                    self._in_a_row = 0
                except NoAnswerError as error:
                    self.unanswered[job.id] = str(error)
                    self._in_a_row += 1
                    if self._in_a_row >= PATIENCE:
                        raise UserError(
                            f"{self.endpoint.url} gave no answer for {self._in_a_row} faces in a "
                            f"row (last: {error}): see to it, then the same command goes on; "
                            f"{len(journal.records)} faces are done and kept"
                        ) from None
                done()

        async with (
            httpx2.AsyncClient(
                headers=self.endpoint.headers(),
                timeout=self.endpoint.timeout_s,
                limits=httpx2.Limits(max_connections=n),
            ) as client,
            asyncio.TaskGroup() as group,
        ):
            for _ in range(n):
                group.create_task(work(client))

    async def _ask(self, client: httpx2.AsyncClient, job: Job) -> dict[str, Any]:
        """The record of one face: its text, sent back up to `repairs` times while it has faults."""
        record: dict[str, Any] = {
            "id": job.id,
            "requests": 0,
            "prompt_tokens": 0,
            "completion_tokens": 0,
            "uncounted": 0,
        }
        messages = job.messages
        for round_ in range(self.repairs + 1):
            try:
                text, usage = await self._request(client, messages)
            except NoAnswerError:
                if "text" not in record:
                    raise
                break  # the repair failed; what was there before is judged as it is
            record["requests"] += 1
            record["prompt_tokens"] += usage.get("prompt_tokens") or 0
            record["completion_tokens"] += usage.get("completion_tokens") or 0
            record["uncounted"] += not usage
            verdict = job.check(text)
            record["text"] = text
            if round_ == self.repairs or not self.prompt.may_repair(verdict):
                break
            record.setdefault("first", text)
            record.setdefault("first_reasons", list(dict.fromkeys(verdict.reasons)))
            messages = [*messages, *self.prompt.repair_messages(text, verdict)]
        return record

    async def _request(
        self, client: httpx2.AsyncClient, messages: list[dict[str, Any]]
    ) -> tuple[str, dict[str, Any]]:
        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(lambda e: getattr(e, "passing", False)),
            stop=tenacity.stop_after_attempt(self.endpoint.attempts),
            wait=self._pause,
            reraise=True,
        )
        return await retrying(self._request_once, client, messages)

    def _pause(self, state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, NoAnswerError) and error.wait_s is not None:
            return error.wait_s
        start = self.endpoint.backoff_s
        return tenacity.wait_exponential_jitter(initial=start, max=60, jitter=start)(state)

    async def _request_once(
        self, client: httpx2.AsyncClient, messages: list[dict[str, Any]]
    ) -> tuple[str, dict[str, Any]]:
        """(text, token counts) of one request. Raises NoAnswerError, and UserError for what no
        other face would change."""
        body = {"model": self.endpoint.model, "messages": messages} | self.endpoint.request
        url = f"{self.endpoint.url.rstrip('/')}/chat/completions"
        try:
            reply = await client.post(
                url, json={name: value for name, value in body.items() if value is not None}
            )
        except httpx2.TransportError as error:
            kind = type(error).__name__
            raise NoAnswerError(f"{kind} {error}".strip(), passing=True) from error
        status, said = reply.status_code, " ".join(reply.text[:300].split())
        if status in _PASSING or status >= 500:
            raise NoAnswerError(f"HTTP {status} {said}", passing=True, wait_s=_retry_after(reply))
        if status in (400, 413, 422):  # this face may be the cause: too large, or filtered
            raise NoAnswerError(f"HTTP {status} {said}", passing=False)
        if status != 200:
            raise UserError(f"{url} answers HTTP {status}: {said}; check URL, model and key")
        try:
            content = reply.json()
            choice = content["choices"][0]
            text = choice["message"].get("content") or ""
            if not isinstance(text, str):
                raise TypeError(f"content is {type(text).__name__}")
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            # Cut off by a proxy, or not what was promised.
            raise NoAnswerError(f"unreadable reply ({error}): {said}", passing=True) from error
        if choice.get("finish_reason") == "content_filter":
            raise NoAnswerError("the endpoint's content filter held it back", passing=False)
        return text, content.get("usage") or {}


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
