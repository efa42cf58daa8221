"""Guess what each column of a table holds, by its name and by its values."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from vlmface import label_spaces
from vlmface.column_roles import COLUMN_ROLES
from vlmface.data import video
from vlmface.data.init.names import is_rater, place_of, role_of
from vlmface.data.tables.cells import NULLS, distinct, normalise_cell
from vlmface.data.tables.splits import SPLIT_WORDS
from vlmface.data.tables.table import Table
from vlmface.errors import UserError
from vlmface.utils.images import SUFFIXES

NONE = "none"  # as a choice: no column holds it
MOST_LABELS = 100  # different words of a column of labels
# Words of split columns beside SPLIT_WORDS; the first two are those of FER2013.
FURTHER_SPLITS = {
    "publictest": "validation",
    "privatetest": "test",
    "trn": "train",
    "tst": "test",
    "eval": "validation",
    "entrenamiento": "train",
    "prueba": "test",
    "entraînement": "train",
    "treino": "train",
    "teste": "test",
}
_UNIT = re.compile(r"au[\s_.-]*0*(\d{1,2})([_\s-]?[rc])?", re.IGNORECASE)
_NAMED_ID = re.compile(r"(?=.*\d)(?:[^\W\d_]{1,12}[-_ ]?\d{1,6}|0\d{1,5})")
_COMMA = re.compile(r"[-+]?\d+(,\d+)?")
_MOSTLY = 0.9  # share of the cells


@dataclass(frozen=True)
class Column:
    """A column by its distinct values.

    Attributes:
        name: Its name.
        values: The distinct cells that are not null, in the order of the rows.
        codes: (rows,) the number of each row's cell among them, -1 for null.
    """

    name: str
    values: Sequence[Any]
    codes: np.ndarray = field(repr=False)

    @cached_property
    def counts(self) -> np.ndarray:
        """How many rows have each value."""
        return np.bincount(self.codes[self.codes >= 0], minlength=len(self.values))

    @cached_property
    def words(self) -> dict[str, int]:
        """{text: rows} of the values that are texts or numbers and not empty."""
        counts_of_words: dict[str, int] = {}
        for value, count in zip(self.values, self.counts.tolist(), strict=True):
            if isinstance(value, str | int | float):
                text = str(value).strip()
                if text.casefold() not in NULLS:
                    counts_of_words[text] = counts_of_words.get(text, 0) + count
        return counts_of_words

    def share(self, fits: Any) -> float:
        """The share of the annotated rows whose word fits."""
        total = sum(self.words.values())
        return sum(n for word, n in self.words.items() if fits(word)) / total if total else 0.0

    @cached_property
    def numbers(self) -> list[float] | None:
        """The values as numbers, with a point or a comma, True and False as 1 and 0; None if one is
        not a number."""
        flags = {"true": 1.0, "false": 0.0}
        words = self.words
        if self.has_decimal_commas:
            words = {word.replace(",", "."): n for word, n in words.items()}
        try:
            return [float(flags.get(word.casefold(), word)) for word in words] or None
        except ValueError:
            return None

    @cached_property
    def has_decimal_commas(self) -> bool:
        """Whether numbers are written as 0,5: some have one comma, and none a point."""
        words = self.words
        return any("," in word for word in words) and all(map(_COMMA.fullmatch, words))

    def texts(self) -> list[str | None]:
        """The text of each row, None for an empty cell."""
        texts = [str(value).strip() or None for value in self.values]
        return [None if code < 0 else texts[code] for code in self.codes.tolist()]


def column_of(table: Table, name: str) -> Column:
    """A column of a table."""
    return Column(name, *distinct(table, name, np.arange(len(table))))


def all_columns(table: Table) -> dict[str, Column]:
    """The columns of a table by name."""
    return {name: column_of(table, name) for name in table.columns}


def guess(
    table: Table,
    columns: Mapping[str, Column],
    chosen: Mapping[str, str | None],
    is_person: Callable[[Column, Column | None], bool] = lambda column, image: True,
) -> dict[str, str]:
    """{role: column}, of `column_roles.COLUMN_ROLES`.

    Args:
        table: The table.
        columns: Those that may have a role, by name.
        chosen: {role: column, NONE, or None to guess}.
        is_person: Whether a column may name the people in the pictures, from it and the column of
            the pictures.

    Raises:
        UserError: A chosen column does not exist, or several may hold the labels.
    """
    roles: dict[str, str] = {}
    for role in COLUMN_ROLES:
        choice = chosen.get(role)
        if choice == NONE:
            continue
        if choice is not None:
            roles[role] = table.need(choice, f"--{role.replace('_', '-')}")
            continue
        taken = {*roles.values(), *(name for name in chosen.values() if name)}
        free = {name: column for name, column in columns.items() if name not in taken}
        if role == "subject":
            image = columns.get(roles.get("image", ""))
            free = {name: column for name, column in free.items() if is_person(column, image)}
        if guessed_column := _GUESSES[role](role, free, len(table)):
            roles[role] = guessed_column
    return roles


def units(columns: Mapping[str, Column]) -> dict[str, Any]:
    """The options `aus`, `au_values` and `au_missing` of a table with columns of action units; {}
    without any."""
    named = {name: match for name in columns if (match := _UNIT.fullmatch(name.strip()))}
    numeric = {name: columns[name].numbers for name in named}
    by_column = {name: values for name, values in numeric.items() if values}
    graded = [name for name in by_column if (named[name][2] or "").lower().endswith("r")]
    coded = [name for name in by_column if (named[name][2] or "").lower().endswith("c")]
    chosen = graded or coded or list(by_column)
    if not chosen:
        return {}
    values = np.unique([value for name in chosen for value in by_column[name]])
    codes = [value for value in values.tolist() if value in (-1, 9, 99, 999)]
    values = values[~np.isin(values, codes)]
    if np.isin(values, (0, 1)).all():
        kind = "presence"
    elif values.min() >= 0 and values.max() <= 1:
        kind = "probability"
    elif values.min() >= 0 and values.max() <= 5:
        kind = "intensity"
    else:
        return {}
    options: dict[str, Any] = {"aus": {f"AU{int(named[name][1])}": name for name in chosen}}
    if kind != "presence":
        options["au_values"] = kind
    if codes:
        options["au_missing"] = [int(code) for code in codes]
    return options


def split_names(column: Column) -> dict[str, str]:
    """{word: train, validation or test} of the words of a split column that a table does not read
    by itself."""
    further = {}
    for word in column.words:
        key = normalise_cell(word)
        if key not in SPLIT_WORDS and key in FURTHER_SPLITS:
            further[word] = FURTHER_SPLITS[key]
    return further


def share_words(columns: Sequence[Column]) -> bool:
    """Whether at least half of the words of each column occur in the others, too."""
    words = [{normalise_cell(word) for word in column.words} for column in columns]
    if not all(words) or len(set().union(*words)) > MOST_LABELS:
        return False
    for i, column_words in enumerate(words):
        others = set().union(*words[:i], *words[i + 1 :])
        if len(column_words & others) * 2 < len(column_words):
            return False
    return True


# --- one role -------------------------------------------------------------------------------------


def _named(role: str, columns: Mapping[str, Column]) -> list[str]:
    """The columns whose names say that they hold it, the most common names first."""
    return sorted((name for name in columns if role_of(name) == role), key=place_of)


def is_unit(name: str) -> bool:
    """Whether a column's name is that of an action unit, such as AU01_r."""
    return _UNIT.fullmatch(name.strip()) is not None


def files_column(role: str, columns: Mapping[str, Column], rows: int = 0) -> str | None:
    """The column with the names of image or video files, or with the pictures themselves."""
    suffixes = SUFFIXES if role == "image" else video.SUFFIXES
    candidates = [
        name
        for name, column in columns.items()
        if column.share(lambda word: word.lower().endswith(suffixes)) >= _MOSTLY
        or (role == "image" and column.values and _is_picture(column.values[0]))
    ]
    return min(candidates, key=lambda name: (role_of(name) != role, place_of(name)), default=None)


def _is_picture(value: Any) -> bool:
    return isinstance(value, bytes) or (
        isinstance(value, dict) and bool({"bytes", "path"} & value.keys())
    )


def _split(role: str, columns: Mapping[str, Column], rows: int) -> str | None:
    split_words = {*SPLIT_WORDS, *FURTHER_SPLITS}
    fitting = [
        name
        for name, column in columns.items()
        if column.words and all(normalise_cell(word) in split_words for word in column.words)
    ]
    return min(fitting, key=lambda name: (role_of(name) != role, place_of(name)), default=None)


def _subject(role: str, columns: Mapping[str, Column], rows: int) -> str | None:
    """A column of that name; else the only one with names such as P07 that repeat."""
    if named := [n for n in _named(role, columns) if len(columns[n].words) < max(rows, 2)]:
        return named[0]
    repeated = [
        name
        for name, column in columns.items()
        if 2 <= len(column.words) <= rows / 2
        and column.share(_NAMED_ID.fullmatch) >= _MOSTLY
        and role_of(name) is None
    ]
    return repeated[0] if len(repeated) == 1 else None


def _label(role: str, columns: Mapping[str, Column], rows: int) -> str | None:
    """A column of that name, the one with known emotions first; else the only column of few words.

    Raises:
        UserError: There are several.
    """
    named = [
        n
        for n in _named(role, columns)
        if 1 <= len(columns[n].words) <= MOST_LABELS or columns[n].numbers
    ]
    if named:
        words = [name for name in named if columns[name].numbers is None]
        return (words or named)[0]
    few = [
        name
        for name, column in columns.items()
        if role_of(name) is None
        and not is_rater(name)
        and column.numbers is None
        and not _UNIT.fullmatch(name)
        and 2 <= len(column.words) <= min(MOST_LABELS, rows / 2)
    ]
    space = label_spaces.space("emotion8")
    emotions = [name for name in few if columns[name].share(space.match) >= _MOSTLY]
    few = emotions or few
    if len(few) > 1:
        hint = ""
        if share_words([columns[name] for name in few]):
            quoted = " ".join(map(shlex.quote, few))
            hint = f"; if each holds the answers of one rater, name them all, --raters {quoted}"
        raise UserError(
            f"the columns {', '.join(map(repr, few))} may all hold the label: name one, "
            f"--label {shlex.quote(few[0])}{hint}"
        )
    return few[0] if few else None


def _number(role: str, columns: Mapping[str, Column], rows: int) -> str | None:
    low, high = (0, 130) if role == "age" else (-1, 1)
    for name in _named(role, columns):
        values = columns[name].numbers
        if values and low <= min(values) and max(values) <= high:
            return name
    return None


def _word(role: str, columns: Mapping[str, Column], rows: int) -> str | None:
    spaces = [space for space in label_spaces.SPACES.values() if space.field == role]
    short = ("f", "m", "w") if role == "gender" else ()
    for name in _named(role, columns):
        words = columns[name].words
        if words and all(
            word.casefold() in short or any(space.match(word) for space in spaces) for word in words
        ):
            return name
    return None


def _text(role: str, columns: Mapping[str, Column], rows: int) -> str | None:
    """A column of that name with sentences."""
    for name in _named(role, columns):
        if columns[name].share(lambda word: len(word.split()) >= 3) >= _MOSTLY:
            return name
    return None


_GUESSES = {
    "image": files_column,
    "video": files_column,
    "split": _split,
    "subject": _subject,
    "label": _label,
    "valence": _number,
    "arousal": _number,
    "age": _number,
    "age_group": _word,
    "gender": _word,
    "race": _word,
    "rationale": _text,
}
