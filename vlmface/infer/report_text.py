"""A report as text for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlmface import facs
from vlmface.utils.terminal import printable

if TYPE_CHECKING:
    from vlmface.infer.face_report import FaceReport
    from vlmface.infer.prediction import Prediction


def as_text(name: str, report: FaceReport, *, is_last: bool = True) -> str:
    """The report.

    Args:
        name: Of the face.
        report: One task: the answer with everything the model wrote. Several: one line each.
        is_last: Whether it is the last one on its picture, to which the note on the search for
            faces belongs.
    """
    lines = _lines(name, report)
    if report.search_note and is_last:
        lines.append(f"  {report.search_note}")
    return "\n".join(lines)


def _lines(name: str, report: FaceReport) -> list[str]:
    if not report.has_prediction:
        reason = "no face found, so the model was not run (--faces none uses the whole picture)"
        return [f"{printable(name)}: {reason}"]
    if len(report.answers) == 1:
        primary = report.primary
        lines = [f"{printable(name)}: {_label(primary)}"]
        if primary.probabilities:
            title = "probabilities: " if primary.expected is None else ""
            lines.append(f"  {title}{_likely(primary)}")
        if report.aus:
            lines.append("  action units: " + ", ".join(facs.name(au) for au in report.aus))
        if report.evidence is not None:
            lines.append(f"  measured in the prompt: {report.evidence}")
        lines.append(f"  {report.rationale or primary.text}")
    else:
        lines = [f"{printable(name)}:"]
        for task, prediction in report.answers.items():
            likely = f" ({_likely(prediction)})" if prediction.probabilities else ""
            lines.append(f"  {task.replace('_', ' ')}: {_label(prediction)}{likely}")
    if report.scene_only:
        lines.append("  no face was found in it: the scene alone was judged")
    return lines


def _label(prediction: Prediction) -> str:
    return prediction.label_text or f"no valid answer ({prediction.answer.status})"


def _likely(prediction: Prediction) -> str:
    """The likeliest labels, or the expected number of a scale."""
    if prediction.expected is not None:
        return f"expected value {prediction.expected:.2f}"
    ranked = sorted((prediction.probabilities or {}).items(), key=lambda item: -item[1])
    return ", ".join(f"{label} {p:.2f}" for label, p in ranked[:3])
