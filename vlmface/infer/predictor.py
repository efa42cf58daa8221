"""Faces in, reports out: one way to ask, whoever answers.

    predictor = Predictor.load("runs/sft_cot")                                # in this process
    predictor = Predictor.load("http://localhost:8000/v1", run="runs/sft_cot")  # a server
    for report in predictor.predict(images):
        print(report.emotion, report.rationale)

What a run was trained with (prompts, crop, limits) is read from its manifest in both cases.
What it is shown of a picture is decided in `face_views`.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import os
import threading
import warnings
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, Protocol, TypeAlias, TypeVar, overload

from vlmface import manifest
from vlmface.answers import Answer
from vlmface.data import crops, detect
from vlmface.errors import UserError
from vlmface.infer import loading
from vlmface.infer.batcher import DynamicBatcher
from vlmface.infer.endpoint import Endpoint, NoAnswerError, is_url
from vlmface.infer.face_report import FaceReport
from vlmface.infer.face_views import (
    FACES,
    FaceFinder,
    FaceView,
    Viewpoint,
    clip_view,
    image_views,
    parse_boxes,
)
from vlmface.infer.local import LocalModel, Prediction
from vlmface.infer.server import ServedModel, open_server
from vlmface.prompts import Prompt, Question
from vlmface.utils import image_conversion

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image

    from vlmface.infer.clip import ClipModel
    from vlmface.utils.images import ImageOrImages

BATCH_SIZE = 16
MAX_QUEUE = 64  # who ask a model in this process at once and are not answered yet
MAX_OPEN_IMAGES = 64  # pictures of a call that are in memory at once
# Of a picture without a face: nothing that could be read as an answer.
NOT_ASKED = Prediction("", Answer(None, (), "none", ""), None, 0.0, False)
Picture: TypeAlias = (
    "str | os.PathLike[str] | bytes | BinaryIO | Image.Image | np.ndarray | torch.Tensor"
)

T = TypeVar("T")


class Backend(Protocol):
    """Who answers. Pictures are as the model shall see them."""

    @property
    def prompts(self) -> Sequence[Question]: ...

    def answer(
        self, prompt: Any, images: Sequence[ImageOrImages], batch_size: int
    ) -> Sequence[Prediction | NoAnswerError]: ...

    async def answer_one(self, prompt: Any, image: ImageOrImages) -> Prediction: ...

    def stream(self, prompt: Any, image: ImageOrImages) -> Iterator[str | Prediction]:
        """The text as far as it is written, again and again, then the whole answer."""
        ...

    def close(self) -> None: ...


class Predictor:
    """A backend with the questions that it was trained to answer. Close it, or use it in a `with`
    block. May be used from several threads and event loops at once, also inside a running one."""

    def __init__(
        self,
        backend: Backend,
        *,
        viewpoint: Viewpoint | None = None,
        limits: str | None = None,
        aus: Sequence[int] = (),
        name: str = "",
    ) -> None:
        self.backend, self.viewpoint = backend, viewpoint or Viewpoint()
        self.limits, self.name = limits, name
        self.aus = tuple(aus)  # that it may name; none: not known
        # Of several prompts about one field the first.
        self.questions = {one.space.field: one for one in reversed(backend.prompts)}
        self.tasks: tuple[str, ...] = tuple(dict.fromkeys(p.space.field for p in backend.prompts))
        self._detector: detect.Detector | None = None
        self._lock = threading.Lock()
        self._closed = False

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
            local = loading.load(model, prompt=prompt, max_new_tokens=max_new_tokens)
            found = local.manifest
            backend: Backend = LocalBackend(
                local, [local.prompt] if prompt is not None else local.prompts
            )
        else:
            endpoint = Endpoint(
                str(model),
                served or "",
                key_env=api_key_env,
                concurrency=concurrency,
                timeout_s=timeout_s,
                attempts=attempts,
                request=dict(request or {}),
            )
            found = None if run is None else manifest.load(run)[0]
            backend = RemoteBackend(open_server(endpoint, run, prompt, max_new_tokens, constrained))
        return cls(
            backend,
            viewpoint=Viewpoint.of(found),
            limits=found.limits if found else None,
            aus=found.au_set if found else (),
            name=Path(model).name if run is None else Path(run).name,
        )

    def __enter__(self) -> Predictor:
        self._check_open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Finish what was begun and stop the threads. Closing again does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            detector, self._detector = self._detector, None
        self.backend.close()
        if detector is not None:
            detector.__exit__(None, None, None)

    def _check_open(self) -> None:
        if self._closed:
            raise UserError(
                f"the predictor of {self.name or 'this model'} is closed: load it again"
            )

    @property
    def views(self) -> crops.Views:
        return self.viewpoint.views

    @property
    def frames(self) -> int:
        return self.viewpoint.frames

    # --- faces ------------------------------------------------------------------------------------

    def faces(self, image: Any) -> list[detect.Box]:
        """The boxes of all faces in a picture (see `pictures.as_picture`), the largest first, in
        pixels of the upright picture. Raises UserError if vlmface[detect] is not installed."""
        return self._finder().faces(image_conversion.as_picture(image))

    def _finder(self) -> detect.Detector:
        with self._lock:
            self._check_open()
            self._detector = self._detector or detect.Detector()
            return self._detector

    def _mesh(self, image: Image.Image) -> np.ndarray | None:
        return self._finder().mesh(image)

    @property
    def faces_by_default(self) -> str:
        """Which faces of a picture are asked about unless the caller says so: "largest" for a run
        that was trained on faces, if they can be looked for here, otherwise "none"."""
        return "none" if self.faces_note else self.viewpoint.faces

    @functools.cached_property
    def faces_note(self) -> str | None:
        """What to say where faces would be looked for, but cannot be."""
        if self.viewpoint.faces == "none" or (reason := detect.missing()) is None:
            return None
        if any(view.is_shape for view in self.views):
            return None  # without a mesh there is nothing to show, and each picture is an error
        return (
            f"faces are not looked for ({reason}): {self.name or 'this model'} was trained on "
            "faces and is shown each picture as a whole; crop the face first, or give its box"
        )

    def face_views(
        self, image: Any, *, faces: str | None = None, box: Sequence[float] | None = None
    ) -> list[FaceView]:
        """What the model is shown of a picture, or of a clip (a list of its frames): the only place
        where that is decided. Arguments as in `predict`; "all" gives a view for each face."""
        return self._face_views(image, "the picture", faces, box)

    def _face_views(
        self, image: Any, name: str, faces: str | None, box: Sequence[float] | None
    ) -> list[FaceView]:
        self._check_open()
        if faces is None:
            faces = self._default_faces() if box is None else "largest"
        elif faces not in FACES:
            raise UserError(f"faces is {faces!r}: use {', '.join(FACES)}, or leave it out")
        elif box is not None:
            raise UserError(f"faces is {faces}, but there is a box: leave out one of them")
        finder = FaceFinder(self.faces, self._mesh)
        if isinstance(image, list | tuple):
            frames = [
                image_conversion.as_picture(frame, f"frame {number} of {name}")
                for number, frame in enumerate(image, 1)
            ]
            boxes = None if box is None else [box] * len(frames)
            return [clip_view(frames, self.viewpoint, faces, finder, boxes)]
        picture = image_conversion.as_picture(image, name)
        return image_views(picture, self.viewpoint, faces, finder, box)

    def _default_faces(self) -> str:
        if self.faces_note:
            warnings.warn(self.faces_note, stacklevel=5)
        return self.faces_by_default

    # --- asking -----------------------------------------------------------------------------------

    @overload
    def predict(  # type: ignore[overload-overlap]
        self,
        images: Picture,
        tasks: str | Iterable[str] | None = ...,
        *,
        boxes: Any = ...,
        faces: Literal["all"],
        batch_size: int = ...,
    ) -> list[FaceReport]: ...
    @overload
    def predict(  # type: ignore[overload-overlap]
        self,
        images: Picture,
        tasks: str | Iterable[str] | None = ...,
        *,
        boxes: Any = ...,
        faces: str | None = ...,
        batch_size: int = ...,
    ) -> FaceReport: ...
    @overload
    def predict(  # type: ignore[overload-overlap]
        self,
        images: Iterable[Any],
        tasks: str | Iterable[str] | None = ...,
        *,
        boxes: Any = ...,
        faces: Literal["all"],
        batch_size: int = ...,
    ) -> list[list[FaceReport]]: ...
    @overload
    def predict(
        self,
        images: Iterable[Any],
        tasks: str | Iterable[str] | None = ...,
        *,
        boxes: Any = ...,
        faces: str | None = ...,
        batch_size: int = ...,
    ) -> list[FaceReport]: ...
    def predict(
        self,
        images: Any,
        tasks: str | Iterable[str] | None = None,
        *,
        boxes: Any = None,
        faces: str | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> Any:
        """Reports on pictures and clips.

        Args:
            images: One picture, or several: paths, bytes of image files, open files, PIL images,
                numpy arrays, torch tensors (see `pictures.as_picture`). A list or tuple within the
                list is a clip, of its frames in order.
            tasks: One or some of `self.tasks`; all by default.
            boxes: The box of the face in each picture, left, top, right, bottom in pixels of the
                upright picture, or None for a picture that is treated as without boxes.
            faces: "largest": the largest face is looked for and shown as in training; "none": the
                picture is shown as a whole; "all": each face is reported on. By default
                `faces_by_default`.
            batch_size: Faces that a model in this process answers at once.

        Returns:
            A report for each picture; for one picture by itself its report. With `faces` "all", a
            list of reports instead of each report. Where faces are looked for and there is none,
            the report's `face_found` is False and it has no label, unless the model was also
            trained to judge the scene alone.

        Raises:
            UserError: For what is no picture, task, box or choice of faces.
            NoAnswerError: For a server without an answer; see `try_predict`.
        """
        answer = functools.partial(self.answer, batch_size=batch_size)
        return self._predict(images, tasks, boxes, faces, answer)

    def try_predict(
        self,
        images: Any,
        tasks: str | Iterable[str] | None = None,
        *,
        boxes: Any = None,
        faces: str | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> Any:
        """`predict`, with a NoAnswerError in the place of the report on each face that a server
        gave no answer for: the others are not lost with it."""
        answer = functools.partial(self.try_answer, batch_size=batch_size)
        return self._predict(images, tasks, boxes, faces, answer)

    def _predict(
        self,
        images: Any,
        tasks: str | Iterable[str] | None,
        boxes: Any,
        faces: str | None,
        answer: Callable[[Sequence[FaceView], Mapping[str, Question]], Sequence[Any]],
    ) -> Any:
        self._check_open()
        inputs, single = image_conversion.listed(images)
        places = parse_boxes(boxes, len(inputs), single)
        questions = self.questions_of(tasks)
        reports: list[Any] = []
        for start in range(0, len(inputs), MAX_OPEN_IMAGES):
            views = []
            for number in range(start, min(start + MAX_OPEN_IMAGES, len(inputs))):
                name = "the picture" if single else f"picture {number + 1}"
                views.append(self._face_views(inputs[number], name, faces, places[number]))
            answers = iter(answer(list(itertools.chain(*views)), questions))
            groups = [list(itertools.islice(answers, len(group))) for group in views]
            reports += groups if faces == "all" else [group[0] for group in groups]
        return reports[0] if single else reports

    def predict_clip(
        self,
        frames: Sequence[Any],
        boxes: Sequence[Sequence[float] | None],
        tasks: str | Iterable[str] | None = None,
    ) -> FaceReport:
        """`predict` of one clip whose face is known frame by frame, as `clip_view` has it. The
        report has no box, as the face is elsewhere in each frame."""
        self._check_open()
        return self.answer([self.clip_view(frames, boxes)], self.questions_of(tasks))[0]

    def clip_view(self, frames: Sequence[Any], boxes: Sequence[Sequence[float] | None]) -> FaceView:
        """What the model is shown of a clip with the face's box in each frame, None in one without
        a face. Raises UserError for no frame."""
        upright = [image_conversion.as_picture(frame) for frame in frames]
        finder = FaceFinder(self.faces, self._mesh)
        return clip_view(upright, self.viewpoint, "largest", finder, boxes)

    async def apredict(
        self,
        image: Any,
        tasks: str | Iterable[str] | None = None,
        *,
        box: Any = None,
        faces: str | None = None,
    ) -> Any:
        """`predict` of one picture, for many who ask at once: a model in this process answers
        together those who wait, a server is asked `concurrency` at a time. Returns its report, with
        `faces` "all" a list of them. Raises BusyError if too many wait, NoAnswerError if a server
        has none, UserError."""
        questions = self.questions_of(tasks)
        (place,) = parse_boxes(box, 1, True)
        views = await asyncio.to_thread(self.face_views, image, faces=faces, box=place)
        reports = await asyncio.gather(*(self.aanswer(view, questions) for view in views))
        return list(reports) if faces == "all" else reports[0]

    def stream(
        self, image: Any, task: str | None = None, *, box: Any = None, faces: str | None = None
    ) -> Iterator[str | FaceReport]:
        """The answer to one task as far as it is written, again and again, and at the end the
        report. `task` defaults to the first. A reader that stops half-way holds up nobody."""
        questions = self.questions_of(self.tasks[0] if task is None else task)
        (place,) = parse_boxes(box, 1, True)
        if faces == "all":
            raise UserError("faces is all, but a stream is about one face: use largest or none")
        yield from self.stream_view(self.face_views(image, faces=faces, box=place)[0], questions)

    # --- views and questions ----------------------------------------------------------------------

    def questions_of(self, tasks: str | Iterable[str] | None) -> dict[str, Question]:
        """{task: the question about it} of one task, some, or by default all. Raises UserError."""
        if tasks is None:
            names = list(self.tasks)
        else:
            names = list(dict.fromkeys([tasks] if isinstance(tasks, str) else tasks))
        if odd := [str(task) for task in names if task not in self.tasks]:
            raise UserError(
                f"{self.name or 'this model'} was not trained to answer {', '.join(odd)}: ask for "
                f"{', '.join(self.tasks)}"
            )
        if not names:
            raise UserError(f"nothing is asked: ask for {', '.join(self.tasks)}")
        return {task: self.questions[task] for task in names}

    def answer(
        self,
        views: Sequence[FaceView],
        questions: Mapping[str, Question],
        batch_size: int = BATCH_SIZE,
    ) -> list[FaceReport]:
        """A report on each view. Of one without a face nothing is asked (see `_is_shown`). Raises
        NoAnswerError for the first one that a server gave no answer for."""
        reports: list[FaceReport] = []
        for report in self.try_answer(views, questions, batch_size):
            if isinstance(report, NoAnswerError):
                raise report
            reports.append(report)
        return reports

    def try_answer(
        self,
        views: Sequence[FaceView],
        questions: Mapping[str, Question],
        batch_size: int = BATCH_SIZE,
    ) -> list[FaceReport | NoAnswerError]:
        """`answer`, with errors in the place of the reports on views without an answer."""
        self._check_open()
        shown = [view.pictures for view in views if self._is_shown(view)]
        answers = {
            task: iter(self.backend.answer(question, shown, batch_size) if shown else [])
            for task, question in questions.items()
        }
        reports: list[FaceReport | NoAnswerError] = []
        for view in views:
            if not self._is_shown(view):
                reports.append(self._report(view, questions))
                continue
            given = {task: next(each) for task, each in answers.items()}
            errors = [one for one in given.values() if isinstance(one, NoAnswerError)]
            predictions = {k: v for k, v in given.items() if not isinstance(v, NoAnswerError)}
            reports.append(errors[0] if errors else self._report(view, questions, predictions))
        return reports

    async def aanswer(self, view: FaceView, questions: Mapping[str, Question]) -> FaceReport:
        """`answer` of one view, for many who ask at once."""
        self._check_open()
        if not self._is_shown(view):
            return self._report(view, questions)
        predictions = await asyncio.gather(
            *(self.backend.answer_one(question, view.pictures) for question in questions.values())
        )
        return self._report(view, questions, dict(zip(questions, predictions, strict=True)))

    def stream_view(
        self, view: FaceView, questions: Mapping[str, Question]
    ) -> Iterator[str | FaceReport]:
        """`stream` of one view and one question."""
        self._check_open()
        ((task, question),) = questions.items()
        if not self._is_shown(view):
            yield self._report(view, questions)
            return
        for piece in self.backend.stream(question, view.pictures):
            yield piece if isinstance(piece, str) else self._report(view, questions, {task: piece})

    def _is_shown(self, view: FaceView) -> bool:
        """Whether the model is asked about it: where there is no face, only a model that was
        trained to judge the scene alone."""
        return view.face_found is not False or crops.falls_back(self.views)

    def _report(
        self,
        view: FaceView,
        questions: Mapping[str, Question],
        answers: dict[str, Prediction] | None = None,
    ) -> FaceReport:
        """Without answers: nothing was asked."""
        prompts = {task: question.id for task, question in questions.items()}
        return FaceReport(
            answers or dict.fromkeys(questions, NOT_ASKED),
            prompts,
            view.box,
            view.face_found,
            self.limits,
            self.views,
        )


# --- who answers ----------------------------------------------------------------------------------


class LocalBackend:
    """A model in this process. One batch is answered at a time."""

    def __init__(self, model: LocalModel | ClipModel, asked: Sequence[Question]) -> None:
        self.model, self.prompts = model, list(asked)
        self._turn = threading.Lock()
        self._batcher: DynamicBatcher[ImageOrImages, Prediction] = DynamicBatcher(
            self.answer, batch_size=BATCH_SIZE, most_waiting=MAX_QUEUE
        )

    def answer(
        self, prompt: Any, images: Sequence[ImageOrImages], batch_size: int = BATCH_SIZE
    ) -> list[Prediction]:
        with self._turn:
            return self.model.asking(prompt).predict(images, batch_size=batch_size, cut_out=True)

    async def answer_one(self, prompt: Any, image: ImageOrImages) -> Prediction:
        return await self._batcher.ask(prompt, image)

    def stream(self, prompt: Any, image: ImageOrImages) -> Iterator[str | Prediction]:
        """The lock is the writing thread's, so that it is free when the answer is written, whether
        or not anybody has read it."""
        pieces: SimpleQueue[str | Prediction | BaseException] = SimpleQueue()

        def write() -> None:
            try:
                with self._turn:
                    for piece in self.model.asking(prompt).stream(image):
                        pieces.put(piece)
            except BaseException as error:
                pieces.put(error)

        threading.Thread(target=write, name="stream", daemon=True).start()
        yield from _read(pieces)

    def close(self) -> None:
        self._batcher.close()


class RemoteBackend:
    """A model behind an OpenAI-compatible server. Requests run in an event loop of their own, so
    that threads and other loops share one pool of connections."""

    def __init__(self, server: ServedModel) -> None:
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
        self._streams: set[asyncio.Task[None]] = set()

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _one(self, prompt: Prompt, image: ImageOrImages) -> Prediction:
        async with self._turns:
            return await self.server.answer(self._client, prompt, image)

    def answer(
        self, prompt: Prompt, images: Sequence[ImageOrImages], batch_size: int = BATCH_SIZE
    ) -> list[Prediction | NoAnswerError]:
        """`batch_size` means nothing to a server, which makes its own. A picture that it gives no
        answer for has an error in its place."""

        async def one(image: ImageOrImages) -> Prediction | NoAnswerError:
            try:
                return await self._one(prompt, image)
            except NoAnswerError as error:
                return error

        async def all_() -> list[Prediction | NoAnswerError]:
            return await asyncio.gather(*map(one, images))

        return self._wait(all_())

    async def answer_one(self, prompt: Prompt, image: ImageOrImages) -> Prediction:
        future = asyncio.run_coroutine_threadsafe(self._one(prompt, image), self._loop)
        return await asyncio.wrap_future(future)

    def stream(self, prompt: Prompt, image: ImageOrImages) -> Iterator[str | Prediction]:
        """The reply is read to its end whether or not anybody takes the pieces, so that it keeps no
        connection from others; it is broken off when the reader has gone."""
        pieces: SimpleQueue[str | Prediction | BaseException] = SimpleQueue()

        async def receive() -> None:
            task = asyncio.current_task()
            assert task is not None
            self._streams.add(task)
            task.add_done_callback(self._streams.discard)
            try:
                async with self._turns:
                    async for piece in self.server.stream(self._client, prompt, image):
                        pieces.put(piece)
            except asyncio.CancelledError:
                pieces.put(UserError("the predictor was closed while it answered: load it again"))
                raise
            except BaseException as error:
                pieces.put(error)

        received = asyncio.run_coroutine_threadsafe(receive(), self._loop)
        try:
            yield from _read(pieces)
        finally:
            received.cancel()

    def close(self) -> None:
        async def end() -> None:
            for task in self._streams:  # of which nobody may be reading the rest
                task.cancel()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            await asyncio.gather(*others, return_exceptions=True)
            await self._client.aclose()

        self._wait(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _read(pieces: SimpleQueue[str | Prediction | BaseException]) -> Iterator[str | Prediction]:
    """What a thread writes, up to the whole answer."""
    while True:
        piece = pieces.get()
        if isinstance(piece, BaseException):
            raise piece
        yield piece
        if isinstance(piece, Prediction):
            return
