"""Many packs, few open files; slow disks; large indexes."""

from __future__ import annotations

import io
import os
import pickle
import random
import resource
import sqlite3
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vlmface.data import crop_cache, crops, sources
from vlmface.data.dataset_rows import to_dataset
from vlmface.data.row_images import open_row_image
from vlmface.data.rows import Rows
from vlmface.errors import UserError

CROP = crops.View(size=16)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("VLMFACE_CACHE", str(tmp_path / "cache"))
    yield
    crop_cache._pack.cache_clear()


def colour(number: int) -> tuple[int, int, int]:
    return number % 256, number // 256, 7


def rows_of(n: int) -> Any:
    """n rows of pictures of one colour each, held in memory."""
    stored = []
    for number in range(n):
        buffer = io.BytesIO()
        Image.new("RGB", (16, 16), colour(number)).save(buffer, "PNG")
        stored.append(buffer.getvalue())
    ids = [f"x-{number}" for number in range(n)]
    return to_dataset(Rows({"id": ids, "image": stored, "face_box": [None] * n}), "x", "train")


def cached(n: int) -> Any:
    with pytest.warns(UserWarning, match="no face boxed"):
        return crop_cache.cache_view(rows_of(n), CROP, progress=False)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The stored pictures of 1,100 rows, each in a pack of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLMFACE_CACHE", str(tmp_path_factory.mktemp("packs")))
        patch.setattr(crop_cache, "IMAGES_PER_PACK", 1)
        faces = cached(1100)["image"][:]
    assert len({face["path"].partition("#")[0] for face in faces}) == 1100
    return faces


@pytest.fixture
def few_files() -> Iterator[None]:
    """As `ulimit -n 256` does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def check(face: Any, number: int) -> None:
    pixels = np.asarray(open_row_image(face))
    assert (pixels == colour(number)).all(), number


def test_1100_packs_and_256_open_files(many: list[Any], few_files: None) -> None:
    order = [number for number in range(1100) for _ in range(2)]
    random.Random(0).shuffle(order)
    before = open_files()
    for number in order:
        check(many[number], number)
    assert open_files() - before <= crop_cache.OPEN_PACKS


def test_threads_share_the_packs(many: list[Any], few_files: None) -> None:
    """Eight threads drop each other's packs all the time."""
    order = list(range(1100)) * 2
    random.Random(1).shuffle(order)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(check, [many[number] for number in order], order))
    assert open_files() < 256


class Faces(torch.utils.data.Dataset[Any]):
    def __init__(self, faces: list[Any]) -> None:
        self.faces = faces

    def __len__(self) -> int:
        return len(self.faces)

    def __getitem__(self, number: int) -> int:
        check(self.faces[number], number)
        return number


def test_workers_share_what_their_parent_had_open(many: list[Any], few_files: None) -> None:
    for number in range(40):
        check(many[number], number)
    loader = torch.utils.data.DataLoader(
        Faces(many[:300]), batch_size=10, num_workers=2, multiprocessing_context="fork"
    )
    for _ in range(2):
        assert sum(len(batch) for batch in loader) == 300
    check(many[0], 0)


def test_rows_are_pickled_with_packs_open(tmp_path: Path) -> None:
    rows = cached(3)
    images = rows["image"]
    check(images[0], 0)
    again = pickle.loads(pickle.dumps(rows))
    for number, face in enumerate(again["image"]):
        check(face, number)


def test_what_cannot_be_read_says_what_helps(tmp_path: Path) -> None:
    (stored,) = cached(1)["image"][:]
    pack = Path(stored["path"].partition("#")[0])
    whole = pack.read_bytes()
    for content in (b"", whole[:40], whole[:-1], b"not numpy" + whole, pickle.dumps([1])):
        pack.write_bytes(content)
        crop_cache._pack.cache_clear()
        with pytest.raises(UserError, match="delete that folder, the faces will be rendered again"):
            open_row_image(stored)
    pack.unlink()
    with pytest.raises(UserError, match="delete that folder"):
        open_row_image(stored)
    with pytest.raises(UserError, match="check the disk and who may read"):
        pack.mkdir()
        open_row_image(stored)


def test_too_few_files_are_no_reason_to_delete_the_cache(many: list[Any]) -> None:
    crop_cache._pack.cache_clear()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        with pytest.raises(UserError, match="raise the limit of open files"):
            crop_cache.open_view(many[0]["path"])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# --- a slow disk ----------------------------------------------------------------------------------


def test_work_waits_for_whoever_takes_the_results() -> None:
    lock, started, most = threading.Lock(), [0], 0

    def work(item: int) -> int:
        with lock:
            started[0] += 1
        return item * 2

    threads, taken = 3, 0
    for result in sources.map_in_threads(work, range(600), "x", workers=threads, progress=False):
        assert result == taken * 2  # in order
        if taken % 50 == 0:
            time.sleep(0.02)
        most = max(most, started[0] - taken)
        taken += 1
    assert taken == 600 and most <= (threads * sources.AHEAD + 1) * sources.CHUNK


def test_work_that_fails_or_is_given_up_ends() -> None:
    done: list[int] = []

    def work(item: int) -> int:
        done.append(item)
        if item == 100:
            raise UserError("no picture")
        return item

    found = []
    with pytest.raises(UserError, match="no picture"):
        for item in sources.map_in_threads(work, range(10_000), "x", workers=2, progress=False):
            found.append(item)
    assert found == list(range(100)) and len(done) < 200
    done.clear()
    results = sources.map_in_threads(work, range(50), "x", workers=2, progress=False)
    assert next(results) == 0
    results.close()
    assert len(done) < 50 and threading.active_count() < 20
    assert list(sources.map_in_threads(work, [], "x", progress=False)) == []


def test_faces_do_not_pile_up_before_a_slow_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """At any time, a pack that is being written and a few faces more are in memory."""
    monkeypatch.setattr(crop_cache, "IMAGES_PER_PACK", 16)
    rows, render = rows_of(320), crop_cache.render_view
    write: Callable[..., None] = crop_cache.files.atomic_write
    made, written, most = [0], [0], [0]

    def counted(*arguments: Any) -> Any:
        made[0] += 1
        most[0] = max(most[0], made[0] - written[0])
        return render(*arguments)

    def slow(path: Path, content: Any) -> None:
        time.sleep(0.03)
        write(path, content)
        written[0] += 16

    monkeypatch.setattr(crop_cache, "render_view", counted)
    monkeypatch.setattr(crop_cache.files, "atomic_write", slow)
    with pytest.warns(UserWarning, match="no face boxed"):
        crop_cache.cache_view(rows, CROP, workers=4, progress=False)
    assert made[0] == written[0] == 320
    assert most[0] <= 16 + (4 * sources.AHEAD + 1) * sources.CHUNK


# --- a large index --------------------------------------------------------------------------------


def test_a_few_rows_do_not_read_the_whole_index(tmp_path: Path) -> None:
    paths = []
    for number in range(3):
        paths.append(str(tmp_path / f"{number}.png"))
        Image.new("RGB", (16, 16), colour(number)).save(paths[-1])
    rows = to_dataset(
        Rows({"id": paths, "image": paths, "face_box": [[0, 0, 9, 9]] * 3}), "x", "train"
    )
    first = crop_cache.cache_view(rows, CROP, progress=False)["image"][:]
    others = 50_000
    with sqlite3.connect(CROP.folder / "index.sqlite") as index:
        index.executemany(
            "insert into faces values (?, 'other.npy', 0, 1)",
            ((number.to_bytes(16, "big"),) for number in range(others)),
        )
        index.executemany(
            "insert into pictures values (?, 1, 1, 'x')",
            ((f"/other/{number}",) for number in range(others)),
        )
    tracemalloc.start()
    again = crop_cache.cache_view(rows, CROP, progress=False)["image"][:]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert again == first
    assert peak < 40 * others  # the lines of either table take more than 100 bytes each


def test_more_keys_than_a_statement_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crop_cache, "KEYS_PER_QUERY", 3)
    first, again = cached(10)["image"][:], cached(10)["image"][:]
    assert first == again
