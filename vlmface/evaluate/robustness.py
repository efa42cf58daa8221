"""How fast does a model get worse as pictures do? A benchmark's faces, corrupted at five strengths
(`vlmface.data.corruptions`), asked by the same prompt and scored as ever."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmface import manifest
from vlmface.aus.evidence import COLUMN as EVIDENCE
from vlmface.benchmarks import Benchmark, load_benchmark, load_rows
from vlmface.data import corruptions
from vlmface.data.row_images import open_images, open_row_image
from vlmface.errors import UserError
from vlmface.evaluate import answering
from vlmface.evaluate.run import compute_metrics, output_folder
from vlmface.infer.prediction import NO_PREDICTION
from vlmface.metrics.metric import Metric, of_kind, scored_blocks
from vlmface.metrics.metrics import valid_share
from vlmface.utils import config, distributed, html, lock
from vlmface.utils.files import atomic_write
from vlmface.utils.images import as_list, data_uri
from vlmface.utils.jsonl_journal import Journal
from vlmface.utils.ranges import Checked, Count, Unused

if TYPE_CHECKING:
    import datasets
    from PIL import Image

    from vlmface.infer.local import LocalModel


@dataclass(frozen=True)
class Settings(Checked):
    """The command line of eval/robustness.py.

    Args:
        model: run folder, or base model
        benchmark: name in eval/benchmarks, or a YAML file
        output_dir: folder to write; null: eval/robustness in the run folder
        dataset_root: folder of the benchmark's data set
        prompt: one of the run's prompts, or that of a base model; null: the run's first
        n: rows of the benchmark, each with every corruption at every strength
        corruptions: names of corruptions; empty: all
        max_new_tokens: answers are cut here; null: as in the run
        batch_size: rows at a time
    """

    model: str
    benchmark: str = "synth"
    output_dir: str | None = None
    dataset_root: str | None = None
    prompt: str | None = None
    n: Count = 200
    corruptions: list[str] = field(default_factory=list)
    max_new_tokens: Count | None = None
    batch_size: Count = answering.BATCH_SIZE

    def unused(self) -> Iterator[Unused]:
        if not load_benchmark(self.benchmark).needs_root:
            why = f"benchmark {self.benchmark} is on rendered pictures"
            yield Unused("dataset_root", why, ("benchmark",))


def measure(
    predictor: LocalModel, rows: datasets.Dataset, settings: Settings, journal: Journal
) -> dict[str, Any]:
    """{"clean": scores, "corruptions": {name: [scores at strength 1, ..., 5]}, "mean": {score: its
    mean over all corruptions and strengths}}; scores are {name of a metric: {"value", "ci95"}}, see
    `_short`. What the journal has is not asked again."""
    from tqdm import tqdm

    benchmark = load_benchmark(settings.benchmark)
    prompt, *_ = answering.scored_prompts(benchmark, predictor.prompts)
    asking = predictor.with_prompt(prompt)
    names = settings.corruptions or list(corruptions.NAMES)
    images = [as_list(open_images(row)) for row in rows]

    metric_names = "".join(f" {name}" for name in benchmark.metrics)

    def scores_of(name: str, strength: int) -> dict[str, Any]:
        id = f"{name} {strength} {manifest.trained_at(settings.model) or ''}{metric_names}"
        if id not in journal.records:
            pictures = [
                [corruptions.corrupt(image, name, strength, key=key) for image in images_of_row]
                for images_of_row, key in zip(images, rows["id"], strict=True)
            ]
            evidence = asking.evidence_of(pictures)  # of what is shown: of the corrupted pictures
            predictions = asking.predict(
                pictures,
                batch_size=settings.batch_size,
                probabilities=False,
                preprocessed=True,
                evidence=evidence,
            )
            lines = [
                answering.prediction_record(
                    row | {EVIDENCE: text},
                    benchmark,
                    prompt,
                    NO_PREDICTION if answering.is_without_face(row, asking.views) else prediction,
                )
                for row, prediction, text in zip(rows, predictions, evidence, strict=True)
            ]
            scores = compute_metrics(lines, benchmark, [prompt], model=settings.model)
            journal.add({"id": id, "scores": _short(scores, benchmark)})
        bar.update(1)
        return journal.records[id]["scores"]

    with tqdm(total=1 + 5 * len(names), desc="corrupted pictures", unit="set") as bar:
        clean = scores_of(names[0], 0)
        curves = {
            name: [scores_of(name, strength) for strength in corruptions.STRENGTHS[1:]]
            for name in names
        }
    points = [point for curve in curves.values() for point in curve]
    # Some corrupted answers may have no value of a metric of the user's.
    keys = [key for key in clean if all(key in point for point in points)]
    return {
        "clean": {key: clean[key] for key in keys},
        "corruptions": curves,
        "mean": {key: sum(point[key]["value"] for point in points) / len(points) for key in keys},
    }


def _short(scores: Mapping[str, Any], benchmark: Benchmark) -> dict[str, Any]:
    """The headline scores of a metrics.json, those that the benchmark names, and the share of
    valid answers: {name of the metric: {"value", "ci95"}}."""
    figures_shown: dict[str, Any] = {}
    extra = benchmark.extra_metrics
    for block in scored_blocks(scores):
        for metric in of_kind(benchmark.all_metrics, block.kind):
            value = block.get(metric)
            if value is not None and (metric.headline or metric in extra):
                entry = {"value": value, "ci95": block.ci95(metric)}
                figures_shown.setdefault(metric.name, entry)  # of the first block that has it
    return figures_shown | {VALID.name: {"value": valid_share(scores), "ci95": None}}


# --- what people read -----------------------------------------------------------------------------

VALID = Metric("valid", "valid answers", lambda row, scope: None, ("answers",))
WIDTH, HEIGHT = 240, 130  # of a drawing, with room for the labels
LEFT, RIGHT, TOP, BOTTOM = 28, 236, 8, 112


def write(
    figures: Mapping[str, Any],
    about: Mapping[str, Any],
    metrics: Sequence[Metric],
    sample: Image.Image,
    output: Path,
) -> Path:
    """Write robustness.json and robustness.html into `output`.

    Args:
        figures: Of `measure`.
        about: What the page says of the model and the benchmark.
        metrics: The definitions of the scores.
        sample: The picture that is shown corrupted.
        output: The folder.

    Returns:
        The path of the page.
    """
    result = {"schema": 1, **about, **figures}
    atomic_write(output / "robustness.json", json.dumps(result, indent=2) + "\n")
    metrics_shown = shown_metrics(figures, metrics)
    panels = [
        {
            "name": name.replace("_", " "),
            "curves": [
                {"color": i} | _drawing([figures["clean"], *points], metric.name)
                for i, metric in enumerate(metrics_shown)
                if metric.is_share
            ],
            "faces": [
                data_uri(
                    corruptions.corrupt(sample, name, strength, key=name), max_side=html.MAX_SIDE
                )
                for strength in corruptions.STRENGTHS[1:]
            ],
            "last": points[-1],
        }
        for name, points in figures["corruptions"].items()
    ]
    content = html.render(
        "robustness.html.j2",
        result=result,
        name=Path(str(about["model"])).name,
        panels=panels,
        metrics=metrics_shown,
        titles={metric.name: _title(metric) for metric in metrics_shown},
        x=[(round(_x(strength), 1), strength) for strength in corruptions.STRENGTHS],
        y=[(round(_y(share), 1), f"{100 * share:.0f}") for share in (0, 0.5, 1)],
        size=(WIDTH, HEIGHT),
        edges=(LEFT, RIGHT),
        when=html.stamp(),
    )
    path = output / "robustness.html"
    atomic_write(path, content)
    return path


def shown_metrics(figures: Mapping[str, Any], metrics: Sequence[Metric]) -> list[Metric]:
    """The definitions of the scores of `figures`, in their order."""
    metric_of = {metric.name: metric for metric in [*metrics, VALID]}
    return [metric_of[key] for key in figures["clean"]]


def _title(metric: Metric) -> str:
    """The title, of an AU metric the one that names AUs."""
    return metric.short_title if "au" in metric.applies_to else metric.title


def _drawing(points: Sequence[Mapping[str, Any]], key: str) -> dict[str, str]:
    """The curve of a score over strengths 0 to 5, and the band of its intervals."""
    values = [point[key] for point in points]
    line = " ".join(
        f"{_x(i):.1f},{_y(compute_metrics['value']):.1f}"
        for i, compute_metrics in enumerate(values)
    )
    if any(compute_metrics["ci95"] is None for compute_metrics in values):
        return {"line": line, "band": ""}
    upper = [
        f"{_x(i):.1f},{_y(compute_metrics['ci95'][1]):.1f}"
        for i, compute_metrics in enumerate(values)
    ]
    lower = [
        f"{_x(i):.1f},{_y(compute_metrics['ci95'][0]):.1f}"
        for i, compute_metrics in enumerate(values)
    ]
    return {"line": line, "band": " ".join(upper + lower[::-1])}


def _x(strength: float) -> float:
    return LEFT + (RIGHT - LEFT) * strength / 5


def _y(share: float) -> float:
    return BOTTOM - (BOTTOM - TOP) * share


def run(settings: Settings) -> dict[str, Any]:
    """Measure a model and write robustness.json and .html into `settings.output_dir` (default:
    eval/robustness inside the run); returns the figures. The same call resumes after a kill."""
    from vlmface.infer.local import LocalModel

    if unknown := [name for name in settings.corruptions if name not in corruptions.NAMES]:
        raise UserError(
            f"there is no corruption {unknown[0]!r}: use some of {', '.join(corruptions.NAMES)}"
        )
    out = output_folder(settings.model, settings.output_dir, "robustness")
    benchmark = load_benchmark(settings.benchmark)
    predictor = LocalModel.load(
        settings.model, prompt=settings.prompt, max_new_tokens=settings.max_new_tokens
    )
    rows = load_rows(benchmark, settings.dataset_root, None, predictor.views, predictor.frames)
    rows = rows.select(range(min(settings.n, len(rows))))
    with lock.hold(out):
        if (out / config.SETTINGS).exists():
            config.check_config(settings, out, ignore=("output_dir", "batch_size", "corruptions"))
        else:
            config.save_config(settings, out)
        with Journal(out / "sets.jsonl") as journal, contextlib.closing(predictor):
            figures = measure(predictor, rows, settings, journal)
    about = {
        "model": settings.model,
        "benchmark": benchmark.id,
        "n": len(rows),
        "prompt": {"id": predictor.prompt.id, "sha": predictor.prompt.sha},
        "parameters": {name: corruptions.PARAMETERS[name] for name in figures["corruptions"]},
    }
    defined = benchmark.all_metrics
    path = write(figures, about, defined, open_row_image(rows[0]["image"]), out)
    for metric in shown_metrics(figures, defined):
        clean = metric.with_unit(figures["clean"][metric.name]["value"])
        mean = metric.with_unit(figures["mean"][metric.name])
        print(
            f"{_title(metric)}: {clean} on clean pictures, "
            f"{mean} in the mean over corruptions and strengths"
        )
    print(f"page: {path}")
    return figures


def main(argv: Sequence[str]) -> int:
    """`--model RUN [--benchmark NAME] [--n FACES] [--corruptions blur,noise] ...`"""
    distributed.check_alone("eval/robustness.py")
    settings = config.parse_args(Settings, argv, usage=f"python eval/robustness.py {main.__doc__}")
    run(settings)
    return 0
