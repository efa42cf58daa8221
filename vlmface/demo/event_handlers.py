"""What the handlers of all tabs do alike: open an upload, say what went wrong."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from vlmface.demo import batch, views
from vlmface.errors import UserError
from vlmface.infer.batcher import QueueFullError
from vlmface.infer.endpoint import NoAnswerError
from vlmface.utils.images import open_image

Handler = Callable[..., Iterator[Any]]


def opened(path: str) -> Image.Image:
    """An uploaded picture. Raises UserError."""
    if not Path(path).is_file():
        raise UserError("the picture is no longer here, uploads are soon deleted: upload it again")
    try:
        return open_image(Path(path).read_bytes(), max_pixels=batch.MOST_PIXELS)
    except UserError as error:
        raise UserError(batch.in_words(error)) from error


def spoken(outputs: int) -> Callable[[Handler], Handler]:
    """A generator of that many outputs, whose last one shows what went wrong, in words."""

    def decorate(handler: Handler) -> Handler:
        @wraps(handler)
        def guarded(*values: Any) -> Iterator[Any]:
            try:
                yield from handler(*values)
            except Exception as error:
                rest = [gr.skip()] * (outputs - 1)
                said = views.problem(_in_words(error))
                yield (*rest, said) if rest else said

        return guarded

    return decorate


def _in_words(error: Exception) -> str:
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, QueueFullError):
        return "Too many people are asking at once: try again in a moment."
    if isinstance(error, NoAnswerError):
        return f"The model's server gave no answer: {error}"
    logging.getLogger(__name__).exception("a handler failed")
    return "This is a fault of the demo, not of your picture; its terminal shows more."
