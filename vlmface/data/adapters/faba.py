"""FABA-Instruct: AffectNet faces described by GPT-4V (EmoLA; Li et al., ECCV 2024).

    FABAInstruct/train/train_emotion_anno.json, train_au_anno.json
        a list of {source, image, id, conversations, landmark}; the question may end in "<image>"
    FABAInstruct/eval/eval_emotion_anno.json, eval_au_anno.json
        a list of {image, label, gpt4, landmark}, as EmoLA's scorer reads them
    FABAInstruct/{train,eval}/images/AffectNet/...

`image` starts from the folder above FABAInstruct. The training texts have no label: words such as
"joy" in them may be denied or compared, so no label is read out of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from vlmface import facs, label_spaces
from vlmface.data.conversations import read_conversation
from vlmface.data.records import (
    Record,
    au_numbers,
    check_choice,
    folder_of_images,
    records,
)
from vlmface.data.rows import Rows, json_meta, listed_units, require_path
from vlmface.errors import UserError

TITLE = "FABA-Instruct"
HOME = "https://github.com/JackYFL/EmoLA"
LICENCE = "MIT for the code, none stated for the texts; AffectNet's own for the images"
SPLITS = ("train", "test")
PUBLISHED = {"train": {"rows": 19474}, "test": {"rows": 403}}  # AUs: 15838 and 325
FILES = {"train": "train/train_{task}_anno.json", "test": "eval/eval_{task}_anno.json"}
# What EmoLA's scorer asks of a face when a record has no question of its own.
QUESTIONS = {
    "emotion": "What emotions are conveyed by this face?",
    "au": "What AUs are conveyed by this face?",
}


def read(
    root: Path,
    split: str,
    *,
    task: str = "emotion",
    images: str | None = None,
    au_set: str | int | Sequence[str | int] | None = None,
) -> Rows:
    """The rationale is the description. It is not documented whether GPT-4V was given AffectNet's
    label, so `rationale_saw_label` is true. Emotion and AUs come from `label` alone, which the test
    files have: a word or a code of the coding "faba", and present AUs as in "4, 9, 15".

    Args:
        root: the folder FABAInstruct.
        split: one of SPLITS.
        task: "emotion" or "au".
        images: the folder that holds FABAInstruct's images under the same paths (default: `root`).
        au_set: AUs that are absent where the label does not list them; all others are unknown then.
            EmoLA scores 1, 2, 4, 5, 6, 10, 12, 17, 24, 25, 26 and 43.
    """
    check_choice("task", task, ("emotion", "au"))
    folder = folder_of_images(images, root)
    faces = records(
        require_path(root / FILES[split].format(task=task), f"FABA-Instruct's {task} texts")
    )
    paths = [_path(record) for record in faces]
    conversations = [_question_and_answer(record, task) for record in faces]
    columns: dict[str, Any] = {
        "id": [f"faba-{task}-{_stem(record.text('image'))}" for record in paths],
        "image": [record.image("image", folder) for record in paths],
        "rationale": [answer for _, answer in conversations],
        "rationale_source": ["teacher"] * len(faces),
        "rationale_saw_label": np.ones(len(faces), bool),
        "meta": json_meta(len(faces), prompt=[question for question, _ in conversations]),
    }
    if task == "emotion":
        columns["emotion"] = [_emotion(r) if r.has("label") else None for r in faces]
    else:
        full = au_numbers(au_set)
        columns["aus"] = listed_units(
            [_units(record) if record.has("label") else set() for record in faces],
            [full if record.has("label") else set() for record in faces],
        )
    return Rows(columns)


def _path(record: Record) -> Record:
    """The record's image path as it starts from FABAInstruct."""
    path = record.text("image").removeprefix("./").removeprefix("FABAInstruct/")
    return record.but(image=path)


def _stem(path: str) -> str:
    """`train/images/AffectNet/1194/4dfc.jpg` -> `AffectNet/1194/4dfc`, as the set's own ids are."""
    _, _, inside = path.rpartition("images/")
    return str(PurePosixPath(inside).with_suffix(""))


def _question_and_answer(record: Record, task: str) -> tuple[str, str]:
    if not record.has("conversations") and record.has("gpt4"):
        return QUESTIONS[task], record.text("gpt4").strip()
    pairs = read_conversation(record).pairs()
    if len(pairs) != 1:
        record.refuse("conversations", "one question and one answer")
    question, answer = pairs[0]
    return question, answer.strip()


def _emotion(record: Record) -> str | None:
    word = record.word("label")
    if not word.isdecimal():
        return record.label("label")
    coding = label_spaces.CODINGS["faba"]
    if int(word) not in coding.codes:
        record.refuse("label", f"an emotion or one of {coding.codes}")
    return coding.codes[int(word)]


def _units(record: Record) -> set[int]:
    text = record.fields["label"]
    if not isinstance(text, str | int):
        record.refuse("label", 'numbers of AUs such as "4, 9, 15"')
    try:
        return {facs.parse_name(part) for part in str(text).split(",") if part.strip()}
    except UserError as error:
        raise UserError(f"{record.where}: 'label': {error}") from error
