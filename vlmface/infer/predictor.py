"""The inference API: the same interface for a model in this process and one behind a server.

    predictor = Predictor.load("runs/sft_cot")                                # in this process
    predictor = Predictor.load("http://localhost:8000/v1", run_dir="runs/sft_cot")  # a server
    for report in predictor.predict(images):
        print(report.emotion, report.rationale)

Prompts, views and limits of a run are read from its manifest in both cases. `face_views` decides
which pixels of a picture the model receives.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import os
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    BinaryIO,
    Literal,
    TypeAlias,
    TypedDict,
    Unpack,
    overload,
)

from vlmface import manifest
from vlmface.aus.evidence import EvidenceSource, check_available, picture_index, uses_evidence
from vlmface.data import crops, detect
from vlmface.data.face_search import FaceSearch
from vlmface.errors import UserError
from vlmface.infer import loading
from vlmface.infer.backends import BATCH_SIZE, Backend, LocalBackend, RemoteBackend
from vlmface.infer.endpoint import Endpoint, NoAnswerError, is_url
from vlmface.infer.face_report import FaceReport
from vlmface.infer.face_views import (
    FACES,
    DetectorFunctions,
    FaceView,
    ViewSettings,
    clip_view,
    image_views,
    parse_boxes,
)
from vlmface.infer.prediction import NO_PREDICTION, Prediction
from vlmface.infer.remote import open_remote_model
from vlmface.prompts import Prompt, PromptLike
from vlmface.utils import image_conversion

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image

MAX_OPEN_IMAGES = 64  # images of one call that are decoded at once
Picture: TypeAlias = (
    "str | os.PathLike[str] | bytes | BinaryIO | Image.Image | np.ndarray | torch.Tensor"
)
Tasks: TypeAlias = str | Iterable[str] | None


class ServerOptions(TypedDict, total=False):
    """Options of `Predictor.load` for a server.

    Attributes:
        run_dir: The folder of the run that the server serves.
        served_model_name: The model's name at a server that has several.
        api_key_env: The environment variable that holds the server's API key.
        concurrency: The most requests at once, by default 8.
        timeout_s: Of one request, by default 120 seconds.
        attempts: Tries of one request, by default 6.
        guided_decoding: Constrain the output to the prompt's format and labels.
        request: Fields of each request, such as {"temperature": None, "max_completion_tokens":
            256}; None removes a field.
    """

    run_dir: str | Path | None
    served_model_name: str | None
    api_key_env: str | None
    concurrency: int
    timeout_s: float
    attempts: int
    guided_decoding: bool
    request: Mapping[str, Any] | None


def _check_no_server(model: str | Path, options: ServerOptions) -> None:
    """Raise UserError for an option that has no effect on a model in this process."""
    for name in ("run_dir", "served_model_name", "api_key_env", "guided_decoding", "request"):
        if value := options.get(name):
            raise UserError(
                f"{name} is {value}, but {model} is not the URL of a server: leave it out"
            )


class Predictor:
    """A backend with the prompts that its model was trained to answer.

    Close it, or use it in a `with` block. It can be used from several threads and event loops at
    once, including inside a running loop.

    Args:
        backend: Where predictions come from.
        view_settings: Which part of a picture the model receives; by default the whole picture.
        limitations: What the model must not be used for, from its manifest.
        action_units: The AUs that the model may name; empty if unknown.
        name: Used in messages.
        evidence: "measured", or "withheld": prompts that contain measured movements of the face say
            that they were not measured.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        view_settings: ViewSettings | None = None,
        limitations: str | None = None,
        action_units: Sequence[int] = (),
        name: str = "",
        evidence: str = "measured",
    ) -> None:
        self.backend, self.view_settings = backend, view_settings or ViewSettings()
        self.limitations, self.name = limitations, name
        self.action_units = tuple(action_units)
        # Of several prompts for one task the first.
        self.prompts_by_task = {p.space.field: p for p in reversed(backend.prompts)}
        self.tasks: tuple[str, ...] = tuple(dict.fromkeys(p.space.field for p in backend.prompts))
        self._evidence: EvidenceSource | None = None
        if uses_evidence(backend.prompts):
            if evidence == "measured":
                check_available()
            index = picture_index(self.views, self.frames)
            self._evidence = EvidenceSource(evidence, index)
        elif evidence != "measured":
            raise UserError(
                f"evidence is {evidence}, but no prompt of {name or 'this model'} contains any: "
                "leave it out"
            )
        self._detector: detect.Detector | None = None
        self._lock = threading.Lock()
        self._closed = False

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        prompt: str | Path | Prompt | None = None,
        max_new_tokens: int | None = None,
        evidence: Literal["measured", "withheld"] = "measured",
        **server: Unpack[ServerOptions],
    ) -> Predictor:
        """Load a model, or connect to a server.

        Args:
            model: A run folder, a base model (with `prompt`), or the URL of an OpenAI-compatible
                server (with `run_dir` or `prompt`).
            prompt: Use this prompt only; a base model needs one.
            max_new_tokens: Overrides the limit in the manifest.
            evidence: Of prompts that contain measured movements of the face: "measured" here, or
                "withheld".
            **server: Of a server, see `ServerOptions`.

        Returns:
            An open Predictor.

        Raises:
            UserError: The model cannot be loaded, the server does not respond, an option has no
                effect for this kind of model, or evidence cannot be measured.
        """
        run_dir = server.get("run_dir")
        if not is_url(model):
            _check_no_server(model, server)
            local = loading.load(model, prompt=prompt, max_new_tokens=max_new_tokens)
            run_manifest = local.manifest
            prompts = local.prompts if prompt is None else [local.prompt]
            backend: Backend = LocalBackend(local, prompts)
        else:
            endpoint = Endpoint(
                str(model),
                server.get("served_model_name") or "",
                api_key_env=server.get("api_key_env"),
                concurrency=server.get("concurrency", 8),
                timeout_s=server.get("timeout_s", 120.0),
                attempts=server.get("attempts", 6),
                request=dict(server.get("request") or {}),
            )
            run_manifest = None if run_dir is None else manifest.load(run_dir)[0]
            guided_decoding = server.get("guided_decoding", False)
            remote = open_remote_model(endpoint, run_dir, prompt, max_new_tokens, guided_decoding)
            backend = RemoteBackend(remote)
        try:
            return cls(
                backend,
                view_settings=ViewSettings.from_manifest(run_manifest),
                limitations=run_manifest.limitations if run_manifest else None,
                action_units=run_manifest.au_set if run_manifest else (),
                name=Path(model).name if run_dir is None else Path(run_dir).name,
                evidence=evidence,
            )
        except UserError:
            backend.close()
            raise

    def __enter__(self) -> Predictor:
        self._check_open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Finish running requests and stop the threads. Closing twice has no effect."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            detector, self._detector = self._detector, None
        self.backend.close()
        if detector is not None:
            detector.close()
        if self._evidence is not None:
            self._evidence.close()

    def _check_open(self) -> None:
        if self._closed:
            raise UserError(
                f"the predictor of {self.name or 'this model'} is closed: load it again"
            )

    @property
    def views(self) -> crops.Views:
        """The views of a face that the model receives."""
        return self.view_settings.views

    @property
    def frames(self) -> int:
        """Frames of a clip that the model receives."""
        return self.view_settings.frames

    # --- faces ------------------------------------------------------------------------------------

    def faces(self, image: Any) -> list[detect.Box]:
        """Detect all faces of a picture.

        Args:
            image: A picture, see `image_conversion.as_picture`.

        Returns:
            Their boxes in pixels of the upright picture: that of the face which "largest" stands
            for in `predict`, then the others, the largest first.

        Raises:
            UserError: vlmface[detect] is not installed.
        """
        return self._search(image_conversion.as_picture(image)).boxes

    def _search(self, image: Image.Image) -> FaceSearch:
        return self._open_detector().search(image)

    def _quick_search(self, image: Image.Image) -> FaceSearch:
        return self._open_detector().search(image, quick=True)

    def _open_detector(self) -> detect.Detector:
        with self._lock:
            self._check_open()
            self._detector = self._detector or detect.Detector()
            return self._detector

    def _mesh(self, image: Image.Image) -> np.ndarray | None:
        return self._open_detector().mesh(image)

    @property
    def _face_finder(self) -> DetectorFunctions:
        return DetectorFunctions(self._search, self._quick_search, self._mesh)

    @property
    def default_faces(self) -> str:
        """The default of `faces` in `predict`: "largest" for a run that was trained on faces, if
        the face detector is installed, otherwise "none"."""
        return "none" if self.detector_warning else self.view_settings.faces

    @functools.cached_property
    def detector_warning(self) -> str | None:
        """A warning if the run needs the face detector and it is not installed."""
        if self.view_settings.faces == "none" or (reason := detect.unavailable_reason()) is None:
            return None
        if any(view.is_shape for view in self.views):
            return None  # such a view cannot be drawn without a mesh: each picture is an error
        return (
            f"faces are not detected ({reason}): {self.name or 'this model'} was trained on "
            "faces, but receives each picture as a whole; crop the face first, or give its box"
        )

    def face_views(
        self, image: Any, *, faces: str | None = None, box: Sequence[float] | None = None
    ) -> list[FaceView]:
        """The model's input for a picture, or for a clip (a list of its frames).

        Args:
            image: A picture, or a list or tuple of frames.
            faces: As in `predict`; "all" gives a view for each face.
            box: As in `predict`.

        Returns:
            At least one view.

        Raises:
            UserError: The picture, `faces` or `box` is not valid.
        """
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
        if isinstance(image, list | tuple):
            frames = [
                image_conversion.as_picture(frame, f"frame {number} of {name}")
                for number, frame in enumerate(image, 1)
            ]
            boxes = None if box is None else [box] * len(frames)
            return [clip_view(frames, self.view_settings, faces, self._face_finder, boxes)]
        picture = image_conversion.as_picture(image, name)
        return image_views(picture, self.view_settings, faces, self._face_finder, box)

    def _default_faces(self) -> str:
        if self.detector_warning:
            warnings.warn(self.detector_warning, stacklevel=5)
        return self.default_faces

    # --- predictions ------------------------------------------------------------------------------

    @overload
    def predict(  # type: ignore[overload-overlap]
        self,
        images: Picture,
        tasks: Tasks = ...,
        *,
        boxes: Any = ...,
        faces: Literal["all"],
        batch_size: int = ...,
    ) -> list[FaceReport]: ...
    @overload
    def predict(  # type: ignore[overload-overlap]
        self,
        images: Picture,
        tasks: Tasks = ...,
        *,
        boxes: Any = ...,
        faces: str | None = ...,
        batch_size: int = ...,
    ) -> FaceReport: ...
    @overload
    def predict(  # type: ignore[overload-overlap]
        self,
        images: Iterable[Any],
        tasks: Tasks = ...,
        *,
        boxes: Any = ...,
        faces: Literal["all"],
        batch_size: int = ...,
    ) -> list[list[FaceReport]]: ...
    @overload
    def predict(
        self,
        images: Iterable[Any],
        tasks: Tasks = ...,
        *,
        boxes: Any = ...,
        faces: str | None = ...,
        batch_size: int = ...,
    ) -> list[FaceReport]: ...
    def predict(
        self,
        images: Any,
        tasks: Tasks = None,
        *,
        boxes: Any = None,
        faces: str | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> Any:
        """Predict for pictures and clips.

        Args:
            images: One picture, or several: paths, bytes of image files, open files, PIL images,
                numpy arrays, torch tensors (see `image_conversion.as_picture`). A list or tuple
                within the list is a clip, given as its frames in order.
            tasks: One or some of `self.tasks`; all by default.
            boxes: The box of the face in each picture, left, top, right, bottom in pixels of the
                upright picture, or None for a picture that is treated as without boxes.
            faces: "largest": detect the largest face and crop it as in training; "none": use the
                picture as a whole; "all": report on each face. By default `default_faces`.
            batch_size: Faces that a model in this process answers at once.

        Returns:
            A report for each picture; for one picture by itself its report. With `faces` "all", a
            list of reports instead of each report. If faces are detected and there is none, the
            report's `face_found` is False and it has no label, unless the model was also trained
            to judge the scene alone.

        Raises:
            UserError: A picture, task, box or `faces` is not valid.
            NoAnswerError: The server gave no answer; see `try_predict`.
        """
        predict_views = functools.partial(self.predict_views, batch_size=batch_size)
        return self._predict(images, tasks, boxes, faces, predict_views)

    def try_predict(
        self,
        images: Any,
        tasks: Tasks = None,
        *,
        boxes: Any = None,
        faces: str | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> Any:
        """`predict`, with a NoAnswerError in place of the report on each face that the server gave
        no answer for, so that the other reports are kept."""
        predict_views = functools.partial(self.try_predict_views, batch_size=batch_size)
        return self._predict(images, tasks, boxes, faces, predict_views)

    def _predict(
        self,
        images: Any,
        tasks: Tasks,
        boxes: Any,
        faces: str | None,
        predict_views: Callable[[Sequence[FaceView], Mapping[str, PromptLike]], Sequence[Any]],
    ) -> Any:
        self._check_open()
        inputs, single = image_conversion.as_inputs(images)
        parsed_boxes = parse_boxes(boxes, len(inputs), single)
        prompts = self.select_prompts(tasks)
        reports: list[Any] = []
        for start in range(0, len(inputs), MAX_OPEN_IMAGES):
            views = []
            for index in range(start, min(start + MAX_OPEN_IMAGES, len(inputs))):
                name = "the picture" if single else f"picture {index + 1}"
                views.append(self._face_views(inputs[index], name, faces, parsed_boxes[index]))
            view_reports = iter(predict_views(list(itertools.chain(*views)), prompts))
            groups = [list(itertools.islice(view_reports, len(group))) for group in views]
            reports += groups if faces == "all" else [group[0] for group in groups]
        return reports[0] if single else reports

    def predict_clip(
        self,
        frames: Sequence[Any],
        boxes: Sequence[Sequence[float] | None],
        tasks: Tasks = None,
    ) -> FaceReport:
        """Predict for one clip with a known face box in each frame.

        Args:
            frames: The frames of the clip, in order.
            boxes: The face's box in each frame, None in a frame without a face.
            tasks: As in `predict`.

        Returns:
            The report; its `box` is None, since the box differs between frames.

        Raises:
            UserError: There are no frames, or a task is unknown.
        """
        self._check_open()
        view = self.clip_view(frames, boxes)
        return self.predict_views([view], self.select_prompts(tasks))[0]

    def clip_view(self, frames: Sequence[Any], boxes: Sequence[Sequence[float] | None]) -> FaceView:
        """The model's input for `predict_clip`."""
        upright = [image_conversion.as_picture(frame) for frame in frames]
        return clip_view(upright, self.view_settings, "largest", self._face_finder, boxes)

    async def apredict(
        self, image: Any, tasks: Tasks = None, *, box: Any = None, faces: str | None = None
    ) -> Any:
        """Predict for one picture, for many concurrent callers.

        A model in this process answers concurrent requests in batches; a server receives up to
        `concurrency` requests at a time.

        Returns:
            The report; with `faces` "all" a list of reports.

        Raises:
            QueueFullError: Too many requests are queued.
            NoAnswerError: The server gave no answer.
            UserError: As in `predict`.
        """
        prompts = self.select_prompts(tasks)
        (parsed_box,) = parse_boxes(box, 1, True)
        views = await asyncio.to_thread(self.face_views, image, faces=faces, box=parsed_box)
        reports = await asyncio.gather(*(self.apredict_view(view, prompts) for view in views))
        return list(reports) if faces == "all" else reports[0]

    def stream(
        self, image: Any, task: str | None = None, *, box: Any = None, faces: str | None = None
    ) -> Iterator[str | FaceReport]:
        """Yields the text generated so far for one task, then the final report.

        Args:
            image: As in `predict`.
            task: One of `self.tasks`, by default the first.
            box: As in `predict`.
            faces: "largest" or "none".

        Yields:
            Text, each time from its beginning; at the end a FaceReport.
        """
        prompts = self.select_prompts(self.tasks[0] if task is None else task)
        (parsed_box,) = parse_boxes(box, 1, True)
        if faces == "all":
            raise UserError("faces is all, but a stream is about one face: use largest or none")
        view = self.face_views(image, faces=faces, box=parsed_box)[0]
        yield from self.stream_view(view, prompts)

    # --- views and prompts ------------------------------------------------------------------------

    def select_prompts(self, tasks: Tasks) -> dict[str, PromptLike]:
        """{task: prompt} of one task, some tasks, or by default all.

        Raises:
            UserError: A task is unknown, or `tasks` is empty.
        """
        if tasks is None:
            names = list(self.tasks)
        else:
            names = list(dict.fromkeys([tasks] if isinstance(tasks, str) else tasks))
        if unknown := [str(task) for task in names if task not in self.tasks]:
            raise UserError(
                f"{self.name or 'this model'} was not trained to answer {', '.join(unknown)}: "
                f"choose from {', '.join(self.tasks)}"
            )
        if not names:
            raise UserError(f"tasks is empty: choose from {', '.join(self.tasks)}")
        return {task: self.prompts_by_task[task] for task in names}

    def predict_views(
        self,
        views: Sequence[FaceView],
        prompts: Mapping[str, PromptLike],
        batch_size: int = BATCH_SIZE,
    ) -> list[FaceReport]:
        """A report on each view; the model is not run on views without a face.

        Raises:
            NoAnswerError: Of the first view that the server gave no answer for.
        """
        reports: list[FaceReport] = []
        for report in self.try_predict_views(views, prompts, batch_size):
            if isinstance(report, NoAnswerError):
                raise report
            reports.append(report)
        return reports

    def try_predict_views(
        self,
        views: Sequence[FaceView],
        prompts: Mapping[str, PromptLike],
        batch_size: int = BATCH_SIZE,
    ) -> list[FaceReport | NoAnswerError]:
        """`predict_views`, with errors in place of the reports on views without an answer."""
        self._check_open()
        views = self._with_evidence(views)
        inputs = [view for view in views if self._can_predict(view)]
        results = {
            task: iter(self.backend.predict(prompt, inputs, batch_size) if inputs else [])
            for task, prompt in prompts.items()
        }
        reports: list[FaceReport | NoAnswerError] = []
        for view in views:
            if not self._can_predict(view):
                reports.append(self._report(view, prompts))
                continue
            by_task = {task: next(result) for task, result in results.items()}
            errors = [result for result in by_task.values() if isinstance(result, NoAnswerError)]
            predictions = {k: v for k, v in by_task.items() if not isinstance(v, NoAnswerError)}
            reports.append(errors[0] if errors else self._report(view, prompts, predictions))
        return reports

    async def apredict_view(self, view: FaceView, prompts: Mapping[str, PromptLike]) -> FaceReport:
        """`predict_views` of one view, for many concurrent callers; raises as `apredict`."""
        self._check_open()
        if not self._can_predict(view):
            return self._report(view, prompts)
        (view,) = await asyncio.to_thread(self._with_evidence, [view])
        predictions = await asyncio.gather(
            *(self.backend.apredict(prompt, view) for prompt in prompts.values())
        )
        return self._report(view, prompts, dict(zip(prompts, predictions, strict=True)))

    def stream_view(
        self, view: FaceView, prompts: Mapping[str, PromptLike]
    ) -> Iterator[str | FaceReport]:
        """`stream` of one view and one prompt."""
        self._check_open()
        ((task, prompt),) = prompts.items()
        if not self._can_predict(view):
            yield self._report(view, prompts)
            return
        (view,) = self._with_evidence([view])
        for piece in self.backend.stream(prompt, view):
            yield piece if isinstance(piece, str) else self._report(view, prompts, {task: piece})

    def _with_evidence(self, views: Sequence[FaceView]) -> Sequence[FaceView]:
        """The views with what is measured in them, if a prompt contains it and the model is run."""
        if self._evidence is None:
            return views
        complete = list(views)
        lacking = [
            number
            for number, view in enumerate(views)
            if view.evidence is None and self._can_predict(view)
        ]
        texts = self._evidence.texts([views[number].images for number in lacking])
        for number, text in zip(lacking, texts, strict=True):
            complete[number] = replace(views[number], evidence=text)
        return complete

    def _can_predict(self, view: FaceView) -> bool:
        """Whether the model is run: without a face, only if it was trained to judge the scene
        alone."""
        return view.face_found is not False or crops.mixes_face_and_scene(self.views)

    def _report(
        self,
        view: FaceView,
        prompts: Mapping[str, PromptLike],
        predictions: dict[str, Prediction] | None = None,
    ) -> FaceReport:
        """`predictions` is None if the model was not run."""
        return FaceReport(
            answers=predictions or dict.fromkeys(prompts, NO_PREDICTION),
            prompts={task: prompt.id for task, prompt in prompts.items()},
            box=view.box,
            face_found=view.face_found,
            search_note=view.search_note,
            limitations=self.limitations,
            views=self.views,
            evidence=view.evidence,
        )
