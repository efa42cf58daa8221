"""Test rows whose evidence or pictures are withheld, or swapped between rows: what answers depend
on."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

from vlmface import evidence as evidence_text
from vlmface.aus import evidence
from vlmface.data.row_images import IMAGE_COLUMNS, image_refs, row_image_size
from vlmface.errors import UserError

if TYPE_CHECKING:
    import datasets

    from vlmface.data.crops import Views
    from vlmface.prompts import PromptLike

Source = Literal["measured", "withheld", "swapped"]
Pictures = Literal["shown", "withheld", "swapped"]
GREY = (128, 128, 128)
SEED = 0  # of the donors of swapped rows


def with_sources(
    rows: datasets.Dataset,
    prompts: Sequence[PromptLike],
    view: tuple[Views, int],
    source: Source,
    pictures: Pictures,
) -> datasets.Dataset:
    """The rows with their evidence, and with what is withheld or swapped.

    Each swapped row gets the evidence, or the pictures, of another row; both are of the same row
    if both are swapped. Evidence is measured in a row's own picture, whatever is shown.

    Args:
        rows: As `crop_cache.apply_views` returns them.
        prompts: That they are asked with.
        view: Views and frames of the model.
        source: Of the evidence.
        pictures: Which are shown.

    Raises:
        UserError: Evidence is withheld or swapped, but no prompt contains any; there is one row
            only; or as `evidence.with_evidence`.
    """
    uses = evidence.uses_evidence(prompts)
    if source != "measured" and not uses:
        raise UserError(
            f"evidence is {source}, but prompt {', '.join(p.id for p in prompts)} contains none: "
            "leave it out"
        )
    if source == "withheld":
        rows = _with_text(rows, [evidence_text.NOT_MEASURED] * len(rows))
    elif uses:
        rows = evidence.with_evidence(rows, prompts, *view)
    donors = _donors(len(rows)) if "swapped" in (source, pictures) else None
    if source == "swapped":
        texts = rows[evidence.COLUMN][:]
        rows = _with_text(rows, [texts[i] for i in donors or ()])
    if pictures == "swapped":
        rows = _with_images(rows, rows.select(donors or ()))
    elif pictures == "withheld":
        rows = _grey(rows)
    return rows


def _donors(n: int) -> list[int]:
    """For each row another one, by which no two rows are served."""
    if n < 2:
        raise UserError("there is one row, so nothing can be swapped: evaluate more of them")
    order = np.random.default_rng(SEED).permutation(n)
    donors = np.empty(n, int)
    donors[order] = np.roll(order, 1)
    return donors.tolist()


def _with_text(rows: datasets.Dataset, texts: Sequence[str]) -> datasets.Dataset:
    from datasets import Dataset, concatenate_datasets

    if evidence.COLUMN in rows.column_names:
        rows = rows.remove_columns(evidence.COLUMN)
    return concatenate_datasets([rows, Dataset.from_dict({evidence.COLUMN: list(texts)})], axis=1)


def _image_columns(rows: datasets.Dataset) -> list[str]:
    return [name for name in IMAGE_COLUMNS if name in rows.column_names]


def _with_images(rows: datasets.Dataset, donors: datasets.Dataset) -> datasets.Dataset:
    from datasets import concatenate_datasets

    names = _image_columns(rows)
    other_columns = rows.remove_columns(names)
    return concatenate_datasets(
        [other_columns, donors.select_columns(names).flatten_indices()], axis=1
    )


def _grey(rows: datasets.Dataset) -> datasets.Dataset:
    """The rows with grey pictures of the same sizes."""
    from datasets import Dataset

    names = _image_columns(rows)
    stored = rows.select_columns(names)
    encoded: dict[tuple[int, int], bytes] = {}

    def grey(ref: Any) -> dict[str, Any]:
        size = row_image_size(ref)
        if size not in encoded:
            buffer = io.BytesIO()
            Image.new("RGB", size, GREY).save(buffer, "PNG")
            encoded[size] = buffer.getvalue()
        return {"bytes": encoded[size], "path": None}

    columns: dict[str, list[Any]] = {name: [] for name in names}
    for row in stored:
        pictures = [grey(ref) for ref in image_refs(row)]
        if "images" in columns:
            columns["images"].append(pictures)
        columns["image"].append(pictures[len(pictures) // 2])
    return _with_images(rows, Dataset.from_dict(columns, features=stored.features))
