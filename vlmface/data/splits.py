"""Split rows into train, validation and test: whole people, labels spread evenly, never by chance
of the order of rows or of the machine.

Groups of rows (the pictures of a person) are placed one after the other, those with the rarest
labels first, each where its labels and rows are most lacking: iterative stratification (Sechidis,
Tsoumakas and Vlahavas 2011) of groups instead of rows.
"""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from vlmface.data.sources import Source, content_digest, read_content
from vlmface.errors import UserError
from vlmface.utils.ranges import Range, Seed

PARTS = ("train", "validation", "test")
_ROWS = ""  # stands for all rows, among the labels
# What a label that a part has no row of adds to its need: more than all else. A label that test
# lacks counts more than a label and rows that validation lacks.
_LACKING = {"train": 3e6, "test": 2.5e6, "validation": 1e6}


@dataclass(frozen=True)
class Splits:
    """The `splits` of a data set's file.

    Attributes:
        column: The column of a table that holds the split of each row.
        names: Splits of other words in that column, {word: train, validation or test}.
        by: What is never in two parts: a person (subject), a picture (image), or a video of which
            the rows are frames (video). None: a person where the data name the person of every
            row, else a picture.
        validation: The share of the training rows to take as validation split, 0 for none.
        test: The share of the training rows to take as test split, 0 for none.
        seed: Of the choice.
    """

    column: str | None = None
    names: dict[str, str] = field(default_factory=dict)
    by: Literal["subject", "image", "video"] | None = None
    validation: Annotated[float, Range(min=0, below=1)] = 0.0
    test: Annotated[float, Range(min=0, below=1)] = 0.0
    seed: Seed = 0

    @property
    def shares(self) -> dict[str, float]:
        """{part: its share}, without parts of share 0; {} if nothing is divided."""
        taken = {"validation": self.validation, "test": self.test}
        taken = {part: share for part, share in taken.items() if share}
        return {"train": 1 - sum(taken.values()), **taken} if taken else {}


def assign(
    groups: Sequence[str],
    labels: Sequence[Sequence[str]],
    shares: Mapping[str, float],
    seed: int = 0,
) -> list[str]:
    """The part of each row.

    Args:
        groups: The group of each row, which is placed as a whole: a person or a picture.
        labels: The labels of each row; () for a row without one.
        shares: {part: its share of the rows}, which sum to 1. Groups whose rows are many are placed
            as near to the shares as they allow.
        seed: Decides between groups that are alike. The order of the rows decides nothing.

    Raises:
        UserError: There are fewer groups than parts.
    """
    contents: dict[str, Counter[str]] = defaultdict(Counter)
    for group, words in zip(groups, labels, strict=True):
        contents[group].update([_ROWS, *words])
    if len(contents) < len(shares):
        raise UserError(
            f"{len(contents)} are too few for {len(shares)} splits ({', '.join(shares)})"
        )
    totals: Counter[str] = sum(contents.values(), Counter())
    spread = Counter(label for content in contents.values() for label in content)
    placed = {part: Counter[str]() for part in shares}
    part_of: dict[str, str] = {}
    for group in sorted(contents, key=lambda group: _order(group, contents[group], spread, seed)):
        content = contents[group]
        part = max(
            shares,
            key=lambda part: (
                _need(content, placed[part], shares[part], totals)
                + _LACKING[part] * sum(not placed[part][label] for label in content)
            ),
        )
        placed[part].update(content)
        part_of[group] = part
    for part in shares:
        if part not in part_of.values():
            part_of[_dispensable(part_of, contents)] = part
    return [part_of[group] for group in groups]


def _dispensable(part_of: Mapping[str, str], contents: Mapping[str, Mapping[str, int]]) -> str:
    """A group that another part can have: it is not alone in its part, takes the fewest labels
    from it, and has the fewest rows."""
    sizes = Counter(part_of.values())
    held = Counter((part_of[group], label) for group in part_of for label in contents[group])

    def loss(group: str) -> tuple[int, int, str]:
        lost = sum(held[part_of[group], label] == 1 for label in contents[group])
        return lost, contents[group][_ROWS], group

    return min((group for group in part_of if sizes[part_of[group]] > 1), key=loss)


def _order(
    group: str, content: Mapping[str, int], spread: Mapping[str, int], seed: int
) -> tuple[int, int, bytes]:
    """Groups with the rarest label first, then the largest, then in an order that the seed
    decides."""
    rarest = min(spread[label] for label in content)
    draw = hashlib.sha256(f"{seed} {group}".encode()).digest()
    return rarest, -content[_ROWS], draw


def _need(
    content: Mapping[str, int], placed: Mapping[str, int], share: float, totals: Mapping[str, int]
) -> float:
    """How much a part needs the rows of a group: by how much the squared distance of its labels
    from their share falls."""
    need = 0.0
    for label, count in content.items():
        have, added = placed[label] / totals[label], count / totals[label]
        need += added * (2 * (share - have) - added) / share
    return need


def rare_labels(groups: Sequence[str], labels: Sequence[Sequence[str]]) -> dict[str, int]:
    """{label that a single group has: the first row that has it}."""
    holders: dict[str, set[str]] = defaultdict(set)
    first: dict[str, int] = {}
    for row, (group, words) in enumerate(zip(groups, labels, strict=True)):
        for word in words:
            holders[word].add(group)
            first.setdefault(word, row)
    return {word: first[word] for word in holders if len(holders[word]) == 1}


def thirds(values: Sequence[float | None]) -> list[tuple[str, ...]]:
    """Which third of the numbers each of them belongs to, as labels for `assign`; () for None.
    Equal numbers are in one third."""
    numbers = sorted(value for value in values if value is not None)
    return [
        () if value is None else (str(3 * bisect_left(numbers, value) // len(numbers)),)
        for value in values
    ]


def picture_groups(ids: Sequence[str], pictures: Sequence[Sequence[Source]]) -> list[str]:
    """A group for each row, the same for rows that show the same picture: one file, or files of the
    same content. It is the first id of the group in alphabetical order, the same on every machine.

    Files are read only where another one has the same size. A file that does not exist is a picture
    of its own.
    """
    sizes = {source: _size(source) for sources in pictures for source in sources}
    often = Counter(sizes.values())
    keys = {
        source: str(source)
        if size is None or often[size] == 1
        else content_digest(read_content(source))
        for source, size in sizes.items()
    }
    rows: defaultdict[str, list[int]] = defaultdict(list)
    for row, sources in enumerate(pictures):
        rows["\n".join(keys[source] for source in sources)].append(row)
    groups = [""] * len(ids)
    for members in rows.values():
        name = min(ids[row] for row in members)
        for row in members:
            groups[row] = name
    return groups


def _size(source: Source) -> int | None:
    if isinstance(source, bytes):
        return len(source)
    try:
        return os.stat(source).st_size
    except OSError:
        return None
