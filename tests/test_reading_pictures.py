"""Pictures as people have them: deep, broken, and read once."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from helpers.tables import failure, table
from miniatures import face
from PIL import Image

from vlmface import data
from vlmface.data import check, decodable
from vlmface.errors import UserError
from vlmface.utils import contact_sheet
from vlmface.utils.images import open_image

pytestmark = pytest.mark.usefixtures("cache")


# --- pictures -------------------------------------------------------------------------------------

RAMP = np.tile(np.linspace(0, 1, 64), (32, 1))


def opened(array: np.ndarray, path: Path, **options) -> np.ndarray:
    Image.fromarray(array).save(path, **options)
    return np.asarray(open_image(path))[..., 0].astype(float)


@pytest.mark.parametrize(
    ("array", "name"),
    [
        ((RAMP * 255).astype(np.int32), "a.tif"),
        ((RAMP * 255).astype(np.uint16), "a.png"),
        ((RAMP * 65535).astype(np.uint16), "a.png"),
        ((RAMP * 65535).astype(np.uint16), "a.tif"),
        ((RAMP * 65535).astype(np.int32), "a.tif"),
        ((RAMP * (2**31 - 1)).astype(np.int32), "a.tif"),
        (((RAMP - 0.5) * 1000).astype(np.int32), "a.tif"),
        (RAMP.astype(np.float32), "a.tif"),
        ((RAMP * 252).astype(np.float32), "a.tif"),
        ((RAMP * 1e6).astype(np.float32), "a.tif"),
    ],
)
def test_deep_pictures_are_scaled_by_what_they_hold(tmp_path, array, name):
    assert np.abs(opened(array, tmp_path / name) - RAMP * 255).max() <= 1.5


@pytest.mark.parametrize("bits", [10, 12])
def test_a_picture_of_a_few_bits_in_sixteen_is_stretched_aloud(tmp_path, bits):
    array = (RAMP * (2**bits - 1)).astype(np.uint16)
    with pytest.warns(UserWarning, match=f"is read as one of {bits} bits"):
        assert np.abs(opened(array, tmp_path / "a.png") - RAMP * 255).max() <= 1


def tiff(array: np.ndarray, tag: int, value: int) -> bytes:
    """A TIFF in which a tag of one short number is set to a value."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "TIFF")
    raw = bytearray(buffer.getvalue())
    entry = raw.index(struct.pack("<HHI", tag, 3, 1))
    raw[entry + 8 : entry + 12] = struct.pack("<I", value)
    return bytes(raw)


def test_unsigned_numbers_and_white_is_zero_of_a_tiff():
    large = (RAMP * (2**32 - 1)).astype(np.uint32).view(np.int32)
    unsigned = np.asarray(open_image(tiff(large, 339, 1)))[..., 0]
    assert np.abs(unsigned - RAMP * 255).max() <= 1
    negative = tiff((RAMP * 65535).astype(np.uint16), 262, 0)
    assert np.abs(np.asarray(open_image(negative))[..., 0] - (1 - RAMP) * 255).max() <= 1


def deep_colour(top: int) -> bytes:
    """A PNG of 16 bits a colour, whose brightest is `top`."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    pixels = np.repeat((RAMP * top)[..., None], 3, 2).astype(">u2")
    lines = b"".join(b"\0" + line.tobytes() for line in pixels)
    size = struct.pack(">IIBBBBB", 64, 32, 16, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", size)
        + chunk(b"IDAT", zlib.compress(lines))
        + chunk(b"IEND", b"")
    )


def test_deep_colour_that_turns_black_says_so():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.asarray(open_image(deep_colour(65535))).max() == 255
    with pytest.warns(UserWarning, match="it is nearly black"):
        open_image(deep_colour(4095))


def broken_table(tmp_path: Path) -> Path:
    path = table(tmp_path, "image,emotion\n0.png,happy\n1.png,sad\n2.png,fear\n")
    whole = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(whole[: len(whole) // 2])
    return path


def test_a_broken_picture_can_be_left_out_or_found_before_the_run(tmp_path):
    path = broken_table(tmp_path)
    assert len(data.load("table", path)) == 3
    with pytest.warns(UserWarning, match=r"1 of 3 rows .* are left out, the first: '.*1\.png'"):
        rows = data.load("table", path, broken="drop")
    assert rows["emotion"] == ["happiness", "fear"]
    assert "1 of 3 rows have a picture that cannot be decoded" in failure(path, broken="error")
    assert "broken='no': use 'keep', 'error' or 'drop'" in failure(path, broken="no")
    assert "1.png" in str(check.check("table", path)["errors"])
    mixture = tmp_path / "mix.yaml"
    mixture.write_text("sources: [{dataset: table, root: t.csv, options: {broken: drop}}]")
    with pytest.warns(UserWarning, match="1 of 3 rows"):
        assert len(data.load(mixture)) == 2
    mixture.write_text("sources: [{dataset: table, root: t.csv}]")
    with pytest.warns(UserWarning, match="1 of 3 rows"):
        assert len(data.load(mixture, broken="drop")) == 2
    for name in ("0.png", "2.png"):
        (tmp_path / name).write_bytes(b"")
    with pytest.warns(UserWarning, match="3 of 3 rows"):
        assert "no row is left" in failure(path, broken="drop")


def test_a_picture_that_was_decoded_is_not_decoded_again_until_it_changes(tmp_path, monkeypatch):
    opened: list[str] = []

    def note(source: str) -> Image.Image:
        opened.append(Path(source).name)
        return open_image(source)

    monkeypatch.setattr(decodable, "open_image", note)
    path = broken_table(tmp_path)
    with pytest.warns(UserWarning, match="1 of 3 rows"):
        data.load("table", path, broken="drop")
    assert sorted(opened) == ["0.png", "1.png", "2.png"]
    opened.clear()
    face(tmp_path / "2.png", 9, (50, 40))
    with pytest.warns(UserWarning, match="1 of 3 rows"):
        data.load("table", path, broken="drop")
    assert sorted(opened) == ["1.png", "2.png"]


def test_a_clip_with_a_broken_frame_is_left_out(tmp_path):
    from miniatures import dfew

    dfew.write(tmp_path)
    rows = data.load("dfew", tmp_path, **dfew.ARGUMENTS)
    frame = rows.with_format("arrow")[:]["frames"][0].as_py()[0]["path"]
    Path(frame).write_bytes(b"\xff\xd8\xff")
    with pytest.warns(UserWarning, match=f"1 of {len(rows)} rows"):
        left = data.load("dfew", tmp_path, broken="drop", **dfew.ARGUMENTS)
    assert left["id"][:] == rows["id"][1:]


def test_training_on_a_broken_picture_names_the_way_out(tmp_path):
    from vlmface.data.row_images import open_row_image

    path = broken_table(tmp_path)
    with pytest.raises(
        UserError, match=r"1\.png.* is damaged.*--dataset_options '\{broken: drop\}'"
    ):
        open_row_image({"bytes": None, "path": str(path.parent / "1.png")})


def test_a_caption_of_any_length_is_fitted_at_once():
    tile = Image.new("RGB", (20, 20))
    drawn = contact_sheet.draw(
        [contact_sheet.Tile(tile, "x" * 200_000 + "end", ("two\nlines " * 20_000, "ok"))]
    )
    buffer = io.BytesIO()
    drawn.save(buffer, "PNG")
    font = contact_sheet.ImageFont.load_default(11)
    short = contact_sheet._fit("a" * 500 + "z", font)
    assert short.startswith("a") and short.endswith("z") and "…" in short
    assert font.getlength(short) <= contact_sheet.TILE - 8 < font.getlength("a" + short)
    assert contact_sheet._fit("short", font) == "short"
