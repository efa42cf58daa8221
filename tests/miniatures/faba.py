"""FABA-Instruct: texts that name emotions which they deny, "<image>" after the question, paths that
start from the folder above."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from miniatures import face
from miniatures.records import write_json

ARGUMENTS: dict = {}
GENTLE = "A gentle expression; there is no overt display of joy, sadness, anger, or surprise."
TENSE = "1. AU4 - Brow Lowerer: the brows are drawn together. AU12 is not visible."


def image(split: str, name: str) -> str:
    return f"FABAInstruct/{split}/images/AffectNet/AffectNet_v2/{name}.jpg"


def train(name: str, question: str, answer: str) -> dict[str, Any]:
    return {
        "source": "AffectNet",
        "image": image("train", name),
        "id": f"AffectNet/{name}",
        "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}],
        "landmark": image("train", name).replace("images", "landmarks").replace("jpg", "npy"),
    }


def test(name: str, label: Any, text: str) -> dict[str, Any]:
    return {"image": image("eval", name), "label": label, "gpt4": text, "landmark": "x.npy"}


def write(root: Path) -> None:
    write_json(
        root / "train" / "train_emotion_anno.json",
        [
            train("916/93eb", "What is the emotion of this face?\n<image>", GENTLE),
            train("1194/4dfc", "<image>\nDescribe the emotion.", "Happy.\n"),
        ],
    )
    write_json(
        root / "train" / "train_au_anno.json",
        [train("1194/4dfc", "Which action units?\n<image>", TENSE)],
    )
    write_json(
        root / "eval" / "eval_emotion_anno.json",
        [
            test("7/a", "0", GENTLE),
            test("7/b", 6, GENTLE),
            test("7/c", "Sadness", GENTLE),
            test("7/d", None, GENTLE),
        ],
    )
    write_json(
        root / "eval" / "eval_au_anno.json",
        [
            test("7/a", "4, 9, 15", TENSE),
            test("7/b", "", TENSE),
            test("7/c", "43", TENSE),
        ],
    )
    for number, path in enumerate(
        [image("train", "916/93eb"), image("train", "1194/4dfc")]
        + [image("eval", f"7/{name}") for name in "abcd"]
    ):
        face(root / path.removeprefix("FABAInstruct/"), number)
