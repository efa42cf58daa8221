"""The people that rows show: splits by whole people, and people that two splits share."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vlmface.errors import UserError

if TYPE_CHECKING:
    import datasets

EXAMPLES = 3  # subjects that a warning names
# Files of the user's own: two of them may call different people by one name.
OWN_FILES = ("table", "llava_json")

Person = tuple[str, str]  # data set and subject, or "" and the id of a row without one


def person_keys(rows: datasets.Dataset) -> list[Person]:
    """The person that each row shows; a row without a subject counts as a person of its own."""
    identities = zip(rows["dataset"], rows["subject"], rows["id"], strict=True)
    return [(dataset, subject) if subject else ("", id) for dataset, subject, id in identities]


# --- a part of the people -------------------------------------------------------------------------


def choose_people(people: Sequence[Person], share: float, seed: int) -> set[Person]:
    """Choose people whose rows are as near to a share of all rows as possible.

    Args:
        people: the person of each row.
        share: of the rows, 0..1.
        seed: people are taken in a random order that depends on it and their names alone, as long
            as the best number of rows can still be reached.

    Returns:
        At least one person, and not all.

    Raises:
        UserError: there is a single person.
    """
    counts = Counter(people)
    if len(counts) < 2:
        people_text = " and ".join(name for _, name in counts) or "no person"
        raise UserError(
            f"the {len(people)} rows show {people_text} alone, so that no people can be held out: "
            "give a validation split, or data of several people"
        )
    order = sorted(counts, key=lambda person: _draw(person, seed))
    sizes = [counts[person] for person in order]
    unit = math.gcd(*sizes)
    sizes = [size // unit for size in sizes]
    total = sum(sizes)
    target = min(max(round(share * total), 1), total - 1)
    picks = _in_order(sizes, target)
    if picks is None:
        picks = _exactly(sizes, share * total)
    return {order[i] for i in picks}


def _draw(person: Person, seed: int) -> bytes:
    return hashlib.sha256(f"{seed} {person[0]} {person[1]}".encode()).digest()


def _in_order(sizes: Sequence[int], target: int) -> list[int] | None:
    """Each that still fits, one after the other; None unless they are `target` in all."""
    picks, left = [], target
    for i, size in enumerate(sizes):
        if size <= left:
            picks.append(i)
            left -= size
    return picks if left == 0 else None


def _exactly(sizes: Sequence[int], target: float) -> list[int]:
    """The sizes' numbers whose sum is the nearest to `target` of all sums but 0 and all, the first
    ones where there is a choice.

    `reach[i]` is a set of whole numbers as bits: the sums of some of the sizes from i on, up to the
    largest that may be needed.
    """
    total = sum(sizes)
    # The nearest sum is at most one size away, above or below.
    most = min(total - 1, math.ceil(target) + max(sizes))
    mask = (1 << (most + 1)) - 1
    reach = [1]
    for size in reversed(sizes):
        reach.append((reach[-1] | reach[-1] << size) & mask)
    reach.reverse()
    sums = (n for n in range(1, most + 1) if reach[0] >> n & 1)
    left = min(sums, key=lambda n: (abs(n - target), n))
    picks = []
    for i, size in enumerate(sizes):
        if size <= left and reach[i + 1] >> (left - size) & 1:
            picks.append(i)
            left -= size
    return picks


# --- people in two parts --------------------------------------------------------------------------


def shared_people(
    first: datasets.Dataset, second: datasets.Dataset, *, same_files: bool = True
) -> dict[str, Any] | None:
    """Subjects that occur in both of two parts; only those of one data set are compared.

    Args:
        first: rows.
        second: rows.
        same_files: whether both were read from the same files. If not, the names in users' own
            files may denote different people and are not compared.

    Returns:
        {"people": number, "rows": number of rows of `second` that show them, "examples": names};
        None without such subjects.
    """
    identified = [
        {
            (dataset, subject)
            for dataset, subject in zip(rows["dataset"], rows["subject"], strict=True)
            if subject and (same_files or dataset not in OWN_FILES)
        }
        for rows in (first, second)
    ]
    if not (both := identified[0] & identified[1]):
        return None
    pairs = zip(second["dataset"], second["subject"], strict=True)
    return {
        "people": len(both),
        "rows": sum(pair in both for pair in pairs),
        "examples": [subject for _, subject in sorted(both)[:EXAMPLES]],
    }


def overlap_warning(overlap: Mapping[str, Any], second: str = "test") -> str:
    """A warning about what `shared_people` returned; `second` is the name of the second part."""
    names = ", ".join(overlap["examples"]) + (", ..." if overlap["people"] > EXAMPLES else "")
    return (
        f"{overlap['people']:,} people are in the training and the {second} rows ({names}); they "
        f"are on {overlap['rows']:,} {second} rows, whose scores say little about other people"
    )


def hold_out(
    rows: datasets.Dataset, share: float, seed: int = 0
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Split rows by whole subjects; a row without a subject counts as a subject of its own.

    Args:
        rows: FaceSample rows.
        share: of the rows that are held out, 0..1, which is met as nearly as subjects allow.
        seed: the result depends on it, but not on the order of the rows.

    Returns:
        (the other rows, the rows that are held out); neither is empty.

    Raises:
        UserError: `share` is out of range, or there is a single subject.
    """
    if not 0 < share < 1:
        raise UserError(f"hold_out takes a share between 0 and 1, not {share}")
    subjects = person_keys(rows)
    import numpy as np

    subjects_held_out = choose_people(subjects, share, seed)
    held = np.array([subject in subjects_held_out for subject in subjects], bool)
    return rows.select(np.flatnonzero(~held)), rows.select(np.flatnonzero(held))
