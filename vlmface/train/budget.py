"""The length budget: images are made smaller before rows are left out."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from vlmface import encode
from vlmface.data.rows import pictures
from vlmface.prompts import Prompt
from vlmface.schema import FaceSample
from vlmface.train import sft

if TYPE_CHECKING:
    import datasets

_PRECISION = 1.02  # the budget that is found is at most this much below the largest possible


def fit_pixels(
    rows: datasets.Dataset,
    processor: Any,
    family: ModuleType,
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
    if not family.NEEDS_SIZE:
        return
    long = _too_long(rows, processor, family, prompts, max_length, seed)
    low, high = family.pixel_range(processor)

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
    if sft.is_main():
        print(
            f"max_pixels: {low:,}, or {len(can):,} of {len(rows) * len(prompts):,} rows would not "
            f"fit max_length {max_length}"
        )


_Text = tuple[Prompt, str, tuple[int, int]]  # prompt, completion, size of the image


def _too_long(
    rows: datasets.Dataset,
    processor: Any,
    family: ModuleType,
    prompts: Sequence[Prompt],
    max_length: int,
    seed: int,
) -> list[_Text]:
    found: list[_Text] = []
    images = pictures(rows).select_columns(["image"])
    for index, row in enumerate(rows.remove_columns(["image", "frames"])):
        size = encode.row_image_size(images[index]["image"])
        for prompt in prompts:
            try:
                text = sft.target_of(FaceSample.from_row(row), prompt, seed)
            except encode.RefusedError:
                continue  # left out for another reason
            if not _fits((prompt, text, size), processor, family, max_length):
                found.append((prompt, text, size))
    return found


def _fits(text: _Text, processor: Any, family: ModuleType, max_length: int) -> bool:
    prompt, target, size = text
    try:
        encode.encode_text(
            processor, family, prompt.messages(), target, max_length=max_length, image_size=size
        )
    except encode.RefusedError as error:
        return error.reason != "too_long"
    return True
