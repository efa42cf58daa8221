"""Image files: open them as upright RGB, read their sizes, find them in folders."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

from PIL import Image

from vlmface.errors import UserError
from vlmface.utils import image_headers, isolated
from vlmface.utils.image_decoding import MAX_PIXELS, UNNAMED, decode, opened

# Names of image files, in any letter case: in folders, data sets and archives alike.
SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".jif",
    ".pjpeg",
    ".pjp",
    ".png",
    ".apng",
    ".webp",
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
    ".avif",
    ".jp2",
    ".j2k",
    ".ppm",
    ".pgm",
    ".pbm",
    ".pnm",
)


def open_image(source: str | Path | bytes, *, max_pixels: int | None = None) -> Image.Image:
    """Decode one image to upright 8-bit RGB.

    EXIF rotation is applied, transparency is laid over white, and of an animation the first frame
    is taken. Grey of more than 8 bits keeps its range: that of 8, 10, 12 or 16 bits, by what it
    holds.

    Args:
        source: A path, or the bytes of a file.
        max_pixels: For pictures of strangers, such as uploads: the limit on their pixels. They are
            decoded in a process of its own, whose memory and time are limited accordingly (see
            `vlmface.utils.isolated`). By default the limit is MAX_PIXELS, and this process decodes.

    Returns:
        The image, which holds no open file.

    Raises:
        UserError: With the file's name and the fix, if the file is missing, a folder, empty, not an
            image, damaged, smaller than 16 x 16 pixels, larger than the limit (read from the
            header: such a file is never decoded), or would cost far more to read than its pixels.
    """
    name = _checked_name(source)
    if max_pixels is None:
        return decode(source, name, MAX_PIXELS)
    content = source if isinstance(source, bytes) else Path(source).read_bytes()
    image_headers.check(content, name)
    return isolated.submit(content, name, max_pixels).result()


def without_suffix(name: str) -> str:
    """A name without the ending of a picture, in any letter case."""
    lower = name.lower()
    return name[: len(name) - next((len(s) for s in SUFFIXES if lower.endswith(s)), 0)]


def size_of(source: str | Path | bytes) -> tuple[int, int]:
    """(width, height) in pixels of what `open_image` gives, read from the header alone. Raises
    UserError for a file that is missing, no image or too large."""
    with opened(source, _checked_name(source), MAX_PIXELS) as (image, orientation):
        return image.size[::-1] if orientation in (5, 6, 7, 8) else image.size


def find_images(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    """Expand folders (recursively, sorted, hidden files skipped) to image files; keep given files.

    A file that is named explicitly is kept whatever its suffix, `open_image` judges it. Raises
    UserError if a path does not exist, a folder holds no image, or nothing was given.
    """
    image_paths: list[Path] = []
    for path in [Path(paths)] if isinstance(paths, str | Path) else map(Path, paths):
        if not path.is_dir():
            _check_is_file(path, f"'{path}'")
            image_paths.append(path)
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
        image_paths += images
    if not image_paths:
        raise UserError("no images were given: name at least one image file or folder")
    return image_paths


def _checked_name(source: str | Path | bytes) -> str:
    """What messages call a picture. Raises UserError unless it is a file."""
    if isinstance(source, bytes):
        return UNNAMED
    _check_is_file(Path(source), f"'{source}'")
    return f"'{source}'"


def _check_is_file(path: Path, name: str) -> None:
    if path.is_dir():
        raise UserError(f"{name} is a folder: give one image file inside it")
    if not path.exists():
        raise UserError(f"{name} does not exist: check the spelling of the path")
    if not path.is_file():
        raise UserError(f"{name} is not a regular file: give an image file")


Size = tuple[int, int]  # width, height in pixels


ImageOrImages: TypeAlias = "Image.Image | Sequence[Image.Image]"  # the model's input of one row


def as_list(images: ImageOrImages) -> list[Image.Image]:
    """One image or several as a list."""
    return list(images) if isinstance(images, list | tuple) else [images]  # type: ignore[list-item]


def sizes_of(images: ImageOrImages) -> list[Size]:
    """(width, height) of each image."""
    return [image.size for image in as_list(images)]


def data_uri(
    image: Image.Image,
    *,
    image_format: Literal["JPEG", "PNG"] = "JPEG",
    max_side: int | None = None,
    quality: int = 90,
) -> str:
    """Encode an image as a data URI.

    Args:
        image: Its pixels only are encoded, without metadata such as place and time.
        image_format: PNG is lossless.
        max_side: Larger images are reduced to it, in pixels.
        quality: Of a JPEG.

    Returns:
        "data:image/...;base64,...".
    """
    rgb = image.convert("RGB")
    if max_side is not None:
        rgb.thumbnail((max_side, max_side))
    buffer = io.BytesIO()
    rgb.save(buffer, image_format, quality=quality)
    content = base64.b64encode(buffer.getvalue()).decode()
    return f"data:image/{image_format.lower()};base64,{content}"
