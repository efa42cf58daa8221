"""Faces, answers and archives for the tests of the demo."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

from PIL import Image

from vlmface import facs, label_texts, prompts
from vlmface.infer.face_report import FaceReport
from vlmface.infer.prediction import Prediction
from vlmface.synth import dataset
from vlmface.synth.render import render

HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script> ${7*7} {{7*7}} \u202e"


def head(index: int, size: int = 256, split: str = "test") -> Image.Image:
    return Image.fromarray(render(dataset.draw(0, split, index).face, size).image)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def report_of(text: str, probabilities: dict[str, float] | None = None) -> FaceReport:
    answer = prompts.load("face_cot").parse(text)
    said = Prediction(text, answer, probabilities, 0.25, True)
    return FaceReport({"emotion": said}, {"emotion": "face_cot"}, (1.0, 2.0, 3.0, 4.0), True, None)


def chosen(probabilities: dict[str, float], affect: dict[str, float] | None = None) -> FaceReport:
    """As a CLIP answers: a label, and nothing beside it."""
    answer = label_texts.load("clip_emotion").answer(probabilities)
    said = Prediction(answer.text_labels or "", answer, probabilities, 0.25, True, None, affect)
    return FaceReport({"emotion": said}, {"emotion": "clip_emotion"})


def likely(label: str, share: float = 0.65) -> dict[str, float]:
    return {**dict.fromkeys(facs.PROTOTYPES, (1 - share) / 7), label: share}


def archive(path: Path, files: dict[str, bytes], **changes: Any) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name)
            entry.compress_type = zipfile.ZIP_DEFLATED
            for field, value in changes.items():
                setattr(entry, field, value)
            packed.writestr(entry, data)
    return path
