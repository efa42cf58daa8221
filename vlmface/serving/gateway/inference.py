"""Run the model on an `AnalyzeRequest`."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from vlmface.errors import UserError
from vlmface.infer.backends import RemoteBackend
from vlmface.infer.batcher import QueueFullError
from vlmface.infer.endpoint import NoAnswerError
from vlmface.infer.face_report import FaceReport
from vlmface.infer.face_views import FaceView
from vlmface.infer.predictor import Predictor
from vlmface.serving.gateway.http_errors import RequestError
from vlmface.serving.gateway.limits import RETRY_AFTER_S, InFlightLimits, busy_error
from vlmface.serving.gateway.request_parsing import AnalyzeRequest, excerpt
from vlmface.serving.gateway.settings import Settings
from vlmface.utils import isolated
from vlmface.utils.image_decoding import UNNAMED
from vlmface.utils.images import size_of

if TYPE_CHECKING:
    from PIL import Image

MIN_BOX_SIDE = 8  # pixels
MAX_ASPECT_RATIO = 20  # longer to shorter side: processors of some models fail on strips
MAX_MESSAGE_LENGTH = 500  # characters
# Details of the server in an error message: memory addresses, paths, URLs.
_INTERNAL_DETAIL = re.compile(r"\S*(?:0x[0-9a-f]{4,}|://|(?<![\w.])/\w+/)\S*")

Box = Sequence[float]
T = TypeVar("T")


@dataclass(frozen=True)
class AnalyzeResult:
    """The reports on one picture. `skipped`: faces beyond the gateway's limit."""

    width: int
    height: int
    reports: list[FaceReport]
    skipped: int


async def analyze(
    request: AnalyzeRequest, predictor: Predictor, settings: Settings, limits: InFlightLimits
) -> AnalyzeResult:
    """Decode the picture and run the model on its faces. Raises RequestError."""
    if unknown := [task for task in request.tasks or () if task not in predictor.tasks]:
        raise RequestError(
            "task",
            f"this model does not answer {excerpt(unknown[0])}: choose from "
            + ", ".join(predictor.tasks),
        )
    try:
        width, height = await asyncio.to_thread(size_of, request.image)
    except UserError as error:
        raise RequestError("picture", _redacted(error)) from None
    if max(width, height) > settings.max_side:
        raise RequestError(
            "picture",
            f"the picture has {width} x {height} pixels: send one of at most {settings.max_side} "
            "a side, or crop the face",
        )
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise RequestError(
            "picture", f"the picture has {width} x {height} pixels, a strip: crop the face"
        )
    with limits.acquire("pixels", min(width * height, settings.max_pixels)):
        image = await _decode(request.image, settings.max_pixels)
        views, skipped = await _face_views(image, request, predictor, settings)
        reports = await _predict(views, request.tasks, predictor)
    return AnalyzeResult(image.width, image.height, reports, skipped)


async def _decode(content: bytes, max_pixels: int) -> Image.Image:
    try:
        future = isolated.submit(content, UNNAMED, max_pixels)
        return await asyncio.wrap_future(future)
    except UserError as error:
        raise RequestError("picture", _redacted(error)) from None


async def _face_views(
    image: Image.Image, request: AnalyzeRequest, predictor: Predictor, settings: Settings
) -> tuple[Sequence[FaceView], int]:
    """(the model's inputs; how many faces are skipped)."""
    if request.boxes is not None:
        if len(request.boxes) > settings.max_faces:
            raise RequestError(
                "box", f"there are {len(request.boxes)} boxes: send at most {settings.max_faces}"
            )
        for i, box in enumerate(request.boxes):
            _check_box(i, box, image.size)
        boxes = request.boxes

        def views_of_boxes() -> list[FaceView]:
            return [predictor.face_views(image, box=box)[0] for box in boxes]

        return await asyncio.to_thread(views_of_boxes), 0
    faces = request.faces or predictor.default_faces
    try:
        views = await asyncio.to_thread(predictor.face_views, image, faces=faces)
    except UserError:  # its message is for the operator of the gateway
        raise RequestError(
            "detector", "this gateway has no face detector: send boxes, or faces=none"
        ) from None
    return views[: settings.max_faces], max(0, len(views) - settings.max_faces)


def _check_box(number: int, box: Box, size: tuple[int, int]) -> None:
    left, top, right, bottom = box
    width, height = size
    cause = f"box {number} is {', '.join(f'{x:g}' for x in box)}"
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise RequestError(
            "box",
            f"{cause}: left, top, right, bottom must be in order and within the upright picture, "
            f"which has {width} x {height} pixels",
        )
    if min(right - left, bottom - top) < MIN_BOX_SIDE:
        raise RequestError(
            "box", f"{cause}: a face needs at least {MIN_BOX_SIDE} x {MIN_BOX_SIDE} pixels"
        )


async def _predict(
    views: Sequence[FaceView], tasks: Sequence[str] | None, predictor: Predictor
) -> list[FaceReport]:
    prompts = predictor.select_prompts(tasks)
    try:
        return await _gather([predictor.apredict_view(view, prompts) for view in views])
    except QueueFullError:
        raise busy_error() from None
    except NoAnswerError as error:
        if error.retryable:
            wait_s = RETRY_AFTER_S
            if error.wait_s is not None:
                wait_s = max(RETRY_AFTER_S, round(error.wait_s))
            raise RequestError(
                "no_answer", "the model's server gives no answer now: retry", retry_after_s=wait_s
            ) from None
        raise RequestError("upstream", "the model's server rejects this picture") from None
    except UserError as error:
        if isinstance(predictor.backend, RemoteBackend):  # about its URL, key or name: internal
            raise RequestError("upstream", "the model's server rejects all requests") from None
        raise RequestError("model", _redacted(error)) from None


async def _gather(coroutines: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The results. The first error cancels all others."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(coroutine) for coroutine in coroutines]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


def _redacted(error: UserError) -> str:
    """The error message with paths, URLs and addresses redacted."""
    return _INTERNAL_DETAIL.sub("...", str(error)[:MAX_MESSAGE_LENGTH])
