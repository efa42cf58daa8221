"""For whom it works: gaps, equalised odds and crossed groups, against counting row by row."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from helpers.fake_run import SPACE, random_rows, row
from hypothesis import given
from hypothesis import strategies as st

from vlmface.metrics import groups, metrics, tables

LABELS = SPACE.labels


def blocks(rows: list[dict[str, Any]], ci: bool = True) -> dict[str, Any]:
    return tables._by_group(rows, SPACE, metrics.count_labels(rows, SPACE), ci)


def people(n: int, seed: int) -> list[dict[str, Any]]:
    """Random answers of random people, of whom some groups are not annotated."""
    draw = np.random.default_rng(seed)
    rows = random_rows(n, seed)
    for one in rows:
        one["truth"]["attributes"] = {
            "gender": draw.choice(["female", "male"]),
            "race": draw.choice(["asian", "african", None]),
        }
    return rows


@given(st.integers(0, 50))
def test_equalised_odds_by_counting(seed: int) -> None:
    rows = people(900, seed)
    counts = metrics.count_labels(rows, SPACE)
    for name, words in (("gender", ("female", "male")), ("race", ("african", "asian"))):
        inside = {w: [r["truth"]["attributes"][name] == w for r in rows] for w in words}
        found = groups.equalised_odds({w: counts[inside[w]].sum(0) for w in words}, LABELS)
        worst = 0.0
        for one, other in combinations(words, 2):
            for label in LABELS:
                for true in (True, False):
                    rates = []
                    for word in (one, other):
                        part = [
                            r
                            for r, here in zip(rows, inside[word], strict=True)
                            if here
                            and r["truth"]["emotion"] is not None
                            and (r["truth"]["emotion"] == label) == true
                        ]
                        said = [metrics.answer(r) == label for r in part]
                        rates.append(np.mean(said) if len(said) >= groups.FEW else None)
                    if None not in rates:
                        worst = max(worst, abs(rates[0] - rates[1]))
        assert found is not None and found["difference"] == pytest.approx(worst)


def test_a_group_that_is_worse_off() -> None:
    rows = []
    for i in range(400):
        gender = "female" if i % 2 else "male"
        truth = "anger" if i % 4 < 2 else "fear"
        wrong = gender == "female" and truth == "anger" and i % 8 < 4
        one = row(i, truth, "sadness" if wrong else truth)
        one["truth"]["attributes"] = {"gender": gender, "race": "asian" if i < 390 else "african"}
        rows.append(one)
    found = blocks(rows)
    assert found["groups"]["gender"]["male"]["accuracy"] == 1
    assert found["groups"]["gender"]["female"]["accuracy"] == pytest.approx(0.75)
    assert found["gaps"]["gender"] == pytest.approx(0.25)
    # Of angry women half are found, of angry men all.
    assert found["equalised_odds"]["gender"] == {
        "difference": pytest.approx(0.5),
        "label": "anger",
        "rate": "true positives",
        "groups": ["male", "female"],
    }
    # Ten faces are too few to compare rates of, and stand at the end of the table.
    assert "race" not in found["equalised_odds"]
    cells = found["intersections"]
    assert [cell["n"] < groups.FEW for cell in cells] == [False, False, True, True]
    assert (cells[0]["gender"], cells[0]["race"]) == ("female", "asian")
    male = next(c for c in cells if (c["gender"], c["race"]) == ("male", "asian"))
    assert male["accuracy"] == 1 and 0.9 < male["ci95"][0] < 1 == male["ci95"][1]


def test_cells_hold_every_annotated_row_once() -> None:
    rows = people(600, 3)
    found = blocks(rows, ci=False)
    crossed = [
        r
        for r in rows
        if r["truth"]["attributes"]["race"] is not None and r["truth"]["emotion"] is not None
    ]
    assert sum(cell["n"] for cell in found["intersections"]) == len(crossed)
    assert all("ci95" not in cell for cell in found["intersections"])
    for name, table in found["groups"].items():
        values = [cell["accuracy"] for cell in table.values()]
        assert found["gaps"][name] == pytest.approx(max(values) - min(values))


def test_one_group_is_none() -> None:
    rows = people(50, 1)
    for one in rows:
        one["truth"]["attributes"] = {"gender": "female", "race": None}
    assert blocks(rows) == {}
