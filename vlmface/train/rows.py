"""Rows of token ids from samples: what is trained on, and what is left out of it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from vlmface import encode
from vlmface.aus.evidence import COLUMN as EVIDENCE
from vlmface.data import conversations, row_images
from vlmface.data.dataset_rows import with_still_images
from vlmface.errors import UserError
from vlmface.families.base import Family
from vlmface.prompts import Prompt
from vlmface.schema import FaceSample
from vlmface.train import augmentation, task_sampling
from vlmface.train.evidence_changes import SOURCE, Target, source_of
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
    out by reason). Rows of `task_sampling.training_rows` are trained towards their label of column
    TARGET_LABEL, and also get `token_weights`; rows of `augmentation.with_mirrored_rationales` also
    get the columns of their mirror images, and rows of `aus.evidence.with_evidence` column SOURCE.

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
        size = row_images.image_sizes(images[index], needed=family.NEEDS_SIZE)
        limits: dict[str, Any] = {"max_length": max_length, "image_size": size}
        try:
            if (messages := conversation_messages(sample)) is not None:
                _check_conversation(row)
                texts = encode.encode_conversation(processor, family, messages, **limits)
            else:
                question = prompt.messages(row.get(EVIDENCE))
                encode_text = partial(encode.encode_text, processor, family, question, **limits)
                texts = [encode_labelled(encode_text, row, sample, prompt, seed)]
        except encode.SkippedSampleError as error:
            skipped[error.reason] += 1
            continue
        for text in texts:
            row_indices.append(index)
            text.pop("attention_mask", None)  # the collator adds it when it pads
            if prompt.uses_evidence:
                encoded[SOURCE].append(text.pop(SOURCE, None))
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


def encode_labelled(
    encode_text: partial[dict[str, Any]],
    row: Mapping[str, Any],
    sample: FaceSample,
    prompt: Prompt,
    seed: int,
) -> dict[str, Any]:
    """Encode a row towards its label, with the columns of its mirror image where it has one, and
    with column SOURCE if the prompt contains evidence.

    Args:
        encode_text: `encode.encode_text` of a completion.
        row: With TARGET_LABEL, LABEL_WEIGHT, MIRRORED_RATIONALE and EVIDENCE where the run has
            them.
        sample: Of the row; its label and rationale are replaced by those of the row.
        prompt: The prompt.
        seed: Of a rationale that is written here.

    Raises:
        SkippedSampleError: The sample cannot be trained on.
    """
    if (label := row.get(task_sampling.TARGET_LABEL)) is not None:
        set_label(sample, prompt.space.field, label)
    weight = row.get(task_sampling.LABEL_WEIGHT)
    targets = [target_of(sample, prompt, seed, weight)]
    text = targets[0].encode(encode_text)
    if augmentation.MIRRORED_RATIONALE in row:
        sample.rationale = row[augmentation.MIRRORED_RATIONALE] or sample.rationale
        targets.append(target_of(sample, prompt, seed, weight))
        mirrored = targets[1].encode(encode_text)
        text |= {augmentation.MIRRORED + name: ids for name, ids in mirrored.items()}
    if prompt.uses_evidence:
        sizes = encode_text.keywords["image_size"]
        text[SOURCE] = source_of(prompt, row[EVIDENCE], targets, sizes)
    return text


def _check_conversation(row: Mapping[str, Any]) -> None:
    """Raise UserError if the run changes labels, weights or rationales, which a conversation does
    not have."""
    columns = (
        task_sampling.TARGET_LABEL,
        task_sampling.LABEL_WEIGHT,
        augmentation.MIRRORED_RATIONALE,
    )
    if changed := [name for name in columns if name in row]:
        raise UserError(
            f"row {row['id']} is a conversation (turns: conversation), which has no "
            f"{changed[0].replace('_', ' ')}: leave out the settings that weight, sample or mirror "
            "labelled rows"
        )


def set_label(sample: FaceSample, field: str, label: str) -> None:
    """Give a sample another label, in place."""
    setattr(sample, field, [label] if isinstance(getattr(sample, field), list) else label)


def target_of(sample: FaceSample, prompt: Prompt, seed: int, weight: float | None) -> Target:
    """What is learnt about a sample.

    Args:
        sample: Its labels and rationale are the target.
        prompt: The prompt.
        seed: Of a rationale that is written here.
        weight: Of its label; None if the run has no weights.

    Raises:
        SkippedSampleError: The sample cannot be trained on.
    """
    text = training_target(sample, prompt, seed)
    before = prompt.answer_prefix(sample.rationale or "") if prompt.has_rationale else None
    return Target(text, before, weight)


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
    n = sum(conversations.is_in_meta(meta) for meta in rows["meta"])
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
        clip or [] if conversations.is_in_meta(meta) else []
        for clip, meta in zip(frames, metas, strict=True)
    ]
    if not any(images_of_rows):
        return rows
    pictures = Dataset.from_dict({"images": images_of_rows}).cast_column(
        "images", [Image(decode=False)]
    )
    return concatenate_datasets([rows, pictures], axis=1)


def training_messages(
    sample: FaceSample, prompt: Prompt, seed: int, evidence: str | None = None
) -> list[dict[str, Any]]:
    """The messages to learn: the sample's own conversation, or the prompt, with the evidence that
    it may contain, and the answer of `training_target`. Raises SkippedSampleError as that does."""
    if (messages := conversation_messages(sample)) is not None:
        return messages
    target = training_target(sample, prompt, seed)
    answer = {"role": "assistant", "content": [{"type": "text", "text": target}]}
    return [*prompt.messages(evidence), answer]


def conversation_messages(sample: FaceSample) -> list[dict[str, Any]] | None:
    """The sample's own conversation (`meta["messages"]`) in the block form of transformers; None if
    it has none."""
    messages = sample.meta.get("messages")
    return None if messages is None else [_with_blocks(message) for message in messages]


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
