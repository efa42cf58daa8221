"""Train a classifier on rows with transformers' Trainer, resumable at any moment."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import ProgressCallback, Trainer, TrainerCallback, TrainingArguments

from vlmface.clip import checkpoint
from vlmface.clip.classifier import Classifier
from vlmface.clip.model import Clip
from vlmface.errors import UserError
from vlmface.run_dir import read_log
from vlmface.train import trackers
from vlmface.train.clip import augment, losses
from vlmface.train.clip.dataset import ImageDataset, collate, select_labelled
from vlmface.train.clip.model_selection import HeldOutSet, KeepBest
from vlmface.train.clip.settings import Settings, Training
from vlmface.train.clip.validation import ClipValidation, Score, Scorer
from vlmface.train.trainer import (
    JsonlLogger,
    ProgressBarWithLoss,
    Resumable,
    num_weights,
    trainable_sha,
)
from vlmface.train.validation import selection_of
from vlmface.utils import distributed
from vlmface.utils.distributed import rank, world_size

if TYPE_CHECKING:
    import datasets

_MOMENTUM = 0.9


class ClassifierWithLoss(nn.Module):
    """A classifier with the targets of its training rows: its input is row numbers and squares,
    its output the loss. `features` are those of a frozen image tower, for all rows."""

    targets: torch.Tensor
    affects: torch.Tensor
    weights: torch.Tensor | None
    margins: torch.Tensor | None

    def __init__(
        self,
        classifier: Classifier,
        targets: torch.Tensor,
        affects: torch.Tensor,
        settings: Settings,
    ) -> None:
        super().__init__()
        self.classifier, self.settings = classifier, settings
        self.features: torch.Tensor | None = None
        labels = len(classifier.texts.space.labels)
        is_matrix = targets.ndim == 2  # of several labels, or of probabilities
        counts = (targets.sum(0) if is_matrix else targets.bincount(minlength=labels)).tolist()
        self.counts = counts
        weights = losses.label_weights(counts, settings.label_weight_power)
        margins = losses.ldam_margins(counts) if settings.margins == "ldam" else None
        for name, value in (
            ("targets", targets),
            ("affects", affects),
            ("weights", weights),
            ("margins", margins),
        ):
            self.register_buffer(name, value, persistent=False)

    def forward(self, row: torch.Tensor, squares: torch.Tensor | None = None) -> dict[str, Any]:
        settings, classifier = self.settings, self.classifier
        features = None if self.features is None else self.features[row.cpu()].to(row.device)
        if squares is not None:
            squares = augment.augment_squares(squares, settings.augment)
        out = classifier(squares, features)
        options: dict[str, Any] = {
            "scale": classifier.scale.float(),
            "smoothing": settings.label_smoothing,
            "weights": self.weights,
        }
        logits, targets = out["logits"].float(), self.targets[row]
        if classifier.texts.multi_label:
            loss = losses.multilabel_loss(logits, targets, **options)
        else:
            loss = losses.label_loss(logits, targets, margins=self.margins, **options)
        if "affect" in out:
            error = losses.affect_loss(out["affect"].float(), self.affects[row])
            if error is not None:
                loss = loss + settings.affect_weight * error
        return {"loss": loss, "logits": out["logits"]}


class ClipTrainer(Resumable, Trainer):
    """transformers' Trainer with groups of learning rates, and checkpoints that hold the trained
    weights alone. The model returns {"loss"}; `settings` configures the optimizer."""

    lr_scheduler: Any

    def __init__(self, *args: Any, settings: Training, **kwargs: Any) -> None:
        self.settings = settings
        super().__init__(*args, **kwargs)
        self.remove_callback(ProgressCallback)
        self.add_callback(ProgressBarWithLoss)
        self.trainable_sha = trainable_sha(self.model)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            groups = parameter_groups(self.model, self.settings)
            kind: Any = torch.optim.AdamW
            options: dict[str, Any] = {}
            if self.settings.optimizer == "sgd":
                kind, options = torch.optim.SGD, {"momentum": _MOMENTUM}
            self.optimizer = kind(groups, lr=self.settings.learning_rate, **options)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if self.lr_scheduler is None and self.settings.lr_scheduler == "steps":
            an_epoch = num_training_steps / self.settings.epochs
            steps = [round(epoch * an_epoch) for epoch in self.settings.milestones]
            stepped: Any = optimizer or self.optimizer
            self.lr_scheduler = torch.optim.lr_scheduler.MultiStepLR(stepped, steps)
            return self.lr_scheduler
        return super().create_scheduler(num_training_steps, optimizer)

    def _save(self, output_dir: Any = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(checkpoint.trained_state(self.model), folder / "trained.pt")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        state = torch.load(Path(resume_from_checkpoint) / "trained.pt", weights_only=True)
        checkpoint.load_trained(self.model, state, resume_from_checkpoint)


# --- groups of weights ----------------------------------------------------------------------------


def part_of(name: str) -> str:
    """Which of `settings.PARTS` a weight of a classifier belongs to."""
    name = name.removeprefix("classifier.").replace("base_model.model.", "")
    for part, beginnings in (
        ("scale", ("model.logit_scale", "model.logit_bias")),
        ("image_tower", ("model.visual.",)),
        ("text_tower", ("model.",)),
        ("prompts", ("contexts.",)),
        ("temporal", ("over_time.",)),
        ("fusion", ("fusion.",)),
        ("affect", ("affect.",)),
    ):
        if name.startswith(beginnings):
            return part
    return "head"


def depth_of(name: str, layers: int) -> int:
    """How many layers lie between a weight of the image tower and its output: 0 for what follows
    the last block, `layers` + 1 for what precedes the first."""
    if match := re.search(r"\.(?:resblocks|blocks)\.(\d+)\.", name):
        return layers - int(match[1])
    last = ("ln_post", "proj", "attn_pool", "trunk.norm", "head")
    return 0 if any(f"visual.{part}" in name for part in last) else layers + 1


def parameter_groups(module: nn.Module, settings: Training) -> list[dict[str, Any]]:
    """Groups for an optimizer: each part's rate, lower for the image tower's early layers by
    `layer_decay` a layer, and weight decay for matrices only."""
    parameters = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    block_numbers = [
        int(m[1]) for n, _ in parameters if (m := re.search(r"visual\..*blocks\.(\d+)\.", n))
    ]
    layers = max(block_numbers, default=-1) + 1
    groups: dict[tuple[float, bool], list[Any]] = {}
    for name, parameter in parameters:
        part = part_of(name)
        rate = settings.learning_rates.get(part, settings.learning_rate)
        if part == "image_tower":
            rate *= settings.layer_decay ** depth_of(name, layers)
        groups.setdefault((rate, parameter.ndim >= 2), []).append(parameter)
    return [
        {"params": params, "lr": rate, "weight_decay": settings.weight_decay if matrix else 0.0}
        for (rate, matrix), params in groups.items()
    ]


# --- a run ----------------------------------------------------------------------------------------


def train(
    classifier: Classifier,
    rows: datasets.Dataset,
    settings: Settings,
    held_out: datasets.Dataset | None = None,
    scorer: Scorer | None = None,
) -> dict[str, Any]:
    """Train a classifier in place on the rows that have a label.

    Resumes from the last complete checkpoint in `settings.output_dir`, exactly as if it had not
    been interrupted. If the image tower is frozen and pictures are not augmented, its features are
    computed once.

    Args:
        classifier: to train.
        rows: their `images`, or their `image`, are the input.
        settings: of the run.
        held_out: validation rows, to measure on every `settings.eval_steps`, and to select an epoch
            on if `settings.checkpoint_selection` is best: the weights of the best epoch are kept.
        scorer: of validation rows a function of predictions about them: {metric: value}, which are
            measured in addition to the loss.

    Returns:
        What `sft.train` returns, with "labels": {label: rows} and, if an epoch was selected,
        "selected": {"step", "epoch", "uar"}.

    Raises:
        UserError: no row has a label, or `held_out` is missing.
    """
    if settings.uses_validation_rows and held_out is None:
        raise UserError("there are no held-out rows to measure or to choose an epoch on")
    rows, targets, affects, skipped = select_labelled(rows, classifier.texts, settings.soft_labels)
    data: Any = ImageDataset(rows, classifier.clip, settings.cache_gib)
    model = ClassifierWithLoss(classifier, targets, affects, settings)
    if settings.image_tower == "frozen" and settings.augment == "none":
        model.features = all_features(classifier.clip, data, settings.eval_batch_size)
        data = RowNumbers(len(data))
    if settings.gradient_checkpointing:
        classifier.model.set_grad_checkpointing()
    measured = epochs = None
    if settings.eval_steps is not None or settings.checkpoint_selection == "best":
        assert held_out is not None
        labelled, _, _, _ = select_labelled(held_out, classifier.texts)
        validation = HeldOutSet.from_rows(
            classifier, labelled, settings.eval_batch_size, settings.cache_gib
        )
        epochs = validation if settings.checkpoint_selection == "best" else None
        measured = validation_of(settings, validation, scorer and scorer(labelled))
    labels = classifier.texts.space.labels
    return train_on(model, data, settings, epochs, measured) | {
        "n": len(rows),
        "skipped": skipped,
        "labels": {label: round(n, 3) for label, n in zip(labels, model.counts, strict=True)},
    }


def validation_of(
    settings: Settings, held_out: HeldOutSet, score: Score | None
) -> ClipValidation | None:
    """What is measured every `settings.eval_steps` on held-out rows; None for nothing."""
    if settings.eval_steps is None:
        return None
    steps, selection = settings.validation_steps, selection_of(settings)
    return ClipValidation(steps, selection=selection, held_out=held_out, score=score)


def train_on(
    model: ClassifierWithLoss,
    data: Any,
    settings: Settings,
    held_out: HeldOutSet | None,
    validation: ClipValidation | None = None,
) -> dict[str, Any]:
    """`fit`, and, if there are held-out rows, the weights of the epoch that is best on them."""
    keep_best = None if held_out is None else KeepBest(Path(settings.output_dir), held_out)
    if keep_best:
        distributed.on_main(keep_best.check)
    results = fit(
        model,
        data,
        settings,
        callbacks=[keep_best] if keep_best else [],
        validation=validation,
    )
    if keep_best:
        distributed.wait_for_everyone()  # the best weights are on the disk
        keep_best.restore()
        if distributed.is_main():
            results["selected"] = keep_best.best()
    model.classifier.reset_cache()
    return results


def fit(
    model: nn.Module,
    data: Any,
    settings: Training,
    *,
    callbacks: Sequence[TrainerCallback] = (),
    validation: ClipValidation | None = None,
) -> dict[str, Any]:
    """Train a module that returns {"loss"} for batches of `data`; see `train`."""
    run_dir = Path(settings.output_dir)
    gpu = torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(run_dir / "checkpoints"),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant" if settings.lr_scheduler == "steps" else settings.lr_scheduler,
        warmup_steps=settings.warmup_steps,
        max_grad_norm=settings.max_grad_norm,
        bf16=distributed.mixed_precision(),
        use_cpu=not gpu,
        remove_unused_columns=False,
        dataloader_num_workers=0 if isinstance(data, RowNumbers) else settings.dataloader_workers,
        dataloader_pin_memory=gpu,
        logging_steps=settings.logging_steps,
        save_strategy="steps",
        save_steps=settings.save_steps,
        logging_nan_inf_filter=False,
        seed=settings.seed,
        **trackers.arguments(settings),
        ddp_timeout=int(distributed.PROCESS_TIMEOUT.total_seconds()),
        label_names=[],
    )
    with trackers.environment(settings):
        trainer = ClipTrainer(
            model=model,
            args=arguments,
            train_dataset=data,
            data_collator=collate,
            callbacks=[JsonlLogger(run_dir / "log.jsonl"), *callbacks],
            settings=settings,
        )
        trainer.validation = validation
        trainer.train_to_end(run_dir)
    lines = read_log(run_dir)
    losses_of_steps = [line["loss"] for line in lines if "loss" in line]
    seconds = lines[-1]["elapsed_s"] if lines else 0.0
    return {
        "steps": trainer.state.global_step,
        "loss_first": losses_of_steps[0] if lines else None,
        "loss_last": losses_of_steps[-1] if lines else None,
        "wall_s": seconds,
        "samples_per_s": len(data) * trainer.state.epoch / seconds if seconds else None,
        "trainable": sum(num_weights(p) for p in model.parameters() if p.requires_grad),
        "trainable_sha": trainer.trainable_sha,
        "parameters": sum(num_weights(p) for p in model.parameters()),
        **trainer.validation_results(),
    }


class RowNumbers(torch.utils.data.Dataset[dict[str, int]]):
    """Row numbers alone, where features are all that is needed."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> dict[str, int]:
        return {"row": index}


@torch.no_grad()
def all_features(clip: Clip, data: ImageDataset, batch_size: int) -> torch.Tensor:
    """The image tower's features of all rows: (n, pictures, width), not normalised, float32, on the
    CPU. Several processes, all of which must call it, share the work."""
    from accelerate.utils import gather
    from tqdm import tqdm

    clip.model.eval()
    batches = []
    world, last = world_size(), len(data) - 1
    starts = range(0, len(data), batch_size * world)
    for start in tqdm(starts, "image features", unit="batch", disable=not distributed.is_main()):
        # Processes take equally many rows; beyond the last one, that one again.
        each = min(batch_size, -(-(len(data) - start) // world))
        part = [min(start + rank() * each + i, last) for i in range(each)]
        squares = collate([data[i] for i in part])["squares"]
        n, pictures = squares.shape[:2]
        features = clip.image_features(squares.flatten(0, 1), normalize=False).float()
        features = features.unflatten(0, (n, pictures))
        batches.append((gather(features) if world > 1 else features).cpu())
    return torch.cat(batches)[: len(data)]
