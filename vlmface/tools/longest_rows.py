"""The longest training rows of a run, whose batches take the most memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vlmface import encode
from vlmface.data import row_images
from vlmface.errors import UserError
from vlmface.families.base import Family
from vlmface.pipelines.sft import load_prompts
from vlmface.tools.recipe_setup import read_tasks
from vlmface.train.settings import SFTSettings

Row = Mapping[str, Any]

_ASSUMED_ANSWER = 256  # supervised tokens of a row if the data cannot be read


@dataclass(frozen=True)
class Rows:
    """The training rows of a run.

    Attributes:
        n: How many there are, None if unknown.
        faces: How many faces they are about, None if unknown.
        longest: The longest rows.
        collate: Makes a batch.
        notes: Assumptions.
    """

    n: int | None
    faces: int | None
    longest: Sequence[Row]
    collate: Callable[[Sequence[Row]], dict[str, torch.Tensor]]
    notes: tuple[str, ...] = ()

    def train(self, size: int) -> dict[str, torch.Tensor]:
        """A batch of the longest rows."""
        return self.collate(list(itertools.islice(itertools.cycle(self.longest), size)))

    def prompts(self, size: int) -> dict[str, torch.Tensor]:
        """A batch of the prompts of these rows."""
        prompts_only = []
        for row in itertools.islice(itertools.cycle(self.longest), size):
            prompt = next(i for i, label in enumerate(row["labels"]) if label != encode.IGNORED)
            token_fields = row.keys() - {"labels", *row_images.IMAGE_COLUMNS}
            lists = {k: row[k][:prompt] for k in token_fields if isinstance(row[k], list)}
            prompts_only.append({**row, **lists, "labels": [0] * prompt})
        batch = self.collate(prompts_only)
        del batch["labels"]
        return batch


def rows_of(settings: SFTSettings, family: Family, config: Any, processor: Any) -> Rows:
    """The training rows of a run.

    If the data cannot be read, rows of max_length tokens are assumed; without a processor also
    images of the size of the vision tower.

    Args:
        settings: Of the run.
        family: Its family.
        config: From `base_config`.
        processor: From `processor_of`.

    Raises:
        UserError: All rows are longer than max_length.
    """
    if processor is None:
        return _assumed(settings, family, config, None, "no processor next to config.json")
    try:
        tasks = read_tasks(settings, processor)
    except UserError as error:
        return _assumed(settings, family, config, processor, f"data not read: {error}")
    fitting = [
        (length, task.rows, i)
        for task in tasks
        for i, length in enumerate(task.rows["length"])
        if length <= settings.max_length
    ]
    if not fitting:
        raise UserError(
            f"all rows are longer than max_length {settings.max_length}: raise it "
            "(vlmface inspect shows the lengths)"
        )
    fitting.sort(key=lambda entry: -entry[0])
    size = max(settings.batch_size, settings.eval_batch_size)
    longest = [
        {name: value for name, value in rows[i].items() if name != "row"}
        for _, rows, i in fitting[:size]
    ]
    faces = max(len(task.rows) for task in tasks)
    return Rows(len(fitting), faces, longest, encode.Collator(processor, family))


def _assumed(
    settings: SFTSettings, family: Family, config: Any, processor: Any, reason: str
) -> Rows:
    length = settings.max_length
    answer = min(_ASSUMED_ANSWER, length // 2)
    images = max(prompt.images for prompt in load_prompts(settings))
    collate: Callable[[Sequence[Row]], dict[str, torch.Tensor]]
    if processor is not None:
        from PIL import Image

        size = (336, 336)
        text = family.image_text(processor, size)
        image = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        image_fields: dict[str, Any] = {"image": [Image.new("RGB", size)] * images}
        collate = encode.Collator(processor, family)
    else:
        vision: Any = getattr(config, "vision_config", None)
        side, patch = getattr(vision, "image_size", None), getattr(vision, "patch_size", None)
        if family.NEEDS_SIZE or not isinstance(side, int) or not isinstance(patch, int):
            raise UserError(
                f"config.json of {settings.base_model} does not contain the size of its images: "
                "put the processor's files next to it"
            )
        image = [config.image_token_id] * (side // patch) ** 2
        image_fields = {}
        shape = (vision.num_channels, side, side)

        def collate(rows: Sequence[Row]) -> dict[str, torch.Tensor]:
            batch = {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}
            batch["attention_mask"] = torch.ones_like(batch["input_ids"])
            return {**batch, "pixel_values": torch.zeros(len(rows) * images, *shape)}

    image = image * images
    images_text = "an image" if images == 1 else f"{images} images"
    if len(image) + answer > length:
        raise UserError(
            f"max_length {length} does not hold {images_text} of {len(image)} tokens: raise it"
        )
    ids = image + [0] * (length - len(image))
    row = {"input_ids": ids, **image_fields}
    if processor is not None:
        row |= family.per_token_inputs(processor, ids, length - answer)
    row["labels"] = [encode.IGNORED] * (length - answer) + [0] * answer
    note = f"{reason}; rows of max_length {length} tokens assumed, {answer} of them supervised"
    n = settings.n_train and settings.n_train * len(settings.prompts)
    return Rows(n, settings.n_train, [row], collate, (note,))
