"""Contrastive training of both towers on captions, and linear probes of their features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from torch import nn
from transformers import set_seed

from vlmface import data, facs
from vlmface.clip.classifier import add_lora, tower_of
from vlmface.clip.model import Clip, weights_sha
from vlmface.errors import UserError
from vlmface.label_texts import lengths
from vlmface.schema import FaceSample
from vlmface.train import checks
from vlmface.train.clip import augment, captions, losses
from vlmface.train.clip.dataset import ImageDataset
from vlmface.train.clip.settings import Training
from vlmface.train.clip.trainer import all_features, fit
from vlmface.utils.distributed import is_main, rank, world_size
from vlmface.utils.ranges import Count, Positive, Range, Unused

if TYPE_CHECKING:
    import datasets

_MAX_SCALE = 100.0  # of the logits, as in CLIP


@dataclass(frozen=True, kw_only=True)
class Settings(Training):
    """One run of recipes/clip_captions.py.

    Args:
        base_model: untrained, NAME/TAG of open_clip, hf-hub:OWNER/NAME, or a folder
        probe_data: data set of the linear probes
        probe_root: its folder; null: it is rendered
        probe_splits: two splits: probes are trained on the first and tested on the second
        n_probe: rows of each; null: the whole split
        views: view of each image, such as [{size: 224, view: face}]; null: the image
        says: what captions contain: attributes, aus, emotion
        captions_per_face: in other words and order; one is drawn at each step
        image_tower: how the image tower is trained
        text_tower: how the text tower is trained
        batch_size: pairs per process and step; all processes' pairs are contrasted
        saved_as: float16, or float32: twice the file, and what training computes with
    """

    probe_data: str
    probe_root: str | None = None
    probe_splits: list[str] = field(default_factory=lambda: ["train", "test"])
    n_probe: Count | None = None
    views: list[dict[str, Any]] | None = None
    says: list[str] = field(default_factory=lambda: ["attributes", "aus"])
    captions_per_face: Count = 4
    image_tower: Literal["frozen", "lora", "full"] = "full"
    text_tower: Literal["frozen", "lora", "full"] = "full"
    epochs: Positive = 1
    batch_size: Annotated[int, Range(min=2)] = 128  # a picture is compared with the others
    learning_rate: Positive = 1e-5
    saved_as: Literal["float32", "float16"] = "float32"

    @property
    def policies(self) -> tuple[str, str]:
        return self.image_tower, self.text_tower

    @property
    def trained_parts(self) -> set[str]:
        towers = {
            "image_tower": self.image_tower != "frozen",
            "text_tower": self.text_tower != "frozen",
        }
        return {part for part, does in towers.items() if does} | {"scale"}

    def check(self) -> None:
        super().check()
        captions.check_contents(self.says)
        if self.image_tower == self.text_tower == "frozen":
            raise UserError(
                "nothing would be trained but a scale: image_tower and text_tower are frozen; "
                "set image_tower: lora, say"
            )
        if len(self.probe_splits) != 2 or self.probe_splits[0] == self.probe_splits[1]:
            raise UserError(
                f"probe_splits is {self.probe_splits}, but must be two splits: one that probes are "
                "trained on, and another that they are measured on"
            )

    def unused(self) -> Iterator[Unused]:
        for field_ in super().unused():
            # Both towers run at every step here.
            if field_.name != "dataloader_workers":
                yield field_
        if not checks.reads_root(self.dataset):
            yield Unused("dataset_root", f"{self.dataset} is not read from a folder", ("dataset",))
        if not checks.reads_root(self.probe_data):
            why = f"{self.probe_data} is not read from a folder"
            yield Unused("probe_root", why, ("probe_data",))


def identity(
    clip: Clip, loaded: datasets.Dataset, probed: Sequence[datasets.Dataset]
) -> dict[str, Any]:
    """What must be the same when a run is resumed, besides its settings: the data as loaded, the
    rows of the probes, the base's weights."""
    return {
        "data": data.fingerprint(loaded),
        "rows": len(loaded),
        "probe_data": [data.fingerprint(rows, pictures=False) for rows in probed],
        "base_weights": weights_sha(clip),
    }


class ContrastivePairs(nn.Module):
    """A CLIP with the captions of its training rows: a batch is row numbers and squares, out comes
    the contrastive loss, over the faces of all processes."""

    def __init__(
        self, clip: Clip, written: Sequence[Sequence[int]], texts: Sequence[str], settings: Settings
    ) -> None:
        super().__init__()
        self.clip, self.written, self.settings = clip, written, settings
        self.model = clip.model
        self.tokens = clip.tokens(texts)
        self.adapter = add_lora(clip, settings)
        trained = {
            tower for tower in ("image_tower", "text_tower") if getattr(settings, tower) == "full"
        }
        for name, parameter in self.model.named_parameters():
            if "lora_" not in name:
                parameter.requires_grad_(tower_of(name) in trained or name == "logit_scale")

    def forward(self, row: torch.Tensor, squares: torch.Tensor) -> dict[str, torch.Tensor]:
        # One caption a face and step, drawn from torch's state, which a resumed run restores.
        # Every process draws for the faces of all, so that theirs are those of one process.
        numbers_by_face = [self.written[i] for i in row.tolist()]
        draws = torch.randint(1 << 30, (world_size(), len(numbers_by_face)))[rank()].tolist()
        captions_read = torch.tensor(
            [
                caption_numbers[d % len(caption_numbers)]
                for caption_numbers, d in zip(numbers_by_face, draws, strict=True)
            ]
        )
        squares = augment.augment_squares(squares, self.settings.augment)
        images = self.clip.image_features(squares[:, 0])
        # What is said of several faces is read once.
        distinct, inverse = captions_read.unique(return_inverse=True)
        texts = self.clip.text_features(self.tokens[distinct])[inverse.to(images.device)]
        images, texts, groups = losses.of_all_processes(
            images, texts, captions_read.to(images.device)
        )
        scale = self.model.logit_scale.exp().clamp(max=_MAX_SCALE).float()
        return {"loss": losses.caption_loss(images.float(), texts.float(), groups, scale)}


def train(clip: Clip, rows: datasets.Dataset, settings: Settings) -> dict[str, Any]:
    """Train `clip` in place on captions of the rows; returns what `clip.train.train` does, with
    "captions", how many there are, and "skipped": rows without the requested annotations
    ("no_caption"), and captions that the model cannot read whole ("too_long")."""
    captions.check_contents(settings.says)
    numbers: dict[str, int] = {}
    written: list[list[int]] = []
    with_caption: list[int] = []
    skipped = {"no_caption": 0, "too_long": 0}
    hidden = [name for name in ("image", "frames") if name in rows.column_names]
    for index, row in enumerate(rows.remove_columns(hidden)):
        sample = FaceSample.from_row(row)
        seeds = range(settings.captions_per_face)
        face_captions = sorted(
            {t for seed in seeds if (t := captions.write_caption(sample, settings.says, seed))}
        )
        fits = [n <= clip.tokenizer.context_length for n in lengths(clip.tokenizer, face_captions)]
        skipped["too_long"] += fits.count(False)
        face_captions = [text for text, fit_ in zip(face_captions, fits, strict=True) if fit_]
        if not face_captions:
            skipped["no_caption"] += 1
            continue
        with_caption.append(index)
        written.append([numbers.setdefault(text, len(numbers)) for text in face_captions])
    if not with_caption:
        raise UserError(
            f"none of the {len(rows)} rows gives a caption of {', '.join(settings.says)}: "
            f"{skipped}; use a data set with these annotations, or shorten what is said"
        )
    if len(with_caption) < len(rows):
        rows = rows.select(with_caption)
    checks.warmup(settings, checks.steps(settings, len(rows)))
    set_seed(settings.seed)  # LoRA draws its first weights
    model = ContrastivePairs(clip, written, list(numbers), settings)
    if settings.gradient_checkpointing:
        clip.model.set_grad_checkpointing()
    data = ImageDataset(rows, clip, settings.cache_gib)
    training = fit(model, data, settings)
    for adapter in model.adapter:
        adapter.merge_and_unload()
    clip.model.eval()
    return training | {"n": len(rows), "captions": len(numbers), "skipped": skipped}


# --- linear probes --------------------------------------------------------------------------------

PROBED = ("gender", "age_group", "race", "emotion")


def probe(
    clip: Clip, train_rows: datasets.Dataset, test_rows: datasets.Dataset, batch_size: int = 100
) -> dict[str, Any]:
    """What a linear probe on frozen features reads: {attribute: {"accuracy", "n", "majority"}} of
    what is annotated, and {"au": {"f1_macro", "per_au"}}, trained on one set of rows and measured
    on another.

    Several processes, all of which must call it, share the features. The probes are the main
    process's, and {} what the others return."""
    features = [normalised_features(clip, rows, batch_size) for rows in (train_rows, test_rows)]
    if not is_main():
        return {}
    samples = [_samples(rows) for rows in (train_rows, test_rows)]
    scores: dict[str, Any] = {}
    for name in PROBED:
        labels = sorted({v for s in samples[0] if (v := getattr(s, name)) is not None})
        if len(labels) < 2:
            continue
        sides = []
        for side, side_samples in zip(features, samples, strict=True):
            annotated = [i for i, s in enumerate(side_samples) if getattr(s, name) in labels]
            truth = torch.tensor([labels.index(getattr(side_samples[i], name)) for i in annotated])
            sides.append((side[annotated], truth.to(side.device)))
        (x, y), (test_x, test_y) = sides
        if not len(test_y):
            continue
        predicted = logistic_regression(
            x, nn.functional.one_hot(y, len(labels)).float(), test_x
        ).argmax(-1)
        scores[name] = {
            "accuracy": round(float((predicted == test_y).float().mean()), 4),
            "majority": round(float(torch.bincount(test_y).max() / len(test_y)), 4),
            "n": len(test_y),
        }
    units = _common_units(samples)
    if units:
        truths = [
            torch.tensor([[float(u in s.present_aus()) for u in units] for s in side])
            for side in samples
        ]
        predicted = (
            logistic_regression(
                features[0], truths[0].to(clip.device), features[1], multi_label=True
            )
            > 0
        )
        true = truths[1].to(clip.device) > 0
        hits = (predicted & true).sum(0).double()
        f1 = (2 * hits / (predicted.sum(0) + true.sum(0)).clamp(min=1)).tolist()
        per_au = {facs.name(u): round(v, 4) for u, v in zip(units, f1, strict=True)}
        scores["au"] = {"f1_macro": round(sum(f1) / len(f1), 4), "per_au": per_au}
    return scores


def _samples(rows: datasets.Dataset) -> list[FaceSample]:
    return [FaceSample.from_row(row) for row in rows.remove_columns(["image", "frames"])]


def _common_units(samples: Sequence[Sequence[FaceSample]]) -> list[int]:
    """AUs that are annotated everywhere and seen in both sets."""
    everyone = [s for side in samples for s in side]
    coded = set.intersection(*(set(s.annotated_aus()) for s in everyone))
    return sorted(
        u for u in coded if all(any(u in s.present_aus() for s in side) for side in samples)
    )


def normalised_features(clip: Clip, rows: datasets.Dataset, batch_size: int) -> torch.Tensor:
    """Normalised features (n, width) of the rows' images, on the model's device."""
    features = all_features(clip, ImageDataset(rows, clip, 0), batch_size)[:, 0].to(clip.device)
    return nn.functional.normalize(features, dim=-1)


def logistic_regression(
    x: torch.Tensor,
    y: torch.Tensor,
    test_x: torch.Tensor,
    *,
    multi_label: bool = False,
    penalty: float = 1e-3,
) -> torch.Tensor:
    """Scores (m, labels) of `test_x` (m, width) by a logistic regression on `x` (n, width), `y` (n,
    labels) of 0 and 1: softmax, or (`multi_label`) one sigmoid each. Features are standardised on
    `x`; `penalty` times half the squared weights is added to the mean loss. Solved by L-BFGS."""
    x, y, test_x = x.double(), y.double(), test_x.double()
    mean, spread = x.mean(0), x.std(0).clamp(min=1e-8)
    x, test_x = (x - mean) / spread, (test_x - mean) / spread
    weights = x.new_zeros(x.shape[1], y.shape[1]).requires_grad_()
    bias = x.new_zeros(y.shape[1]).requires_grad_()
    solver = torch.optim.LBFGS(
        [weights, bias],
        max_iter=500,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-7,
        tolerance_change=1e-11,
    )
    measure = (
        nn.functional.binary_cross_entropy_with_logits
        if multi_label
        else nn.functional.cross_entropy
    )

    def closure() -> torch.Tensor:
        solver.zero_grad()
        loss = measure(x @ weights + bias, y)
        loss = loss * (y.shape[1] if multi_label else 1) + penalty / 2 * weights.square().sum()
        loss.backward()
        return loss

    solver.step(closure)
    with torch.no_grad():
        return test_x @ weights + bias
