"""FEA-20K: files of two sources and stages; stage 2 repeats the images of stage 1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from miniatures import face
from miniatures.records import write_lines

ARGUMENTS: dict = {}
THINK = "<think>The brows are drawn together (AU4).</think>\n<answer>anger</answer>"


def record(number: int, dataset: str, **fields: Any) -> dict[str, Any]:
    return {
        "id": f"{number:03d}",
        "dataset": dataset,
        "image": f"{dataset}/{number}.jpg",
        "question": "<image>\nWhat is the emotion of this face?",
        "AUs": [],
        "labels": [],
        "description": None,
        "meta_info": {"number": number},
    } | fields


FABA = [
    record(1, "FABA", AUs=["AU4", "AU23"], labels=["anger"], description=THINK),
    record(
        2,
        "FABA",
        AUs=["AU12"],
        labels=["happiness"],
        is_valid=True,
        description="The lip corners are pulled up.",
    ),
    record(3, "FABA", AUs=["AU1"], labels=["sadness"], description=THINK, is_valid=False),
    record(4, "FABA", labels=["anger", "disgust"], description=THINK),
    record(5, "FABA", AUs=["AU6"], labels=["Confusion"], description=THINK, is_valid=None),
]
FER = [
    record(1, "FER2013", labels=["surprise"], description=THINK),
    record(2, "FER2013", labels=["Happy"], description=" ", question=""),
    record(3, "FER2013", labels=["fear"], image=["FER2013/3.jpg", "FER2013/1.jpg"]),
]


def write(root: Path) -> None:
    write_lines(root / "FABA-Train-stage1.jsonl", *FABA)
    write_lines(root / "FABA-Train-stage2.jsonl", *FABA)
    write_lines(root / "FER2013-Train-stage1.jsonl", *FER)
    write_lines(
        root / "FABA-Test.jsonl",
        record(9, "FABA", AUs=["AU43"], labels=["neutral"], description=THINK),
    )
    for dataset, numbers in (("FABA", (1, 2, 3, 4, 5, 9)), ("FER2013", (1, 2))):
        for number in numbers:
            face(root / dataset / f"{number}.jpg", number)
