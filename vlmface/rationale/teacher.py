"""The teacher writer: a large model behind an OpenAI-compatible endpoint writes the rationales.

A text with faults goes back to the teacher with the faults in words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx2

from vlmface.infer.endpoint import Endpoint, NoAnswerError, chat, run_jobs
from vlmface.rationale.teacher_prompts import TeacherPrompt
from vlmface.rationale.verify import Verdict
from vlmface.utils.jsonl_journal import Journal


@dataclass(frozen=True)
class Job:
    """One face: its id, the messages to send, and the check of what comes back."""

    id: str
    messages: list[dict[str, Any]]
    check: Callable[[str], Verdict]


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

    def write(self, jobs: Iterator[Job], journal: Journal, done: Callable[[], Any]) -> None:
        """Work through the jobs (see `work_through`); `done` is called after each."""
        self.unanswered = run_jobs(self.endpoint, jobs, self._ask, journal, done)

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
                (first, *_), usage = await chat(client, self.endpoint, messages)
            except NoAnswerError:
                if "text" not in record:
                    raise
                break  # the repair failed; what was there before is judged as it is
            record["requests"] += 1
            record["prompt_tokens"] += usage.get("prompt_tokens") or 0
            record["completion_tokens"] += usage.get("completion_tokens") or 0
            record["uncounted"] += not usage
            text = first.text(self.prompt.form)
            verdict = job.check(text)
            record["text"] = text
            if round_ == self.repairs or not self.prompt.may_repair(verdict):
                break
            record.setdefault("first", text)
            record.setdefault("first_reasons", list(dict.fromkeys(verdict.reasons)))
            messages = [*messages, *self.prompt.repair_messages(text, verdict)]
        return record
