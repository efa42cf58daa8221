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
from types import ModuleType
from typing import TYPE_CHECKING, Any

from vlmface import encode
from vlmface.data.text_files import read_lines
from vlmface.errors import RefusedError, UserError

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
        raise UserError(f"cannot read text_data {path}: the file does not exist")
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
        raise UserError(f"{path} holds no line: give question and answer, or set text_data: null")
    return questions


def encode_row(
    processor: Any, family: ModuleType, question: str, answer: str, *, max_length: int | None = None
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
        RefusedError: "too_long", "image_in_text" or "joined".
    """
    messages = [{"role": "user", "content": [{"type": "text", "text": question}]}]
    row = encode.encode_text(processor, family, messages, answer)
    start = next(i for i, label in enumerate(row["labels"]) if label != encode.IGNORED)
    image = processor.tokenizer(family.image_text(processor, _BLANK), add_special_tokens=False)
    ids = row["input_ids"] + image["input_ids"]
    if max_length is not None and len(ids) > max_length:
        raise RefusedError("too_long", f"{len(ids)} tokens do not fit max_length {max_length}")
    return {
        "input_ids": ids,
        "attention_mask": [1] * len(ids),
        **family.token_inputs(processor, ids, start),
        "labels": row["labels"] + [encode.IGNORED] * len(image["input_ids"]),
    }


def append_text_rows(
    rows: datasets.Dataset, path: str | Path, processor: Any, family: ModuleType, max_length: int
) -> tuple[datasets.Dataset, dict[str, int]]:
    """Append the rows of a text file to encoded rows.

    Args:
        rows: Encoded rows.
        path: A file for `read_questions`.
        processor: The model's processor.
        family: Its family.
        max_length: Tokens of a row.

    Returns:
        (all rows, {reason: skipped lines}).

    Raises:
        UserError: None of the lines fits.
    """
    from datasets import Dataset, concatenate_datasets
    from PIL import Image

    columns: defaultdict[str, list[Any]] = defaultdict(list)
    skipped: Counter[str] = Counter()
    for question, answer in read_questions(path):
        try:
            row = encode_row(processor, family, question, answer, max_length=max_length)
        except RefusedError as error:
            skipped[f"text: {error.reason}"] += 1
            continue
        del row["attention_mask"]  # added by the collator, which pads
        for name, values in row.items():
            columns[name].append(values)
        columns["length"].append(len(row["input_ids"]))
    if not columns:
        raise UserError(f"no row of text_data {path} can be trained on: {dict(skipped)}")
    # One number for all: they share the blank image.
    columns["row"] = [max(rows["row"][:]) + 1] * len(columns["length"])
    columns["image"] = [Image.new("RGB", _BLANK)] * len(columns["length"])
    if "images" in rows.column_names:
        columns["images"] = [[]] * len(columns["length"])  # its image alone
    texts = Dataset.from_dict(columns).cast(rows.features)
    return concatenate_datasets([rows, texts]), dict(skipped)
