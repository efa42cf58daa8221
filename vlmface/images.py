"""Open any image file a user may have as upright 8-bit RGB, or say in one line why that fails."""

from __future__ import annotations

import codecs
import contextlib
import io
import re
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from vlmface.errors import UserError

MAX_PIXELS = 64_000_000
MIN_SIDE = 16
SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".jp2",
    ".ppm", ".pgm", ".pnm",
)  # fmt: skip
# An explicit list, because Pillow also registers formats that start other programs (EPS, PDF).
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "JPEG2000", "PPM")


def open_image(source: str | Path | bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode one image, given as a path or as the bytes of a file, to 8-bit RGB.

    EXIF rotation is applied, transparency is laid over white, 16-bit grey keeps its range, and of
    an animation the first frame is taken. Raises UserError, with the file's name and the fix, if
    the file is missing, a folder, empty, not an image, damaged, smaller than 16 x 16 pixels, or
    larger than `max_pixels` (read from the header: such a file is never decoded).
    """
    with _opened(source, max_pixels) as (image, name):
        width, height = image.size
        if min(width, height) < MIN_SIDE:
            raise UserError(
                f"{name} is {width} x {height} pixels, too small to show a face: "
                f"give an image of at least {MIN_SIDE} x {MIN_SIDE} pixels"
            )
        try:
            image.load()
            return to_rgb(_upright(image))
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


def to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        # Pillow clips these to 0..255 when it converts, which turns a 16-bit photograph white.
        grey = np.asarray(image).astype(np.float32 if image.mode.startswith("I;") else np.float64)
        grey = np.nan_to_num(grey, nan=0.0, posinf=0.0, neginf=0.0)
        low, high = float(grey.min()), float(grey.max())
        if image.mode != "F" and low >= 0 and high <= 65535:
            low, high = 0.0, 65535.0
        scaled = (grey - low) * (255 / (high - low or 1))
        return Image.fromarray(scaled.round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


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
