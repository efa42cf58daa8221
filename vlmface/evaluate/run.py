"""A benchmark, a model, one result: the protocol file says what is asked, the manifest how.

The recipes score their models through `answer_once` and `score` too, so that a run's own numbers
and those of a later `eval/run.py` are the same numbers.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vlmface import benchmarks, manifest
from vlmface.benchmarks import Benchmark, load_baseline, load_benchmark, load_rows
from vlmface.data import crops
from vlmface.errors import UserError
from vlmface.evaluate import answering, report, scoring_modes, tables
from vlmface.evaluate.answering import au_set, of_prompt, scored_prompts
from vlmface.infer.endpoint import is_url
from vlmface.manifest import Manifest, is_run
from vlmface.metrics import metrics
from vlmface.metrics.shares import in_brackets
from vlmface.prompts import Question, check_images
from vlmface.utils import config, distributed, lock
from vlmface.utils.files import atomic_write
from vlmface.utils.jsonl_journal import Journal
from vlmface.utils.memory import peak_rss_gib
from vlmface.utils.ranges import Checked, Count, Unused
from vlmface.utils.terminal import one_line

if TYPE_CHECKING:
    import datasets

    from vlmface.infer.clip import ClipModel
    from vlmface.infer.local import LocalModel
    from vlmface.infer.remote import RemoteModel


EVERY = "ALL"


@dataclass(frozen=True)
class Settings(Checked):
    """The command line of `eval/run.py`. `mode`: answering.MODES."""

    benchmark: str
    model: str
    output_dir: str | None = None
    data_root: str | None = None
    n: Count | None = None
    prompt: str | None = None
    mode: Literal["generate", "score", "both"] = "generate"
    max_new_tokens: Count | None = None
    batch_size: Count = answering.BATCH_SIZE
    # Where `model` is the URL of a server: the run whose prompts, crop and limits are used, the
    # model's name there, requests at a time, and the environment variable that holds the key.
    run: str | None = None
    served: str | None = None
    concurrency: Count = 8
    api_key_env: str | None = None
    # Fields of each request to a server, which override ours; null removes one.
    request: dict[str, Any] = dataclasses.field(default_factory=dict)

    def check(self) -> None:
        """Refuse options of a server where there is none. Raises UserError."""
        if is_url(self.model):
            if self.mode != "generate":
                raise UserError(
                    f"a server cannot be asked in mode {self.mode!r}: only models in this process "
                    "give the likelihoods of all labels; use --mode generate"
                )
            return
        for name in ("run", "served", "api_key_env", "request"):
            if getattr(self, name) not in (None, {}):
                raise UserError(
                    f"{name} is {getattr(self, name)}, but {self.model} is no server's URL: leave "
                    "it out"
                )

    def unused(self) -> Iterator[Unused]:
        if is_url(self.model):
            yield Unused("batch_size", "a server batches by itself; use concurrency", ("model",))
        else:
            yield Unused("concurrency", f"{self.model} is no server's URL", ("model",))
            if self.mode == "score":
                yield Unused("max_new_tokens", "mode score writes nothing", ("mode",))
        if self.benchmark != EVERY and not load_benchmark(self.benchmark).needs_root:
            why = f"benchmark {self.benchmark} is on rendered pictures"
            yield Unused("data_root", why, ("benchmark",))


def score(
    lines: Sequence[Mapping[str, Any]],
    benchmark: Benchmark,
    prompts: Sequence[Question],
    *,
    model: str,
    mode: str = "generate",
) -> dict[str, Any]:
    """The metrics.json of one evaluation, read as `mode` says (answering.MODES); `wall_s` is the
    time spent answering."""
    parts = []
    for prompt in scored_prompts(benchmark, prompts):
        rows = of_prompt(lines, prompt)
        part = metrics.summarise(
            rows,
            prompt.space,
            [] if mode == "score" else au_set(benchmark, prompt),
            benchmark=benchmark.id,
            model=model,
            prompt={"id": prompt.id, "sha": prompt.sha},
            mode="scored" if mode == "score" else "free",
            wall_s=round(sum(line["latency_s"] for line in rows), 2),
            peak_rss_gib=round(peak_rss_gib(), 3),
        )
        if mode != "generate" and (block := metrics.block_of(part, prompt.space)):
            block["readings"] = scoring_modes.summarise(rows, prompt.space)
        parts.append(part)
    return metrics.merge(parts)


def compare(
    before: Sequence[Mapping[str, Any]],
    after: Sequence[Mapping[str, Any]],
    benchmark: Benchmark,
    prompts: Sequence[Question],
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


def summary(scores: Mapping[str, Any]) -> str:
    """One line for people: accuracy, UAR, AU F1 and how many answers could be read."""
    emotion, parse = scores.get("emotion", {}), scores["parse"]
    parts = []
    if emotion:
        interval = in_brackets(emotion["ci95"].get("accuracy"))
        parts.append(f"emotion accuracy {emotion['accuracy']:.3f}{interval}")
        parts.append(f"UAR {emotion['uar']:.3f}")
    for name, block in scores.get("attributes", {}).items():
        parts.append(f"{name} accuracy {block['accuracy']:.3f}")
    if "au" in scores:
        parts.append(f"AU F1 {scores['au']['f1_macro']:.3f}")
    if labels := scores.get("labels", {}):
        parts += [
            f"{name} {labels[key]:.3f}{in_brackets(labels['ci95'].get(key))}"
            for key, name in (("map", "mAP"), ("f1_macro", "label F1"), ("jaccard", "Jaccard"))
            if key in labels
        ]
    for name, block in scores.get("affect", {}).items():
        parts += [f"{name} CCC {block['ccc']:.3f}"] if "ccc" in block else []
    if scores["mode"] != "scored":
        parts.append(f"valid answers {parse['strict'] + parse['lenient']:.1%}")
    return ", ".join(parts) + f" on {scores['n']} faces"


def conclude(
    run_dir: Path,
    models: tuple[str, str],
    before: Sequence[Mapping[str, Any]],
    after: Sequence[Mapping[str, Any]],
    benchmark: Benchmark,
    asked: Sequence[Question],
    faces: datasets.Dataset,
    trained: Mapping[str, Any],
    baseline: Mapping[str, Any] | None,
    mode: str = "generate",
) -> None:
    """Write metrics.json and then report.html, which says that a run is complete, and print what
    was learnt. `before` and `after` are the predictions of the two `models` on the `faces`."""
    scores = {
        "before": score(before, benchmark, asked, model=models[0], mode=mode),
        "after": score(after, benchmark, asked, model=models[1], mode=mode),
        "paired": compare(before, after, benchmark, asked),
        "train": dict(trained),
    }
    text = json.dumps(scores, indent=2, ensure_ascii=False)
    atomic_write(run_dir / "metrics.json", text + "\n")
    images = dict(zip(faces["id"], faces["image"], strict=True))
    report.write_report(run_dir, images=images, baseline=baseline)
    print(f"learnt: {summary(scores['after'])} (before: {summary(scores['before'])})")
    print(f"is in:  {run_dir} (weights, predictions, report.html)")
    print(f"next:   vlmface predict FACE.jpg --model {run_dir}")


JOURNAL = "answers.part"  # finished rows of an evaluation that is not
# Settings that change how fast the answers come, not what they are.
_FREE = ("output_dir", "batch_size", "concurrency", "api_key_env")


def run(settings: Settings) -> dict[str, Any]:
    """Evaluate a model, write metrics.json, predictions.jsonl, predictions.parquet and report.html
    into `settings.output_dir` (default: eval/NAME inside the run), and return the metrics.

    Killed, the same call goes on with the rows that are left. Raises UserError.
    """
    if settings.mode not in answering.MODES:
        raise UserError(f"mode is {settings.mode!r}: use one of {', '.join(answering.MODES)}")
    benchmark = load_benchmark(settings.benchmark)
    with lock.hold(output_folder(settings.model, settings.output_dir, benchmark.id)):
        return _evaluate(settings, benchmark, _asked(settings))


def run_all(settings: Settings) -> dict[str, dict[str, Any] | str]:
    """Every benchmark whose data are in `settings.data_root`/NAME (synth needs none): {name: its
    metrics, or why it was left out}. Each writes into a folder of its name."""
    if settings.output_dir is None:
        raise UserError("several benchmarks need a folder for their results: give --output_dir")
    found: dict[str, dict[str, Any] | str] = {}
    who = None
    for name in benchmarks.benchmark_names():
        benchmark = load_benchmark(name)
        root = Path(settings.data_root or "") / name
        if benchmark.needs_root and (settings.data_root is None or not root.is_dir()):
            found[name] = f"no folder {root}"
            continue
        one = dataclasses.replace(
            settings,
            benchmark=name,
            data_root=benchmark.root_beside(str(root)),
            output_dir=str(Path(settings.output_dir) / name),
        )
        who = who or _asked(one)
        try:
            with lock.hold(output_folder(one.model, one.output_dir, benchmark.id)):
                found[name] = _evaluate(one, benchmark, who)
        except UserError as error:  # the other benchmarks are worth having
            found[name] = str(error)
    for name, result in found.items():
        print(f"{name}: {result if isinstance(result, str) else summary(result)}")
    return found


def output_folder(model: str, output_dir: str | None, name: str) -> Path:
    """Where results go: `output_dir`, or eval/NAME inside a run. Raises UserError if neither is."""
    if output_dir is None and not is_run(model):
        raise UserError(f"{model} is no run folder: say where to with --output_dir")
    return Path(output_dir or Path(model) / "eval" / name)


def _asked(settings: Settings) -> LocalModel | ClipModel | RemoteModel:
    """Who answers: a model in this process, or a server."""
    settings.check()
    if is_url(settings.model):
        return _server(settings)
    from vlmface.infer import loading

    return loading.load(
        settings.model, prompt=settings.prompt, max_new_tokens=settings.max_new_tokens
    )


def _server(settings: Settings) -> RemoteModel:
    from vlmface.infer.endpoint import Endpoint
    from vlmface.infer.remote import open_remote_model

    endpoint = Endpoint(
        settings.model, settings.served or "", api_key_env=settings.api_key_env,
        concurrency=settings.concurrency, request=settings.request,
    )  # fmt: skip
    return open_remote_model(endpoint, settings.run, settings.prompt, settings.max_new_tokens)


def _evaluate(
    settings: Settings, benchmark: Benchmark, who: LocalModel | ClipModel | RemoteModel
) -> dict[str, Any]:
    from vlmface.infer.clip import ClipModel
    from vlmface.infer.remote import RemoteModel

    asked: list[Any] = list(scored_prompts(benchmark, who.prompts))
    about = manifest.load(settings.run)[0] if settings.run else getattr(who, "manifest", None)
    out = output_folder(settings.model, settings.output_dir, benchmark.id)
    baseline = load_baseline(benchmark)
    views, frames = (crops.parse_views(about.crop), about.frames) if about else ((), 1)
    if not isinstance(who, ClipModel):
        check_images(asked, len(views), frames)
    rows = load_rows(benchmark, settings.data_root, settings.n, views, frames)
    if not len(rows):
        raise UserError(
            f"the {benchmark.split} split of {benchmark.dataset} has no rows: check data_root"
        )
    out.mkdir(parents=True, exist_ok=True)
    unanswered: dict[str, str] = {}
    with Journal(out / JOURNAL) as journal:
        served = who.endpoint.model if isinstance(who, RemoteModel) else None
        _same_question(journal, settings, asked, about, served)
        if isinstance(who, RemoteModel):
            lines, unanswered = answering.ask_server(who, rows, benchmark, journal)
        else:
            lines = answering.answer(
                who, rows, benchmark, batch_size=settings.batch_size, mode=settings.mode,
                sink=journal,
            )  # fmt: skip
    scores = score(lines, benchmark, asked, model=settings.model, mode=settings.mode)
    if served:
        scores["served_model"] = served
    if unanswered:
        scores["unanswered"] = len(unanswered)
    answering.write_lines(out / "predictions.jsonl", lines)
    answering.write_table(out / "predictions.parquet", lines)
    if about:
        about.save(out)  # the report's header, and what these numbers belong to
    atomic_write(out / "metrics.json", json.dumps(scores, indent=2) + "\n")
    published = tables.beside_published(benchmark, scores, Path(settings.model).name)
    if published:
        atomic_write(out / "published.md", tables.markdown(published))
        atomic_write(out / "published.tex", tables.latex(published, benchmark.id))
    images = dict(zip(rows["id"], rows["image"], strict=True))
    report.write_report(out, images=images, baseline=baseline, published=published)
    print(summary(scores))
    if unanswered:
        id, why = next(iter(unanswered.items()))
        print(
            f"error: {len(unanswered)} faces got no answer and count as wrong ({id}: "
            f"{one_line(why)}); the same command asks about these again",
            file=sys.stderr,
        )
    else:
        (out / JOURNAL).unlink()
    print(f"report: {out / 'report.html'}")
    return scores


def _same_question(
    journal: Journal,
    settings: Settings,
    asked: Sequence[Question],
    about: Manifest | None,
    served: str | None,
) -> None:
    """Raises UserError if the journal was begun for another model or with other settings. `served`
    is the model of a server, which its URL does not tell."""
    now: dict[str, Any] = {k: v for k, v in vars(settings).items() if k not in _FREE}
    now |= {"prompts": [prompt.sha for prompt in asked], "made": about.created if about else None}
    now["served_model"] = served
    before = journal.records.get("", {}).get("settings")
    if before is None:
        journal.add({"id": "", "settings": now})
        return
    for name in now:
        if before.get(name) != now[name]:
            raise UserError(
                f"an evaluation with {name} {before.get(name)!r} was begun there, now it is "
                f"{now[name]!r}: go on with the former, use another --output_dir, or delete "
                f"{journal.file.name}"
            )


def main(argv: Sequence[str]) -> int:
    """`--benchmark NAME|ALL --model RUN|MODEL|URL [--output_dir DIR] [--n N] ...`"""
    distributed.check_alone("eval/run.py")
    words = ["--output_dir" if word == "--out" else word for word in argv]
    settings = config.from_words(Settings, words, usage=f"python eval/run.py {main.__doc__}")
    if settings.benchmark == EVERY:
        found = run_all(settings).values()
        whole = [one for one in found if isinstance(one, dict) and "unanswered" not in one]
        return 0 if whole else 2
    return 2 if "unanswered" in run(settings) else 0
