"""Your own faces: a csv, TSV, JSON lines or Parquet file, or a folder of folders named by label.

faces.csv                 `file,label,...` with a header; comma, semicolon, tab or |
faces.jsonl               {"file": "a/1.jpg", "label": "happy"}; or a list of such as .json
faces.parquet             paths, or pictures as `datasets` stores them
faces/anger/1.jpg         labels as folder names, or
faces/train/anger/1.jpg   the same below train, validation and test
"""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from vlmface import facs, label_spaces
from vlmface.data.records import (
    canonical,
    check_choice,
    folder_of_images,
    has_parent_reference,
    path_inside,
    short_repr,
)
from vlmface.data.rows import Rows, action_units
from vlmface.data.table_labels import LabelReader
from vlmface.data.tables import (
    NULLS,
    Table,
    cell_error,
    flag_cell,
    key_of,
    label_cell,
    normalise_cell,
    number_cell,
    open_table,
    required_cell,
    text_cell,
    with_plain,
)
from vlmface.data.text_files import match_name
from vlmface.errors import UserError
from vlmface.label_spaces import LabelSpace
from vlmface.schema import RATIONALE_SOURCES
from vlmface.utils.images import SUFFIXES

TITLE = "your own table or image folder"
HOME = "a csv, tsv, json, jsonl or parquet file, or a folder of folders named by label"
LICENCE = "that of your data"
SPLITS = ("train", "validation", "test")
PUBLISHED: dict[str, dict[str, int]] = {}
TEXTS = ("subject", "rationale")
NUMBERS = ("valence", "arousal", "age")
WORDS = ("gender", "race", "age_group")
FIELDS = ("image", "id", "label", "emotion", *TEXTS, *WORDS, *NUMBERS)
SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
NAMES = ("id", "subject")  # where "NA" is a name: it is a subject of JAFFE
GENDERS = {"f": "female", "w": "female", "m": "male"}
OPENFACE = ("success", "confidence")  # columns by which its tables are known
UNITS = {"presence": 1.0, "intensity": 1.0, "probability": 0.5}  # and their usual au_threshold


def read(
    root: Path,
    split: str,
    *,
    columns: Mapping[str, str | None] | None = None,
    label_space: str | LabelSpace | None = None,
    labels: Mapping[Any, str | None] | None = None,
    words: Mapping[str, Mapping[Any, str | None]] | None = None,
    images: str | None = None,
    aus: str | Sequence[str] | Mapping[Any, str] | None = None,
    au_values: str = "presence",
    au_threshold: float | None = None,
    au_missing: float | Sequence[float] = (),
    split_column: str | None = None,
    splits: Mapping[Any, str] | None = None,
    file_split: str = "train",
    rationale_source: str = "human",
    saw_label: bool = False,
) -> Rows:
    """The rows of a table, or of a folder of label folders.

    A cell that is empty or one of NULLS is "not annotated" (of names and ids: an empty one). Rows
    of a table of OpenFace whose `success` is 0 are skipped.

    Args:
        root: the file, or the folder of label folders.
        split: one of SPLITS.
        columns: {field: the column that holds it, in any letter case, or None to ignore it} for
            the fields image, id, label, emotion, subject, age_group, gender, race, rationale,
            valence, arousal and age; by default the column of the field's own name, if there is
            one. `label` stands for the field of `label_space`.
        label_space: what the labels are: a name, a YAML file or a LabelSpace; by default the eight
            emotions.
        labels: labels of words and numbers, as in {"0": "anger", "bored": None}; None stands for
            none of the labels. Aliases such as "Happy" and "sad" are known. A number may be written
            as "3.0" or "3".
        words: the same for gender, race and age_group, as in {"gender": {"0": "male"}}; F, W and M
            are known.
        images: the folder that relative image paths start from (default: the file's).
        aus: a pattern of column names in any case ("AU*_c"), a list, or {"AU1": "column", ...}.
        au_values: "presence": cells are 0 or 1; "intensity": 0 to 5; "probability": 0 to 1, as
            py-feat writes them.
        au_threshold: the least value of an AU that is present; by default 1 of intensities and 0.5
            of probabilities.
        au_missing: codes for "not annotated", such as 9 or [9, 999, -1].
        split_column: the column that holds train, validation or test.
        splits: splits of other words in it, as in {"PublicTest": "validation"}.
        file_split: without `split_column` (and without train and test folders) the split of all
            rows. The other splits are empty, so that one file is not trained on and tested on by
            mistake.
        rationale_source: who wrote the rationales.
        saw_label: whether the writer was given the labels.
    """
    check_choice("au_values", au_values, tuple(UNITS))
    check_choice("file_split", file_split, SPLITS)
    check_choice(
        "rationale_source", rationale_source, [s for s in RATIONALE_SOURCES if s != "none"]
    )
    coding = _Coding(au_values, au_threshold, au_missing)
    space = label_space
    if not isinstance(space, LabelSpace):
        space = label_spaces.space(label_space or "emotion8")
    if space.field in WORDS:  # the labels are words of that field
        words = {
            **(words or {}),
            space.field: {**(labels or {}), **(words or {}).get(space.field, {})},
        }
        labels = None
    reader = LabelReader(space, labels or {}) if space.field == "context" else None
    meant = _label_map(None if reader else labels)
    if root.is_dir():
        given = {"columns": columns, "words": words, "images": images, "aus": aus}
        _refuse_options(root, given | {"split_column": split_column, "splits": splits})
        return _from_folders(root, split, reader or meant, file_split)
    table = open_table(root)
    source = _source(table, columns or {}, space, explicit=label_space is not None)
    rows = _rows_of(table, split, split_column, splits or {}, file_split)
    skipped: dict[str, list[str]] = {}
    if aus is not None:
        rows = _tracked(table, rows, skipped)
    index, fields = _pictures(
        table, source["image"], rows, folder_of_images(images, root.parent), skipped
    )
    fields |= _labels(table, source, index, reader or meant, words or {})
    if "rationale" in source:
        written = np.array([text is not None for text in fields["rationale"]], bool)
        fields["rationale_source"] = [rationale_source if given else "none" for given in written]
        fields["saw_label"] = written & bool(saw_label)
    if aus is not None:
        fields["aus"] = _units(table, index, _au_columns(table, aus), coding)
    elif not source.keys() - {"image", *NAMES}:
        _warn_of_no_label(table, source, split_column)
    return Rows(fields, skipped)


def _refuse_options(root: Path, options: Mapping[str, Any]) -> None:
    """Raise UserError for options of a table, where `root` is a folder of label folders."""
    for option, value in options.items():
        if value is not None:
            raise UserError(
                f"{root} is a folder of label folders, which {option}= does not apply to; give the "
                "table's file itself"
            )


def present_splits(root: Path, **options: Any) -> tuple[str, ...]:
    """The splits that a copy has: those of its folders, of its `split_column`, or `file_split`."""
    file_split = options.get("file_split", "train")
    if root.is_dir():
        parts = {SPLIT_WORDS[p.name.lower()] for p in _split_folders(root)} or {file_split}
    elif column := options.get("split_column"):
        parts = set(_parts(open_table(root), column, options.get("splits") or {}))
    else:
        parts = {file_split}
    return tuple(split for split in SPLITS if split in parts)


# --- which columns, which rows --------------------------------------------------------------------


def _source(
    table: Table, columns: Mapping[str, str | None], space: LabelSpace, *, explicit: bool
) -> dict[str, str]:
    """The column of each field that the table has. `label` becomes the field of the label space,
    and where the space was not named, a column must be named for it."""
    source = {"id": "id"} if "id" in table.columns else {}  # "ID" is often a person's
    for field in FIELDS:
        if field == "id" or field in columns or (field == "label" and not explicit):
            continue
        if name := match_name(field, table.columns, table.path):
            source[field] = name
    for field, column in columns.items():
        check_choice("columns", field, FIELDS)
        source.pop(field, None)
        if column is not None:
            source[field] = table.need(column, f"columns={{{field!r}: {column!r}}}")
    if "image" not in source:
        raise UserError(
            f"{table.path} has no column 'image', only {', '.join(table.columns)}: "
            "name the one with the paths, columns={'image': '...'}, or add the header "
            "if it has none"
        )
    if "label" in source:
        source[space.field] = source.pop("label")
    if space.field == "context" and "context" not in source:
        raise UserError(
            f"{table.path} has no column 'label', only {', '.join(table.columns)}: name the one "
            f"with the labels of {space.id}, columns={{'label': '...'}}"
        )
    return source


def _warn_of_no_label(table: Table, source: Mapping[str, str], split_column: str | None) -> None:
    read = {name for name in (*source.values(), split_column) if name}
    if others := [name for name in table.columns if name not in read]:
        warnings.warn(
            f"{table.path}: no column was read as a label, of {short_repr(others)}: name them in "
            "columns=, as in {'emotion': '...'}, or aus=",
            stacklevel=3,
        )


def _rows_of(
    table: Table, split: str, column: str | None, splits: Mapping[Any, str], file_split: str
) -> list[int]:
    if column is None:
        _only(table.path, split, file_split, "split_column=")
        return list(range(len(table.places)))
    return [row for row, part in enumerate(_parts(table, column, splits)) if part == split]


def _parts(table: Table, column: str, splits: Mapping[Any, str]) -> list[str]:
    """The split of each row."""
    column = table.need(column, "split_column")
    words = SPLIT_WORDS | {
        normalise_cell(word): check_choice("splits", to, SPLITS) for word, to in splits.items()
    }
    parts = []
    for row in range(len(table.places)):
        word = required_cell(table, column, row)
        part = words.get(normalise_cell(word), words.get(word.lower()))
        if part is None:
            raise UserError(
                f"{table.where(row)}: {column!r} is {word!r}, which is not a split: map "
                f"it, splits={{{word!r}: 'train'}}"
            )
        parts.append(part)
    return parts


def _tracked(table: Table, rows: list[int], skipped: dict[str, list[str]]) -> list[int]:
    """The rows without those in which OpenFace lost the face: it writes zeros as their AUs."""
    success, confidence = (match_name(c, table.columns, table.path) for c in OPENFACE)
    if success is None or confidence is None:
        return rows
    lost = {row for row in rows if flag_cell(table, success, row) == 0}
    if lost:
        skipped["OpenFace did not find the face (success is 0)"] = [
            table.where(row) for row in sorted(lost)
        ]
    return [row for row in rows if row not in lost]


def _only(path: Path, split: str, file_split: str, how: str) -> None:
    if split != file_split:
        raise UserError(
            f"{path} does not state which rows are split {split!r}: all of them are "
            f"{file_split!r}; name {how}, use data.hold_out, or pass file_split={split!r} "
            f"if this is all {split}"
        )


# --- pictures -------------------------------------------------------------------------------------


def _pictures(
    table: Table, column: str, rows: list[int], folder: Path, skipped: dict[str, list[str]]
) -> tuple[list[int], dict[str, Any]]:
    """(the rows that have a picture, the columns `id` and `image`)."""
    named = {row: _picture(table, column, row, folder) for row in rows}
    if lacking := [table.where(row) for row, picture in named.items() if picture is None]:
        skipped["no image"] = lacking
    index = [row for row, picture in named.items() if picture is not None]
    pictures = [picture for picture in named.values() if picture is not None]
    return index, {"id": _ids(pictures, index), "image": [picture for _, picture in pictures]}


def _ids(pictures: Sequence[tuple[str, str | bytes]], rows: Sequence[int]) -> list[str]:
    """An id for each (name, path or bytes): its name. Pictures inside the table that were all
    stored under one name are told apart by their row."""
    often = Counter(name for name, picture in pictures if isinstance(picture, bytes))
    return [
        f"table-{name}-{row + 1}" if often[name] > 1 else f"table-{name}"
        for (name, _), row in zip(pictures, rows, strict=True)
    ]


def _picture(table: Table, column: str, row: int, folder: Path) -> tuple[str, str | bytes] | None:
    """(name, path or bytes) of the row's image; None if it has none."""
    value = table.columns[column][row]
    if isinstance(value, bytes):
        value = {"bytes": value}
    if isinstance(value, dict) and value.get("bytes"):
        return value.get("path") or str(row + 1), value["bytes"]
    if isinstance(value, dict) and value.keys() & {"bytes", "path"}:  # as `datasets` has a file
        path = value.get("path")
    else:
        path = label_cell(table, column, row)
    if not path:
        return None
    full_path = path if os.path.isabs(path) else path_inside(folder, path)
    if full_path is None or has_parent_reference(path):
        raise cell_error(
            table,
            column,
            row,
            f"an absolute path or one inside {folder} (images= names "
            "the folder that paths start from)",
        )
    if "\\" in path and not os.path.exists(full_path):
        path, full_path = path.replace("\\", "/"), full_path.replace("\\", "/")
    return path, full_path


# --- labels ---------------------------------------------------------------------------------------


def _labels(
    table: Table,
    source: Mapping[str, str],
    rows: list[int],
    labels: LabelReader | Mapping[str, str | None],
    words: Mapping[str, Mapping[Any, str | None]],
) -> dict[str, Any]:
    """The columns of the fields but `image` and `aus`. `labels` reads those of `context`, or maps
    the words of `emotion`."""
    _check_words(words)
    fields: dict[str, Any] = {}
    if "id" in source:
        fields["id"] = [f"table-{required_cell(table, source['id'], i)}" for i in rows]
    if isinstance(labels, LabelReader):
        fields["context"] = [labels.cell(table, source["context"], i) for i in rows]
        meant: Mapping[str, str | None] = {}
    else:
        meant = labels
    if "emotion" in source:
        fields["emotion"] = [_emotion(table, source["emotion"], i, meant) for i in rows]
    for field in (field for field in TEXTS if field in source):
        read = text_cell if field in NAMES else label_cell
        fields[field] = [read(table, source[field], i) for i in rows]
    for field in (field for field in WORDS if field in source):
        mapping = with_plain(words.get(field, {}))
        fields[field] = [_person(table, field, source[field], i, mapping) for i in rows]
    for field in (field for field in NUMBERS if field in source):
        fields[field] = [number_cell(table, source[field], i) for i in rows]
    return fields


def _check_words(words: Mapping[str, Mapping[Any, str | None]]) -> None:
    for field, mapping in words.items():
        check_choice("words", field, WORDS)
        for word, to in mapping.items():
            if to is not None and not any(canonical(name, to) for name in _spaces(field)):
                raise UserError(
                    f"words maps {word!r} to {to!r} for {field}: use one of "
                    f"{', '.join(_labels_of(field))}, or None"
                )


def _label_map(labels: Mapping[Any, str | None] | None) -> dict[str, str | None]:
    space = label_spaces.space("emotion8")
    meant: dict[str, str | None] = {}
    for word, label in with_plain(labels or {}).items():
        meant[word] = None if label is None else space.canonical(label)
        if label is not None and meant[word] is None:
            raise UserError(
                f"labels maps {word!r} to {label!r}: use one of {', '.join(space.labels)}, or None"
            )
    return meant


def _label(word: str, meant: Mapping[str, str | None], where: str) -> str | None:
    if (key := key_of(word, meant)) is not None:
        return meant[key]
    label = canonical("emotion8", word)
    if label is None:
        raise UserError(
            f"{where} is {word!r}, which is not one of {', '.join(label_spaces.EMOTIONS)}: map it, "
            f"labels={{{word!r}: 'anger'}}, or to None if it is not one of them"
        )
    return label


def _emotion(table: Table, column: str, row: int, meant: Mapping[str, str | None]) -> str | None:
    word = text_cell(table, column, row)
    if word is None or (word.casefold() in NULLS and key_of(word, meant) is None):
        return None
    return _label(word, meant, f"{table.where(row)}: {column!r}")


def _person(
    table: Table, field: str, column: str, row: int, meant: Mapping[str, str | None]
) -> str | None:
    """A word of gender, race or age group, as it is written if a label space has it."""
    word = text_cell(table, column, row)
    if word is None:
        return None
    if (key := key_of(word, meant)) is not None:
        return meant[key]
    lower = word.casefold()
    if lower in NULLS:
        return None
    if field == "gender" and lower in GENDERS:
        return GENDERS[lower]
    if not any(canonical(name, word) for name in _spaces(field)):
        labels = _labels_of(field)
        option = f"words={{{field!r}: {{{word!r}: {labels[0]!r}}}}}"
        raise UserError(
            f"{table.where(row)}: {column!r} is {word!r}, which is not one of "
            f"{', '.join(labels)}: map it, {option}, or to None; columns={{{field!r}: None}} "
            "leaves the column out"
        )
    return word


def _labels_of(field: str) -> list[str]:
    """The labels of all its label spaces."""
    return list(
        dict.fromkeys(x for name in _spaces(field) for x in label_spaces.space(name).labels)
    )


@cache
def _spaces(field: str) -> tuple[str, ...]:
    return tuple(name for name, space in label_spaces.SPACES.items() if space.field == field)


# --- action units ---------------------------------------------------------------------------------


def _au_columns(table: Table, aus: str | Sequence[str] | Mapping[str, str]) -> dict[int, str]:
    """AU number -> column."""
    if isinstance(aus, Mapping):
        return {facs.parse_name(str(au)): table.need(name, "aus") for au, name in aus.items()}
    patterns = [pattern.lower() for pattern in ([aus] if isinstance(aus, str) else aus)]
    columns: dict[int, str] = {}
    for column in (c for c in table.columns if any(fnmatchcase(c.lower(), p) for p in patterns)):
        numbers = re.findall(r"\d+", column)
        if len(numbers) != 1:
            raise UserError(
                f"aus={aus!r} fits the column {column!r}, which does not name one AU: "
                "narrow the pattern, or give {'AU1': 'column', ...}"
            )
        au = facs.parse_name(numbers[0].lstrip("0"))
        if au in columns:
            raise UserError(
                f"aus={aus!r} fits {columns[au]!r} and {column!r}, both of AU{au}: "
                "narrow the pattern, as in 'AU*_c'"
            )
        columns[au] = column
    if not columns:
        raise UserError(f"aus={aus!r} fits no column of {table.path}: {', '.join(table.columns)}")
    return columns


@dataclass(frozen=True)
class _Coding:
    """How cells stand for AUs: the options au_values, au_threshold and au_missing."""

    values: str
    given: float | None
    missing: float | Sequence[float]

    def __post_init__(self) -> None:
        top = 1 if self.values == "probability" else 5
        if self.given is not None and not 0 < self.given <= top:
            kind = "a probability" if top == 1 else "an intensity"
            raise UserError(f"au_threshold={self.given!r}: give {kind} above 0 and up to {top}")

    @property
    def threshold(self) -> float:
        return UNITS[self.values] if self.given is None else self.given

    @property
    def codes(self) -> list[float]:
        return list(self.missing) if isinstance(self.missing, Sequence) else [self.missing]


def _units(table: Table, rows: list[int], source: dict[int, str], coding: _Coding) -> Any:
    kind = coding.values
    cell = flag_cell if kind == "presence" else number_cell
    cells = [[cell(table, column, row) for column in source.values()] for row in rows]
    values = np.array(cells, np.float64).reshape(len(rows), len(source))  # an empty cell is NaN
    values[np.isin(values, coding.codes)] = np.nan
    annotated = ~np.isnan(values)
    top = 5 if kind == "intensity" else 1
    allowed = np.isin(values, (0, 1)) if kind == "presence" else (values >= 0) & (values <= top)
    expected = {
        "presence": "0 or 1 (intensities: au_values='intensity'; probabilities: "
        "au_values='probability'; a code for not annotated: au_missing=9)",
        "intensity": "an intensity from 0 to 5 (a code for not annotated: au_missing=9)",
        "probability": "a probability from 0 to 1 (a code for not annotated: au_missing=9)",
    }[kind]
    for at, au in np.argwhere(annotated & ~allowed)[:1]:
        raise cell_error(table, list(source.values())[au], rows[at], expected)
    if kind == "presence":
        return action_units(list(source), values == 1, annotated=annotated)
    present = values >= coding.threshold
    if kind == "probability":
        return action_units(list(source), present, annotated=annotated)
    _check_not_probabilities(table, values[annotated], coding)
    return action_units(list(source), present, values, annotated)


def _check_not_probabilities(table: Table, values: np.ndarray, coding: _Coding) -> None:
    fractions = values[values != np.round(values)]
    if coding.given is None and len(fractions) and values.max() <= 1:
        raise UserError(
            f"{table.path}: all AU values lie between 0 and 1 (such as {fractions[0]:g}), which "
            "reads as probabilities: set au_values='probability', or au_threshold= if they are "
            "intensities from 0 to 5"
        )


# --- folders --------------------------------------------------------------------------------------


def _split_folders(root: Path) -> list[Path]:
    return [p for p in sorted(root.iterdir()) if p.is_dir() and p.name.lower() in SPLIT_WORDS]


def _from_folders(
    root: Path, split: str, labels: LabelReader | Mapping[str, str | None], file_split: str
) -> Rows:
    skipped: dict[str, list[str]] = {"not in a label folder": [], "not a picture": []}
    top = root
    parts = _split_folders(root)
    if parts:
        fitting = [part for part in parts if SPLIT_WORDS[part.name.lower()] == split]
        if len(fitting) != 1:
            raise UserError(
                f"{root} has {len(fitting)} folders for split {split!r}: its splits "
                f"are {', '.join(part.name for part in parts)}"
            )
        top = fitting[0]
        beside = [str(p.relative_to(root)) for p in sorted(root.iterdir()) if p not in parts]
        skipped["not in a label folder"] += beside
    else:
        _only(root, split, file_split, "folders train and test")
    ids, paths, words = [], [], []
    for child in sorted(top.iterdir()):
        if not child.is_dir() or child.name.startswith("."):
            skipped["not in a label folder"].append(str(child.relative_to(root)))
            continue
        where = f"the folder name {child}"
        if isinstance(labels, LabelReader):
            word = labels.word(child.name, where)
        else:
            word = _label(child.name, labels, where)
        for path in sorted(path for path in child.rglob("*") if not path.is_dir()):
            name = path.relative_to(root).as_posix()
            if not name.lower().endswith(SUFFIXES):
                skipped["not a picture"].append(name)
                continue
            ids.append(f"table-{name}")
            paths.append(str(path))
            words.append(word)
    if not ids:
        raise UserError(
            f"{top} holds no pictures in folders that are named by their label; for a "
            "table, give the file itself"
        )
    is_context = isinstance(labels, LabelReader)
    column = [None if word is None else [word] for word in words] if is_context else words
    return Rows(
        {"id": ids, "image": paths, "context" if is_context else "emotion": column},
        {reason: names for reason, names in skipped.items() if names},
    )
