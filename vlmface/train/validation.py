"""Validation while a model trains: the loss, generated answers, early stopping, and the checkpoint
that is kept.

What has been measured is in the trainer's `log_history`, which is part of every checkpoint. Early
stopping and the best checkpoint are functions of it, so a resumed run decides as an uninterrupted
one does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlmface import benchmarks
from vlmface.encode import IGNORED
from vlmface.errors import UserError, did_you_mean
from vlmface.metrics.metric import Metric

if TYPE_CHECKING:
    import datasets

LOSS = "loss"  # as metric_for_best_model
PREFIX = "eval_"  # of what is measured, in log.jsonl
_NOT_SELECTABLE = {"answers", "calibration"}  # kinds of metrics


# --- settings -------------------------------------------------------------------------------------


def check(settings: Any) -> None:
    """Refuse settings of validation that contradict each other or the protocol.

    Args:
        settings: With the fields of `SelectionSettings`, `DatasetSettings` and the benchmark.

    Raises:
        UserError: Names the field, its value and what to do.
    """
    for name, steps in settings.validation_steps.items():
        if steps % settings.logging_steps:
            raise UserError(
                f"{name} is {steps}, but must be a multiple of logging_steps "
                f"({settings.logging_steps}): a checkpoint may be saved at each evaluation, and "
                "the log of a resumed run would differ"
            )
    _check_rows(settings)
    metric = settings.metric_for_best_model
    if not settings.validation_steps or metric is None:
        return
    measures_loss = hasattr(settings, "eval_steps")
    metric_names = [*([LOSS] if measures_loss else []), *selectable_metrics(settings.benchmark)]
    if metric not in metric_names:
        raise UserError(
            f"metric_for_best_model is {metric!r}, but this recipe measures "
            f"{', '.join(metric_names)} on "
            f"benchmark {settings.benchmark}{did_you_mean(metric, metric_names)}"
        )
    generates = hasattr(settings, "eval_generate_steps")
    needed = "eval_generate_steps" if generates and metric != LOSS else "eval_steps"
    if needed not in settings.validation_steps:
        raise UserError(
            f"metric_for_best_model is {metric}, which is measured every {needed}: set {needed}"
        )


def _check_rows(settings: Any) -> None:
    """Raise UserError if the settings do not name one part to validate on, or name test rows."""
    split, share = settings.validation_split, settings.validation_share
    if split is not None and share is not None:
        raise UserError(
            f"validation_split is {split} and validation_share {share}: set one of them"
        )
    if split in (settings.dataset_split, "test") or is_test_split(settings, split):
        raise UserError(
            f"validation_split is {split}, but selection on test or training rows is biased: name "
            "a validation split, or set validation_share"
        )


def is_test_split(settings: Any, split: str | None) -> bool:
    """Whether a split of the training data set is what the benchmark tests on."""
    benchmark = benchmarks.load_benchmark(settings.benchmark)
    return (benchmark.dataset, benchmark.split) == (settings.dataset, split)


def check_steps(settings: Any, steps: int) -> None:
    """Refuse a run that ends before its first evaluation.

    Args:
        settings: As in `check`.
        steps: Optimizer steps of the run.

    Raises:
        UserError: It does.
    """
    for name, every in settings.validation_steps.items():
        if every > steps:
            raise UserError(
                f"{name} is {every}, but the run has {steps} step(s), so nothing would be "
                f"measured: lower {name}"
            )


def selectable_metrics(benchmark_name: str) -> dict[str, Metric]:
    """{name: metric} of what a checkpoint can be selected by.

    Args:
        benchmark_name: Of the settings.

    Returns:
        The metrics of blocks that the benchmark scores.
    """
    benchmark = benchmarks.load_benchmark(benchmark_name)
    kinds = benchmark.kinds - _NOT_SELECTABLE
    return {
        metric.name: metric
        for metric in benchmark.all_metrics
        if kinds.intersection(metric.applies_to)
    }


# --- the best checkpoint --------------------------------------------------------------------------

# What the trainer has logged: {"step", ...} of each time.
History = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Selection:
    """Which checkpoint is the best, and when to stop.

    Args:
        metric: Its name: "loss", or a metric of the benchmark.
        higher_is_better: Its direction.
        patience: Evaluations without a better one after which training stops; None: never.
    """

    metric: str
    higher_is_better: bool
    patience: int | None = None

    @property
    def key(self) -> str:
        """The metric's key in the log."""
        return PREFIX + self.metric

    def best(self, history: History) -> Mapping[str, Any] | None:
        """The entry of the best evaluation, the first of several; None if there is none."""
        measured = self._measured(history)
        choose = max if self.higher_is_better else min
        return choose(measured, key=lambda entry: entry[self.key], default=None)

    def stops(self, history: History) -> bool:
        """Whether the last `patience` evaluations were not better than the best before them."""
        best = self.best(history)
        if self.patience is None or best is None:
            return False
        later = [entry for entry in self._measured(history) if entry["step"] > best["step"]]
        return len(later) >= self.patience

    def _measured(self, history: History) -> list[Mapping[str, Any]]:
        return [entry for entry in history if self.key in entry]


def selection_of(settings: Any) -> Selection | None:
    """The selection that checked settings ask for."""
    metric = settings.metric_for_best_model
    if metric is None:
        return None
    is_gain = metric != LOSS and selectable_metrics(settings.benchmark)[metric].higher_is_better
    return Selection(metric, is_gain, settings.early_stopping_patience)


# --- what is measured -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Validation:
    """What is measured while a model trains.

    Args:
        steps: {"eval_steps", "eval_generate_steps": steps between two measurements}.
        rows: Encoded rows for the loss; None if it is not measured.
        generate: Returns {metric: value} of a model's answers about validation rows. Its second
            argument is whether the processes share the rows; without, each answers all of them.
        selection: Of the best checkpoint; None: the last one is kept.
        batch_size: Rows of a batch of the loss, in each process.
    """

    steps: Mapping[str, int]
    rows: datasets.Dataset | None = None
    generate: Callable[[Any, bool], dict[str, float]] | None = None
    selection: Selection | None = None
    batch_size: int = 16

    def is_due(self, step: int) -> bool:
        """Whether something is measured after an optimizer step."""
        return any(step % every == 0 for every in self.steps.values())

    def measure(self, trainer: Any) -> dict[str, float]:
        """Measure what is due after the trainer's current step. All processes must call it.

        Args:
            trainer: Its model is left in training mode.

        Returns:
            {"eval_loss", "eval_METRIC": value}.

        Raises:
            UserError: The loss is not finite, or the metric of the selection is not defined.
        """
        import torch

        step, measured = trainer.state.global_step, {}
        trainer.model.eval()
        with torch.no_grad():
            if self.rows is not None and step % self.steps["eval_steps"] == 0:
                measured[PREFIX + LOSS] = validation_loss(trainer, self.rows, self.batch_size)
            if self.generate is not None and step % self.steps["eval_generate_steps"] == 0:
                scores = generated_scores(trainer, self.generate)
                measured |= {PREFIX + name: value for name, value in scores.items()}
                self._check_scores(measured)
        trainer.model.train()
        return measured

    def _check_scores(self, measured: Mapping[str, float]) -> None:
        selection = self.selection
        if selection and selection.metric != LOSS and selection.key not in measured:
            raise UserError(
                f"metric_for_best_model is {selection.metric}, which is not defined on the "
                "validation rows, where the labels that it needs do not occur: use more of them "
                "(n_generate, n_validation), or another metric"
            )


def validation_loss(trainer: Any, rows: datasets.Dataset, batch_size: int) -> float:
    """The mean loss over the supervised tokens of all rows. All processes must call it.

    Args:
        trainer: A `SupervisedTrainer`, its model in evaluation mode.
        rows: Encoded rows.
        batch_size: Rows of a batch in each process.

    Raises:
        UserError: It is not finite.
    """
    import numpy as np
    import torch

    world, rank = trainer.args.world_size, trainer.args.process_index
    order = np.argsort(rows["length"][:], kind="stable")  # little padding
    device = trainer.accelerator.device
    total = torch.zeros(2, dtype=torch.float64)
    for start in range(0, len(order), batch_size * world):
        first = start + rank * batch_size
        index = order[first : first + batch_size]
        # All processes make as many passes: a sharded model needs all of them in each.
        batch = list(rows.select(index if len(index) else order[:1]))
        inputs = trainer._prepare_inputs(trainer.data_collator(batch))
        tokens = float((inputs["labels"] != IGNORED).sum()) if len(index) else 0.0
        with trainer.compute_loss_context_manager():
            loss = float(trainer.compute_loss(trainer.model, inputs))
        total += torch.tensor([loss * tokens, tokens], dtype=torch.float64)
    summed = trainer.accelerator.gather(total.to(device)).view(-1, 2).sum(0)
    mean = float(summed[0] / summed[1])
    if not np.isfinite(mean):
        raise UserError(
            f"the validation loss is {mean} at step {trainer.state.global_step}: lower "
            "learning_rate, and start again with --overwrite; earlier checkpoints are kept"
        )
    return mean


def generated_scores(
    trainer: Any, generate: Callable[[Any, bool], dict[str, float]]
) -> dict[str, float]:
    """`Validation.generate` of the trainer's model, with the precision of training."""
    from trl.models import unwrap_model_for_generation

    with (
        trainer.accelerator.autocast(),
        unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator) as model,
    ):
        # FSDP gathers weights in every forward pass, in which all processes must take part.
        return generate(model, not trainer.is_fsdp_enabled)
