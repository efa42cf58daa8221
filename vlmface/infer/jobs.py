"""Many requests, a number of them at a time.

Finished jobs are written to a journal at once, so that a run that was killed does not repeat them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Protocol, TypeVar

import httpx2

from vlmface.errors import UserError
from vlmface.infer import loops
from vlmface.infer.endpoint import Endpoint, NoAnswerError, open_client
from vlmface.utils.jsonl_journal import Journal

MAX_CONSECUTIVE_FAILURES = 5  # faces in a row without an answer, after which the run stops


class HasId(Protocol):
    """A job: a request about one face."""

    @property
    def id(self) -> str: ...


J = TypeVar("J", bound=HasId)


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
