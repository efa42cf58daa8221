"""SFEW 2.0: seven training and three validation faces, two test faces without labels."""

from __future__ import annotations

from pathlib import Path

from miniatures import face

ARGUMENTS: dict = {}
NAME = "Airheads_{:09d}_00000005.png"
FOLDERS = ("Angry", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise")


def write(root: Path, aligned: str = "{0}/{0}_Aligned_Faces") -> None:
    for i, folder in enumerate(FOLDERS):
        face(root / aligned.format("Train") / folder / NAME.format(i), i)
    for i, folder in enumerate(FOLDERS[3:6], 10):
        face(root / aligned.format("Val") / folder / NAME.format(i), i)
    for i in (20, 21):
        face(root / aligned.format("Test") / NAME.format(i), i)
