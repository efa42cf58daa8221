"""Pictures as Python programs hold them: files, bytes, arrays, tensors and PIL images become
upright 8-bit RGB, as `images.open_image` makes it of a file."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

from vlmface.errors import UserError
from vlmface.utils import image_decoding, images

KINDS = (
    "a path, the bytes of an image file, an open binary file, a PIL image, a numpy array or a "
    "torch tensor"
)
_CHANNELS = (1, 3, 4)  # grey, RGB, RGBA
_OVERSHOOT = 0.1  # of the range of floats, by which resizing may leave it: clipped


def as_picture(source: Any, name: str = "the picture") -> Image.Image:
    """One picture as upright 8-bit RGB.

    Args:
        source: A path (str or path-like), the bytes of an image file, an open binary file (read
            from its beginning), a PIL image of any mode, a numpy array or a torch tensor. A PIL
            image is rotated by its EXIF tag, if it has one. Arrays are (height, width) or (height,
            width, channels) with 1, 3 or 4 channels (grey, RGB, RGBA), or channels first, which is
            tried first for tensors. Integers are 0 to 255, deeper ones are scaled as in a file;
            floats are 0 to 1, or 0 to 255.
        name: What messages call it.

    Raises:
        UserError: For anything else, for values out of range, for pictures that are too small or
            too large, and for files that `images.open_image` refuses.
    """
    if isinstance(source, Image.Image):
        return _from_pil(source, name)
    if isinstance(source, str | os.PathLike):
        return _from_path(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return images.open_image(bytes(source))
    if callable(getattr(source, "read", None)):
        return images.open_image(_content(source, name))
    if is_array(source):
        return _from_array(source, name)
    raise UserError(f"{name} is of type {type(source).__name__}: give {KINDS}")


def as_rgb(image: Image.Image | np.ndarray) -> Image.Image:
    """A PIL image of any mode, or an array as in `as_picture`, as RGB. Nothing is rotated, so that
    places in the picture stay what they are. Raises UserError."""
    if not isinstance(image, Image.Image):
        return as_picture(image)
    try:
        plain = image.mode == "RGB" and not image.has_transparency_data
        return image if plain else image_decoding.to_rgb(image, getattr(image, "tag_v2", None))
    except Exception as error:  # as in open_image, and a file that has been closed
        raise _unreadable("the picture", error) from error


def as_inputs(pictures: Any) -> tuple[list[Any], bool]:
    """(the pictures as a list, whether it was one picture by itself). An array of four dimensions
    is several pictures. Raises UserError for what is neither a picture nor an iterable of them."""
    if is_array(pictures):
        return (list(pictures), False) if pictures.ndim == 4 else ([pictures], True)
    if isinstance(
        pictures, Image.Image | str | os.PathLike | bytes | bytearray | memoryview
    ) or callable(getattr(pictures, "read", None)):
        return [pictures], True
    if isinstance(pictures, Iterable) and not isinstance(pictures, Mapping | set | frozenset):
        return list(pictures), False
    raise UserError(
        f"pictures are of type {type(pictures).__name__}: give {KINDS}, or a list of them"
    )


def is_array(value: Any) -> bool:
    """Whether it is a numpy array or a torch tensor."""
    torch = sys.modules.get("torch")  # without it nothing is a tensor
    return isinstance(value, np.ndarray) or (torch is not None and torch.is_tensor(value))


# --- kinds of pictures ----------------------------------------------------------------------------


def _from_path(source: str | os.PathLike[Any]) -> Image.Image:
    path = os.fsdecode(source)
    try:
        return images.open_image(Path(path))
    except (OSError, ValueError) as error:  # too long, or with characters that no path has
        raise UserError(
            f"{path[:60]!r} is not the path of a file ({error}): give {KINDS}"
        ) from None


def _content(file: Any, name: str) -> bytes:
    try:
        if callable(getattr(file, "seekable", None)) and file.seekable():
            file.seek(0)
        content = file.read()
    except (OSError, ValueError) as error:  # closed, or a pipe that cannot be rewound
        raise UserError(f"{name} is a file that cannot be read ({error}): open it again") from None
    if not isinstance(content, bytes | bytearray | memoryview):
        raise UserError(
            f"{name} is a file that gives {type(content).__name__} instead of bytes: open it with "
            'mode "rb"'
        )
    return bytes(content)


def _from_pil(image: Image.Image, name: str) -> Image.Image:
    _check_size(image.width, image.height, name)
    try:
        image.load()
        return as_rgb(ImageOps.exif_transpose(image) if _has_turn(image) else image)
    except UserError:
        raise
    except Exception as error:  # a file that is opened late fails as in open_image
        raise _unreadable(name, error) from error


def _has_turn(image: Image.Image) -> bool:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    except Exception:  # broken EXIF data turns nothing, as in open_image
        return False


def _from_array(source: Any, name: str) -> Image.Image:
    values = _channels_last(source, name)
    _check_size(values.shape[1], values.shape[0], name)
    if np.issubdtype(values.dtype, np.floating):
        pixels = _from_floats(values, name)
    elif values.dtype == bool:
        pixels = values * np.uint8(255)
    elif np.issubdtype(values.dtype, np.integer):
        pixels = _from_integers(values, name)
    else:
        raise UserError(f"{name} is an array of {values.dtype}: give integers or floats")
    pixels = np.ascontiguousarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    return image_decoding.to_rgb(Image.fromarray(pixels))


def _channels_last(source: Any, name: str) -> np.ndarray:
    """(height, width, channels)."""
    first = not isinstance(source, np.ndarray)
    if first:
        source = source.detach().cpu()
        # numpy has no bfloat16.
        values = (source.float() if source.is_floating_point() else source).numpy()
    else:
        values = source
    if values.ndim == 2:
        return values[..., None]
    if values.ndim == 3:
        for axis in (0, 2) if first else (2, 0):
            if values.shape[axis] in _CHANNELS:
                return np.moveaxis(values, axis, 2)
    raise UserError(
        f"{name} is an array of shape {tuple(values.shape)}: give (height, width), (height, width, "
        "channels) or (channels, height, width) with 1, 3 or 4 channels"
    )


def _from_floats(values: np.ndarray, name: str) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    for least, most in ((0, 1), (25, 255)):  # normalised floats reach neither
        if -_OVERSHOOT * most <= low and least <= high <= (1 + _OVERSHOOT) * most:
            scaled = np.clip(values.astype(np.float64), 0, most) * (255 / most)
            return scaled.round().astype(np.uint8)
    raise UserError(
        f"{name} is an array of floats from {low:g} to {high:g}: give 0 to 1 or 0 to 255, before "
        "any normalisation"
    )


def _from_integers(values: np.ndarray, name: str) -> np.ndarray:
    if values.dtype == np.uint8:
        return values
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise UserError(
            f"{name} is an array of integers from {low} to {high}: give 0 to 255, or 0 to 65535"
        )
    if high <= 255 and values.dtype != np.uint16:
        return values.astype(np.uint8)
    height, width, channels = values.shape
    # One scale for all channels, and the one that a file of such numbers has.
    flat = Image.fromarray(values.astype(np.uint16).reshape(height, width * channels))
    return np.asarray(image_decoding.to_rgb(flat))[..., 0].reshape(height, width, channels)


def _unreadable(name: str, error: Exception) -> UserError:
    return UserError(
        f"{name} is damaged, cut off or closed and cannot be decoded ({error}): open it again, or "
        "copy its file again from its source"
    )


def _check_size(width: int, height: int, name: str) -> None:
    if min(width, height) < image_decoding.MIN_SIDE:
        raise UserError(
            f"{name} is {width} x {height} pixels, too small to show a face: give at least "
            f"{image_decoding.MIN_SIDE} x {image_decoding.MIN_SIDE} pixels"
        )
    if width * height > images.MAX_PIXELS:
        raise UserError(
            f"{name} is {width} x {height} pixels: the limit is {images.MAX_PIXELS / 1e6:g} "
            "megapixels, so shrink it, or crop the face"
        )
