"""Validation while a CLIP trains: its loss and metrics on held-out rows, every few steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from vlmface.errors import UserError
from vlmface.infer.clip import predictions_of
from vlmface.infer.prediction import Prediction
from vlmface.train.clip.model_selection import HeldOutSet
from vlmface.train.validation import LOSS, PREFIX, Validation
from vlmface.utils import distributed

if TYPE_CHECKING:
    import datasets

_LEAST = 1e-12  # smaller probabilities are raised to it before the logarithm
Score = Callable[[Sequence[Prediction]], dict[str, float]]
Scorer = Callable[["datasets.Dataset"], Score]


@dataclass(frozen=True)
class ClipValidation(Validation):
    """What is measured while a CLIP trains: `eval_loss`, and the metrics of `score`.

    Args:
        held_out: The classifier that is trained, and the validation rows that have a label.
        score: Returns {metric: value} of the predictions about these rows; None: the loss alone.
    """

    held_out: HeldOutSet | None = None
    score: Score | None = None

    def measure(self, trainer: Any) -> dict[str, float]:
        """Measure; the main process does it for all, which must call it.

        Args:
            trainer: Its model is left in training mode.

        Returns:
            {"eval_loss", "eval_METRIC": value}.

        Raises:
            UserError: The loss is not finite, or the metric of the selection is not defined.
        """
        measured = distributed.on_main(lambda: self._measured(trainer.state.global_step))
        self._check_scores(measured)
        return measured

    def _measured(self, step: int) -> dict[str, float]:
        held_out = self.held_out
        assert held_out is not None
        shares, affects = held_out.answers()
        loss = loss_of(shares, held_out.targets)
        if loss != loss:
            raise UserError(
                f"the validation loss is {loss} at step {step}: lower learning_rate, and start "
                "again with --overwrite; earlier checkpoints are kept"
            )
        measured = {PREFIX + LOSS: loss}
        if self.score is not None:
            predictions = predictions_of(held_out.classifier.texts, shares, affects)
            scores = self.score(predictions)
            measured |= {PREFIX + name: value for name, value in scores.items()}
        return measured


def loss_of(shares: torch.Tensor, targets: torch.Tensor) -> float:
    """The mean cross-entropy of probabilities, in nats; of several labels a row the mean of the
    binary ones.

    Args:
        shares: (n, labels).
        targets: As `select_labelled` returns them: (n,) or (n, labels).
    """
    shares = shares.double()
    if targets.ndim == 2:
        wanted = torch.where(targets > 0.5, shares, 1 - shares)
    else:
        wanted = shares.gather(1, targets[:, None])
    return float(-wanted.clamp(min=_LEAST).log().mean())
