"""`Rows` as a `datasets.Dataset`: checks of whole columns, and conversion to Arrow."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vlmface import facs, label_spaces
from vlmface.data.image_paths import Folders
from vlmface.data.rows import Rows, resolve_image_paths
from vlmface.errors import UserError
from vlmface.schema import FaceSample, features

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa


def to_dataset(rows: Rows, name: str, split: str, *, missing: str = "error") -> datasets.Dataset:
    """The `datasets.Dataset` of the rows. Warns, with numbers and reasons, of what was skipped.

    Args:
        rows: as an adapter returns them.
        name: of the data set.
        split: of the rows.
        missing: "error", or "drop" rows whose image does not exist.

    Returns:
        FaceSample rows; images are decoded on access.

    Raises:
        UserError: an image is missing, a label is out of range, or an id occurs twice.
    """
    import datasets
    import pyarrow as pa

    if missing not in ("error", "drop"):
        raise UserError(f"missing={missing!r}: use 'error' or 'drop'")
    for reason, row_names in rows.skipped.items():
        warnings.warn(
            f"{name}, {split}: {len(row_names):,} left out, {reason}: {row_names[0]}, ...",
            stacklevel=3,
        )
    rows = _without_missing(rows, name, split, missing)
    n = len(rows)
    if n == 0:
        raise UserError(f"{name} has no rows in split {split!r} with these options")
    columns = {
        "dataset": [name] * n,
        "split": [split] * n,
        "rationale_source": ["none"] * n,
        "rationale_saw_label": np.zeros(n, bool),
        "meta": ["{}"] * n,
    } | rows.columns
    schema = features().arrow_schema
    unknown = set(columns) - set(schema.names)
    if unknown:
        raise UserError(
            f"data set {name} fills the columns {', '.join(sorted(unknown))}, which are not fields "
            f"of FaceSample: use {', '.join(schema.names)}"
        )
    try:
        arrays = [
            _arrow(columns[f.name], f.type) if f.name in columns else pa.nulls(n, f.type)
            for f in schema
        ]
    except UnicodeEncodeError as error:  # what the file system's own bytes become
        raise UserError(
            f"{name}, split {split!r}: {error.object!a} is not Unicode text: rename the file"
        ) from error
    table = pa.Table.from_arrays(arrays, schema=schema)
    _check(table)
    return datasets.Dataset(datasets.table.InMemoryTable(table))


def _without_missing(rows: Rows, name: str, split: str, missing: str) -> Rows:
    rows, exists = resolve_image_paths(rows, f"{name}, {split}")
    if exists.all():
        return rows
    lacking = [rows.columns["image"][i] for i in np.flatnonzero(~exists)]
    if missing == "error":
        near = ", ".join(Folders().near(lacking[0]))
        hint = f" (the folder holds {near}, which differ in letter case)" if near else ""
        raise UserError(
            f"{len(lacking)} of {len(exists)} images of {name}, split {split!r}, are missing, the "
            f"first: {lacking[0]}{hint}; complete the copy, or load with missing='drop' to "
            "leave them out"
        )
    warnings.warn(
        f"{name}, {split}: {len(lacking)} rows without an image file are left out", stacklevel=3
    )
    return rows.take(exists)


def _arrow(values: Any, type_: Any) -> Any:
    import pyarrow as pa

    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if pa.types.is_struct(type_) and {f.name for f in type_} == {"bytes", "path"}:
        return _images(values, type_)
    if pa.types.is_list(type_) and pa.types.is_struct(type_.value_type):
        if isinstance(values, pa.Array):  # aus
            return values.cast(type_)
        flat = _images([path for row in values for path in row or ()], type_.value_type)
        counts = [len(row or ()) for row in values]
        offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
        gone = pa.array(np.array([row is None for row in values]))
        return pa.ListArray.from_arrays(offsets, flat, mask=gone)
    if isinstance(values, pa.Array):
        return values.cast(type_)
    return pa.array(values, type_, from_pandas=True)


def _images(values: Sequence[str | bytes | None], type_: Any) -> Any:
    import pyarrow as pa

    paths = [value if isinstance(value, str) else None for value in values]
    if all(path is not None for path in paths):
        encoded: Any = pa.nulls(len(paths), pa.binary())
    else:
        encoded = pa.array([v if isinstance(v, bytes) else None for v in values], pa.binary())
    empty = pa.array(np.array([value is None for value in values], bool))
    arrays = [encoded, pa.array(paths, pa.string())]
    return pa.StructArray.from_arrays(arrays, fields=list(type_), mask=empty)


def _check(table: pa.Table) -> None:
    """Raise the UserError of the first row that `FaceSample.validate` rejects, by checks of whole
    columns."""
    import pyarrow as pa
    import pyarrow.compute as pc

    def refuse(wrong: Any) -> None:
        """`wrong` (n,): null or true where a row may be wrong."""
        for row in pc.indices_nonzero(pc.fill_null(wrong, False))[:1]:
            FaceSample.from_row(table.slice(row.as_py(), 1).to_pylist()[0]).validate()

    ids = table["id"]
    if pc.count_distinct(ids).as_py() != len(table):
        counts = pc.value_counts(ids.combine_chunks())
        twice = next(v for v in counts if v["counts"].as_py() > 1)["values"].as_py()
        raise UserError(
            f"id {twice!r} occurs more than once: the copy lists an image twice; "
            "of several faces in one image, each row needs an id"
        )
    emotion = table["emotion"]
    refuse(
        pc.and_(pc.is_valid(emotion), pc.invert(pc.is_in(emotion, pa.array(label_spaces.EMOTIONS))))
    )
    for name, low, high in (("valence", -1, 1), ("arousal", -1, 1), ("age", 0, 130)):
        refuse(
            pc.invert(pc.and_(pc.less_equal(low, table[name]), pc.less_equal(table[name], high)))
        )
    box = table["face_box"].combine_chunks()
    if box.null_count < len(box):
        corners = np.asarray(box.drop_null().flatten()).reshape(-1, 4)
        bad = ~((corners[:, 0] < corners[:, 2]) & (corners[:, 1] < corners[:, 3]))
        if bad.any():
            valid = np.flatnonzero(np.asarray(pc.is_valid(box)))
            flags = np.zeros(len(table), bool)
            flags[valid[bad]] = True
            refuse(pa.array(flags))
    aus = table["aus"].combine_chunks()
    if aus.null_count < len(aus):
        units = aus.flatten()
        grade = units.field("intensity")
        bad_unit = pc.or_(
            pc.invert(pc.is_in(units.field("au"), pa.array(facs.AU_NUMBERS, pa.int32()))),
            pc.fill_null(
                pc.invert(pc.and_(pc.less_equal(0, grade), pc.less_equal(grade, 5))), False
            ),
        )
        parents = pc.list_parent_indices(aus)
        flags = np.zeros(len(table), bool)
        flags[np.asarray(parents)[np.asarray(bad_unit)]] = True
        refuse(pa.array(flags))


def with_still_images(rows: datasets.Dataset) -> datasets.Dataset:
    """The rows with an `image` each: their own, or the middle frame of a clip, undecoded.

    Raises:
        UserError: a row has neither.
    """
    import datasets
    import pyarrow as pa
    import pyarrow.compute as pc

    table = rows.with_format("arrow")[:]
    images = table["image"].combine_chunks()
    if images.null_count:
        frames = table["frames"].combine_chunks()
        starts, ends = np.asarray(frames.offsets[:-1]), np.asarray(frames.offsets[1:])
        none = np.asarray(pc.is_null(images))
        if (lost := none & (starts == ends)).any():
            row = table["id"][int(np.flatnonzero(lost)[0])]
            raise UserError(f"{row} has neither an image nor frames: leave such rows out")
        middle = len(images) + (starts + ends) // 2
        index = np.where(none, middle, np.arange(len(images)))
        images = pa.concat_arrays([images, frames.values]).take(pa.array(index))
        table = table.set_column(table.schema.get_field_index("image"), "image", images)
    kinds = datasets.Features({**rows.features, "image": datasets.Image(decode=False)})
    schema = kinds.arrow_schema
    return datasets.Dataset(datasets.table.InMemoryTable(table.select(schema.names).cast(schema)))
