"""JAFFE: ten Japanese women who posed seven expressions (Lyons et al., FG 1998).

KA.AN1.39.tiff     subject, expression and take, number of the image; anywhere below the root
"""

from __future__ import annotations

import re
from pathlib import Path

from vlmface.data.folds import subject_fold
from vlmface.data.rows import Rows
from vlmface.errors import UserError
from vlmface.utils.images import SUFFIXES

TITLE = "JAFFE"
HOME = "https://zenodo.org/records/3451524"
LICENCE = "non-commercial research, no redistribution"
SPLITS = ("train", "test", "all")
PUBLISHED = {"all": {"rows": 213}}
EXPRESSIONS = {
    "AN": "anger",
    "DI": "disgust",
    "FE": "fear",
    "HA": "happiness",
    "NE": "neutral",
    "SA": "sadness",
    "SU": "surprise",
}
NAME = re.compile(r"([A-Z]{2})\.([A-Z]{2})\d+\.\d+")


def read(root: Path, split: str, *, fold: int = 1, folds: int = 10) -> Rows:
    """The set has no split of its own. "train" and "test" leave subjects out: `fold` of `folds`,
    dealt out in the order of the subjects' letters; ten folds (the usual protocol) leave one out
    each, KA in fold 1. Report the mean over all folds. "all" is every image.

    Args:
        root: as above.
        split: one of SPLITS.
        fold: 1 to `folds`.
        folds: number of folds.
    """
    ids, images, subjects, emotions, odd = [], [], [], [], []
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() not in SUFFIXES:
            continue
        name = NAME.fullmatch(path.stem)
        if name is None:
            odd.append(str(path.relative_to(root)))
            continue
        subject, expression = name.groups()
        if expression not in EXPRESSIONS:
            raise UserError(
                f"{path}: JAFFE has no expression {expression!r}, only {', '.join(EXPRESSIONS)}"
            )
        ids.append(f"jaffe-{path.stem}")
        images.append(str(path))
        subjects.append(subject)
        emotions.append(EXPRESSIONS[expression])
    if not ids:
        raise UserError(f"{root} holds no images named as JAFFE names them: KA.AN1.39.tiff")
    columns = {"id": ids, "image": images, "subject": subjects, "emotion": emotions}
    rows = Rows(columns, {"name unlike KA.AN1.39.tiff": odd} if odd else {})
    if split == "all":
        return rows
    tested = subject_fold(subjects, fold, folds)
    return rows.take(tested if split == "test" else ~tested)
