"""The detector: memory that does not grow with threads, pictures of any kind."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import skimage
import torch
from PIL import Image

from vlmface.data import detect, face_search
from vlmface.errors import UserError

needs_detector = pytest.mark.skipif(
    detect.unavailable_reason() is not None, reason="vlmface[detect] is missing"
)
PIXELS = skimage.data.astronaut()
ASTRONAUT = Image.fromarray(PIXELS)
THREADS = """
import json, threading
from pathlib import Path
import skimage
from PIL import Image
from vlmface.data.detect import Detector

def memory():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20

image, found, used = Image.fromarray(skimage.data.astronaut()), [], []
with Detector() as detector:
    for number in range(60):
        thread = threading.Thread(target=lambda: found.append(detector.faces(image)))
        thread.start()
        thread.join()
        used.append(memory())
print(json.dumps({"mib": [used[0], used[-1]], "boxes": [len(boxes) for boxes in found]}))
"""


@needs_detector
def test_memory_does_not_grow_with_threads_that_have_ended() -> None:
    done = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["boxes"] == [1] * 60
    first, last = found["mib"]
    assert last - first < 60, f"{first:.0f} MiB after the first thread, {last:.0f} after 60"


class Thing:
    def __init__(self) -> None:
        self.closed = False

    def close(self) -> None:
        assert not self.closed
        self.closed = True


def test_a_pool_makes_as_many_as_are_used_at_once() -> None:
    made: list[Thing] = []

    def make() -> Thing:
        made.append(Thing())
        return made[-1]

    pool = detect.Pool(make, most=3)
    for _ in range(5):
        with pool.lend() as one:
            assert one is made[0]
    inside, lent, go_on = threading.Semaphore(0), set(), threading.Event()

    def use() -> None:
        with pool.lend() as one:
            assert one not in lent and not one.closed
            lent.add(one)
            inside.release()
            go_on.wait(10)
            lent.remove(one)

    with ThreadPoolExecutor(8) as threads:
        waiting = [threads.submit(use) for _ in range(8)]
        for _ in range(3):
            assert inside.acquire(timeout=10)
        assert not inside.acquire(timeout=0.1) and len(lent) == len(made) == 3
        pool.close()  # those that are lent are closed when they come back
        go_on.set()
        for one in waiting:
            one.result(10)
    assert all(thing.closed for thing in made[:3])
    pool.close()
    pool.close()
    assert all(thing.closed for thing in made) and len(made) <= 6


def test_a_pool_survives_what_fails() -> None:
    calls = iter([OSError("no memory"), Thing(), Thing()])

    def make() -> Any:
        if isinstance(one := next(calls), OSError):
            raise one
        return one

    pool = detect.Pool(make, most=1)
    with pytest.raises(OSError, match="no memory"), pool.lend():
        pass
    with pytest.raises(ZeroDivisionError), pool.lend() as first:
        1 / 0  # noqa: B018
    with pool.lend() as again:
        assert again is first


def test_a_clear_face_is_not_taken_where_a_larger_one_is_unsure(monkeypatch: Any) -> None:
    def candidate(left: int, side: int, score: float) -> face_search.Candidate:
        return face_search.Candidate((left, 0, left + side, side), score, np.zeros((4, 2)))

    detector = detect.Detector.__new__(detect.Detector)
    image = Image.new("RGB", (400, 200))

    def boxes(*candidates: face_search.Candidate) -> list[float]:
        monkeypatch.setattr(detector, "_candidates", lambda _: list(candidates), raising=False)
        return [box[0] for box in detector._clear_faces(image)]

    small, large = candidate(0, 60, 0.95), candidate(200, 160, 0.9)
    assert boxes(small, large) == pytest.approx([196, -1.5])
    assert boxes(small, candidate(200, 160, 0.6)) == [] and boxes() == []
    assert boxes(candidate(0, 60, 0.6), large) == pytest.approx([196])


CLOSED_IN_USE = """
import threading
import skimage
from PIL import Image
from vlmface.data.detect import Detector

image = Image.fromarray(skimage.data.astronaut())
detector = Detector()
with detector._landmarkers.lend(), detector._tile_detectors.lend():
    detector.close()
threads = [
    threading.Thread(target=lambda: [detector.search(image) for _ in range(3)]) for _ in range(4)
]
for thread in threads:
    thread.start()
while any(thread.is_alive() for thread in threads):
    detector.close()
detector.close()
"""


@needs_detector
def test_a_detector_that_is_closed_in_use_ends_and_writes_nothing() -> None:
    command = [sys.executable, "-c", CLOSED_IN_USE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.fixture(scope="module")
def detector() -> Any:
    with detect.Detector() as found:
        yield found


@needs_detector
def test_the_same_boxes_from_every_thread(detector: detect.Detector) -> None:
    expected = detector.faces(ASTRONAUT)
    with ThreadPoolExecutor(6) as threads:
        assert list(threads.map(detector.faces, [ASTRONAUT] * 12)) == [expected] * 12


@needs_detector
@pytest.mark.parametrize(
    "mode", ["L", "LA", "P", "PA", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "F"]
)
def test_a_picture_of_any_mode(detector: detect.Detector, mode: str) -> None:
    image = ASTRONAUT.convert("RGBA").convert(mode) if mode == "RGBa" else ASTRONAUT.convert(mode)
    near(detector.faces(image), detector.faces(ASTRONAUT))


@needs_detector
@pytest.mark.parametrize(
    "pixels",
    [
        PIXELS,
        PIXELS / 255,
        PIXELS.astype(np.float32),
        PIXELS.astype(np.int64),
        PIXELS.transpose(2, 0, 1),
        PIXELS.astype(np.uint16) * 257,
        PIXELS[..., 0],
        torch.from_numpy(PIXELS.copy()).permute(2, 0, 1),
    ],
)
def test_an_array_of_any_kind(detector: detect.Detector, pixels: Any) -> None:
    near(detector.faces(pixels), detector.faces(ASTRONAUT))


@needs_detector
@pytest.mark.parametrize("wrong", [PIXELS.astype(object), PIXELS - 500.0, np.zeros((4, 4, 7)), 5])
def test_what_is_no_picture_is_one_message(detector: detect.Detector, wrong: Any) -> None:
    with pytest.raises(UserError):
        detector.faces(wrong)


def near(found: Any, expected: Any) -> None:
    ((own,), (other,)) = found, expected
    assert np.abs(np.array(own) - other).max() < 3, (own, other)
