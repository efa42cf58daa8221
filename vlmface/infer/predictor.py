"""Faces in, reports out: one way to ask, whoever answers.

    predictor = Predictor.load("runs/sft_cot")                                # in this process
    predictor = Predictor.load("http://localhost:8000/v1", run="runs/sft_cot")  # a server
    for report in predictor.predict(images):
        print(report.emotion, report.rationale)

What a run was trained with (prompts, crop, limits) is read from its manifest in both cases.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from vlmface import manifest
from vlmface.data import crops, detect
from vlmface.errors import UserError
from vlmface.infer import models
from vlmface.infer.batcher import Batcher
from vlmface.infer.endpoint import Endpoint, NoAnswerError, is_url
from vlmface.infer.local import LocalModel, Prediction
from vlmface.infer.report import FaceReport
from vlmface.infer.server import Server, server_of
from vlmface.prompts import Prompt, Question

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from vlmface.encode import Shown
    from vlmface.infer.clip import ClipModel

BATCH_SIZE = 16
MOST_WAITING = 64  # who ask a model in this process at once and are not answered yet
# A face in a photograph, for a model that was trained on portraits and takes pictures whole: a face
# fills as much as in synth.
PORTRAIT = crops.Crop(size=224, margin=0.12)

T = TypeVar("T")


class Backend(Protocol):
    """Who answers. Pictures are as the model shall see them."""

    @property
    def prompts(self) -> Sequence[Question]: ...

    def answer(
        self, prompt: Any, images: Sequence[Shown], batch_size: int
    ) -> Sequence[Prediction | NoAnswerError]: ...

    async def answer_one(self, prompt: Any, image: Shown) -> Prediction: ...

    def stream(self, prompt: Any, image: Shown) -> Iterator[str | Prediction]:
        """The text as far as it is written, again and again, then the whole answer."""
        ...

    def close(self) -> None: ...


class Predictor:
    """A backend with the questions that it was trained to answer. Close it, or use it in a `with`
    block. May be used from several threads and event loops at once."""

    def __init__(
        self, backend: Backend, *, views: crops.Views = (), frames: int = 1,
        limits: str | None = None, aus: Sequence[int] = (), name: str = "",
    ) -> None:  # fmt: skip
        self.backend, self.views, self.frames = backend, views, frames
        self.limits, self.name = limits, name
        self.aus = tuple(aus)  # that it may name; none: not known
        # Of several prompts about one field the first.
        self.questions = {one.space.field: one for one in reversed(backend.prompts)}
        self.tasks: tuple[str, ...] = tuple(dict.fromkeys(p.space.field for p in backend.prompts))
        self._detector: detect.Detector | None = None
        self._lock = threading.Lock()

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        run: str | Path | None = None,
        prompt: str | Path | Prompt | None = None,
        served: str | None = None,
        api_key_env: str | None = None,
        max_new_tokens: int | None = None,
        concurrency: int = 8,
        timeout_s: float = 120.0,
        attempts: int = 6,
        constrained: bool = False,
        request: Mapping[str, Any] | None = None,
    ) -> Predictor:
        """`model`: a run folder, a bare base model (with a `prompt`), or the URL of an
        OpenAI-compatible server with the `run` that it serves or a `prompt`; `served` names the
        model there if it has several, `api_key_env` the environment variable with its key.
        `concurrency`, `timeout_s`, `attempts` are about requests to it; `constrained`: it is held
        to the prompt's form and labels; `request` changes fields of the requests, such as
        {"temperature": None, "max_completion_tokens": 256} (None removes one). Raises UserError."""
        if not is_url(model):
            for name, value in (
                ("run", run),
                ("served", served),
                ("api_key_env", api_key_env),
                ("constrained", constrained or None),
                ("request", request or None),
            ):
                if value is not None:
                    raise UserError(
                        f"{name} is {value}, but {model} is no server's URL: leave it out"
                    )
            local = models.load(model, prompt=prompt, max_new_tokens=max_new_tokens)
            found = local.manifest
            backend: Backend = Local(local, [local.prompt] if prompt is not None else local.prompts)
        else:
            endpoint = Endpoint(
                str(model), served or "", key_env=api_key_env, concurrency=concurrency,
                timeout_s=timeout_s, attempts=attempts, request=dict(request or {}),
            )  # fmt: skip
            found = None if run is None else manifest.load(run)[0]
            backend = Served(server_of(endpoint, run, prompt, max_new_tokens, constrained))
        return cls(
            backend,
            views=crops.parse(found.crop) if found else (),
            frames=found.frames if found else 1,
            limits=found.limits if found else None,
            aus=found.au_set if found else (),
            name=Path(model).name if run is None else Path(run).name,
        )

    def __enter__(self) -> Predictor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Finish what was begun and stop the threads."""
        self.backend.close()
        if self._detector is not None:
            self._detector.__exit__(None, None, None)
            self._detector = None

    # --- faces ------------------------------------------------------------------------------------

    def faces(self, image: Image.Image) -> list[detect.Box]:
        """The boxes of all faces in an RGB picture, the largest first. Raises UserError if
        vlmface[detect] is not installed."""
        return self._finder().faces(image)

    def _finder(self) -> detect.Detector:
        with self._lock:
            self._detector = self._detector or detect.Detector()
        return self._detector

    def _mesh(self, image: Image.Image) -> np.ndarray | None:
        return self._finder().mesh(image)

    @property
    def looks(self) -> bool:
        """Whether a face is looked for where no box is given: the run was trained on what a
        detector found, or is shown a face beside the scene around it."""
        return crops.asks_for_face(self.views)

    def shown(
        self, image: Image.Image | Sequence[Image.Image], box: Sequence[float] | None
    ) -> tuple[Shown, bool | None]:
        """(the picture, or several views of it, as the model sees it; whether a face was found in
        it, None if none was looked for). A box that cannot be one is none, and no face is found.
        A list is a clip, of which as many frames are shown as the model takes; a face is looked for
        in each, and found if it is in one."""
        if isinstance(image, Sequence):
            return self.shown_clip(image, None if box is None else [box] * len(image))
        if box is not None:
            face = crops.usable(box, image.size)
            views = self.views or (PORTRAIT,)
            return crops.views_of(image, face, views, self.frames, self._mesh), face is not None
        face = next(iter(self.faces(image)), None) if self.looks else None
        found = face is not None if self.looks else None
        return crops.views_of(image, face, self.views, self.frames, self._mesh), found

    def shown_clip(
        self,
        frames: Sequence[Image.Image],
        boxes: Sequence[Sequence[float] | None] | None = None,
    ) -> tuple[Shown, bool | None]:
        """`shown` of a clip. `boxes`: where the face is in each frame, None in one without a face;
        without them faces are looked for as in a picture. Raises UserError for no frame."""
        from vlmface.data.clips import middles

        if not frames:
            raise UserError("a clip without frames was given: a clip needs one frame at least")
        chosen = middles(len(frames), self.frames)
        pictures = [frames[i] for i in chosen]
        faces: list[Any] = [None] * len(chosen)
        if boxes is not None:
            faces = [crops.usable(boxes[i], frames[i].size) for i in chosen]
        elif self.looks:
            faces = [next(iter(self.faces(picture)), None) for picture in pictures]
        views = self.views or ((PORTRAIT,) if boxes is not None else ())
        asked = boxes is not None or self.looks
        found = any(face is not None for face in faces) if asked else None
        return crops.views_of_clip(pictures, faces, views, self._mesh), found

    # --- asking -----------------------------------------------------------------------------------

    def predict(
        self,
        images: Sequence[Image.Image | Sequence[Image.Image]],
        tasks: Sequence[str] | None = None,
        *,
        boxes: Sequence[Sequence[float] | None] | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> list[FaceReport]:
        """A report on each RGB picture, or clip (a list of its frames, in order): on the face at
        its box (see `faces`), or on the picture whole where there is none. Of a run with several
        views, all are made of the one picture; without a box its largest face is looked for.
        `tasks`: some of `self.tasks`, default all. Raises UserError."""
        found = self.try_predict(images, tasks, boxes=boxes, batch_size=batch_size)
        for report in found:
            if isinstance(report, NoAnswerError):
                raise report
        return [report for report in found if isinstance(report, FaceReport)]

    def try_predict(
        self,
        images: Sequence[Image.Image | Sequence[Image.Image]],
        tasks: Sequence[str] | None = None,
        *,
        boxes: Sequence[Sequence[float] | None] | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> list[FaceReport | NoAnswerError]:
        """`predict`, with an error in the place of the report on each picture that a server gave no
        answer for: the others are not lost with it."""
        asked = self._asked(tasks)
        where = list(boxes) if boxes is not None else [None] * len(images)
        seen = [self.shown(image, box) for image, box in zip(images, where, strict=True)]
        pictures = [picture for picture, _ in seen]
        answers = {
            task: self.backend.answer(self.questions[task], pictures, batch_size) for task in asked
        }
        reports: list[FaceReport | NoAnswerError] = []
        for i, ((_, found), box) in enumerate(zip(seen, where, strict=True)):
            given: dict[str, Prediction] = {}
            for task, said in answers.items():
                if isinstance(answer := said[i], NoAnswerError):
                    reports.append(answer)
                    break
                given[task] = answer
            else:
                reports.append(self._report(given, box, found))
        return reports

    def predict_clip(
        self,
        frames: Sequence[Image.Image],
        boxes: Sequence[Sequence[float] | None],
        tasks: Sequence[str] | None = None,
    ) -> FaceReport:
        """`predict` of one clip whose face is known frame by frame, as `shown_clip` has it. The
        report has no box, as the face is elsewhere in each frame."""
        picture, found = self.shown_clip(frames, boxes)
        answers: dict[str, Prediction] = {}
        for task in self._asked(tasks):
            (answer,) = self.backend.answer(self.questions[task], [picture], 1)
            if isinstance(answer, NoAnswerError):
                raise answer
            answers[task] = answer
        return self._report(answers, None, found)

    async def apredict(
        self,
        image: Image.Image,
        tasks: Sequence[str] | None = None,
        *,
        box: Sequence[float] | None = None,
    ) -> FaceReport:
        """`predict` of one picture, for many who ask at once: a model in this process answers
        together those who wait, a server is asked `concurrency` at a time. Raises BusyError if too
        many wait, NoAnswerError if a server has none, UserError."""
        asked = self._asked(tasks)
        picture, found = await asyncio.to_thread(self.shown, image, box)
        said = await asyncio.gather(
            *(self.backend.answer_one(self.questions[task], picture) for task in asked)
        )
        return self._report(dict(zip(asked, said, strict=True)), box, found)

    def stream(
        self, image: Image.Image, task: str | None = None, *, box: Sequence[float] | None = None
    ) -> Iterator[str | FaceReport]:
        """The answer to one task as far as it is written, again and again, and at the end the
        report. `task` defaults to the first."""
        (name,) = self._asked([task] if task else self.tasks[:1])
        picture, found = self.shown(image, box)
        for piece in self.backend.stream(self.questions[name], picture):
            yield piece if isinstance(piece, str) else self._report({name: piece}, box, found)

    def _asked(self, tasks: Sequence[str] | None) -> list[str]:
        asked = list(self.tasks if tasks is None else dict.fromkeys(tasks))
        if odd := [task for task in asked if task not in self.tasks]:
            raise UserError(
                f"{self.name or 'this model'} was not trained to answer {', '.join(odd)}: ask for "
                f"{', '.join(self.tasks)}"
            )
        if not asked:
            raise UserError(f"nothing is asked: ask for {', '.join(self.tasks)}")
        return asked

    def _report(
        self, answers: dict[str, Prediction], box: Sequence[float] | None, found: bool | None
    ) -> FaceReport:
        place = None if box is None else (box[0], box[1], box[2], box[3])
        asked = {task: self.questions[task].id for task in answers}
        return FaceReport(answers, asked, place, found, self.limits, self.views)


# --- who answers ----------------------------------------------------------------------------------


class Local:
    """A model in this process. One batch is answered at a time."""

    def __init__(self, model: LocalModel | ClipModel, asked: Sequence[Question]) -> None:
        self.model, self.prompts = model, list(asked)
        self._turn = threading.Lock()
        self._batcher: Batcher[Shown, Prediction] = Batcher(
            self.answer, batch_size=BATCH_SIZE, most_waiting=MOST_WAITING
        )

    def answer(
        self, prompt: Any, images: Sequence[Shown], batch_size: int = BATCH_SIZE
    ) -> list[Prediction]:
        with self._turn:
            return self.model.asking(prompt).predict(images, batch_size=batch_size, cut_out=True)

    async def answer_one(self, prompt: Any, image: Shown) -> Prediction:
        return await self._batcher.ask(prompt, image)

    def stream(self, prompt: Any, image: Shown) -> Iterator[str | Prediction]:
        with self._turn:
            yield from self.model.asking(prompt).stream(image)

    def close(self) -> None:
        self._batcher.close()


class Served:
    """A model behind an OpenAI-compatible server. Requests run in an event loop of their own, so
    that threads and other loops share one pool of connections."""

    def __init__(self, server: Server) -> None:
        import httpx2

        self.server, self.prompts = server, list(server.prompts)
        endpoint = server.endpoint
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="served", daemon=True)
        self._thread.start()

        async def connect() -> tuple[httpx2.AsyncClient, asyncio.Semaphore]:
            limits = httpx2.Limits(max_connections=endpoint.concurrency)
            client = httpx2.AsyncClient(
                headers=endpoint.headers(), timeout=endpoint.timeout_s, limits=limits
            )
            return client, asyncio.Semaphore(endpoint.concurrency)

        self._client, self._turns = self._wait(connect())

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _one(self, prompt: Prompt, image: Shown) -> Prediction:
        async with self._turns:
            return await self.server.answer(self._client, prompt, image)

    def answer(
        self, prompt: Prompt, images: Sequence[Shown], batch_size: int = BATCH_SIZE
    ) -> list[Prediction | NoAnswerError]:
        """`batch_size` means nothing to a server, which makes its own. A picture that it gives no
        answer for has an error in its place."""

        async def one(image: Shown) -> Prediction | NoAnswerError:
            try:
                return await self._one(prompt, image)
            except NoAnswerError as error:
                return error

        async def all_() -> list[Prediction | NoAnswerError]:
            return await asyncio.gather(*map(one, images))

        return self._wait(all_())

    async def answer_one(self, prompt: Prompt, image: Shown) -> Prediction:
        future = asyncio.run_coroutine_threadsafe(self._one(prompt, image), self._loop)
        return await asyncio.wrap_future(future)

    def stream(self, prompt: Prompt, image: Shown) -> Iterator[str | Prediction]:
        pieces = self.server.stream(self._client, prompt, image)
        while True:
            try:
                yield self._wait(anext(pieces))  # type: ignore[arg-type]
            except StopAsyncIteration:
                return

    def close(self) -> None:
        self._wait(self._client.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
