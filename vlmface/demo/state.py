"""The models of a demo, and what all tabs share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vlmface.demo import clips, example_media, model_choices, views
from vlmface.demo.face_detection import Finder
from vlmface.infer.backends import LocalBackend
from vlmface.infer.predictor import Predictor

_SERVED_AT_ONCE = 8  # a model in this process answers one at a time, a server as many as it can


class Demo:
    """The models that answer, the first of them everywhere, and what they are told about."""

    def __init__(
        self, predictors: Sequence[Predictor], cards: Sequence[model_choices.Card], folder: Path
    ) -> None:
        self.predictors, self.cards = list(predictors), list(cards)
        self.folder = folder  # that Gradio keeps uploads in
        self.predictor = self.predictors[0]
        self.voices = model_choices.voices(self.predictors)
        self.finder = Finder()
        self.at_once = 1 if isinstance(self.predictor.backend, LocalBackend) else _SERVED_AT_ONCE
        self.limitations = self.predictor.limitations or views.LIMITS
        self.examples, self.scene = example_media.write(folder / "examples")
        if model_choices.sees_around(self.predictor):
            self.examples = example_media.write_scenes(folder / "examples")
        self.clip = example_media.write_clip(folder / "examples") if clips.readable() else None

    def close(self) -> None:
        self.finder.close()
