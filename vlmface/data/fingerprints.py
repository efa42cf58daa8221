"""A short hash of a data set's content."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from vlmface.data import sources
from vlmface.schema import features

if TYPE_CHECKING:
    import datasets

_BLOCK = 1000  # rows that are in memory at once


def fingerprint(rows: datasets.Dataset, *, pictures: bool = True) -> str:
    """12 hex digits over the annotation and the pictures of all rows in order: same data, same
    digits.

    Args:
        rows: FaceSample rows as `load` gives them, before `crop_cache.apply_views`.
        pictures: read the bytes of all pictures, in threads and undecoded, so that a file that was
            exchanged is noticed; a picture counts by its content, wherever it is stored.

    Raises:
        UserError: a picture cannot be read.
    """
    columns = [name for name in features() if name not in ("image", "frames")]
    plain = rows.select_columns(columns).with_format("arrow")
    digest = hashlib.sha256()
    for start in range(0, len(rows), _BLOCK):
        block = plain[start : start + _BLOCK]
        for column in columns:
            _update(digest, block[column])
    if pictures:
        for content in sources.row_digests(rows):
            digest.update(content.encode())
    return digest.hexdigest()[:12]


def _update(digest: Any, column: Any) -> None:
    """Add the values of an Arrow column to a digest. Lists and structs are taken apart first, since
    their conversion to Python takes most of the time."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_list(column.type):
        digest.update(repr(pc.list_value_length(column).to_pylist()).encode())
        _update(digest, pc.list_flatten(column))
    elif pa.types.is_struct(column.type):
        for field in column.type:
            _update(digest, pc.struct_field(column, field.name))
    else:
        digest.update(repr(column.to_pylist()).encode())
