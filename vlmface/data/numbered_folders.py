"""Copies of data sets whose class folders are named by the numbers of the set's own coding, or by
words: `train/5/x.jpg`, `train/sad/x.jpg`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from vlmface import label_spaces
from vlmface.data.records import match_label
from vlmface.data.rows import Rows, image_names
from vlmface.errors import UserError

# How copies call the folders of their parts.
PARTS = {
    "train": ("train", "Train", "train_set"),
    "validation": ("val", "valid", "validation", "Valid", "val_set"),
    "test": ("test", "Test", "test_set"),
}


def part_folder(root: Path, split: str, inside: Sequence[str] = ("",)) -> Path | None:
    """The folder of a split: the first of PARTS that exists in the root or in one of the folders
    `inside` it; None if there is none."""
    places = [root / folder / name for folder in inside for name in PARTS[split]]
    return next((place for place in places if place.is_dir()), None)


def read_class_folders(folder: Path, coding_id: str, prefix: str) -> Rows:
    """The rows of folders that are named by their class.

    Args:
        folder: the folder of the class folders.
        coding_id: of `label_spaces.CODINGS`, for folders that are named by numbers.
        prefix: of the ids, which are `prefix/name`.

    Returns:
        Rows with `emotion`. Folders of a code that is not an emotion are skipped.

    Raises:
        UserError: a folder is neither an emotion nor a number of the coding, or the numbers show
            that the copy counts from another one.
    """
    coding = label_spaces.CODINGS[coding_id]
    places = sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    numbers = [int(place.name) for place in places if place.name.isdecimal()]
    first = min(coding.codes)
    # One or two folders may be a small part of a set; more of them without the first are shifted.
    if numbers and (min(numbers) < first or (first not in numbers and len(numbers) > 2)):
        raise UserError(
            f"{folder} has the folders {min(numbers)} to {max(numbers)}, but {coding_id} counts "
            f"from {first}: name the folders by their emotion, or read them as "
            "`table` with labels={'0': '...'}"
        )
    columns: dict[str, list[str | None]] = {"id": [], "image": [], "emotion": []}
    skipped: dict[str, list[str]] = {}
    for place in places:
        if place.name.isdecimal():
            label = coding.decode(int(place.name))
        elif (label := match_label("emotion8", place.name)) is None:
            raise UserError(
                f"{place}: {place.name!r} is neither an emotion nor a number of {coding_id}; "
                f"expected folders named {', '.join(label_spaces.EMOTIONS)}, or their numbers"
            )
        names, others = image_names(place)
        if others:
            skipped.setdefault("no image file", []).extend(f"{place.name}/{n}" for n in others)
        if label is None:
            reason = f"class {place.name}, which is not an emotion"
            skipped[reason] = [f"{place.name}/{name}" for name in names]
            continue
        columns["id"] += [f"{prefix}/{os.path.splitext(name)[0]}" for name in names]
        columns["image"] += [str(place / name) for name in names]
        columns["emotion"] += [label] * len(names)
    if not columns["id"]:
        raise UserError(f"{folder} holds no images in folders that are named by their class")
    return Rows(columns, skipped)
