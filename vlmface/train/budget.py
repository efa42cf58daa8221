"""The length budget: images are reduced before rows are skipped."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from vlmface import encode
from vlmface.aus.evidence import COLUMN as EVIDENCE
from vlmface.data import row_images
from vlmface.families.base import Family
from vlmface.prompts import Prompt
from vlmface.schema import FaceSample
from vlmface.train.rows import image_columns, training_messages
from vlmface.utils import distributed
from vlmface.utils.images import Size

if TYPE_CHECKING:
    import datasets

_PRECISION = 1.02  # the result may be smaller than the largest possible budget by this factor


def fit_pixels(
    rows: datasets.Dataset,
    processor: Any,
    family: Family,
    prompts: Sequence[Prompt],
    *,
    max_length: int,
    seed: int,
) -> None:
    """Lower the processor's pixel budget until rows that would be too long fit, and print it.

    There is one budget for all rows, which is saved with the processor, so that evaluation and
    serving use the same image sizes. Rows that are too long even with the family's smallest budget
    are ignored here; `encode_rows` skips and counts them. Families with one image size have no
    budget.

    Args:
        rows: FaceSample rows.
        processor: Is changed.
        family: The model's family.
        prompts: Of the training.
        max_length: Tokens of a row.
        seed: Of the training targets.
    """
    pixel_range = family.pixel_range(processor)
    if pixel_range is None:
        return
    low, high = pixel_range
    texts = _texts(rows, prompts, seed)
    too_long = [text for text in texts if not _fits(text, processor, family, max_length)]

    def fitting(pixels: int, texts: Sequence[_Text]) -> list[_Text]:
        trial = copy.deepcopy(processor)
        family.set_max_pixels(trial, pixels)
        return [text for text in texts if _fits(text, trial, family, max_length)]

    reducible = fitting(low, too_long) if low < high else []
    if not reducible:
        return
    while high > low * _PRECISION:
        middle = math.isqrt(low * high)
        if len(fitting(middle, reducible)) == len(reducible):
            low = middle
        else:
            high = middle
    family.set_max_pixels(processor, low)
    if distributed.is_main():
        print(
            f"max_pixels: lowered to {low:,}, otherwise {len(reducible):,} of "
            f"{len(rows) * len(prompts):,} rows would not fit max_length {max_length}"
        )


_Text = tuple[list[dict[str, Any]], list[Size]]  # messages, the answer last, and images' sizes


def _texts(rows: datasets.Dataset, prompts: Sequence[Prompt], seed: int) -> Iterator[_Text]:
    """The texts that `encode_rows` encodes."""
    images = image_columns(rows)
    for index, row in enumerate(rows.remove_columns(["image", "frames"])):
        sizes = row_images.image_sizes(images[index])
        sample = FaceSample.from_row(row)
        for prompt in prompts:
            with contextlib.suppress(encode.SkippedSampleError):  # skipped for another reason
                yield training_messages(sample, prompt, seed, row.get(EVIDENCE)), sizes


def _fits(text: _Text, processor: Any, family: Family, max_length: int) -> bool:
    messages, sizes = text
    try:
        encode.encode_conversation(
            processor, family, messages, max_length=max_length, image_size=sizes
        )
    except encode.SkippedSampleError as error:
        return error.reason != "too_long"
    return True
