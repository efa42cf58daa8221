"""Inference: from images to labels, action units, rationales and label probabilities."""

from vlmface.infer.face_report import FaceReport
from vlmface.infer.predictor import Predictor

__all__ = ["FaceReport", "Predictor"]
