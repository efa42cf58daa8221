"""The length budget: images are made smaller before rows are left out."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from vlmface import encode
from vlmface.data import row_images
from vlmface.families.base import Family
from vlmface.prompts import Prompt
from vlmface.schema import FaceSample
from vlmface.train.rows import image_columns, training_target
from vlmface.utils import distributed
from vlmface.utils.images import Size

if TYPE_CHECKING:
    import datasets

_PRECISION = 1.02  # the budget that is found is at most this much below the largest possible


def fit_pixels(
    rows: datasets.Dataset,
    processor: Any,
    family: Family,
    prompts: Sequence[Prompt],
    *,
    max_length: int,
    seed: int,
) -> None:
    """Lower the processor's pixel budget as far as FaceSample rows need that would be too long
    otherwise, and say so.

    There is one budget for all rows, and it is saved with the processor: evaluation and serving
    show images as training did. Rows that are too long even at the family's least budget are not
    considered; `sft.encode_rows` leaves them out and counts them. Families that bring every image
    to one size have no budget.
    """
    pixel_range = family.pixel_range(processor)
    if pixel_range is None:
        return
    low, high = pixel_range
    texts = _texts(rows, prompts, seed)
    long = [text for text in texts if not _fits(text, processor, family, max_length)]

    def fitting(pixels: int, texts: Sequence[_Text]) -> list[_Text]:
        trial = copy.deepcopy(processor)
        family.set_max_pixels(trial, pixels)
        return [text for text in texts if _fits(text, trial, family, max_length)]

    can = fitting(low, long) if low < high else []
    if not can:
        return
    while high > low * _PRECISION:
        middle = math.isqrt(low * high)
        if len(fitting(middle, can)) == len(can):
            low = middle
        else:
            high = middle
    family.set_max_pixels(processor, low)
    if distributed.is_main():
        print(
            f"max_pixels: {low:,}, or {len(can):,} of {len(rows) * len(prompts):,} rows would not "
            f"fit max_length {max_length}"
        )


_Text = tuple[list[dict[str, Any]], str, list[Size]]  # messages, completion, images' sizes


def _texts(rows: datasets.Dataset, prompts: Sequence[Prompt], seed: int) -> Iterator[_Text]:
    """What `sft.encode_rows` would encode."""
    asked = [(prompt, prompt.messages()) for prompt in prompts]
    images = image_columns(rows)
    for index, row in enumerate(rows.remove_columns(["image", "frames"])):
        sizes = row_images.image_sizes(images[index])
        sample = FaceSample.from_row(row)
        for prompt, messages in asked:
            with contextlib.suppress(encode.RefusedError):  # left out for another reason
                yield messages, training_target(sample, prompt, seed), sizes


def _fits(text: _Text, processor: Any, family: Family, max_length: int) -> bool:
    messages, target, sizes = text
    try:
        encode.encode_text(
            processor, family, messages, target, max_length=max_length, image_size=sizes
        )
    except encode.RefusedError as error:
        return error.reason != "too_long"
    return True
