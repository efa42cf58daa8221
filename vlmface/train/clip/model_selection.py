"""Selection of an epoch: the last, or the best on held-out rows."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from vlmface.clip import checkpoint
from vlmface.clip.classifier import Classifier
from vlmface.errors import UserError
from vlmface.run_dir import last_checkpoint, step_of
from vlmface.train.clip.dataset import ImageDataset, collate, select_labelled
from vlmface.utils.files import atomic_write

if TYPE_CHECKING:
    import datasets

LOG = "validation.jsonl"  # in a run: {"step", "epoch", "uar"} of each epoch
BEST = "best.pt"  # next to its checkpoints: {"step", "weights"}
_LEAST = 1e-6  # of an epoch


class HeldOutSet:
    """Held-out rows that a classifier is measured on after each epoch. The features of a frozen
    image tower are computed once."""

    def __init__(
        self,
        classifier: Classifier,
        targets: torch.Tensor,
        batch_size: int,
        *,
        data: ImageDataset | None = None,
        features: torch.Tensor | None = None,
    ) -> None:
        """`targets` as `select_labelled` gives them; of the rows the pictures or, of a frozen image
        tower, `features` (n, pictures, width)."""
        self.classifier, self.targets, self.batch_size = classifier, targets, batch_size
        self.data, self.features = data, features

    @classmethod
    def from_rows(
        cls, classifier: Classifier, rows: datasets.Dataset, batch_size: int, cache_gib: float
    ) -> HeldOutSet:
        """Those of `rows` that have a label."""
        rows, targets, _, _ = select_labelled(rows, classifier.texts)
        data = ImageDataset(rows, classifier.clip, cache_gib)
        return cls(classifier, targets, batch_size, data=data)

    def shares(self) -> torch.Tensor:
        """Probabilities (n, labels). The classifier is left training if it was."""
        return self.answers()[0]

    @torch.no_grad()
    def answers(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(probabilities (n, labels); valence and arousal (n, 2), or None). The classifier is left
        training if it was."""
        classifier, training = self.classifier, self.classifier.training
        classifier.eval()
        image_features, probabilities, affects = [], [], []
        for start in range(0, len(self.targets), self.batch_size):
            part = slice(start, min(start + self.batch_size, len(self.targets)))
            if self.features is not None:
                features = self.features[part].to(classifier.clip.device)
            else:
                assert self.data is not None
                squares = collate([self.data[i] for i in range(part.start, part.stop)])["squares"]
                features = classifier.image_features(squares)
            image_features.append(features)
            shares, affect = classifier.answer(features=features)
            probabilities.append(shares)
            affects += [] if affect is None else [affect]
            if classifier.shape.image_tower != "frozen":
                image_features.clear()
        if image_features and self.features is None:
            self.features = torch.cat(image_features).cpu()
        classifier.train(training)
        return torch.cat(probabilities), torch.cat(affects) if affects else None

    def uar(self) -> float:
        """Mean recall over the labels that occur (0..1); where a row may have several labels, the
        mean F1 over them at probability 1/2."""
        return uar_of(self.shares(), self.targets)


def uar_of(shares: torch.Tensor, targets: torch.Tensor) -> float:
    """`Held.uar` of probabilities (n, labels)."""
    if targets.ndim == 2:
        picked, true = shares > 0.5, targets > 0
        hits = (picked & true).sum(0).double()
        f1 = 2 * hits / (picked.sum(0) + true.sum(0)).clamp(min=1)
        return float(f1[true.any(0)].mean())
    right = (shares.argmax(-1) == targets).double()
    return float(torch.stack([right[targets == label].mean() for label in targets.unique()]).mean())


class KeepBest(TrainerCallback):
    """Measures each epoch on held-out rows and keeps the weights of the best one, the first in case
    of ties. A resumed run discards measurements after its checkpoint, so that it keeps the same
    epoch as an uninterrupted run."""

    def __init__(self, run_dir: Path, held: HeldOutSet) -> None:
        self.log, self.best_path, self.held_out = (
            run_dir / LOG,
            run_dir / "checkpoints" / BEST,
            held,
        )
        self.folder = run_dir
        self.measured: list[dict[str, Any]] = []
        self.epochs = 0

    def check(self) -> None:
        """Before training: raise UserError if the weights of the best epoch that a resumed run has
        measured are gone."""
        resumed_from = last_checkpoint(self.folder)
        if resumed_from is None or not self._measured(step_of(resumed_from)):
            return
        try:
            torch.load(self.best_path, weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{self.best_path}, the best weights so far, cannot be read ({reason}): restore "
                "it, or start again with --overwrite"
            ) from error

    def _measured(self, step: int) -> list[dict[str, Any]]:
        """The lines of the epochs that ended up to a step."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line for text in lines if (line := json.loads(text))["step"] <= step]

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.measured = self._measured(state.global_step)
        self.epochs = len(self.measured)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # At the end of a step, and not of an epoch: a checkpoint of this step is saved after it.
        is_finished = state.epoch + _LEAST >= self.epochs + 1
        if (
            not (is_finished or state.global_step >= state.max_steps)
            or not state.is_world_process_zero
        ):
            return
        self.epochs += 1
        line = {
            "step": state.global_step,
            "epoch": round(state.epoch, 4),
            "uar": self.held_out.uar(),
        }
        if line["uar"] > max((earlier["uar"] for earlier in self.measured), default=-1.0):
            content = io.BytesIO()
            weights = checkpoint.trained_state(self.held_out.classifier)
            torch.save({"step": state.global_step, "weights": weights}, content)
            atomic_write(self.best_path, content.getvalue())
        self.measured.append(line)
        atomic_write(self.log, "".join(json.dumps(earlier) + "\n" for earlier in self.measured))

    def best(self) -> dict[str, Any]:
        """The line of the epoch that is kept."""
        return max(self.measured, key=lambda line: line["uar"])

    def restore(self) -> None:
        """Give the classifier the weights that are kept."""
        stored = torch.load(self.best_path, weights_only=True)
        checkpoint.load_trained(self.held_out.classifier, stored["weights"], str(self.best_path))
        self.held_out.classifier.reset_cache()
