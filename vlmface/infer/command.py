"""`vlmface predict`: reports on image files, folders and videos."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmface.errors import UserError
from vlmface.infer.input_files import InputFile, find_files, frames_of, name_of, open_file
from vlmface.infer.report_text import as_text
from vlmface.utils.terminal import json_line, one_line, printable

if TYPE_CHECKING:
    from vlmface.infer.predictor import Predictor
    from vlmface.infer.report_table import ReportTable, Results


@dataclass(frozen=True)
class PredictOptions:
    """What to predict, and where the reports go: to standard output, or into a table.

    Attributes:
        images: Files and folders; `-` stands for the names on standard input.
        model: See `Predictor.load`.
        batch_size: Files that are opened at once.
        box: The face in the only image.
        faces: See `Predictor.predict`.
        as_json: Print one JSON object per face instead of text.
        csv: Write this table instead.
        overwrite: Replace an existing table.
        null: Names on standard input end in NUL.
    """

    images: Sequence[str]
    model: str
    batch_size: int = 16
    box: Sequence[float] | None = None
    faces: str | None = None
    as_json: bool = False
    csv: Path | None = None
    overwrite: bool = False
    null: bool = False


def predict_command(options: PredictOptions, **load_options: Any) -> int:
    """Report on each face of image files, folders and videos.

    A file that cannot be read, or that a server gives no answer for, costs one line on stderr (in
    a table also a row) and the exit code 2; the other files are still processed.

    Args:
        options: See `PredictOptions`.
        **load_options: Of `Predictor.load`.

    Returns:
        The exit code.

    Raises:
        UserError: The options contradict each other, the model cannot be loaded, the table is of
            another model, or the server has stopped answering.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()  # stdout and stderr are for reports and errors
    if options.overwrite and options.csv is None:
        raise UserError("--overwrite is about the table of --csv: leave it out")
    files = find_files(options.images, options.null)
    if options.box is not None:
        _check_box(options.box, options, len(files))
    counts = _Counts(options.model)
    with contextlib.ExitStack() as stack:
        table = None if options.csv is None else _open_table(stack, options, load_options)
        remaining = files if table is None else _unanswered(files, table)
        predictor = _predict_files(remaining, options, load_options, table, counts)
    if table is not None:
        print(f"{table.path}: {counts.summary(len(files) - len(remaining))}")
    if predictor and predictor.limitations and not options.as_json:
        print(f"note: {printable(predictor.limitations, lines=True)}")
    return 2 if counts.failed else 0


def _check_box(box: Sequence[float], options: PredictOptions, images: int) -> None:
    x0, y0, x1, y1 = box
    if not (x0 < x1 and y0 < y1):
        raise UserError(f"--box {x0:g} {y0:g} {x1:g} {y1:g}: expected left top right bottom")
    if images != 1:
        raise UserError(f"--box is a place in one image, but there are {images}")
    if options.faces is not None:
        raise UserError(
            f"--box selects the face, and --faces is {options.faces}: leave out one of them"
        )
    if options.csv is not None:
        raise UserError("--box is about one image, and --csv about many: use --json")


def _open_table(
    stack: contextlib.ExitStack, options: PredictOptions, load_options: dict[str, Any]
) -> ReportTable:
    from vlmface.infer.report_table import ReportTable

    server = (load_options.get(name) for name in ("served_model_name", "run_dir"))
    withheld = "evidence withheld" if load_options.get("evidence") == "withheld" else None
    parts = (options.model.rstrip("/"), *server, withheld)
    model = " ".join(str(part) for part in parts if part)
    assert options.csv is not None
    return stack.enter_context(ReportTable(options.csv, model, options.overwrite))


def _unanswered(files: Sequence[InputFile], table: ReportTable) -> list[InputFile]:
    """The files that the table has no answer for, each once."""
    by_name = {name_of(file): file for file in files}
    missing = table.remove_incomplete(by_name)
    return [file for name, file in by_name.items() if name in missing]


@dataclass
class _Counts:
    """Of one call: `failed` are files and faces without a report, `silent` faces in a row that
    the server gave no answer for."""

    model: str
    images: int = 0
    faces: int = 0
    without_face: int = 0
    failed: int = 0
    silent: int = 0

    def add(self, name: str, results: Results) -> None:
        """Count the results of a file, and print its errors."""
        from vlmface.infer.endpoint import NoAnswerError

        if isinstance(results, UserError):
            self._fail(results)
            return
        self.images += 1
        for number, result in enumerate(results, 1):
            self.silent = self.silent + 1 if isinstance(result, NoAnswerError) else 0
            if isinstance(result, NoAnswerError):
                face = face_name(name, number, len(results))
                self._fail(f"{face}: {self.model} gave no answer ({result})")
            elif result.face_found is False:
                self.without_face += 1
            else:
                self.faces += 1

    def _fail(self, error: object) -> None:
        from tqdm import tqdm

        self.failed += 1
        tqdm.write(f"error: {one_line(error)}", file=sys.stderr)

    def check_server(self) -> None:
        from vlmface.infer.jobs import MAX_CONSECUTIVE_FAILURES

        if self.silent >= MAX_CONSECUTIVE_FAILURES:
            raise UserError(
                f"{self.model} gave no answer for {self.silent} faces in a row: the remaining "
                "files were skipped"
            )

    def summary(self, earlier: int) -> str:
        """One line; `earlier`: files that were not processed."""
        further = {
            "images without a face": self.without_face,
            "errors": self.failed,
            "skipped, because they were answered earlier or given twice": earlier,
        }
        parts = [f"{self.faces:,} faces in {self.images:,} images"]
        parts += [f"{reason}: {number:,}" for reason, number in further.items() if number]
        return "; ".join(parts)


def face_name(name: str, number: int, faces: int) -> str:
    """How messages call a face of a file."""
    return f"{name}, face {number}" if faces > 1 else name


def _predict_files(
    files: Sequence[InputFile],
    options: PredictOptions,
    load_options: dict[str, Any],
    table: ReportTable | None,
    counts: _Counts,
) -> Predictor | None:
    """Write the results of all files. The model is loaded once an image could be read, or, for a
    table, before the first row, whose columns depend on the model; None if it was not loaded."""
    from vlmface.infer import Predictor

    frames = frames_of(files, load_options.get("run_dir") or options.model)
    predictor, faces = None, options.faces
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(_progress_bar(len(files), table is not None))
        for start in range(0, len(files), options.batch_size):
            batch = files[start : start + options.batch_size]
            images = [open_file(file, frames) for file in batch]
            readable = any(not isinstance(image, UserError) for image in images)
            if predictor is None and (readable or table):
                predictor = stack.enter_context(Predictor.load(options.model, **load_options))
                if faces is None and options.box is None:
                    faces = _default_faces(predictor)
                if table:
                    table.start(predictor.select_prompts(None), str(faces))
            for file, results in zip(
                batch, _results(predictor, images, options, faces), strict=True
            ):
                counts.add(name_of(file), results)
                if table:
                    table.write(name_of(file), results)
                else:
                    _print_results(name_of(file), results, options.as_json)
                bar.update()
            counts.check_server()
    return predictor


def _progress_bar(total: int, is_table: bool) -> Any:
    """On a terminal, unless the reports are printed there."""
    from tqdm import tqdm

    visible = sys.stderr.isatty() and (is_table or not sys.stdout.isatty())
    return tqdm(total=total, unit="image", disable=not visible)


def _default_faces(predictor: Predictor) -> str:
    """The run's default; prints a note if the face detector is needed and not installed."""
    if predictor.detector_warning:
        print(f"note: {predictor.detector_warning}", file=sys.stderr)
    return predictor.default_faces


def _results(
    predictor: Predictor | None, images: Sequence[Any], options: PredictOptions, faces: str | None
) -> Iterator[Results]:
    """The results of each image; those that could not be read are UserErrors already."""
    readable = [image for image in images if not isinstance(image, UserError)]
    reports: Iterator[Any] = iter(())
    if predictor and readable:
        reports = iter(
            predictor.try_predict(
                readable,
                boxes=None if options.box is None else [options.box],
                faces=faces,
                batch_size=options.batch_size,
            )
        )
    for image in images:
        if isinstance(image, UserError):
            yield image
        else:
            image_reports = next(reports)
            yield image_reports if isinstance(image_reports, list) else [image_reports]


def _print_results(name: str, results: Results, as_json: bool) -> None:
    from vlmface.infer.endpoint import NoAnswerError

    if isinstance(results, UserError):
        return
    for number, report in enumerate(results, 1):
        if isinstance(report, NoAnswerError):
            continue
        if as_json:
            face = number if report.face_found else None
            print(json_line({"image": name, "face": face, **report.as_dict()}), flush=True)
        else:
            face_of_file = face_name(name, number, len(results))
            text = as_text(face_of_file, report, is_last=number == len(results))
            print(printable(text, lines=True), flush=True)
