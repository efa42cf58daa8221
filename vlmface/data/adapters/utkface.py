"""UTKFace: over 20,000 faces of all ages, labelled in their names (Zhang, Song & Qi, CVPR 2017).

    UTKFace/26_0_1_20170104165701457.jpg.chip.jpg   age_gender_race_time; aligned and cropped
    part1/, part2/, part3/                          the same without `.chip.jpg`: in the wild

Some names lack a field (61_3_2017..., 53__0_2017...); those images are left out. The owners define
no split, and nothing says who a person is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from vlmface import label_spaces
from vlmface.data.folds import random_split
from vlmface.data.rows import Rows, require_path
from vlmface.errors import UserError
from vlmface.utils.images import SUFFIXES

TITLE = "UTKFace"
HOME = "https://susanqq.github.io/UTKFace/"
LICENCE = "non-commercial research"
SPLITS = ("train", "test")  # ours: see random_split
GENDERS = ("male", "female")
RACES = label_spaces.space("race5").labels  # in the order of its codes


def read(
    root: Path, split: str, *, images: str | None = None, test_list: str | None = None
) -> Rows:
    """The images of one folder or part.

    Args:
        root: as above.
        split: one of SPLITS.
        images: the folder of images, by default UTKFace, else part1 to part3, else the root itself.
        test_list: a file that names the test images; by default a fifth is drawn.
    """
    stems, paths, labels = [], [], []
    skipped: dict[str, list[str]] = {}
    for name, path in _images(root, images):
        stem = name.partition(".")[0].strip()
        fields = stem.split("_")
        if len(fields) != 4 or not all(field.isdigit() for field in fields):
            skipped.setdefault("name that is not age_gender_race_time", []).append(name)
            continue
        age, gender, race = map(int, fields[:3])
        if gender >= len(GENDERS) or race >= len(RACES):
            skipped.setdefault("name with a unknown code of gender or race", []).append(name)
            continue
        stems.append(stem)
        paths.append(path)
        labels.append((float(age), GENDERS[gender], RACES[race]))
    rows = Rows(
        {
            "id": [f"utkface-{stem}" for stem in stems],
            "image": paths,
            "age": [age for age, _, _ in labels],
            "gender": [gender for _, gender, _ in labels],
            "race": [race for _, _, race in labels],
        },
        skipped,
    )
    return rows.take(random_split(stems, split, test_list))


def _images(root: Path, images: str | None) -> Iterator[tuple[str, str]]:
    """The name and path of every image, in the order of the names."""
    if images is not None:
        folders = [require_path(root / images, "UTKFace's images (see images)")]
    elif (root / "UTKFace").exists():
        folders = [root / "UTKFace"]
    else:
        folders = [part for k in (1, 2, 3) if (part := root / f"part{k}").exists()] or [root]
    paths = sorted(
        (name, str(folder / name))
        for folder in folders
        for name in os.listdir(folder)
        if name.lower().endswith(SUFFIXES)
    )
    if not paths:
        raise UserError(
            f"{', '.join(map(str, folders))} holds no images: expected UTKFace's, such as "
            "26_0_1_20170104165701457.jpg.chip.jpg; name their folder with images="
        )
    yield from paths
