"""Text-only questions and answers among the training rows, so that a model keeps its language
abilities.

Under ZeRO-3 and FSDP all processes gather the vision tower's weights together, and a process whose
batch has no image would block the others. So a row of text has a blank image after its answer:
causal attention hides it from every supervised token, and the loss is that of the text alone.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmface import encode
from vlmface.data.text_files import read_lines
from vlmface.errors import SkippedSampleError, UserError
from vlmface.families.base import Family
from vlmface.train.augmentation import MIRRORED

if TYPE_CHECKING:
    import datasets

_BLANK = (32, 32)  # pixels; families enlarge it to their minimum size


def read_questions(path: str | Path) -> list[tuple[str, str]]:
    """Read lines of {"question": ..., "answer": ...}.

    Args:
        path: A JSONL file.

    Returns:
        (question, answer) of each line.

    Raises:
        UserError: A line is not valid, or the file is empty or missing.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"cannot read text_only_data {path}: the file does not exist")
    questions = []
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            question, answer = row["question"], row["answer"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(
                f'{path}, line {number}: expected {{"question": ..., "answer": ...}}, found '
                f"{line[:80]!r}"
            ) from error
        if not all(isinstance(text, str) and text.strip() for text in (question, answer)):
            raise UserError(f"{path}, line {number}: question and answer must be text, not empty")
        if any("\ud800" <= c <= "\udfff" for c in question + answer):
            raise UserError(
                f"{path}, line {number}: half of a \\ud83d\\ude00 pair is not a character"
            )
        questions.append((question, answer))
    if not questions:
        raise UserError(
            f"{path} holds no line: give question and answer, or set text_only_data: null"
        )
    return questions


def encode_row(
    processor: Any, family: Family, question: str, answer: str, *, max_length: int | None = None
) -> dict[str, list[int]]:
    """Encode a question and its answer, followed by the tokens of a blank image.

    Args:
        processor: The model's processor.
        family: Its family.
        question: The question.
        answer: The answer.
        max_length: Tokens of the row.

    Returns:
        As `encode.encode_text`.

    Raises:
        SkippedSampleError: "too_long", "image_in_text" or "joined".
    """
    messages = [{"role": "user", "content": [{"type": "text", "text": question}]}]
    row = encode.encode_text(processor, family, messages, answer)
    start = next(i for i, label in enumerate(row["labels"]) if label != encode.IGNORED)
    image = processor.tokenizer(family.image_text(processor, _BLANK), add_special_tokens=False)
    ids = row["input_ids"] + image["input_ids"]
    if max_length is not None and len(ids) > max_length:
        raise SkippedSampleError(
            "too_long", f"{len(ids)} tokens do not fit max_length {max_length}"
        )
    return {
        "input_ids": ids,
        "attention_mask": [1] * len(ids),
        **family.per_token_inputs(processor, ids, start),
        "labels": row["labels"] + [encode.IGNORED] * len(image["input_ids"]),
    }


def encode_file(
    path: str | Path,
    processor: Any,
    family: Family,
    max_length: int,
    *,
    features: datasets.Features,
    row: int,
) -> tuple[datasets.Dataset, dict[str, int]]:
    """Encode the rows of a file for `read`.

    Args:
        path: The file.
        processor: Of the model.
        family: Of the model.
        max_length: Longer rows are skipped.
        features: Of the rows with images that these are added to.
        row: Their number in column `row`, the same for all: they share the blank picture.

    Returns:
        (the rows, how many were skipped by reason).

    Raises:
        UserError: The file contains none that fits.
    """
    from datasets import Dataset
    from PIL import Image

    columns: defaultdict[str, list[Any]] = defaultdict(list)
    skipped: Counter[str] = Counter()
    for question, answer in read_questions(path):
        try:
            encoded = encode_row(processor, family, question, answer, max_length=max_length)
        except SkippedSampleError as error:
            skipped[error.reason] += 1
            continue
        del encoded["attention_mask"]  # the collator adds it when it pads
        for name, values in encoded.items():
            columns[name].append(values)
        columns["length"].append(len(encoded["input_ids"]))
    if not columns:
        raise UserError(f"no row of text_only_data {path} can be trained on: {dict(skipped)}")
    n = len(columns["length"])
    columns["row"] = [row] * n
    if "token_weights" in features:
        columns["token_weights"] = [[1.0] * len(ids) for ids in columns["input_ids"]]
    columns["image"] = [Image.new("RGB", _BLANK)] * n
    if encode.SOURCE_COLUMN in features:
        columns[encode.SOURCE_COLUMN] = [None] * n
    if "images" in features:
        columns["images"] = [[]] * n  # its image alone
    ordered = {name: columns[name.removeprefix(MIRRORED)] for name in features}
    return Dataset.from_dict(ordered).cast(features), dict(skipped)
