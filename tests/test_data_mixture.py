"""Mixtures of data sets: weights, caps, balance, harmonised labels, and mistakes in the file."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import yaml
from helpers.run_files import read_metrics
from miniatures import affectnet, rafdb

from vlmface import data
from vlmface.errors import UserError
from vlmface.schema import features

RAFDB, AFFECTNET = (
    {"dataset": "rafdb", "root": "rafdb"},
    {"dataset": "affectnet", "root": "affectnet"},
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """RAF-DB with seven faces, one of each emotion; AffectNet with eight."""
    folder = tmp_path_factory.mktemp("mixture")
    rafdb.write(folder / "rafdb")
    affectnet.write(folder / "affectnet")
    return folder


@pytest.fixture
def mix(folder):
    def load(*sources, n=None, seed=None, split="train", **keys):
        path = folder / "mixture.yaml"
        path.write_text(yaml.safe_dump({"sources": list(sources), **keys}))
        return data.load(str(path), None, split, n=n, **({} if seed is None else {"seed": seed}))

    return load


def test_all_rows_of_all_sources_once_in_an_order_of_the_seed(mix):
    rows = mix(RAFDB, AFFECTNET)
    assert rows.features == features() and len(rows) == 15
    assert Counter(rows["dataset"]) == {"rafdb": 7, "affectnet": 8}
    assert rows[0]["image"].size in ((100, 100), (48, 48))
    again, other = mix(RAFDB, AFFECTNET), mix(RAFDB, AFFECTNET, seed=1)
    assert rows["id"][:] == again["id"][:] != other["id"][:]
    assert sorted(rows["id"]) == sorted(other["id"])
    assert data.fingerprint(rows) == data.fingerprint(again) != data.fingerprint(other)
    assert rows["id"][:] != sorted(rows["id"])


def test_split_root_and_options_of_sources(mix, folder):
    assert set(mix(RAFDB, split="test")["split"]) == {"test"}
    both = mix(RAFDB, {**RAFDB, "split": "test", "options": {"attributes": True}})
    assert Counter(both["split"]) == {"train": 7, "test": 2}
    assert {row["split"] for row in both if row["gender"]} == {"test"}
    path = folder / "one.yaml"
    path.write_text("sources: [{dataset: rafdb}, {dataset: synth, options: {n: 3}}]")
    rows = data.load(str(path), folder / "rafdb")  # synth has no root, RAF-DB takes the given one
    assert Counter(rows["dataset"]) == {"rafdb": 7, "synth": 3}
    assert {row["id"] for row in data.load(str(path), folder / "rafdb", streaming=True)} == set(
        rows["id"]
    )


def test_weights_take_the_most_that_needs_no_row_twice_or_the_size_asked_for(mix):
    sources = [{**RAFDB, "weight": 1}, {**AFFECTNET, "weight": 4}]
    assert Counter(mix(*sources)["dataset"]) == {"affectnet": 8, "rafdb": 2}
    rows = mix(*sources, size=40)
    assert Counter(rows["dataset"]) == {"affectnet": 32, "rafdb": 8}
    for name, times in (("affectnet", {4}), ("rafdb", {1, 2})):
        assert set(Counter(row for row in rows["id"] if row.startswith(name)).values()) == times
    assert len(mix(*sources, size=40, n=4)) == 4  # the recipe's n_train
    assert len(mix(RAFDB, AFFECTNET, size=5)) == 5


def test_balance_draws_every_label_equally_often_over_all_sources(mix):
    rows = mix(RAFDB, AFFECTNET, balanced=True)
    assert set(Counter(rows["emotion"]).values()) == {1}  # contempt occurs once
    rows = mix(RAFDB, AFFECTNET, balanced=True, labels={"contempt": None})
    assert set(Counter(rows["emotion"]).values()) == {2} and len(rows) == 14
    rows = mix(
        {**RAFDB, "weight": 1},
        {**AFFECTNET, "weight": 3},
        balanced=True,
        size=32,
        labels={"contempt": "anger"},
    )
    assert set(Counter(rows["emotion"]).values()) == {4, 5}
    fear = [row["dataset"] for row in rows if row["emotion"] == "fear"]
    assert Counter(fear)["affectnet"] > Counter(fear)["rafdb"] >= 1


def test_labels_are_renamed_and_left_out_the_source_before_the_mixture(mix):
    rows = mix(
        {**RAFDB, "labels": {"fear": "surprise"}},
        AFFECTNET,
        labels={"fear": None, "contempt": None},
    )
    words = Counter((row["dataset"], row["emotion"]) for row in rows)
    assert words["rafdb", "surprise"] == 2 and words["rafdb", "fear"] == 0
    assert words["affectnet", "surprise"] == 1 and words["affectnet", "fear"] == 0
    assert not {w for _, w in words} & {"contempt"} and rows.features == features()
    rows = mix(
        {**RAFDB, "options": {"attributes": True}, "labels": {"male": "man"}}, field="gender"
    )
    assert Counter(rows["gender"]) == {"man": 3, "female": 2, None: 2}


def test_a_cap_is_a_random_part_that_the_seed_decides(mix):
    capped = {**RAFDB, "cap": 3}
    first, second = mix(capped), mix(capped, seed=5)
    assert len(first) == len(second) == 3
    assert set(first["id"]) != set(second["id"])
    assert len(mix({**RAFDB, "cap": 300})) == 7


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            "sources: [{dataset: rafdb, wieght: 1}]",
            r"'wieght' \(did you mean 'weight'\?\).*source 1",
        ),
        (
            "sorces: [{dataset: rafdb}]",
            r"'sorces' \(did you mean 'sources'\?\) \(in .*mixture.yaml\)",
        ),
        ("balanced: true", "mixture.yaml lacks sources"),
        ("sources: [rafdb]", "mixture.yaml: sources is 'rafdb'"),
        ("sources: []", "`sources` is empty"),
        ("sources: [{root: rafdb}]", "source 1 lacks data"),
        ("sources: [{dataset: rafdb, root: rafdb, cap: many}]", "source 1: cap is 'many'"),
        ("sources: [{dataset: rafdb, root: rafdb, cap: 0}]", "source 1: cap is 0"),
        ("sources: [{dataset: rafdb, weight: -1}]", "source 1: weight is -1"),
        (
            "sources: [{dataset: rafdb, weight: 1}, {dataset: synth}]",
            "source 2: `weight` is missing",
        ),
        ("sources: [{dataset: rafdbb}]", "source 1: there is no data set 'rafdbb'"),
        ("sources: [{dataset: rafdb}]", "source 1: rafdb needs the root"),
        ("sources: [{dataset: rafdb, root: gone}]", "source 1: .*gone does not exist"),
        ("sources: [{dataset: rafdb, root: rafdb, options: {image: a}}]", "no option 'image'"),
        ("sources: [{dataset: mixture.yaml}]", "is a mixture itself"),
        (
            "{sources: [{dataset: synth}], labels: {hapiness: null}}",
            "'hapiness', but emotion is one",
        ),
        (
            "{sources: [{dataset: synth}], labels: {fear: afraid}}",
            "'afraid', but emotion is one of",
        ),
        ("{sources: [{dataset: synth}], labels: {fear: no}}", "'fear': False, expected a word"),
        (
            "{sources: [{dataset: synth}], field: emotions}",
            "`field` is 'emotions', expected emotion",
        ),
        (
            "{sources: [{dataset: rafdb, root: rafdb, labels: {male: x}}], field: gender}",
            "source 1: `labels` has 'male', but gender is one of: empty",
        ),
        (
            "{sources: [{dataset: rafdb, root: rafdb}], field: gender, balanced: true}",
            "`balanced` needs rows with a label in the field 'gender'",
        ),
        (
            "sources: [{dataset: rafdb, root: rafdb}, {dataset: rafdb, root: rafdb}]",
            "7 rows come from two of its sources",
        ),
    ],
)
def test_what_is_wrong_in_the_file_is_named_with_the_file(folder, content, said):
    path = folder / "mixture.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=said) as error:
        data.load(str(path))
    assert "mixture.yaml" in str(error.value)


def test_options_of_the_mixture_itself(folder):
    path = folder / "mixture.yaml"
    path.write_text("sources: [{dataset: rafdb, root: rafdb}]")
    with pytest.raises(UserError, match=r"no option 'size'; it has seed"):
        data.load(str(path), size=3)
    with pytest.raises(UserError, match="cannot read the settings"):
        data.load(str(folder / "gone.yaml"))


def test_the_recipe_trains_on_a_mixture_and_its_manifest_knows_it(folder, sft_cot, tmp_path):
    path = folder / "synth.yaml"
    path.write_text(
        "sources: [{dataset: synth, options: {n: 24}}, {dataset: rafdb, root: rafdb}]\n"
        "labels: {contempt: null}"
    )
    words = ["--dataset", str(path), "--n_train", "null", "--epochs", "1"]
    assert sft_cot(tmp_path / "run", *words) == 0
    rows = data.load(str(path))
    manifest = json.loads((tmp_path / "run" / "vlmface.json").read_text())
    assert manifest["dataset"]["fingerprint"] == data.fingerprint(rows)
    scores = read_metrics(tmp_path / "run")
    assert scores["train"]["skipped"] == {"no_aus": 7}  # of RAF-DB, which annotates none
