"""Rows of token ids from samples: what is trained on, and what is left out of it."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

from vlmface import encode
from vlmface.data import row_images
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

    A sample without a rationale gets one from the rule writer, from its annotated AUs and label.
    Left out are rows without a label of the prompt's space ("no_label"), without the AU annotation
    that a rationale is written from ("no_aus"), rationales that do not fit the prompt's form
    ("unreadable_rationale"), and what the encoder refuses ("too_long", ...).
    The images stay compressed. Rows that `crop_cache.apply_views` made keep all that is shown of
    them; of another clip it is the middle frame. Raises UserError if nothing is left.
    """
    from datasets import Dataset, concatenate_datasets
    from tqdm import tqdm

    messages = prompt.messages()
    kept: list[int] = []
    encoded: defaultdict[str, list[Any]] = defaultdict(list)
    left_out: Counter[str] = Counter()
    images = image_columns(rows)
    plain = rows.remove_columns(["image", "frames"])
    for index, row in enumerate(tqdm(plain, "encoding", unit="face", disable=not is_main())):
        sample = FaceSample.from_row(row)
        try:
            target = training_target(sample, prompt, seed)
            size = row_images.image_sizes(images[index], needed=family.NEEDS_SIZE)
            text = encode.encode_text(
                processor, family, messages, target, max_length=max_length, image_size=size
            )
        except encode.RefusedError as error:
            left_out[error.reason] += 1
            continue
        kept.append(index)
        del text["attention_mask"]  # the collator's own: it pads
        for name, values in text.items():
            encoded[name].append(values)
        encoded["length"].append(len(text["input_ids"]))
    if not kept:
        raise UserError(
            f"none of the {len(rows)} rows can be trained on ({dict(left_out)}): check the data "
            "set's labels against the prompt's label space, and max_length"
        )
    if left_out:
        images = images.select(kept)
    columns = Dataset.from_dict({**encoded, "row": kept})
    return concatenate_datasets([images, columns], axis=1), dict(left_out)


def image_columns(rows: datasets.Dataset) -> datasets.Dataset:
    """The columns of `rows` that say what a model is shown of each, as they are stored."""
    found = with_still_images(rows)
    return found.select_columns(
        [name for name in row_images.IMAGE_COLUMNS if name in found.column_names]
    )


def training_target(sample: FaceSample, prompt: Prompt, seed: int) -> str:
    """The text to learn, written from the sample's labels where it has no rationale of its own.
    Raises RefusedError if it has no label or nothing to write from."""
    from vlmface.rationale import rules

    if not prompt.truth(sample):
        raise encode.RefusedError("no_label", f"{sample.id} has no label of {prompt.space.id}")
    if prompt.reasons and sample.rationale is None:
        if sample.aus is None or (sample.emotion is None and prompt.space.field == "emotion"):
            raise encode.RefusedError("no_aus", f"{sample.id} has no annotation to write from")
        own, aus = rules.sample_seed(seed, sample.id), sample.intensities()
        if sample.emotion is None:
            body = rules.describe(aus, seed=own)
        else:
            body = rules.write(aus, sample.emotion, seed=own, body_only=True)
        sample.rationale, sample.rationale_source, sample.rationale_saw_label = body, "rules", True
    try:
        return prompt.target(sample)
    except UserError as error:
        raise encode.RefusedError("unreadable_rationale", str(error)) from error
