"""Dynamic batching: requests that arrive while a model is busy are answered in one batch."""

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
    """The queue is full, or the batcher has been closed."""


class DynamicBatcher(Generic[Job, Result]):
    """Runs queued jobs in batches on one worker thread.

    A batch holds the jobs of one kind that were queued while the batch before it ran. There is no
    delay to fill a batch: a single job runs at once.

    Args:
        run_batch: Called with a kind and the jobs of that kind; returns a result for each job.
        batch_size: The most jobs of a batch.
        max_queue: The most jobs that may be queued.
    """

    def __init__(
        self,
        run_batch: Callable[[Any, list[Job]], Sequence[Result]],
        *,
        batch_size: int,
        max_queue: int,
    ) -> None:
        self.run_batch, self.batch_size, self.max_queue = run_batch, batch_size, max_queue
        self._queue: deque[tuple[Hashable, Job, Future[Result]]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self._thread.start()

    async def submit_async(self, kind: Hashable, job: Job) -> Result:
        """Queue a job and wait for its result. A job that is cancelled while queued never runs.

        Args:
            kind: Only jobs of equal kind share a batch.
            job: The input of `run_batch`.

        Returns:
            The job's result.

        Raises:
            QueueFullError: At once, without waiting for room.
            Exception: Whatever `run_batch` raises for this job.
        """
        return await asyncio.wrap_future(self.submit(kind, job))

    def submit(self, kind: Hashable, job: Job) -> Future[Result]:
        """Queue a job; see `submit_async`."""
        future: Future[Result] = Future()
        with self._changed:
            if self._closed:
                raise QueueFullError("it is shutting down")
            if len(self._queue) >= self.max_queue:
                raise QueueFullError(f"{len(self._queue)} wait already")
            self._queue.append((kind, job, future))
            self._changed.notify()
        return future

    def close(self) -> None:
        """Run the queued jobs, then stop; new jobs are rejected."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _next_batch(self) -> list[tuple[Hashable, Job, Future[Result]]]:
        """The oldest job and others of its kind; an empty list once closed and drained."""
        with self._changed:
            while True:
                while not self._queue and not self._closed:
                    self._changed.wait()
                batch: list[tuple[Hashable, Job, Future[Result]]] = []
                remaining: deque[tuple[Hashable, Job, Future[Result]]] = deque()
                for entry in self._queue:
                    same_kind = not batch or entry[0] == batch[0][0]
                    if len(batch) < self.batch_size and same_kind:
                        if entry[2].set_running_or_notify_cancel():
                            batch.append(entry)
                    else:
                        remaining.append(entry)
                self._queue = remaining
                if batch or self._closed:
                    return batch

    def _run(self) -> None:
        while batch := self._next_batch():
            try:
                self._complete(batch)
            except Exception as error:
                if len(batch) == 1:
                    batch[0][2].set_exception(error)
                    continue
                for entry in batch:  # one job may have caused the error: run each separately
                    try:
                        self._complete([entry])
                    except Exception as job_error:
                        entry[2].set_exception(job_error)

    def _complete(self, batch: Sequence[tuple[Hashable, Job, Future[Result]]]) -> None:
        results = self.run_batch(batch[0][0], [job for _, job, _ in batch])
        for (_, _, future), result in zip(batch, results, strict=True):
            future.set_result(result)
