"""Open any image file a user may have as upright 8-bit RGB, or say in one line why that fails."""

from __future__ import annotations

import codecs
import contextlib
import io
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

from vlmface.errors import UserError

MAX_PIXELS = 64_000_000
MIN_SIDE = 16
# Names of image files, in any letter case: in folders, data sets and archives alike.
SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".pjpeg", ".pjp", ".png", ".apng", ".webp", ".bmp",
    ".gif", ".tif", ".tiff", ".avif", ".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".pnm",
)  # fmt: skip
# An explicit list, because Pillow also registers formats that start other programs (EPS, PDF).
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "JPEG2000", "PPM")

_BITS, _WHITE_IS_ZERO, _SIGN = 258, 262, 339  # tags of a TIFF
_DARK = (
    "a picture of 16 bits holds no value above {top:,.0f} and is read as one of {bits} bits: scale "
    "it to 16 bits if it is meant to be that dark"
)
_BLACK = (
    "a picture of 16 bits a colour holds no value above 4,095, of which the upper 8 bits are read: "
    "it is nearly black; scale it to 16 bits, or save it with 8"
)


def open_image(source: str | Path | bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode one image, given as a path or as the bytes of a file, to 8-bit RGB.

    EXIF rotation is applied, transparency is laid over white, and of an animation the first frame
    is taken. Grey of more than 8 bits keeps its range: that of 8, 10, 12 or 16 bits, by what it
    holds. Raises UserError, with the file's name and the fix, if the file is missing, a folder,
    empty, not an image, damaged, smaller than 16 x 16 pixels, or larger than `max_pixels` (read
    from the header: such a file is never decoded).
    """
    with _opened(source, max_pixels) as (image, name):
        width, height = image.size
        if min(width, height) < MIN_SIDE:
            raise UserError(
                f"{name} is {width} x {height} pixels, too small to show a face: "
                f"give an image of at least {MIN_SIDE} x {MIN_SIDE} pixels"
            )
        try:
            deep = _has_deep_colour(image)
            image.load()
            shown = to_rgb(_upright(image), getattr(image, "tag_v2", None))
            if deep and np.asarray(shown).max() < 16:
                warnings.warn(_BLACK, stacklevel=2)
            return shown
        except Exception as error:  # a hostile file can raise nearly anything inside a decoder
            raise _damaged(name, error) from error


def size_of(source: str | Path | bytes) -> tuple[int, int]:
    """(width, height) in pixels of what `open_image` gives, read from the header alone. Raises
    UserError for a file that is missing, no image or too large."""
    with _opened(source, MAX_PIXELS) as (image, _):
        return image.size[::-1] if _is_turned(image) else image.size


@contextlib.contextmanager
def _opened(source: str | Path | bytes, max_pixels: int) -> Iterator[tuple[Image.Image, str]]:
    """(the image, its pixels not yet decoded; its name in messages), without Pillow's warnings."""
    name = "the image bytes" if isinstance(source, bytes) else f"'{source}'"
    if not isinstance(source, bytes):
        _check_is_file(Path(source), name)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\b")
        try:
            image = Image.open(
                io.BytesIO(source) if isinstance(source, bytes) else source, formats=_FORMATS
            )
        except Image.DecompressionBombError as error:
            # Pillow's own limit (about 179 MP) strikes before it hands over the size.
            found = re.search(r"(\d+) pixels", str(error))
            raise _too_large(name, int(found[1]) if found else 0, max_pixels) from None
        except Image.UnidentifiedImageError:
            raise UserError(f"{name} {_what_is_it(source)}") from None
        except Exception as error:  # in a header as in the pixels
            raise _damaged(name, error) from error
        with image:
            width, height = image.size
            if width * height > max_pixels:
                raise _too_large(name, width * height, max_pixels, f"{width} x {height} pixels, ")
            yield image, name


def find_images(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    """Expand folders (recursively, sorted, hidden files skipped) to image files; keep given files.

    A file that is named explicitly is kept whatever its suffix, `open_image` judges it. Raises
    UserError if a path does not exist, a folder holds no image, or nothing was given.
    """
    found: list[Path] = []
    for path in [Path(paths)] if isinstance(paths, str | Path) else map(Path, paths):
        if not path.is_dir():
            _check_is_file(path, f"'{path}'")
            found.append(path)
            continue
        files = [
            file
            for file in sorted(path.rglob("*"))
            if file.is_file()
            and not any(part.startswith(".") for part in file.relative_to(path).parts)
        ]
        images = [file for file in files if file.suffix.lower() in SUFFIXES]
        others = [file for file in files if file.suffix.lower() not in SUFFIXES]
        if images and others:
            warnings.warn(
                f"folder '{path}': {len(others):,} files are left out, as their names do not end "
                f"as those of images do, the first: {others[0].relative_to(path)}",
                stacklevel=2,
            )
        if not images:
            raise UserError(
                f"folder '{path}' holds no image (files of other kinds: {len(files)}): "
                f"put images in it ({' '.join(SUFFIXES)}), or give another folder"
            )
        found += images
    if not found:
        raise UserError("no images were given: name at least one image file or folder")
    return found


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # broken EXIF data says nothing about the pixels, which are fine
        return image


def _is_turned(image: Image.Image) -> bool:
    """Whether `_upright` swaps width and height."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
    except Exception:  # as in _upright
        return False


def _has_deep_colour(image: Image.Image) -> bool:
    """Whether an image that is not decoded yet has 16 bits a colour; Pillow drops the lower 8."""
    return ";16" in str(getattr(image, "tile", "")) and not image.mode.startswith("I")


def to_rgb(image: Image.Image, tags: Mapping[int, Any] | None = None) -> Image.Image:
    """A decoded image of any mode as 8-bit RGB, transparency laid over white. `tags` are those of
    the TIFF that it was read from."""
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_grey_of_8_bits(image, tags or {})).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _grey_of_8_bits(image: Image.Image, tags: Mapping[int, Any]) -> np.ndarray:
    """The pixels (height, width) of an image of integers or floats, scaled to 8 bits by what they
    hold: Pillow would clip them, and a scale of 16 bits would turn a picture of 12 of them black.

    Integers of 8, 10, 12 or 16 bits keep their range (with a warning for 10 and 12 if the file does
    not state them), floats that of 0 to 1, or from 0 to their greatest; values below 0 and beyond
    16 bits are stretched from the least to the greatest.
    """
    grey = np.asarray(image)
    if image.mode == "I" and tags.get(_BITS) == (32,) and tags.get(_SIGN, (1,)) == (1,):
        grey = grey.view(np.uint32)  # Pillow reads unsigned numbers as signed ones
    values = grey.astype(np.float64)
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    values = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
    if low >= 0 and grey.dtype.kind == "f":
        low, high = 0.0, max(1.0, high)
    elif low >= 0 and high <= 65535:
        stated = (1 << tags.get(_BITS, (16,))[0]) - 1
        low, high = 0.0, float(next(top for top in (255, 1023, 4095, 65535) if high <= top))
        if 255 <= stated < 65535:
            high = float(stated)
        elif high in (1023, 4095):
            warnings.warn(_DARK.format(top=high, bits=10 if high == 1023 else 12), stacklevel=3)
    scaled = (values - low) * (255 / (high - low or 1))
    if tags.get(_WHITE_IS_ZERO, 1) == 0:
        scaled = 255 - scaled
    return scaled.round().astype(np.uint8)


def _check_is_file(path: Path, name: str) -> None:
    if path.is_dir():
        raise UserError(f"{name} is a folder: give one image file inside it")
    if not path.exists():
        raise UserError(f"{name} does not exist: check the spelling of the path")
    if not path.is_file():
        raise UserError(f"{name} is not a regular file: give an image file")


def _too_large(name: str, pixels: int, limit: int, size: str = "") -> UserError:
    return UserError(
        f"{name} is too large: {size}{pixels / 1e6:.1f} megapixels, the limit is "
        f"{limit / 1e6:g}: shrink it, or crop the face"
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
