"""What `vlmface data check` finds in addition in a data set whose labels and splits a YAML file
defines: labels that are rare or missing in a split, pictures that look alike in two splits, splits
without people, and pictures without a face.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from vlmface.data import check_ratings
from vlmface.data.dataset_file import DatasetFile, row_labels
from vlmface.data.sources import Source
from vlmface.errors import UserError
from vlmface.scales import Scale
from vlmface.utils.images import open_image

if TYPE_CHECKING:
    import datasets

SIDE = 16  # of the grid of brightness differences that pictures are compared by
ALIKE = 16  # of 256 differences that may be another's in the same picture: stored again or resized
FEW = 10  # rows of a label in the training split
UNEVEN = 10  # times as many rows of one label as of another
LOOKED_AT = 100  # pictures in which a face is looked for
MANY_WITHOUT = 0.05  # share of pictures without a face from which on it is a warning
_BLOCK = 512  # pictures that are compared at once


def fingerprint(image: Image.Image) -> np.ndarray:
    """(SIDE * SIDE / 8,) bytes: whether each cell of a grid over the picture is darker than its
    right neighbour (dHash, Krawetz 2013). Pictures of the same content differ in a few bits."""
    grid = np.asarray(image.convert("L").resize((SIDE + 1, SIDE), Image.Resampling.BOX))
    return np.packbits(grid[:, 1:] > grid[:, :-1])


def label_warnings(file: DatasetFile, splits: Mapping[str, datasets.Dataset]) -> list[str]:
    """Labels that a split lacks, that are rare in training, or far rarer than others.

    Args:
        file: The data set.
        splits: {split: its rows}.
    """
    findings, space = [], file.label_space
    if space.scale is not None:
        return check_ratings.warnings_of(
            {split: ratings_of(rows, space.scale) for split, rows in splits.items()},
            space.scale,
            space.id,
        )
    for split, rows in splits.items():
        labels = row_labels(rows, space)
        counts = Counter(label for row in labels for label in row)
        if not counts:
            findings.append(f"{split}: no row has a label of {space.id}")
            continue
        if lacking := [label for label in space.labels if not counts[label]]:
            findings.append(f"{split}: no row has the label {_listed(lacking)}")
        if without := sum(not row for row in labels):
            findings.append(f"{split}: {without:,} of {len(labels):,} rows have no label")
        if split != "train":
            continue
        if few := [f"{label} ({n})" for label, n in counts.items() if n < FEW]:
            findings.append(f"train: fewer than {FEW} rows of {_listed(few)}")
        (most, n), (least, rare) = counts.most_common()[0], counts.most_common()[-1]
        if n >= UNEVEN * rare:
            findings.append(
                f"train: {n:,} rows of {most}, but {rare:,} of {least}: rows of the same number "
                "of each label are trained on with --balance_by labels"
            )
    return findings


def ratings_of(rows: datasets.Dataset, scale: Scale) -> list[float | None]:
    """The exact number of each row on a scale."""
    return [scale.value_of(words or ()) for words in rows["context"][:]]


def people_warnings(file: DatasetFile, splits: Mapping[str, datasets.Dataset]) -> list[str]:
    """Splits that were made although it is not known who is in a picture."""
    divided = [rows for split, rows in splits.items() if split in file.splits.shares]
    if not divided or all(all(rows["subject"]) for rows in divided):
        return []
    return [
        "splits go by picture, because no column names the person in each: if somebody is in "
        "pictures of two splits, test scores say little about other people; name the column, "
        "columns: {subject: NAME}"
    ]


def alike(
    prints: Mapping[str, Sequence[tuple[str, np.ndarray | None]]],
) -> dict[str, list[tuple[str, str]]]:
    """Pictures of two splits that look the same although their files differ.

    Args:
        prints: {split: (id of the row, `fingerprint` of its picture or None) of each row}.

    Returns:
        {"train, test": [(id, id), ...]}, the nearest picture of the first split for each of the
        second that has one.
    """
    bits = {
        split: [(id, bits) for id, bits in rows if bits is not None]
        for split, rows in prints.items()
    }
    pairs: dict[str, list[tuple[str, str]]] = {}
    for a, b in combinations(bits, 2):
        first = np.array([bits for _, bits in bits[a]], np.uint8)
        for start in range(0, len(bits[b]), _BLOCK):
            block = bits[b][start : start + _BLOCK]
            if not len(first):
                break
            second = np.array([bits for _, bits in block], np.uint8)
            differences = np.zeros((len(second), len(first)), np.uint16)
            for byte in range(first.shape[1]):
                differences += np.bitwise_count(second[:, byte, None] ^ first[None, :, byte])
            nearest = differences.argmin(1)
            for row, near in enumerate(nearest):
                if differences[row, near] <= ALIKE:
                    pairs.setdefault(f"{a}, {b}", []).append((bits[a][near][0], block[row][0]))
    return pairs


def pictures_without_face(pictures: Sequence[tuple[str, Source]]) -> dict[str, Any] | None:
    """A face is looked for in some of the pictures.

    Args:
        pictures: (id, picture) of those that can be read.

    Returns:
        {"looked_at": number, "without": ids}; None if vlmface[detect] is not installed.
    """
    from vlmface.data.detect import Detector

    chosen = [pictures[i] for i in np.linspace(0, len(pictures) - 1, LOOKED_AT).round().astype(int)]
    chosen = list(dict.fromkeys(chosen)) if pictures else []
    try:
        with Detector() as detector:
            without = [id for id, source in chosen if not detector.faces(open_image(source))]
    except UserError:
        return None
    return {"looked_at": len(chosen), "without": without}


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words[:5]) + (", ..." if len(words) > 5 else "")
