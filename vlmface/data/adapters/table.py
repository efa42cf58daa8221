"""Your own faces: a table, a folder of tables, or a folder of folders named by label.

faces.csv                 `file,label,...` with a header; comma, semicolon, tab or |; also .csv.gz
faces.jsonl               {"file": "a/1.jpg", "label": "happy"}; or a list of such as .json
faces.parquet             paths, or pictures as `datasets` stores them
faces.xlsx                a sheet of a workbook (pip install 'vlmface[xlsx]')
faces/train-00000-of-00002.parquet     shards, or one table for each split, also in `data`
faces/dataset_dict.json   what `save_to_disk` of `datasets` wrote
faces/anger/1.jpg         labels as folder names, or
faces/train/anger/1.jpg   the same below train, validation and test
"""

from __future__ import annotations

import dataclasses
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from vlmface.data.rows import Rows, json_meta
from vlmface.data.tables import boxes, tools
from vlmface.data.tables.cells import required_texts
from vlmface.data.tables.columns import Source, check_media, find_columns, warn_of_no_label
from vlmface.data.tables.files import open_table
from vlmface.data.tables.folders import (
    holds_tables,
    open_folder,
    read_label_folders,
    split_folders,
    table_splits,
)
from vlmface.data.tables.labels import read_labels
from vlmface.data.tables.media import Media, read_media
from vlmface.data.tables.name_pattern import fields_of_names
from vlmface.data.tables.options import SPLITS, TableOptions
from vlmface.data.tables.ratings import join_ratings
from vlmface.data.tables.splits import SPLIT_WORDS, rows_of_split, splits_of_rows
from vlmface.data.tables.table import Table
from vlmface.data.tables.units import read_units, unit_labels
from vlmface.data.tables.votes import majority, read_votes
from vlmface.data.tables.where import rows_where
from vlmface.errors import UserError

__all__ = ["SPLITS", "TableOptions", "present_splits", "read"]
TITLE = "your own table or image folder"
HOME = "a csv, tsv, json, jsonl, parquet or xlsx file, or a folder of them or of label folders"
LICENCE = "that of your data"
# Options of label folders; the others are about tables.
OF_FOLDERS = ("labels", "label_field", "label_space", "file_split", "name_pattern")


def read(root: Path, split: str, options: TableOptions) -> Rows:
    """The rows of a table, or of a folder of tables or label folders.

    Args:
        root: the file or the folder.
        split: one of SPLITS.
        options: how it is read; each is an option of the data set.
    """
    if root.is_dir() and not holds_tables(root, options):
        _refuse_options(root, options)
        return read_label_folders(root, split, options)
    is_folder = root.is_dir()
    table = open_folder(root, split, options) if is_folder else open_table(root, options)
    if not is_folder:
        _warn_of_other_shards(root)
    options = tools.with_usual_options(options, table)
    source = find_columns(table, options.columns or {})
    if options.tool is None:
        check_media(table, source)
    skipped: dict[str, list[str]] = {}
    rows = rows_of_split(table, split, options, by_name=is_folder)
    rows = _kept(table, rows, options, skipped)
    media = read_media(table, source, rows, options, skipped)
    columns = _columns(table, source, media, options)
    if options.votes_in_rows:
        columns = join_ratings(columns, options, str(table.path), majority)
    return Rows(columns, skipped)


def _warn_of_other_shards(path: Path) -> None:
    shard = re.search(r"-(\d{5})-of-(\d{5})$", path.stem)
    if shard and int(shard[2]) > 1:
        warnings.warn(
            f"{path} is part {int(shard[1]) + 1} of {int(shard[2])}: the other parts are not read. "
            "Pass the folder to read them all",
            stacklevel=2,
        )


def _kept(
    table: Table, rows: np.ndarray, options: TableOptions, skipped: dict[str, list[str]]
) -> np.ndarray:
    """The rows that the filter keeps and in which a tool found a face."""
    if options.where is not None:
        fulfilled = rows_where(table, options.where, options.decimal)[rows]
        if not fulfilled.all():
            reason = f"not where {options.where}"
            skipped[reason] = [table.place(row) for row in rows[~fulfilled].tolist()]
        rows = rows[fulfilled]
    reason, lost = tools.lost_rows(table, rows, options)
    if lost.any():
        skipped[reason] = [table.where(row) for row in rows[lost].tolist()]
    return rows[~lost]


def _columns(table: Table, source: Source, media: Media, options: TableOptions) -> dict[str, Any]:
    """The columns of all fields."""
    rows = media.rows
    several = "face_box" in source or options.tool is not None
    columns: dict[str, Any] = {"id": media.ids(several), media.field: media.values}
    if media.videos is not None:
        columns["meta"] = json_meta(len(rows), video=media.videos)
    if "id" in source:
        columns["id"] = [f"table-{name}" for name in required_texts(table, str(source["id"]), rows)]
    columns |= read_labels(table, source, rows, options)
    columns |= read_votes(table, source, rows, options)
    if options.name_pattern is not None:
        columns |= _fields_of_names(columns, media, options)
    if "rationale" in columns:
        written = np.array([text is not None for text in columns["rationale"]], bool)
        names = np.where(written, options.rationale_source, "none")
        columns |= {
            "rationale_source": names.tolist(),
            "rationale_saw_label": written & options.rationale_saw_label,
        }
    if "face_box" in source:
        columns["face_box"] = boxes.read_boxes(table, source, rows, media.values, options)
    elif options.tool == "openface" and not media.aligned:
        corners = boxes.landmark_boxes(table, rows, options.decimal)
        if corners is not None:
            columns["face_box"] = boxes.corners_column(
                table, ["x_0"], rows, media.values, corners, options
            )
    if options.aus is not None:
        columns["aus"] = read_units(table, rows, options, clip=options.tool == "libreface")
    if options.au_labels:
        if "aus" not in columns or "context" in columns:
            raise UserError(
                f"{table.path}: au_labels needs columns of action units, and none of labels: name "
                "the former in aus=, and the latter not in columns="
            )
        columns["context"] = unit_labels(columns["aus"])
    if not columns.keys() - {"id", "image", "frames", "subject", "face_box", "meta"}:
        warn_of_no_label(table, source, options)
    return columns


def _fields_of_names(
    columns: dict[str, Any], media: Media, options: TableOptions
) -> dict[str, Any]:
    """The fields of the option `name_pattern`. Raises UserError for one that a column holds."""
    pairs = zip(media.names, media.values, strict=True)
    paths = [value if isinstance(value, str) else name for name, value in pairs]
    fields = fields_of_names(paths, options)
    if twice := sorted(fields.keys() & columns.keys()):
        raise UserError(
            f"both a column and name_pattern={options.name_pattern!r} hold the {twice[0]}: leave "
            f"one out, columns={{{twice[0]!r}: None}}"
        )
    return fields


def _refuse_options(root: Path, options: TableOptions) -> None:
    """Raise UserError for options of a table, where `root` is a folder of label folders."""
    for field in dataclasses.fields(options):
        if field.name not in OF_FOLDERS and getattr(options, field.name) != field.default:
            raise UserError(
                f"{root} is a folder of label folders, which {field.name}= does not apply to; give "
                "the table's file itself"
            )


def present_splits(root: Path, **values: Any) -> tuple[str, ...]:
    """The splits that a copy has: those of its folders or files, of its `split_column`, or
    `file_split`."""
    options = TableOptions(**values)
    if root.is_dir() and not holds_tables(root, options):
        folders = split_folders(root)
        parts = {SPLIT_WORDS[p.name.lower()] for p in folders} or {options.file_split}
    elif options.split_column is not None:
        table = open_folder(root, "", options) if root.is_dir() else open_table(root, options)
        parts = set(splits_of_rows(table, options))
    else:
        parts = set(table_splits(root, options)) if root.is_dir() else {options.file_split}
    return tuple(split for split in SPLITS if split in parts)
