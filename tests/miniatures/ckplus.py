"""CK+: seven labelled sequences of seven people, one that is not labelled, one of two frames."""

from __future__ import annotations

from pathlib import Path

from miniatures import face, text

ARGUMENTS = {"folds": 3}
# subject, sequence, frames, emotion code, AUs with their grade (0: seen, but not graded)
SEQUENCES = (
    ("S005", "001", 11, 3, {9: 5, 17: 0}),
    ("S010", "002", 6, 7, {1: 3, 2: 3, 5: 0, 27: 4}),
    ("S010", "004", 7, None, {4: 2, 54: 0}),
    ("S011", "001", 5, 1, {4: 4, 7: 0, 23: 3, 24: 2}),
    ("S026", "003", 8, 4, {1: 4, 4: 3, 20: 2, 25: 0}),
    ("S050", "002", 2, 2, {14: 3}),
    ("S106", "006", 9, 6, {15: 3, 17: 4, 64: 0}),
    ("S138", "005", 10, 5, {6: 4, 12: 5, 25: 3, 19: 1}),
)


def write(root: Path, labels: str = "Emotion", facs: str = "FACS") -> None:
    for i, (subject, sequence, frames, code, aus) in enumerate(SEQUENCES):
        place = f"{subject}/{sequence}"
        stem = f"{subject}_{sequence}_"
        for k in range(1, frames + 1):
            face(root / "cohn-kanade-images" / place / f"{stem}{k:08d}.png", 20 * i + k, mode="L")
        text(root / "cohn-kanade-images" / place / ".DS_Store")
        (root / labels / place).mkdir(parents=True)
        if code is not None:
            path = root / labels / place / f"{stem}{frames:08d}_emotion.txt"
            text(path, f"   {code:.7e}")
        lines = [f"   {au:.7e}   {grade:.7e}" for au, grade in aus.items()]
        text(root / facs / place / f"{stem}{frames:08d}_facs.txt", *lines)
