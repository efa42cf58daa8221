"""A benchmark, a model, one result: the protocol file says what is asked, the manifest how.

The recipes score their models through `predict_with` and `compute_metrics` too, so that a run's
own numbers and those of a later `eval/run.py` are the same numbers.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vlmface import benchmarks, data, label_spaces, label_texts, manifest
from vlmface.benchmarks import Benchmark, load_baseline, load_benchmark, load_rows
from vlmface.data import crops
from vlmface.errors import UserError
from vlmface.evaluate import answering, report, scoring_modes, tables, withholding
from vlmface.evaluate.answering import au_set, filter_by_prompt, scored_prompts
from vlmface.infer.endpoint import is_url
from vlmface.label_texts import LabelTexts
from vlmface.manifest import Manifest, is_run
from vlmface.metrics import metrics
from vlmface.metrics.metric import Metric, of_kind, scored_blocks, with_built_in
from vlmface.metrics.shares import in_brackets
from vlmface.prompts import GENERATED, Prompt, PromptLike, check_images
from vlmface.prompts import load as load_prompt
from vlmface.utils import config, distributed, lock
from vlmface.utils.files import atomic_write
from vlmface.utils.jsonl_journal import Journal
from vlmface.utils.memory import peak_rss_gib
from vlmface.utils.ranges import Checked, Count, Unused
from vlmface.utils.terminal import one_line

if TYPE_CHECKING:
    from datasets import Dataset

    from vlmface.infer.clip import ClipModel
    from vlmface.infer.local import LocalModel
    from vlmface.infer.remote import RemoteModel


EVERY = "ALL"


@dataclass(frozen=True)
class Settings(Checked):
    """The command line of eval/run.py.

    Args:
        benchmark: name in eval/benchmarks, a YAML file, or ALL
        model: run folder, base model, or URL of a server
        output_dir: folder to write; null: eval/BENCHMARK in the run folder, or, of a base model,
            runs/eval_BENCHMARK_MODEL
        dataset_root: folder of the benchmark's data set; of ALL: of all data sets
        n: rows to evaluate on; null: as the benchmark says
        prompt: one of the run's prompts, or that of a base model; null: the run's own, or, of a
            base model, that of the data set's file
        scoring: read answers as generated, or by the likelihood of each label, or both
        max_new_tokens: generated answers are cut here; null: as in the run
        batch_size: rows at a time, of a model in this process
        run_dir: of a server: the run folder that it serves
        served_model_name: of a server: its name for the model
        concurrency: of a server: requests at a time
        api_key_env: of a server: environment variable that holds its key
        request: of a server: fields of each request; null removes one
        evidence: of prompts that contain measured movements: those of the face, none, or those of
            another row
        pictures: those of the rows, grey ones, or those of another row
    """

    benchmark: str
    model: str
    output_dir: str | None = None
    dataset_root: str | None = None
    n: Count | None = None
    prompt: str | None = None
    scoring: Literal["generate", "likelihood", "both"] = "generate"
    max_new_tokens: Count | None = None
    batch_size: Count = answering.BATCH_SIZE
    # Where `model` is the URL of a server: the run whose prompts, views and limitations are used,
    # the model's name there, requests at a time, and the environment variable that holds the key.
    run_dir: str | None = None
    served_model_name: str | None = None
    concurrency: Count = 8
    api_key_env: str | None = None
    # Fields of each request to a server, which override ours; null removes one.
    request: dict[str, Any] = dataclasses.field(default_factory=dict)
    evidence: withholding.Source = "measured"
    pictures: withholding.Pictures = "shown"

    @property
    def name(self) -> str:
        """Of the folder of results in a run, after the benchmark's."""
        changed = {"evidence": self.evidence, "pictures": self.pictures}
        return "".join(
            f"_{name}_{value}"
            for name, value in changed.items()
            if value not in ("measured", "shown")
        )

    def check(self) -> None:
        """Refuse options of a server where there is none. Raises UserError."""
        if is_url(self.model):
            if self.scoring != "generate":
                raise UserError(
                    f"a server cannot be asked with scoring {self.scoring!r}: only models in this "
                    "process give the likelihoods of all labels; use --scoring generate"
                )
            return
        for name in ("run_dir", "served_model_name", "api_key_env", "request"):
            if getattr(self, name) not in (None, {}):
                raise UserError(
                    f"{name} is {getattr(self, name)}, but {self.model} is not a server's URL: "
                    "leave it out"
                )

    def unused(self) -> Iterator[Unused]:
        if is_url(self.model):
            yield Unused("batch_size", "a server batches by itself; use concurrency", ("model",))
        else:
            yield Unused("concurrency", f"{self.model} is not a server's URL", ("model",))
            if self.scoring == "likelihood":
                yield Unused("max_new_tokens", "scoring likelihood writes nothing", ("scoring",))
        if self.benchmark != EVERY and not load_benchmark(self.benchmark).needs_root:
            why = f"benchmark {self.benchmark} is on rendered pictures"
            yield Unused("dataset_root", why, ("benchmark",))


def compute_metrics(
    lines: Sequence[Mapping[str, Any]],
    benchmark: Benchmark,
    prompts: Sequence[PromptLike],
    *,
    model: str,
    scoring: str = "generate",
) -> dict[str, Any]:
    """The metrics.json of one evaluation, read as `scoring` says (answering.SCORINGS); `wall_s` is
    the time spent answering."""
    parts = []
    for prompt in scored_prompts(benchmark, prompts):
        rows = filter_by_prompt(lines, prompt)
        about: metrics.About = {
            "benchmark": benchmark.id,
            "model": model,
            "prompt": {"id": prompt.id, "sha": prompt.sha},
            "scoring": "likelihood" if scoring == "likelihood" else "generated",
            "wall_s": round(sum(line["latency_s"] for line in rows), 2),
            "peak_rss_gib": round(peak_rss_gib(), 3),
        }
        aus = [] if scoring == "likelihood" else au_set(benchmark, prompt)
        part = metrics.summarise(rows, prompt.space, aus, about, extra=benchmark.extra_metrics)
        if scoring != "generate" and (block := metrics.block_of(part, prompt.space)):
            block["readings"] = scoring_modes.summarise(rows, prompt.space)
        parts.append(part)
    spaces = [prompt.space for prompt in scored_prompts(benchmark, prompts)]
    return metrics.merge(parts) | label_spaces.definitions_of(spaces)


def compare(
    before: Sequence[Mapping[str, Any]],
    after: Sequence[Mapping[str, Any]],
    benchmark: Benchmark,
    prompts: Sequence[PromptLike],
) -> dict[str, Any]:
    """`metrics.compare` for each prompt that the benchmark scores, together."""
    parts = [
        metrics.compare(
            filter_by_prompt(before, prompt),
            filter_by_prompt(after, prompt),
            prompt.space,
            au_set(benchmark, prompt),
            benchmark.extra_metrics,
        )
        for prompt in scored_prompts(benchmark, prompts)
    ]
    whole = parts[0]
    for part in parts[1:]:
        for name in part.keys() - {"n"}:
            whole[name] = whole.get(name, {}) | part[name]
    return whole


def one_line_summary(scores: Mapping[str, Any], extra: Sequence[Metric] = ()) -> str:
    """One line for people: the main scores, those of `extra`, and how many answers could be read.

    Args:
        scores: The content of metrics.json.
        extra: The metrics that the benchmark names.
    """
    parts = []
    for block in scored_blocks(scores):
        of_block = of_kind(with_built_in(extra), block.kind)
        for metric in sorted(of_block, key=lambda metric: metric.takes != "weights"):  # mAP first
            template = metric.summary.get(block.kind)
            if template is None and metric in extra:
                template = "{block} {title} {value}{interval}"
            if template and (value := block.get(metric)) is not None:
                interval = in_brackets(block.ci95(metric))
                fields = {"block": block.title, "title": metric.title, "interval": interval}
                parts.append(template.format(value=f"{value:.3f}", **fields))
    if scores["scoring"] != "likelihood":
        parts.append(f"valid answers {metrics.valid_share(scores):.1%}")
    return ", ".join(parts) + f" on {scores['n']} faces"


JOURNAL = "predictions.partial.jsonl"  # finished rows of an evaluation that is not
# Settings that change how fast the answers come, not what they are.
_FREE = ("output_dir", "batch_size", "concurrency", "api_key_env")


def run(settings: Settings) -> dict[str, Any]:
    """Evaluate a model, write metrics.json, predictions.jsonl, predictions.parquet and report.html
    into `settings.output_dir` (default: eval/NAME inside the run; of a base model
    runs/eval_NAME_MODEL), and return the metrics.

    After a kill, the same call resumes with the remaining rows. Raises UserError.
    """
    if settings.scoring not in answering.SCORINGS:
        raise UserError(
            f"scoring is {settings.scoring!r}: use one of {', '.join(answering.SCORINGS)}"
        )
    benchmark = load_benchmark(settings.benchmark)
    if settings.output_dir is None and not is_run(settings.model) and not is_url(settings.model):
        folder = Path("runs") / f"eval_{benchmark.id}{settings.name}_{Path(settings.model).name}"
        settings = dataclasses.replace(settings, output_dir=str(folder))
    with lock.hold(_folder(settings, benchmark)):
        prompt = _prompt(settings, benchmark)
        return _evaluate(settings, benchmark, _open_model(settings, prompt))


def run_all(settings: Settings) -> dict[str, dict[str, Any] | str]:
    """Every benchmark whose data are in `settings.dataset_root`/NAME (synth needs none): {name: its
    metrics, or why it was left out}. Each writes into a folder of its name."""
    if settings.output_dir is None:
        raise UserError("several benchmarks need a folder for their results: give --output_dir")
    results: dict[str, dict[str, Any] | str] = {}
    predictor = None
    for name in benchmarks.benchmark_names():
        benchmark = load_benchmark(name)
        root = Path(settings.dataset_root or "") / name
        if benchmark.needs_root and (settings.dataset_root is None or not root.is_dir()):
            results[name] = f"no folder {root}"
            continue
        current = dataclasses.replace(
            settings,
            benchmark=name,
            dataset_root=benchmark.root_beside(str(root)),
            output_dir=str(Path(settings.output_dir) / name),
        )
        predictor = predictor or _open_model(current, current.prompt)
        try:
            with lock.hold(_folder(current, benchmark)):
                results[name] = _evaluate(current, benchmark, predictor)
        except UserError as error:  # the other benchmarks are worth having
            results[name] = str(error)
    for name, result in results.items():
        print(f"{name}: {result if isinstance(result, str) else one_line_summary(result)}")
    return results


def output_folder(model: str, output_dir: str | None, name: str) -> Path:
    """Where results go: `output_dir`, or eval/NAME inside a run. Raises UserError if neither is."""
    if output_dir is None and not is_run(model):
        raise UserError(f"{model} is not a run folder: say where to with --output_dir")
    return Path(output_dir or Path(model) / "eval" / name)


def _folder(settings: Settings, benchmark: Benchmark) -> Path:
    return output_folder(settings.model, settings.output_dir, benchmark.id + settings.name)


def _prompt(settings: Settings, benchmark: Benchmark) -> str | Prompt | LabelTexts | None:
    """The prompt to load the model with. Of a model without a run: `settings.prompt` or that of
    the data set's file, with the labels that the benchmark scores."""
    name = settings.prompt
    is_trained = settings.run_dir is not None or is_run(settings.model)
    if is_trained or len(benchmark.spaces) != 1:
        return name
    is_file = data.is_dataset_file(benchmark.dataset)
    if _is_clip(settings.model):
        is_generated = name == label_texts.GENERATED or (name is None and is_file)
        return label_texts.generate(benchmark.spaces[0]) if is_generated else name
    if name is None and is_file:
        name = data.dataset_module(benchmark.dataset).prompt
    if name in GENERATED or (is_file and name is not None):
        return load_prompt(name, benchmark.spaces[0])
    return name


def _is_clip(model: str) -> bool:
    from vlmface.clip.model import is_clip

    return not is_url(model) and is_clip(model)


def _open_model(
    settings: Settings, prompt: str | Prompt | LabelTexts | None
) -> LocalModel | ClipModel | RemoteModel:
    """Who answers: a model in this process, or a server."""
    settings.check()
    if is_url(settings.model):
        return _server(settings, prompt)
    from vlmface.infer import loading

    return loading.load(settings.model, prompt=prompt, max_new_tokens=settings.max_new_tokens)


def _server(settings: Settings, prompt: Any) -> RemoteModel:
    from vlmface.infer.endpoint import Endpoint
    from vlmface.infer.remote import open_remote_model

    endpoint = Endpoint(
        settings.model,
        settings.served_model_name or "",
        api_key_env=settings.api_key_env,
        concurrency=settings.concurrency,
        request=settings.request,
    )
    return open_remote_model(endpoint, settings.run_dir, prompt, settings.max_new_tokens)


def _warn_of_other_splits(run_manifest: Manifest, benchmark: Benchmark) -> None:
    """Warn where the YAML file of a data set was changed after training, so that people of the
    test split may have been trained on."""
    trained = run_manifest.dataset.get("file")
    if not isinstance(trained, Mapping) or not data.is_dataset_file(benchmark.dataset):
        return
    evaluated = data.dataset_module(benchmark.dataset).to_mapping()
    same_data = all(trained.get(key) == evaluated[key] for key in ("dataset", "root"))
    changed = [key for key in ("splits", "options") if trained.get(key) != evaluated[key]]
    if same_data and changed:
        print(
            f"warning: {' and '.join(changed)} in {benchmark.dataset} changed since the model was "
            "trained, so it may have been trained on rows of this test split",
            file=sys.stderr,
        )


def _check_labels(rows: Dataset, benchmark: Benchmark) -> None:
    """Raises UserError if no row has a label that could be scored."""
    fields = [*(space.field for space in benchmark.spaces), "age", "valence", "arousal", "aus"]
    if not any(value not in (None, []) for name in fields for value in rows[name][:]):
        raise UserError(
            f"the {benchmark.split} split of {benchmark.dataset} has no labels, so nothing can be "
            "scored: name the column of labels in its options, or ask the model about the pictures "
            "with `vlmface predict FOLDER --model MODEL --csv answers.csv`"
        )


def _evaluate(
    settings: Settings, benchmark: Benchmark, predictor: LocalModel | ClipModel | RemoteModel
) -> dict[str, Any]:
    from vlmface.infer.clip import ClipModel
    from vlmface.infer.remote import RemoteModel

    prompts: list[Any] = list(scored_prompts(benchmark, predictor.prompts))
    about = getattr(predictor, "manifest", None)
    if settings.run_dir:
        about, _ = manifest.load(settings.run_dir)
    out = _folder(settings, benchmark)
    baseline = load_baseline(benchmark)
    views, frames = (crops.parse_views(about.views), about.num_frames) if about else ((), 1)
    if not isinstance(predictor, ClipModel):
        check_images(prompts, len(views), frames)
    if about:
        _warn_of_other_splits(about, benchmark)
    rows = load_rows(benchmark, settings.dataset_root, settings.n, views, frames)
    if not len(rows):
        raise UserError(
            f"the {benchmark.split} split of {benchmark.dataset} has no rows: check dataset_root"
        )
    _check_labels(rows, benchmark)
    view = (views, frames)
    rows = withholding.with_sources(rows, prompts, view, settings.evidence, settings.pictures)
    out.mkdir(parents=True, exist_ok=True)
    with Journal(out / JOURNAL) as journal:
        served_model = predictor.endpoint.model if isinstance(predictor, RemoteModel) else None
        _check_journal(journal, settings, prompts, about, served_model)
        lines, unanswered = _answer(settings, benchmark, predictor, rows, journal, views)
    scores = compute_metrics(
        lines, benchmark, prompts, model=settings.model, scoring=settings.scoring
    )
    if served_model:
        scores["served_model"] = served_model
    if unanswered:
        scores["unanswered"] = len(unanswered)
    if settings.name:
        scores |= {"evidence": settings.evidence, "pictures": settings.pictures}
    answering.write_lines(out / "predictions.jsonl", lines)
    answering.write_table(out / "predictions.parquet", lines)
    if about:
        about.save(out)  # the report's header, and what these numbers belong to
    atomic_write(out / "metrics.json", json.dumps(scores, indent=2) + "\n")
    published = tables.beside_published(benchmark, scores, Path(settings.model).name)
    _write_published(published, benchmark, out)
    images = dict(zip(rows["id"], rows["image"], strict=True))
    extra = benchmark.extra_metrics
    report.write_report(out, images=images, baseline=baseline, published=published, extra=extra)
    print(one_line_summary(scores, extra))
    if unanswered:
        _print_unanswered(unanswered)
    else:
        (out / JOURNAL).unlink()
    print(f"report: {out / 'report.html'}")
    return scores


def _answer(
    settings: Settings,
    benchmark: Benchmark,
    predictor: LocalModel | ClipModel | RemoteModel,
    rows: Dataset,
    journal: Journal,
    views: crops.Views,
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """(answers, {id: reason} of the rows that a server left unanswered)."""
    from vlmface.infer.remote import RemoteModel

    if isinstance(predictor, RemoteModel):
        return answering.predict_remote(predictor, rows, benchmark, journal, views)
    lines = answering.answer(
        predictor,
        rows,
        benchmark,
        batch_size=settings.batch_size,
        scoring=settings.scoring,
        sink=journal,
    )
    return lines, {}


def _write_published(
    published: Sequence[Mapping[str, Any]], benchmark: Benchmark, out: Path
) -> None:
    """published.md and published.tex, where others report the benchmark."""
    if not published:
        return
    columns = benchmark.all_metrics
    atomic_write(out / "published.md", tables.markdown(published, columns))
    atomic_write(out / "published.tex", tables.latex(published, benchmark.id, columns))


def _print_unanswered(unanswered: Mapping[str, str]) -> None:
    id, why = next(iter(unanswered.items()))
    print(
        f"error: {len(unanswered)} faces got no answer and count as wrong ({id}: "
        f"{one_line(why)}); the same command asks about these again",
        file=sys.stderr,
    )


def _check_journal(
    journal: Journal,
    settings: Settings,
    prompts: Sequence[PromptLike],
    about: Manifest | None,
    served_model: str | None,
) -> None:
    """Check that the journal is of the same evaluation. `served_model` is the model of a server,
    which its URL does not identify. Raises UserError with both values of the first difference."""
    now: dict[str, Any] = {k: v for k, v in vars(settings).items() if k not in _FREE}
    now |= {
        "prompts": [prompt.sha for prompt in prompts],
        "trained_at": about.created if about else None,
    }
    now["served_model"] = served_model
    before = journal.records.get("", {}).get("settings")
    if before is None:
        journal.add({"id": "", "settings": now})
        return
    for name in now:
        if before.get(name) != now[name]:
            raise UserError(
                f"an evaluation with {name} {before.get(name)!r} was started there, now it is "
                f"{now[name]!r}: resume with the former, use another --output_dir, or delete "
                f"{journal.file.name}"
            )


def main(argv: Sequence[str]) -> int:
    """`--benchmark NAME|ALL --model RUN|MODEL|URL [--output_dir DIR] [--n N] ...`"""
    distributed.check_alone("eval/run.py")
    settings = config.parse_args(Settings, argv, usage=f"python eval/run.py {main.__doc__}")
    if settings.benchmark == EVERY:
        results = run_all(settings).values()
        whole = [
            result for result in results if isinstance(result, dict) and "unanswered" not in result
        ]
        return 0 if whole else 2
    return 2 if "unanswered" in run(settings) else 0
