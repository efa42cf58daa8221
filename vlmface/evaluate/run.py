"""A benchmark, a model, one result: the protocol file says what is asked, the manifest how.

The recipes score their models through `answer` and `score` too, so that a run's own numbers and
those of a later `eval/run.py` are the same numbers.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmface import config, data, taxonomy
from vlmface.data import crops
from vlmface.data.rows import pictures
from vlmface.encode import open_row_image
from vlmface.errors import UserError
from vlmface.evaluate import metrics, report
from vlmface.files import atomic_write, resource
from vlmface.manifest import is_run
from vlmface.prompts import Prompt
from vlmface.schema import FaceSample
from vlmface.train.sft import is_main, peak_rss_gib

if TYPE_CHECKING:
    import datasets
    from PIL import Image

    from vlmface.infer.predictor import Predictor

ATTRIBUTES = ("gender", "age_group", "race")
# What eval/published.yaml may give of a model: scores of the emotion (or of the one other label
# space that is scored), the mean F1 of the AUs, the accuracy of an attribute.
PUBLISHED_SCORES = ("accuracy", "uar", "f1_macro", "au_f1_macro", *ATTRIBUTES)
_FOLD = re.compile(r"(.+)_fold(\d+)")


@dataclass(frozen=True)
class Benchmark:
    """A protocol file, eval/benchmarks/NAME.yaml.

    `label_space` is what is scored, or a list of such; each is asked by the model's prompt with
    that space. Without one the AUs alone are scored. `protocol` are the data set's own options (n,
    seed, fold, ...), `folds` how many test parts it has of which `protocol` names one (papers give
    the mean over all), `au_set` the AUs that are scored, `au_threshold` the intensity (0..5) from
    which one counts as present (null: as annotated). `baseline` is a JSON file beside the protocol
    with the scores of a plain model, shown next to ours.
    """

    id: str
    dataset: str
    split: str
    source: str
    label_space: str | list[str] | None = None
    protocol: dict[str, Any] = field(default_factory=dict)
    folds: int | None = None
    au_set: list[int] = field(default_factory=list)
    au_threshold: float | None = None
    metrics: list[str] = field(default_factory=list)
    baseline: str | None = None
    notes: str | None = None

    @property
    def spaces(self) -> list[taxonomy.LabelSpace]:
        named = [self.label_space] if isinstance(self.label_space, str) else self.label_space
        return [taxonomy.space(name) for name in named or ()]

    @property
    def published(self) -> list[dict[str, Any]]:
        """The results of eval/published.yaml that it can be compared with."""
        fold = _FOLD.fullmatch(self.id)
        return load_published().get(fold[1] if fold else self.id, [])


@dataclass(frozen=True)
class Settings:
    """The command line of `eval/run.py`."""

    benchmark: str
    model: str
    output_dir: str | None = None
    data_root: str | None = None
    n: int | None = None
    prompt: str | None = None
    max_new_tokens: int | None = None
    batch_size: int = 16


def load_benchmark(name_or_path: str) -> Benchmark:
    """A benchmark by name ("synth"), another fold of one ("disfa8_fold2"), or from a YAML file of
    your own. Raises UserError."""
    path, fold = Path(name_or_path), None
    if path.suffix not in (".yaml", ".yml"):
        name = name_or_path
        if match := _FOLD.fullmatch(name):
            name, fold = match[1], int(match[2])
        if name not in benchmark_names():
            raise UserError(f"there is no benchmark {name!r}{_did_you_mean(name)}")
        path = resource("eval/benchmarks") / f"{name}.yaml"
    benchmark = config.build(Benchmark, config.read(path), where=str(path))
    fields = [space.field for space in benchmark.spaces]
    if not fields and not benchmark.au_set:
        raise UserError(f"{path} has neither label_space nor au_set: say what is scored")
    if len(set(fields)) < len(fields):
        raise UserError(
            f"{path}: label_space is {benchmark.label_space!r}: name one, or several of which no "
            f"two speak of the same ({', '.join(fields)})"
        )
    if benchmark.baseline is not None:  # a file beside the protocol
        benchmark = replace(benchmark, baseline=str(path.parent / benchmark.baseline))
    return benchmark if fold is None else _of_fold(benchmark, fold)


def _of_fold(benchmark: Benchmark, fold: int) -> Benchmark:
    if benchmark.folds is None:
        raise UserError(f"benchmark {benchmark.id} has no folds: leave _fold{fold} out")
    if not 1 <= fold <= benchmark.folds:
        raise UserError(
            f"benchmark {benchmark.id} has folds 1 to {benchmark.folds}: there is no fold {fold}"
        )
    options = benchmark.protocol | {"fold": fold}
    return replace(benchmark, id=f"{benchmark.id}_fold{fold}", protocol=options)


def benchmark_names() -> list[str]:
    """The names that `load_benchmark` knows, sorted, without those of single folds."""
    return sorted(file.stem for file in resource("eval/benchmarks").glob("*.yaml"))


def _did_you_mean(name: str) -> str:
    """The end of a sentence about an unknown benchmark."""
    known = benchmark_names()
    near = difflib.get_close_matches(name.lower(), known)
    hint = f" (did you mean {', '.join(map(repr, near))}?)" if near else ""
    return f"{hint}: use one of {', '.join(known)}"


def load_published(path: Path | None = None) -> dict[str, list[dict[str, Any]]]:
    """eval/published.yaml: benchmark -> results that papers report on it. Each names its `model`
    and `source`, has scores (0..1) under names of PUBLISHED_SCORES, and may have `notes` on how its
    protocol differs. Raises UserError."""
    path = path or resource("eval/published.yaml")
    results = config.read(path)
    known = benchmark_names()
    for name, entries in results.items():
        if name not in known:
            raise UserError(f"{path}: there is no benchmark {name!r}{_did_you_mean(str(name))}")
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise UserError(f"{path}: {name} should hold a list of {{model, scores, source}}")
        for number, entry in enumerate(entries, 1):
            _check_result(entry, where=f"{path}: result {number} of {name}")
    return results


def _check_result(entry: Mapping[str, Any], where: str) -> None:
    for key in ("model", "source"):
        if not isinstance(entry.get(key), str) or not entry[key].strip():
            raise UserError(f"{where} has {key} {entry.get(key)!r}: give a text")
    scores = entry.keys() - {"model", "source", "notes"}
    if not scores or not scores <= set(PUBLISHED_SCORES):
        found = ", ".join(sorted(map(str, scores - set(PUBLISHED_SCORES)))) or "none"
        raise UserError(
            f"{where} ({entry['model']}) should have scores named {', '.join(PUBLISHED_SCORES)}, "
            f"found {found}"
        )
    for key in scores:
        if type(entry[key]) not in (int, float) or not 0 <= entry[key] <= 1:
            raise UserError(
                f"{where} ({entry['model']}) has {key} {entry[key]!r}, expected a share from 0 to "
                "1: divide a percentage by 100"
            )


def load_baseline(benchmark: Benchmark) -> dict[str, Any] | None:
    """The plain model's scores that a report shows beside ours, if the benchmark names any."""
    if benchmark.baseline is None:
        return None
    path = benchmark.baseline
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"benchmark {benchmark.id}: cannot read its baseline {path} ({error}): restore the "
            "file, or take the `baseline` line out of the benchmark"
        ) from error


def load_rows(
    benchmark: Benchmark, root: str | None, n: int | None, crop: crops.Crop | None = None
) -> datasets.Dataset:
    """The benchmark's rows, images as stored, or their faces cut out; `n` takes another number of
    them (not comparable with published results)."""
    options = benchmark.protocol | ({"n": n} if n is not None else {})
    rows = pictures(data.load(benchmark.dataset, root, benchmark.split, **options))
    return crops.cached(rows, crop) if crop else rows


def images_of(rows: datasets.Dataset) -> list[Image.Image]:
    """The pictures, opened."""
    return [open_row_image(image) for image in rows["image"]]


def answer(
    predictor: Predictor, rows: datasets.Dataset, benchmark: Benchmark, *, batch_size: int
) -> list[dict[str, Any]]:
    """Ask the predictor about every row: the lines of predictions.jsonl, in order, those of a row
    one after the other if there are several prompts."""
    from tqdm import tqdm

    asked = [predictor.asking(prompt) for prompt in scored_prompts(benchmark, predictor.prompts)]
    lines = []
    title = f"answering {benchmark.id}"
    with tqdm(total=len(rows), desc=title, unit="face", disable=not is_main()) as bar:
        for start in range(0, len(rows), batch_size):
            part = rows.select(range(start, min(start + batch_size, len(rows))))
            images = images_of(part)
            found = [one.predict(images, batch_size=batch_size, cut_out=True) for one in asked]
            for row, predictions in zip(part, zip(*found, strict=True), strict=True):
                true = truth(FaceSample.from_row(row), benchmark)
                lines += [
                    {
                        "id": row["id"],
                        "image": (row["image"] or {}).get("path") or row["id"],
                        "truth": true,
                        "prompt": one.prompt.id,
                        "text": prediction.text,
                        "label": prediction.answer.label,
                        "status": prediction.answer.status,
                        "aus": list(prediction.answer.aus),
                        "probabilities": prediction.probabilities,
                        "latency_s": round(prediction.latency_s, 4),
                    }
                    for one, prediction in zip(asked, predictions, strict=True)
                ]
            bar.update(len(part))
    return lines


def answer_once(
    model: str,
    path: Path,
    rows: datasets.Dataset,
    benchmark: Benchmark,
    *,
    prompts: Sequence[Prompt] = (),
    processor: Any = None,
    max_new_tokens: int | None = None,
    batch_size: int,
) -> list[dict[str, Any]]:
    """`answer` by the model (a run, or a base with `prompts` and, if it is not its own, a
    `processor`), shared between the processes of a distributed run, and kept in `path`: there
    already, it is read and not computed again."""
    from vlmface.infer.predictor import Predictor

    if path.exists():
        return read_lines(path)
    is_base = not is_run(model)
    predictor = Predictor.load(
        model, prompt=prompts[0] if is_base else None, max_new_tokens=max_new_tokens
    )
    if is_base:
        predictor.prompts = list(prompts)
        predictor.processor = processor or predictor.processor
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        lines = answer(predictor, rows, benchmark, batch_size=batch_size)
    else:
        from accelerate.utils import gather_object

        share = rows.shard(world, int(os.environ["RANK"]), contiguous=True)
        lines = gather_object(answer(predictor, share, benchmark, batch_size=batch_size))
    if is_main():
        write_lines(path, lines)
    return lines


def scored_prompts(benchmark: Benchmark, prompts: Sequence[Prompt]) -> list[Prompt]:
    """Those of the prompts whose label space the benchmark scores, the first of each space; where
    only AUs are scored, the first whose answers name them. Raises UserError if there is none."""
    if not benchmark.spaces:
        found = [next((prompt for prompt in prompts if prompt.form != "label"), None)]
    else:
        found = [
            next((prompt for prompt in prompts if prompt.space.id == space.id), None)
            for space in benchmark.spaces
        ]
    if not any(found):
        asked = ", ".join(f"{prompt.id} for {prompt.space.id}" for prompt in prompts)
        if not benchmark.spaces:
            raise UserError(
                f"the prompts ask {asked} and for nothing else, but benchmark {benchmark.id} "
                "scores action units: use a prompt whose answers name them, such as face_cot"
            )
        raise UserError(
            f"the prompts ask {asked}, but benchmark {benchmark.id} scores "
            f"{', '.join(space.id for space in benchmark.spaces)}: use a prompt or a benchmark "
            "with the other's label space"
        )
    return [prompt for prompt in found if prompt is not None]


def truth(sample: FaceSample, benchmark: Benchmark) -> dict[str, Any]:
    """What is annotated for a row; null is "not annotated", or not scored where AUs alone are."""
    present = sample.intensities(benchmark.au_threshold)
    attributes = {name: getattr(sample, name) for name in ATTRIBUTES}
    for space in benchmark.spaces:
        if space.field == "context":  # a list: the one label of this space in it
            attributes["context"] = sample.label(space)
        elif space.field != "emotion":  # a word that is none stays, and is refused when scored
            attributes[space.field] = sample.label(space) or attributes[space.field]
    return {
        "emotion": sample.emotion if benchmark.spaces else None,
        "aus": None if sample.aus is None else {str(au): value for au, value in present.items()},
        "annotated_aus": None if sample.aus is None else list(sample.annotated_aus()),
        "attributes": attributes,
    }


def score(
    lines: Sequence[Mapping[str, Any]],
    benchmark: Benchmark,
    prompts: Sequence[Prompt],
    *,
    model: str,
) -> dict[str, Any]:
    """The metrics.json of one evaluation; `wall_s` is the time spent answering."""
    return metrics.merge([
        metrics.summarise(
            of_prompt(lines, prompt),
            prompt.space,
            au_set(benchmark, prompt),
            benchmark=benchmark.id,
            model=model,
            prompt={"id": prompt.id, "sha": prompt.sha},
            mode="free",
            wall_s=round(sum(line["latency_s"] for line in of_prompt(lines, prompt)), 2),
            peak_rss_gib=round(peak_rss_gib(), 3),
        )
        for prompt in scored_prompts(benchmark, prompts)
    ])  # fmt: skip


def compare(
    before: Sequence[Mapping[str, Any]],
    after: Sequence[Mapping[str, Any]],
    benchmark: Benchmark,
    prompts: Sequence[Prompt],
) -> dict[str, Any]:
    """`metrics.compare` for each prompt that the benchmark scores, together."""
    parts = [
        metrics.compare(
            of_prompt(before, prompt),
            of_prompt(after, prompt),
            prompt.space,
            au_set(benchmark, prompt),
        )
        for prompt in scored_prompts(benchmark, prompts)
    ]
    whole = parts[0]
    for part in parts[1:]:
        for name in part.keys() - {"n"}:
            whole[name] = whole.get(name, {}) | part[name]
    return whole


def of_prompt(lines: Sequence[Mapping[str, Any]], prompt: Prompt) -> list[Mapping[str, Any]]:
    """The lines of predictions.jsonl that answer this prompt."""
    return [line for line in lines if line["prompt"] == prompt.id]


def au_set(benchmark: Benchmark, prompt: Prompt) -> list[int]:
    """The AUs to score: none if the prompt asks for the label alone."""
    return [] if prompt.form == "label" else benchmark.au_set


def write_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Write predictions.jsonl atomically."""
    atomic_write(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def read_lines(path: Path) -> list[dict[str, Any]]:
    # Not splitlines(): texts may hold other line separators as they are.
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]


def summary(scores: Mapping[str, Any]) -> str:
    """One line for people: accuracy, UAR, AU F1 and how many answers could be read."""
    emotion, parse = scores.get("emotion", {}), scores["parse"]
    parts = []
    if emotion:
        low, high = emotion["ci95"]["accuracy"]
        parts.append(f"emotion accuracy {emotion['accuracy']:.3f} [{low:.3f}, {high:.3f}]")
        parts.append(f"UAR {emotion['uar']:.3f}")
    for name, block in scores.get("attributes", {}).items():
        parts.append(f"{name} accuracy {block['accuracy']:.3f}")
    if "au" in scores:
        parts.append(f"AU F1 {scores['au']['f1_macro']:.3f}")
    parts.append(f"valid answers {parse['strict'] + parse['lenient']:.1%}")
    return ", ".join(parts) + f" on {scores['n']} faces"


def conclude(
    run_dir: Path,
    models: tuple[str, str],
    before: Sequence[Mapping[str, Any]],
    after: Sequence[Mapping[str, Any]],
    benchmark: Benchmark,
    asked: Sequence[Prompt],
    faces: datasets.Dataset,
    trained: Mapping[str, Any],
    baseline: Mapping[str, Any] | None,
) -> None:
    """Write metrics.json and then report.html, which says that a run is complete, and print what
    was learnt. `before` and `after` are the predictions of the two `models` on the `faces`."""
    scores = {
        "before": score(before, benchmark, asked, model=models[0]),
        "after": score(after, benchmark, asked, model=models[1]),
        "paired": compare(before, after, benchmark, asked),
        "train": dict(trained),
    }
    text = json.dumps(scores, indent=2, ensure_ascii=False)
    atomic_write(run_dir / "metrics.json", text + "\n")
    images = dict(zip(faces["id"], faces["image"], strict=True))
    report.write_report(run_dir, images=images, baseline=baseline)
    print(f"learnt: {summary(scores['after'])} (before: {summary(scores['before'])})")
    print(f"is in:  {run_dir} (adapter, predictions, report.html)")
    print(f"next:   vlmface predict FACE.jpg --model {run_dir}")


def run(settings: Settings) -> dict[str, Any]:
    """Evaluate a model, write metrics.json, predictions.jsonl and report.html into
    `settings.output_dir` (default: eval/NAME inside the run), and return the metrics."""
    from vlmface.infer.predictor import Predictor

    benchmark = load_benchmark(settings.benchmark)
    predictor = Predictor.load(
        settings.model, prompt=settings.prompt, max_new_tokens=settings.max_new_tokens
    )
    asked = scored_prompts(benchmark, predictor.prompts)
    if settings.output_dir is None and predictor.manifest is None:
        raise UserError(f"{settings.model} is no run folder: say where to with --output_dir")
    out = Path(settings.output_dir or Path(settings.model) / "eval" / benchmark.id)
    baseline = load_baseline(benchmark)
    rows = load_rows(benchmark, settings.data_root, settings.n, predictor.crop)
    lines = answer(predictor, rows, benchmark, batch_size=settings.batch_size)
    scores = score(lines, benchmark, asked, model=settings.model)
    write_lines(out / "predictions.jsonl", lines)
    if predictor.manifest:
        predictor.manifest.save(out)  # the report's header, and what these numbers belong to
    atomic_write(out / "metrics.json", json.dumps(scores, indent=2) + "\n")
    images = dict(zip(rows["id"], rows["image"], strict=True))
    report.write_report(out, images=images, baseline=baseline)
    print(summary(scores))
    print(f"report: {out / 'report.html'}")
    return scores


def main(argv: Sequence[str]) -> int:
    """`--benchmark NAME --model RUN [--output_dir DIR] [--n N] ...`"""
    words = list(argv)
    if "-h" in words or "--help" in words:
        print("python eval/run.py --benchmark NAME --model RUN [--field value ...]\n")
        print("fields: " + ", ".join(Settings.__dataclass_fields__))
        return 0
    run(config.build(Settings, config.words(Settings, words), where="the command line"))
    return 0
