"""Random changes of training images: corruptions, mirror images, images of other rows.

What is done to a row depends on the seed, the epoch and the row's number alone. A resumed run, and
several processes, see the same images as one uninterrupted process.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image

from vlmface.data import corruptions
from vlmface.data.row_images import IMAGE_COLUMNS, image_refs, open_row_image
from vlmface.encode import GroupedSampler

if TYPE_CHECKING:
    import datasets

    from vlmface.train.settings import SFTSettings

# Column of rows whose rationale names sides; and the prefix of the columns that
# `rows.encode_rows` makes of it.
MIRRORED_RATIONALE, MIRRORED = "mirrored_rationale", "mirrored_"
_SIDES = {"left": "right", "right": "left", "L": "R", "R": "L"}
# FACS writes a side in front of the number or behind it, with or without a grade: L12B, AU12L. The
# words have other meanings in front of some words: "right away", "left open".
_SIDE = re.compile(
    r"\b(?:(?P<word>(?i:left|right))\b(?!\s+(?i:here|there|now|away|after|before|open|out|over)\b)"
    r"|(?:(?i:AU)[\s_]?)?(?P<before>[LR])(?=\d{1,2}[A-E]?\b)"
    r"|(?:(?i:AU)[\s_]?)?\d{1,2}(?P<behind>[LR])(?=[A-E]?\b))"
)


def mirror_text(text: str) -> str:
    """The text about the mirror image of a face: left and right are swapped, in words and in the
    sides of action units (L12, AU12L). Twice, it is the same text again."""

    def swapped(match: re.Match[str]) -> str:
        name = match.lastgroup
        assert name is not None
        start, end = (position - match.start() for position in match.span(name))
        side = match[name]
        other = _SIDES.get(side) or _SIDES[side.lower()]
        if name == "word" and side[0].isupper():
            other = other.upper() if side.isupper() else other.capitalize()
        return match[0][:start] + other + match[0][end:]

    return _SIDE.sub(swapped, text)


def with_mirrored_rationales(rows: datasets.Dataset) -> datasets.Dataset:
    """The rows with a column MIRRORED_RATIONALE, if some rationale names sides."""
    from datasets import Dataset, concatenate_datasets

    rationales = rows["rationale"][:]
    mirrored = [text and mirror_text(text) for text in rationales]
    if mirrored == rationales:
        return rows
    return concatenate_datasets([rows, Dataset.from_dict({MIRRORED_RATIONALE: mirrored})], axis=1)


@dataclass(frozen=True)
class Augmentation:
    """How training images are changed.

    Args:
        corruption_share: Share of the rows of an epoch whose images are corrupted.
        names: The corruptions that are drawn from.
        flip: Whether half of the rows of an epoch are mirrored.
        seed: Of the run.
    """

    corruption_share: float
    names: Sequence[str]
    flip: bool
    seed: int

    @classmethod
    def from_settings(cls, settings: SFTSettings) -> Augmentation | None:
        """That of a run; None if it has none."""
        if not settings.augments:
            return None
        names = settings.corruptions or corruptions.NAMES
        return cls(settings.corruption_share, names, settings.augment == "flip", settings.seed)

    def change(
        self, images: Sequence[Image.Image], epoch: int, row: int
    ) -> tuple[list[Image.Image], bool, bool]:
        """Change the images of a row for an epoch, all of them alike.

        Returns:
            (the images, whether they are mirrored, whether they are corrupted).
        """
        rng = np.random.default_rng((self.seed, epoch, row))
        is_flipped = bool(rng.random() < 0.5) and self.flip
        if is_flipped:
            images = [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for image in images]
        is_corrupted = bool(rng.random() < self.corruption_share)
        if is_corrupted:
            name = self.names[int(rng.integers(len(self.names)))]
            strength = int(rng.integers(1, len(corruptions.STRENGTHS)))
            key = f"{self.seed} {epoch} {row}"
            images = [corruptions.corrupt(image, name, strength, key=key) for image in images]
        return list(images), is_flipped, is_corrupted


class TextChanges(Protocol):
    """Changes of the texts of rows, and of which row's images are shown; see
    `evidence_changes.Rewriter`."""

    def change(
        self, epoch: int, number: int, *, is_mirrored: bool, is_corrupted: bool
    ) -> tuple[dict[str, Any], int]: ...


class AugmentedRows:
    """Encoded rows with other images or texts in each epoch, for PyTorch's DataLoader.

    An index is epoch x (number of rows) + row: the order of `EpochSampler` tells the loading
    processes the epoch.

    Args:
        rows: Of `rows.encode_rows`; without images if their features are cached.
        augmentation: How the images are changed; None: they are not.
        texts: How the texts are changed; None: they are not.
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        augmentation: Augmentation | None,
        texts: TextChanges | None = None,
    ) -> None:
        self.rows, self.augmentation, self.texts = rows, augmentation, texts

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        epoch, number = divmod(index, len(self.rows))
        stored: Mapping[str, Any] = self.rows[number]
        row = {name: value for name, value in stored.items() if not name.startswith(MIRRORED)}
        is_mirrored, is_corrupted = False, False
        if self.augmentation is not None:
            images, is_mirrored, is_corrupted = self.augmentation.change(
                [open_row_image(ref) for ref in image_refs(stored)], epoch, number
            )
            row |= _with_images(row, images)
        if is_mirrored:
            row |= {name: stored[MIRRORED + name] for name in row if MIRRORED + name in stored}
        if self.texts is None:
            return row
        changes, picture_row = self.texts.change(
            epoch, number, is_mirrored=is_mirrored, is_corrupted=is_corrupted
        )
        if picture_row != number:  # `row` is the number of cached features of the picture
            other = self.rows[picture_row]
            row |= {name: other[name] for name in (*IMAGE_COLUMNS, "row") if name in row}
        return row | changes


def _with_images(row: Mapping[str, Any], images: Sequence[Image.Image]) -> dict[str, Any]:
    """The columns of a row's images."""
    return {"image": images[0]} | ({"images": list(images)} if "images" in row else {})


class EpochSampler(GroupedSampler):
    """`GroupedSampler` with the indices of `AugmentedRows`."""

    def __iter__(self) -> Iterator[int]:
        start = self.epoch * len(self)
        yield from (start + row for row in super().__iter__())
