"""eval/faithfulness.py: models whose answers are known get the figures that they should."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from vlmface import facs, prompts
from vlmface.errors import UserError
from vlmface.evaluate import faithfulness
from vlmface.evaluate.faithfulness import PairPredictions
from vlmface.infer.prediction import Prediction
from vlmface.label_spaces import EMOTIONS
from vlmface.synth import counterfactual_pairs

PROMPT = prompts.load("face_cot")
Says = Callable[[Any], tuple[str, Sequence[int]]]


def asked(kind: str, says: Says, n: int = 160) -> list[PairPredictions]:
    """Pairs with what a model that sees the face's record says of them."""

    def said(face: Any) -> Prediction:
        label, aus = says(face)
        text = PROMPT.completion(" ".join(f"AU{au}" for au in aus) or "Nothing moved.", label)
        return Prediction(text, PROMPT.parse(text), None, 0.0, True)

    return [
        PairPredictions(pair, said(pair.base), said(pair.changed))
        for pair in counterfactual_pairs.make(kind, n, size=32)
    ]


def oracle(face: Any) -> tuple[str, Sequence[int]]:
    return face.emotion, [label.au for label in face.aus if label.present]


def blind(face: Any) -> tuple[str, Sequence[int]]:
    return "anger", [4]


def prejudiced(face: Any) -> tuple[str, Sequence[int]]:
    label, aus = oracle(face)
    return ("anger" if face.race == "african" and label == "neutral" else label), aus


def test_a_model_that_sees_everything_follows() -> None:
    found = faithfulness.sensitivity(asked("au", oracle))
    assert found["named"]["where_present"]["value"] == 1
    assert found["named"]["where_absent"]["value"] == 0
    assert found["named"]["difference"]["value"] == 1 and found["others"]["value"] == 0
    assert found["label"]["should_not"]["flips"]["value"] == 0
    assert found["label"]["expected"]["value"] == 1
    assert found["label"]["should"]["n"] + found["label"]["should_not"]["n"] == found["n"] == 160


def test_a_blind_model_follows_nothing() -> None:
    found = faithfulness.sensitivity(asked("au", blind))
    named = found["named"]
    assert named["where_present"]["value"] == named["where_absent"]["value"]
    assert named["difference"]["value"] == 0
    assert found["label"]["should"]["flips"]["value"] == 0
    # Never seen among so many pairs does not mean never.
    assert found["label"]["should"]["flips"]["ci95"][1] > 0


@pytest.mark.parametrize("kind", ["age", "gender", "ancestry", "light", "background", "pose"])
def test_who_sees_the_expression_alone_stays(kind: str) -> None:
    pairs = asked(kind, oracle, n=24)
    found = faithfulness.invariance(pairs)
    assert found["flips"]["value"] == 0 and found["aus"]["value"] == 0
    assert found["valid"] == [1, 1]


def test_prejudice_is_found_where_it_is() -> None:
    pairs = asked("ancestry", prejudiced)
    found = faithfulness.shifts(pairs, "ancestry", EMOTIONS)
    kinds = {(one["group"], one["label"]): one["value"] for one in found["significant"]}
    assert kinds.keys() >= {("african", "anger"), ("african", "neutral")}
    assert kinds["african", "anger"] > 0 > kinds["african", "neutral"]
    assert faithfulness.shifts(asked("ancestry", oracle), "ancestry", EMOTIONS)["significant"] == []
    gender = faithfulness.shifts(asked("gender", prejudiced), "gender", EMOTIONS)
    assert gender["significant"] == []
    # Two groups only: what one gets more, the other gets less.
    for label in EMOTIONS:
        shift = {group: labels[label]["value"] for group, labels in gender["groups"].items()}
        assert shift["female"] == pytest.approx(-shift["male"])


def test_intervals_hold_for_all_groups_and_labels_at_once() -> None:
    """Answers by chance: with intervals of 95 % each, one of twenty would exclude 0."""
    import random

    alarms = 0
    pairs = asked("ancestry", oracle, n=120)
    for seed in range(40):
        draw = random.Random(seed)

        def chance(one: PairPredictions, draw: random.Random = draw) -> PairPredictions:
            texts = [PROMPT.completion("AU4", draw.choice(EMOTIONS)) for _ in range(2)]
            said = [Prediction(text, PROMPT.parse(text), None, 0.0, True) for text in texts]
            return PairPredictions(one.pair, *said)

        tried = [chance(one) for one in pairs]
        alarms += bool(faithfulness.shifts(tried, "ancestry", EMOTIONS)["significant"])
    assert alarms <= 8  # 2 are expected of 40


def test_the_command(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--model", str(run_dir), "--n", "8", "--size", "32", "--max_new_tokens", "24"]
    assert faithfulness.main([*argv, "--output_dir", str(tmp_path)]) == 0
    assert "an action unit is named of" in capsys.readouterr().out
    found = json.loads((tmp_path / "faithfulness.json").read_text())
    assert set(found["invariance"]) == set(counterfactual_pairs.KINDS) - {"au"}
    assert found["prompt"]["id"] == "face_cot" and found["n"] == 8
    page = (tmp_path / "faithfulness.html").read_text()
    assert "Does it follow the action units?" in page
    assert not re.search(r"(?:src|href)=\"(?!data:)", page)


def test_what_cannot_be_measured(base: Path, tmp_path: Path) -> None:
    argv = ["--model", str(base), "--n", "8", "--prompt"]
    with pytest.raises(UserError, match="say where to with --output_dir"):
        faithfulness.main([*argv, "face_cot"])
    argv = ["--output_dir", str(tmp_path), *argv]
    with pytest.raises(UserError, match="asks for gender: pairs of faces are about the emotion"):
        faithfulness.main([*argv, "facescan_gender"])
    with pytest.raises(UserError, match="synth has no split 'dev'"):
        faithfulness.main([*argv, "face_cot", "--split", "dev"])


def test_whether_the_rationale_is_used(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A predictor that reads the rationale alone, and one that does not read it."""
    from vlmface.infer.local import LocalModel
    from vlmface.infer.prediction import LabelScores

    predictor = LocalModel.load(base, prompt="face_cot")
    pairs = asked("au", oracle, n=40)

    def scores(label: str) -> LabelScores:
        return LabelScores({e: float(e == label) for e in EMOTIONS}, dict.fromkeys(EMOTIONS, 1), 0)

    def reads(images: Any, rationales: Sequence[str], **words: Any) -> list[LabelScores]:
        by_text = {one.before.answer.rationale: one.before.answer.label for one in pairs}
        return [scores(by_text.get(text) or "neutral") for text in rationales]

    def ignores(images: Any, rationales: Sequence[str], **words: Any) -> list[LabelScores]:
        by_image = {id(one.pair.base.image): one.before.answer.label for one in pairs}
        return [scores(str(by_image[id(image)])) for image in images]

    monkeypatch.setattr(predictor, "score", ignores)
    found = faithfulness.reliance(predictor, pairs, 8)
    assert found["foreign"]["keeps"]["value"] == 1 and found["takes_foreign"]["value"] == 0
    texts = [one.before.answer.rationale for one in pairs]
    unique = [one for one in pairs if texts.count(one.before.answer.rationale) == 1]
    monkeypatch.setattr(predictor, "score", reads)
    found = faithfulness.reliance(predictor, unique, 8)
    assert found["takes_foreign"]["value"] == 1 and found["own"]["keeps"]["value"] == 1
    agree = [facs.supports(one.before.answer.aus, one.before.answer.label) for one in unique]
    assert found["consistent"]["value"] == pytest.approx(sum(agree) / len(agree))
    label_only = predictor.with_prompt(prompts.load("facescan_emotion"))
    assert faithfulness.reliance(label_only, pairs, 8) == {}
