from __future__ import annotations

import io
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlmface.errors import UserError
from vlmface.utils.images import find_images, open_image, size_of


@pytest.fixture(autouse=True)
def _warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def gradient(width: int = 32, height: int = 24) -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - x], -1).astype(np.uint8))


def mean_difference(a: Image.Image, b: Image.Image) -> float:
    return float(np.abs(np.asarray(a, float) - np.asarray(b, float)).mean())


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels, as a decompression bomb does."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def failure(path: Path | bytes) -> str:
    with pytest.raises(UserError) as caught:
        open_image(path)
    message = str(caught.value)
    assert "\n" not in message
    if isinstance(path, Path):
        assert path.name in message
    return message


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "ppm", "jpg", "webp", "avif", "jp2"])
def test_formats_keep_the_picture(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"face.{suffix}"
    gradient().save(path)
    image = open_image(path)
    assert image.mode == "RGB"
    assert image.size == (32, 24)
    assert mean_difference(image, gradient()) < 8


def test_bytes_give_the_same_picture_as_the_file(tmp_path: Path) -> None:
    path = tmp_path / "face.png"
    gradient().save(path)
    assert mean_difference(open_image(path.read_bytes()), open_image(str(path))) == 0


def test_palette_and_cmyk_and_bilevel(tmp_path: Path) -> None:
    for mode, suffix in (("P", "png"), ("CMYK", "jpg"), ("1", "png"), ("L", "png")):
        path = tmp_path / f"{mode}.{suffix}"
        gradient().convert(mode).save(path)
        image = open_image(path)
        assert image.mode == "RGB"
        assert mean_difference(image, gradient().convert(mode).convert("RGB")) < 8


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    grey = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (32, 1))
    path = tmp_path / f"grey.{suffix}"
    Image.fromarray(grey).save(path)
    got = np.asarray(open_image(path))
    assert np.abs(got[..., 0] - grey / 257).max() <= 0.5
    assert (got[..., 0] == got[..., 2]).all()


def test_16_bit_pgm_and_float_tiff(tmp_path: Path) -> None:
    ramp = np.tile(np.arange(64), (32, 1))
    pgm = tmp_path / "grey.pgm"
    pgm.write_bytes(b"P5 64 32 65535\n" + (ramp * 1040).astype(">u2").tobytes())
    assert np.abs(np.asarray(open_image(pgm))[..., 0] - ramp * 1040 / 257).max() <= 0.5
    tif = tmp_path / "grey.tif"
    holes = np.where(ramp == 0, np.nan, np.where(ramp == 1, np.inf, ramp)).astype(np.float32)
    Image.fromarray(holes).save(tif)
    assert np.abs(np.asarray(open_image(tif))[:, 2:, 0] - ramp[:, 2:] / 63 * 255).max() <= 0.5
    Image.fromarray((ramp / 63).astype(np.float32)).save(tif)
    assert np.abs(np.asarray(open_image(tif))[..., 0] - ramp / 63 * 255).max() <= 0.5


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_over_white(tmp_path: Path, mode: str) -> None:
    black = Image.new("RGBA", (20, 20), (0, 0, 0, 255))
    black.paste((0, 0, 0, 0), (0, 0, 10, 20))
    path = tmp_path / "clear.png"
    black.convert(mode).save(path)
    image = open_image(path)
    assert image.getpixel((2, 10)) == (255, 255, 255)
    assert image.getpixel((15, 10)) == (0, 0, 0)


def test_palette_with_transparency_in_bytes(tmp_path: Path) -> None:
    path = tmp_path / "clear.png"
    image = Image.new("P", (20, 20), 1)
    image.putpalette([0, 0, 0, 200, 0, 0] + [0] * 762)
    image.paste(0, (0, 0, 10, 20))
    image.save(path, transparency=b"\x00\xff")
    assert open_image(path).getpixel((2, 10)) == (255, 255, 255)
    assert open_image(path).getpixel((15, 10)) == (200, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_undone(tmp_path: Path, orientation: int) -> None:
    stored = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    image = gradient()
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "photo.png"
    turned = image.transpose(stored[orientation]) if orientation in stored else image
    turned.save(path, exif=exif)
    assert mean_difference(open_image(path), image) == 0
    assert size_of(path) == size_of(path.read_bytes()) == image.size


def test_broken_exif_does_not_cost_the_picture(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    gradient().save(path, exif=b"Exif\0\0II*\0\xff\xff\xff\x7f" + b"\xff" * 40)
    assert open_image(path).size == size_of(path) == (32, 24)


def test_the_size_of_what_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.png' does not exist"):
        size_of(tmp_path / "gone.png")
    (tmp_path / "text.jpg").write_text("hello")
    with pytest.raises(UserError, match=r"text\.jpg' holds text"):
        size_of(tmp_path / "text.jpg")


def test_animation_gives_its_first_frame(tmp_path: Path) -> None:
    path = tmp_path / "wink.gif"
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert open_image(path).getpixel((10, 10)) == (255, 0, 0)


def test_missing_and_folder(tmp_path: Path) -> None:
    assert "does not exist" in failure(tmp_path / "nobody.jpg")
    folder = tmp_path / "faces.jpg"
    folder.mkdir()
    assert "is a folder" in failure(folder)


def test_zero_bytes(tmp_path: Path) -> None:
    path = tmp_path / "zero.jpg"
    path.touch()
    assert "is empty (0 bytes)" in failure(path)
    assert "is empty (0 bytes)" in failure(b"")


def test_text_named_jpg(tmp_path: Path) -> None:
    path = tmp_path / "page.jpg"
    path.write_text("<!DOCTYPE html>\n<html><body>403 Forbidden é</body></html>\n" * 9)
    message = failure(path)
    assert "holds text, not an image" in message
    assert "<!DOCTYPE html>" in message


def test_other_things_that_are_no_images(tmp_path: Path) -> None:
    path = tmp_path / "face.jpg"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
    assert "git lfs pull" in failure(path)
    path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(300))
    assert "convert it to JPEG" in failure(path)
    path.write_bytes(bytes(range(128, 256)) * 4)
    assert "80 81 82 83" in failure(path)
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n%%EndComments\n")
    assert "not an image" in failure(path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "tif", "bmp", "jp2", "avif"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_files(tmp_path: Path, suffix: str, share: float) -> None:
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8))
    path = tmp_path / f"cut.{suffix}"
    noise.save(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    message = failure(path)
    assert "damaged or cut off" in message or "not an image in a known format" in message


def test_corrupt_pixels(tmp_path: Path) -> None:
    path = tmp_path / "bad.png"
    gradient(200, 200).save(path)
    data = bytearray(path.read_bytes())
    data[60:120] = b"\xff" * 60
    path.write_bytes(data)
    assert "damaged or cut off" in failure(path)


def test_random_damage_never_escapes_as_another_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for suffix in ("jpeg", "png", "gif", "tiff", "webp", "bmp", "ppm"):
        buffer = io.BytesIO()
        gradient(64, 64).save(buffer, suffix)
        for _ in range(60):
            data = np.frombuffer(buffer.getvalue(), np.uint8).copy()
            where = rng.integers(0, min(len(data), 400), 6)
            data[where] = rng.integers(0, 256, 6)
            try:
                assert open_image(data.tobytes()).mode == "RGB"
            except UserError as error:
                assert str(error).startswith("the image bytes ")


@pytest.mark.parametrize("size", [(10_000, 10_000), (20_000, 20_000)])
def test_pixel_bomb_is_refused_from_its_header(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(*size))
    message = failure(path)
    assert f"{size[0] * size[1] / 1e6:.1f} megapixels" in message
    assert "the limit is 64" in message


def test_real_100_megapixel_file_and_a_lower_limit(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    Image.new("1", (10_000, 10_000)).save(path)
    assert "10000 x 10000 pixels, 100.0 megapixels" in failure(path)
    gradient(40, 30).save(path)
    with pytest.raises(UserError, match="40 x 30 pixels"):
        open_image(path, max_pixels=1199)
    assert open_image(path, max_pixels=1200).size == (40, 30)


@pytest.mark.parametrize("size", [(1, 1), (15, 200), (200, 15)])
def test_too_small(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "dot.png"
    Image.new("RGB", size).save(path)
    message = failure(path)
    assert f"{size[0]} x {size[1]} pixels" in message
    assert "at least 16 x 16" in message


def test_find_images(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "deep/c.webp", "notes.txt", ".hidden.jpg", ".cache/d.jpg"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.touch()
    with pytest.warns(UserWarning, match=r"1 files are left out.* the first: notes\.txt"):
        images = find_images(tmp_path)
    names = [path.relative_to(tmp_path).as_posix() for path in images]
    assert names == ["a.png", "b.JPG", "deep/c.webp"]
    given = [tmp_path / "notes.txt", tmp_path / "deep"]
    assert find_images(given) == [tmp_path / "notes.txt", tmp_path / "deep" / "c.webp"]


def test_find_images_says_what_is_wrong(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match=r"'.*empty' holds no image .*kinds: 0"):
        find_images([empty])
    (empty / "notes.txt").touch()
    with pytest.raises(UserError, match=r"'.*empty' holds no image .*kinds: 1"):
        find_images(empty)
    with pytest.raises(UserError, match=r"'.*nobody.jpg' does not exist"):
        find_images([tmp_path / "nobody.jpg"])
    with pytest.raises(UserError, match="no images were given"):
        find_images([])


@pytest.mark.skipif(sys.platform != "linux", reason="reads the limits of a process from /proc")
def test_a_low_limit_leaves_a_worker_the_memory_that_decoders_need(tmp_path: Path) -> None:
    path = tmp_path / "small.png"
    gradient(40, 30).save(path)
    code = (
        "import sys\nfrom pathlib import Path\nfrom vlmface.utils import isolated\n"
        "from vlmface.utils.images import open_image\n"
        "open_image(sys.argv[1], max_pixels=1200)\n"
        "folder = Path(f'/proc/{next(iter(isolated._workers)).pid}')\n"
        "limit = (folder / 'limits').read_text().split('Max data size')[1].split()[0]\n"
        "used = (folder / 'status').read_text().split('VmData:')[1].split()[0]\n"
        "print(int(limit) - 1024 * int(used))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert int(done.stdout or -1) > 8 * 2**20, done.stderr
