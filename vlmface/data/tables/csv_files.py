"""Csv files: their delimiter, header and rows, with the line of each row."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlmface.data.records import short_repr
from vlmface.data.tables.table import Part, Table
from vlmface.data.tables.titles import TITLES, num_title_rows, warn_of_titles
from vlmface.data.text_files import DELIMITERS, split_header
from vlmface.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

_TOP = 1 << 16  # characters in which the header is looked for
_BLOCK = 1 << 16  # rows that are Python objects at once
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\n|\r)|[^\r\n]+")
_BLANK_LINE = re.compile(r"(?:\r\n|\n|\r)[ \t]*(?:\r\n|\n|\r)")


@dataclass(frozen=True)
class _Form:
    """What the top of a csv file shows: the names of its columns ("" for one without a name), its
    delimiter, how many lines come before the first row, and whether the file has a header."""

    header: list[str]
    delimiter: str
    skip: int
    named: bool


def read_csv_table(path: Path, text: str, *, header: bool, delimiter: str = ",") -> Table:
    """The table in a csv file; all cells are texts.

    Args:
        path: of the file.
        text: its content.
        header: whether the first line names the columns; otherwise they are named 1, 2, 3, ...
        delimiter: taken if the first line has none.

    Raises:
        UserError: with the line, for a row of another width or a wrong quote.
    """
    import pyarrow as pa

    form = _form(path, text, header, delimiter)
    names, repeated = distinct_names(form.header)
    if not any(names):
        raise UserError(f"{path} needs a header with the names of its columns")
    cells = _arrow_cells(text, form)
    if cells is not None:
        lines = np.arange(len(cells[0])) + form.skip + 1
    else:
        blocks: list[list[pa.Array]] = []
        numbers: list[int] = []
        rows = _rows(path, text, form, numbers)
        while block := list(islice(rows, _BLOCK)):
            blocks.append([pa.array(column, pa.string()) for column in zip(*block, strict=True)])
        cells = [
            pa.chunked_array([block[i] for block in blocks], pa.string()).combine_chunks()
            for i in range(len(names))
        ]
        lines = np.array(numbers, np.int64)
    columns = {name: array for name, array in zip(names, cells, strict=True) if name}
    return Table(path, columns, [Part(path, "line", lines)], repeated)


def distinct_names(header: list[str]) -> tuple[list[str], dict[str, list[str]]]:
    """(names of which none occurs twice, {name that the header repeats: its new names})."""
    counts = Counter(header)
    repeated: dict[str, list[str]] = {}
    names = []
    for name in header:
        if name and counts[name] > 1:
            numbered = repeated.setdefault(name, [])
            numbered.append(f"{name} ({len(numbered) + 1})")
            name = numbered[-1]
        names.append(name)
    return names, repeated


def _form(path: Path, text: str, has_header: bool, usual: str) -> _Form:
    lines = [line for line in re.split(r"[\r\n]+", text[:_TOP])[:TITLES] if _has_content(line)]
    first = lines[0].lstrip() if lines else ""
    mark = re.fullmatch(r'"?sep=(.)"?', first.strip(), re.IGNORECASE)  # as Excel writes it
    titles = 0 if mark or not has_header else _num_titles(lines, usual)
    header_line = lines[titles] if lines else ""
    delimiter = mark[1] if mark else split_header(header_line.lstrip(" "), usual)[1]
    reader = _reader(text, delimiter)
    skip, top, above = 0, None, titles
    try:
        for row in reader:
            if mark and row and skip == 0:
                skip = reader.line_num
            elif _has_content("".join(row)):
                top = row
                if above == 0:
                    break
                above -= 1
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}") from error
    if titles:
        warn_of_titles(path, titles, reader.line_num, "line")
    names = [name.strip() for name in top or []]
    if has_header:
        return _Form(names, delimiter, reader.line_num, True)
    return _Form([str(number) for number in range(1, len(names) + 1)], delimiter, skip, False)


def _has_content(text: str) -> bool:
    """Whether a line is more than delimiters and blanks, such as Excel writes for an empty row."""
    return bool(text.strip("".join(DELIMITERS) + ' "'))


def _num_titles(lines: Sequence[str], usual: str) -> int:
    """How many of the first lines come before the header. A title may lack the delimiter."""
    if not lines or any('"' in line for line in lines):
        return 0
    delimiter = split_header(lines[0], usual)[1]
    marks = (delimiter,) if delimiter in lines[0] else DELIMITERS
    return max(num_title_rows([line.split(mark) for line in lines]) for mark in marks)


def _reader(text: str, delimiter: str) -> Any:
    lines = (match[0] for match in _LINE.finditer(text))
    return csv.reader(lines, delimiter=delimiter, strict=True)


def _arrow_cells(text: str, form: _Form) -> list[pa.Array] | None:
    """The columns as Arrow reads them, many times faster than Python; None for a file with quotes,
    blank lines or lines of another width: it would lose count of the lines, or explain nothing."""
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import csv as arrow_csv

    if '"' in text or _BLANK_LINE.search(text):
        return None
    names = [str(i) for i in range(len(form.header))]
    try:
        table = arrow_csv.read_csv(
            pa.BufferReader(text.encode()),
            read_options=arrow_csv.ReadOptions(column_names=names, skip_rows=form.skip),
            parse_options=arrow_csv.ParseOptions(delimiter=form.delimiter, quote_char=False),
            convert_options=arrow_csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid:
        return None
    cells = [column.combine_chunks() for column in table.columns]
    if form.named and pc.any(pc.equal(pc.utf8_trim_whitespace(cells[0]), form.header[0])).as_py():
        return None  # the header may occur again
    return cells


def _rows(path: Path, text: str, form: _Form, lines: list[int]) -> Iterator[list[str]]:
    """The rows of a csv file; the number of the line in which each ends is appended to `lines`."""
    reader = _reader(text, form.delimiter)
    width = len(form.header)
    try:
        for row in reader:
            if reader.line_num <= form.skip:
                continue
            while len(row) > width and not row[-1].strip():  # a delimiter at the line's end
                row.pop()
            if not row:
                continue
            if len(row) != width:
                raise UserError(
                    f"{path}, line {reader.line_num}: {len(row)} cells, but the header has "
                    f"{width}: {short_repr(row)}"
                )
            if form.named and [cell.strip() for cell in row] == form.header:
                raise UserError(
                    f"{path}, line {reader.line_num} repeats the header: if tables were joined, "
                    "remove that line"
                )
            lines.append(reader.line_num)
            yield row
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}") from error
