"""`vlmface predict`: reports on image files, folders and videos."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmface import facs
from vlmface.errors import UserError
from vlmface.utils.terminal import json_line, one_line, printable

if TYPE_CHECKING:
    from vlmface.infer.endpoint import NoAnswerError
    from vlmface.infer.face_report import FaceReport
    from vlmface.infer.prediction import Prediction
    from vlmface.infer.predictor import Predictor


def predict_command(
    images: list[str],
    model: str,
    as_json: bool,
    batch_size: int,
    *,
    box: Sequence[float] | None = None,
    faces: str | None = None,
    **load_options: Any,
) -> int:
    """Print a report on each face of image files, folders and videos.

    A file that cannot be read, or that a server gives no answer for, costs one line on stderr and
    the exit code 2; the other files are still processed.

    Args:
        images: Files and folders.
        model: See `Predictor.load`.
        as_json: Print one JSON object per face instead of text.
        batch_size: Files that are opened at once.
        box: The face in the only image.
        faces: See `Predictor.predict`.
        **load_options: Of `Predictor.load`.

    Returns:
        The exit code.

    Raises:
        UserError: The model cannot be loaded, or the server has stopped answering.
    """
    from transformers.utils import logging

    from vlmface.infer import Predictor

    logging.disable_progress_bar()  # stdout and stderr are for reports and errors
    paths, failed = _image_paths(images)
    if box is not None:
        _check_box(box, faces, len(paths))
    frames = _frames(paths, load_options.get("run_dir") or model)
    output = _Output(model, as_json, failed)
    predictor = None
    try:
        for start in range(0, len(paths), batch_size):
            opened = output.open_all(paths[start : start + batch_size], frames)
            if not opened:
                continue
            if predictor is None:
                predictor = Predictor.load(model, **load_options)
                if faces is None and box is None:
                    faces = _default_faces(predictor)
            for path, name, report in _reports(predictor, opened, box, faces, batch_size):
                output.write(path, name, report)
            output.check_server()
        if predictor and predictor.limitations and not as_json:
            print(f"note: {printable(predictor.limitations, lines=True)}")
    finally:
        if predictor:
            predictor.close()
    return 2 if output.failed else 0


@dataclass
class _Output:
    """What has been printed: `failed` counts files and faces, `silent` faces in a row that the
    server gave no answer for."""

    model: str
    as_json: bool
    failed: int
    silent: int = 0

    def open_all(self, paths: Sequence[Path], frames: int) -> list[tuple[Path, Any]]:
        opened = []
        for path in paths:
            try:
                opened.append((path, _open(path, frames)))
            except UserError as error:
                self.failed += 1
                _print_error(error)
        return opened

    def write(self, path: Path, name: str, report: FaceReport | NoAnswerError) -> None:
        from vlmface.infer.endpoint import NoAnswerError

        self.silent = self.silent + 1 if isinstance(report, NoAnswerError) else 0
        if isinstance(report, NoAnswerError):
            self.failed += 1
            _print_error(f"{name}: {self.model} gave no answer ({report})")
        elif self.as_json:
            print(json_line({"image": str(path), **report.as_dict()}), flush=True)
        else:
            print(printable(_as_text(name, report), lines=True), flush=True)

    def check_server(self) -> None:
        from vlmface.infer.jobs import MAX_CONSECUTIVE_FAILURES

        if self.silent >= MAX_CONSECUTIVE_FAILURES:
            raise UserError(
                f"{self.model} gave no answer for {self.silent} faces in a row: the remaining "
                "files were skipped"
            )


def _print_error(error: object) -> None:
    print(f"error: {one_line(error)}", file=sys.stderr)


def _image_paths(names: Sequence[str]) -> tuple[list[Path], int]:
    """(image files, how many of the names could not be read)."""
    from vlmface.utils.images import find_images

    paths: list[Path] = []
    failed = 0
    for name in names:
        try:
            paths += find_images([name])
        except UserError as error:
            failed += 1
            _print_error(error)
    return paths, failed


def _check_box(box: Sequence[float], faces: str | None, images: int) -> None:
    x0, y0, x1, y1 = box
    if not (x0 < x1 and y0 < y1):
        raise UserError(f"--box {x0:g} {y0:g} {x1:g} {y1:g}: expected left top right bottom")
    if images != 1:
        raise UserError(f"--box is a place in one image, but there are {images}")
    if faces is not None:
        raise UserError(f"--box selects the face, and --faces is {faces}: leave out one of them")


def _default_faces(predictor: Predictor) -> str:
    """The run's default; prints a note if the face detector is needed and not installed."""
    if predictor.detector_warning:
        print(f"note: {predictor.detector_warning}", file=sys.stderr)
    return predictor.default_faces


def _reports(
    predictor: Predictor,
    opened: Sequence[tuple[Path, Any]],
    box: Sequence[float] | None,
    faces: str | None,
    batch_size: int,
) -> Iterator[tuple[Path, str, FaceReport | NoAnswerError]]:
    """(file, its name with the number of the face, report) for each face of these images."""
    reports = predictor.try_predict(
        [image for _, image in opened],
        boxes=None if box is None else [box],
        faces=faces,
        batch_size=batch_size,
    )
    for (path, _), image_reports in zip(opened, reports, strict=True):
        group = image_reports if isinstance(image_reports, list) else [image_reports]
        for number, report in enumerate(group, 1):
            yield path, f"{path}, face {number}" if len(group) > 1 else str(path), report


def _frames(paths: Sequence[Path], run_dir: str | Path) -> int:
    """The frames to read of each video; 1 without videos."""
    from vlmface import manifest
    from vlmface.data import clips

    needs_frames = any(map(_is_video, paths)) and manifest.is_run(run_dir)
    return clips.frames_to_extract(manifest.load(run_dir)[0].num_frames if needs_frames else 1)


def _is_video(path: Path) -> bool:
    from vlmface.data import video

    return path.suffix.lower() in video.SUFFIXES


def _open(path: Path, frames: int) -> Any:
    """An image, or that many frames of a video. Raises UserError."""
    from vlmface.data import video
    from vlmface.utils.images import open_image

    return video.read_frames(path, frames) if _is_video(path) else open_image(path)


def _as_text(name: str, report: FaceReport) -> str:
    """One task: the answer with everything the model wrote. Several tasks: one line each."""
    if not report.has_prediction:
        reason = "no face found, so the model was not run (--faces none uses the whole picture)"
        return f"{printable(name)}: {reason}"
    if len(report.answers) == 1:
        primary = report.primary
        lines = [f"{printable(name)}: {_label(primary)}"]
        if primary.probabilities:
            lines.append(f"  probabilities: {_top_labels(primary)}")
        if report.aus:
            lines.append("  action units: " + ", ".join(facs.name(au) for au in report.aus))
        lines.append(f"  {report.rationale or primary.text}")
    else:
        lines = [f"{printable(name)}:"]
        for task, prediction in report.answers.items():
            likely = f" ({_top_labels(prediction)})" if prediction.probabilities else ""
            lines.append(f"  {task.replace('_', ' ')}: {_label(prediction)}{likely}")
    if report.scene_only:
        lines.append("  no face was found in it: the scene alone was judged")
    return "\n".join(lines)


def _label(prediction: Prediction) -> str:
    return prediction.answer.text_labels or f"no valid answer ({prediction.answer.status})"


def _top_labels(prediction: Prediction) -> str:
    ranked = sorted((prediction.probabilities or {}).items(), key=lambda item: -item[1])
    return ", ".join(f"{label} {p:.2f}" for label, p in ranked[:3])
