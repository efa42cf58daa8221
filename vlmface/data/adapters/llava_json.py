"""Conversations about pictures: LLaVA, ShareGPT, OpenAI messages, ms-swift, Qwen-VL, Alpaca. One
JSON list, or JSON lines, of

    {"id": "...", "image": "faces/1.jpg", "conversations": [
        {"from": "human", "value": "<image>\\nWhat does the face show?"},
        {"from": "gpt", "value": "..."}]}

as train.json, validation.json and test.json (or .jsonl) in one folder, or as one file. The other
forms are those of `vlmface.data.conversations`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlmface.data.conversations import read_conversation
from vlmface.data.records import (
    Record,
    check_choice,
    folder_of_images,
    records,
    split_thought,
)
from vlmface.data.rows import Rows, exists_mask, json_meta, require_path
from vlmface.errors import UserError
from vlmface.schema import RATIONALE_SOURCES

TITLE = "conversations about pictures (LLaVA, ShareGPT, OpenAI, ms-swift)"
HOME = "https://github.com/haotian-liu/LLaVA/blob/main/docs/Finetune_Custom_Data.md"
LICENCE = "that of your data"
SPLITS = ("train", "validation", "test")
ENDINGS = (".jsonl", ".json")


@dataclass(frozen=True)
class Options:
    """Options of a file of conversations.

    Args:
        images: the folder that `image` starts from (default: the file's).
        turns: "first" makes one row of a record, its first question and answer, and counts the
            later turns in `skipped`: they may depend on earlier turns. "all" makes a row of each
            pair. "conversation" makes one row of all turns.
        label: a field of the records with an emotion word or null.
        file_split: the split of a single file.
        rationale_source: who wrote the answers: "teacher", "human" or "rules".
        rationale_saw_label: whether the writer was given the labels.
    """

    images: str | None = None
    turns: str = "first"
    label: str | None = None
    file_split: str = "train"
    rationale_source: str = "teacher"
    rationale_saw_label: bool = True

    def __post_init__(self) -> None:
        check_choice("turns", self.turns, ("first", "all", "conversation"))
        check_choice("file_split", self.file_split, SPLITS)
        check_choice(
            "rationale_source",
            self.rationale_source,
            [source for source in RATIONALE_SOURCES if source != "none"],
        )


def read(root: Path, split: str, options: Options) -> Rows:
    """With `turns` "first" and "all" the answer is the rationale, without <think> and <answer>
    tags, the question is `meta["prompt"]`, and a record needs exactly one picture. With
    "conversation" a row is a whole record: `meta["messages"]` holds it, several pictures are its
    `frames`, and fine-tuning trains on every answer instead of the recipe's prompt. No label is
    read out of the text. `subject` is the first picture's path, so that `hold_out` keeps all rows
    of one picture on one side. Other records are skipped.
    """
    path = _file(root, split, options.file_split)
    folder = folder_of_images(options.images, path.parent)
    if options.turns == "conversation":
        return _conversations(path, folder, options.label)
    columns, texts, skipped = _turns(
        path, folder, first_only=options.turns == "first", label=options.label
    )
    written = np.array([text is not None for text in columns["rationale"]], bool)
    provenance = {
        "rationale_source": [
            options.rationale_source if rationale else "none" for rationale in written
        ],
        "rationale_saw_label": written & bool(options.rationale_saw_label),
        "meta": json_meta(len(written), **texts),
    }
    return Rows(columns | provenance, skipped)


def _turns(
    path: Path, folder: Path, *, first_only: bool, label: str | None
) -> tuple[dict[str, list[Any]], dict[str, list[Any]], dict[str, list[str]]]:
    """(columns, texts for `meta`, places that are skipped by reason), one value for each row."""
    columns: dict[str, list[Any]] = {
        name: [] for name in ("id", "image", "subject", "emotion", "rationale")
    }
    texts: dict[str, list[Any]] = {"answer": [], "prompt": [], "source_id": []}
    skipped: dict[str, list[str]] = {"no image": [], "several images": [], "later turns": []}
    for number, record in enumerate(records(path), 1):
        conversation = read_conversation(record)
        image_files = conversation.images
        if len(image_files) != 1:
            skipped["several images" if image_files else "no image"].append(record.where)
            continue
        pairs = conversation.pairs()
        if first_only and len(pairs) > 1:
            skipped["later turns"].append(f"{record.where}: {len(pairs) - 1}")
            pairs = pairs[:1]
        image = record.but(image=image_files[0]).image("image", folder)
        emotion = _emotion(record, label)
        for turn, (question, text) in enumerate(pairs, 1):
            rationale, answer = split_thought(text)
            columns["id"].append(f"llava_json-{number}" + ("" if first_only else f"-{turn}"))
            columns["image"].append(image)
            columns["subject"].append(image_files[0])
            columns["emotion"].append(emotion)
            columns["rationale"].append(rationale)
            texts["answer"].append(answer)
            texts["prompt"].append(question)
            texts["source_id"].append(record.word("id") if record.has("id") else None)
    return columns, texts, {reason: places for reason, places in skipped.items() if places}


def _emotion(record: Record, label: str | None) -> str | None:
    return record.label(label) if label and record.optional(label) else None


def _conversations(path: Path, folder: Path, label: str | None) -> Rows:
    """A row of each record with pictures."""
    columns: dict[str, list[Any]] = {
        name: [] for name in ("id", "image", "frames", "subject", "emotion", "meta")
    }
    skipped: list[str] = []
    for number, record in enumerate(records(path), 1):
        conversation = read_conversation(record)
        if not conversation.images:
            skipped.append(record.where)
            continue
        files = [record.but(image=name).image("image", folder) for name in conversation.images]
        single = len(files) == 1
        if not single and not exists_mask(files).all():
            raise UserError(
                f"{record.where}: {files[int(np.argmin(exists_mask(files)))]} is missing: complete "
                "the copy, or give the folder that paths start from, images="
            )
        meta = {
            "messages": conversation.messages,
            "source_id": record.word("id") if record.has("id") else None,
        }
        columns["id"].append(f"llava_json-{number}")
        columns["image"].append(files[0] if single else None)
        columns["frames"].append(None if single else files)
        columns["subject"].append(conversation.images[0])
        columns["emotion"].append(_emotion(record, label))
        columns["meta"].append(json.dumps(meta, ensure_ascii=False))
    return Rows(columns, {"no image": skipped} if skipped else {})


def present_splits(root: Path, **options: Any) -> tuple[str, ...]:
    """The splits that a copy has: that of the one file, or those whose files are there."""
    if root.is_file():
        return (options.get("file_split", "train"),)
    return tuple(s for s in SPLITS if any((root / f"{s}{end}").exists() for end in ENDINGS))


def _file(root: Path, split: str, file_split: str) -> Path:
    if root.is_file():
        if split != file_split:
            raise UserError(
                f"{root} is one file and its rows are split {file_split!r}, not {split!r}: give "
                f"the file of that split, or file_split={split!r} if this is it"
            )
        return root
    files = [file for end in ENDINGS if (file := root / f"{split}{end}").exists()]
    return files[0] if files else require_path(root / f"{split}.json", f"the {split} conversations")
