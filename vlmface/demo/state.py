"""The models of a demo, and what all tabs share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vlmface.demo import clips, example_media, model_choices, views
from vlmface.demo.face_detection import FaceFinder
from vlmface.infer.backends import LocalBackend
from vlmface.infer.predictor import Predictor

_SERVER_CONCURRENCY = 8  # a model in this process answers one request at a time


class Demo:
    """The models and examples of a demo. The first model is used in every tab.

    Args:
        predictors: The models.
        cards: A description of each.
        folder: Where Gradio stores uploads.
    """

    def __init__(
        self,
        predictors: Sequence[Predictor],
        cards: Sequence[model_choices.ModelCard],
        folder: Path,
    ) -> None:
        self.predictors, self.cards = list(predictors), list(cards)
        self.folder = folder
        self.predictor = self.predictors[0]
        self.choices = model_choices.list_choices(self.predictors)
        self.face_finder = FaceFinder()
        is_local = isinstance(self.predictor.backend, LocalBackend)
        self.concurrency = 1 if is_local else _SERVER_CONCURRENCY
        self.limitations = self.predictor.limitations or views.DEFAULT_LIMITATIONS
        self.examples, self.scene = example_media.write_faces(folder / "examples")
        if model_choices.uses_context(self.predictor):
            self.examples = example_media.write_scenes(folder / "examples")
        can_read = clips.can_read_videos()
        self.clip = example_media.write_clip(folder / "examples") if can_read else None

    def close(self) -> None:
        """Release the detector."""
        self.face_finder.close()
