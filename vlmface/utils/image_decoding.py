"""Decode image files to upright 8-bit RGB."""

from __future__ import annotations

import codecs
import contextlib
import io
import mmap
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from vlmface.errors import UserError
from vlmface.utils import image_headers

MAX_PIXELS = 64_000_000
MIN_SIDE = 16
UNNAMED = "the image bytes"  # what messages call a picture without a file
_STRIP = 1 << 20  # pixels that are converted at once
# An explicit list, because Pillow also registers formats that start other programs (EPS, PDF).
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "JPEG2000", "PPM")
# Of the limit on pixels, for formats whose decoders keep several copies.
_SHARE = {"JPEG2000": 1 / 3, "WEBP": 0.75}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # of EXIF

_BITS, _WHITE_IS_ZERO, _SIGN = 258, 262, 339  # tags of a TIFF
_DARK = (
    "a picture of 16 bits holds no value above {top:,.0f} and is read as one of {bits} bits: scale "
    "it to 16 bits if it is meant to be that dark"
)
_BLACK = (
    "a picture of 16 bits a colour holds no value above 4,095, of which the upper 8 bits are read: "
    "it is nearly black; scale it to 16 bits, or save it with 8"
)


def decode(source: str | Path | bytes, name: str, max_pixels: int) -> Image.Image:
    """`open_image` in this process, of a file that messages call `name`."""
    with opened(source, name, max_pixels) as (image, orientation):
        width, height = image.size
        if min(width, height) < MIN_SIDE:
            raise UserError(
                f"{name} is {width} x {height} pixels, too small to show a face: "
                f"give an image of at least {MIN_SIDE} x {MIN_SIDE} pixels"
            )
        try:
            deep = _has_deep_colour(image)
            image.load()
            rgb = to_rgb(image, getattr(image, "tag_v2", None))
        except MemoryError:
            raise _too_costly(name) from None
        except Exception as error:  # a hostile file can raise nearly anything inside a decoder
            raise _damaged(name, error) from error
    if deep and np.asarray(rgb.getextrema()).max() < 16:
        warnings.warn(_BLACK, stacklevel=2)
    upright = rgb.transpose(_TURNS[orientation]) if orientation in _TURNS else rgb
    upright.info = {}  # the orientation that is in there no longer applies
    return upright


@contextlib.contextmanager
def opened(
    source: str | Path | bytes, name: str, max_pixels: int
) -> Iterator[tuple[Image.Image, int]]:
    """(the image, its pixels not yet decoded; the EXIF orientation that is left to undo), without
    Pillow's warnings."""
    with warnings.catch_warnings(), contextlib.ExitStack() as closing:
        warnings.filterwarnings("ignore", module=r"PIL\b")
        file: IO[bytes]
        content: image_headers.Data
        if isinstance(source, bytes):
            file, content = io.BytesIO(source), source
        else:
            file = closing.enter_context(Path(source).open("rb"))
            content = _mapped(file, closing)
        late_exif = image_headers.check(content, name)
        try:
            image = closing.enter_context(Image.open(file, formats=_FORMATS))
        except Image.DecompressionBombError as error:
            # Pillow's own limit (about 179 MP) strikes before it hands over the size.
            match = re.search(r"(\d+) pixels", str(error))
            raise _too_large(name, int(match[1]) if match else 0, max_pixels) from None
        except Image.UnidentifiedImageError:
            raise UserError(f"{name} {_what_is_it(source)}") from None
        except MemoryError:
            raise _too_costly(name) from None
        except Exception as error:  # in a header as in the pixels
            raise _damaged(name, error) from error
        width, height = image.size
        limit = int(max_pixels * _SHARE.get(image.format or "", 1))
        if width * height > limit:
            raise _too_large(name, width * height, limit, f"{width} x {height} pixels, ")
        yield image, _orientation(image, late_exif)


def _mapped(file: IO[bytes], closing: contextlib.ExitStack) -> image_headers.Data:
    """The whole file, mapped into memory instead of read."""
    if not os.fstat(file.fileno()).st_size:
        return b""
    return closing.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _orientation(image: Image.Image, late_exif: bytes | None) -> int:
    """How the pixels are stored: an EXIF orientation, 1 for upright. Read from where Pillow's
    `exif_transpose` looks, but without decoding all other tags. `late_exif`: that of a PNG."""
    stored: int | None = None
    if image.format == "TIFF":
        return 1  # Pillow turns these itself
    if exif := late_exif or image.info.get("exif"):
        stored = image_headers.orientation_of(exif.removeprefix(b"Exif\0\0"))
    elif profile := image.info.get("Raw profile type exif"):  # as ImageMagick writes it
        with contextlib.suppress(ValueError):
            exif = bytes.fromhex("".join(str(profile).split("\n")[3:]))
            stored = image_headers.orientation_of(exif.removeprefix(b"Exif\0\0"))
    if stored is None:
        xmp = image.info.get("XML:com.adobe.xmp") or image.info.get("xmp") or b""
        xmp = xmp if isinstance(xmp, bytes) else str(xmp).encode("utf-8", "replace")
        match = re.search(rb'tiff:Orientation(?:="|>)([0-9])', xmp)
        stored = int(match[1]) if match else None
    return stored or 1


def _has_deep_colour(image: Image.Image) -> bool:
    """Whether an image that is not decoded yet has 16 bits a colour; Pillow drops the lower 8."""
    return ";16" in str(getattr(image, "tile", "")) and not image.mode.startswith("I")


def to_rgb(image: Image.Image, tags: Mapping[int, Any] | None = None) -> Image.Image:
    """A decoded image of any mode as 8-bit RGB, transparency laid over white. `tags` are those of
    the TIFF that it was read from."""
    if image.mode.startswith(("I", "F")):
        return _scaled(image, tags or {})
    if image.has_transparency_data:
        return _in_strips(image, _over_white)
    return image.convert("RGB")


def _scaled(image: Image.Image, tags: Mapping[int, Any]) -> Image.Image:
    """An image of integers or floats, scaled to 8 bits by what it holds: Pillow would clip them,
    and a scale of 16 bits would turn a picture of 12 of them black."""
    unsigned = image.mode == "I" and tags.get(_BITS) == (32,) and tags.get(_SIGN, (1,)) == (1,)
    kind = np.float32 if image.mode.startswith("I;") else np.float64

    def values_of(strip: Image.Image) -> np.ndarray:
        grey = np.asarray(strip)
        # Pillow reads unsigned numbers as signed ones.
        return (grey.view(np.uint32) if unsigned else grey).astype(kind)

    ends: list[float] = []
    for strip in _strips(image):
        values = values_of(strip)
        finite = values[np.isfinite(values)]
        ends += [float(finite.min()), float(finite.max())] if finite.size else []
    low, high = (min(ends), max(ends)) if ends else (0.0, 0.0)
    bottom, top = _range_of(low, high, image.mode == "F", tags)
    inverted = tags.get(_WHITE_IS_ZERO, 1) == 0

    def scale(strip: Image.Image) -> Image.Image:
        values = np.nan_to_num(values_of(strip), copy=False, nan=low, posinf=high, neginf=low)
        scaled = (values - bottom) * (255 / (top - bottom or 1))
        scaled = 255 - scaled if inverted else scaled
        return Image.fromarray(scaled.round().astype(np.uint8)).convert("RGB")

    return _in_strips(image, scale)


def _range_of(
    low: float, high: float, floats: bool, tags: Mapping[int, Any]
) -> tuple[float, float]:
    """The values that become black and white, of an image whose values are `low` to `high`.

    Integers of 8, 10, 12 or 16 bits keep their range (with a warning for 10 and 12 if the file does
    not state them), floats that of 0 to 1, or from 0 to their greatest; values below 0 and beyond
    16 bits are stretched from the least to the greatest.
    """
    if low < 0 or (not floats and high > 65535):
        return low, high
    if floats:
        return 0.0, max(1.0, high)
    stated = float((1 << tags.get(_BITS, (16,))[0]) - 1)
    if 255 <= stated < 65535:
        return 0.0, stated
    top = float(next(most for most in (255, 1023, 4095, 65535) if high <= most))
    if top in (1023, 4095):
        warnings.warn(_DARK.format(top=top, bits=10 if top == 1023 else 12), stacklevel=4)
    return 0.0, top


def _over_white(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _in_strips(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """`convert` of a picture a strip at a time: copies of a large one whole take much memory."""
    rgb, top = Image.new("RGB", image.size), 0
    for strip in _strips(image):
        rgb.paste(convert(strip), (0, top))
        top += strip.height
    return rgb


def _strips(image: Image.Image) -> Iterator[Image.Image]:
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height)))


def _too_large(name: str, pixels: int, limit: int, size: str = "") -> UserError:
    return UserError(
        f"{name} is too large: {size}{pixels / 1e6:.1f} megapixels, the limit is "
        f"{limit / 1e6:g}: shrink it, or crop the face"
    )


def _too_costly(name: str) -> UserError:
    return UserError(
        f"{name} takes more memory to decode than there is for it: save it again as JPEG "
        "or PNG, or shrink it"
    )


def _damaged(name: str, error: Exception) -> UserError:
    return UserError(
        f"{name} is damaged or cut off and cannot be decoded ({error}): "
        "copy it again from its source, or remove it"
    )


def _what_is_it(source: str | Path | bytes) -> str:
    if isinstance(source, bytes):
        head = source[:200]
    else:
        with open(source, "rb") as file:
            head = file.read(200)
    fix = "give a JPEG, PNG, WebP, BMP, GIF or TIFF image"
    if not head:
        return f"is empty (0 bytes): copy it again from its source, or {fix}"
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the image itself: run `git lfs pull`"
    if re.match(rb"....ftyp(hei|hev|mif)", head, re.DOTALL):
        return "is a HEIC photograph, which cannot be read here: convert it to JPEG"
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)  # the 200th byte may split one
    except UnicodeDecodeError:
        text = "\0"
    if all(c.isprintable() or c.isspace() for c in text):
        return f"holds text, not an image (it starts with {text.strip()[:30]!r}): {fix}"
    return f"is not an image in a known format (its first bytes are {head[:8].hex(' ')}): {fix}"
