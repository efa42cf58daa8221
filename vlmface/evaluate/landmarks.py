"""The estimator of landmarks alone on a benchmark: what a model has to be better than.

Its action units are those of `vlmface.aus`; its emotion is the one that they are most evidence for
(`facs.evidence`). The result has the form of any evaluation, for `vlmface compare`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmface import facs
from vlmface.benchmarks import Benchmark, load_baseline, load_benchmark, load_rows
from vlmface.data.row_images import open_row_image
from vlmface.errors import UserError
from vlmface.evaluate import answering, report
from vlmface.evaluate.run import compute_metrics, one_line_summary
from vlmface.infer.prediction import Prediction
from vlmface.label_spaces import EMOTIONS
from vlmface.manifest import is_run
from vlmface.prompts import Prompt
from vlmface.prompts import load as load_prompt
from vlmface.rationale import rules
from vlmface.utils import config, distributed, lock
from vlmface.utils.files import atomic_write, make_output_folder
from vlmface.utils.ranges import Checked, Count

if TYPE_CHECKING:
    from datasets import Dataset

    from vlmface.aus.estimator import Estimator

PROMPT = "face_cot"  # whose answers have rationales that name action units


@dataclass(frozen=True)
class Settings(Checked):
    """The command line of `vlmface eval landmarks`.

    Args:
        benchmark: name in eval/benchmarks, or a YAML file
        output_dir: folder to write; null: runs/eval_BENCHMARK_landmarks
        dataset_root: folder of the benchmark's data set
        n: rows to evaluate on; null: as the benchmark says
    """

    benchmark: str
    output_dir: str | None = None
    dataset_root: str | None = None
    n: Count | None = None


def run(settings: Settings) -> dict[str, Any]:
    """Evaluate the estimator; writes metrics.json, predictions.jsonl and report.html.

    Raises:
        UserError: The benchmark scores neither AUs nor emotions, its data are missing, or
            `vlmface[detect]` is not installed.
    """
    from vlmface.aus.estimator import Estimator

    benchmark = load_benchmark(settings.benchmark)
    prompt = _prompt(benchmark)
    out = Path(settings.output_dir or f"runs/eval_{benchmark.id}_landmarks")
    make_output_folder(out)
    if is_run(out):
        raise UserError(f"{out} holds a run: give another --output_dir")
    rows = load_rows(benchmark, settings.dataset_root, settings.n, (), 1)
    answering.check_ids(rows["id"])
    with lock.hold(out), Estimator() as estimator:
        lines = _lines(estimator, rows, benchmark, prompt)
        scores = compute_metrics(lines, benchmark, [prompt], model=estimator.model.id)
        scores["aus_told"] = [facs.name(au) for au in estimator.model.units]
        answering.write_lines(out / "predictions.jsonl", lines)
        atomic_write(out / "metrics.json", json.dumps(scores, indent=2) + "\n")
        images = dict(zip(rows["id"], rows["image"], strict=True))
        path = report.write_report(out, images=images, baseline=load_baseline(benchmark))
    print(one_line_summary(scores, benchmark.extra_metrics))
    _print_limits(lines, benchmark, estimator)
    print(f"report: {path}")
    return scores


def _prompt(benchmark: Benchmark) -> Prompt:
    """The prompt that the answers would be to. Raises UserError."""
    if not benchmark.spaces:
        return load_prompt(PROMPT)
    for space in benchmark.spaces:
        one_label = space.field == "emotion" and not space.multi_label
        if one_label and set(space.labels) <= set(EMOTIONS):
            return load_prompt(PROMPT).with_label_space(space)
    names = ", ".join(space.id for space in benchmark.spaces)
    raise UserError(
        f"benchmark {benchmark.id} scores {names}, for which action units are not evidence: use a "
        "benchmark of emotions or of action units"
    )


def _lines(
    estimator: Estimator, rows: Dataset, benchmark: Benchmark, prompt: Prompt
) -> list[dict[str, Any]]:
    from tqdm import tqdm

    lines = []
    for row in tqdm(rows, f"measuring {benchmark.id}", unit="face"):
        start = time.perf_counter()
        face = estimator.largest(open_row_image(row["image"]), row["face_box"])
        present = {} if face is None else face.present
        text = "" if face is None or face.reason else _text(present, prompt.space.labels, prompt)
        seconds = time.perf_counter() - start
        prediction = Prediction(text, prompt.parse(text), None, seconds, True, face is not None)
        lines.append(answering.prediction_record(row, benchmark, prompt, prediction))
    return lines


def _text(present: Mapping[int, float], labels: Sequence[str], prompt: Prompt) -> str:
    """The AUs, and the emotion of `labels` that they are most evidence for, as a completion."""
    evidence = facs.evidence(present)
    label = max(labels, key=lambda word: evidence[word])
    return rules.write(present, label, format=prompt.format)


def _print_limits(
    lines: Sequence[Mapping[str, Any]], benchmark: Benchmark, estimator: Estimator
) -> None:
    silent = sum(not line["text"] for line in lines)
    if silent:
        print(f"{silent} faces were not found or not estimated; they count as wrong")
    if untold := sorted(set(benchmark.au_set) - set(estimator.model.units)):
        names = ", ".join(map(facs.name, untold))
        print(f"{names} cannot be told by the estimator; they count as absent")


def main(argv: Sequence[str]) -> int:
    """`--benchmark NAME [--output_dir DIR] [--dataset_root DIR] [--n N]`"""
    distributed.check_alone("eval/landmarks.py")
    run(config.parse_args(Settings, argv, usage=f"python eval/landmarks.py {main.__doc__}"))
    return 0
