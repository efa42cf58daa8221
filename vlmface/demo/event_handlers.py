"""Shared helpers for event handlers."""

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


def open_upload(path: str) -> Image.Image:
    """Open an uploaded picture.

    Raises:
        UserError: The file has been deleted, or is not a picture.
    """
    if not Path(path).is_file():
        raise UserError(
            "the picture has been deleted, as uploads are after a while: upload it again"
        )
    try:
        return open_image(Path(path).read_bytes(), max_pixels=batch.MAX_PIXELS)
    except UserError as error:
        raise UserError(batch.upload_error(error)) from error


def with_error_output(outputs: int) -> Callable[[Handler], Handler]:
    """Decorate a generator so that exceptions are displayed in its last output.

    Args:
        outputs: How many outputs the generator yields.
    """

    def decorate(handler: Handler) -> Handler:
        @wraps(handler)
        def guarded(*values: Any) -> Iterator[Any]:
            try:
                yield from handler(*values)
            except Exception as error:
                unchanged = [gr.skip()] * (outputs - 1)
                message = views.error(_message(error))
                yield (*unchanged, message) if unchanged else message

        return guarded

    return decorate


def _message(error: Exception) -> str:
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, QueueFullError):
        return "Too many requests are waiting: try again in a moment."
    if isinstance(error, NoAnswerError):
        return f"The model's server gave no answer: {error}"
    logging.getLogger(__name__).exception("a handler failed")
    return "This is an error of the demo, not of your picture; its terminal has details."
