"""The table of `vlmface predict --csv`: one row per face, and one per file without an answer.

The rows of a file are written as soon as it is answered. A second call keeps the rows of the files
that were answered and appends those of the others. All cells are on one line, so a table whose last
line has no end was cut off while it was written.
"""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from vlmface import facs
from vlmface.aus.evidence import uses_evidence
from vlmface.errors import UserError
from vlmface.infer.endpoint import NoAnswerError
from vlmface.utils import lock
from vlmface.utils.files import atomic_write
from vlmface.utils.spreadsheet import safe_cell
from vlmface.utils.terminal import one_line, printable

if TYPE_CHECKING:
    from vlmface.infer.face_report import FaceReport
    from vlmface.prompts import PromptLike

BOM = "\ufeff"  # without it Excel does not read the file as UTF-8
BOX = ("left", "top", "right", "bottom")
SETTINGS = ("model", "prompt", "faces")  # the same in all rows of a table
# Of one file: a report or an error for each face, or why it was not read.
Results: TypeAlias = "Sequence[FaceReport | NoAnswerError] | UserError"


def table_columns(prompts: Mapping[str, PromptLike]) -> list[str]:
    """The names of the columns.

    Args:
        prompts: {task: prompt}. A task has columns for its label, the label's probability and the
            answer's status; `p_TASK_LABEL` is the probability of a label, or, of a scale,
            `TASK_expected` the number that the probabilities expect. `evidence`
            is that of prompts which contain any.
    """
    answers = [f"{task}{part}" for task in prompts for part in ("", "_probability", "_status")]
    labels = [name for task, prompt in prompts.items() for name in _further(task, prompt)]
    head = ["image", "face", "face_found", *BOX]
    texts = ["aus", "rationale", *(["evidence"] if uses_evidence(prompts.values()) else [])]
    return [*head, *answers, *texts, *labels, "search_note", "error", *SETTINGS]


def _further(task: str, prompt: PromptLike) -> list[str]:
    """The columns about probabilities of a task."""
    if prompt.space.scale is not None:
        return [f"{task}_expected"]
    return [f"p_{task}_{label}" for label in prompt.space.labels]


def image_cell(name: str) -> str:
    """A file's name as the table contains it."""
    return str(safe_cell(printable(name)))


def _cell(value: object) -> object:
    return safe_cell(one_line(value)) if isinstance(value, str) else value


class ReportTable:
    """A CSV file of reports, which is locked while the block runs.

    Args:
        path: The file.
        model: The model's name; an existing table of another model is an error.
        overwrite: Whether an existing file is replaced.

    Raises:
        UserError: The file exists and is not a table of this model, or another process writes it.
    """

    def __init__(self, path: Path, model: str, overwrite: bool) -> None:
        self.path, self.model = path, model
        self._columns: list[str] = []
        self._rows: list[list[str]] = []
        self._incomplete: set[str] = set()  # image cells
        with contextlib.ExitStack() as stack:
            if path.is_dir():
                raise UserError(f"--csv {path} is a folder: name a file in it")
            stack.enter_context(lock.hold(path))
            if path.exists() and path.stat().st_size and not overwrite:
                self._read()
            self._open = stack.pop_all()

    def __enter__(self) -> ReportTable:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def _read(self) -> None:
        """Read the rows; those of a file without an answer, or of a cut-off one, are incomplete."""
        try:
            content = self.path.read_bytes()
            complete = content[: content.rfind(b"\n") + 1]
            text = complete.decode("utf-8-sig")
            header, *rows = csv.reader(io.StringIO(text, newline=""), strict=True)
        except (OSError, csv.Error, ValueError) as error:
            raise self._foreign(f"it cannot be read: {error}") from error
        if header[:1] != ["image"] or not {"error", *SETTINGS} <= set(header):
            raise self._foreign(f"its columns are {one_line(', '.join(header))[:100]}")
        for number, row in enumerate(rows, 2):
            if len(row) != len(header):
                raise self._foreign(f"row {number} has {len(row)} cells, not {len(header)}")
        self._columns, self._rows = header, rows
        self._incomplete = {row[0] for row in rows if row[header.index("error")]}
        if complete != content and rows:
            self._incomplete.add(rows[-1][0])  # a file has several rows if it shows several faces
        self._check("model", self.model)

    def _foreign(self, reason: str) -> UserError:
        return UserError(
            f"{self.path} exists and is not a table of `vlmface predict` ({reason}): name another "
            "file, or replace it with --overwrite"
        )

    def _check(self, column: str, value: str) -> None:
        """Raise UserError if the rows have another value in a column of SETTINGS."""
        position = self._columns.index(column)
        for row in self._rows:
            if row[position] != (expected := str(_cell(value))):
                raise UserError(
                    f"{self.path} has rows with {column} {row[position]!r}, not {expected!r}: name "
                    "another file, or replace it with --overwrite"
                )

    def remove_incomplete(self, names: Iterable[str]) -> set[str]:
        """Remove the rows of files that will be processed again.

        Args:
            names: The names of all files.

        Returns:
            The names of those that the table has no answer for.
        """
        answered = {row[0] for row in self._rows} - self._incomplete
        missing = {name for name in names if image_cell(name) not in answered}
        removed = set(map(image_cell, missing))
        self._rows = [row for row in self._rows if row[0] not in removed]
        return missing

    def start(self, prompts: Mapping[str, PromptLike], faces: str) -> None:
        """Write the header and the rows that are kept.

        Args:
            prompts: {task: prompt} of the model.
            faces: As in `Predictor.predict`.

        Raises:
            UserError: The rows that are kept have other columns or settings.
        """
        prompt = " ".join(prompt.id for prompt in prompts.values())
        columns = [str(_cell(name)) for name in table_columns(prompts)]
        if self._rows:
            self._check("prompt", prompt)
            self._check("faces", faces)
            if columns != self._columns:
                raise self._foreign("its columns are not those of this model's labels")
        self._columns, self._settings = columns, [self.model, prompt, faces]
        self._prompts = prompts
        atomic_write(self.path, BOM + _lines([columns, *self._rows]))
        file = self.path.open("a", encoding="utf-8", newline="")
        self._file = self._open.enter_context(file)

    def write(self, name: str, results: Results) -> None:
        """Append the rows of the file of that name."""
        if isinstance(results, UserError):
            rows = [self._row(name, None, results)]
        else:
            several = len(results) > 1
            rows = [
                self._row(name, number if several else None, result)
                for number, result in enumerate(results, 1)
            ]
        self._file.write(_lines(rows))
        self._file.flush()

    def _row(
        self, name: str, number: int | None, result: FaceReport | NoAnswerError | UserError
    ) -> list[object]:
        cells: list[object]
        if isinstance(result, UserError | NoAnswerError):
            cells = [number, *[None] * (len(self._columns) - 3 - len(SETTINGS)), str(result)]
        else:
            number = (number or 1) if result.face_found else None
            cells = [number, *_report_cells(result, self._prompts), None]
        return [image_cell(name), *map(_cell, [*cells, *self._settings])]


def _report_cells(report: FaceReport, prompts: Mapping[str, PromptLike]) -> Iterator[object]:
    """From `face_found` to `search_note`."""
    yield report.face_found
    yield from (round(float(x), 1) for x in report.box) if report.box else [None] * 4
    for task in prompts:
        prediction = report.answers[task]
        yield prediction.answer.text_labels
        label = prediction.answer.label
        yield _probability(prediction.probabilities, label) if label else None
        yield prediction.answer.status if report.has_prediction else None
    yield " ".join(map(facs.name, report.aus))
    yield report.rationale
    if uses_evidence(prompts.values()):
        yield report.evidence
    for task, prompt in prompts.items():
        prediction = report.answers[task]
        if prompt.space.scale is not None:
            yield None if prediction.expected is None else round(prediction.expected, 4)
            continue
        probabilities = prediction.probabilities
        yield from (_probability(probabilities, label) for label in prompt.space.labels)
    yield report.search_note


def _probability(probabilities: Mapping[str, float] | None, label: str) -> float | None:
    return None if probabilities is None else round(probabilities[label], 4)


def _lines(rows: Iterable[Sequence[object]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()
