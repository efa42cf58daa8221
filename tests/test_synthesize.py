"""A trained model writes: the vote, what is kept of it, and the recipe from run to data set."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.fake_teacher import FakeTeacher, Reply, TeacherRequest
from helpers.run_files import read_metrics
from helpers.scripts import load_script, to_argv
from hypothesis import given
from hypothesis import strategies as st

from vlmface import data, facs, prompts
from vlmface.answers import Answer
from vlmface.errors import UserError
from vlmface.infer.local import LocalModel
from vlmface.rationale import rules, self_training, verify
from vlmface.rationale.ground_truth import GroundTruth
from vlmface.rationale.types import WrittenRationale
from vlmface.schema import FaceSample

PROMPT = prompts.load("face_cot")
SPACE = PROMPT.space


def said(label: str | None, *aus: int) -> Answer:
    return Answer(label, aus, "strict" if label else "none", "")


# --- the vote -------------------------------------------------------------------------------------


def test_most_answers_decide() -> None:
    given_ = [said("fear", 1, 4), said("anger", 4), said("fear", 1), said(None), said("fear", 20)]
    ballot = self_training.majority_vote(given_)
    assert (ballot.label, ballot.agreement, ballot.aus) == ("fear", 0.6, {1})
    # AUs are those of the answers that agree: half of them is enough.
    assert self_training.majority_vote([*given_, said("fear", 4)]).aus == {1, 4}
    # With a known label, its own answers count, however few.
    known = self_training.majority_vote(given_, "anger")
    assert (known.label, known.agreement, known.aus) == ("anger", 0.2, {4})
    assert self_training.majority_vote(given_, "contempt").agreement == 0
    # Of equals the first; nothing from nothing.
    assert self_training.majority_vote([said("anger"), said("fear")]).label == "anger"
    assert self_training.majority_vote([said(None)]) == self_training.Vote(None, 0.0, frozenset())
    assert self_training.majority_vote([]) == self_training.Vote(None, 0.0, frozenset())


ANSWERS = st.builds(
    lambda label, aus: said(label, *aus),
    st.sampled_from([*SPACE.labels, None]),
    st.lists(st.sampled_from(facs.SYNTH_AUS), max_size=4, unique=True),
)


@given(st.lists(ANSWERS, min_size=1, max_size=12))
def test_a_vote_counts_what_was_said(given_: list[Answer]) -> None:
    ballot = self_training.majority_vote(given_)
    counts = Counter(answer.label for answer in given_ if answer.label)
    assert ballot.agreement == max(counts.values(), default=0) / len(given_)
    if ballot.label is None:
        assert not counts and not ballot.aus
        return
    agreeing = [answer for answer in given_ if answer.label == ballot.label]
    for au in facs.SYNTH_AUS:
        share = sum(au in answer.aus for answer in agreeing) / len(agreeing)
        assert (au in ballot.aus) == (share >= 0.5)


TRUTH = GroundTruth("fear", {1: 3.0, 4: 3.0, 20: 2.0}, frozenset(facs.SYNTH_AUS))


def chosen(
    texts: list[str], *, label: str | None, truth: GroundTruth | None, least: float = 0.5
) -> Any:
    face = self_training.Face(0, "x", label, truth, "fear", None)

    def judge(text: str, against: GroundTruth) -> verify.Verdict:
        return verify.check(text, against, SPACE, PROMPT.format)

    return self_training.select_rationale(face, texts, PROMPT.parse, judge, least)


def written(aus: dict[int, float | None], label: str) -> str:
    return rules.write(aus, label, seed=1, style="varied", format="think_answer")


RIGHT = written(TRUTH.aus, "fear")  # type: ignore[arg-type]
SHORT = written({1: 3.0}, "fear")
OTHER = written({4: 3.0}, "anger")


def test_the_first_text_that_passes_is_taken() -> None:
    truth, text, verdict, how = chosen([OTHER, RIGHT, SHORT], label="fear", truth=TRUTH)
    assert verdict.kept and text == RIGHT and truth is TRUTH
    assert how == {"label": "annotated", "agreement": 0.6667, "samples": 3, "known_label": "fear"}
    # None passes: the one with the fewest faults is shown, and why.
    _, text, verdict, _ = chosen([OTHER, SHORT], label="fear", truth=TRUTH)
    assert text == SHORT and verdict.reasons == ("missing_au",)


def test_too_few_that_agree() -> None:
    _, _, verdict, _ = chosen([RIGHT, OTHER, OTHER], label="fear", truth=TRUTH)
    assert verdict.reasons == ("disagreement",)
    assert verdict.faults[0].message == "33% of 3 answers conclude fear."
    assert chosen([RIGHT, OTHER, OTHER], label="fear", truth=TRUTH, least=0.3)[2].kept


def test_without_annotation_the_answers_are_the_truth() -> None:
    truth, text, verdict, how = chosen([OTHER, RIGHT, RIGHT, SHORT], label=None, truth=None)
    assert (truth.label, set(truth.aus), truth.source) == ("fear", {1, 4, 20}, "vote")
    assert verdict.kept and text == RIGHT and how["label"] == "vote"
    # A label without action units: those are voted for among the answers that conclude it.
    truth, text, verdict, how = chosen([OTHER, RIGHT, OTHER], label="fear", truth=None, least=0.3)
    assert (truth.label, set(truth.aus)) == ("fear", {1, 4, 20}) and how["label"] == "annotated"
    # Nothing readable is nothing.
    truth, _, verdict, _ = chosen(["I cannot say.", ""], label=None, truth=None)
    assert not verdict.kept and truth.label == ""
    assert "disagreement" in verdict.reasons


def test_no_emotion_takes_over() -> None:
    def one(i: int, label: str) -> WrittenRationale:
        aus = {12: 3.0} if label == "happiness" else {4: 3.0}
        verdict = verify.check(
            written(aus, label),
            GroundTruth(label, aus, frozenset(facs.SYNTH_AUS)),
            SPACE,
            PROMPT.format,
        )
        return WrittenRationale(i, str(i), GroundTruth(label, aus, frozenset()), "", verdict)

    labels = ["happiness"] * 9 + ["anger"] * 2
    found = [one(i, label) for i, label in enumerate(labels)]
    self_training.balance(found, 1.5, seed=0)
    kept = Counter(w.truth.label for w in found if w.verdict.kept)
    assert kept == {"happiness": 3, "anger": 2}
    assert {w.verdict.reasons for w in found if not w.verdict.kept} == {("surplus",)}
    again = [one(i, label) for i, label in enumerate(labels)]
    self_training.balance(again, 1.5, seed=0)
    assert [w.verdict.kept for w in again] == [w.verdict.kept for w in found]
    everything = [one(i, label) for i, label in enumerate(labels)]
    self_training.balance(everything, None, seed=0)
    assert all(w.verdict.kept for w in everything)


# --- the recipe -----------------------------------------------------------------------------------

Recipe = Callable[..., int]


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    main = load_script("recipes/synthesize.py").main

    def run(output: Path, **fields: Any) -> int:
        fixed = {
            "output_dir": output,
            "dataset_options": "{}",
            "n": 8,
            "num_samples": 3,
            "batch_size": 3,
            "temperature": 0.7,
            "max_label_ratio": "null",
        }
        return main(to_argv(fixed | fields))

    return run


@pytest.fixture(scope="module")
def built(recipe: Recipe, memorised: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "built"
    assert recipe(folder, model=memorised) == 0
    return folder


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def test_what_the_model_wrote_is_training_data(built: Path, processor: Any) -> None:
    from helpers.checkpoints import llava

    from vlmface.train.rows import encode_rows

    rows = data.load("rationales", built)
    own = {row["id"]: row for row in data.load("synth", n=8)}
    assert len(rows) >= 4
    for row in rows:
        sample = FaceSample.from_row(row).validate()
        assert sample.rationale_source == "model" and sample.rationale_saw_label is False
        note = sample.meta["rationale"]
        assert note["writer"] == "model" and note["label"] == "annotated"
        assert note["agreement"] >= 0.5 and note["samples"] == 3
        assert sample.emotion == own[sample.id]["emotion"]  # the annotation stays
        assert row["aus"] == own[sample.id]["aus"]
        answer = PROMPT.parse(PROMPT.target(sample))
        assert answer.label == sample.emotion and set(answer.aus) == set(sample.present_aus())
    encoded, skipped = encode_rows(rows, processor, llava, PROMPT, max_length=512, seed=0)
    assert len(encoded) == len(rows) and not skipped


def test_the_card_says_who_wrote_and_how_they_agreed(built: Path) -> None:
    card = (built / "README.md").read_text()
    assert "`rationale_saw_label` is **false**" in card and "## Vote" in card
    assert "answered each face 3 times (temperature 0.7)" in card
    page = (built / "rationale.html").read_text()
    assert "answers that agree" in page
    votes = summary(built)["vote"]
    assert votes["kept"]["agreement"] >= votes["min_agreement"] and votes["all"]["checked"] == 0


def test_a_build_that_was_stopped_gives_the_same_texts(
    recipe: Recipe, built: Path, memorised: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample, calls = LocalModel.sample, []

    def dies(self: LocalModel, *args: Any, **how: Any) -> list[list[str]]:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return sample(self, *args, **how)

    monkeypatch.setattr(LocalModel, "sample", dies)
    with pytest.raises(KeyboardInterrupt):
        recipe(tmp_path / "out", model=memorised)
    assert not (tmp_path / "out").exists()
    assert recipe(tmp_path / "out", model=memorised) == 0
    assert len(calls) == 4  # the first batch of three is not asked again
    for name in ("answers.jsonl", "rejected.jsonl"):
        assert (tmp_path / "out" / name).read_text() == (built / name).read_text()
    assert summary(tmp_path / "out") == summary(built)


def test_as_if_nobody_had_annotated_anything(
    recipe: Recipe, memorised: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert recipe(tmp_path / "out", model=memorised, label_source="vote") == 0
    votes = summary(tmp_path / "out")["vote"]
    assert votes["all"]["checked"] == 8 and votes["kept"]["right"] >= 0.5
    assert "the annotated emotion for" in capsys.readouterr().out
    own = {row["id"]: row["emotion"] for row in data.load("synth", n=8)}
    rows = data.load("rationales", tmp_path / "out")
    right = sum(row["emotion"] == own[row["id"]] for row in rows)
    assert right / len(rows) == pytest.approx(votes["kept"]["right"], abs=1e-4)
    for row in rows:  # nobody's action units stand beside a voted emotion
        assert row["aus"] is None
        assert json.loads(row["meta"])["rationale"]["label"] == "vote"


def test_the_truth_is_told_only_if_asked(
    recipe: Recipe, memorised: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    sample = LocalModel.sample

    def listens(self: LocalModel, *args: Any, messages: Any, **how: Any) -> list[list[str]]:
        told.extend(json.dumps(one) for one in messages)
        return sample(self, *args, messages=messages, **how)

    monkeypatch.setattr(LocalModel, "sample", listens)
    with pytest.raises(UserError, match="no rationale passes"):  # it was never asked this
        recipe(tmp_path / "told", model=memorised, n=2, show_label="true")
    labels = [row["emotion"] for row in data.load("synth", n=2)]
    assert all(
        f"The expression is {label}." in one for label, one in zip(labels, told, strict=True)
    )
    told.clear()
    assert recipe(tmp_path / "untold", model=memorised, n=3) == 0
    assert all(one == json.dumps(PROMPT.messages()) for one in told)


# --- a server -------------------------------------------------------------------------------------


def choices(*texts: str) -> Reply:
    listed = [{"message": {"role": "assistant", "content": text}} for text in texts]
    usage = {"prompt_tokens": 100, "completion_tokens": 30}
    return Reply(body=json.dumps({"choices": listed, "usage": usage}).encode())


def test_a_server_is_asked_for_several_answers(recipe: Recipe, tmp_path: Path, capsys: Any) -> None:
    rows = data.load("synth", n=4)
    truths = [FaceSample.from_row(row) for row in rows.remove_columns(["image", "frames"])]
    right = [written(t.intensities(), str(t.emotion)) for t in truths]

    def behave(asked: TeacherRequest) -> Reply:
        return choices(right[asked.number], right[asked.number], OTHER)

    with FakeTeacher(behave) as server:
        words = {"endpoint": server.url, "model": "sft", "concurrency": 1, "n": 4, "batch_size": 16}
        with pytest.raises(UserError, match="give --prompt"):
            recipe(tmp_path / "out", **words)
        assert recipe(tmp_path / "out", prompt="face_cot", **words) == 0
    assert "4 pictures of faces, without annotation, are sent to" in capsys.readouterr().out
    for asked in server.requests:
        assert (asked.body["n"], asked.body["temperature"]) == (3, 0.7)
        assert asked.face.startswith("data:image/jpeg")
        user = next(m for m in PROMPT.messages() if m["role"] == "user")
        assert asked.prompt() == user["content"][1]["text"]
    seeds = [asked.body["seed"] for asked in server.requests]
    assert len(set(seeds)) == 4
    found = summary(tmp_path / "out")
    assert found["counts"]["kept"] == 4 and found["cost"]["completion_tokens"] == 120


def test_a_server_that_gives_one_answer_only(recipe: Recipe, tmp_path: Path) -> None:
    why = "1 answers instead of 3: the server ignores `n`"
    with FakeTeacher(lambda asked: choices(RIGHT)) as server:
        words = {"endpoint": server.url, "model": "m", "prompt": "face_cot", "batch_size": 16}
        with pytest.raises(UserError, match=why):
            recipe(tmp_path / "out", **words)


def test_a_face_that_the_server_refuses(recipe: Recipe, tmp_path: Path) -> None:
    sample = FaceSample.from_row(data.load("synth", n=1).remove_columns(["image", "frames"])[0])
    right = written(sample.intensities(), str(sample.emotion))

    def behave(asked: TeacherRequest) -> Reply:
        refused = Reply(status=400, body=b"filtered")
        return choices(right, right, right) if asked.number == 0 else refused

    with FakeTeacher(behave) as server:
        words = {
            "endpoint": server.url,
            "model": "m",
            "prompt": "face_cot",
            "concurrency": 1,
            "batch_size": 16,
        }
        assert recipe(tmp_path / "out", n=3, **words) == 2
    counts = summary(tmp_path / "out")["counts"]
    assert counts["kept"] == 1 and counts["rejected_by"] == {"no_answer": 2}


def test_settings_that_cannot_work(recipe: Recipe, memorised: Path, tmp_path: Path) -> None:
    for fields, message in [
        ({"num_samples": 0}, "num_samples is 0"),
        ({"min_agreement": 1.5}, r"min_agreement is 1\.5"),
        ({"max_label_ratio": 0.5}, r"max_label_ratio is 0\.5"),
        ({"temperature": 0}, "temperature is 0"),
        ({"label_space": "emotion7"}, "face_cot is for emotion8"),
    ]:
        with pytest.raises(UserError, match=message):
            recipe(tmp_path / "out", model=memorised, **fields)
    assert not any(tmp_path.iterdir())


# --- rounds ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_loop_goes_round_and_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = load_script("recipes/facial_r1_loop.py").main
    out = tmp_path / "loop"
    shared = {"n_eval": 4, "save_steps": 100, "max_new_tokens": 120}
    sft = {"config": "sft_cot_tiny", "n_train": 8, "epochs": 100, "batch_size": 8, **shared}
    grpo = {"config": "grpo_tiny", "n_train": 8, "max_steps": 2, "batch_size": 2, **shared}
    synthesize = {
        "config": "synthesize_tiny",
        "n": 8,
        "num_samples": 2,
        "dataset_options": {},
        "temperature": 0.5,
        "max_label_ratio": None,
    }
    words = ["--output_dir", str(out)]
    for name, value in (("sft", sft), ("grpo", grpo), ("synthesize", synthesize)):
        words += [f"--{name}", json.dumps(value)]
    assert main([*words, "--rounds", "1"]) == 0
    first = (out / "round1" / "grpo" / "metrics.json").read_bytes()
    assert main([*words, "--rounds", "2"]) == 0  # goes on from the first round
    assert (out / "round1" / "grpo" / "metrics.json").read_bytes() == first
    mixture = (out / "round2" / "mixture.yaml").read_text()
    assert "dataset: synth" in mixture and "round1/synthetic" in mixture
    kept = summary(out / "round1" / "synthetic")["counts"]["kept"]
    trained = read_metrics(out / "round2" / "sft")["train"]
    assert trained["n"] == 8 + kept
    result = json.loads((out / "compare.json").read_text())
    assert [run["name"] for run in result["runs"]] == [
        "round 1",
        "round 2",
        "round 1, before GRPO",
        "round 2, before GRPO",
    ]
    page = (out / "compare.html").read_text()
    assert "Facial-R1 loop, 2 rounds" in page and "Written after round 1" in page
    with pytest.raises(UserError, match="sft_cot stopped with exit code 2"):
        main(["--output_dir", str(tmp_path / "bad"), "--sft", "{base_model: nowhere}"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"sft": "{n_eval: 4}", "grpo": "{n_eval: 5}"}, "sft has n_eval 4 and grpo 5"),
        ({"sft": "{n_eval: 4}"}, "sft has n_eval 4 and grpo None"),
        ({"grpo": "{benchmark: rafdb}"}, "sft has benchmark 'synth' and grpo 'rafdb'"),
        (
            {
                "sft": "{benchmark: affectnet8, benchmark_root: null, dataset_root: here}",
                "grpo": "{benchmark: affectnet8, dataset: affectnet, dataset_root: there}",
            },
            "is evaluated on .*here and grpo on .*there",
        ),
        ({"grpo": "{prompt: expllm}"}, "grpo has prompt expllm, but starts from a run with"),
        ({"sft": "{prompt: nothing}"}, "nothing"),
        ({"sft": "{epoch: 3}"}, "sft: there is no setting 'epoch'"),
        ({"grpo": "{config: nothing}"}, "there is no settings file 'nothing'"),
        ({"grpo": "{num_generations: 1}"}, "num_generations is 1"),
        ({"synthesize": "{num_samples: many}"}, "synthesize: num_samples is 'many'"),
        ({"sft": "{overwrite: true}"}, "sft has overwrite, which the loop sets"),
        ({"grpo": "{output_dir: elsewhere}"}, "grpo has output_dir, which the loop sets"),
        ({"launch": "no-such-program"}, "there is no program 'no-such-program'"),
        ({"rounds": "0"}, "rounds is 0"),
    ],
)
def test_the_loop_checks_its_stages_first(
    words: dict[str, str], message: str, tmp_path: Path
) -> None:
    main = load_script("recipes/facial_r1_loop.py").main
    given = [word for name, value in words.items() for word in (f"--{name}", value)]
    with pytest.raises(UserError, match=message) as error:
        main(["--output_dir", str(tmp_path / "loop"), *given])
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_loop_that_failed_in_its_first_stage_starts_again(tmp_path: Path) -> None:
    main = load_script("recipes/facial_r1_loop.py").main
    words = ["--output_dir", str(tmp_path / "loop"), "--rounds", "1", "--sft"]
    for base in ("nowhere", "elsewhere"):  # the second is not held against the first
        with pytest.raises(UserError, match="sft_cot stopped with exit code 2"):
            main([*words, f"{{base_model: {base}}}"])
    assert "elsewhere" in (tmp_path / "loop" / "settings.json").read_text()
