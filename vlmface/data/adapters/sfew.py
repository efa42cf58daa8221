"""SFEW 2.0: stills of films, the sub-challenge of EmotiW 2015 (Dhall et al., ICMI 2015).

    Train/Train_Aligned_Faces/Angry/Airheads_000519240_00000005.png
    Val/Val_Aligned_Faces/Angry/...     or Val_Aligned_Faces_new
    Test/Test_Aligned_Faces/...png      without labels

Copies put the folders of aligned faces at the top, or hold nothing but `Train/Angry/...`.
"""

from __future__ import annotations

from pathlib import Path

from vlmface.data.rows import Rows, class_folders, image_names, require_path

TITLE = "SFEW 2.0"
HOME = "https://users.cecs.anu.edu.au/~few_group/AFEW.html"
LICENCE = "non-commercial research, on request"
SPLITS = ("train", "validation", "test")
PUBLISHED = {"validation": {"rows": 431}}  # aligned faces; the stills are 958, 436 and 372
FOLDERS = {"train": "Train", "validation": "Val", "test": "Test"}


def read(root: Path, split: str) -> Rows:
    """The aligned faces if the copy has them, else the images in `Train`, `Val` and `Test`. The
    labels of the test part were never published: its rows have no emotion.

    Args:
        root: as above.
        split: one of SPLITS.
    """
    part = FOLDERS[split]
    aligned = f"{part}_Aligned_Faces"
    names = (aligned, f"{aligned}_new")
    places = [base / name for base in (root / part, root) for name in names]
    folder = next((p for p in places if p.is_dir()), root / part)
    require_path(folder, f"SFEW's aligned faces, {part}/{aligned}")
    if split != "test":
        return class_folders(folder, "emotion7", f"sfew-{part}")
    images, others = image_names(folder)
    columns = {
        "id": [f"sfew-{part}/{Path(image).stem}" for image in images],
        "image": [str(folder / image) for image in images],
    }
    return Rows(columns, {"no image file": others} if others else {})
