"""CLIP classifiers behind the interface of `LocalModel`: label probabilities in one pass.

The generated text is the most probable label, so that predictions are parsed, scored and displayed
like those of a language model.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmface import manifest
from vlmface.data import crops
from vlmface.errors import UserError
from vlmface.infer.devices import device_and_dtype
from vlmface.infer.local import GREY
from vlmface.infer.prediction import LabelScores, Prediction
from vlmface.schema import AFFECT
from vlmface.utils import config

if TYPE_CHECKING:
    import torch

    from vlmface.clip.classifier import Classifier, ClassifierConfig
    from vlmface.label_texts import LabelTexts

BATCH_SIZE = 64
WEIGHTS = "trained.safetensors"  # of a run: the trained parameters, without those of the base
_MIN_PROBABILITY = 1e-12  # smaller ones are raised to it before the logarithm


class ClipModel:
    """A classifier with its label texts; `ClipModel.load` makes one.

    A row is one RGB picture, or the list of its views and frames.
    """

    pads = False  # every picture is resized to a square of one size

    def __init__(self, classifier: Classifier, views: crops.Views = ()) -> None:
        self.classifier = classifier
        self.prompt: LabelTexts = classifier.texts
        self.prompts = [self.prompt]
        self.manifest: manifest.Manifest | None = None
        self.views, self.frames = views, classifier.shape.num_frames
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
        """Load a run folder, or a bare CLIP for zero-shot classification.

        Args:
            run_or_model: A run folder, or a CLIP (see `vlmface.clip.model.is_clip`).
            prompt: The label texts; a bare CLIP needs them.
            device: As in `LocalModel.load`.
            dtype: As in `LocalModel.load`.
            merge: Whether LoRA is folded into the weights.

        Returns:
            The model in evaluation mode.

        Raises:
            UserError: The run does not match its manifest, or the label texts are missing.
        """
        from vlmface import label_texts
        from vlmface.clip import model
        from vlmface.clip.classifier import Classifier, ClassifierConfig

        device, dtype = device_and_dtype(device, dtype)
        if manifest.is_run(run_or_model):
            return cls._load_run(Path(run_or_model), prompt, device, dtype, merge)
        if prompt is None:
            raise UserError(
                f"{run_or_model} is not a vlmface run (it has no {manifest.FILENAME}): choose the "
                f"label texts with --prompt, one of {', '.join(label_texts.names())}"
            )
        texts = label_texts.load(prompt) if isinstance(prompt, str | Path) else prompt
        clip = model.load_clip(run_or_model, device=device, dtype=dtype)
        return cls(Classifier(clip, texts, ClassifierConfig()).eval())

    @classmethod
    def _load_run(cls, run: Path, prompt: Any, device: str, dtype: Any, merge: bool) -> ClipModel:
        from safetensors.torch import load_file

        from vlmface.clip import checkpoint, model
        from vlmface.clip.classifier import Classifier, ClassifierConfig

        texts: Any
        run_manifest, (texts, *_) = manifest.load(run)
        if prompt is not None:
            texts = manifest.select_prompt([texts], prompt, run)
        manifest.check_weights(run_manifest, run)
        where = f"{run}/{manifest.FILENAME}"
        shape = config.from_dict(ClassifierConfig, run_manifest.clip_classifier or {}, where=where)
        clip = model.load_clip(run_manifest.base_model["id"], device=device)
        if (sha := model.weights_sha(clip)) != run_manifest.base_model["sha"]:
            raise UserError(
                f"{run}: the base model {run_manifest.base_model['id']} is {sha}, but the model "
                f"was trained with {run_manifest.base_model['sha']}: restore it, or train again"
            )
        classifier = Classifier(clip, texts, shape)
        weights = run / WEIGHTS
        try:
            state = load_file(weights)
        except Exception as error:  # missing, or damaged in one of many ways
            raise UserError(
                f"cannot read {weights}: {error}; restore it, or train again"
            ) from error
        checkpoint.load_trained(classifier, state, str(weights))
        if merge:
            classifier.merge()
        loaded = cls(classifier.to(dtype).eval(), crops.parse_views(run_manifest.views))
        loaded.manifest = run_manifest
        return loaded

    def with_prompt(self, prompt: Any) -> ClipModel:
        """The same model with other label texts; a run accepts its own texts only."""
        if prompt.sha == self.prompt.sha:
            return self
        if self.manifest is not None:
            manifest.select_prompt(self.prompts, prompt, "this run")
        from vlmface.clip.classifier import Classifier

        return ClipModel(Classifier(self.classifier.clip, prompt, self.classifier.shape).eval())

    def predict(
        self,
        images: Sequence[Any],
        *,
        batch_size: int = BATCH_SIZE,
        probabilities: bool = True,
        preprocessed: bool = False,
        boxes: Sequence[Sequence[float] | None] | None = None,
    ) -> list[Prediction]:
        """Classify `images` in order; arguments as in `LocalModel.predict`."""
        faces_found: list[bool | None] = [None] * len(images)
        if not preprocessed:
            images, faces_found = crops.render_views(images, boxes, self.views, self.frames)
        predictions: list[Prediction] = []
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            start_time = time.perf_counter()
            shares, affects = self.classifier.answer(self._squares(batch))
            latency = (time.perf_counter() - start_time) / len(batch)
            for prediction in predictions_of(self.prompt, shares, affects):
                if not probabilities:
                    prediction = replace(prediction, probabilities=None)
                face_found = faces_found[len(predictions)]
                predictions.append(replace(prediction, latency_s=latency, face_found=face_found))
        return predictions

    def stream(self, image: Any) -> Iterator[str | Prediction]:
        """Yields the label, then the prediction."""
        (prediction,) = self.predict([image], preprocessed=True)
        yield prediction.text
        yield prediction

    def score(
        self,
        images: Sequence[Any],
        rationales: Sequence[str] | None = None,
        *,
        batch_size: int = BATCH_SIZE,
        prior: bool = False,
        preprocessed: bool = False,
        boxes: Sequence[Sequence[float] | None] | None = None,
    ) -> list[LabelScores]:
        """Log-probabilities of the labels, one token per label.

        Args:
            images: As in `predict`.
            rationales: Must be None: CLIP classifiers do not read rationales.
            batch_size: As in `predict`.
            prior: Also score a grey picture.
            preprocessed: As in `predict`.
            boxes: As in `predict`.

        Returns:
            The scores of each image.

        Raises:
            UserError: `rationales` is not None.
        """
        if rationales is not None:
            raise UserError("a CLIP reads no rationales: score the labels without them")
        predictions = self.predict(
            images, batch_size=batch_size, preprocessed=preprocessed, boxes=boxes
        )
        tokens = dict.fromkeys(self.prompt.space.labels, 1)
        grey = self._prior(images[0]) if prior and len(images) else None
        return [
            LabelScores(_log_probabilities(prediction), tokens, prediction.latency_s, grey)
            for prediction in predictions
        ]

    def _prior(self, image: Any) -> dict[str, float]:
        from PIL import Image

        pictures = len(image) if isinstance(image, Sequence) else 1
        if pictures not in self._priors:
            side = self.classifier.clip.side
            grey = [Image.new("RGB", (side, side), GREY)] * pictures
            (prediction,) = self.predict([grey], preprocessed=True)
            self._priors[pictures] = _log_probabilities(prediction)
        return self._priors[pictures]

    def _squares(self, images: Sequence[Any]) -> torch.Tensor:
        """uint8 (rows, pictures, 3, side, side)."""
        import numpy as np
        import torch

        shape: ClassifierConfig = self.classifier.shape
        expected = shape.num_views * shape.num_frames
        rows = [list(image) if isinstance(image, Sequence) else [image] for image in images]
        for row in rows:
            if len(row) != expected:
                raise UserError(
                    f"this model takes {shape.num_views} view(s) of {shape.num_frames} frame(s), "
                    f"that is {expected} picture(s) of each face, found {len(row)}"
                )
        square = self.classifier.clip.square
        return torch.from_numpy(np.stack([[square(picture) for picture in row] for row in rows]))


def predictions_of(
    texts: LabelTexts, shares: torch.Tensor, affects: torch.Tensor | None
) -> list[Prediction]:
    """Predictions without times.

    Args:
        texts: Of the labels.
        shares: (n, labels), the probabilities.
        affects: (n, 2), valence and arousal, or None.
    """
    predictions = []
    for row, values in enumerate(shares.tolist()):
        by_label = dict(zip(texts.space.labels, values, strict=True))
        answer, affect = texts.answer(by_label), None
        if affects is not None:
            affect = dict(zip(AFFECT, affects[row].tolist(), strict=True))
        prediction = Prediction(
            text=answer.text_labels or "",
            answer=answer,
            probabilities=by_label,
            latency_s=0.0,
            complete=True,
            affect=affect,
        )
        predictions.append(prediction)
    return predictions


def _log_probabilities(prediction: Prediction) -> dict[str, float]:
    assert prediction.probabilities is not None
    return {
        label: math.log(max(p, _MIN_PROBABILITY)) for label, p in prediction.probabilities.items()
    }
