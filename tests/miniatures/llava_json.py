"""LLaVA conversations: several turns, a record without an image, ids that occur twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from miniatures import face
from miniatures.records import write_json, write_lines

ARGUMENTS: dict = {"label": "emotion"}


def talk(*texts: str) -> list[dict[str, str]]:
    return [{"from": "gpt" if i % 2 else "human", "value": text} for i, text in enumerate(texts)]


TRAIN: list[dict[str, Any]] = [
    {
        "id": "000000033471",
        "image": "faces/1.jpg",
        "emotion": "Angry",
        "conversations": talk(
            "<image>\nWhat does the face show?",
            "<think>Low brows (AU4).</think><answer>anger</answer>",
            "Why?",
            "The brows.",
        ),
    },
    {
        "id": "000000033471",
        "image": ["faces/1.jpg"],
        "emotion": "",
        "conversations": [
            {"from": "system", "value": "You are polite."},
            *talk("Is she happy?\n<image>", " No, not happy. "),
        ],
    },
    {"id": 7, "conversations": talk("What is FACS?", "A coding system.")},
    {"image": ["faces/1.jpg", "faces/2.jpg"], "conversations": talk("<image><image>", "-")},
    {"image": "faces/2.jpg", "emotion": "fear", "conversations": talk("<image>", "Wide eyes.")},
]


def write(root: Path) -> None:
    write_json(root / "train.json", TRAIN)
    last = {"id": 1, "image": "faces/2.jpg", "emotion": "sad"}
    write_lines(root / "test.jsonl", last | {"conversations": talk("<image>\nAnd this?", "Sad.")})
    for number in (1, 2):
        face(root / "faces" / f"{number}.jpg", number)
