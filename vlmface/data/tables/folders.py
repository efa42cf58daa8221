"""Folders: of tables (shards, one file for each split), of label folders, and data sets that
`datasets` saved."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlmface.data.records import LINES
from vlmface.data.rows import Rows
from vlmface.data.tables.file_index import is_system_file
from vlmface.data.tables.files import arrow_table, ending, open_table
from vlmface.data.tables.labels import LabelWords
from vlmface.data.tables.name_pattern import NamePattern, fields_of_names
from vlmface.data.tables.options import SPLITS, TableOptions
from vlmface.data.tables.splits import SPLIT_WORDS, check_only_split, split_of_name
from vlmface.data.tables.table import Table
from vlmface.errors import UserError
from vlmface.utils.images import SUFFIXES

ENDINGS = (".csv", ".tsv", ".tab", *LINES, ".parquet", ".xlsx")  # .json and .txt are also notes
SAVED = ("dataset_dict.json", "state.json")  # what `save_to_disk` writes


def holds_tables(root: Path, options: TableOptions) -> bool:
    """Whether a folder is read as tables, and not as label folders."""
    if any((root / name).is_file() for name in SAVED):
        return True
    if not table_files(root):
        return False
    words = LabelWords(options)
    folders = [p.name for p in root.iterdir() if p.is_dir()]
    return options.tool is not None or not any(
        name.lower() in SPLIT_WORDS or words.is_label(name) for name in folders
    )


def table_files(root: Path) -> list[Path]:
    """The tables in a folder, or else in `data` in it, by name."""
    for folder in (root, root / "data"):
        if folder.is_dir():
            files = [p for p in folder.iterdir() if p.is_file() and ending(p) in ENDINGS]
            if files := sorted(p for p in files if not p.name.startswith(".")):
                return files
    return []


def table_splits(root: Path, options: TableOptions) -> dict[str, list[Path]]:
    """{split: its files} of a folder of tables; the folders of a data set that was saved.

    Raises:
        UserError: the files are of several kinds, or only some of them name a split.
    """
    if (root / SAVED[0]).is_file():
        parts = [p for p in sorted(root.iterdir()) if (p / SAVED[1]).is_file()]
    elif (root / SAVED[1]).is_file():
        return {options.file_split: [root]}
    else:
        parts = table_files(root)
        if len(kinds := sorted({ending(p) for p in parts})) > 1:
            raise UserError(f"{root} holds tables of several kinds, {', '.join(kinds)}: give one")
    named = {p: split_of_name(p.name) for p in parts}
    if not any(named.values()):
        return {options.file_split: parts}
    if unnamed := [p.name for p, split in named.items() if split is None]:
        raise UserError(
            f"{root}: some names state a split, but not {unnamed[0]!r}: begin each with "
            f"{', '.join(SPLITS)}, or give one file"
        )
    return {
        s: [p for p, split in named.items() if split == s] for s in SPLITS if s in named.values()
    }


def open_folder(root: Path, split: str, options: TableOptions) -> Table:
    """The tables of a split in a folder, as one.

    Raises:
        UserError: the folder does not have the split, or its tables have different columns.
    """
    splits = table_splits(root, options)
    if options.split_column is not None:
        files = [path for paths in splits.values() for path in paths]
    elif split in splits:
        files = splits[split]
    else:
        raise UserError(f"{root} has no split {split!r}: it has {', '.join(splits)}")
    return _joined(root, [_open(path, options) for path in files])


def _open(path: Path, options: TableOptions) -> Table:
    if path.is_file():
        return open_table(path, options)
    import datasets

    try:
        saved: Any = datasets.load_from_disk(str(path))
    except Exception as error:  # datasets and pyarrow raise many kinds for a damaged folder
        raise UserError(f"{path} is not a data set that `datasets` can read: {error}") from error
    classes = {
        name: kind.names
        for name, kind in saved.features.items()
        if isinstance(kind, datasets.ClassLabel)
    }
    return arrow_table(path, saved.with_format("arrow")[:], classes)


def _joined(root: Path, tables: Sequence[Table]) -> Table:
    import pyarrow as pa

    if len(tables) == 1:
        return tables[0]
    first = tables[0]
    for table in tables[1:]:
        if odd := set(table.columns) ^ set(first.columns):
            name = sorted(odd)[0]
            holder, other = (table, first) if name in table.columns else (first, table)
            raise UserError(
                f"{holder.path} has the column {name!r}, which {other.path} lacks: the tables of "
                "a folder need the same columns"
            )
    columns: dict[str, Any] = {}
    for name in first.columns:
        cells = [table.columns[name] for table in tables]
        arrays = [c for c in cells if isinstance(c, pa.Array)]
        if len(arrays) == len(cells) and len({str(c.type) for c in arrays}) == 1:
            columns[name] = pa.concat_arrays(arrays)
        else:
            lists = [c.to_pylist() if isinstance(c, pa.Array) else c for c in cells]
            columns[name] = [cell for cells_of_file in lists for cell in cells_of_file]
    parts = [part for table in tables for part in table.parts]
    return Table(root, columns, parts, first.repeated)


# --- label folders --------------------------------------------------------------------------------


def split_folders(root: Path) -> list[Path]:
    """The folders that are named as a split."""
    return [p for p in sorted(root.iterdir()) if p.is_dir() and p.name.lower() in SPLIT_WORDS]


def read_label_folders(root: Path, split: str, options: TableOptions) -> Rows:
    """The rows of a folder of folders that are named by their label, also below split folders.

    Raises:
        UserError: a folder is not named by a label, or there are no pictures.
    """
    skipped: dict[str, list[str]] = {
        reason: []
        for reason in ("not in a label folder", "not a picture", "a folder without pictures")
    }
    top = root
    if parts := split_folders(root):
        top = _folder_of_split(root, parts, split)
        others = [str(p.relative_to(root)) for p in sorted(root.iterdir()) if p not in parts]
        skipped["not in a label folder"] += others
    else:
        check_only_split(root, split, options.file_split, "folders train and test")
    paths, labels = _labelled_pictures(root, top, options, skipped)
    if not paths:
        raise UserError(
            f"{top} holds no pictures in folders that are named by their label; for a "
            "table, give the file itself"
        )
    relative = [path.relative_to(root).as_posix() for path in paths]
    columns: dict[str, Any] = {
        "id": [f"table-{path}" for path in relative],
        "image": [str(path) for path in paths],
    }
    if labels is not None:
        columns[options.label_field] = LabelWords(options).column(labels)
    if options.name_pattern is not None:
        columns |= fields_of_names(relative, options)
    return Rows(columns, {reason: names for reason, names in skipped.items() if names})


def _labelled_pictures(
    root: Path, top: Path, options: TableOptions, skipped: dict[str, list[str]]
) -> tuple[list[Path], list[str | None] | None]:
    """(the pictures, the label of the folder of each); no labels where the names of the files hold
    them. Files that are not read are added to `skipped`."""
    if options.name_pattern is not None and "label" in NamePattern(options.name_pattern).fields:
        return _pictures_below(top, root, skipped), None
    words = LabelWords(options)
    paths: list[Path] = []
    labels: list[str | None] = []
    for child in sorted(top.iterdir()):
        if not child.is_dir() or is_system_file(child.name):
            skipped["not in a label folder"].append(str(child.relative_to(root)))
            continue
        pictures = _pictures_below(child, root, skipped)
        if not pictures:
            skipped["a folder without pictures"].append(str(child.relative_to(root)))
            continue
        paths += pictures
        labels += [words.of_folder(child)] * len(pictures)
    return paths, labels


def _pictures_below(folder: Path, root: Path, skipped: dict[str, list[str]]) -> list[Path]:
    """The pictures in a folder and those below it; other files are added to `skipped`."""
    pictures = []
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            continue
        hidden = any(is_system_file(part) for part in path.relative_to(folder).parts)
        if path.name.lower().endswith(SUFFIXES) and not hidden:
            pictures.append(path)
        else:
            skipped["not a picture"].append(path.relative_to(root).as_posix())
    return pictures


def _folder_of_split(root: Path, parts: Sequence[Path], split: str) -> Path:
    fitting = [part for part in parts if SPLIT_WORDS[part.name.lower()] == split]
    if len(fitting) != 1:
        raise UserError(
            f"{root} has {len(fitting)} folders for split {split!r}: its splits "
            f"are {', '.join(part.name for part in parts)}"
        )
    return fitting[0]
