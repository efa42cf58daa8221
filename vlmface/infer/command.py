"""`vlmface predict`: image files, folders and videos in, reports out."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmface import facs
from vlmface.errors import UserError
from vlmface.utils.terminal import json_line, one_line, printable

if TYPE_CHECKING:
    from vlmface.infer.endpoint import NoAnswerError
    from vlmface.infer.face_report import FaceReport
    from vlmface.infer.local import Prediction
    from vlmface.infer.predictor import Predictor


def predict_command(
    images: list[str],
    model: str,
    as_json: bool,
    batch_size: int,
    *,
    box: Sequence[float] | None = None,
    faces: str | None = None,
    **how: Any,
) -> int:
    """Answer image files, folders of them and videos: as text, or as one JSON object a line.
    Returns the exit code.

    A run that was trained to answer several questions is asked all of them. A file that cannot be
    read, or that a server gives no answer for, costs one error line on stderr and the exit code 2,
    but the others are still answered. Raises UserError for a server that answers nothing any more.
    `box` says which face of the only image is meant, `faces` which faces of each (see
    `Predictor.predict`). `how`: see `Predictor.load`.
    """
    from transformers.utils import logging

    from vlmface.infer import Predictor
    from vlmface.infer.endpoint import MAX_CONSECUTIVE_FAILURES, NoAnswerError
    from vlmface.utils.images import find_images

    logging.disable_progress_bar()  # stdout and stderr are for answers and errors
    failed = silent = 0  # `silent`: faces in a row without an answer
    paths: list[Path] = []
    for name in images:
        try:
            paths += find_images([name])
        except UserError as error:
            failed += 1
            print(f"error: {one_line(error)}", file=sys.stderr)
    if box is not None:
        _check_box(box, faces, len(paths))
    frames = _frames(paths, how.get("run") or model)
    predictor = None
    try:
        for start in range(0, len(paths), batch_size):
            opened = []
            for path in paths[start : start + batch_size]:
                try:
                    opened.append((path, _open(path, frames)))
                except UserError as error:
                    failed += 1
                    print(f"error: {one_line(error)}", file=sys.stderr)
            if not opened:
                continue
            if predictor is None:
                predictor = Predictor.load(model, **how)
                if faces is None and box is None:
                    faces = _default_faces(predictor)
            for path, name, report in _answered(predictor, opened, box, faces, batch_size):
                silent = silent + 1 if isinstance(report, NoAnswerError) else 0
                if isinstance(report, NoAnswerError):
                    failed += 1
                    why = one_line(f"{name}: {model} gave no answer ({report})")
                    print(f"error: {why}", file=sys.stderr)
                elif as_json:
                    line = {"image": str(path), **report.as_dict()}
                    print(json_line(line), flush=True)
                else:
                    print(printable(_as_text(name, report), lines=True), flush=True)
            if silent >= MAX_CONSECUTIVE_FAILURES:
                raise UserError(
                    f"{model} gave no answer for {silent} faces in a row: the rest was not asked"
                )
        if predictor and predictor.limits and not as_json:
            print(f"note: {printable(predictor.limits, lines=True)}")
    finally:
        if predictor:
            predictor.close()
    return 2 if failed else 0


def _check_box(box: Sequence[float], faces: str | None, images: int) -> None:
    x0, y0, x1, y1 = box
    if not (x0 < x1 and y0 < y1):
        raise UserError(f"--box {x0:g} {y0:g} {x1:g} {y1:g}: expected left top right bottom")
    if images != 1:
        raise UserError(f"--box is a place in one image, but there are {images}")
    if faces is not None:
        raise UserError(f"--box says which face is meant, and --faces is {faces}: leave out one")


def _default_faces(predictor: Predictor) -> str:
    """What the run was trained for, and a sentence where that is not possible here."""
    if predictor.faces_note:
        print(f"note: {predictor.faces_note}", file=sys.stderr)
    return predictor.faces_by_default


def _answered(
    predictor: Predictor,
    opened: Sequence[tuple[Path, Any]],
    box: Sequence[float] | None,
    faces: str | None,
    batch_size: int,
) -> Iterator[tuple[Path, str, FaceReport | NoAnswerError]]:
    """(file, its name and which of its faces, the answer) for each face of these pictures."""
    reports = predictor.try_predict(
        [image for _, image in opened],
        boxes=None if box is None else [box],
        faces=faces,
        batch_size=batch_size,
    )
    for (path, _), of_picture in zip(opened, reports, strict=True):
        group = of_picture if isinstance(of_picture, list) else [of_picture]
        for number, report in enumerate(group, 1):
            yield path, f"{path}, face {number}" if len(group) > 1 else str(path), report


def _frames(paths: Sequence[Path], run: str | Path) -> int:
    """How many frames of a video are taken for the model, if one of the files is a video."""
    from vlmface import manifest
    from vlmface.data import clips

    asked = any(map(_is_video, paths)) and manifest.is_run(run)
    return clips.taken(manifest.load(run)[0].frames if asked else 1)


def _is_video(path: Path) -> bool:
    from vlmface.data import video

    return path.suffix.lower() in video.SUFFIXES


def _open(path: Path, frames: int) -> Any:
    """An image, or so many frames of a video. Raises UserError."""
    from vlmface.data import video
    from vlmface.utils.images import open_image

    return video.frames(path, frames) if _is_video(path) else open_image(path)


def _as_text(name: str, report: FaceReport) -> str:
    """The answer to the one question with all that was written; of several, a line each."""
    if not report.was_asked:
        why = "no face found, so nothing was asked (--faces none asks about the picture)"
        return f"{printable(name)}: {why}"
    if len(report.answers) == 1:
        said = report.main
        lines = [f"{printable(name)}: {_label(said)}"]
        if said.probabilities:
            lines.append(f"  probabilities: {_ranked(said)}")
        if report.aus:
            lines.append("  action units: " + ", ".join(facs.name(au) for au in report.aus))
        lines.append(f"  {report.rationale or said.text}")
    else:
        lines = [f"{printable(name)}:"]
        for task, said in report.answers.items():
            likely = f" ({_ranked(said)})" if said.probabilities else ""
            lines.append(f"  {task.replace('_', ' ')}: {_label(said)}{likely}")
    if report.scene_only:
        lines.append("  no face was found in it: the scene alone was judged")
    return "\n".join(lines)


def _label(said: Prediction) -> str:
    return said.answer.said or f"no valid answer ({said.answer.status})"


def _ranked(said: Prediction) -> str:
    ranked = sorted((said.probabilities or {}).items(), key=lambda item: -item[1])
    return ", ".join(f"{label} {p:.2f}" for label, p in ranked[:3])
