"""The teacher writer: a large model behind an OpenAI-compatible endpoint writes the rationales.

A text with faults is sent back to the teacher with a description of the faults.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx2

from vlmface.infer.chat import chat
from vlmface.infer.endpoint import Endpoint, NoAnswerError
from vlmface.infer.jobs import run_jobs
from vlmface.rationale.teacher_prompts import TeacherPrompt
from vlmface.rationale.verify import Verdict
from vlmface.utils.jsonl_journal import Journal


@dataclass(frozen=True)
class Job:
    """One face: its id, the messages to send, and the check of the reply."""

    id: str
    messages: list[dict[str, Any]]
    check: Callable[[str], Verdict]


class Teacher:
    """Writes a rationale for each job.

    A record of the journal is {"id", "text", "requests", "prompt_tokens", "completion_tokens",
    "requests_without_usage"}, and if the first text had faults and was retried, "first" and
    "first_reasons".

    Args:
        endpoint: The teacher's server.
        prompt: What it is sent.
        repairs: How often a text with faults is retried.

    Attributes:
        unanswered: {id: cause} of the faces without an answer, which have no record.
    """

    def __init__(self, endpoint: Endpoint, prompt: TeacherPrompt, repairs: int = 1) -> None:
        endpoint.check()
        self.endpoint = endpoint
        self.prompt = prompt
        self.repairs = repairs
        self.unanswered: dict[str, str] = {}

    def run(self, jobs: Iterator[Job], journal: Journal, on_done: Callable[[], Any]) -> None:
        """Run jobs and record them.

        Args:
            jobs: See `run_jobs`.
            journal: For the records.
            on_done: Called after each job.
        """
        self.unanswered = run_jobs(self.endpoint, jobs, self._write, journal, on_done)

    async def _write(self, client: httpx2.AsyncClient, job: Job) -> dict[str, Any]:
        """The record of one face, whose text is retried up to `repairs` times."""
        record: dict[str, Any] = {
            "id": job.id,
            "requests": 0,
            "prompt_tokens": 0,
            "completion_tokens": 0,
            "requests_without_usage": 0,
        }
        messages = job.messages
        for attempt in range(self.repairs + 1):
            try:
                (first, *_), usage = await chat(client, self.endpoint, messages)
            except NoAnswerError:
                if "text" not in record:
                    raise
                break  # the repair failed: the earlier text is judged instead
            record["requests"] += 1
            record["prompt_tokens"] += usage.get("prompt_tokens") or 0
            record["completion_tokens"] += usage.get("completion_tokens") or 0
            record["requests_without_usage"] += not usage
            text = first.text(self.prompt.format)
            verdict = job.check(text)
            record["text"] = text
            if attempt == self.repairs or not self.prompt.may_repair(verdict):
                break
            record.setdefault("first", text)
            record.setdefault("first_reasons", list(dict.fromkeys(verdict.reasons)))
            messages = [*messages, *self.prompt.repair_messages(text, verdict)]
        return record
