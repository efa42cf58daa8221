"""Exp-CoT: RAF-DB and AffectNet faces; the 24 values are FEAFA's, the headings vary."""

from __future__ import annotations

from pathlib import Path

from miniatures import face
from miniatures.records import write_json

ARGUMENTS: dict = {}


def values(**at: float) -> list[float]:
    """24 values, those given by position ("_4") and zeros."""
    return [at.get(f"_{i}", 0.0) for i in range(24)]


def described(heading: str = "**{}:** ", overall: str = "Overall Emotional Interpretation") -> str:
    parts = (
        ("Key Observations", "The brows are low."),
        (overall, "This points to pain."),
        ("Conclusion", "Together, they express **sadness**."),
    )
    return "\n\n".join(heading.format(name) + said for name, said in parts)


TRAIN = [
    {
        "file_name": "train_00001_aligned.jpg",
        "emo": "Sadness",
        "au": values(_4=0.2, _5=0.7, _15=0.1, _16=0.3, _19=0.25),
        "description": described(),
    },
    {
        "file_name": "train_00002_aligned.jpg",
        "emo": "Happiness",
        "au": values(_11=1, _0=0.19),
        "description": described("**{}**: "),
    },
    {
        "file_name": "train_00003_aligned.jpg",
        "emo": 2,
        "au": values(_6=0.5),
        "description": described("### {}\n", "Emotional Interpretation"),
    },
    {
        "file_name": "train_00004_aligned.jpg",
        "emo": "6",
        "au": values(),
        "description": "No headings, only prose.",
    },
]


def write(root: Path) -> None:
    write_json(root / "rafdb_emo_au_train_mini_description.json", TRAIN)
    write_json(
        root / "rafdb_emo_au_val_mini_description.json",
        [
            {
                "file_name": "test_0001_aligned.jpg",
                "emo": "Neutral",
                "au": values(_18=0.4),
                "description": described("{}: "),
            }
        ],
    )
    write_json(
        root / "Affectnet_kaggle_valid-sample-affectnet_mini_description.json",
        [
            {
                "file_name": f"val_class/class{code:03d}/image{code}.jpg",
                "emo": emotion,
                "au": values(),
                "description": described(),
            }
            for code, emotion in ((8, "Contempt"), (2, 2))
        ],
    )
    for number, item in enumerate(TRAIN):
        face(root / item["file_name"], number, (100, 100))
    face(root / "test_0001_aligned.jpg", 9)
    for code in (8, 2):
        face(root / "val_class" / f"class{code:03d}" / f"image{code}.jpg", code)
