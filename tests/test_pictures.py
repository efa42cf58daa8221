"""Whatever a program holds a picture in, it becomes the same upright RGB."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.samples import picture
from PIL import ExifTags, Image

from vlmface.errors import UserError
from vlmface.utils import image_conversion
from vlmface.utils.image_conversion import as_inputs, as_picture
from vlmface.utils.images import open_image

RGB = np.asarray(picture(1, (40, 30)))
RGBA = np.dstack([RGB, np.full(RGB.shape[:2], 255, np.uint8)])
GREY = RGB[..., 0]


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


class Unseekable(io.BytesIO):
    def seekable(self) -> bool:
        return False

    def seek(self, *_: Any) -> int:
        raise io.UnsupportedOperation("seek")


def half_read(content: bytes) -> io.BytesIO:
    file = io.BytesIO(content)
    file.read(10)
    return file


COLOUR: dict[str, Callable[[], Any]] = {
    "PIL": lambda: Image.fromarray(RGB),
    "RGBA": lambda: Image.fromarray(RGBA),
    "bytes": lambda: png(Image.fromarray(RGB)),
    "bytearray": lambda: bytearray(png(Image.fromarray(RGB))),
    "memoryview": lambda: memoryview(png(Image.fromarray(RGB))),
    "file": lambda: io.BytesIO(png(Image.fromarray(RGB))),
    "half-read file": lambda: half_read(png(Image.fromarray(RGB))),
    "pipe": lambda: Unseekable(png(Image.fromarray(RGB))),
    "array": lambda: RGB,
    "channels first": lambda: RGB.transpose(2, 0, 1),
    "not contiguous": lambda: RGB[:, ::-1][:, ::-1],
    "array of RGBA": lambda: RGBA,
    "float": lambda: RGB / 255,
    "float16": lambda: (RGB / 255).astype(np.float16),
    "float to 255": lambda: RGB.astype(np.float32),
    "overshooting float": lambda: np.where(RGB.max() == RGB, 1.04, RGB / 255) - 0.0,
    "int64": lambda: RGB.astype(np.int64),
    "uint16": lambda: RGB.astype(np.uint16) * 257,
    "big-endian": lambda: (RGB.astype(np.uint16) * 257).astype(">u2"),
    "tensor": lambda: torch.from_numpy(RGB.copy()).permute(2, 0, 1),
    "tensor, channels last": lambda: torch.from_numpy(RGB.copy()),
    "tensor of floats": lambda: torch.from_numpy(RGB / 255).permute(2, 0, 1).requires_grad_(),
    "tensor of integers": lambda: torch.from_numpy(RGB.astype(np.int64)).permute(2, 0, 1),
}


@pytest.mark.parametrize("kind", COLOUR)
def test_a_colour_picture_of_any_kind(kind: str) -> None:
    found = as_picture(COLOUR[kind]())
    assert found.mode == "RGB" and found.size == (40, 30)
    off = np.abs(np.asarray(found).astype(int) - RGB).max()
    assert off <= (10 if kind == "overshooting float" else 0), off


@pytest.mark.parametrize(
    "grey",
    [
        GREY,
        GREY[..., None],
        GREY[None],
        GREY / 255,
        GREY.astype(np.uint16) * 257,
        torch.from_numpy(GREY.copy()),
        torch.from_numpy(GREY.copy())[None],
        Image.fromarray(GREY),
        torch.from_numpy(GREY.copy())[..., None],
    ],
)
def test_a_grey_picture_of_any_kind(grey: Any) -> None:
    assert (np.asarray(as_picture(grey)) == GREY[..., None]).all()


def test_a_path_of_any_kind(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(RGB).save(path)
    with path.open("rb") as file:
        for source in (path, str(path), file):
            assert (np.asarray(as_picture(source)) == RGB).all()
    with pytest.raises(UserError, match="holds text, not an image"):
        as_picture(str(path).encode())


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "CMYK", "YCbCr", "HSV", "LAB", "F", "I", "RGBX", "RGBa"]
)
def test_every_mode_becomes_what_a_file_would(mode: str) -> None:
    image = Image.fromarray(RGB).convert("RGBA" if mode == "RGBa" else "RGB").convert(mode)
    found = as_picture(image)
    assert found.mode == "RGB" and found.size == (40, 30)
    if mode not in ("CMYK", "YCbCr", "HSV", "LAB", "F", "PA", "RGBX", "RGBa"):  # PNG has these
        assert (np.asarray(found) == np.asarray(open_image(png(image)))).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_tag_turns_a_picture_once(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, kind, exif=exif)
    upright = open_image(buffer.getvalue())
    assert upright.size == ((40, 30) if orientation < 5 else (30, 40))
    opened = Image.open(buffer)
    for source in (buffer.getvalue(), opened, opened.convert("RGB"), upright):
        assert (np.asarray(as_picture(source)) == np.asarray(upright)).all()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (None, "is of type NoneType: give a path"),
        (7, "is of type int"),
        ({}, "is of type dict"),
        ([1, 2], "is of type list"),
        (np.float32(3), "of type float32"),
        (np.zeros((30, 40), complex), "array of complex128"),
        (np.full((30, 40), "x"), "array of <U1"),
        (np.zeros((30, 40), object), "array of object"),
        (np.zeros((2, 3, 30, 40)), r"shape \(2, 3, 30, 40\)"),
        (np.zeros((30, 40, 5)), "shape"),
        (np.zeros(30), "shape"),
        (np.zeros((0, 0, 3)), "0 x 0 pixels, too small"),
        (np.full((30, 40), np.nan), "floats from nan"),
        (np.full((30, 40), -1), "from -1 to -1"),
        ((RGB / 255 - 0.5) / 0.25, "before any normalisation"),
        (torch.zeros(3, 30, 40) - 2.1, "before any normalisation"),
        (np.full((30, 40), 70000), "0 to 65535"),
        (np.zeros((8, 40), np.uint8), "too small"),
        (np.zeros((9000, 9000), np.uint8), "the limit is 64 megapixels"),
        (io.StringIO("text"), "gives str instead of bytes"),
        (b"", "empty"),
        ("no/such/file.png", "does not exist"),
        ("x" * 5000, "not the path of a file"),
        ("a\0b", "does not exist|not the path"),
        (".", "is a folder"),
        (Image.new("RGB", (5, 40)), "too small"),
    ],
)
def test_what_is_no_picture_is_one_message(wrong: Any, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        as_picture(wrong)
    assert "\n" not in str(error.value)


def test_files_that_are_gone_are_one_message(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(RGB).save(path)
    late = Image.open(path)
    late.close()
    closed = path.open("rb")
    closed.close()
    for source in (late, closed):
        with pytest.raises(UserError, match="cannot be"):
            as_picture(source)
    content = png(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)))
    cut = Image.open(io.BytesIO(content[: len(content) // 2]))
    with pytest.raises(UserError, match="damaged, cut off or closed"):
        as_picture(cut)


def test_one_picture_or_many() -> None:
    one = Image.fromarray(RGB)
    singles = ["a.png", Path("a.png"), b"", io.BytesIO(), one, RGB, GREY, torch.zeros(3, 30, 40)]
    for single in singles:
        found, alone = as_inputs(single)
        assert found == [single] or found[0] is single
        assert alone
    several = [
        [one, one],
        (one, one),
        iter([one, one]),
        (x for x in (one, one)),
        np.stack([RGB] * 2),
        torch.zeros(2, 3, 30, 40),
        {1: one, 2: one}.values(),
    ]
    for many in several:
        found, alone = as_inputs(many)
        assert len(found) == 2 and not alone
    assert as_inputs([]) == ([], False)
    for wrong in (None, 3, {"a": one}, {1, 2}):
        with pytest.raises(UserError, match=f"pictures are of type {type(wrong).__name__}"):
            as_inputs(wrong)


def test_nothing_is_copied_or_turned_for_the_detector() -> None:
    image = Image.fromarray(RGB)
    assert image_conversion.as_rgb(image) is image and as_picture(image) is image
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    turned = Image.fromarray(RGB)
    turned.info["exif"] = exif.tobytes()
    assert image_conversion.as_rgb(turned).size == (40, 30) and as_picture(turned).size == (30, 40)
