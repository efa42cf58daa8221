"""Rows of a data set as training data of a CLIP: uint8 squares and targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vlmface.clip.model import Clip
from vlmface.data.row_images import image_refs, open_row_image
from vlmface.errors import UserError
from vlmface.label_texts import LabelTexts
from vlmface.schema import FaceSample
from vlmface.train import task_sampling

if TYPE_CHECKING:
    import datasets


def select_labelled(
    rows: datasets.Dataset, texts: LabelTexts, soft: bool = False
) -> tuple[datasets.Dataset, torch.Tensor, torch.Tensor, dict[str, int]]:
    """(rows that have a label, their targets, their valence and arousal, left out by reason).

    Targets are label numbers (n,); 0 and 1 for each label (n, labels) where the texts allow
    several; with `soft`, shares of the votes (n, labels), see `task_sampling.row_targets`. Valence
    and arousal (n, 2) are NaN where not annotated. Raises UserError if no row has a label of the
    space, or with `soft` none has votes.
    """
    labels = list(texts.space.labels)
    with_label: list[int] = []
    targets: list[Any] = []
    affects: list[list[float]] = []
    (shares_of_rows,) = task_sampling.row_targets(rows, [texts], soft=soft)
    hidden = [name for name in ("image", "frames", "images") if name in rows.column_names]
    for index, row in enumerate(rows.remove_columns(hidden)):
        shares = shares_of_rows[index]
        if not shares:
            continue
        sample = FaceSample.from_row(row)
        with_label.append(index)
        if texts.multi_label:
            present = sample.labels(texts.space)
            targets.append([float(label in present) for label in labels])
        elif soft:
            targets.append([shares.get(label, 0.0) for label in labels])
        else:
            targets.append(labels.index(next(iter(shares))))
        affects.append([np.nan if v is None else v for v in (sample.valence, sample.arousal)])
    if not with_label:
        raise UserError(
            f"none of the {len(rows)} rows has a label of {texts.space.id}: check the data set's "
            f"labels against the label space of the texts {texts.id}"
        )
    skipped = {"no_label": len(rows) - len(with_label)} if len(with_label) < len(rows) else {}
    if skipped:
        rows = rows.select(with_label)
    return rows, torch.tensor(targets), torch.tensor(affects, dtype=torch.float32), skipped


class ImageDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """Rows as {"row", "squares" (pictures, 3, side, side) uint8}; decoded once, as long as
    `cache_gib` GiB last."""

    def __init__(self, rows: datasets.Dataset, clip: Clip, cache_gib: float) -> None:
        self.rows, self.clip = rows, clip
        columns = [name for name in ("image", "images") if name in rows.column_names]
        self.pictures = rows.select_columns(columns)
        self.cache_bytes_left = int(cache_gib * 2**30)
        self.cache: dict[int, torch.Tensor] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def squares(self, index: int) -> torch.Tensor:
        if index in self.cache:
            return self.cache[index]
        stored = image_refs(self.pictures[index])
        squares = torch.from_numpy(
            np.stack([self.clip.square(open_row_image(ref)) for ref in stored])
        )
        if self.cache_bytes_left >= squares.nbytes:
            self.cache_bytes_left -= squares.nbytes
            self.cache[index] = squares
        return squares

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"row": index, "squares": self.squares(index)}


def collate(items: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """A batch of `Squares`. Raises UserError if rows show different numbers of pictures."""
    sizes = {tuple(item["squares"].shape) for item in items if "squares" in item}
    if len(sizes) > 1:
        raise UserError(f"rows show different numbers of pictures ({sorted(sizes)}): check frames")
    batch = {"row": torch.tensor([item["row"] for item in items])}
    if sizes:
        batch["squares"] = torch.stack([item["squares"] for item in items])
    return batch
