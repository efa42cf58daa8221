"""Columns of numbers that people rated, such as engagement from 0 to 10: which they are, and the
scale that their numbers are on.

Numbers may also be codes of classes (1 happy, 2 sad, ...), counts or measurements. A column is
taken for ratings if its numbers have decimals or are many, or if its name says so; what remains
unclear is an error that names `--scale`.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlmface import scales
from vlmface.data.init.columns import Column, is_unit
from vlmface.data.init.names import MEASURED, RATINGS, has_part, is_rater, role_of
from vlmface.errors import UserError

MOST_CODES = 11  # different whole numbers that may be codes of classes
_FEWEST_STEPS = 5  # whole numbers from which on a rating's name decides
# Ranges that people rate on. One that the numbers fill from end to end comes first.
_FILLED = ((0, 4), (1, 5), (0, 5), (0, 6), (1, 6), (1, 7), (1, 9), (1, 10), (-2, 2), (-4, 4))
_USUAL = (
    (0, 1),
    (-1, 1),
    (1, 5),
    (1, 7),
    (-3, 3),
    (0, 10),
    (-5, 5),
    (-10, 10),
    (0, 100),
    (-100, 100),
)
_STEPS = (0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 25, 50, 100)
_USUAL_ANSWERS = 11  # of a guessed scale, at most
_MISSING = {9.0, 99.0, 999.0, 9999.0, 88.0, 888.0, 77.0, 777.0}  # and below 0
_FAR = 3.0  # ranges of the other numbers between them and a code for a missing one


@dataclass(frozen=True)
class ScaleChoice:
    """The option `--scale`.

    Attributes:
        column: The column that holds the ratings; None: that of the labels.
        content: `min`, `max` and, where it was given, `step`.
    """

    column: str | None
    content: Mapping[str, float]


def parse_choice(text: str) -> ScaleChoice:
    """`--scale [COLUMN=]MIN:MAX[:STEP]`. Raises UserError."""
    column, equals, numbers = text.rpartition("=")
    values = [scales.read_number(number) for number in numbers.split(":")]
    if not 2 <= len(values) <= 3 or None in values or (equals and not column):
        raise UserError(
            f"--scale {text!r} is not COLUMN=MIN:MAX or COLUMN=MIN:MAX:STEP: write, for example, "
            "--scale engagement=0:10"
        )
    content = {
        key: _plain(x or 0.0) for key, x in zip(("min", "max", "step"), values, strict=False)
    }
    step = content.get("step", usual_step(content["min"], content["max"], whole=False))
    scales.from_mapping(content | {"step": step}, f"--scale {text}")
    return ScaleChoice(column or None, content)


# --- which column ---------------------------------------------------------------------------------


def find_column(columns: Mapping[str, Column], others_label: bool) -> str | None:
    """The column of ratings: the only one that is named for them, else the only one with many
    different numbers whose name says nothing; None if there is none.

    Args:
        columns: Those without a role.
        others_label: Whether something else may be the label, so that only a name decides.

    Raises:
        UserError: There are several.
    """
    numeric = {name: column for name, column in columns.items() if _may_be_ratings(name, column)}
    candidates = [name for name in numeric if is_rating_name(name)]
    if not candidates and not others_label:
        candidates = [
            name
            for name, column in numeric.items()
            if role_of(name) is None and _are_many(column.numbers or ()) and not _counts_up(column)
        ]
    if len(candidates) > 1:
        raise UserError(
            f"the columns {', '.join(map(repr, candidates))} may all hold the rating: name one, "
            f"--label {shlex.quote(candidates[0])}; if each holds the numbers of one rater, name "
            f"them all, --raters {' '.join(map(shlex.quote, candidates))}"
        )
    return candidates[0] if candidates else None


def is_rating_name(name: str) -> bool:
    """Whether a column of that name holds ratings, such as engagement_mean or "Pain (VAS)"."""
    return has_part(name, RATINGS) or role_of(name) in ("valence", "arousal")


def _may_be_ratings(name: str, column: Column) -> bool:
    numbers = column.numbers
    if not numbers or len(set(numbers)) < 3 or is_unit(name) or is_rater(name):
        return False
    has_other_role = role_of(name) not in (None, "label", "valence", "arousal")
    return not has_other_role and not has_part(name, MEASURED) and all(map(math.isfinite, numbers))


def _counts_up(column: Column) -> bool:
    """Whether the numbers are whole and different in every row, as those of a counter."""
    numbers = column.numbers or []
    return all(number.is_integer() for number in numbers) and int(column.counts.max()) == 1


def _are_many(numbers: Sequence[float]) -> bool:
    return len(set(numbers)) > MOST_CODES or not all(number.is_integer() for number in numbers)


# --- which scale ----------------------------------------------------------------------------------


def guess_scale(words: Mapping[str, int], name: str) -> dict[str, Any] | None:
    """`min`, `max` and `step` of the scale that numbers are on; None for words, and for numbers
    that may be codes of classes.

    Args:
        words: {word: rows}.
        name: Of the column.

    Raises:
        UserError: A number far from all others may stand for a missing one.
    """
    numbers = numbers_of(words)
    if numbers is None or len(set(numbers)) < 3:
        return None
    whole = all(number.is_integer() for number in numbers)
    by_name = is_rating_name(name) and len(set(numbers)) >= _FEWEST_STEPS
    are_codes = whole and role_of(name) == "label"  # of classes, however many
    if not by_name and (are_codes or not _are_many(numbers)):
        return None
    _check_missing(words, numbers, name)
    low, high = _range(min(numbers), max(numbers), whole)
    return {"min": _plain(low), "max": _plain(high), "step": usual_step(low, high, whole)}


def chosen_scale(choice: ScaleChoice, words: Mapping[str, int]) -> dict[str, Any]:
    """`min`, `max` and `step` of `--scale`, the step by the numbers if it was not given."""
    content = dict(choice.content)
    if "step" not in content:
        numbers = numbers_of(words) or []
        whole = all(number.is_integer() for number in numbers)
        content["step"] = usual_step(content["min"], content["max"], whole)
    return content


def numbers_of(words: Mapping[str, int]) -> list[float] | None:
    """The numbers that words are, in their order; None if one is not a number."""
    numbers = []
    for word in words:
        try:
            number = scales.read_number(word)
            number = float(word) if number is None and "_" not in word else number
        except ValueError:
            return None
        if number is None or not math.isfinite(number):
            return None
        numbers.append(number)
    return numbers or None


def _check_missing(words: Mapping[str, int], numbers: Sequence[float], name: str) -> None:
    """Raise UserError for a number such as 99 that is far from all others."""
    for word, number in zip(words, numbers, strict=True):
        others = [other for other in numbers if other != number]
        low, high = min(others), max(others)
        gap = max(number - high, low - number)
        if abs(number) in _MISSING and gap > _FAR * max(high - low, 1):
            raise UserError(
                f"column {name!r}: {word} ({words[word]:,} rows) is far from all other numbers "
                f"({low:g} to {high:g}): if it stands for a missing rating, leave it out, --labels "
                f"{word}=null; otherwise name the range, --scale "
                f"{shlex.quote(name)}={min(low, number):g}:{max(high, number):g}"
            )


def _range(low: float, high: float, whole: bool) -> tuple[float, float]:
    """The usual range of numbers from `low` to `high`, else round numbers around them."""
    if whole and (low, high) in _FILLED:
        return low, high
    for first, last in sorted(_USUAL, key=lambda ends: ends[1] - ends[0]):
        if first <= low and high <= last and (whole is False or last - first > 2):
            return first, last
    unit = 10.0 ** math.floor(math.log10(high - low))
    return math.floor(low / unit) * unit, math.ceil(high / unit) * unit


def usual_step(low: float, high: float, whole: bool) -> float:
    """A step that makes at most _USUAL_ANSWERS answers of the range, if there is one; a whole
    number for ratings that are whole."""
    for step in _STEPS:
        parts = (high - low) / step
        divides = abs(parts - round(parts)) < 1e-9
        if divides and parts < _USUAL_ANSWERS and (step >= 1 or not whole):
            return _plain(step)
    return _plain((high - low) / 10)


def text_of(scale: scales.Scale, words: Mapping[str, int], is_guess: bool) -> str:
    """What is printed of a column of ratings: the scale and the quartiles of its numbers."""
    numbers = np.repeat(numbers_of(words) or [], list(words.values()))
    low, first, median, third, high = np.quantile(numbers, (0, 0.25, 0.5, 0.75, 1))
    step = f"scale {scale.range_text} in steps of {scale.to_mapping()['step']:g}"
    guessed = " (a guess: --scale COLUMN=MIN:MAX:STEP)" if is_guess else ""
    return (
        f"{step}{guessed}; {len(numbers):,} numbers from {low:g} to {high:g}, quartiles {first:g}, "
        f"{median:g}, {third:g}"
    )


def _plain(number: float) -> float:
    return int(number) if float(number).is_integer() else round(float(number), 6)
