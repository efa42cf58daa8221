"""Splits that a data set's owners do not define: folds of people, and a random choice of images."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vlmface.data.rows import require_path
from vlmface.data.text_files import read_lines
from vlmface.errors import UserError


def subject_fold(subjects: Sequence[str], fold: int, folds: int) -> np.ndarray:
    """Which rows are tested in a fold: the subjects in sorted order are dealt out to the folds in
    turn, so that each is tested once.

    Args:
        subjects: of each row.
        fold: 1 to `folds`.
        folds: number of folds, at most that of the subjects.

    Returns:
        A mask (n,).

    Raises:
        UserError: `fold` or `folds` is out of range.
    """
    people = sorted(set(subjects))
    if not 1 <= fold <= folds <= len(people):
        raise UserError(
            f"fold={fold} of folds={folds}: the folds count from 1, and there can be no more of "
            f"them than subjects ({len(people)} in this copy)"
        )
    tested = set(people[fold - 1 :: folds])
    return np.array([subject in tested for subject in subjects], bool)


def people_of_split(parts: Sequence[Sequence[str]], fold: int, split: str) -> list[str]:
    """The people of a split, sorted. Fold 1 tests on the last of the parts, fold 2 on the one
    before it, and so on."""
    tested = parts[-fold]
    return sorted(
        person for part in parts for person in part if (person in tested) == (split == "test")
    )


def random_split(
    stems: Sequence[str], split: str, test_list: str | Path | None = None, share: float = 0.2
) -> np.ndarray:
    """Which rows belong to a split of a set whose owners define none.

    Args:
        stems: the image names (n) up to their first dot.
        split: "train" or "test".
        test_list: a text file that names the test images, one at the start of each line.
        share: of the test images without `test_list`. They are drawn by a hash of their stem: the
            same on every machine and independent of the other images.

    Returns:
        A mask (n,).

    Raises:
        UserError: `test_list` does not exist, or names other images.
    """
    if test_list is None:
        digests = (hashlib.sha256(stem.encode()).digest() for stem in stems)
        test = np.array([int.from_bytes(d[:8], "big") < share * 2**64 for d in digests], bool)
    else:
        path = require_path(Path(test_list).expanduser(), "a list of the test images, one a line")
        names = [line.split()[0] for line in read_lines(path) if line.strip()]
        wanted_stems = {
            name.replace("\\", "/").rpartition("/")[2].partition(".")[0] for name in names
        }
        if unknown := sorted(wanted_stems - set(stems)):
            raise UserError(
                f"{path} names {len(unknown)} test images that the data set does not list, the "
                f"first: {unknown[0]}; name images as the set does, one a line"
            )
        test = np.array([stem in wanted_stems for stem in stems], bool)
    return test if split == "test" else ~test
