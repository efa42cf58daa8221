"""Asking a model: images in, text, label, action units and label probabilities out."""

from vlmface.infer.predictor import Predictor
from vlmface.infer.report import FaceReport

__all__ = ["FaceReport", "Predictor"]
