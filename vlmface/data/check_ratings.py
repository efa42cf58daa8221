"""What `vlmface data check` says of numbers of a scale, whose steps are not classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from vlmface.scales import Scale, number_text

MOST_BINS = 11
_NARROW = 0.5  # share of the range that training numbers should cover


def bin_of(value: float, scale: Scale) -> str:
    """The bin of a number, as text: its step, or of a scale with more than MOST_BINS steps a range
    such as "20 to 30", of which the highest number belongs to the next one."""
    if len(scale.labels) <= MOST_BINS:
        return str(scale.nearest(value))
    low, high = scale.limits
    bins = MOST_BINS - 1
    place = min(int((value - low) / (high - low) * bins), bins - 1)
    first, last = (round(low + (high - low) * i / bins, 6) for i in (place, place + 1))
    return f"{number_text(first)} to {number_text(last)}"


def histogram(values: Sequence[float | None], scale: Scale) -> dict[str, int]:
    """{bin: how many numbers}, the lowest first, rows without one last; {} without any number."""
    numbers = sorted(value for value in values if value is not None)
    counts = dict(Counter(bin_of(value, scale) for value in numbers))
    without = len(values) - len(numbers)
    return counts | ({"(none)": without} if counts and without else {})


def warnings_of(values: dict[str, Sequence[float | None]], scale: Scale, id: str) -> list[str]:
    """Splits without numbers, with a single one, or beyond those that are trained on.

    Args:
        values: {split: the number of each row}.
        scale: Which they are on.
        id: Of the label space.
    """
    findings = []
    train = [value for value in values.get("train", ()) if value is not None]
    low, high = scale.limits
    for split, of_split in values.items():
        numbers = [value for value in of_split if value is not None]
        if not numbers:
            findings.append(f"{split}: no row has a number of {id}")
            continue
        if without := len(of_split) - len(numbers):
            findings.append(f"{split}: {without:,} of {len(of_split):,} rows have no number")
        if min(numbers) == max(numbers):
            findings.append(f"{split}: all rows have the same number, {numbers[0]:g}")
        elif split == "train" and max(numbers) - min(numbers) < _NARROW * (high - low):
            findings.append(
                f"train: numbers lie between {min(numbers):g} and {max(numbers):g}, less than half "
                f"of the scale ({scale.range_text}): check min and max"
            )
        beyond = sum(not min(train) <= number <= max(train) for number in numbers) if train else 0
        if beyond:
            findings.append(
                f"{split}: {beyond:,} numbers are lower or higher than all that are trained on "
                f"({min(train):g} to {max(train):g})"
            )
    return findings
