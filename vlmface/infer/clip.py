"""A CLIP that answers as `LocalModel` does: one label a picture, and its probabilities.

What it writes is the likeliest label, so that its answers are read, scored and shown like any
other's.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmface import manifest
from vlmface.data import crops
from vlmface.errors import UserError
from vlmface.infer.local import GREY, LabelScores, Prediction
from vlmface.schema import AFFECT
from vlmface.utils import config

if TYPE_CHECKING:
    import torch

    from vlmface.clip.classifier import Classifier, Shape
    from vlmface.label_texts import LabelTexts

BATCH_SIZE = 64
WEIGHTS = "trained.safetensors"  # of a run: what was trained, over its base
_LEAST = 1e-12  # probability whose logarithm is still told apart


class ClipModel:
    """A classifier with its texts; `ClipModel.load` makes one. A row is one RGB picture, or the
    list of its views and frames."""

    pads = False  # every picture becomes a square of one size

    def __init__(self, classifier: Classifier, views: crops.Views = ()) -> None:
        self.classifier = classifier
        self.prompt: LabelTexts = classifier.texts
        self.prompts = [self.prompt]
        self.manifest: manifest.Manifest | None = None
        self.views, self.frames = views, classifier.shape.frames
        self._priors: dict[int, dict[str, float]] = {}

    @classmethod
    def load(
        cls,
        run_or_model: str | Path,
        *,
        prompt: Any = None,
        device: str | None = None,
        dtype: Any = None,
        merge: bool = True,
    ) -> ClipModel:
        """Load a run folder, or a bare CLIP (see `vlmface.clip.model.is_clip`) with the texts
        `prompt` for zero-shot answers. `merge` folds LoRA into the weights. `device` and `dtype` as
        in `LocalModel.load`. Raises UserError if the run is not what its manifest says."""
        import torch

        from vlmface import label_texts
        from vlmface.clip import checkpoint, model
        from vlmface.clip.classifier import Classifier, Shape

        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = dtype or (torch.bfloat16 if device.startswith("cuda") else torch.float32)
        if not manifest.is_run(run_or_model):
            if prompt is None:
                raise UserError(
                    f"{run_or_model} is no vlmface run (it has no {manifest.NAME}): say which "
                    f"texts stand for the labels, one of {', '.join(label_texts.names())}"
                )
            asked = label_texts.load(prompt) if isinstance(prompt, str | Path) else prompt
            clip = model.load(run_or_model, device=device, dtype=dtype)
            return cls(Classifier(clip, asked, Shape()).eval())
        from safetensors.torch import load_file

        own: Any
        found, (own, *_) = manifest.load(run_or_model)
        if prompt is not None:
            own = manifest.among([own], prompt, run_or_model)
        manifest.check_weights(found, run_or_model)
        shape = config.build(Shape, found.clip or {}, where=f"{run_or_model}/{manifest.NAME}")
        clip = model.load(found.base["id"], device=device)
        if (sha := model.weights_sha(clip)) != found.base["sha"]:
            raise UserError(
                f"{run_or_model}: the base model {found.base['id']} is {sha}, but the model was "
                f"trained with {found.base['sha']}: restore it, or train again"
            )
        classifier = Classifier(clip, own, shape)
        weights = Path(run_or_model) / WEIGHTS
        try:
            state = load_file(weights)
        except Exception as error:  # missing, or damaged in one of many ways
            raise UserError(
                f"cannot read {weights}: {error}; restore it, or train again"
            ) from error
        checkpoint.load(classifier, state, str(weights))
        if merge:
            classifier.merge()
        self = cls(classifier.to(dtype).eval(), crops.parse(found.crop))
        self.manifest = found
        return self

    def asking(self, prompt: Any) -> ClipModel:
        """The same model, asked about other texts. A run answers its own."""
        if prompt.sha == self.prompt.sha:
            return self
        if self.manifest is not None:
            manifest.among(self.prompts, prompt, "this run")
        from vlmface.clip.classifier import Classifier

        return ClipModel(Classifier(self.classifier.clip, prompt, self.classifier.shape).eval())

    def predict(
        self,
        images: Sequence[Any],
        *,
        batch_size: int = BATCH_SIZE,
        probabilities: bool = True,
        cut_out: bool = False,
        boxes: Sequence[Sequence[float] | None] | None = None,
    ) -> list[Prediction]:
        """Answer `images` in order; parameters as in `LocalModel.predict`."""
        found: list[bool | None] = [None] * len(images)
        if not cut_out:
            images, found = crops.shown_of(images, boxes, self.views, self.frames)
        predictions: list[Prediction] = []
        for start in range(0, len(images), batch_size):
            part = images[start : start + batch_size]
            began = time.perf_counter()
            shares, affects = self.classifier.answer(self._squares(part))
            latency = (time.perf_counter() - began) / len(part)
            for row, likely in enumerate(shares.tolist()):
                named = dict(zip(self.prompt.space.labels, likely, strict=True))
                answer = self.prompt.answer(named)
                affect = None
                if affects is not None:
                    affect = dict(zip(AFFECT, affects[row].tolist(), strict=True))
                predictions.append(
                    Prediction(
                        answer.said or "",
                        answer,
                        named if probabilities else None,
                        latency,
                        True,
                        found[start + row],
                        affect,
                    )
                )
        return predictions

    def stream(self, image: Any) -> Iterator[str | Prediction]:
        """The label, then the prediction: nothing is written word by word."""
        (found,) = self.predict([image], cut_out=True)
        yield found.text
        yield found

    def score(
        self,
        images: Sequence[Any],
        rationales: Sequence[str] | None = None,
        *,
        batch_size: int = BATCH_SIZE,
        prior: bool = False,
        cut_out: bool = False,
        boxes: Sequence[Sequence[float] | None] | None = None,
    ) -> list[LabelScores]:
        """The logarithms of the probabilities, one token a label; `prior`: those of a grey picture.
        Raises UserError for rationales, which a CLIP does not read."""
        if rationales is not None:
            raise UserError("a CLIP reads no rationales: score the labels without them")
        asked = self.predict(images, batch_size=batch_size, cut_out=cut_out, boxes=boxes)
        tokens = dict.fromkeys(self.prompt.space.labels, 1)
        behind = self._prior(images[0]) if prior and len(images) else None
        return [LabelScores(_logs(one), tokens, one.latency_s, behind) for one in asked]

    def _prior(self, image: Any) -> dict[str, float]:
        from PIL import Image

        pictures = len(image) if isinstance(image, Sequence) else 1
        if pictures not in self._priors:
            side = self.classifier.clip.side
            grey = [Image.new("RGB", (side, side), GREY)] * pictures
            self._priors[pictures] = _logs(self.predict([grey], cut_out=True)[0])
        return self._priors[pictures]

    def _squares(self, images: Sequence[Any]) -> torch.Tensor:
        """uint8 (rows, pictures, 3, side, side)."""
        import numpy as np
        import torch

        shape: Shape = self.classifier.shape
        expected = shape.views * shape.frames
        rows = [list(one) if isinstance(one, Sequence) else [one] for one in images]
        for row in rows:
            if len(row) != expected:
                raise UserError(
                    f"this model is shown {shape.views} view(s) of {shape.frames} frame(s), that "
                    f"is {expected} picture(s) of each face, found {len(row)}"
                )
        square = self.classifier.clip.square
        return torch.from_numpy(np.stack([[square(one) for one in row] for row in rows]))


def _logs(prediction: Prediction) -> dict[str, float]:
    import math

    assert prediction.probabilities is not None
    return {k: math.log(max(p, _LEAST)) for k, p in prediction.probabilities.items()}
