"""eval/lmms_eval: the task files, and that the figures which lmms-eval reports are our own."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import os
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import datasets
import numpy as np
import pytest
import yaml
from helpers.scripts import ROOT, load_script
from test_benchmarks import miniature, questions

from vlmface import benchmarks, facs, prompts
from vlmface.answers import join_labels
from vlmface.errors import UserError
from vlmface.evaluate import answering
from vlmface.evaluate import run as evaluation
from vlmface.prompts import Prompt
from vlmface.schema import FaceSample

SYNTH = "{id: few, dataset: synth, split: test, protocol: {n: 8}, source: x, "
# What models say, and worse: {label} is the true label, {other} another of its space, {aus} are the
# true AUs.
TEXTS = [
    "<think>{aus} moved.\n\nThe rest is still.</think>\n<answer>{label}</answer>",
    "<think>AU1+2 moved.\n\nAU4 and AU15 moved.</think>\n\n<answer>{other}</answer>",
    "{label}",
    "",
    " \n\t ",
    "I cannot tell.",
    "The person looks {label}.",
    "{label} or {other}",
    "<think>AU25 moved.</think>",
    "</answer></think><answer><answer>{label}</answer>",
    "**Key Observations:** {aus}.\n\n**Conclusion:** {label}",
    '{{"AU4": 0, "AU12": 1, "emotion": "{label}"}}',
    "\u202e{label}\x00 \N{PILE OF POO} \ufffd",
    "AU99 " * 2000,
]


@pytest.fixture
def generate(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """generate.py's main, from words."""
    monkeypatch.syspath_prepend(str(ROOT / "eval/lmms_eval"))
    main = load_script("eval/lmms_eval/generate.py").main
    return lambda *words: main([str(word) for word in words])


class Loader(yaml.SafeLoader):
    """Reads a task file as lmms-eval does: each function from a module of its own, by its path."""


def function(loader: Loader, node: yaml.ScalarNode) -> Callable[..., Any]:
    path, _, name = loader.construct_scalar(node).rpartition(".")
    return getattr(module(f"{path}.py"), name)


def module(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path, path)
    assert spec and spec.loader
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


Loader.add_constructor("!function", function)


def read(path: Path) -> dict[str, Any]:
    return yaml.load(path.read_text(encoding="utf-8"), Loader)


def docs_of(task: dict[str, Any], cache: Path) -> datasets.Dataset:
    loaded = datasets.load_dataset(
        task["dataset_path"], cache_dir=str(cache), **task["dataset_kwargs"]
    )
    return task["process_docs"](loaded[task["test_split"]])


def prompt_file(prompt: Prompt, folder: Path) -> Path:
    path = folder / f"{prompt.id}.yaml"
    fields = {k: v for k, v in dataclasses.asdict(prompt).items() if v is not None}
    path.write_text(yaml.safe_dump(fields), encoding="utf-8")
    return path


def few(tmp_path: Path, rest: str = "label_space: emotion8}") -> Path:
    """A benchmark of 8 rendered faces."""
    path = tmp_path / "few.yaml"
    path.write_text(SYNTH + rest, encoding="utf-8")
    return path


def text_of(sample: FaceSample, prompt: Prompt, turn: int) -> str:
    """What is said about a face in one of many turns: one of TEXTS."""
    true = prompt.target_labels(sample) or prompt.space.labels[:1]
    label, other = join_labels(true), next(word for word in prompt.space.labels if word not in true)
    aus = ", ".join(map(facs.name, sample.present_aus())) or "Nothing"
    drawn = zlib.crc32(f"{prompt.id} {sample.id}".encode())
    return TEXTS[(drawn + turn) % len(TEXTS)].format(label=label, other=other, aus=aus)


def answered(
    benchmark: benchmarks.Benchmark, rows: datasets.Dataset, asked: list[Prompt], turn: int
) -> list[dict[str, Any]]:
    """Lines of predictions.jsonl, as `answering.answer` makes them of such texts."""
    lines = []
    for row in rows.remove_columns(["image", "frames"]):
        sample = FaceSample.from_row(row)
        for prompt in asked:
            text = text_of(sample, prompt, turn)
            answer = prompt.parse(text.strip())
            lines.append(
                {
                    "id": sample.id,
                    "truth": answering.ground_truth(sample, benchmark),
                    "prompt": prompt.id,
                    "text": text,
                    "label": answer.label,
                    "status": answer.status,
                    "aus": list(answer.aus),
                    "latency_s": 0.0,
                    "labels": list(answer.labels),
                }
            )
    return lines


def flat(scores: dict[str, Any]) -> dict[str, float]:
    """metrics.json under the names of the task files."""
    blocks = {"": scores.get("emotion", {}), "au_": scores.get("au", {})}
    blocks |= {f"{name}_": block for name, block in scores.get("attributes", {}).items()}
    blocks["labels_"] = scores.get("labels", {})
    names = ("accuracy", "uar", "f1_macro", "f1_micro", "jaccard", "exact_match")
    found = {
        f"{before}{name}": block[name]
        for before, block in blocks.items()
        for name in names
        if name in block
    }
    return found | {"valid": scores["parse"]["strict"] + scores["parse"]["lenient"]}


def scored(task: dict[str, Any], docs: datasets.Dataset, texts: list[str]) -> dict[str, Any]:
    """What lmms-eval would report: {metric: figure}."""
    found: dict[str, list[Any]] = {metric["metric"]: [] for metric in task["metric_list"]}
    for doc, text in zip(docs.remove_columns("image"), texts, strict=True):
        for name, value in task["process_results"](doc, [text.strip()]).items():
            found[name].append(json.loads(json.dumps(value)))
    return {
        metric["metric"]: metric["aggregation"](found[metric["metric"]])
        for metric in task["metric_list"]
    }


# --- figures --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["disfa8", "emotic", "fairface", "fea20k", "fer2013", "mafw"])
def test_any_answers_get_the_figures_of_our_own_evaluation(
    name: str, tmp_path: Path, generate: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = tmp_path / "data", tmp_path / "tasks"
    benchmark, asked = miniature(name, root), questions(benchmarks.load_benchmark(name))
    protocol = tmp_path / "protocol.yaml"
    fields = {k: v for k, v in dataclasses.asdict(benchmark).items() if v is not None}
    protocol.write_text(yaml.safe_dump(fields), encoding="utf-8")
    files = ",".join(str(prompt_file(prompt, tmp_path)) for prompt in asked)
    words = ("--benchmarks", protocol, "--dataset_root", root, "--prompt", files)
    assert generate("--output_dir", out, *words) == 0
    rows = benchmarks.load_rows(benchmark, str(root), None)
    assert f"vlmface_{name}: {len(rows)} faces, asked" in capsys.readouterr().out
    assert {path.suffix for path in out.iterdir()} == {".yaml", ".json"}  # no picture was copied
    task = read(out / f"vlmface_{name}.yaml")
    docs = docs_of(task, tmp_path / "cache")
    assert docs["id"] == [id for id in rows["id"] for _ in asked]
    for doc, picture in zip(docs, np.repeat(range(len(rows)), len(asked)), strict=True):
        (seen,) = task["doc_to_visual"](doc)
        assert seen.tobytes() == answering.images_of(rows.select([picture]))[0].tobytes()
    for turn in range(len(TEXTS)):
        lines = answered(benchmark, rows, asked, turn)
        ours = flat(evaluation.compute_metrics(lines, benchmark, asked, model="x"))
        theirs = scored(task, docs, [line["text"] for line in lines])
        assert ours == {name: figure for name, figure in theirs.items() if figure is not None}


def test_an_answer_that_cannot_be_read_is_wrong(
    tmp_path: Path, generate: Callable[..., int]
) -> None:
    generate("--output_dir", tmp_path / "tasks", "--benchmarks", few(tmp_path))
    task = read(tmp_path / "tasks/vlmface_few.yaml")
    docs = docs_of(task, tmp_path / "cache")
    wrap = prompts.load("face_cot").completion
    right = [wrap("x", json.loads(truth)["emotion"]) for truth in docs["truth"]]
    assert scored(task, docs, right) == {"accuracy": 1, "uar": 1, "f1_macro": 1, "valid": 1}
    half = scored(task, docs, right[:4] + ["I cannot tell."] * 4)
    assert (half["accuracy"], half["valid"]) == (0.5, 0.5)
    items = [
        task["process_results"](doc, [text])["accuracy"]["score"]
        for doc, text in zip(docs, right[:4] + [""] * 4, strict=True)
    ]
    assert items == [1.0] * 4 + [0.0] * 4


def test_what_is_not_annotated_has_no_figure(tmp_path: Path, generate: Callable[..., int]) -> None:
    generate("--output_dir", tmp_path / "tasks", "--benchmarks", few(tmp_path, "au_set: [12]}"))
    task = read(tmp_path / "tasks/vlmface_few.yaml")
    docs = docs_of(task, tmp_path / "cache").remove_columns("image")
    truth = {"emotion": None, "attributes": {}, "aus": {}, "annotated_aus": [12]}
    lines = [task["process_results"](doc | {"truth": json.dumps(truth)}, ["x"]) for doc in docs]
    assert lines[0].keys() == {"au_f1_macro", "au_f1_micro", "valid"}
    for metric in task["metric_list"]:
        figure = metric["aggregation"]([line[metric["metric"]] for line in lines])
        assert figure == (0.0 if metric["metric"] == "valid" else None)


# --- task files -----------------------------------------------------------------------------------


def test_a_question_is_the_prompts_own(tmp_path: Path, generate: Callable[..., int]) -> None:
    protocol = few(tmp_path, "label_space: [gender, emotion8], au_set: [4, 12]}")
    out = tmp_path / "tasks"
    generate("--output_dir", out, "--benchmarks", protocol, "--max_new_tokens", "48")
    task = read(out / "vlmface_few.yaml")
    docs = docs_of(task, tmp_path / "cache")
    asked = [prompts.load("facescan_gender"), prompts.load("face_cot")]
    assert docs["prompt"] == [prompt.id for prompt in asked] * 8
    rows = benchmarks.load_rows(benchmarks.load_benchmark(str(protocol)), None, None)
    for doc, prompt in zip(docs, asked * 8, strict=True):
        sample = FaceSample.from_row(rows[rows["id"].index(doc["id"])])
        expected = [sample.label(prompt.space)]
        if prompt.format != "label":
            expected += [f"AU{au}" for au in sample.present_aus() if au in (4, 12)]
        assert task["doc_to_target"](doc) == ", ".join(map(str, expected))
        text = prompt.messages()[-1]["content"][1]["text"]
        assert task["doc_to_text"](doc) == text
        (message,) = task["doc_to_messages"](doc)
        image, question = message["content"]
        assert question == {"type": "text", "text": text} and message["role"] == "user"
        assert image["type"] == "image" and image["url"].size == (96, 96)
    options = {"max_new_tokens": 48, "temperature": 0, "do_sample": False, "until": []}
    assert task["generation_kwargs"] == options
    assert task["reasoning_tags"] == "none"
    assert task["metadata"]["prompts"] == {prompt.id: prompt.sha for prompt in asked}


def test_a_system_message_stands_before_the_question(
    tmp_path: Path, generate: Callable[..., int]
) -> None:
    words = ("--benchmarks", few(tmp_path, "au_set: [4, 12]}"), "--prompt", "expllm")
    generate("--output_dir", tmp_path / "tasks", *words)
    task = read(tmp_path / "tasks/vlmface_few.yaml")
    doc = docs_of(task, tmp_path / "cache")[0]
    system, user = prompts.load("expllm").messages()
    texts = [system["content"][0]["text"], user["content"][1]["text"]]
    assert task["doc_to_text"](doc) == "\n\n".join(texts)
    assert [message["role"] for message in task["doc_to_messages"](doc)] == ["system", "user"]


def test_the_group_has_all_tasks_of_the_folder(
    tmp_path: Path, generate: Callable[..., int]
) -> None:
    out = tmp_path / "tasks"
    generate("--output_dir", out, "--benchmarks", few(tmp_path))
    assert read(out / "vlmface-all.yaml") == {"group": "vlmface-all", "task": ["vlmface_few"]}
    other = tmp_path / "other.yaml"
    other.write_text(few(tmp_path).read_text().replace("id: few", "id: other"))
    generate("--output_dir", out, "--benchmarks", f"{few(tmp_path)},{other}")
    assert read(out / "vlmface-all.yaml")["task"] == ["vlmface_few", "vlmface_other"]


def test_without_data_the_rendered_faces_are_left(generate: Callable[..., int]) -> None:
    without_data = load_script("eval/lmms_eval/generate.py").without_data
    asked = [prompts.load("face_cot")]
    assert without_data(asked) == [
        "synth",
        "synth_attributes",
        "synth_clips",
        "synth_v2",
        "synth_votes",
    ]
    assert without_data([Prompt("asks", 1, "label", "raer5", "{candidates}?", "test")]) == [
        "synth_scenes"
    ]


def test_every_label_space_with_a_prompt_is_asked(generate: Callable[..., int]) -> None:
    asked = [prompts.load(name) for name in load_script("eval/lmms_eval/generate.py").PROMPTS]
    lacking = set()
    for name in benchmarks.benchmark_names():
        benchmark = benchmarks.load_benchmark(name)
        found = {prompt.space.id for prompt in asked}
        lacking |= {space.id for space in benchmark.spaces} - found
        if found & {space.id for space in benchmark.spaces} or not benchmark.spaces:
            assert answering.scored_prompts(benchmark, asked)
    packaged = [prompts.load(file.stem) for file in (ROOT / "prompts").glob("*.yaml")]
    # context_*: about views of a picture, which lmms-eval's tasks do not make.
    whole = [prompt for prompt in packaged if not prompt.id.startswith("context_")]
    assert lacking.isdisjoint(prompt.space.id for prompt in whole)
    assert lacking == {"mafw11", "raer5", "race5"}


def test_what_is_wrong_is_named(tmp_path: Path, generate: Callable[..., int]) -> None:
    out = ("--output_dir", tmp_path / "tasks")
    with pytest.raises(UserError, match="the command line lacks output_dir"):
        generate("--benchmarks", "synth")
    with pytest.raises(UserError, match=r"no benchmark 'rafbd' \(did you mean 'rafdb'"):
        generate(*out, "--benchmarks", "rafbd")
    with pytest.raises(UserError, match=r"rafdb needs the root of your copy .*none was given"):
        generate(*out, "--benchmarks", "rafdb")
    with pytest.raises(UserError, match="dataset_root is /data, but no benchmark is named"):
        generate(*out, "--dataset_root", "/data")
    with pytest.raises(UserError, match="ask expllm for emotion7, but benchmark synth scores"):
        generate(*out, "--benchmarks", "synth", "--prompt", "expllm")
    with pytest.raises(UserError, match="benchmark mafw scores mafw11"):
        generate(*out, "--benchmarks", "mafw", "--dataset_root", tmp_path)
    spaced = few(tmp_path)
    spaced.write_text(spaced.read_text().replace("id: few", "id: a few"))
    with pytest.raises(UserError, match="has the id 'a few': lmms-eval's names"):
        generate(*out, "--benchmarks", spaced)
    with pytest.raises(UserError, match=r"cannot be made .*another --output_dir"):
        generate("--output_dir", spaced, "--benchmarks", "synth")
    assert not list((tmp_path / "tasks").iterdir())


def test_a_prompt_that_has_changed_is_not_asked(
    tmp_path: Path, generate: Callable[..., int]
) -> None:
    path = prompt_file(prompts.load("face_cot"), tmp_path)
    words = ("--benchmarks", few(tmp_path), "--prompt", path)
    generate("--output_dir", tmp_path / "tasks", *words)
    path.write_text(path.read_text().replace("Which facial muscles", "Which muscles"))
    task = read(tmp_path / "tasks/vlmface_few.yaml")
    with pytest.raises(UserError, match=r"was \w{12} when the task of few was written, and is"):
        docs_of(task, tmp_path / "cache")


# --- lmms-eval itself -----------------------------------------------------------------------------


def ask(prompt: Prompt, kind: str) -> str:
    """The question as the models of lmms_eval_table.py are asked it."""
    texts = [
        (message["role"], block["text"])
        for message in prompt.messages()
        for block in message["content"]
        if block["type"] == "text"
    ]
    return "\n\n".join(text if kind == "simple" else f"{role}: {text}" for role, text in texts)


@pytest.mark.slow
@pytest.mark.skipif(
    "LMMS_EVAL" not in os.environ,
    reason="set LMMS_EVAL to the python of an environment with lmms-eval and vlmface",
)
@pytest.mark.parametrize("kind", ["simple", "chat"])
def test_lmms_eval_reports_our_figures(
    kind: str, tmp_path: Path, generate: Callable[..., int]
) -> None:
    few(tmp_path, "au_set: [4, 12, 25]}")
    words = ("--output_dir", tmp_path / "tasks", "--max_new_tokens", "48")
    generate(*words)
    generate(*words, "--benchmarks", tmp_path / "few.yaml", "--prompt", "expllm")
    table: dict[str, dict[str, str]] = {}
    expected = {}
    for name, ids in {
        "synth": ["face_cot"],
        "synth_attributes": ["facescan_gender", "facescan_age", "synth_ancestry", "face_cot"],
        str(tmp_path / "few.yaml"): ["expllm"],
    }.items():
        benchmark, asked = benchmarks.load_benchmark(name), [prompts.load(id) for id in ids]
        rows = benchmarks.load_rows(benchmark, None, None).select(range(8 // len(asked)))
        lines = answered(benchmark, rows, asked, turn=3)
        expected[f"vlmface_{benchmark.id}"] = (
            lines,
            evaluation.compute_metrics(lines, benchmark, asked, model="x"),
        )
        for i, line in enumerate(lines):
            picture = answering.images_of(rows.select([i // len(asked)]))[0]
            answers = table.setdefault(ask(asked[i % len(asked)], kind), {})
            answers[hashlib.sha256(picture.tobytes()).hexdigest()] = line["text"]
    (tmp_path / "table.json").write_text(json.dumps(table), encoding="utf-8")
    out, home = tmp_path / "out", tmp_path / "home"
    command = [
        os.environ["LMMS_EVAL"],
        ROOT / "tests/helpers/lmms_eval_table.py",
        "--model",
        "table",
        "--model_args",
        f"answers={tmp_path / 'table.json'}",
        "--limit",
        "8",
        "--include_path",
        tmp_path / "tasks",
        "--tasks",
        "vlmface-all",
        "--output_path",
        out,
        "--log_samples",
    ]
    command += ["--force_simple"] if kind == "simple" else []
    place = {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=os.environ | place, capture_output=True, text=True)
    reports = list(out.rglob("*_results.json"))
    assert done.returncode == 0 and reports, done.stdout + done.stderr
    results = json.loads(reports[0].read_text(encoding="utf-8"))["results"]
    for task, (lines, scores) in expected.items():
        ours = flat(scores)
        theirs = {
            name.removesuffix(",none"): value
            for name, value in results[task].items()
            if name.endswith(",none") and "_stderr" not in name
        }
        assert {name: value for name, value in theirs.items() if value is not None} == ours, task
        (log,) = out.rglob(f"*_samples_{task}.jsonl")
        said = [json.loads(line) for line in log.read_text(encoding="utf-8").split("\n") if line]
        assert [one["filtered_resps"] for one in said] == [line["text"] for line in lines]
        assert not any("input_media" in one for one in said)
        assert all(0 < figure < 1 for figure in ours.values()), f"{task}: nothing to compare"
    written = [path for place in (out, home) for path in place.rglob("*") if path.is_file()]
    assert not any(b"\xff\xd8\xff" in path.read_bytes() for path in written)  # no JPEG
