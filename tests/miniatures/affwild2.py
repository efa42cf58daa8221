"""Aff-Wild2: two training videos and one for validation in three tracks. The face of frame 2 of
the first was not found, and so its folder goes from 00001.jpg to 00003.jpg."""

from __future__ import annotations

from pathlib import Path

from miniatures import face, text

ARGUMENTS: dict = {}
EXPR = "Neutral,Anger,Disgust,Fear,Happiness,Sadness,Surprise,Other"
AU = "AU1,AU2,AU4,AU6,AU7,AU10,AU12,AU15,AU23,AU24,AU25,AU26"
TRACKS = {
    "EXPR_Classification_Challenge": (
        EXPR,
        {"1-30": ["0", "1", "2", "3", "-1", "4"], "video5_left": ["5", "6", "7"]},
        ["1", "7"],
    ),
    "VA_Estimation_Challenge": (
        "valence,arousal",
        {"1-30": ["0.5,-0.25", "0.1,0.1", "-5,-5", "-1,1"], "video5_left": ["0,0"]},
        ["0.25,0.75"],
    ),
    "AU_Detection_Challenge": (
        AU,
        {
            "1-30": ["1,0,0,0,0,0,1,0,0,0,0,0", "1,1,1,1,1,1,1,1,1,1,1,1", ",".join(["-1"] * 12)],
            "video5_left": ["0,0,0,0,0,0,0,0,0,0,-1,1"],
        },
        ["0,0,0,0,0,0,0,0,0,0,0,0"],
    ),
}


def write(root: Path) -> None:
    for track, (header, train, validation) in TRACKS.items():
        folder = root / "3rd_ABAW_Annotations" / track
        for video, lines in train.items():
            text(folder / "Train_Set" / f"{video}.txt", header, *lines)
        text(folder / "Validation_Set" / "9-15.txt", header, *validation)
    for video, frames in {
        "1-30": (1, 3, 4, 5, 6),
        "video5_left": (1, 2, 3),
        "9-15": (1, 2),
    }.items():
        for frame in frames:
            face(root / "cropped_aligned" / video / f"{frame:05d}.jpg", frame, (112, 112))
