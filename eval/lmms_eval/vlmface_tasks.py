"""The benchmarks in lmms-eval: what the task files of generate.py call.

lmms-eval loads this file by its path and calls its functions on docs. A doc is a question about a
face:

    id         of the face
    image      {"bytes", "path"} as the data set stores it
    benchmark  a name, or the path of a protocol file
    prompt     an id, or the path of a prompt file
    truth      what is annotated, as in predictions.jsonl, as JSON

`process_results` makes the line of predictions.jsonl from an answer, and `aggregate` scores the
lines as eval/run.py does.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from vlmface import benchmarks, facs, prompts
from vlmface.answers import join_labels
from vlmface.data.row_images import open_row_image
from vlmface.errors import UserError
from vlmface.evaluate import answering
from vlmface.metrics import metrics, multilabel
from vlmface.metrics.metric import PREFIXES, Kind, Metric, of_kind
from vlmface.prompts import Prompt
from vlmface.schema import FaceSample

if TYPE_CHECKING:
    import datasets
    from PIL import Image

# Read once: lmms-eval asks for them with each doc.
_benchmark = functools.cache(benchmarks.load_benchmark)
_prompt = functools.cache(prompts.load)


# --- docs -----------------------------------------------------------------------------------------


def docs(index: datasets.Dataset) -> datasets.Dataset:
    """The docs of a task, those of a face one after the other. `index` has one row: `benchmark`,
    `dataset_root` (the folder of its data set, or null) and `prompts`, [{"prompt", "sha"}, ...].

    Nothing is copied: of data sets of files the docs hold paths. Raises what `benchmarks.load_rows`
    raises, and UserError for a prompt that is no longer what it was.
    """
    import datasets
    import numpy as np
    import pyarrow as pa
    from datasets.table import InMemoryTable

    (task,) = index
    benchmark = _benchmark(task["benchmark"])
    for entry in task["prompts"]:
        if (sha := _prompt(entry["prompt"]).sha) != entry["sha"]:
            raise UserError(
                f"prompt {entry['prompt']} was {entry['sha']} when the task of {benchmark.id} was "
                f"written, and is {sha} now: run eval/lmms_eval/generate.py again"
            )
    rows = benchmarks.load_rows(benchmark, task["dataset_root"], None)
    truths = [
        json.dumps(answering.ground_truth(FaceSample.from_row(row), benchmark))
        for row in rows.remove_columns(["image", "frames"])
    ]
    table = rows.with_format("arrow")[:]
    each = np.repeat(np.arange(len(rows)), len(task["prompts"]))
    text = datasets.Value("string")
    columns = {
        "id": (text, table["id"].take(each)),
        "image": (datasets.Image(decode=False), table["image"].take(each)),
        "benchmark": (text, [task["benchmark"]] * len(each)),
        "prompt": (text, [entry["prompt"] for entry in task["prompts"]] * len(rows)),
        "truth": (text, [truths[row] for row in each]),
    }
    features = datasets.Features({name: kind for name, (kind, _) in columns.items()})
    filled = pa.table({name: values for name, (_, values) in columns.items()})
    return datasets.Dataset(InMemoryTable(filled.cast(features.arrow_schema)))


def doc_to_visual(doc: Mapping[str, Any]) -> list[Image.Image]:
    """The picture as our own models see it: upright, RGB. Raises UserError for a damaged file."""
    return [open_row_image(doc["image"])]


def doc_to_text(doc: Mapping[str, Any]) -> str:
    """The question for models that take no messages; a system message stands before it."""
    return "\n\n".join(
        block["text"]
        for message in _prompt(doc["prompt"]).messages()
        for block in message["content"]
        if block["type"] == "text"
    )


def doc_to_messages(doc: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The prompt's own messages, for models that take them."""
    (picture,) = doc_to_visual(doc)
    return [
        message
        | {
            "content": [
                block | {"url": picture} if block["type"] == "image" else block
                for block in message["content"]
            ]
        }
        for message in _prompt(doc["prompt"]).messages()
    ]


def doc_to_target(doc: Mapping[str, Any]) -> str:
    """What lmms-eval notes beside an answer: "happiness, AU6, AU12"; it scores nothing by it."""
    benchmark, prompt = _benchmark(doc["benchmark"]), _prompt(doc["prompt"])
    row = {"truth": json.loads(doc["truth"])}
    if prompt.multi_label:
        return join_labels(multilabel.true_labels(row) or ())
    label = metrics.truth(row, prompt.space) if benchmark.spaces else None
    present, _ = metrics.true_aus(row, answering.au_set(benchmark, prompt)) or ((), ())
    words = [] if label is None else [label]
    return ", ".join(words + [facs.name(au) for au in sorted(present)])


# --- scores ---------------------------------------------------------------------------------------


class Figure(NamedTuple):
    """Where a figure is in the scores, and its definition (None: the share of valid answers)."""

    path: tuple[str, ...]
    metric: Metric | None

    @property
    def higher_is_better(self) -> bool:
        return self.metric is None or self.metric.higher_is_better


def figures(benchmark: benchmarks.Benchmark, prompt: Prompt) -> dict[str, Figure]:
    """What the answers to a prompt are scored by, by name in lmms-eval: the metrics that need the
    text alone, and `valid`, the share of answers that could be read.

    `accuracy`, `uar` and `f1_macro` of the emotion, `gender_accuracy`, ... of anything else,
    `context_mae`, ... of a scale, `labels_f1_macro`, ... where a face has several labels,
    `au_f1_macro` and `au_f1_micro`, and the metrics that the benchmark's file names.
    """
    blocks: list[tuple[Kind, str, tuple[str, ...]]] = []
    if prompt.multi_label:
        blocks.append(("labels", PREFIXES["labels"], ("labels",)))
    elif benchmark.spaces:
        field = prompt.space.field
        if prompt.space.scale is not None:
            blocks.append(("scale", f"{field}_", ("scale", field)))
        elif field == "emotion":
            blocks.append(("emotion", "", ("emotion",)))
        else:
            blocks.append(("attributes", f"{field}_", ("attributes", field)))
    if answering.au_set(benchmark, prompt):
        blocks.append(("au", PREFIXES["au"], ("au",)))
    blocks.append(("rationale", PREFIXES["rationale"], ("rationale",)))
    blocks_by_name = {
        f"{prefix}{metric.key}": Figure((*path, metric.key), metric)
        for kind, prefix, path in blocks
        for metric in of_kind(benchmark.all_metrics, kind)
        if metric.takes in ("sums", "row")
    }
    return blocks_by_name | {"valid": Figure(("valid",), None)}


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The line of the (first) answer, once for each figure. An answer that cannot be read has a
    line too, without a label."""
    benchmark, prompt = _benchmark(doc["benchmark"]), _prompt(doc["prompt"])
    answer = prompt.parse(results[0])
    line = {
        "id": doc["id"],
        "benchmark": doc["benchmark"],
        "prompt": doc["prompt"],
        "truth": json.loads(doc["truth"]),
        "label": answer.label,
        "status": answer.status,
        "aus": list(answer.aus),
    }
    if prompt.multi_label:
        line["labels"] = list(answer.labels)
    lines = {}
    for name, figure in figures(benchmark, prompt).items():
        lines[name] = line | {"figure": name}
        score = _score(line, prompt, figure.metric)
        if score is not None:  # of which lmms-eval makes the standard error
            lines[name]["score"] = score
    return lines


def _score(line: Mapping[str, Any], prompt: Prompt, metric: Metric | None) -> float | None:
    """The answer's own score, of a metric that is a share of answers."""
    is_label = not (prompt.multi_label or prompt.space.scale is not None)
    if metric is None or metric.share is None or not is_label:
        return None
    if metrics.truth(line, prompt.space) is None:
        return None
    hits, totals = metric.share(metrics.count_labels([line], prompt.space))
    return float(hits[0] / totals[0])


def aggregate(lines: Sequence[Mapping[str, Any]]) -> float | None:
    """The figure that the lines are for; None where the truth has nothing to score it by."""
    first = lines[0]
    scores = summarise(lines)
    figure = figures(_benchmark(first["benchmark"]), _prompt(first["prompt"]))[first["figure"]]
    value: Any = scores | {"valid": metrics.valid_share(scores)}
    for name in figure.path:
        value = (value or {}).get(name)
    return value


def summarise(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """metrics.json of the lines, as `evaluate.run.score` makes it, without intervals."""
    benchmark = _benchmark(lines[0]["benchmark"])
    answers: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
        answers.setdefault(line["prompt"], []).append(line)
    summaries = []
    for name, filter_by_prompt in answers.items():
        prompt = _prompt(name)
        about: metrics.About = {
            "benchmark": benchmark.id,
            "model": "lmms-eval",
            "prompt": {"id": prompt.id, "sha": prompt.sha},
            "scoring": "generated",
            "wall_s": 0.0,
            "peak_rss_gib": 0.0,
        }
        aus, extra = answering.au_set(benchmark, prompt), benchmark.extra_metrics
        summaries.append(
            metrics.summarise(filter_by_prompt, prompt.space, aus, about, ci=False, extra=extra)
        )
    return metrics.merge(summaries)
