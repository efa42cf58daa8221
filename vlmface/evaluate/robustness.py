"""How fast does a model get worse as pictures do? A benchmark's faces, corrupted at five strengths
(`vlmface.evaluate.corrupt`), asked by the same prompt and scored as ever."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmface import manifest
from vlmface.benchmarks import load_benchmark, load_rows
from vlmface.data.row_images import open_images, open_row_image
from vlmface.errors import UserError
from vlmface.evaluate import answering, corrupt, report
from vlmface.evaluate.run import output_folder, score
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
    """The command line of `eval/robustness.py`: the first `n` faces of the benchmark, each with
    every one of the `corruptions` (empty: all) at every strength."""

    model: str
    benchmark: str = "synth"
    output_dir: str | None = None
    data_root: str | None = None
    prompt: str | None = None
    n: Count = 200
    corruptions: list[str] = field(default_factory=list)
    max_new_tokens: Count | None = None
    batch_size: Count = answering.BATCH_SIZE

    def unused(self) -> Iterator[Unused]:
        if not load_benchmark(self.benchmark).needs_root:
            why = f"benchmark {self.benchmark} is on rendered pictures"
            yield Unused("data_root", why, ("benchmark",))


def measure(
    predictor: LocalModel, rows: datasets.Dataset, settings: Settings, journal: Journal
) -> dict[str, Any]:
    """{"clean": scores, "corruptions": {name: [scores at strength 1, ..., 5]}, "mean": {score: its
    mean over all corruptions and strengths}}; scores are {"accuracy", "au_f1", "valid"}, those
    that the benchmark has, {"value", "ci95"} each. What the journal has is not asked again."""
    from tqdm import tqdm

    benchmark = load_benchmark(settings.benchmark)
    prompt, *_ = answering.scored_prompts(benchmark, predictor.prompts)
    asking = predictor.with_prompt(prompt)
    names = settings.corruptions or list(corrupt.NAMES)
    images = [as_list(open_images(row)) for row in rows]

    def scores_of(name: str, strength: int) -> dict[str, Any]:
        id = f"{name} {strength} {manifest.trained_at(settings.model) or ''}"
        if id not in journal.records:
            pictures = [
                [corrupt.corrupt(image, name, strength, key=key) for image in shown]
                for shown, key in zip(images, rows["id"], strict=True)
            ]
            said = asking.predict(
                pictures, batch_size=settings.batch_size, probabilities=False, preprocessed=True
            )
            lines = [answering.line(row, benchmark, prompt, one) for row, one in
                     zip(rows, said, strict=True)]  # fmt: skip
            found = score(lines, benchmark, [prompt], model=settings.model)
            journal.add({"id": id, "scores": _short(found)})
        bar.update(1)
        return journal.records[id]["scores"]

    with tqdm(total=1 + 5 * len(names), desc="corrupted pictures", unit="set") as bar:
        clean = scores_of(names[0], 0)
        found = {
            name: [scores_of(name, strength) for strength in corrupt.STRENGTHS[1:]]
            for name in names
        }
    points = [one for curve in found.values() for one in curve]
    return {
        "clean": clean,
        "corruptions": found,
        "mean": {key: sum(one[key]["value"] for one in points) / len(points) for key in clean},
    }


_SHOWN = {"action units": ("au_f1", "f1_macro"), report.LABELS: ("jaccard", "jaccard")}


def _short(scores: Mapping[str, Any]) -> dict[str, Any]:
    """What the curve shows of a metrics.json."""
    found = {}
    for title, block in report.score_blocks(scores).items():
        name, key = _SHOWN.get(title, ("accuracy", "accuracy"))
        if key in block:
            found[name] = {"value": block[key], "ci95": block["ci95"].get(key)}
    parse = scores["parse"]
    valid = parse["strict"] + parse["lenient"]
    return found | {"valid": {"value": valid, "ci95": None}}


# --- what people read -----------------------------------------------------------------------------

TITLES = {
    "accuracy": "accuracy", "jaccard": "Jaccard index", "au_f1": "AU F1", "valid": "valid answers",
}  # fmt: skip
WIDTH, HEIGHT = 240, 130  # of a drawing, with room for the labels
LEFT, RIGHT, TOP, BOTTOM = 28, 236, 8, 112


def write(
    figures: Mapping[str, Any], about: Mapping[str, Any], sample: Image.Image, output: Path
) -> Path:
    """Write robustness.json and robustness.html into `output`; returns the page. `sample` is shown
    corrupted."""
    result = {"schema": 1, **about, **figures}
    atomic_write(output / "robustness.json", json.dumps(result, indent=2) + "\n")
    panels = [
        {
            "name": name.replace("_", " "),
            "curves": [
                {"key": key} | _drawing([figures["clean"], *points], key)
                for key in figures["clean"]
            ],
            "faces": [
                data_uri(corrupt.corrupt(sample, name, strength, key=name), max_side=html.MAX_SIDE)
                for strength in corrupt.STRENGTHS[1:]
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
        titles={key: TITLES[key] for key in figures["clean"]},
        x=[(round(_x(strength), 1), strength) for strength in corrupt.STRENGTHS],
        y=[(round(_y(share), 1), f"{100 * share:.0f}") for share in (0, 0.5, 1)],
        size=(WIDTH, HEIGHT),
        edges=(LEFT, RIGHT),
        when=html.stamp(),
    )
    path = output / "robustness.html"
    atomic_write(path, content)
    return path


def _drawing(points: Sequence[Mapping[str, Any]], key: str) -> dict[str, str]:
    """The curve of a score over strengths 0 to 5, and the band of its intervals."""
    values = [point[key] for point in points]
    line = " ".join(f"{_x(i):.1f},{_y(one['value']):.1f}" for i, one in enumerate(values))
    if any(one["ci95"] is None for one in values):
        return {"line": line, "band": ""}
    upper = [f"{_x(i):.1f},{_y(one['ci95'][1]):.1f}" for i, one in enumerate(values)]
    lower = [f"{_x(i):.1f},{_y(one['ci95'][0]):.1f}" for i, one in enumerate(values)]
    return {"line": line, "band": " ".join(upper + lower[::-1])}


def _x(strength: float) -> float:
    return LEFT + (RIGHT - LEFT) * strength / 5


def _y(share: float) -> float:
    return BOTTOM - (BOTTOM - TOP) * share


def run(settings: Settings) -> dict[str, Any]:
    """Measure a model and write robustness.json and .html into `settings.output_dir` (default:
    eval/robustness inside the run); returns the figures. Killed, the same call goes on."""
    from vlmface.infer.local import LocalModel

    if unknown := [name for name in settings.corruptions if name not in corrupt.NAMES]:
        raise UserError(
            f"there is no corruption {unknown[0]!r}: use some of {', '.join(corrupt.NAMES)}"
        )
    out = output_folder(settings.model, settings.output_dir, "robustness")
    benchmark = load_benchmark(settings.benchmark)
    predictor = LocalModel.load(
        settings.model, prompt=settings.prompt, max_new_tokens=settings.max_new_tokens
    )
    rows = load_rows(benchmark, settings.data_root, None, predictor.views, predictor.frames)
    rows = rows.select(range(min(settings.n, len(rows))))
    with lock.hold(out):
        if (out / config.SETTINGS).exists():
            config.compare(settings, out, free=("output_dir", "batch_size", "corruptions"))
        else:
            config.save(settings, out)
        with Journal(out / "sets.jsonl") as journal:
            figures = measure(predictor, rows, settings, journal)
    about = {
        "model": settings.model,
        "benchmark": benchmark.id,
        "n": len(rows),
        "prompt": {"id": predictor.prompt.id, "sha": predictor.prompt.sha},
        "parameters": {name: corrupt.PARAMETERS[name] for name in figures["corruptions"]},
    }
    path = write(figures, about, open_row_image(rows[0]["image"]), out)
    for key, mean in figures["mean"].items():
        print(f"{TITLES[key]}: {100 * figures['clean'][key]['value']:.1f} % on clean pictures, "
              f"{100 * mean:.1f} % in the mean over corruptions and strengths")  # fmt: skip
    print(f"page: {path}")
    return figures


def main(argv: Sequence[str]) -> int:
    """`--model RUN [--benchmark NAME] [--n FACES] [--corruptions blur,noise] ...`"""
    distributed.check_alone("eval/robustness.py")
    settings = config.from_words(Settings, argv, usage=f"python eval/robustness.py {main.__doc__}")
    run(settings)
    return 0
