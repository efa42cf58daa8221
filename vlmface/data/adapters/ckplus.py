"""CK+: posed expressions from neutral to their peak (Lucey et al., CVPR workshops 2010).

    cohn-kanade-images/S005/001/S005_001_00000011.png      subject, sequence, frame
    Emotion/S005/001/S005_001_00000011_emotion.txt         ` 3.0000000e+00`; 327 of 593 have one
    FACS/S005/001/S005_001_00000011_facs.txt               ` 9.0000000e+00  5.0000000e+00` a line

The label files name the peak, the last frame. Each folder may lie in the one that its archive was
unpacked to (`Emotion_labels/Emotion`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlmface import facs
from vlmface.data.folds import subject_fold
from vlmface.data.published import published_counts
from vlmface.data.rows import Rows, action_units, emotions, json_meta, require_path
from vlmface.data.text_files import read_lines
from vlmface.errors import UserError

TITLE = "CK+"
HOME = "https://www.jeffcohn.net/Resources/"
LICENCE = "non-commercial research; few subjects may be shown in print"
SPLITS = ("train", "test", "all")
PUBLISHED = published_counts(
    """
    split  rows  anger  contempt  disgust  fear  happiness  sadness  surprise
    all     327     45        18       59    25         69       28        83
    """
)
# The AUs of the paper's table 1: the peak was coded for all of them, its file lists those seen.
CODED = (1, 2, *range(4, 8), *range(9, 19), 20, 21, *range(23, 30), 31, 34, 38, 39, 43)


@dataclass(frozen=True)
class Options:
    """Options of CK+.

    Args:
        classes: 7 (anger, contempt, disgust, fear, happiness, sadness, surprise), or 8: also the
            first frame of each labelled sequence, as neutral.
        frames: "peak", or "last3": the last three frames under the label of the sequence.
        aus: False reads a copy without `FACS`.
        unlabelled: add the sequences without an emotion.
        fold: 1 to `folds`.
        folds: number of folds.
    """

    classes: int = 7
    frames: str = "peak"
    aus: bool = True
    unlabelled: bool = False
    fold: int = 1
    folds: int = 10

    def __post_init__(self) -> None:
        if self.classes not in (7, 8) or self.frames not in ("peak", "last3"):
            raise UserError(
                f"classes={self.classes!r}, frames={self.frames!r}: CK+ has 7 or 8 classes, "
                "'peak' or 'last3'"
            )


def read(root: Path, split: str, options: Options) -> Rows:
    """AUs were coded at the peak: other frames have none.

    The set has no split of its own. "train" and "test" are those of `fold` of `folds`: subjects,
    sorted, are dealt out in turn (for 10 folds, the protocol of Liu et al., FG 2013, and most that
    followed). Report the mean over all folds. "all" is every row.
    """
    images = _folder(root, "cohn-kanade-images")
    labels = _folder(root, "Emotion")
    codings = _folder(root, "FACS") if options.aus else None
    columns: dict[str, Any] = {"id": [], "image": [], "subject": [], "emotion": []}
    coded: list[Path | None] = []
    skipped: dict[str, list[str]] = {}
    for sequence in sorted(path for path in images.glob("S*/*") if path.is_dir()):
        folder = sequence.relative_to(images)
        stems = sorted(path.stem for path in sequence.glob("S*.png"))
        label = next((labels / folder).glob("S*_emotion.txt"), None)
        coding = codings and next((codings / folder).glob("S*_facs.txt"), None)
        if not stems or (label is None and not options.unlabelled):
            reason = "no emotion label" if stems else "no frames"
            skipped.setdefault(reason, []).append(str(folder))
            continue
        labelled = label or coding
        peak = labelled.stem.rpartition("_")[0] if labelled else stems[-1]
        for stem, word in _choose_frames(stems, peak, label, options):
            columns["id"].append(f"ckplus-{stem}")
            columns["image"].append(str(sequence / f"{stem}.png"))
            columns["subject"].append(folder.parts[0])
            columns["emotion"].append(word)
            coded.append(coding if stem == peak else None)
    if options.aus:
        columns |= _action_units(coded)
    all_rows = Rows(columns, skipped)
    if split == "all":
        return all_rows
    tested = subject_fold(columns["subject"], options.fold, options.folds)
    return all_rows.take(tested if split == "test" else ~tested)


def _choose_frames(
    stems: list[str], peak: str, label: Path | None, options: Options
) -> list[tuple[str, str | None]]:
    """(stem, emotion) of each frame of a sequence that becomes a row; see `Options`."""
    before = [stem for stem in stems if stem < peak]
    emotion = _emotion(label) if label else None
    selection = [(stem, emotion) for stem in (before[-2:] if options.frames == "last3" else [])]
    selection.append((peak, emotion))
    if options.classes == 8 and label and before:
        return [(stems[0], "neutral"), *(pair for pair in selection if pair[0] != stems[0])]
    return selection


def _folder(root: Path, name: str) -> Path:
    inner = sorted(root.glob(f"*/{name}"))
    path = inner[0] if inner and not (root / name).exists() else root / name
    return require_path(path, f"CK+'s folder {name}")


def _numbers(path: Path, a_line: int) -> list[list[float]]:
    """The lines of a label file, `a_line` numbers in each."""
    try:
        lines = [[float(word) for word in line.split()] for line in read_lines(path)]
    except ValueError as error:
        raise UserError(f"{path} holds something else than numbers: {error}") from error
    lines = [line for line in lines if line]
    if any(len(line) != a_line for line in lines):
        raise UserError(f"{path}: expected {a_line} numbers in each line")
    return lines


def _emotion(path: Path) -> str | None:
    codes = _numbers(path, 1)
    if len(codes) != 1:
        raise UserError(f"{path} holds {len(codes)} codes, expected one")
    try:
        return emotions("ckplus", codes[0])[0].as_py()
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _action_units(codings: list[Path | None]) -> dict[str, Any]:
    """The columns aus and meta; meta keeps codes other than AUs of the face (head, gaze)."""
    grades_by_code = [
        {} if path is None else {int(code): grade for code, grade in _numbers(path, 2)}
        for path in codings
    ]
    numbers = sorted({*CODED, *(au for units in grades_by_code for au in units if au in facs.AUS)})
    present = np.array([[au in units for au in numbers] for units in grades_by_code], bool)
    coded = np.array([path is not None for path in codings], bool)
    grades = np.array([[units.get(au, 0.0) for au in numbers] for units in grades_by_code])
    others = [[code for code in units if code not in facs.AUS] for units in grades_by_code]
    return {
        "aus": action_units(
            numbers,
            present,
            np.where(present & (grades == 0), np.nan, grades),  # 0: seen, but not graded
            coded[:, None] & (present | np.isin(numbers, CODED)),
        ),
        "meta": json_meta(len(grades_by_code), other_codes=others),
    }
