"""A split as columns: what an adapter returns, and its conversion to a `datasets.Dataset`.

Hundreds of thousands of rows are indexed without a Python object for each: adapters fill columns,
the checks run over whole columns, and only a row that fails is built, for the error message.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlmface import label_spaces
from vlmface.data.image_paths import Folders
from vlmface.data.records import short_repr
from vlmface.data.text_files import match_name, open_utf8, read_lines, split_header
from vlmface.errors import UserError
from vlmface.utils.images import SUFFIXES

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass
class Rows:
    """The rows of a split.

    Attributes:
        columns: n values for each FaceSample field: a list, NumPy or Arrow array, None for "not
            annotated". `image` holds paths or encoded bytes, `frames` lists of paths. A field that
            is not in it is null in every row.
        skipped: what did not become a row (file names, line numbers), by reason. Nothing is dropped
            without being listed here.
    """

    columns: dict[str, Any]
    skipped: dict[str, list[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def take(self, keep: np.ndarray) -> Rows:
        """The rows where the mask `keep` (n,) is true, in order."""
        index = np.flatnonzero(keep)
        return Rows(
            {name: _take(values, index) for name, values in self.columns.items()}, self.skipped
        )


def _take(values: Any, index: np.ndarray) -> Any:
    import pyarrow as pa

    if isinstance(values, np.ndarray):
        return values[index]
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values.take(pa.array(index))
    return [values[i] for i in index]


# --- columns --------------------------------------------------------------------------------------


def emotions(coding_id: str, codes: Any) -> pa.Array:
    """The `emotion` column.

    Args:
        coding_id: of `label_spaces.CODINGS`.
        codes: whole numbers (n,) of that coding.

    Returns:
        Words (n,); null for a code of the coding that is not one of the eight emotions.

    Raises:
        UserError: a code is not in the coding.
    """
    import pyarrow as pa

    coding = label_spaces.CODINGS[coding_id]
    values, inverse = np.unique(np.asarray(codes), return_inverse=True)
    labels = pa.array([coding.decode(code.item()) for code in values], pa.string())
    return labels.take(pa.array(inverse.ravel()))


def canonical_labels(space_id: str, texts: Sequence[str | None]) -> list[str | None]:
    """The label of each text, up to case and aliases ("Angry" -> "anger"); None stays None.

    Args:
        space_id: of a label space.
        texts: n texts.

    Raises:
        UserError: a text is not a label of the space.
    """
    space = label_spaces.space(space_id)
    label_of = {text: space.match(text) for text in set(texts) if text is not None}
    wrong = sorted(text for text, label in label_of.items() if label is None)
    if wrong:
        raise UserError(
            f"{wrong[0]!r} is not a label of {space.id}: expected one of {', '.join(space.labels)}"
        )
    return [None if text is None else label_of[text] for text in texts]


def action_units(
    numbers: Sequence[int],
    present: np.ndarray,
    intensity: np.ndarray | None = None,
    annotated: np.ndarray | None = None,
) -> pa.Array:
    """The `aus` column from dense arrays (n, len(numbers)).

    Args:
        numbers: of the AUs.
        present: whether each AU is present.
        intensity: 0..5; NaN: not graded.
        annotated: whether the AU was annotated at all, by default everywhere.

    Returns:
        A column in which a row without any annotated AU is null.
    """
    import pyarrow as pa

    present = np.asarray(present, bool)
    n = len(present)
    annotated = np.ones(present.shape, bool) if annotated is None else np.asarray(annotated, bool)
    au_numbers = annotated.ravel()
    grades = (
        np.full(au_numbers.size, np.nan) if intensity is None else np.asarray(intensity).ravel()
    )
    struct = pa.StructArray.from_arrays(
        [
            pa.array(np.tile(np.asarray(numbers, np.int32), n)[au_numbers]),
            pa.array(grades[au_numbers].astype(np.float32), from_pandas=True),
            pa.array(present.ravel()[au_numbers]),
        ],
        names=["au", "intensity", "present"],
    )
    counts = annotated.sum(1)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), struct, mask=pa.array(counts == 0))


def listed_units(present: Sequence[Collection[int]], coded: Sequence[Collection[int]]) -> pa.Array:
    """The `aus` column of rows that list only their present AUs.

    Args:
        present: the AUs that each row lists.
        coded: AUs that are annotated as absent in a row that does not list them.

    Returns:
        A column in which a row without AUs in either is null.
    """
    numbers = sorted({number for row in (*present, *coded) for number in row})

    def mask(rows: Sequence[Collection[int]]) -> np.ndarray:
        flags = [[number in row for number in numbers] for row in rows]
        return np.array(flags, bool).reshape(len(rows), len(numbers))

    present_mask = mask(present)
    return action_units(numbers, present_mask, annotated=present_mask | mask(coded))


def boxes(x0: Any, y0: Any, x1: Any, y1: Any) -> pa.Array:
    """The `face_box` column from four columns of pixels."""
    import pyarrow as pa

    flat = np.stack([np.asarray(c, np.float32) for c in (x0, y0, x1, y1)], 1).ravel()
    return pa.ListArray.from_arrays(pa.array(np.arange(0, flat.size + 1, 4, dtype=np.int32)), flat)


def vote_column(words: Sequence[str], votes: np.ndarray) -> list[str]:
    """The `label_votes` column.

    Args:
        words: what can be voted for.
        votes: counts or probabilities >= 0, (n, len(words)).
    """
    return json_meta(len(votes), **dict(zip(words, np.asarray(votes).T, strict=True)))


def json_meta(n: int, **columns: Sequence[Any]) -> list[str]:
    """The `meta` column: one JSON object a row of what FaceSample has no field for."""
    names = sorted(columns)
    lists = [
        np.asarray(columns[k]).tolist() if isinstance(columns[k], np.ndarray) else list(columns[k])
        for k in names
    ]
    if not names:
        return ["{}"] * n
    encode = json.JSONEncoder(ensure_ascii=False).encode  # json.dumps would build one for each row
    return [encode(dict(zip(names, values, strict=True))) for values in zip(*lists, strict=True)]


# --- files ----------------------------------------------------------------------------------------


def exists_mask(paths: Iterable[str]) -> np.ndarray:
    """Whether each file exists (n,), found by listing each folder once."""
    folders = Folders()
    return np.array([folders.has(path) for path in paths], bool)


def resolve_image_paths(rows: Rows, description: str) -> tuple[Rows, np.ndarray]:
    """Correct the spelling of image paths. Warns if there was any to correct.

    Args:
        rows: rows with an `image` column.
        description: name of the rows in the warning.

    Returns:
        (the rows with paths as the disk spells them, a mask (n,) of the images that exist).
    """
    images = rows.columns.get("image")
    if images is None:
        return rows, np.ones(len(rows), bool)
    folders = Folders()
    exists = np.array([not isinstance(image, str) or folders.has(image) for image in images], bool)
    stored, other = list(images), []
    for row in np.flatnonzero(~exists):
        if path := folders.find(images[row]):
            stored[row], exists[row] = path, True
            other.append(row)
    if other:
        warnings.warn(
            f"{description}: {len(other):,} image paths differ from the files' names in letter "
            f"case, Unicode form or separators, the first: {images[other[0]]!a} is read from "
            f"{stored[other[0]]!a}",
            stacklevel=4,
        )
    return Rows(rows.columns | {"image": stored}, rows.skipped), exists


def image_names(folder: Path) -> tuple[list[str], list[str]]:
    """The names in a folder, sorted: those of image files, and all others but folders."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if not entry.is_dir())
    images = [n for n in names if n.lower().endswith(SUFFIXES) and not n.startswith(".")]
    image_set = set(images)
    return images, [name for name in names if name not in image_set]


def class_folders(folder: Path, space_id: str, prefix: str) -> Rows:
    """The rows of a set whose folders are its labels ("Angry/0001.png").

    Args:
        folder: the folder of the labels' folders.
        space_id: of the label space.
        prefix: of the ids, which are `prefix/label/stem`.

    Raises:
        UserError: a folder is not named as a label of the space. Numbers are not accepted, since
            copies count in different orders.
    """
    space = label_spaces.space(space_id)
    ids, images, labels, skipped = [], [], [], []
    for class_folder in sorted(path for path in folder.iterdir() if path.is_dir()):
        label = space.match(class_folder.name)
        if label is None:
            raise UserError(
                f"{class_folder}: {class_folder.name!r} is not a label of {space.id}; expected "
                f"folders named {', '.join(space.labels)}, or as their adjectives"
            )
        names, others = image_names(class_folder)
        ids += [f"{prefix}/{label}/{os.path.splitext(name)[0]}" for name in names]
        images += [str(class_folder / name) for name in names]
        labels += [label] * len(names)
        skipped += [f"{class_folder.name}/{name}" for name in others]
    columns = {"id": ids, "image": images, space.field: labels}
    return Rows(columns, {"no image file": skipped} if skipped else {})


def require_path(path: Path, description: str) -> Path:
    """`path` if it exists.

    Args:
        path: the expected file or folder.
        description: what it should contain.

    Raises:
        UserError: it does not exist; the message lists what is there instead.
    """
    if path.exists():
        return path
    folder = next((p for p in path.parents if p.exists()), Path())
    inside = sorted(p.name for p in folder.iterdir())[:8] if folder.is_dir() else []
    raise UserError(
        f"{path} is missing: expected {description}; {folder} holds "
        f"{', '.join(inside) or 'nothing'}. "
        "Give --dataset_root (root) as the folder that the data set's owners distribute"
    )


def read_csv(
    path: Path, columns: Mapping[str, str] | None = None, delimiter: str = ",", **options: Any
) -> pa.Table:
    """Read a csv file.

    Args:
        path: of the file; its delimiter is detected in its header.
        columns: {name: Arrow type such as "string", "int32" or "float32"} of the columns to read,
            in any letter case; None for all columns.
        delimiter: taken if the header has none.
        **options: of `pyarrow.csv.ReadOptions`, for a file without a header.

    Raises:
        UserError: with the file's name and line or column.
    """
    source = open_utf8(path)
    if {"column_names", "autogenerate_column_names"} & set(options):
        return _read_csv(path, source, columns, delimiter, **options)
    line, above = _first_line(path, source)
    names, delimiter = split_header(line, delimiter)
    if columns is None:
        table = _read_csv(path, source, None, delimiter)
        return table.rename_columns([name.strip() for name in table.column_names])
    places = [_place(path, column, names) for column in columns]
    # By number: Arrow would take the names with the spaces around them.
    types = {f"c{at}": kind for at, kind in zip(places, columns.values(), strict=True)}
    numbers = [f"c{at}" for at in range(len(names))]
    table = _read_csv(path, source, types, delimiter, column_names=numbers, skip_rows=above)
    return table.rename_columns(list(columns))


def csv_header(path: Path) -> list[str]:
    """The fields of a csv file's first line."""
    return split_header(_first_line(path, open_utf8(path, whole=False))[0])[0]


def _first_line(path: Path, source: Path | BytesIO) -> tuple[str, int]:
    """The first line that is not blank of what `utf8_source` gave, and the number of lines up to
    it."""
    raw = path.open("rb") if isinstance(source, Path) else BytesIO(source.getvalue())
    with TextIOWrapper(raw, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                return line.rstrip("\n"), number
    return "", 0


def _place(path: Path, column: str, names: list[str]) -> int:
    name = match_name(column, names, path)
    if name is None:
        raise UserError(
            f"{path} is not the csv file that was expected: it has no column {column!r}, its "
            f"header is {short_repr(','.join(names))}"
        )
    return names.index(name)


def _read_csv(
    path: Path,
    source: Path | BytesIO,
    columns: Mapping[str, str] | None,
    delimiter: str,
    **options: Any,
) -> pa.Table:
    """The table as Arrow reads it; whole numbers may be written as "3.0"."""
    import pyarrow as pa
    from pyarrow import csv

    def read(types: Mapping[str, str] | None) -> pa.Table:
        if isinstance(source, BytesIO):
            source.seek(0)
        convert: dict[str, Any] = {"strings_can_be_null": False}
        if types is not None:
            convert["include_columns"] = list(types)
            convert["column_types"] = {k: pa.type_for_alias(v) for k, v in types.items()}
        return csv.read_csv(
            source,
            read_options=csv.ReadOptions(**options),
            parse_options=csv.ParseOptions(delimiter=delimiter),
            convert_options=csv.ConvertOptions(**convert),
        )

    try:
        return read(columns)
    except (pa.ArrowInvalid, pa.ArrowKeyError, KeyError) as error:
        whole = {k: "float64" if "int" in v else v for k, v in (columns or {}).items()}
        try:
            if not columns or whole == columns or "conversion error to" not in str(error):
                raise error
            target = pa.schema([(k, pa.type_for_alias(v)) for k, v in columns.items()])
            return read(whole).cast(target)
        except (pa.ArrowInvalid, pa.ArrowKeyError, KeyError):
            raise UserError(f"{path} is not the csv file that was expected: {error}") from error


def read_spaced(path: Path, columns: Mapping[str, str], skip: int = 0) -> pa.Table:
    """Read a file of columns that are set apart by spaces or tabs, without a header.

    Args:
        path: of the file.
        columns: {name: Arrow type} of all columns.
        skip: number of lines at the top to ignore.

    Raises:
        UserError: with the file's name and line or column.
    """
    text = "\n".join(read_lines(path)[skip:]).replace("\t", " ")
    while "  " in text:
        text = text.replace("  ", " ")
    encoded = text.replace(" \n", "\n").replace("\n ", "\n").strip().encode() + b"\n"
    return _read_csv(path, BytesIO(encoded), columns, " ", column_names=list(columns))


def frames_by_number(folder: Path) -> dict[int, str]:
    """The paths of a folder's images by the last number in their name (`frame_00012.jpg`: 12).

    Raises:
        UserError: two images have the same number.
    """
    paths: dict[int, str] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            stem, suffix = os.path.splitext(entry.name)
            numbers = re.findall(r"\d+", stem)
            if entry.name[0] == "." or suffix.lower() not in SUFFIXES or not numbers:
                continue
            number = int(numbers[-1])
            if number in paths:
                raise UserError(
                    f"{folder} has two images number {number}: {Path(paths[number]).name} and "
                    f"{entry.name}; leave one camera, format or crop of each frame there"
                )
            paths[number] = entry.path
    return paths
