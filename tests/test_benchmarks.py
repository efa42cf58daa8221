"""eval/benchmarks: every protocol on a miniature of its data set, truths written by hand here;
eval/published.yaml; the table of docs/benchmarks.md."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.run_files import read_metrics
from helpers.samples import samples
from helpers.scripts import ROOT
from miniatures import face, fea20k
from miniatures.records import write_lines

from vlmface import benchmarks, data, facs, label_spaces, prompts
from vlmface.data.options import option_types
from vlmface.errors import UserError
from vlmface.evaluate import answering
from vlmface.evaluate import run as evaluation
from vlmface.infer.local import LocalModel
from vlmface.infer.prediction import Prediction
from vlmface.prompts import Prompt
from vlmface.schema import FaceSample

NAMES = benchmarks.benchmark_names()
# The true labels of the miniatures' tested rows, in order, for each label space in turn; several of
# one space as one text.
LABELS: dict[str, list[tuple[str, ...]]] = {
    "affectnet7": [("anger",), ("surprise",)],
    "affectnet8": [("anger",), ("contempt",), ("surprise",)],
    "caers": [
        ("anger",),
        ("disgust",),
        ("fear",),
        ("happiness",),
        ("neutral",),
        ("sadness",),
        ("surprise",),
    ],
    "celeba": [("male",), ("male",)],
    "ckplus": [("disgust",), ("fear",), ("happiness",)],
    "dfew": [("anger",), ("fear",), ("neutral",)],
    "emotic": [("Pain, Sadness",), ("Peace",)],
    "fairface": [("East Asian", "male", "0-9"), ("White", "female", "60+")],
    "fea20k": [("fear",), ("happiness",), ("neutral",)],
    "fer2013": [("sadness",), ("anger",), ("disgust",)],
    "ferbench_affectnet": [("fear",), ("contempt",)],
    "ferbench_ferplus": [("anger",), ("contempt",), ("sadness",)],
    "ferbench_rafdb": [("neutral",), ("happiness",)],
    "ferbench_sfew": [("anger",), ("happiness",)],
    "ferplus": [("disgust",), ("fear",), ("happiness",)],
    "ferv39k": [("sadness",), ("sadness",)],
    "mafw": [("helplessness",), ("happiness",)],
    "raer": [("Distraction",), ("Neutrality",)],
    "rafdb": [("anger",), ("neutral",)],
    "sfew": [("happiness",), ("neutral",), ("sadness",)],
    "utkface": [("male", "40-59", "Asian"), ("male", "0-9", "White")],
}
# The AUs that are present in them, by the id of the row; in all other rows none is.
AUS: dict[str, dict[str, set[int]]] = {
    # SN003's frame has AU1 of intensity 1, below the threshold, and AU5, which only twelve have.
    "disfa8": {"disfa-SN003-00002": {2, 4, 12, 26}},
    "disfa12": {"disfa-SN003-00002": {2, 4, 5, 12, 26}},
    "bp4d": {
        f"bp4d-{person}-{task}-{frame}": {6} | ({24} if task == "T8" else set()) | odd
        for person in data.dataset_module("bp4d").PARTS[2]
        for task in ("T1", "T8")
        for frame, odd in ((2440, set()), (2441, {12}))
    },
    "rafau": {"rafau-0006": {12, 26}, "rafau-0007": {12, 14}},
    "emotionet": {"emotionet-N_0000000005_00012": {12, 25}},
    "fea20k": {"fea20k-DISFA-007": {6, 12}, "fea20k-FABA-010": {1, 4}},
}
# No miniatures: the data sets themselves are small enough.
RENDERED = {"synth", "synth_attributes", "synth_clips", "synth_scenes", "synth_v2", "synth_votes"}


def miniature(name: str, root: Path) -> benchmarks.Benchmark:
    """The benchmark, with the options that its miniature needs, which is written into `root`."""
    benchmark = benchmarks.load_benchmark(name)
    module = importlib.import_module(f"miniatures.{benchmark.dataset}")
    module.write(root)
    options = benchmark.protocol | module.ARGUMENTS
    if (root / "test.txt").exists():  # too few images to draw a fifth of
        options["test_list"] = str(root / "test.txt")
    if name == "raer":  # its boxes are of training clips only
        options |= {"faces": None, "bodies": None}
    if name == "fea20k":  # its test file has a neutral face only
        write_lines(
            root / "DISFA-Test.jsonl",
            fea20k.record(7, "DISFA", AUs=["AU6", "AU12"], labels=["happiness"]),
        )
        write_lines(
            root / "A-Test.jsonl",  # AU25 is not coded by all sources
            fea20k.record(10, "FABA", AUs=["AU1", "AU4", "AU25"], labels=["fear"]),
        )
        face(root / "DISFA" / "7.jpg", 7)
        face(root / "FABA" / "10.jpg", 10)
    return dataclasses.replace(benchmark, protocol=options)


def questions(benchmark: benchmarks.Benchmark) -> list[Prompt]:
    """A prompt for each label space of the benchmark; its answers name AUs if those are scored."""
    form = "think_answer" if benchmark.au_set else "label"
    return [
        Prompt(
            f"asks_{space.id}",
            1,
            "labels" if space.multi_label else form,
            space.id,
            "{candidates}?",
            "test",
        )
        for space in benchmark.spaces or [label_spaces.space("emotion8")]
    ]


class Scripted:
    """Stands for a model: says of each image, in order, what it was told to say about it."""

    pads = False

    manifest = None
    views = ()

    def __init__(self, texts: dict[str, list[str]], asked: list[Prompt]) -> None:
        self.texts, self.prompts, self.prompt = texts, asked, asked[0]
        self.left: Iterator[str] = iter(())

    def with_prompt(self, prompt: Prompt) -> Scripted:
        other = copy.copy(self)
        other.prompt, other.left = prompt, iter(self.texts[prompt.id])
        return other

    def predict(self, images: list[Any], **_: Any) -> list[Prediction]:
        texts = [next(self.left) for _ in images]
        return [Prediction(text, self.prompt.parse(text), None, 0.0, True) for text in texts]


def evaluate(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, right: bool) -> Any:
    """metrics.json of eval/run.py for a model that gives all the answers of this file, or none."""
    benchmark = miniature(name, tmp_path / "data")
    ids = benchmarks.load_rows(benchmark, str(tmp_path / "data"), None)["id"]
    assert AUS.get(name, {}).keys() <= set(ids)
    asked = questions(benchmark)
    texts: dict[str, list[str]] = {prompt.id: [] for prompt in asked}
    # Where only AUs are annotated, the model still has to name some emotion.
    for id, labels in zip(ids, LABELS.get(name, [("neutral",)] * len(ids)), strict=True):
        present = AUS.get(name, {}).get(id, set())
        named = present if right else set(benchmark.au_set) - present
        moved = ", ".join(map(facs.name, sorted(named))) or "Nothing"
        for prompt, label in zip(asked, labels, strict=True):
            other = next(word for word in prompt.space.labels if word != label)
            texts[prompt.id].append(prompt.completion(f"{moved} moved.", label if right else other))
    monkeypatch.setattr(LocalModel, "load", lambda *_, **__: Scripted(texts, asked))
    protocol = tmp_path / "protocol.yaml"
    fields = {k: v for k, v in dataclasses.asdict(benchmark).items() if v is not None}
    protocol.write_text(yaml.safe_dump(fields), encoding="utf-8")
    words = ["--benchmark", str(protocol), "--dataset_root", str(tmp_path / "data")]
    words += ["--model", "scripted", "--output_dir", str(tmp_path / "out"), "--batch_size", "4"]
    assert evaluation.main(words) == 0
    assert "<html" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    return read_metrics(tmp_path / "out")


# --- the protocols --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_protocol_asks_for_what_its_data_set_has(name: str) -> None:
    benchmark = benchmarks.load_benchmark(name)
    assert benchmark.id == name
    assert benchmark == benchmarks.load_benchmark(str(ROOT / "eval/benchmarks" / f"{name}.yaml"))
    module = data.dataset_module(benchmark.dataset)
    assert benchmark.split in module.SPLITS and benchmark.split != "train"
    options = {*option_types(module.read), "missing"}
    assert set(benchmark.protocol) <= options
    assert benchmark.folds is None or benchmark.protocol["fold"] == 1
    assert set(benchmark.au_set) <= set(facs.AUS)
    assert len(set(benchmark.au_set)) == len(benchmark.au_set)
    assert benchmark.source.strip()
    scored = {
        metric.name
        for metric in benchmark.all_metrics
        if benchmark.kinds.intersection(metric.applies_to)
    }
    assert bool(benchmark.au_set) == ("au_f1" in scored)
    assert any(space.multi_label for space in benchmark.spaces) == ("map" in scored)
    assert any(not space.multi_label for space in benchmark.spaces) == ("accuracy" in scored)


def test_every_data_set_with_a_miniature_has_its_truth_here() -> None:
    assert set(NAMES) - RENDERED == LABELS.keys() | AUS.keys()


@pytest.mark.parametrize("name", sorted(LABELS))
def test_label_spaces_cover_the_labels_of_all_splits(name: str, tmp_path: Path) -> None:
    benchmark = miniature(name, tmp_path)
    labelled = set()
    for split in data.dataset_module(benchmark.dataset).SPLITS:
        for row in data.load(benchmark.dataset, tmp_path, split, **benchmark.protocol):
            sample = FaceSample.from_row(row)
            for space in benchmark.spaces:
                annotated = getattr(sample, space.field) or (
                    sample.age if space.field == "age_group" else None
                )
                labels = sample.labels(space)
                assert len(labels) <= 1 or space.multi_label
                assert (not labels) == (annotated is None), f"{sample.id}: {annotated}"
                labelled |= {space.id} if labels else set()
    assert labelled == {space.id for space in benchmark.spaces}


@pytest.mark.parametrize("name", sorted(set(NAMES) - RENDERED))
def test_right_answers_score_one_and_wrong_ones_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmark = benchmarks.load_benchmark(name)
    for right, expected in ((True, 1.0), (False, 0.0)):
        scores = evaluate(name, tmp_path / str(right), monkeypatch, right)
        assert scores["benchmark"] == name and scores["parse"]["strict"] == 1
        assert ("au" in scores) == bool(benchmark.au_set)
        blocks = scores.get("attributes", {}) | {"emotion": scores.get("emotion")}
        scored = {field: block for field, block in blocks.items() if block}
        assert set(scored) == {space.field for space in benchmark.spaces if not space.multi_label}
        assert ("labels" in scores) == any(space.multi_label for space in benchmark.spaces)
        if found := scores.get("labels"):
            assert found["n"] == scores["n"] == len(LABELS[name])
            assert found["jaccard"] == found["f1_macro"] == found["exact_match"] == expected
            support = {k: one["support"] for k, one in found["per_label"].items() if one["support"]}
            true = [label for (labels,) in LABELS[name] for label in labels.split(", ")]
            assert support == Counter(true)
        for block in scored.values():
            assert block["n"] == scores["n"] == len(LABELS[name])
            assert block["accuracy"] == block["uar"] == block["f1_macro"] == expected
        if benchmark.au_set:
            assert scores["au"]["f1_macro"] == scores["au"]["f1_micro"] == expected
            support = {au: entry["support"] for au, entry in scores["au"]["per_au"].items()}
            assert list(support) == [facs.name(au) for au in benchmark.au_set]
            present = [au for aus in AUS[name].values() for au in aus]
            assert support == {facs.name(au): present.count(au) for au in benchmark.au_set}


def test_au_sets_and_thresholds_are_those_of_the_adapters() -> None:
    disfa, load = data.dataset_module("disfa"), benchmarks.load_benchmark
    assert load("disfa8").au_set == list(disfa.BENCHMARK)
    assert load("disfa12").au_set == list(disfa.AUS)
    assert load("bp4d").au_set == list(data.dataset_module("bp4d").AUS)
    assert load("emotionet").au_set == list(data.dataset_module("emotionet").AUS)
    threshold = disfa.Options().threshold
    assert load("disfa8").au_threshold == load("disfa12").au_threshold == threshold
    fea20k = load("fea20k")
    assert fea20k.protocol["au_set"] == fea20k.au_set


# --- folds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["disfa8", "disfa12", "bp4d"])
def test_the_folds_test_everybody_once(name: str, tmp_path: Path) -> None:
    folds = benchmarks.load_benchmark(name).folds
    assert folds == 3
    options = miniature(name, tmp_path).protocol
    tested: list[str] = []
    for fold in range(1, folds + 1):
        benchmark = benchmarks.load_benchmark(f"{name}_fold{fold}")
        assert benchmark.id == f"{name}_fold{fold}" and benchmark.protocol["fold"] == fold
        protocol = options | benchmark.protocol
        rows = benchmarks.load_rows(
            dataclasses.replace(benchmark, protocol=protocol), str(tmp_path), None
        )
        tested += sorted(set(rows["subject"]))
        assert benchmark.published == benchmarks.load_published().get(name, [])
    everybody = {person for part in data.dataset_module(benchmark.dataset).PARTS for person in part}
    assert sorted(tested) == sorted(everybody)


@pytest.mark.parametrize("name", ["ckplus", "dfew", "mafw", "disfa8", "bp4d"])
def test_there_are_as_many_folds_as_the_data_set_has(name: str, tmp_path: Path) -> None:
    folds = benchmarks.load_benchmark(name).folds
    assert folds is not None
    last = benchmarks.load_benchmark(f"{name}_fold{folds}")
    assert last.protocol["fold"] == folds
    with pytest.raises(UserError, match=f"{name} has folds 1 to {folds}: there is no fold 99"):
        benchmarks.load_benchmark(f"{name}_fold99")
    miniature(name, tmp_path)
    with pytest.raises(UserError, match=f"fold={folds + 1}"):
        protocol = last.protocol | {"fold": folds + 1}
        benchmarks.load_rows(dataclasses.replace(last, protocol=protocol), str(tmp_path), None)
    if name == "ckplus":  # fewer people than folds: its own option says how many
        assert data.dataset_module("ckplus").Options().folds == folds


def test_names_that_are_none() -> None:
    with pytest.raises(UserError, match=r"'rafbd' \(did you mean 'rafdb'.*\?\): use one of affec"):
        benchmarks.load_benchmark("rafbd")
    with pytest.raises(UserError, match=r"'DISFA' \(did you mean 'disfa8', 'disfa12'\?\)"):
        benchmarks.load_benchmark("DISFA_fold2")
    with pytest.raises(UserError, match="benchmark rafdb has no folds: leave _fold2 out"):
        benchmarks.load_benchmark("rafdb_fold2")
    with pytest.raises(UserError, match=r"no benchmark '\.\./published'"):
        benchmarks.load_benchmark("../published")


# --- action units alone ---------------------------------------------------------------------------


def test_without_labels_a_prompt_that_names_action_units_is_asked(tmp_path: Path) -> None:
    benchmark = benchmarks.load_benchmark("disfa8")
    label_only, cot = prompts.load("expllm_label"), prompts.load("expllm")
    assert answering.scored_prompts(benchmark, [label_only, cot]) == [cot]
    with pytest.raises(UserError, match="ask expllm_label for emotion7 and for nothing else"):
        answering.scored_prompts(benchmark, [label_only])
    empty = tmp_path / "empty.yaml"
    empty.write_text("{id: empty, dataset: disfa, split: test, source: x}")
    with pytest.raises(UserError, match="has neither label_space nor au_set"):
        benchmarks.load_benchmark(str(empty))


def test_without_labels_an_emotion_in_the_data_is_not_scored() -> None:
    sample = samples(6)[5]
    assert sample.emotion == "contempt"
    benchmark = dataclasses.replace(benchmarks.load_benchmark("synth"), label_space=None)
    prompt = prompts.load("expllm")  # cannot say contempt
    line = {
        "id": sample.id,
        "truth": answering.ground_truth(sample, benchmark),
        "prompt": prompt.id,
        "label": "disgust",
        "status": "strict",
        "aus": [14],
        "latency_s": 0.0,
    }
    scores = evaluation.compute_metrics([line], benchmark, [prompt], model="x")
    assert "emotion" not in scores and scores["au"]["f1_macro"] == 1
    assert (
        answering.ground_truth(sample, benchmarks.load_benchmark("synth"))["emotion"] == "contempt"
    )


# --- published results ----------------------------------------------------------------------------


def test_published_results_are_of_what_the_benchmark_scores() -> None:
    for name, entries in benchmarks.load_published().items():
        benchmark = benchmarks.load_benchmark(name)
        assert benchmark.published == entries != []
        fields = {space.field for space in benchmark.spaces}
        may = fields & set(benchmarks.ATTRIBUTES) | ({"au_f1_macro"} if benchmark.au_set else set())
        if any(space.multi_label for space in benchmark.spaces):
            may |= {"map"}
        elif fields & {"emotion", "context"}:
            may |= {"accuracy", "uar", "f1_macro"}
        for entry in entries:
            assert entry.keys() - {"model", "source", "notes"} <= may, f"{name}: {entry}"
        models = [entry["model"] for entry in entries]
        assert len(set(models)) == len(models)
    assert benchmarks.load_benchmark("synth").published == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rafd: []", r"no benchmark 'rafd' \(did you mean 'rafdb'"),
        ("rafdb: {model: x}", "rafdb should hold a list of"),
        ("rafdb: [x]", "rafdb should hold a list of"),
        ("rafdb: [{accuracy: 0.9, source: x}]", "result 1 of rafdb has model None: give a text"),
        ("rafdb: [{model: x, accuracy: 0.9}]", "result 1 of rafdb has source None"),
        ("rafdb: [{model: x, source: x}]", r"\(x\) should have scores named accuracy.*found none"),
        ("rafdb: [{model: x, source: x, acc: 0.9}]", "named accuracy, uar.*found acc"),
        ("rafdb: [{model: x, source: x, accuracy: 91.0}]", "accuracy 91.0, expected a share from"),
        ("rafdb: [{model: x, source: x, uar: -0.1}]", "uar -0.1, expected a share"),
        ("rafdb: [{model: x, source: x, uar: .nan}]", "uar nan, expected a share"),
        ("rafdb: [{model: x, source: x, uar: high}]", "uar 'high', expected a share"),
        ("rafdb: []\nrafdb: []", "sets 'rafdb' twice"),
    ],
)
def test_what_is_wrong_in_published_results_is_named(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "published.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        benchmarks.load_published(path)


def test_results_of_others_have_one_home(tmp_path: Path) -> None:
    protocol = (ROOT / "eval/benchmarks/rafdb.yaml").read_text(encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(protocol + "published: []\n", encoding="utf-8")
    with pytest.raises(UserError, match="there is no setting 'published'"):
        benchmarks.load_benchmark(str(tmp_path / "mine.yaml"))


# --- the table ------------------------------------------------------------------------------------


def test_the_table_of_the_docs_says_what_the_files_say() -> None:
    page = (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")
    lines = [line for line in page.splitlines() if re.match(r"\| `\w+` \|", line)]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    table = {name.strip("`"): rest for name, *rest in cells}
    assert sorted(table) == NAMES and len(lines) == len(NAMES)
    for name, (origin, faces, labels, aus, metrics, source) in table.items():
        benchmark = benchmarks.load_benchmark(name)
        assert origin.split(", ")[:2] == [f"`{benchmark.dataset}`", benchmark.split]
        published = getattr(data.dataset_module(benchmark.dataset), "PUBLISHED", {})
        whole = not benchmark.protocol.keys() & {"part", "classes"}
        if whole and "rows" in published.get(benchmark.split, {}):
            assert faces.startswith(f"{published[benchmark.split]['rows']:,}"), name
        named = (f"`{s.id}`" + ", several a person" * s.multi_label for s in benchmark.spaces)
        assert labels == (", ".join(named) or "–")
        assert aus == (str(len(benchmark.au_set)) if benchmark.au_set else "–")
        assert ("AU F1" in metrics) == bool(benchmark.au_set)
        assert ("mAP" in metrics) == any(space.multi_label for space in benchmark.spaces)
        assert ("accuracy" in metrics) == any(not space.multi_label for space in benchmark.spaces)
        assert (f"mean of {benchmark.folds} folds" in metrics) == (benchmark.folds is not None)
        assert source
