"""The picture files behind rows, and work on many of them in threads."""

from __future__ import annotations

import hashlib
import itertools
import os
import stat
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vlmface.errors import UserError

if TYPE_CHECKING:
    import datasets

    from vlmface.data.rows import Rows

CHUNK = 4  # items that a thread takes at once
AHEAD = 3  # chunks a thread that are under work, or done and not taken yet
Source = str | bytes  # the path of a picture, or its encoded bytes
_BLOCK = 1000  # rows whose pictures are in memory at once, where they are stored in the rows
T = TypeVar("T")
R = TypeVar("R")


def image_sources(rows: Rows | datasets.Dataset) -> list[list[Source]]:
    """The pictures of each row, undecoded: its image, or the frames of a clip."""
    columns: Any = getattr(rows, "columns", None)
    if not isinstance(columns, dict):
        columns = rows.select_columns(["image", "frames"]).with_format("arrow")[:]  # type: ignore[union-attr]
        columns = {name: columns[name] for name in columns.column_names}
    images, clips = (_as_lists(columns.get(name), len(rows)) for name in ("image", "frames"))
    return [
        [_stored(image)] if image is not None else [_stored(frame) for frame in clip or ()]
        for image, clip in zip(images, clips, strict=True)
    ]


def _as_lists(values: Any, n: int) -> list[Any]:
    if values is None:
        return [None] * n
    return values.to_pylist() if hasattr(values, "to_pylist") else list(values)


def _stored(value: Any) -> Source:
    return value if isinstance(value, str | bytes) else value["bytes"] or value["path"]


def read_content(source: Source) -> bytes:
    """The encoded bytes of a picture.

    Raises:
        OSError: the file cannot be read, or is a pipe or a device, which may have no end.
    """
    if isinstance(source, bytes):
        return source
    if not stat.S_ISREG(os.stat(source).st_mode):
        raise OSError(f"'{source}' is not a regular file")
    return Path(source).read_bytes()


def content_digest(encoded: bytes) -> str:
    """32 hex digits that identify a content."""
    return hashlib.blake2b(encoded, digest_size=16).hexdigest()


def row_digests(rows: datasets.Dataset) -> Iterator[str]:
    """For each row in order, the digests of its pictures. Raises UserError."""
    from tqdm import tqdm

    def of_row(pictures: Sequence[Source]) -> str:
        try:
            return " ".join(content_digest(read_content(picture)) for picture in pictures) + "\n"
        except OSError as error:
            raise UserError(f"a picture cannot be read ({error}): restore it") from error

    many = 20_000  # rows that take a moment
    starts = range(0, len(rows), _BLOCK)
    with (
        ThreadPoolExecutor() as pool,
        tqdm(desc="reading pictures", total=len(rows), unit="row", disable=len(rows) < many) as bar,
    ):
        for start in starts:
            block = rows.select(range(start, min(start + _BLOCK, len(rows))))
            yield from pool.map(of_row, image_sources(block))
            bar.update(len(block))


def map_in_threads(
    work: Callable[[T], R],
    items: Sequence[T],
    title: str,
    *,
    workers: int | None = None,
    progress: bool = True,
) -> Iterator[R]:
    """Map a function over items in threads, with a progress bar. Reading and decoding release the
    interpreter's lock, so threads use all cores.

    Threads run a few chunks ahead of the consumer and then wait, so that results do not accumulate
    in memory when the disk is slow.

    Args:
        work: the function.
        items: its arguments.
        title: of the progress bar.
        workers: number of threads, by default one for each core.
        progress: show the progress bar.

    Yields:
        The results, in order.
    """
    from joblib import cpu_count
    from tqdm import tqdm

    threads = workers or cpu_count()
    chunks = (items[start : start + CHUNK] for start in range(0, len(items), CHUNK))
    waiting: deque[Future[list[R]]] = deque()
    with (
        ThreadPoolExecutor(threads) as pool,
        tqdm(desc=title, total=len(items), unit="picture", disable=not progress) as bar,
    ):
        try:
            while True:
                for chunk in itertools.islice(chunks, AHEAD * threads - len(waiting)):
                    waiting.append(pool.submit(lambda part: [work(item) for item in part], chunk))
                if not waiting:
                    return
                for result in waiting.popleft().result():
                    yield result
                    bar.update()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
