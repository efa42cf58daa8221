"""A picture and what is asked of it become reports."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from vlmface.errors import UserError
from vlmface.infer.batcher import QueueFullError
from vlmface.infer.endpoint import NoAnswerError
from vlmface.infer.face_report import FaceReport
from vlmface.infer.face_views import FaceView
from vlmface.infer.predictor import Predictor, RemoteBackend
from vlmface.serving.gateway.http_errors import Refusal
from vlmface.serving.gateway.limits import BUSY_S, Load, busy
from vlmface.serving.gateway.request_parsing import Asked, shown
from vlmface.serving.gateway.settings import Settings
from vlmface.utils import isolated
from vlmface.utils.image_decoding import UNNAMED
from vlmface.utils.images import size_of

if TYPE_CHECKING:
    from PIL import Image

SMALLEST = 8  # pixels of a side of a box
LONGEST_SHAPE = 20  # times the shorter side: processors of some models fail on strips
LONGEST_MESSAGE = 500  # characters
# What an error message may say of the machine it comes from: addresses in memory, paths, URLs.
_INNER = re.compile(r"\S*(?:0x[0-9a-f]{4,}|://|(?<![\w.])/\w+/)\S*")

Box = Sequence[float]
T = TypeVar("T")


@dataclass(frozen=True)
class Found:
    """What is said of one picture. `left_out`: faces beyond the limit."""

    width: int
    height: int
    reports: list[FaceReport]
    left_out: int


async def analyze(asked: Asked, predictor: Predictor, settings: Settings, load: Load) -> Found:
    """Raises Refusal."""
    if odd := [task for task in asked.tasks or () if task not in predictor.tasks]:
        raise Refusal(
            "task",
            f"this model does not answer {shown(odd[0])}: ask for " + ", ".join(predictor.tasks),
        )
    try:
        width, height = await asyncio.to_thread(size_of, asked.image)
    except UserError as error:
        raise Refusal("picture", _outward(error)) from None
    if max(width, height) > settings.max_side:
        raise Refusal(
            "picture",
            f"the picture has {width} x {height} pixels: send one of at most "
            f"{settings.max_side} a side, or crop the face",
        )
    if max(width, height) > LONGEST_SHAPE * min(width, height):
        raise Refusal(
            "picture", f"the picture has {width} x {height} pixels, a strip: crop the face"
        )
    with load.taking("pixels", min(width * height, settings.max_pixels)):
        image = await _decoded(asked.image, settings.max_pixels)
        views, left_out = await _views(image, asked, predictor, settings)
        reports = await _answered(views, asked.tasks, predictor)
    return Found(image.width, image.height, reports, left_out)


async def _decoded(content: bytes, max_pixels: int) -> Image.Image:
    try:
        future = isolated.submit(content, UNNAMED, max_pixels)
        return await asyncio.wrap_future(future)
    except UserError as error:
        raise Refusal("picture", _outward(error)) from None


async def _views(
    image: Image.Image, asked: Asked, predictor: Predictor, settings: Settings
) -> tuple[Sequence[FaceView], int]:
    """(what the model is shown of the picture; how many faces are left out)"""
    if asked.boxes is not None:
        if len(asked.boxes) > settings.max_faces:
            raise Refusal(
                "box", f"there are {len(asked.boxes)} boxes: send at most {settings.max_faces}"
            )
        for i, box in enumerate(asked.boxes):
            _check_box(i, box, image.size)
        boxes = asked.boxes

        def at_boxes() -> list[FaceView]:
            return [predictor.face_views(image, box=box)[0] for box in boxes]

        return await asyncio.to_thread(at_boxes), 0
    faces = asked.faces or predictor.faces_by_default
    try:
        views = await asyncio.to_thread(predictor.face_views, image, faces=faces)
    except UserError:  # its text is for whoever runs the gateway
        raise Refusal(
            "detector", "this gateway cannot look for faces: send boxes, or faces=none"
        ) from None
    return views[: settings.max_faces], max(0, len(views) - settings.max_faces)


def _check_box(number: int, box: Box, size: tuple[int, int]) -> None:
    left, top, right, bottom = box
    width, height = size
    said = f"box {number} is {', '.join(f'{x:g}' for x in box)}"
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise Refusal(
            "box",
            f"{said}: left, top, right, bottom must be in order and within the upright "
            f"picture, which has {width} x {height} pixels",
        )
    if min(right - left, bottom - top) < SMALLEST:
        raise Refusal("box", f"{said}: a face needs at least {SMALLEST} x {SMALLEST} pixels")


async def _answered(
    views: Sequence[FaceView], tasks: Sequence[str] | None, predictor: Predictor
) -> list[FaceReport]:
    questions = predictor.questions_of(tasks)
    try:
        return await _together([predictor.aanswer(view, questions) for view in views])
    except QueueFullError:
        raise busy() from None
    except NoAnswerError as error:
        if error.passing:
            wait = BUSY_S if error.wait_s is None else max(BUSY_S, round(error.wait_s))
            raise Refusal(
                "no_answer",
                "the model's server gives no answer now: come back",
                retry_after_s=wait,
            ) from None
        raise Refusal("upstream", "the model's server refuses this picture") from None
    except UserError as error:
        if isinstance(
            predictor.backend, RemoteBackend
        ):  # about its URL, key or name: not the client's
            raise Refusal("upstream", "the model's server does not take requests") from None
        raise Refusal("model", _outward(error)) from None


async def _together(works: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The results. The first error ends all others."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in works]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


def _outward(error: UserError) -> str:
    """Its message, without what is nobody else's business."""
    return _INNER.sub("...", str(error)[:LONGEST_MESSAGE])
