"""eval/sweep.py: who goes on, what is asked, what is called a winner."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
from helpers.scripts import to_argv
from hypothesis import given
from hypothesis import strategies as st

from vlmface import prompts
from vlmface.benchmarks import load_benchmark
from vlmface.errors import UserError
from vlmface.evaluate import sweep
from vlmface.infer.local import LocalModel
from vlmface.label_spaces import space
from vlmface.metrics.labels import accuracy

SIX = "face_cot,expllm,expllm_label,r1_omni,facescan_emotion,facescan_boxed_emotion"


def words(run_dir: Path, out: Path) -> list[str]:
    sizes = {"n_validation": 16, "n_test": 12, "n_orders": 6, "orders": 2, "max_new_tokens": 24}
    return to_argv({"models": run_dir, "prompts": SIX, **sizes, "output_dir": out})


@pytest.fixture(scope="module")
def swept(run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sweep")
    assert sweep.main(words(run_dir, out)) == 0
    return out


def test_half_of_the_arms_go_on(swept: Path, run_dir: Path) -> None:
    (found,) = json.loads((swept / "sweep.json").read_text())["sweeps"]
    assert [(rung["arms"], rung["faces"]) for rung in found["rungs"]] == [(6, 4), (3, 8), (2, 16)]
    counts = sorted(len(arm["rungs"]) for arm in found["arms"].values())
    assert counts == [1, 1, 1, 2, 3, 3]
    for arm in found["arms"].values():
        assert ("test" in arm) == (len(arm["rungs"]) == 3)
        for rung in arm["rungs"]:  # fewer than ten people have no interval
            low, high = rung["ci95"] or (rung["value"], rung["value"])
            assert low <= rung["value"] <= high
    assert len(found["finalists"]) == 2 and len(found["pairs"]) == 1
    last = [found["arms"][name]["rungs"][-1]["value"] for name in found["finalists"]]
    assert last == sorted(last, reverse=True)
    page = (swept / "sweep.html").read_text()
    assert "validation faces" in page and not re.search(r"(?:src|href)=\"(?!data:)", page)


def test_nothing_is_asked_twice(
    swept: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (swept / "sweep.json").read_text()
    monkeypatch.setattr(LocalModel, "load", lambda *a, **k: pytest.fail("a model was loaded"))
    assert sweep.main(words(run_dir, swept)) == 0
    assert (swept / "sweep.json").read_text() == before
    assert re.search("synth: .*(no winner|wins)", capsys.readouterr().out)


def test_the_order_probe(swept: Path) -> None:
    (found,) = json.loads((swept / "sweep.json").read_text())["sweeps"]
    for one in found["orders"]:
        assert len(one["orders"]) == 3 and len(one["accuracy"]) == 3
        assert all(sorted(order) == sorted(space("emotion8").labels) for order in one["orders"])
        assert 0 <= one["flips"]["value"] <= 1 and one["n"] == 6


@given(st.integers(2, 40), st.integers(1, 5000), st.integers(1, 5))
def test_rungs(arms: int, faces: int, finalists: int) -> None:
    steps = sweep.rungs(arms, faces, finalists)
    assert steps[0][0] == arms and steps[-1] == (min(arms, max(finalists, steps[-1][0])), faces)
    assert steps[-1][0] == min(arms, finalists)
    for (more, few), (less, many) in itertools.pairwise(steps):
        assert (less < more and less >= more / 2) or less == finalists
        assert 1 <= few <= many


def pair(first: str, second: str, difference: float, differ: bool) -> dict[str, Any]:
    return {"first": first, "second": second, "difference": difference, "differ": differ}


def test_who_is_called_a_winner() -> None:
    ranked = ["a", "b", "c"]
    clear = [pair("a", "b", 0.1, True), pair("c", "a", -0.2, True), pair("b", "c", 0.1, False)]
    assert sweep.judge(ranked, clear, accuracy)[0] == "a"
    close = [pair("a", "b", 0.01, False), *clear[1:]]
    winner, verdict = sweep.judge(ranked, close, accuracy)
    assert winner is None and "between a and b there is no difference" in verdict
    worse = [pair("a", "b", -0.1, True), *clear[1:]]
    winner, verdict = sweep.judge(ranked, worse, accuracy)
    assert winner is None and "on the test split b is better" in verdict
    assert sweep.judge(["a"], [], accuracy)[0] == "a"


def test_planted_differences_are_found_and_chance_is_not() -> None:
    benchmark, prompt = load_benchmark("synth"), prompts.load("face_cot")
    arms = [sweep.Arm(name, "m", prompt) for name in ("good", "same", "bad")]

    def lines(wrong: set[int]) -> list[dict[str, Any]]:
        return [
            {
                "id": str(i),
                "status": "strict",
                "aus": [],
                "probabilities": None,
                "label": "fear" if i in wrong else "anger",
                "truth": {"emotion": "anger", "aus": None, "attributes": {}},
            }
            for i in range(200)
        ]

    tested = {
        "good": lines(set(range(20))),
        "same": lines(set(range(2, 23))),
        "bad": lines(set(range(80))),
    }
    pairs = {(p["first"], p["second"]): p for p in sweep.compare(arms, tested, benchmark, accuracy)}
    assert pairs["good", "bad"]["difference"] == pytest.approx(0.3)
    assert pairs["good", "bad"]["differ"] and pairs["same", "bad"]["differ"]
    assert not pairs["good", "same"]["differ"]
    for one in pairs.values():
        assert one["p_holm"] >= one["p"]


def test_what_cannot_be_swept(run_dir: Path, tmp_path: Path) -> None:
    argv = ["--models", str(run_dir), "--output_dir", str(tmp_path), "--prompts"]
    for text, message in (
        ("face_cot", "one arm is not a choice"),
        ("face_cot,face_cot", "name each once"),
        ("face_cot,facescan_gender", "cannot ask for emotion8"),
        ("face_cot,nothing", "there is no prompt 'nothing'"),
    ):
        with pytest.raises(UserError, match=message):
            sweep.main([*argv, text])
    with pytest.raises(UserError, match="finalists is 0"):
        sweep.main([*argv, SIX, "--finalists", "0"])
    with pytest.raises(UserError, match="by is 'f1'"):
        sweep.main([*argv, SIX, "--by", "f1", "--n_validation", "4", "--max_new_tokens", "4"])


def test_a_prompt_about_another_label_space() -> None:
    prompt = prompts.load("expllm")
    other = prompt.with_label_space(space("emotion8"))
    assert "contempt" in str(other.messages()) and "contempt" not in str(prompt.messages())
    assert other.sha != prompt.sha and prompt.with_label_space(prompt.space) is prompt
    order = list(reversed(other.space.labels))
    listed = other.with_label_order(order)
    assert ", ".join(order) in str(listed.messages()) and listed.sha != other.sha
    assert listed.space.labels == other.space.labels
    with pytest.raises(UserError, match="should hold each label of emotion8 once"):
        other.with_label_order(order[1:])
