"""Rows of token ids from samples: what is trained on, and what is left out of it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vlmface import encode
from vlmface.data import conversations, row_images
from vlmface.data.rows import with_still_images
from vlmface.errors import UserError
from vlmface.families.base import Family
from vlmface.prompts import Prompt
from vlmface.schema import FaceSample
from vlmface.utils.distributed import is_main

if TYPE_CHECKING:
    import datasets


def encode_rows(
    rows: datasets.Dataset,
    processor: Any,
    family: Family,
    prompt: Prompt,
    *,
    max_length: int,
    seed: int,
) -> tuple[datasets.Dataset, dict[str, int]]:
    """FaceSample rows -> (rows of `image`, perhaps `images`, `input_ids`, `labels`, `length`; left
    out by reason).

    A sample that is a conversation (`meta["messages"]`) is trained on in each of its answers, in
    place of the prompt. Of others, one without a rationale gets one from the rule writer, from its
    annotated AUs and label.
    Left out are rows without a label of the prompt's space ("no_label"), without the AU annotation
    that a rationale is written from ("no_aus"), rationales that do not fit the prompt's format
    ("unreadable_rationale"), and what the encoder refuses ("too_long", ...).
    The images stay compressed. Rows that `crop_cache.apply_views` made keep all that is shown of
    them; of another clip it is the middle frame. Raises UserError if nothing is left.
    """
    from datasets import Dataset, concatenate_datasets
    from tqdm import tqdm

    row_indices: list[int] = []
    encoded: defaultdict[str, list[Any]] = defaultdict(list)
    skipped: Counter[str] = Counter()
    images = image_columns(rows)
    plain = rows.remove_columns(["image", "frames"])
    for index, row in enumerate(tqdm(plain, "encoding", unit="face", disable=not is_main())):
        sample = FaceSample.from_row(row)
        try:
            messages = training_messages(sample, prompt, seed)
            size = row_images.image_sizes(images[index], needed=family.NEEDS_SIZE)
            texts = encode.encode_conversation(
                processor, family, messages, max_length=max_length, image_size=size
            )
        except encode.SkippedSampleError as error:
            skipped[error.reason] += 1
            continue
        for text in texts:
            row_indices.append(index)
            del text["attention_mask"]  # the collator's own: it pads
            for name, values in text.items():
                encoded[name].append(values)
            encoded["length"].append(len(text["input_ids"]))
    if not row_indices:
        raise UserError(
            f"none of the {len(rows)} rows can be trained on ({dict(skipped)}): check the data "
            "set's labels against the prompt's label space, and max_length"
        )
    if row_indices != list(range(len(images))):
        images = images.select(row_indices)
    columns = Dataset.from_dict({**encoded, "row": row_indices})
    return concatenate_datasets([images, columns], axis=1), dict(skipped)


def image_columns(rows: datasets.Dataset) -> datasets.Dataset:
    """The columns of `rows` that say what a model is shown of each, as they are stored."""
    columns = _with_conversation_images(with_still_images(rows))
    return columns.select_columns(
        [name for name in row_images.IMAGE_COLUMNS if name in columns.column_names]
    )


def count_conversations(rows: datasets.Dataset, prompts: Sequence[Prompt]) -> int:
    """How many rows are conversations, which are trained on instead of the prompt.

    Raises:
        UserError: there are some, and several prompts, which would train on them again.
    """
    n = sum('"messages"' in (meta or "") for meta in rows["meta"])
    if n and len(prompts) > 1:
        raise UserError(
            f"{n:,} rows are conversations (turns: conversation), which are trained on instead of "
            f"a prompt, but there are {len(prompts)} prompts: use one"
        )
    return n


def _with_conversation_images(rows: datasets.Dataset) -> datasets.Dataset:
    """The rows with `images` where conversations are about several: their `frames`."""
    from datasets import Dataset, Image, concatenate_datasets

    if "images" in rows.column_names or "frames" not in rows.column_names:
        return rows
    columns = rows.select_columns(["frames", "meta"]).with_format("arrow")[:]
    frames, metas = columns["frames"].to_pylist(), columns["meta"].to_pylist()
    images_of_rows = [
        clip or [] if '"messages"' in (meta or "") else []
        for clip, meta in zip(frames, metas, strict=True)
    ]
    if not any(images_of_rows):
        return rows
    pictures = Dataset.from_dict({"images": images_of_rows}).cast_column(
        "images", [Image(decode=False)]
    )
    return concatenate_datasets([rows, pictures], axis=1)


def training_messages(sample: FaceSample, prompt: Prompt, seed: int) -> list[dict[str, Any]]:
    """The messages to learn: the sample's own conversation (`meta["messages"]`), or the prompt and
    the answer of `training_target`. Raises SkippedSampleError as that does."""
    if (conversation := sample.meta.get("messages")) is not None:
        return [_with_blocks(message) for message in conversation]
    target = training_target(sample, prompt, seed)
    answer = {"role": "assistant", "content": [{"type": "text", "text": target}]}
    return [*prompt.messages(), answer]


def _with_blocks(message: dict[str, str]) -> dict[str, Any]:
    """A message of a conversation in the block form of transformers."""
    blocks: list[dict[str, str]] = []
    for i, piece in enumerate(message["content"].split(conversations.IMAGE)):
        if i:
            blocks.append({"type": "image"})
        if piece.strip():
            blocks.append({"type": "text", "text": piece.strip()})
    return {"role": message["role"], "content": blocks}


def training_target(sample: FaceSample, prompt: Prompt, seed: int) -> str:
    """The text to learn, written from the sample's labels where it has no rationale of its own.
    Raises SkippedSampleError if it has no label or nothing to write from."""
    from vlmface.rationale import rules

    if not prompt.target_labels(sample):
        raise encode.SkippedSampleError(
            "no_label", f"{sample.id} has no label of {prompt.space.id}"
        )
    if prompt.has_rationale and sample.rationale is None:
        if sample.aus is None or (sample.emotion is None and prompt.space.field == "emotion"):
            raise encode.SkippedSampleError(
                "no_aus", f"{sample.id} has no annotation to write from"
            )
        row_seed, aus = rules.sample_seed(seed, sample.id), sample.intensities()
        if sample.emotion is None:
            body = rules.describe(aus, seed=row_seed)
        else:
            body = rules.write(aus, sample.emotion, seed=row_seed, body_only=True)
        sample.rationale, sample.rationale_source, sample.rationale_saw_label = body, "rules", True
    try:
        return prompt.target(sample)
    except UserError as error:
        raise encode.SkippedSampleError("unreadable_rationale", str(error)) from error
