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
from typing import TYPE_CHECKING, Any

from vlmface import benchmarks, facs, prompts
from vlmface.answers import join_labels
from vlmface.data.row_images import open_row_image
from vlmface.errors import UserError
from vlmface.evaluate import answering
from vlmface.metrics import metrics, multilabel
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
    `data_root` (the folder of its data set, or null) and `prompts`, [{"prompt", "sha"}, ...].

    Nothing is copied: of data sets of files the docs hold paths. Raises what `benchmarks.load_rows`
    raises, and UserError for a prompt that is no longer what it was.
    """
    import datasets
    import numpy as np
    import pyarrow as pa
    from datasets.table import InMemoryTable

    (task,) = index
    benchmark = _benchmark(task["benchmark"])
    for asked in task["prompts"]:
        if (found := _prompt(asked["prompt"]).sha) != asked["sha"]:
            raise UserError(
                f"prompt {asked['prompt']} was {asked['sha']} when the task of {benchmark.id} was "
                f"written, and is {found} now: run eval/lmms_eval/generate.py again"
            )
    rows = benchmarks.load_rows(benchmark, task["data_root"], None)
    truths = [
        json.dumps(answering.truth(FaceSample.from_row(row), benchmark))
        for row in rows.remove_columns(["image", "frames"])
    ]
    table = rows.with_format("arrow")[:]
    each = np.repeat(np.arange(len(rows)), len(task["prompts"]))
    text = datasets.Value("string")
    columns = {
        "id": (text, table["id"].take(each)),
        "image": (datasets.Image(decode=False), table["image"].take(each)),
        "benchmark": (text, [task["benchmark"]] * len(each)),
        "prompt": (text, [asked["prompt"] for asked in task["prompts"]] * len(rows)),
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
    if prompt.several:
        return join_labels(multilabel.true(row) or ())
    label = metrics.truth(row, prompt.space) if benchmark.spaces else None
    present, _ = metrics.true_aus(row, answering.au_set(benchmark, prompt)) or ((), ())
    words = [] if label is None else [label]
    return ", ".join(words + [facs.name(au) for au in sorted(present)])


# --- scores ---------------------------------------------------------------------------------------


def figures(benchmark: benchmarks.Benchmark, prompt: Prompt) -> dict[str, tuple[str, ...]]:
    """What the answers to a prompt are scored by: name in lmms-eval -> place in the scores.

    `accuracy`, `uar` and `f1_macro` of the emotion, `gender_accuracy`, ... of anything else,
    `labels_f1_macro`, `labels_f1_micro` and `labels_jaccard` where a face has several labels,
    `au_f1_macro` and `au_f1_micro`, and `valid`, the share of answers that could be read.
    """
    found: dict[str, tuple[str, ...]] = {}
    if prompt.several:
        found |= {
            f"labels_{name}": ("labels", name) for name in ("f1_macro", "f1_micro", "jaccard")
        }
    elif benchmark.spaces:
        field = prompt.space.field
        place = ("emotion",) if field == "emotion" else ("attributes", field)
        before = "" if field == "emotion" else f"{field}_"
        found |= {f"{before}{name}": (*place, name) for name in ("accuracy", "uar", "f1_macro")}
    if answering.au_set(benchmark, prompt):
        found |= {f"au_{name}": ("au", name) for name in ("f1_macro", "f1_micro")}
    return found | {"valid": ("valid",)}


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
    if prompt.several:
        line["labels"] = list(answer.labels)
    lines = {name: line | {"figure": name} for name in figures(benchmark, prompt)}
    true = None if prompt.several else metrics.truth(line, prompt.space)
    for name in lines:
        if name.endswith("accuracy") and true is not None:
            lines[name]["score"] = float(answer.label == true)  # lmms-eval's standard error
    return lines


def aggregate(lines: Sequence[Mapping[str, Any]]) -> float | None:
    """The figure that the lines are for; None where the truth has nothing to score it by."""
    first = lines[0]
    scores = summarise(lines)
    place = figures(_benchmark(first["benchmark"]), _prompt(first["prompt"]))[first["figure"]]
    found: Any = scores | {"valid": scores["parse"]["strict"] + scores["parse"]["lenient"]}
    for name in place:
        found = (found or {}).get(name)
    return found


def summarise(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """metrics.json of the lines, as `evaluate.run.score` makes it, without intervals."""
    benchmark = _benchmark(lines[0]["benchmark"])
    answers: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
        answers.setdefault(line["prompt"], []).append(line)
    return metrics.merge([
        metrics.summarise(
            of_prompt,
            _prompt(name).space,
            answering.au_set(benchmark, _prompt(name)),
            benchmark=benchmark.id,
            model="lmms-eval",
            prompt={"id": _prompt(name).id, "sha": _prompt(name).sha},
            mode="free",
            wall_s=0.0,
            peak_rss_gib=0.0,
            ci=False,
        )
        for name, of_prompt in answers.items()
    ])  # fmt: skip
