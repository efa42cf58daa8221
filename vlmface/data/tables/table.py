"""A table in memory: its columns, and the file and place of each row for error messages."""

from __future__ import annotations

import difflib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlmface.data.text_files import match_name
from vlmface.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Part:
    """The rows of one file.

    Attributes:
        path: of the file.
        unit: what its places are: "line", "row" or "record".
        places: the number of each row's place in it.
    """

    path: Path
    unit: str
    places: np.ndarray


@dataclass(frozen=True)
class Table:
    """The columns of a file, or of several files one after the other.

    Attributes:
        path: the file, or the folder of the files.
        columns: {name: n cells}: an Arrow array, or a list of Python objects.
        parts: the files.
        repeated: names that the header repeats, {name: the names of its columns here}.
    """

    path: Path
    columns: Mapping[str, pa.Array | Sequence[Any]]
    parts: Sequence[Part]
    repeated: Mapping[str, Sequence[str]]

    def __len__(self) -> int:
        return self._starts[-1]

    @cached_property
    def _starts(self) -> list[int]:
        return np.cumsum([0, *(len(part.places) for part in self.parts)]).tolist()

    def place(self, row: int) -> str:
        """The place of a row, such as "line 3"; of several files with the file's name."""
        part, number = self._part_and_place(row)
        place = f"{part.unit} {number}"
        return place if len(self.parts) == 1 else f"{part.path.name}, {place}"

    def where(self, row: int) -> str:
        """The file and the place of a row."""
        part, number = self._part_and_place(row)
        return f"{part.path}, {part.unit} {number}"

    def _part_and_place(self, row: int) -> tuple[Part, int]:
        file = bisect_right(self._starts, row) - 1
        return self.parts[file], int(self.parts[file].places[row - self._starts[file]])

    def stems(self, rows: np.ndarray) -> list[str]:
        """For each row the name of its file without the suffix."""
        stems = [part.path.stem for part in self.parts]
        files = np.searchsorted(self._starts, rows, side="right") - 1
        return [stems[file] for file in files.tolist()]

    def find(self, column: str) -> str | None:
        """The column of that name in any letter case; None if there is none. Raises UserError for a
        name that the header repeats."""
        if again := match_name(column, self.repeated, self.path):
            raise UserError(
                f"{self.path} has {len(self.repeated[again])} columns {again!r}: name one of "
                f"{', '.join(map(repr, self.repeated[again]))}"
            )
        return match_name(column, self.columns, self.path)

    def need(self, column: str | int, option: str) -> str:
        """The column of that name.

        Args:
            column: in any letter case; a number names the column of a file without a header.
            option: for the message, such as `split_column`.

        Raises:
            UserError: there is none, or several may be meant.
        """
        if name := self.find(str(column)):
            return name
        near = difflib.get_close_matches(str(column), list(self.columns), 1)
        hint = f": did you mean {near[0]!r}?" if near else ""
        raise UserError(
            f"{option} names the column {column!r}, but {self.path} has {self.names()}{hint}"
        )

    def names(self) -> str:
        """The names of the columns, at most 60 of them."""
        names = list(self.columns)
        more = f", ... ({len(names)} in all)" if len(names) > 60 else ""
        return ", ".join(names[:60]) + more
