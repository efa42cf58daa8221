"""The picture files behind rows, and work on many of them in threads."""

from __future__ import annotations

import hashlib
import os
import stat
import warnings
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vlmface.errors import UserError
from vlmface.images import open_image

if TYPE_CHECKING:
    import datasets

    from vlmface.data.rows import Rows

Source = str | bytes  # the path of a picture, or its encoded bytes
T = TypeVar("T")
R = TypeVar("R")


def sources(rows: Rows | datasets.Dataset) -> list[list[Source]]:
    """The pictures of each row, undecoded: its image, or the frames of a clip."""
    columns: Any = getattr(rows, "columns", None)
    if not isinstance(columns, dict):
        columns = rows.select_columns(["image", "frames"]).with_format("arrow")[:]  # type: ignore[union-attr]
        columns = {name: columns[name] for name in columns.column_names}
    images, clips = (_listed(columns.get(name), len(rows)) for name in ("image", "frames"))
    return [
        [_stored(image)] if image is not None else [_stored(frame) for frame in clip or ()]
        for image, clip in zip(images, clips, strict=True)
    ]


def _listed(values: Any, n: int) -> list[Any]:
    if values is None:
        return [None] * n
    return values.to_pylist() if hasattr(values, "to_pylist") else list(values)


def _stored(value: Any) -> Source:
    return value if isinstance(value, str | bytes) else value["bytes"] or value["path"]


def content(source: Source) -> bytes:
    """The encoded bytes of a picture. Raises OSError, also for what is not a regular file: a pipe
    or a device has no end."""
    if isinstance(source, bytes):
        return source
    if not stat.S_ISREG(os.stat(source).st_mode):
        raise OSError(f"'{source}' is not a regular file")
    return Path(source).read_bytes()


def digest(encoded: bytes) -> str:
    """32 hex digits that tell contents apart."""
    return hashlib.blake2b(encoded, digest_size=16).hexdigest()


def decodable(rows: datasets.Dataset, what: str, broken: str) -> datasets.Dataset:
    """The rows whose pictures can be decoded, all of which are; `what` names them in messages.

    With `broken` "drop" other rows are left out, with a warning that counts them; with "error" they
    are a UserError that names the first.
    """
    pictures = sources(rows)
    every = list(dict.fromkeys(source for row in pictures for source in row))
    faults = {
        source: fault
        for source, fault in zip(every, in_threads(_fault, every, "decoding"), strict=True)
        if fault
    }
    if not faults:
        return rows
    lost = [row for row, of_row in enumerate(pictures) if any(one in faults for one in of_row)]
    first = next(iter(faults.values()))
    if broken == "error":
        raise UserError(
            f"{what}: {len(lost):,} of {len(rows):,} rows have a picture that cannot be decoded, "
            f"the first: {first}; to leave such rows out, load with broken='drop'"
        )
    warnings.warn(
        f"{what}: {len(lost):,} of {len(rows):,} rows with a picture that cannot be decoded are "
        f"left out, the first: {first}",
        stacklevel=3,
    )
    if len(lost) == len(rows):
        raise UserError(f"{what}: no row is left, as no picture can be decoded, such as {first}")
    gone = set(lost)
    return rows.select([row for row in range(len(rows)) if row not in gone])


def _fault(source: Source) -> str | None:
    """Why a picture cannot be decoded; None if it can be."""
    try:
        open_image(source)
    except UserError as error:
        return str(error)
    return None


def in_threads(
    work: Callable[[T], R],
    items: Sequence[T],
    title: str,
    *,
    workers: int | None = None,
    progress: bool = True,
) -> Iterator[R]:
    """`work` of each item, in order, with a progress bar. Reading and decoding release the
    interpreter's lock, so threads (by default one a core) use all cores."""
    from joblib import cpu_count
    from tqdm import tqdm

    with ThreadPool(workers or cpu_count()) as pool:
        results = pool.imap(work, items, chunksize=8)
        yield from tqdm(results, title, len(items), unit="picture", disable=not progress)
