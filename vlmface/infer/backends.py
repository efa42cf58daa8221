"""Where a `Predictor` gets its predictions from: a model in this process, or a server."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator, Sequence
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from vlmface.errors import UserError
from vlmface.infer.batcher import DynamicBatcher
from vlmface.infer.endpoint import NoAnswerError, open_client
from vlmface.infer.local import LocalModel
from vlmface.infer.prediction import Prediction
from vlmface.prompts import Prompt, PromptLike

if TYPE_CHECKING:
    import httpx2

    from vlmface.infer.clip import ClipModel
    from vlmface.infer.face_views import FaceView
    from vlmface.infer.remote import RemoteModel

BATCH_SIZE = 16
MAX_QUEUE = 64  # requests for a model in this process that are queued at once

T = TypeVar("T")


class Backend(Protocol):
    """A source of predictions. It receives the views of faces, with the evidence that a prompt may
    contain."""

    @property
    def prompts(self) -> Sequence[PromptLike]: ...

    def predict(
        self, prompt: Any, views: Sequence[FaceView], batch_size: int
    ) -> Sequence[Prediction | NoAnswerError]: ...

    async def apredict(self, prompt: Any, view: FaceView) -> Prediction: ...

    def stream(self, prompt: Any, view: FaceView) -> Iterator[str | Prediction]:
        """Yields the text generated so far, then the final Prediction."""
        ...

    def close(self) -> None: ...


class LocalBackend:
    """A model in this process, which runs one batch at a time."""

    def __init__(self, model: LocalModel | ClipModel, prompts: Sequence[PromptLike]) -> None:
        self.model, self.prompts = model, list(prompts)
        self._model_lock = threading.Lock()
        self._batcher: DynamicBatcher[FaceView, Prediction] = DynamicBatcher(
            self.predict, batch_size=BATCH_SIZE, max_queue=MAX_QUEUE
        )

    def predict(
        self, prompt: Any, views: Sequence[FaceView], batch_size: int = BATCH_SIZE
    ) -> list[Prediction]:
        images = [view.images for view in views]
        with self._model_lock:
            model = self.model.with_prompt(prompt)
            if isinstance(model, LocalModel):
                evidence = [view.evidence for view in views]
                return model.predict(
                    images, batch_size=batch_size, preprocessed=True, evidence=evidence
                )
            return model.predict(images, batch_size=batch_size, preprocessed=True)

    async def apredict(self, prompt: Any, view: FaceView) -> Prediction:
        return await self._batcher.submit_async(prompt, view)

    def stream(self, prompt: Any, view: FaceView) -> Iterator[str | Prediction]:
        """Yields the text generated so far, then the final Prediction.

        The generating thread holds the lock, so that the model is free once the text is complete,
        even if the caller has stopped reading.
        """
        pieces: SimpleQueue[str | Prediction | BaseException] = SimpleQueue()

        def generate() -> None:
            try:
                with self._model_lock:
                    for piece in self._stream(prompt, view):
                        pieces.put(piece)
            except BaseException as error:
                pieces.put(error)

        threading.Thread(target=generate, name="stream", daemon=True).start()
        yield from _until_prediction(pieces)

    def _stream(self, prompt: Any, view: FaceView) -> Iterator[str | Prediction]:
        model = self.model.with_prompt(prompt)
        if isinstance(model, LocalModel):
            return model.stream(view.images, view.evidence)
        return model.stream(view.images)

    def close(self) -> None:
        self._batcher.close()


class RemoteBackend:
    """A model behind an OpenAI-compatible server.

    Requests run on an event loop of the backend's own, so that threads and other event loops share
    one pool of connections.
    """

    def __init__(self, model: RemoteModel) -> None:
        self.model, self.prompts = model, list(model.prompts)
        endpoint = model.endpoint
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="remote", daemon=True)
        self._thread.start()

        async def connect() -> tuple[httpx2.AsyncClient, asyncio.Semaphore]:
            return open_client(endpoint), asyncio.Semaphore(endpoint.concurrency)

        self._client, self._request_slots = self._wait(connect())
        self._streams: set[asyncio.Task[None]] = set()

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _request(self, prompt: Prompt, view: FaceView) -> Prediction:
        async with self._request_slots:
            return await self.model.predict(self._client, prompt, view.images, view.evidence)

    def predict(
        self, prompt: Prompt, views: Sequence[FaceView], batch_size: int = BATCH_SIZE
    ) -> list[Prediction | NoAnswerError]:
        """A prediction for each view, or the error of a view without an answer.

        `batch_size` has no effect: servers form their own batches.
        """

        async def request(view: FaceView) -> Prediction | NoAnswerError:
            try:
                return await self._request(prompt, view)
            except NoAnswerError as error:
                return error

        async def request_all() -> list[Prediction | NoAnswerError]:
            return await asyncio.gather(*map(request, views))

        return self._wait(request_all())

    async def apredict(self, prompt: Prompt, view: FaceView) -> Prediction:
        future = asyncio.run_coroutine_threadsafe(self._request(prompt, view), self._loop)
        return await asyncio.wrap_future(future)

    def stream(self, prompt: Prompt, view: FaceView) -> Iterator[str | Prediction]:
        """Yields the text received so far, then the final Prediction.

        The reply is read to its end even if the caller reads slowly, so that it does not block a
        connection; it is cancelled when the caller stops.
        """
        pieces: SimpleQueue[str | Prediction | BaseException] = SimpleQueue()

        async def receive() -> None:
            task = asyncio.current_task()
            assert task is not None
            self._streams.add(task)
            task.add_done_callback(self._streams.discard)
            try:
                async with self._request_slots:
                    stream = self.model.stream(self._client, prompt, view.images, view.evidence)
                    async for piece in stream:
                        pieces.put(piece)
            except asyncio.CancelledError:
                pieces.put(UserError("the predictor was closed while it answered: load it again"))
                raise
            except BaseException as error:
                pieces.put(error)

        receiving = asyncio.run_coroutine_threadsafe(receive(), self._loop)
        try:
            yield from _until_prediction(pieces)
        finally:
            receiving.cancel()

    def close(self) -> None:
        async def finish() -> None:
            for task in self._streams:  # their callers may have stopped reading
                task.cancel()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            await asyncio.gather(*others, return_exceptions=True)
            await self._client.aclose()

        self._wait(finish())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _until_prediction(
    pieces: SimpleQueue[str | Prediction | BaseException],
) -> Iterator[str | Prediction]:
    """The queued pieces up to and including the Prediction. Raises a queued exception."""
    while True:
        piece = pieces.get()
        if isinstance(piece, BaseException):
            raise piece
        yield piece
        if isinstance(piece, Prediction):
            return
