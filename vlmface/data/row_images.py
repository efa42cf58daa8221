"""The images of a data set's rows: opened, their sizes, and the columns that hold them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from PIL import Image

from vlmface.data import crop_cache
from vlmface.errors import UserError
from vlmface.utils.images import open_image, size_of

IMAGE_COLUMNS = ("image", "images")  # what a model is shown of a row


def open_row_image(image: Any) -> Image.Image:
    """The picture of a data set's row: an image already, or {"bytes", "path"} as `datasets` stores
    it, or a view in the cache. Files are opened as everywhere else, upright and RGB."""
    if not isinstance(image, Mapping):
        return image
    source = image.get("bytes") or image["path"]
    if isinstance(source, str) and crop_cache.is_reference(source):
        return crop_cache.open_view(source)
    try:
        return open_image(source)
    except UserError as error:
        raise UserError(
            f"{error}; --dataset_options '{{broken: drop}}' finds such pictures before the run and "
            "leaves their rows out"
        ) from error


def image_refs(row: Mapping[str, Any]) -> list[Any]:
    """What a model is shown of a row, for `open_row_image`: its `images`, or its `image`, which may
    be a list too."""
    refs = row.get("images") or row["image"]
    return list(refs) if isinstance(refs, list | tuple) else [refs]


def open_images(row: Mapping[str, Any]) -> Image.Image | list[Image.Image]:
    """What a model is shown of a row, opened: a picture, or a list where there are several."""
    pictures = [open_row_image(ref) for ref in image_refs(row)]
    return pictures if len(pictures) > 1 else pictures[0]


def drop_image_columns(rows: Any) -> Any:
    """A data set without the columns of pictures."""
    return rows.remove_columns([name for name in IMAGE_COLUMNS if name in rows.column_names])


def image_sizes(row: Mapping[str, Any], *, needed: bool = True) -> list[Any]:
    """The sizes of the images that a model is shown of a row, without decoding them.

    Args:
        row: The row.
        needed: Whether the model's family needs them (`Family.NEEDS_SIZE`).

    Returns:
        (width, height) in pixels of each image, or None for each if they are not needed.
    """
    return [row_image_size(image) if needed else None for image in image_refs(row)]


def row_image_size(image: Any) -> tuple[int, int]:
    """(width, height) in pixels of `open_row_image(image)`, without decoding it."""
    if not isinstance(image, Mapping):
        return image.size
    if not image.get("bytes") and crop_cache.is_reference(image["path"]):
        return crop_cache.open_view(image["path"]).size
    return size_of(image["bytes"] or image["path"])
