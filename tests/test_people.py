"""Parts by whole people, and people that two parts share."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from helpers.run_files import read_metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmface import data
from vlmface.data import people
from vlmface.errors import UserError
from vlmface.evaluate import report
from vlmface.train import checks


def rows_of(subjects: list[str | None], dataset: str = "test") -> datasets.Dataset:
    return datasets.Dataset.from_dict(
        {
            "id": [f"{dataset}-{i}" for i in range(len(subjects))],
            "dataset": [dataset] * len(subjects),
            "subject": subjects,
        },
        features=datasets.Features(
            {name: datasets.Value("string") for name in ("id", "dataset", "subject")}
        ),
    )


def sizes_to_subjects(sizes: list[int]) -> list[str]:
    return [f"p{i}" for i, size in enumerate(sizes) for _ in range(size)]


def best(sizes: list[int], share: float) -> float:
    """The distance of the nearest sum of whole people, by trying all of them."""
    total = sum(sizes)
    sums = {
        sum(chosen) for k in range(1, len(sizes)) for chosen in itertools.combinations(sizes, k)
    }
    return min(abs(one - share * total) for one in sums)


@settings(max_examples=150)
@given(
    st.lists(st.integers(1, 30), min_size=2, max_size=9),
    st.floats(0.001, 0.999),
    st.integers(0, 3),
)
def test_no_other_choice_of_people_is_nearer(sizes: list[int], share: float, seed: int) -> None:
    subjects = sizes_to_subjects(sizes)
    rows = rows_of(list(subjects))
    rest, held = data.hold_out(rows, share, seed)
    assert len(rest) and len(held) and len(rest) + len(held) == len(rows)
    assert not set(rest["subject"]) & set(held["subject"])
    assert abs(len(held) - share * len(rows)) == pytest.approx(best(sizes, share))
    # neither the order of the rows nor another call changes who is chosen
    order = np.random.default_rng(seed).permutation(len(rows))
    again = data.hold_out(rows.select(order), share, seed)[1]
    assert set(again["id"]) == set(held["id"])


@given(st.integers(2, 400), st.floats(0.01, 0.99), st.integers(0, 5))
def test_rows_without_people_are_divided_exactly(n: int, share: float, seed: int) -> None:
    held = people.choose_people([("", f"row-{i}") for i in range(n)], share, seed)
    assert len(held) == min(max(round(share * n), 1), n - 1)


def test_thirty_rows_of_ten_people() -> None:
    rows = rows_of(sizes_to_subjects([3] * 10))
    for seed in range(50):
        rest, held = data.hold_out(rows, 0.2, seed)
        assert (len(rest), len(held)) == (24, 6)
    parts = [data.hold_out(rows, 0.2, seed)[1]["subject"] for seed in range(50)]
    chosen = {tuple(sorted(set(names))) for names in parts}
    assert len(chosen) > 20  # of 45: the seed decides who


def test_large_parts_are_chosen_quickly() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(2, 60, 5000).tolist()
    who = [("set", f"p{i}") for i, size in enumerate(sizes) for _ in range(size)]
    held = people.choose_people(who, 0.1, 0)
    rows = sum(one in held for one in who)
    assert abs(rows - 0.1 * len(who)) <= 0.5
    # people of all sizes, not the small ones alone
    mean = rows / len(held)
    assert 0.8 * np.mean(sizes) < mean < 1.2 * np.mean(sizes)


def test_exact_where_the_order_does_not_fit() -> None:
    # 7 of 20 rows: with 10 first, only 7 + 3 = 10 or 3 + 4 = 7 will do
    for sizes, share, expected in (([10, 3, 4, 3], 0.35, 7), ([1, 29], 0.2, 1), ([5, 5], 0.1, 5)):
        for seed in range(20):
            held = data.hold_out(rows_of(sizes_to_subjects(sizes)), share, seed)[1]
            assert len(held) == expected


def test_one_person_cannot_be_divided() -> None:
    with pytest.raises(UserError, match=r"the 4 rows show anna alone, so that no people"):
        data.hold_out(rows_of(["anna"] * 4), 0.5)
    with pytest.raises(UserError, match="the 0 rows show no person alone"):
        data.hold_out(rows_of([]), 0.5)
    for share in (0, 1, -0.5, float("nan")):
        with pytest.raises(UserError, match="hold_out takes a share"):
            data.hold_out(rows_of(["a", "b"]), share)


def test_one_name_in_two_data_sets_is_two_people() -> None:
    both = datasets.concatenate_datasets([rows_of(["1"] * 4, "a"), rows_of(["1"] * 4, "b")])
    rest, held = data.hold_out(both, 0.5)
    assert len(set(rest["dataset"])) == len(set(held["dataset"])) == 1


# --- people in training and test ------------------------------------------------------------------


def test_people_in_both_parts_are_counted() -> None:
    train, test = rows_of(["a", "b", "c", None]), rows_of(["b", "c", "c", "d", None])
    found = people.shared_people(train, test)
    assert found == {"people": 2, "rows": 3, "examples": ["b", "c"]}
    assert people.overlap_warning(found) == (
        "2 people are in the training and the test rows (b, c); they are on 3 test rows, whose "
        "scores say little about other people"
    )
    many = rows_of([f"p{i}" for i in range(2000)])
    assert "2,000 people are in the training and the validation rows (p0, p1, p10, ...)" in (
        people.overlap_warning(people.shared_people(many, many) or {}, "validation")
    )
    assert people.shared_people(train, rows_of(["d", None])) is None
    assert people.shared_people(rows_of([None]), rows_of([None])) is None


def test_names_are_compared_within_a_data_set_alone() -> None:
    assert people.shared_people(rows_of(["1"], "disfa"), rows_of(["1"], "bp4d")) is None
    assert people.shared_people(rows_of(["1"], "disfa"), rows_of(["1"], "disfa")) is not None
    # two tables may both begin to count at 1
    one, two = rows_of(["1"], "table"), rows_of(["1"], "table")
    assert checks.shared_people(one, "/a/t.csv", {"test": (two, "/b/t.csv")}) == {}
    assert checks.shared_people(one, None, {"test": (two, None)}) == {}
    found = checks.shared_people(one, "/a/t.csv", {"test": (two, "/a/../a/t.csv")})
    assert found["shared_people"]["test"]["people"] == 1


def test_a_run_says_that_it_is_tested_on_its_own_people(
    sft_cot: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark = tmp_path / "same.yaml"
    benchmark.write_text(
        "id: same\ndataset: synth\nsplit: train\nsource: a test\nlabel_space: emotion8\n"
        "au_set: [1, 2, 4]\nprotocol: {n: 8}\n"
    )
    out = tmp_path / "run"
    words = ("--n_train", "16", "--epochs", "1", "--benchmark", str(benchmark))
    assert sft_cot(out, *words) == 0
    said = capsys.readouterr().out
    found = read_metrics(out)["train"]["shared_people"]["test"]
    assert found["rows"] == 8 and found["people"] >= 1 and found["examples"]
    line = people.overlap_warning(found)
    assert f"warning: {line}" in said and line in (out / "report.html").read_text()


def test_the_default_run_shares_nobody(run_dir: Path) -> None:
    scores = read_metrics(run_dir)
    assert "shared_people" not in scores["train"]
    assert report._warnings(scores["train"]) == []
    assert "<b>Warning:</b>" not in (run_dir / "report.html").read_text()
