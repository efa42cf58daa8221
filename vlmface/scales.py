"""Scales of numbers that faces are rated on, such as engagement from 0 to 10.

A label space has one instead of labels:

    field: context
    scale: {name: engagement, min: 0, max: 10, step: 1, anchors: {0: asleep, 10: fully engaged}}

The labels of such a space are the numbers at each step, as texts: a model is trained to answer with
the nearest one. What was annotated stays the exact number, such as a mean of raters of 6.37.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal
from functools import cached_property
from typing import Any

from vlmface.errors import UserError

MOST_STEPS = 101  # labels of a scale: enough for 0 to 100
_LARGEST = 1_000_000  # of min and max, without their sign
_MOST_DECIMALS = 6
LONGEST = 100  # characters of a name or of the words at a number
_KEYS = ("name", "min", "max", "step", "anchors")
_MINUS = str.maketrans(
    {"\N{MINUS SIGN}": "-", "\N{EN DASH}": "-", "\N{FULLWIDTH HYPHEN-MINUS}": "-"}
)
_NUMBER = re.compile(r"([-+]?)(\d{1,15})(?:[.,](\d{1,15}))?")


@dataclass(frozen=True)
class Scale:
    """A range of numbers with steps of equal size.

    Attributes:
        minimum: The lowest number.
        maximum: The highest number.
        step: The distance between two answers; it divides the range.
        name: What is rated, for the question; "" if it is not said.
        anchors: (number, what it means) of some steps, the lowest first.
    """

    minimum: Decimal
    maximum: Decimal
    step: Decimal
    name: str = ""
    anchors: tuple[tuple[str, str], ...] = ()

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The number at each step as text, the lowest first."""
        count = int((self.maximum - self.minimum) / self.step) + 1
        return tuple(_text(self.minimum + i * self.step) for i in range(count))

    @cached_property
    def limits(self) -> tuple[float, float]:
        """The lowest and the highest number."""
        return float(self.minimum), float(self.maximum)

    @property
    def range_text(self) -> str:
        """The range as people read it, "0 to 10"."""
        return f"{_text(self.minimum)} to {_text(self.maximum)}"

    @property
    def candidates(self) -> str:
        """What may be answered, for a prompt: "a number from 0 (asleep) to 10, in steps of 0.5"."""
        meaning = {number: f"{number} ({text})" for number, text in self.anchors}
        first, *middle, last = self.labels
        steps = "" if self.step == 1 else f", in steps of {_text(self.step)}"
        named = [meaning[number] for number in middle if number in meaning]
        between = f", with {', '.join(named)} in between" if named else ""
        ends = f"{meaning.get(first, first)} to {meaning.get(last, last)}"
        return f"a number from {ends}{steps}{between}"

    def nearest(self, value: float) -> str | None:
        """The label of the step nearest to a number, of two that are equally near the one with an
        even place, so that rounding has no direction; None outside the range."""
        low, high = self.limits
        if not low <= value <= high:
            return None
        place = (Decimal(repr(float(value))) - self.minimum) / self.step
        return self.labels[int(place.to_integral_value(ROUND_HALF_EVEN))]

    def value_of(self, words: Iterable[str]) -> float | None:
        """The number in the range that is among words; None if there is none, or several."""
        low, high = self.limits
        numbers = {number for word in words if (number := read_number(word)) is not None}
        inside = {number for number in numbers if low <= number <= high}
        return inside.pop() if len(inside) == 1 else None

    def expected(self, probabilities: Mapping[str, float]) -> float:
        """The mean of the numbers, weighted with the probabilities of their labels."""
        return sum(float(label) * p for label, p in probabilities.items())

    def to_mapping(self) -> dict[str, Any]:
        """The content of `scale` in a YAML file."""
        return {
            **({"name": self.name} if self.name else {}),
            "min": _plain(self.minimum),
            "max": _plain(self.maximum),
            "step": _plain(self.step),
            **({"anchors": dict(self.anchors)} if self.anchors else {}),
        }


def read_number(text: str) -> float | None:
    """The number that a text is, with a decimal point or comma; None for any other text, and for
    one comma before three digits, which may divide thousands."""
    match = _NUMBER.fullmatch(text.translate(_MINUS).strip())
    if match is None or (len(match[3] or "") == 3 and "," in text):
        return None
    sign, whole, part = match.groups()
    return float(f"{sign}{whole}.{part or 0}") + 0.0  # -0.0 is 0


def number_text(value: float) -> str:
    """A finite number without an exponent, as labels and stored ratings are written."""
    return _text(Decimal(repr(float(value))))


def from_mapping(content: Any, where: str) -> Scale:
    """The scale in a label space's file.

    Args:
        content: `min` and `max`; `step`, 1 if left out; `name`, what is rated; `anchors`, {number:
            what it means}. The last two may be left out.
        where: What messages call the file.

    Raises:
        UserError: A key is missing or unknown, or a value cannot be used.
    """
    if not isinstance(content, Mapping):
        raise UserError(f"{where}: scale is {content!r}, but must be {{min: 0, max: 10, step: 1}}")
    if odd := [key for key in content if key not in _KEYS]:
        raise UserError(f"{where}: scale has the unknown key {odd[0]!r}: use {', '.join(_KEYS)}")
    low, high = (_number(content.get(key), key, where) for key in ("min", "max"))
    step = _number(content.get("step", 1), "step", where)
    if low >= high:
        raise UserError(f"{where}: scale has min {low:f} and max {high:f}: min must be below max")
    if step <= 0:
        raise UserError(f"{where}: scale has step {step:f}: use a number above 0")
    steps = (high - low) / step
    if steps + 1 > MOST_STEPS:
        raise UserError(
            f"{where}: scale has {min(int(steps), 10**9) + 1:,} steps from {low:f} to {high:f}, at "
            f"most {MOST_STEPS} are possible: use a larger step"
        )
    if steps != steps.to_integral_value():
        raise UserError(
            f"{where}: scale has step {step:f}, which does not divide the range from {low:f} to "
            f"{high:f}: use another step, such as {_text((high - low) / 10)}"
        )
    scale = Scale(low, high, step, _name(content.get("name", ""), "name", where))
    return Scale(low, high, step, scale.name, _anchors(content.get("anchors"), scale, where))


def _number(value: Any, key: str, where: str) -> Decimal:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not -_LARGEST <= value <= _LARGEST:
        raise UserError(
            f"{where}: scale has {key} {value!r}, expected a number from {-_LARGEST:,} to "
            f"{_LARGEST:,}"
        )
    number = Decimal(repr(value))
    if round(number, _MOST_DECIMALS) != number:
        raise UserError(
            f"{where}: scale has {key} {value!r}: use at most {_MOST_DECIMALS} decimal places"
        )
    return number + 0


def _name(value: Any, key: str, where: str) -> str:
    is_text = isinstance(value, str) and len(value) <= LONGEST and value.isprintable()
    if not is_text or set(value) & set("<>*{}"):
        raise UserError(
            f"{where}: scale has {key} {value!r}, expected a text of at most {LONGEST} characters "
            "in one line, without <, >, *, { and }"
        )
    return value.strip()


def _anchors(content: Any, scale: Scale, where: str) -> tuple[tuple[str, str], ...]:
    if content is None:
        return ()
    if not isinstance(content, Mapping):
        raise UserError(
            f"{where}: scale has anchors {content!r}, expected {{number: what it means}}"
        )
    meaning: dict[str, str] = {}
    for number, text in content.items():
        label = None if isinstance(number, bool) else read_label(str(number), scale)
        if label is None or label in meaning:
            raise UserError(
                f"{where}: scale has an anchor at {number!r}: use each step from "
                f"{scale.range_text} at most once"
            )
        meaning[label] = _name(text, f"at {label} the anchor", where)
    return tuple((label, meaning[label]) for label in scale.labels if label in meaning)


def read_label(text: str, scale: Scale) -> str | None:
    """The label that a text is: a number at a step; None for any other text."""
    number = read_number(text)
    label = None if number is None else scale.nearest(number)
    return label if label is not None and float(label) == number else None


def _text(number: Decimal) -> str:
    text = f"{number:f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _plain(number: Decimal) -> int | float:
    return int(number) if number == number.to_integral_value() else float(number)
