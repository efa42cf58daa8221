"""FERBench: two or three questions on each of its four sets, in the words of each set."""

from __future__ import annotations

from pathlib import Path

from miniatures import face
from miniatures.records import write_json

ARGUMENTS: dict = {}
NOUNS = ["surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral"]
ADJECTIVES = ["angry", "contempt", "disgust", "fear", "happy", "neutral", "sad", "surprise"]
ITEMS = {
    "rafdb": (
        "eval_rafdb/data/rafdb_qa.json",
        NOUNS,
        [
            ("/RAF-DB/aligned/test_3068_aligned.jpg", "neutral"),
            ("/RAF-DB/aligned/test_0002_aligned.jpg", "happiness"),
        ],
    ),
    "ferplus": (
        "eval_ferplus/data/ferplus_qa.json",
        ADJECTIVES,
        [
            ("/FERPlus/test/angry/fer0032225.png", "angry"),
            ("/FERPlus/test/contempt/fer0032999.png", "contempt"),
            ("/FERPlus/test/sad/fer0033000.png", "sad"),
        ],
    ),
    "affectnet": (
        "eval_affectnet/data/affectnet_qa.json",
        [*NOUNS, "contempt"],
        [
            ("/AffectNet/Manually_Annotated/validation/1/1957a923.jpg", "fear"),
            ("/AffectNet/Manually_Annotated/validation/10/77e3184d.jpg", "contempt"),
        ],
    ),
    "sfew": (
        "eval_sfew_2.0/data/sfew_2.0_qa.json",
        [w for w in ADJECTIVES if w != "contempt"],
        [
            ("/SFEW-2.0/Val/Val_Aligned_Faces/Angry/21_012215600_00000004.png", "angry"),
            ("/SFEW-2.0/Val/Val_Aligned_Faces/Happy/AboutABoy_003314887_00000077.png", "happy"),
        ],
    ),
}


def question(candidates: list[str]) -> str:
    return f"Which expression is most prominent? {', '.join(candidates)}. <think></think>"


def write(root: Path) -> None:
    number = 0
    for path, candidates, items in ITEMS.values():
        write_json(
            root / path,
            [
                {
                    "image_path": image,
                    "true_label": label,
                    "prompt": question(candidates),
                    "candidate_labels": candidates,
                }
                for image, label in items
            ],
        )
        for image, _ in items:
            number += 1
            face(root / image.lstrip("/"), number)
