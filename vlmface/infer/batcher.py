"""Many who ask one model: those who wait while it is busy are answered together."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


class QueueFullError(Exception):
    """So many wait already that another one would wait too long."""


class DynamicBatcher(Generic[Job, Result]):
    """Calls `work` (kind, jobs of that kind) -> results, in a thread of its own, with up to
    `batch_size` jobs that came in while it was at work. `most_waiting` jobs may wait.

    Nobody waits for a batch to fill: a job that comes alone is done alone.
    """

    def __init__(
        self,
        work: Callable[[Any, list[Job]], Sequence[Result]],
        *,
        batch_size: int,
        most_waiting: int,
    ) -> None:
        self.work, self.batch_size, self.most_waiting = work, batch_size, most_waiting
        self._jobs: deque[tuple[Hashable, Job, Future[Result]]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        return len(self._jobs)

    async def ask(self, kind: Hashable, job: Job) -> Result:
        """The job's result. Raises BusyError at once if too many wait, and what `work` raises. Who
        is cancelled while waiting costs nothing."""
        return await asyncio.wrap_future(self.submit(kind, job))

    def submit(self, kind: Hashable, job: Job) -> Future[Result]:
        future: Future[Result] = Future()
        with self._changed:
            if self._closed:
                raise QueueFullError("it is shutting down")
            if len(self._jobs) >= self.most_waiting:
                raise QueueFullError(f"{len(self._jobs)} wait already")
            self._jobs.append((kind, job, future))
            self._changed.notify()
        return future

    def close(self) -> None:
        """Finish what waits, take nothing more."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _next(self) -> list[tuple[Hashable, Job, Future[Result]]]:
        """The first who waits and others of its kind; [] at the end."""
        with self._changed:
            while True:
                while not self._jobs and not self._closed:
                    self._changed.wait()
                chosen: list[tuple[Hashable, Job, Future[Result]]] = []
                kept: deque[tuple[Hashable, Job, Future[Result]]] = deque()
                for entry in self._jobs:
                    mine = not chosen or entry[0] == chosen[0][0]
                    if len(chosen) < self.batch_size and mine:
                        if entry[2].set_running_or_notify_cancel():
                            chosen.append(entry)
                    else:
                        kept.append(entry)
                self._jobs = kept
                if chosen or self._closed:
                    return chosen

    def _run(self) -> None:
        while batch := self._next():
            try:
                self._do(batch)
            except Exception as error:
                if len(batch) == 1:
                    batch[0][2].set_exception(error)
                    continue
                for entry in batch:  # one of them may be at fault, the others are not
                    try:
                        self._do([entry])
                    except Exception as own:
                        entry[2].set_exception(own)

    def _do(self, batch: Sequence[tuple[Hashable, Job, Future[Result]]]) -> None:
        results = self.work(batch[0][0], [job for _, job, _ in batch])
        for (_, _, future), result in zip(batch, results, strict=True):
            future.set_result(result)
