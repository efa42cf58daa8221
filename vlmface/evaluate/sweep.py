"""Which prompt, which model? Many are tried on the validation split, few are tested.

Successive halving (Jamieson & Talwalkar, AISTATS 2016): every arm, a model with a prompt, answers a
few validation faces; the better half continues with twice as many, until only the finalists are
left. These answer the test split once. The winner is the best on validation, if the test split
shows a difference to every other finalist.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vlmface import manifest, prompts
from vlmface.aus.evidence import with_evidence
from vlmface.benchmarks import Benchmark, load_benchmark, load_rows
from vlmface.errors import UserError, did_you_mean
from vlmface.evaluate import answering
from vlmface.evaluate.answering import au_set
from vlmface.evaluate.compare import SAME, verdict
from vlmface.evaluate.run import compute_metrics
from vlmface.metrics import measures, metrics
from vlmface.metrics.metric import Metric, lookup
from vlmface.metrics.statistics import mean
from vlmface.prompts import Prompt
from vlmface.utils import config, distributed, html, lock
from vlmface.utils.files import atomic_write
from vlmface.utils.jsonl_journal import Journal
from vlmface.utils.ranges import Checked, Count, Natural, Seed, Unused

if TYPE_CHECKING:
    import datasets

    from vlmface.infer.local import LocalModel


@dataclass(frozen=True)
class Settings(Checked):
    """The command line of eval/sweep.py.

    Args:
        models: run folders and base models, each tried with every prompt
        prompts: names in prompts/, or YAML files
        output_dir: folder to write
        benchmarks: names in eval/benchmarks, or YAML files
        dataset_root: folder of the benchmarks' data sets
        by: the metric that decides; null: accuracy, au_f1 where only action units are scored,
            jaccard where a face has several labels
        scoring: read answers as generated, or by the likelihood of each label
        finalists: pairs of model and prompt that are tested
        n_validation: rows to choose on; null: the whole split
        n_test: rows to test finalists on; null: as the benchmark says
        orders: shuffled lists of candidate labels that finalists are tried with
        n_orders: validation rows for these
        max_new_tokens: generated answers are cut here; null: as in the run
        batch_size: rows at a time
        seed: of all random choices
    """

    models: list[str]
    prompts: list[str]
    output_dir: str
    benchmarks: list[str] = field(default_factory=lambda: ["synth"])
    dataset_root: str | None = None
    by: str | None = None
    scoring: Literal["generate", "likelihood"] = "generate"
    finalists: Count = 2
    n_validation: Count | None = None
    n_test: Count | None = None
    orders: Natural = 3
    n_orders: Count = 100
    max_new_tokens: Count | None = None
    batch_size: Count = answering.BATCH_SIZE
    seed: Seed = 0

    def check(self) -> None:
        """Refuse a metric that a benchmark does not score. Raises UserError."""
        for name in self.benchmarks:
            deciding_metric(load_benchmark(name), self.by)

    def unused(self) -> Iterator[Unused]:
        if self.orders == 0:
            yield Unused("n_orders", "orders is 0", ("orders",))
        if self.scoring == "likelihood":
            yield Unused("max_new_tokens", "scoring likelihood writes nothing", ("scoring",))
        if not any(load_benchmark(name).needs_root for name in self.benchmarks):
            why = f"{', '.join(self.benchmarks)}: on rendered pictures"
            yield Unused("dataset_root", why, ("benchmarks",))


@dataclass(frozen=True)
class Arm:
    """A model with a prompt; `name` is how it is shown."""

    name: str
    model: str
    prompt: Prompt


def rungs(arms: int, faces: int, finalists: int) -> list[tuple[int, int]]:
    """[(arms, faces that each has answered)], halving the arms and doubling the faces, from the
    first rung to the last, which has all faces."""
    survivors = [arms]
    while survivors[-1] > finalists:
        survivors.append(max(finalists, math.ceil(survivors[-1] / 2)))
    last = len(survivors) - 1
    return [(count, max(1, faces >> (last - i))) for i, count in enumerate(survivors)]


class Asking:
    """Asks arms about rows; what was answered before is read from the folder, one journal for each
    model, prompt and part of the data. One model at a time is in memory."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings = settings
        self.folder = folder
        self.loaded: tuple[str, LocalModel] | None = None

    def __call__(
        self, arm: Arm, rows: datasets.Dataset, benchmark: Benchmark, part: str
    ) -> list[dict[str, Any]]:
        """The arm's lines of predictions about the rows, which are of `part` (a name that tells
        them from rows of other data with the same ids)."""
        settings = self.settings
        key = json.dumps(
            [
                arm.model,
                manifest.trained_at(arm.model),
                arm.prompt.sha,
                benchmark.dataset,
                part,
                benchmark.protocol,
                settings.scoring,
                settings.max_new_tokens,
            ]
        )
        name = f"{arm.prompt.id}-{hashlib.sha256(key.encode()).hexdigest()[:12]}.jsonl"
        self.folder.mkdir(parents=True, exist_ok=True)
        with Journal(self.folder / name) as journal:
            if all(id in journal.records for id in rows["id"]):
                return [line for id in rows["id"] for line in journal.records[id]["lines"]]
            predictor = self._predictor(arm)
            predictor.prompts = [arm.prompt]
            rows = with_evidence(rows, [arm.prompt])
            return answering.answer(
                predictor,
                rows,
                benchmark,
                batch_size=settings.batch_size,
                scoring=settings.scoring,
                sink=journal,
            )

    def _predictor(self, arm: Arm) -> LocalModel:
        from vlmface.infer.local import LocalModel

        if self.loaded is None or self.loaded[0] != arm.model:
            self.loaded = None
            prompt = None if manifest.is_run(arm.model) else arm.prompt
            limit = self.settings.max_new_tokens
            model = LocalModel.load(arm.model, prompt=prompt, max_new_tokens=limit)
            self.loaded = arm.model, model
        return self.loaded[1]


def sweep(settings: Settings, benchmark: Benchmark, asking: Asking) -> dict[str, Any]:
    """The result for one benchmark, ready for JSON: {"benchmark", "by", "rungs", "arms",
    "finalists", "pairs", "orders", "winner", "verdict"}."""
    by = deciding_metric(benchmark, settings.by)
    arms = arms_of(settings, benchmark)
    chosen_on = on_validation(benchmark, settings.n_validation)
    validation = _shuffled(load_rows(chosen_on, settings.dataset_root, None), settings.seed)
    steps = rungs(len(arms), len(validation), settings.finalists)
    table: dict[str, dict[str, Any]] = {
        arm.name: {"model": arm.model, "prompt": arm.prompt.id, "rungs": []} for arm in arms
    }
    survivors = arms
    for n_arms, faces in steps:
        if n_arms < len(survivors):
            survivors = _best_first(survivors, table, by)[:n_arms]
        # Arms of one model follow each other, so that each is loaded once.
        for arm in sorted(survivors, key=lambda arm: arm.model):
            lines = asking(arm, validation.select(range(faces)), chosen_on, "validation")
            score = value(score_of(lines, arm, chosen_on, settings), by)
            table[arm.name]["rungs"].append({"n": faces, **score})
            text = f"{by.name} {score['value']:.3f}"
            print(f"{faces} validation faces: {arm.name} {text}", flush=True)
    survivors = _best_first(survivors, table, by)
    pairs = _test(survivors, table, benchmark, asking, by)
    winner, verdict = judge([arm.name for arm in survivors], pairs, by)
    few = validation.select(range(min(settings.n_orders, len(validation))))
    return {
        "benchmark": benchmark.id,
        "by": by.name,
        "scoring": settings.scoring,
        "rungs": [{"arms": n_arms, "faces": faces} for n_arms, faces in steps],
        "arms": table,
        "finalists": [arm.name for arm in survivors],
        "pairs": pairs,
        "orders": [
            shuffling(arm, few, chosen_on, asking, settings)
            for arm in survivors
            if settings.orders and benchmark.spaces and arm.prompt.space.scale is None
        ],
        "winner": winner,
        "verdict": verdict,
    }


def _best_first(
    arms: Sequence[Arm], table: Mapping[str, Mapping[str, Any]], by: Metric
) -> list[Arm]:
    """The arms by their last validation score."""
    return sorted(arms, key=lambda arm: -by.gain(_last(table[arm.name])))


def _test(
    finalists: Sequence[Arm],
    table: Mapping[str, dict[str, Any]],
    benchmark: Benchmark,
    asking: Asking,
    by: Metric,
) -> list[dict[str, Any]]:
    """Score the finalists on the test split, enter that into the table, and compare them."""
    settings = asking.settings
    test = load_rows(benchmark, settings.dataset_root, settings.n_test)
    tested = {
        arm.name: asking(arm, test, benchmark, benchmark.split)
        for arm in sorted(finalists, key=lambda arm: arm.model)
    }
    for arm in finalists:
        scores = score_of(tested[arm.name], arm, benchmark, settings)
        table[arm.name]["test"] = {"n": len(test), **value(scores, by), "scores": scores}
    return compare(finalists, tested, benchmark, by)


def deciding_metric(benchmark: Benchmark, name: str | None = None) -> Metric:
    """The metric of the benchmark with that name, by default the first of its main ones.

    Raises:
        UserError: The benchmark does not score it.
    """
    kinds = benchmark.kinds - {"answers", "calibration"}
    scored = [metric for metric in benchmark.all_metrics if kinds.intersection(metric.applies_to)]
    if name is None:
        labels_first = sorted(scored, key=lambda metric: "au" in metric.applies_to)
        return next(metric for metric in labels_first if metric.headline)
    for metric in scored:
        if metric.name == name:
            return metric
    names = [metric.name for metric in scored]
    raise UserError(
        f"by is {name!r}, which benchmark {benchmark.id} does not score"
        f"{did_you_mean(name, names)}: use one of {', '.join(names)}"
    )


def arms_of(settings: Settings, benchmark: Benchmark) -> list[Arm]:
    """Every model with every prompt, asked for the benchmark's labels. Raises UserError for names
    that occur twice and for prompts that cannot ask."""
    if len(benchmark.spaces) > 1:
        raise UserError(
            f"benchmark {benchmark.id} scores several label spaces, but an arm has one prompt: "
            "sweep over benchmarks of one"
        )
    for name, words in (("models", settings.models), ("prompts", settings.prompts)):
        if not words or len(set(words)) < len(words):
            raise UserError(f"{name} is {', '.join(words) or 'empty'}: name each once")
    arms = []
    for model in settings.models:
        for word in settings.prompts:
            prompt = prompts.load(word, next(iter(benchmark.spaces), None))
            prompts.check_images([prompt], 0, 1)  # a sweep shows pictures as they are
            short = f"{Path(model).name} / " if len(settings.models) > 1 else ""
            arms.append(Arm(short + prompt.id, model, prompt))
    if len({arm.name for arm in arms}) < len(arms):
        raise UserError("two arms have one name: give models folders of different names")
    if len(arms) < 2:
        raise UserError("one arm is not a choice: give two models or prompts at least")
    return arms


def on_validation(benchmark: Benchmark, n: int | None) -> Benchmark:
    """The benchmark on the validation split of its data set, where choices may be made."""
    if benchmark.split == "validation":
        raise UserError(
            f"benchmark {benchmark.id} is scored on its validation split: choosing there too would "
            "flatter the choice; take another benchmark"
        )
    protocol = {k: v for k, v in benchmark.protocol.items() if k != "n"}
    protocol |= {"n": n} if n is not None else {}
    return replace(benchmark, split="validation", protocol=protocol, baseline=None)


def _shuffled(rows: datasets.Dataset, seed: int) -> datasets.Dataset:
    """In another order: early rungs see the start, and data sets are often sorted by label."""
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    return rows.select(order)


def score_of(
    lines: Sequence[Mapping[str, Any]], arm: Arm, benchmark: Benchmark, settings: Settings
) -> dict[str, Any]:
    """The metrics of one arm's prediction records."""
    return compute_metrics(
        lines, benchmark, [arm.prompt], model=arm.model, scoring=settings.scoring
    )


def value(scores: Mapping[str, Any], by: Metric) -> dict[str, Any]:
    """{"value", "ci95"} of the metric that decides. Raises UserError if the answers have none."""
    metric_value = lookup(scores, by)
    if metric_value is None:
        raise UserError(
            f"by is {by.name!r}, which these answers have no value of: choose another metric"
        )
    block, number = metric_value
    return {"value": number, "ci95": block.ci95(by)}


def _last(entry: Mapping[str, Any]) -> float:
    return entry["rungs"][-1]["value"]


def compare(
    arms: Sequence[Arm],
    tested: Mapping[str, Sequence[metrics.Row]],
    benchmark: Benchmark,
    by: Metric,
) -> list[dict[str, Any]]:
    """Every pair of finalists: the difference, first minus second, with its 95 % paired interval
    and, of a share such as accuracy, the p value of the sign-flip test with Holm's correction over
    all pairs, which then decides; of other scores the interval does."""
    pairs: list[dict[str, Any]] = []
    for left, right in combinations(arms, 2):
        before, after = tested[right.name], tested[left.name]  # the difference is after - before
        aus = au_set(benchmark, left.prompt)
        changes = metrics.compare(before, after, left.prompt.space, aus, benchmark.extra_metrics)
        metric_value = lookup(changes, by)
        if metric_value is None:
            raise UserError(f"{left.name} and {right.name} do not both have {by.name}")
        pairs.append({"first": left.name, "second": right.name, **metric_value[1]})
    with_p = [pair for pair in pairs if "p" in pair]
    if with_p:
        for pair, p in zip(with_p, measures.holm([pair["p"] for pair in with_p]), strict=True):
            pair["p_holm"] = float(p)
    for pair in pairs:
        pair["differ"] = verdict(pair) != SAME
    return pairs


def judge(
    ranked: Sequence[str], pairs: Sequence[Mapping[str, Any]], by: Metric
) -> tuple[str | None, str]:
    """(the winner or None, a sentence): the first of the finalists, ranked by validation, wins if
    the test split shows that it is better than each of the others."""
    best = ranked[0]
    if not pairs:
        return best, f"{best} is the only finalist: it won on the validation split"
    equal, better = [], []
    for pair in pairs:
        if best not in (pair["first"], pair["second"]):
            continue
        ahead = pair["difference"] if pair["first"] == best else -pair["difference"]
        other = pair["second"] if pair["first"] == best else pair["first"]
        if not pair["differ"]:
            equal.append(other)
        elif by.gain(ahead) < 0:
            better.append(other)
    if better:
        return None, (
            f"no winner: {best} was the best on the validation split, but on the test split "
            f"{' and '.join(better)} is better by {by.name}; the choice is not made on the test "
            "split"
        )
    if equal:
        return None, (
            f"no winner: between {best} and {' and '.join(equal)} there is no difference by "
            f"{by.name} that this test set can show"
        )
    return (
        best,
        f"{best} wins: it is better by {by.name} than every other finalist on the test split",
    )


# --- the order of the candidates ------------------------------------------------------------------


def shuffling(
    arm: Arm, rows: datasets.Dataset, benchmark: Benchmark, asking: Asking, settings: Settings
) -> dict[str, Any]:
    """How far the answers depend on the order of the candidates: `flips`, the share of faces whose
    answer is another one when the list is shuffled, with a 95 % interval over faces; `accuracy` in
    each order; `first`, how often the candidate that stands first is answered, and how often it is
    true."""
    labels = list(arm.prompt.space.labels)
    generator = random.Random(settings.seed)
    orders: list[list[str]] = [labels]
    while len(orders) <= min(settings.orders, math.factorial(len(labels)) - 1):
        order = generator.sample(labels, len(labels))
        if order not in orders:
            orders.append(order)
    answers, accuracy = [], []
    first_predicted, first_true = 0, 0
    for order in orders:
        reordered = replace(arm, prompt=arm.prompt.with_label_order(order))
        lines = asking(reordered, rows, benchmark, "validation")
        answers.append([metrics.answer(line) for line in lines])
        true = [metrics.truth(line, arm.prompt.space) for line in lines]
        accuracy.append(sum(a == b for a, b in zip(answers[-1], true, strict=True)) / len(lines))
        first_predicted += answers[-1].count(order[0])
        first_true += true.count(order[0])
    changed = [
        sum(other[i] != answers[0][i] for other in answers[1:]) / (len(orders) - 1)
        for i in range(len(rows))
    ]
    asked_in_all = len(orders) * len(rows)
    return {
        "arm": arm.name,
        "n": len(rows),
        "orders": orders,
        "accuracy": accuracy,
        "flips": mean(changed, [str(row.get("subject") or row["id"]) for row in rows]),
        "first": {"answered": first_predicted / asked_in_all, "true": first_true / asked_in_all},
    }


# --- the command ----------------------------------------------------------------------------------


def write(result: Sequence[Mapping[str, Any]], metrics: Sequence[Metric], output: Path) -> Path:
    """Write sweep.json and sweep.html into `output`; returns the page. `metrics` are those that
    decided."""
    text = json.dumps({"schema": 2, "sweeps": result}, indent=2)
    atomic_write(output / "sweep.json", text + "\n")
    content = html.render(
        "sweep.html.j2",
        sweeps=[
            {
                **entry,
                "metric": metric,
                "ranked": _ranked(entry, metric),
                "tested": bool(metric.share) or any("p" in pair for pair in entry["pairs"]),
            }
            for entry, metric in zip(result, metrics, strict=True)
        ],
        when=html.stamp(),
    )
    path = output / "sweep.html"
    atomic_write(path, content)
    return path


def _ranked(result: Mapping[str, Any], by: Metric) -> list[tuple[str, dict[str, Any]]]:
    """The arms, those that came furthest first, then by their last validation score."""
    return sorted(
        result["arms"].items(),
        key=lambda item: (-len(item[1]["rungs"]), -by.gain(_last(item[1]))),
    )


def main(argv: Sequence[str]) -> int:
    """`--models RUN,MODEL --prompts ID,ID [--benchmarks NAME,NAME] --output_dir DIR ...`"""
    distributed.check_alone("eval/sweep.py")
    settings = config.parse_args(Settings, argv, usage=f"python eval/sweep.py {main.__doc__}")
    output = Path(settings.output_dir)
    asking = Asking(settings, output / "answers")
    with lock.hold(output):
        scored_on = [load_benchmark(name) for name in settings.benchmarks]
        by = [deciding_metric(benchmark, settings.by) for benchmark in scored_on]
        result = [sweep(settings, benchmark, asking) for benchmark in scored_on]
        config.save_config(settings, output)
        path = write(result, by, output)
    for entry in result:
        print(f"{entry['benchmark']}: {entry['verdict']}")
    print(f"page: {path}")
    return 0
