"""The YAML file of a data set: as data, as a benchmark, in recipes; and what is wrong with one."""

from __future__ import annotations

import csv
import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from helpers.scripts import load_script
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vlmface import answers, benchmarks, data, label_spaces, manifest, prompts
from vlmface.cli import main
from vlmface.data import check
from vlmface.data.splits import PARTS, assign, picture_groups, rare_labels
from vlmface.errors import UserError
from vlmface.metrics import metrics

SHARES = {"train": 0.65, "validation": 0.15, "test": 0.2}
COLUMNS = {"image": "file", "label": "state", "subject": "person"}
SPLITS = {"by": "subject", "validation": 0.15, "test": 0.2, "seed": 0}
LABELS = ["bored", "engaged", "verärgert"]
Cells = Sequence[tuple[str, str, str]]


def picture(path: Path, seed: int, size: int = 48) -> Path:
    """A picture of coloured clouds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colours = np.random.default_rng(seed).integers(0, 255, (5, 5, 3), np.uint8)
    Image.fromarray(colours).resize((size, size), Image.Resampling.BICUBIC).save(path)
    return path


def rows_of(n: int = 33, people: int = 11) -> list[tuple[str, str, str]]:
    """(file, label, person)."""
    words = ("bored", "Engaged", "VERÄRGERT")
    return [(f"img/{i}.png", words[i % 3], f"P{i // 3 % people:02d}") for i in range(n)]


def write(folder: Path, rows: Cells, **changes: Any) -> Path:
    """faces.csv, its pictures and faces.yaml."""
    for i, (name, _, _) in enumerate(rows):
        picture(folder / name, i)
    with (folder / "faces.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("file", "state", "person"), *rows])
    content = {
        "dataset": "table",
        "root": "faces.csv",
        "options": {"columns": COLUMNS},
        "splits": SPLITS,
        "label_space": {"labels": LABELS},
    } | changes
    path = folder / "faces.yaml"
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    return path


# --- splits ---------------------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(st.integers(0, 12), st.sampled_from("abcd")), min_size=20, max_size=120
    ).filter(lambda rows: len({person for person, _ in rows}) >= 3),
    st.integers(0, 5),
    st.randoms(),
)
def test_groups_are_whole_no_part_is_empty_and_the_order_decides_nothing(
    rows: list[tuple[int, str]], seed: int, random: Any
) -> None:
    groups, labels = [f"p{person}" for person, _ in rows], [(label,) for _, label in rows]
    parts = assign(groups, labels, SHARES, seed)
    assert set(parts) == set(PARTS)
    part_of = dict(zip(groups, parts, strict=True))
    assert [part_of[group] for group in groups] == parts
    order = random.sample(range(len(rows)), len(rows))
    shuffled = assign([groups[i] for i in order], [labels[i] for i in order], SHARES, seed)
    assert dict(zip([groups[i] for i in order], shuffled, strict=True)) == part_of
    assert (not rare_labels(groups, labels)) == all(
        len({g for g, (w,) in zip(groups, labels, strict=True) if w == word}) > 1
        for (word,) in labels
    )


@given(
    st.lists(st.sampled_from("abc"), min_size=3, max_size=40).filter(
        lambda labels: max(map(labels.count, labels)) >= 3
    ),
    st.integers(0, 3),
)
def test_a_label_of_two_people_is_in_train_and_in_test(labels: list[str], seed: int) -> None:
    """Where each person has one label: of more, it is not always possible."""
    people = [str(i) for i in range(len(labels))]
    parts = assign(people, [(label,) for label in labels], SHARES, seed)
    for label in set(labels):
        of_label = [part for part, word in zip(parts, labels, strict=True) if word == label]
        if len(of_label) >= 2:
            assert {"train", "test"} <= set(of_label)
        if len(of_label) >= 3:
            assert set(of_label) == set(PARTS)


def test_single_rows_meet_the_shares_of_every_label() -> None:
    labels = [("a",)] * 700 + [("b",)] * 200 + [("c",)] * 100
    parts = assign([str(i) for i in range(1000)], labels, SHARES)
    for label, n in (("a", 700), ("b", 200), ("c", 100)):
        of_label = [part for part, (word,) in zip(parts, labels, strict=True) if word == label]
        for part, share in SHARES.items():
            assert abs(of_label.count(part) - share * n) <= 1.5
    assert assign([str(i) for i in range(1000)], labels, SHARES, seed=1) != parts
    with pytest.raises(UserError, match="2 are too few for 3 splits"):
        assign(["x", "y"], [(), ()], SHARES)


def test_equal_files_are_one_picture_wherever_they_are(tmp_path: Path) -> None:
    paths = [picture(tmp_path / f"{i}.png", i % 2) for i in range(4)]
    other = picture(tmp_path / "4.png", 9)
    gone = tmp_path / "5.png"
    sources = [[str(path)] for path in (*paths, other, gone)]
    assert picture_groups(list("fedcba"), sources) == ["d", "c", "d", "c", "b", "a"]


# --- as data and as a benchmark ------------------------------------------------------------------


def test_it_is_data_a_benchmark_a_label_space_and_a_source_of_mixtures(tmp_path: Path) -> None:
    path = write(tmp_path, rows_of())
    parts = {split: data.load(str(path), split=split) for split in PARTS}
    assert sum(map(len, parts.values())) == 33
    people = [set(rows["subject"]) for rows in parts.values()]
    assert sum(map(len, people)) == 11 and len(set.union(*people)) == 11
    assert set(parts["test"]["dataset"]) == {"faces"}
    benchmark = benchmarks.load_benchmark(str(path))
    assert (benchmark.id, benchmark.split, benchmark.needs_root) == ("faces", "test", False)
    (space,) = benchmark.spaces
    assert space == label_spaces.space(path) and space.labels == tuple(LABELS)
    assert benchmarks.load_rows(benchmark, None, None)["id"] == parts["test"]["id"]
    (tmp_path / "mixture.yaml").write_text("sources: [{dataset: faces.yaml, split: test}]")
    mixed = data.load(str(tmp_path / "mixture.yaml"))
    assert sorted(mixed["id"]) == sorted(parts["test"]["id"])


def test_any_data_set_can_be_divided_and_options_can_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "rendered.yaml"
    path.write_text("{dataset: synth, options: {seed: 3}, splits: {validation: 0.3}}")
    with pytest.raises(UserError, match="have a split 'validation' already: leave validation out"):
        data.load(str(path))
    path.write_text("{dataset: synth, options: {seed: 3}}")
    assert data.load(str(path), n=4)["id"] == data.load("synth", n=4, seed=3)["id"]
    assert data.load(str(path), n=4, seed=5)["id"] == data.load("synth", n=4, seed=5)["id"]
    table = write(tmp_path, rows_of())
    with pytest.raises(UserError, match=r"'where' was given, but .* write it into the file"):
        data.load(str(table), where="person == 'P03'")


def test_a_split_column_may_lack_the_validation_split(tmp_path: Path) -> None:
    rows = rows_of(40, 8)
    path = write(tmp_path, rows)
    with (tmp_path / "faces.csv").open("w", newline="", encoding="utf-8") as file:
        usage = ["PublicTest" if person in ("P00", "P01") else "Training" for *_, person in rows]
        table = [(*row, word) for row, word in zip(rows, usage, strict=True)]
        csv.writer(file).writerows([("file", "state", "person", "Usage"), *table])
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    content["splits"] = {"column": "Usage", "names": {"PublicTest": "test"}, "validation": 0.2}
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    people = {split: set(data.load(str(path), split=split)["subject"]) for split in PARTS}
    assert people["test"] == {"P00", "P01"}
    assert people["train"] | people["validation"] == {f"P{i:02d}" for i in range(2, 8)}
    assert not people["train"] & people["validation"] and people["validation"]


# --- what is wrong -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "tabel"}, "did you mean 'table'"),
        ({"rot": 1}, r"no setting 'rot' \(did you mean 'root'\?\)"),
        ({"root": "gone.csv"}, "root is gone.csv, but .* does not exist"),
        ({"options": {"colums": {}}}, r"no option 'colums' \(did you mean 'columns'\?\)"),
        (
            {"options": {"columns": COLUMNS | {"label": "stat"}}},
            "names the column 'stat', but .* has file, state, person: did you mean 'state'",
        ),
        ({"splits": {"by": "eye"}}, "by is 'eye', but must be"),
        ({"splits": {"test": 0.6, "validation": 0.5}}, "leaves nothing to train on"),
        ({"splits": {"names": {"a": "test"}}}, "splits has names, but no column"),
        ({"splits": None, "label_space": {"labels": ["a"]}}, "expected a list of 2 or more"),
        ({"label_space": {"labels": ["bored", "engaged"]}}, "line 4: 'state' is 'VERÄRGERT'"),
        ({"label_space": {"labels": [*LABELS, "a<b"]}}, "'a<b' could not be read in an answer"),
        ({"label_space": "faces.yaml"}, "label_space|labels"),
        (
            {"options": {"columns": COLUMNS | {"subject": None}}},
            "33 of 33 rows .* name none: .* or set by: image",
        ),
        (
            {"splits": {"by": "video", "test": 0.2}},
            "splits go by video, but table-img/0.png is not a frame of a video",
        ),
    ],
)
def test_one_sentence_for_what_is_wrong(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = write(tmp_path, rows_of(), **changes)
    with pytest.raises(UserError, match=message) as error:
        data.load(str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("a.png", "bored", ""), *rows_of()], "1 of 34 rows .*a.png.* name none"),
        (
            [*rows_of(), ("a.png", "verärgert", "Q")],
            None,
        ),
        (
            [row for row in rows_of() if row[1] != "bored"] + [("a.png", "bored", "P01")],
            "the label 'bored' is on a single person .*a.png",
        ),
        (rows_of(9, 2), "9 rows show 2 people, too few for the splits train, validation, test"),
    ],
)
def test_rows_that_cannot_be_split(tmp_path: Path, rows: Cells, message: str | None) -> None:
    path = str(write(tmp_path, rows))
    if message is None:
        assert len(data.load(path, split="test"))
        return
    with pytest.raises(UserError, match=message):
        data.load(path, split="test")


def test_a_prompt_that_needs_more_than_the_data_have_is_refused_first(
    tmp_path: Path, base: Path
) -> None:
    path = str(write(tmp_path, rows_of()))
    out = tmp_path / "run"
    recipe = load_script("recipes/sft_cot.py").main
    words = ["--dataset", path, "--base_model", str(base), "--output_dir", str(out)]
    with pytest.raises(UserError, match=r"action units or a text, .* has none .*--prompt label"):
        recipe([*words, "--prompt", "au_rationale"])
    with pytest.raises(UserError, match="cannot ask for faces: use another prompt, such as label"):
        recipe([*words, "--prompt", "face_cot"])
    assert not (out / "vlmface.json").exists()


# --- recipes -------------------------------------------------------------------------------------


def test_a_recipe_takes_labels_prompt_and_test_split_from_it(
    tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, rows_of())
    run = tmp_path / "run"
    words = {"dataset": path, "base_model": base, "output_dir": run, "epochs": 1, "batch_size": 8}
    argv = [word for name, value in words.items() for word in (f"--{name}", str(value))]
    assert load_script("recipes/sft_cot.py").main([*argv, "--max_new_tokens", "8"]) == 0
    trained, (prompt,) = manifest.load(run)
    assert prompt.id == "label_faces" and prompt.format == "label"
    assert trained.dataset["file"]["splits"] == SPLITS
    scores = json.loads((run / "metrics.json").read_text())
    assert scores["after"]["benchmark"] == "faces"
    assert scores["after"]["n"] == len(data.load(str(path), split="test"))
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    content["splits"]["seed"] = 1
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    capsys.readouterr()
    assert main(["eval", "run", "--benchmark", str(path), "--model", str(run), "--n", "2"]) == 0
    assert "splits in" in capsys.readouterr().err


# --- labels of any script, and steps of a scale ---------------------------------------------------

WORDS = ("müde", "énervé", "très gai", "高兴", "悲伤", "खुश", "दुखी", "กลัว", "радость", "Straße")


@pytest.mark.parametrize("form", ["label", "rationale"])
@pytest.mark.parametrize("several", [False, True])
def test_labels_of_any_script_survive_prompt_parser_and_metrics(form: str, several: bool) -> None:
    decomposed = [unicodedata.normalize("NFD", word) for word in WORDS]
    content = {"id": "w", "field": "context", "labels": decomposed, "source": "test"}
    space = label_spaces.from_mapping({**content, "multi_label": several}, "w.yaml")
    assert space.labels == tuple(unicodedata.normalize("NFC", word) for word in WORDS)
    prompt = prompts.generate(form, space)
    assert ", ".join(space.labels) in str(prompt.messages())
    for number, label in enumerate(space.labels):
        for spelling in (label, label.upper(), unicodedata.normalize("NFD", label)):
            assert space.match(spelling) == label
            read = prompt.parse(prompt.completion("A reason.", spelling))
            assert read.labels == (label,) and read.status in ("strict", "lenient")
        if number:
            wrong = prompt.parse(f"not {label}")
            assert wrong.label is None
    line = {"id": "1", "truth": {"attributes": {"context": space.labels[5]}}, "status": "strict"}
    if not several:
        about: Any = {"benchmark": "b", "model": "m", "prompt": {}, "scoring": "generate"}
        about |= {"wall_s": 0.0, "peak_rss_gib": 0.0}
        rows = [line | {"label": space.labels[5], "text": "", "aus": [], "probabilities": None}]
        scores = metrics.summarise(rows, space, [], about, ci=False)
        assert scores["attributes"]["context"]["accuracy"] == 1.0


def test_marks_are_parts_of_words() -> None:
    assert label_spaces.normalise("ख़ुशी है!") == label_spaces.normalise("ख़ुशी  है")
    assert label_spaces.normalise("ก\u0e49า") != label_spaces.normalise("กา")
    assert label_spaces.normalise("Straße") == label_spaces.normalise("STRASSE")
    space = label_spaces.from_mapping(
        {"id": "h", "field": "context", "labels": ["खुश", "दुखी"], "source": "t"}, "h"
    )
    assert answers.parse("It is खुश.", space, "label").label == "खुश"


def ordered_rows(pairs: Sequence[tuple[int, int | None]], labels: Sequence[str]) -> list[Any]:
    return [
        {
            "id": str(i),
            "truth": {"attributes": {"context": labels[true]}},
            "label": None if said is None else labels[said],
            "status": "none" if said is None else "strict",
            "text": "",
            "aus": [],
            "probabilities": None,
            "subject": f"p{i}",
        }
        for i, (true, said) in enumerate(pairs)
    ]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=40))
def test_steps_of_a_scale_are_scored_as_scikit_learn_does(pairs: list[tuple[int, int]]) -> None:
    from sklearn.metrics import cohen_kappa_score, mean_absolute_error

    labels = ["none", "low", "medium", "high"]
    content = {"id": "o", "field": "context", "labels": labels, "source": "t", "ordered": True}
    space = label_spaces.from_mapping(content, "o")
    scores = metrics.point_scores(ordered_rows(pairs, labels), space, [])[("attributes", "context")]
    true, said = zip(*pairs, strict=True)
    assert scores["mean_step_error"] == pytest.approx(mean_absolute_error(true, said))
    kappa = cohen_kappa_score(true, said, weights="quadratic", labels=range(4))
    if np.isfinite(kappa):
        assert scores["weighted_kappa"] == pytest.approx(kappa)
    else:
        assert "weighted_kappa" not in scores


def test_no_answer_is_as_far_away_as_the_scale_allows_and_unordered_labels_have_no_steps() -> None:
    labels = ["low", "medium", "high"]
    content = {"id": "o", "field": "context", "labels": labels, "source": "t"}
    rows = ordered_rows([(0, None), (1, None), (2, 2)], labels)
    space = label_spaces.from_mapping({**content, "ordered": True}, "o")
    scores = metrics.point_scores(rows, space, [])[("attributes", "context")]
    assert scores["mean_step_error"] == pytest.approx((2 + 1 + 0) / 3)
    plain = label_spaces.from_mapping(content, "o")
    assert "mean_step_error" not in metrics.point_scores(rows, plain, [])[("attributes", "context")]
    with pytest.raises(UserError, match="multi_label and ordered are both true"):
        label_spaces.from_mapping({**content, "ordered": True, "multi_label": True}, "o")
    assert label_spaces.from_mapping(space.to_mapping(), "o") == space


# --- data check ----------------------------------------------------------------------------------


def checked(path: Path, output: Path | None = None) -> dict[str, Any]:
    return check.check(str(path), output=output, workers=2)


def test_a_correct_file_passes_and_pictures_without_a_face_are_said(tmp_path: Path) -> None:
    path = write(tmp_path, rows_of())
    out = tmp_path / "check"
    assert main(["data", "check", str(path), "--output_dir", str(out)]) == 0
    report = json.loads((out / "check.json").read_text())
    assert report["errors"] == [] and set(report["splits"]) == set(PARTS)
    assert report["splits"]["train"]["labels"]["context"].keys() == set(LABELS)
    pytest.importorskip("mediapipe")
    assert any("no face was found in 33 of 33 pictures" in text for text in report["warnings"])


def test_one_split_is_enough(tmp_path: Path) -> None:
    path = write(tmp_path, rows_of(), splits=None)
    report = checked(path)
    assert report["errors"] == [] and set(report["splits"]) == {"train"}
    with pytest.raises(UserError, match="no split 'test', only train: add"):
        data.load(str(path), split="test")


def test_what_two_splits_share_is_found(tmp_path: Path) -> None:
    rows = rows_of(60, 12)
    path = write(tmp_path, rows)
    test = data.load(str(path), split="test")
    train = data.load(str(path), split="train")
    name = test["id"][0].removeprefix("table-")
    other = train["id"][0].removeprefix("table-")
    with Image.open(tmp_path / other) as image:  # the same picture, stored again
        image.resize((96, 96)).convert("RGB").save(tmp_path / "copy.jpg", quality=80)
    (tmp_path / "copy.jpg").rename(tmp_path / name)
    report = checked(path)
    assert report["errors"] == []
    assert report["alike"] == {"train, test": [(train["id"][0], test["id"][0])]}
    assert any("train, test: pictures that look the same (1)" in w for w in report["warnings"])
    (tmp_path / name).write_bytes((tmp_path / other).read_bytes())
    report = checked(path)
    assert any("train, test: pictures in both (1)" in text for text in report["errors"])
    assert report["alike"] == {}


def test_without_people_pictures_are_split_and_that_is_said(tmp_path: Path) -> None:
    rows = [(name, label, "") for name, label, _ in rows_of(60)]
    path = write(tmp_path, rows, splits={"validation": 0.15, "test": 0.2})
    (tmp_path / rows[1][0]).write_bytes((tmp_path / rows[4][0]).read_bytes())
    report = checked(path)
    assert report["errors"] == []  # equal pictures are in one split
    assert any(text.startswith("splits go by picture") for text in report["warnings"])


def test_rare_and_missing_labels_are_said(tmp_path: Path) -> None:
    rows = [(f"{i}.png", "bored" if i >= 4 else "Engaged", f"P{i:02d}") for i in range(80)]
    path = write(tmp_path, rows)
    warnings = checked(path)["warnings"]
    assert any("train: fewer than 10 rows of engaged" in text for text in warnings)
    assert any("rows of bored, but" in text for text in warnings)
    for split in PARTS:
        assert f"{split}: no row has the label verärgert" in warnings
