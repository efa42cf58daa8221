"""Asking a model: images in, text, label, action units and label probabilities out."""

from vlmface.infer.face_report import FaceReport
from vlmface.infer.predictor import Predictor

__all__ = ["FaceReport", "Predictor"]
