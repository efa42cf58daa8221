"""Pictures that would cost far more to read than their pixels, and the processes that decode
those of strangers."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.hostile_images import BIG, DEAR, REFUSED, jpeg, segment, tags
from helpers.hostile_requests import chunk, encoded, png
from helpers.samples import picture
from PIL import Image

from vlmface.errors import UserError
from vlmface.utils import image_headers, isolated
from vlmface.utils.images import open_image, size_of

LIMIT = 24_000_000
FACE = encoded(picture(1, (64, 48)), "JPEG")


def failure(content: bytes, **how: int) -> str:
    with pytest.raises(UserError) as caught:
        open_image(content, **how)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def worker() -> isolated.Worker:
    """One of those at work."""
    open_image(FACE, max_pixels=LIMIT)
    return next(one for one in isolated._workers if one.alive)


# --- what headers say -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", REFUSED)
def test_what_costs_too_much_is_refused_by_its_headers(name: str) -> None:
    content = REFUSED[name]()
    began = time.process_time()
    assert "would cost far more to read than its pixels do" in failure(content)
    with pytest.raises(UserError, match="would cost far more"):
        size_of(content)
    assert time.process_time() - began < 1


@pytest.mark.parametrize("name", ["jpeg_scans", "png_texts", "gif_comments", "tiff_tags"])
def test_so_is_a_file_on_a_disk(name: str, tmp_path: Path) -> None:
    path = tmp_path / "picture"
    path.write_bytes(REFUSED[name]())
    with pytest.raises(UserError, match=r"picture' would cost far more"):
        open_image(path)


def _progressive() -> bytes:
    return encoded(picture(1, (320, 240)), "JPEG", progressive=True, quality=95)


def _many_frames(kind: str) -> bytes:
    frames = [picture(i, (48, 48)) for i in range(40)]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:])


HONEST: dict[str, Callable[[], bytes]] = {
    "progressive": _progressive,
    "thumbnail": lambda: jpeg(
        segment(0xE1, b"Exif\0\0" + tags(1, 20_000)), segment(0xFE, b"a" * 60_000)
    ),
    "profile": lambda: jpeg(
        *[segment(0xE2, b"ICC_PROFILE\0" + bytes([i, 50]) + bytes(60_000)) for i in range(1, 51)]
    ),
    "appended video": lambda: _progressive() + b"\xff\xda\0\0" * 1_000,
    "gallery": lambda: _progressive() * 20,
    "padding": lambda: jpeg(b"\xff" * 100, segment(0xFE, b"comment")),
    "png texts": lambda: png(64, 64, *[chunk(b"tEXt", b"k\0value" * 1_000)] * 30),
    "png small chunks": lambda: png(64, 64, *[chunk(b"IDAT", b"")] * 9_000),
    "png frames": lambda: _many_frames("PNG"),
    "gif frames": lambda: _many_frames("GIF"),
    "webp frames": lambda: _many_frames("WEBP"),
    "tiff pages": lambda: _many_frames("TIFF"),
    "tiff strips": lambda: encoded(
        picture(1, (64, 4000)), "TIFF", compression="tiff_lzw", tiffinfo={278: 1}
    ),
    "tiff jpeg": lambda: encoded(picture(1, (400, 3000)), "TIFF", compression="jpeg"),
    "avif exif": lambda: encoded(picture(1, (64, 48)), "AVIF", exif=tags(3, 4_000)),
    "jpeg2000": lambda: encoded(picture(1, (64, 48)), "JPEG2000"),
    "bmp": lambda: encoded(picture(1, (64, 48)), "BMP"),
    "ppm": lambda: b"P6 # a comment\n64 48\n255\n" + picture(1, (64, 48)).tobytes(),
    "pgm text": lambda: b"P2\n20 20 15\n" + b"7 " * 400,
}


@pytest.mark.parametrize("name", HONEST)
def test_what_cameras_and_editors_write_is_read(name: str) -> None:
    content = HONEST[name]()
    image = open_image(content)
    assert image.size == size_of(content)
    assert np.array_equal(image, open_image(content, max_pixels=LIMIT))


@pytest.mark.parametrize(
    "kind", ["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "AVIF", "JPEG2000", "PPM"]
)
def test_a_cut_or_changed_file_is_one_message(kind: str) -> None:
    """The walk through the headers meets any bytes."""
    content = encoded(picture(3, (80, 60)), kind)
    rng = np.random.default_rng(0)
    for i in range(300):
        changed = bytearray(content[: int(rng.integers(1, len(content)))] if i % 2 else content)
        for at in rng.integers(0, min(len(changed), 400), 3):
            changed[at] = rng.integers(256)
        for read in (size_of, open_image):
            try:
                read(bytes(changed))
            except UserError as error:
                assert "\n" not in str(error)


def test_orientation_is_read_as_pillow_does() -> None:
    for order, head in (("<", b"II*\0"), (">", b"MM\0*")):
        import struct

        for turn in range(1, 9):
            exif = head + struct.pack(f"{order}IHHHIHHI", 8, 1, 0x112, 3, 1, turn, 0, 0)
            assert image_headers.orientation_of(exif) == turn
            late = png(40, 20)[:-12] + chunk(b"eXIf", exif) + chunk(b"IEND", b"")
            for content in (
                png(40, 20, chunk(b"eXIf", exif)),
                late,
                encoded(picture(1, (40, 20)), "WEBP", exif=exif),
                encoded(picture(1, (40, 20)), "TIFF", exif=exif),
            ):
                expected = (20, 40) if turn >= 5 else (40, 20)
                assert open_image(content).size == size_of(content) == expected
    assert image_headers.orientation_of(b"II*\0\x08\0\0\0\x01\0") is None


# --- processes ------------------------------------------------------------------------------------


def test_a_worker_decodes_as_this_process_does(tmp_path: Path) -> None:
    for name, image in {
        "a.png": picture(1, (300, 200)).convert("RGBA"),
        "b.jpg": picture(2, (1300, 1100)),
        "c.gif": picture(3, (31, 17)),
        "d.tif": Image.fromarray(np.arange(4000, dtype=np.uint16).reshape(50, 80)),
    }.items():
        path = tmp_path / name
        image.save(path)
        expected = open_image(path)
        for source in (path, str(path), path.read_bytes()):
            found = open_image(source, max_pixels=LIMIT)
            assert found.mode == "RGB" and np.array_equal(found, expected)
    with pytest.raises(UserError, match=r"a\.png' is too large.*limit is 0\.01"):
        open_image(tmp_path / "a.png", max_pixels=10_000)


def test_a_worker_that_is_killed_costs_one_picture() -> None:
    lost = worker()
    os.kill(lost.pid, signal.SIGKILL)
    lost._process.wait()
    assert open_image(FACE, max_pixels=LIMIT).size == (64, 48)
    busy = worker()
    os.kill(busy.pid, signal.SIGSTOP)
    pending = [isolated.submit(FACE, "face", LIMIT) for _ in range(isolated.WORKERS * 2)]
    time.sleep(0.2)
    os.kill(busy.pid, signal.SIGKILL)
    failed = [one for one in pending if one.exception() is not None]
    assert len(failed) <= 1
    assert all("takes more memory or time" in str(one.exception()) for one in failed)
    assert open_image(FACE, max_pixels=LIMIT).size == (64, 48)


def test_time_and_memory_of_a_worker_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the checks of headers: what they do not know is stopped here."""
    monkeypatch.setattr(image_headers, "check", lambda *_: None)
    # MediaPipe's threads let a process ignore SIGPROF, which its children inherit.
    code = (
        "import signal, vlmface.utils.image_headers as h; h.check = lambda *_: None\n"
        "signal.signal(signal.SIGPROF, signal.SIG_IGN)\n"
        "from vlmface.utils.isolated import serve; serve({})"
    )
    real = subprocess.Popen

    def unchecked(words: list[str], **how: object) -> subprocess.Popen[bytes]:
        return real([*words[:-1], code.format(words[-1].split("serve(")[1].rstrip(")"))], **how)  # type: ignore[call-overload,no-any-return]

    isolated.close()
    monkeypatch.setattr(subprocess, "Popen", unchecked)
    try:
        for name in ("jpeg_scans_without_data", "tiff_tags"):
            spent = resource.getrusage(resource.RUSAGE_CHILDREN)
            pending, peak = isolated.submit(REFUSED[name](), "picture", LIMIT), 0.0
            while not pending.done():
                for one in list(isolated._workers):
                    with contextlib.suppress(IndexError, OSError):  # it starts, or has ended
                        peak = max(peak, _peak(one.pid))
                time.sleep(0.01)
            assert isinstance(pending.exception(), UserError)
            isolated.close()
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            assert after.ru_utime + after.ru_stime - spent.ru_utime - spent.ru_stime < 4
            assert 20 < peak < 380  # of which 50 are the process itself
    finally:
        monkeypatch.undo()
        isolated.close()


def test_workers_end_with_their_parent() -> None:
    code = (
        "import sys, time\nfrom vlmface.utils import isolated\n"
        "from vlmface.utils.images import open_image\n"
        "open_image(bytes.fromhex(sys.argv[1]), max_pixels=10**6)\n"
        "print(next(iter(isolated._workers)).pid, flush=True)\ntime.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, FACE.hex()], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert Path(f"/proc/{pid}").exists()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    until = time.monotonic() + 20
    while _runs(pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert not _runs(pid)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_signals_for_the_group_do_not_end_a_worker() -> None:
    busy = worker()
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(busy.pid, number)
    open_image(FACE, max_pixels=LIMIT)
    assert busy.alive


def test_a_worker_is_light() -> None:
    """It must not load PyTorch."""
    status = Path(f"/proc/{worker().pid}/status").read_text()
    assert int(status.split("VmRSS:")[1].split()[0]) < 80 * 1024
    assert "libtorch" not in Path(f"/proc/{worker().pid}/maps").read_text()


def test_what_libraries_write_of_a_file_is_not_shown(capfd: pytest.CaptureFixture[str]) -> None:
    broken = bytearray(encoded(picture(1, (64, 64)), "TIFF", compression="tiff_deflate"))
    broken[20:60] = bytes(40)
    failure(bytes(broken), max_pixels=LIMIT)
    assert capfd.readouterr().err == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", DEAR)
def test_what_headers_allow_stays_within_time_and_memory(name: str) -> None:
    """24 megapixels from a few bytes: refused, or read within 2 s of processor time and 300 MB."""
    isolated.close()
    pid = worker().pid
    before = _peak(pid)
    content, began = DEAR[name](), time.process_time()
    spent = _seconds(pid)
    try:
        assert max(open_image(content, max_pixels=LIMIT).size) <= max(BIG)
    except UserError as error:
        assert "\n" not in str(error)
    assert time.process_time() - began < 2
    if _runs(pid):
        assert _seconds(pid) - spent < 2
        assert _peak(pid) - before < 300


def _peak(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6


def _seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
