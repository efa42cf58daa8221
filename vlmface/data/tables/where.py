"""Filters of rows: `where` of a table.

    condition   column comparison value | column [not] in (value, ...) | column is [not] null
                | not condition | condition and condition | condition or condition | (condition)
    comparison  = == != < <= > >=
    value       a number, or a text in single or double quotes
    column      a name, in `backticks` if it is not letters, digits and underscores alone

`not` binds more strongly than `and`, and `and` more strongly than `or`. A number is compared with
the numbers of a column, a text with its texts, letter by letter. A cell that is empty or stands for
"not annotated" fulfils neither a comparison nor its negation, as in SQL.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from vlmface.data.tables.cells import as_label, convert, numbers
from vlmface.data.tables.table import Table
from vlmface.errors import UserError

_TOKEN = re.compile(
    r"""\s*(?:(?P<number>-?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?![\w.]))
    |(?P<text>'[^']*'|"[^"]*")
    |(?P<column>`[^`]+`)
    |(?P<operator>==|!=|<=|>=|=|<|>|\(|\)|,)
    |(?P<word>[^\W\d]\w*))""",
    re.VERBOSE,
)
_KEYWORDS = ("and", "or", "not", "in", "is", "null")
_COMPARISONS: dict[str, Callable[[np.ndarray, float | str], np.ndarray]] = {
    "=": lambda cells, value: cells == value,
    "==": lambda cells, value: cells == value,
    "!=": lambda cells, value: cells != value,
    "<": lambda cells, value: cells < value,
    "<=": lambda cells, value: cells <= value,
    ">": lambda cells, value: cells > value,
    ">=": lambda cells, value: cells >= value,
}
_DEEPEST = 50  # brackets and negations inside one another


def rows_where(table: Table, condition: str, decimal: str = ".") -> np.ndarray:
    """Which rows fulfil a condition.

    Args:
        table: the rows (n).
        condition: as above.
        decimal: of the numbers in the table.

    Returns:
        A mask (n,).

    Raises:
        UserError: the condition cannot be read, names a column that the table does not have, or
            compares a column of texts with a number.
    """
    return _Parser(table, condition, decimal).mask()


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    at: int  # counted from 1


@dataclass(frozen=True)
class _Truth:
    """Which rows are known to fulfil a condition, and which not to."""

    yes: np.ndarray
    no: np.ndarray

    def __invert__(self) -> _Truth:
        return _Truth(self.no, self.yes)

    def __and__(self, other: _Truth) -> _Truth:
        return _Truth(self.yes & other.yes, self.no | other.no)

    def __or__(self, other: _Truth) -> _Truth:
        return _Truth(self.yes | other.yes, self.no & other.no)


class _Parser:
    def __init__(self, table: Table, condition: str, decimal: str) -> None:
        self.table = table
        self.condition = condition
        self.decimal = decimal
        self.rows = np.arange(len(table))
        self.tokens = self._tokens()
        self.position = 0
        self.depth = 0

    def mask(self) -> np.ndarray:
        truth = self._either()
        if self._next.kind != "end":
            self._fail("expected and, or, or the end")
        return truth.yes

    def _tokens(self) -> list[_Token]:
        tokens, at = [], 0
        text = self.condition.rstrip()
        while at < len(text):
            match = _TOKEN.match(text, at)
            if match is None:
                begin = at + len(text[at:]) - len(text[at:].lstrip())
                raise UserError(
                    f"where={self.condition!r}, character {begin + 1}: {text[begin]!r} is not part "
                    "of a condition; write for example: confidence > 0.8 and label != 'none'"
                )
            kind = str(match.lastgroup)
            word, start = match[kind], match.start(kind) + 1
            if kind == "word" and word.lower() in _KEYWORDS:
                kind, word = "keyword", word.lower()
            tokens.append(_Token(kind, word, start))
            at = match.end()
        tokens.append(_Token("end", "", len(text) + 1))
        return tokens

    @property
    def _next(self) -> _Token:
        return self.tokens[self.position]

    def _take(self, *texts: str) -> _Token | None:
        """The next token if it is one of these keywords or operators."""
        token = self._next
        if token.kind in ("keyword", "operator") and token.text in texts:
            self.position += 1
            return token
        return None

    def _fail(self, expected: str) -> NoReturn:
        token = self._next
        what = "the end" if token.kind == "end" else repr(token.text)
        raise UserError(f"where={self.condition!r}, character {token.at}: {expected}, found {what}")

    def _either(self) -> _Truth:
        truth = self._both()
        while self._take("or"):
            truth |= self._both()
        return truth

    def _both(self) -> _Truth:
        truth = self._single()
        while self._take("and"):
            truth &= self._single()
        return truth

    def _single(self) -> _Truth:
        self.depth += 1
        if self.depth > _DEEPEST:
            self._fail(f"at most {_DEEPEST} brackets inside one another")
        try:
            if self._take("not"):
                return ~self._single()
            if self._take("("):
                truth = self._either()
                if not self._take(")"):
                    self._fail("expected )")
                return truth
            return self._comparison()
        finally:
            self.depth -= 1

    def _comparison(self) -> _Truth:
        column = self._column()
        if self._take("is"):
            negated = self._take("not")
            if not self._take("null"):
                self._fail("expected null")
            null = np.array([word is None for word in self._texts(column)], bool)
            return ~_Truth(null, ~null) if negated else _Truth(null, ~null)
        negated = self._take("not")
        if self._take("in"):
            truth = self._among(column)
            return ~truth if negated else truth
        if negated or not (operator := self._take(*_COMPARISONS)):
            self._fail("expected in" if negated else f"expected {', '.join(_COMPARISONS)}, in, is")
        return self._compared(column, operator.text)

    def _among(self, column: str) -> _Truth:
        if not self._take("("):
            self._fail("expected ( and a list of values")
        truth = self._compared(column, "=")
        while self._take(","):
            truth |= self._compared(column, "=")
        if not self._take(")"):
            self._fail("expected , or )")
        return truth

    def _column(self) -> str:
        token = self._next
        if token.kind not in ("word", "column"):
            self._fail("expected the name of a column")
        name = self.table.find(token.text.strip("`"))
        if name is None:
            raise UserError(
                f"where={self.condition!r}, character {token.at}: {self.table.path} has no column "
                f"{token.text.strip('`')!r}, only {self.table.names()}"
            )
        self.position += 1
        return name

    def _compared(self, column: str, operator: str) -> _Truth:
        token = self._next
        if token.kind not in ("number", "text"):
            self._fail("expected a number or a text in quotes")
        self.position += 1
        compare = _COMPARISONS[operator]
        if token.kind == "text":
            words = self._texts(column)
            filled = np.array([word is not None for word in words], bool)
            cells = np.array([word or "" for word in words], object)
            yes = np.asarray(compare(cells, token.text[1:-1]), bool) & filled
        else:
            try:
                cells = numbers(self.table, column, self.rows, self.decimal, flags=True)
            except UserError as error:
                raise UserError(
                    f"where={self.condition!r}, character {token.at}: {token.text} is a number, "
                    f"but {error}; put texts in quotes"
                ) from error
            filled = ~np.isnan(cells)
            yes = compare(cells, float(token.text)) & filled
        return _Truth(yes, filled & ~yes)

    def _texts(self, column: str) -> list[str | None]:
        return convert(self.table, column, self.rows, as_label)
