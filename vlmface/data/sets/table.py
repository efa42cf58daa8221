"""Your own faces: a csv, TSV, JSON lines or Parquet file, or a folder of folders named by label.

faces.csv                 `file,label,...` with a header; comma, semicolon or tab; UTF-8
faces.jsonl               {"file": "a/1.jpg", "label": "happy"}
faces.parquet             paths, or pictures as `datasets` stores them
faces/anger/1.jpg         labels as folder names, or
faces/train/anger/1.jpg   the same below train, validation and test
"""

from __future__ import annotations

import csv
import difflib
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from vlmface import facs, taxonomy
from vlmface.data.records import (
    below,
    canonical,
    folder_of_images,
    leads_up,
    one_of,
    read_text,
    records,
    shown,
)
from vlmface.data.rows import IMAGE_SUFFIXES, Rows, action_units
from vlmface.errors import UserError
from vlmface.schema import RATIONALE_SOURCES

TITLE = "your own table or image folder"
HOME = "a csv, tsv, jsonl or parquet file, or a folder of folders named by label"
LICENCE = "that of your data"
SPLITS = ("train", "validation", "test")
PUBLISHED: dict[str, dict[str, int]] = {}
TEXTS = ("subject", "age_group", "gender", "race", "rationale")
NUMBERS = ("valence", "arousal", "age")
FIELDS = ("image", "id", "emotion", *TEXTS, *NUMBERS)
SPLIT_WORDS = {
    "train": "train", "training": "train",
    "val": "validation", "valid": "validation", "validation": "validation", "dev": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip
PICTURES = (*IMAGE_SUFFIXES, ".webp", ".gif")


def read(
    root: Path,
    split: str,
    *,
    columns: Mapping[str, str] | None = None,
    labels: Mapping[Any, str | None] | None = None,
    images: str | None = None,
    aus: str | Sequence[str] | Mapping[str, str] | None = None,
    au_values: str = "presence",
    au_threshold: float = 1.0,
    split_column: str | None = None,
    splits: Mapping[Any, str] | None = None,
    file_split: str = "train",
    rationale_source: str = "human",
    saw_label: bool = False,
) -> Rows:
    """`root` is the file, or the folder of label folders.

    `columns` maps a field (image, id, emotion, subject, age_group, gender, race, rationale,
    valence, arousal, age) to the column that holds it; a field that it does not name is the column
    of its own name, if there is one. An empty cell is "not annotated"; texts stay as they are.

    Emotion words are read with taxonomy's aliases ("Happy", "sad"). `labels` maps other words and
    numbers, as in {"0": "anger", "bored": None}; None stands for none of the eight emotions.

    Image paths start from `images` (default: the file's folder) or are absolute.

    `aus` is a pattern of column names in any case ("AU*_c"), a list, or {"AU1": "column", ...}.
    `au_values="presence"`: cells are 0 or 1; "intensity": 0 to 5, present from `au_threshold` on.

    `split_column` names the column that says train, validation or test; `splits` maps other words,
    as in {"PublicTest": "validation"}. Without it (and without train and test folders) all rows
    are the split `file_split`, and no other: one file must not be trained on and tested on by
    mistake.
    """
    one_of("au_values", au_values, ("presence", "intensity"))
    one_of("file_split", file_split, SPLITS)
    one_of("rationale_source", rationale_source, [s for s in RATIONALE_SOURCES if s != "none"])
    if not 0 < au_threshold <= 5:
        raise UserError(f"au_threshold={au_threshold!r}: give an intensity above 0 and up to 5")
    meant = _label_map(labels)
    if root.is_dir():
        for option, value in {"columns": columns, "aus": aus, "split_column": split_column,
                              "splits": splits, "images": images}.items():  # fmt: skip
            if value is not None:
                raise UserError(f"{root} is a folder of label folders, which {option}= does not "
                                "apply to; give the table's file itself")  # fmt: skip
        return _from_folders(root, split, meant, file_split)
    table = _open(root)
    source = _source(table, columns or {})
    rows = _rows_of(table, split, split_column, splits or {}, file_split)
    folder = folder_of_images(images, root.parent)
    pictures = [_picture(table, source["image"], i, folder) for i in rows]
    lacking = [table.where(i) for i, image in zip(rows, pictures, strict=True) if image is None]
    index = [i for i, image in zip(rows, pictures, strict=True) if image is not None]
    named = [image for image in pictures if image is not None]
    found: dict[str, Any] = {
        "id": [f"table-{name}" for name, _ in named],
        "image": [picture for _, picture in named],
    }
    if "id" in source:
        found["id"] = [f"table-{_required(table, source['id'], i)}" for i in index]
    if "emotion" in source:
        found["emotion"] = [_emotion(table, source["emotion"], i, meant) for i in index]
    found |= {f: [_word(table, source[f], i) for i in index] for f in TEXTS if f in source}
    found |= {f: [_number(table, source[f], i) for i in index] for f in NUMBERS if f in source}
    if "rationale" in source:
        written = np.array([text is not None for text in found["rationale"]], bool)
        found["rationale_source"] = [rationale_source if given else "none" for given in written]
        found["saw_label"] = written & bool(saw_label)
    if aus is not None:
        found["aus"] = _units(table, index, _au_columns(table, aus), au_values, au_threshold)
    return Rows(found, {"no image": lacking} if lacking else {})


# --- files ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """The columns of a file, and where each row stands in it for who wants to correct it."""

    path: Path
    columns: Mapping[str, Sequence[Any]]
    places: Sequence[str]

    def where(self, row: int) -> str:
        return f"{self.path}, {self.places[row]}"

    def need(self, column: str, option: str) -> str:
        """`column`, if the table has it."""
        if column in self.columns:
            return column
        near = difflib.get_close_matches(column, list(self.columns), 1)
        hint = f": did you mean {near[0]!r}?" if near else ""
        raise UserError(
            f"{option} names the column {column!r}, but {self.path} has "
            f"{', '.join(self.columns)}{hint}"
        )


def _open(path: Path) -> Table:
    readers = {".csv": _csv, ".tsv": _csv, ".txt": _csv, ".jsonl": _jsonl, ".parquet": _parquet}
    if path.suffix.lower() not in readers:
        raise UserError(f"{path} is no table that can be read: use one of {', '.join(readers)}, or "
                        "a folder of label folders")  # fmt: skip
    return readers[path.suffix.lower()](path)


def _csv(path: Path) -> Table:
    text = read_text(path)
    first, _, _ = text.partition("\n")
    # Spreadsheets of half of Europe write semicolons.
    delimiter = max("\t" if path.suffix.lower() == ".tsv" else ",", ";", "\t", key=first.count)
    reader = csv.reader(StringIO(text, newline=""), delimiter=delimiter, strict=True)
    cells: list[list[str]] = []
    places: list[str] = []
    try:
        header = [name.strip() for name in next(reader, [])]
        for row in reader:
            if row and len(row) != len(header):
                raise UserError(f"{path}, line {reader.line_num}: {len(row)} cells, but the header "
                                f"has {len(header)}: {shown(row)}")  # fmt: skip
            if row:
                cells.append(row)
                places.append(f"line {reader.line_num}")
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}") from error
    if len(set(header)) != len(header) or not any(header):
        raise UserError(f"{path} needs a header of different column names, found {shown(header)}")
    return Table(path, dict(zip(header, zip(*cells, strict=True), strict=True))
                 if cells else {name: () for name in header}, places)  # fmt: skip


def _jsonl(path: Path) -> Table:
    found = records(path)
    names = dict.fromkeys(name for record in found for name in record.fields)
    columns = {name: [record.fields.get(name) for record in found] for name in names}
    return Table(path, columns, [record.where.removeprefix(f"{path}, ") for record in found])


def _parquet(path: Path) -> Table:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        found = parquet.read_table(path)
        columns = {name: found[name].to_pylist() for name in found.column_names}
    except (pa.ArrowException, OSError, KeyError) as error:  # KeyError: a name occurs twice
        raise UserError(f"{path} is no Parquet file that can be read: {error}") from error
    return Table(path, columns, [f"row {n}" for n in range(1, len(found) + 1)])


# --- which columns, which rows --------------------------------------------------------------------


def _source(table: Table, columns: Mapping[str, str]) -> dict[str, str]:
    """The column of each field that the table has."""
    for field, column in columns.items():
        one_of("columns", field, FIELDS)
        table.need(column, f"columns={{{field!r}: {column!r}}}")
    source = {field: field for field in FIELDS if field in table.columns} | dict(columns)
    if "image" not in source:
        raise UserError(f"{table.path} has no column 'image', only {', '.join(table.columns)}: say "
                        "which holds the paths, columns={'image': '...'}")  # fmt: skip
    return source


def _rows_of(
    table: Table, split: str, column: str | None, splits: Mapping[Any, str], file_split: str
) -> list[int]:
    if column is None:
        _only(table.path, split, file_split, "split_column=")
        return list(range(len(table.places)))
    table.need(column, "split_column")
    words = SPLIT_WORDS | {str(word): one_of("splits", to, SPLITS) for word, to in splits.items()}
    part = []
    for row in range(len(table.places)):
        word = _required(table, column, row)
        known = words.get(word, words.get(word.lower()))
        if known is None:
            raise UserError(f"{table.where(row)}: {column!r} is {word!r}, which is no split: map "
                            f"it, splits={{{word!r}: 'train'}}")  # fmt: skip
        part.append(known)
    return [row for row, known in enumerate(part) if known == split]


def _only(path: Path, split: str, file_split: str, how: str) -> None:
    if split != file_split:
        raise UserError(
            f"{path} does not say which rows are split {split!r}: all of them are {file_split!r}; "
            f"name {how}, use data.hold_out, or say file_split={split!r} if this is all {split}"
        )


# --- cells ----------------------------------------------------------------------------------------


def _refuse(table: Table, column: str, row: int, allowed: str) -> UserError:
    value = shown(table.columns[column][row])
    return UserError(f"{table.where(row)}: {column!r} is {value}, expected {allowed}")


def _word(table: Table, column: str, row: int) -> str | None:
    """The text of a cell; None for an empty one. Whole numbers lose a ".0" that pandas adds."""
    value = table.columns[column][row]
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, str | int | float):
        raise _refuse(table, column, row, "a text")
    return str(value).strip() or None


def _required(table: Table, column: str, row: int) -> str:
    word = _word(table, column, row)
    if word is None:
        raise _refuse(table, column, row, "a text")
    return word


def _number(table: Table, column: str, row: int) -> float | None:
    word = _word(table, column, row)
    if word is None or word.lower() == "nan":
        return None
    try:
        value = float(word)
    except ValueError as error:
        raise _refuse(table, column, row, "a number, such as 0.5") from error
    if not math.isfinite(value):
        raise _refuse(table, column, row, "a finite number")
    return value


def _flag(table: Table, column: str, row: int) -> float | None:
    """Like `_number`, and "True" and "False" as 1 and 0, as pandas writes them."""
    word = (_word(table, column, row) or "").lower()
    return float(word == "true") if word in ("true", "false") else _number(table, column, row)


def _picture(table: Table, column: str, row: int, folder: Path) -> tuple[str, str | bytes] | None:
    """(name, path or bytes) of the row's image; None if it has none."""
    value = table.columns[column][row]
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
        return value.get("path") or str(row + 1), value["bytes"]
    path = _word(table, column, row)
    if path is None:
        return None
    found = path if os.path.isabs(path) else below(folder, path)
    if found is None or leads_up(path):
        raise _refuse(table, column, row, f"an absolute path or one inside {folder}")
    return path, found


def _label_map(labels: Mapping[Any, str | None] | None) -> dict[str, str | None]:
    space = taxonomy.space("emotion8")
    meant: dict[str, str | None] = {}
    for word, label in (labels or {}).items():
        meant[str(word).strip()] = None if label is None else space.canonical(str(label))
        if label is not None and meant[str(word).strip()] is None:
            raise UserError(f"labels maps {word!r} to {label!r}: use one of "
                            f"{', '.join(space.labels)}, or None")  # fmt: skip
    return meant


def _label(word: str, meant: Mapping[str, str | None], where: str) -> str | None:
    if word in meant:
        return meant[word]
    label = canonical("emotion8", word)
    if label is None:
        raise UserError(
            f"{where} is {word!r}, which is no emotion of {', '.join(taxonomy.EMOTIONS)}: map it, "
            f"labels={{{word!r}: 'anger'}}, or to None if it is none of them"
        )
    return label


def _emotion(table: Table, column: str, row: int, meant: Mapping[str, str | None]) -> str | None:
    word = _word(table, column, row)
    return None if word is None else _label(word, meant, f"{table.where(row)}: {column!r}")


# --- action units ---------------------------------------------------------------------------------


def _au_columns(table: Table, aus: str | Sequence[str] | Mapping[str, str]) -> dict[int, str]:
    """AU number -> column."""
    if isinstance(aus, Mapping):
        return {facs.parse_name(au): table.need(column, "aus") for au, column in aus.items()}
    patterns = [pattern.lower() for pattern in ([aus] if isinstance(aus, str) else aus)]
    found: dict[int, str] = {}
    for column in (c for c in table.columns if any(fnmatchcase(c.lower(), p) for p in patterns)):
        numbers = re.findall(r"\d+", column)
        if len(numbers) != 1:
            raise UserError(f"aus={aus!r} fits the column {column!r}, which does not name one AU: "
                            "narrow the pattern, or give {'AU1': 'column', ...}")  # fmt: skip
        au = facs.parse_name(numbers[0].lstrip("0"))
        if au in found:
            raise UserError(f"aus={aus!r} fits {found[au]!r} and {column!r}, both of AU{au}: "
                            "narrow the pattern, as in 'AU*_c'")  # fmt: skip
        found[au] = column
    if not found:
        raise UserError(f"aus={aus!r} fits no column of {table.path}: {', '.join(table.columns)}")
    return found


def _units(
    table: Table, rows: list[int], source: dict[int, str], kind: str, threshold: float
) -> Any:
    cell = _flag if kind == "presence" else _number
    cells = [[cell(table, column, row) for column in source.values()] for row in rows]
    values = np.array(cells, np.float64).reshape(len(rows), len(source))  # an empty cell is NaN
    annotated = ~np.isnan(values)
    allowed = np.isin(values, (0, 1)) if kind == "presence" else (values >= 0) & (values <= 5)
    for at, au in np.argwhere(annotated & ~allowed)[:1]:
        column = list(source.values())[au]
        raise _refuse(table, column, rows[at], "0 or 1 (intensities: au_values='intensity')"
                      if kind == "presence" else "an intensity from 0 to 5")  # fmt: skip
    if kind == "presence":
        return action_units(list(source), values == 1, annotated=annotated)
    return action_units(list(source), values >= threshold, values, annotated)


# --- folders --------------------------------------------------------------------------------------


def _from_folders(root: Path, split: str, meant: Mapping[str, str | None], file_split: str) -> Rows:
    left_out: dict[str, list[str]] = {"not in a label folder": [], "not a picture": []}
    top = root
    parts = [p for p in sorted(root.iterdir()) if p.is_dir() and p.name.lower() in SPLIT_WORDS]
    if parts:
        fitting = [part for part in parts if SPLIT_WORDS[part.name.lower()] == split]
        if len(fitting) != 1:
            raise UserError(f"{root} has {len(fitting)} folders for split {split!r}: its splits "
                            f"are {', '.join(part.name for part in parts)}")  # fmt: skip
        top = fitting[0]
        beside = [str(p.relative_to(root)) for p in sorted(root.iterdir()) if p not in parts]
        left_out["not in a label folder"] += beside
    else:
        _only(root, split, file_split, "folders train and test")
    ids, paths, emotions = [], [], []
    for child in sorted(top.iterdir()):
        if not child.is_dir() or child.name.startswith("."):
            left_out["not in a label folder"].append(str(child.relative_to(root)))
            continue
        emotion = _label(child.name, meant, f"the folder name {child}")
        for path in sorted(path for path in child.rglob("*") if not path.is_dir()):
            name = path.relative_to(root).as_posix()
            if not name.lower().endswith(PICTURES):
                left_out["not a picture"].append(name)
                continue
            ids.append(f"table-{name}")
            paths.append(str(path))
            emotions.append(emotion)
    if not ids:
        raise UserError(f"{top} holds no pictures in folders that are named by their label; for a "
                        "table, give the file itself")  # fmt: skip
    return Rows({"id": ids, "image": paths, "emotion": emotions},
                {reason: names for reason, names in left_out.items() if names})  # fmt: skip
