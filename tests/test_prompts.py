"""Prompts: golden files pin what a model sees; `python tests/test_prompts.py` rewrites them."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import yaml

from vlmface import answers, benchmarks, facs, label_spaces, prompts
from vlmface.errors import UserError
from vlmface.rationale import rules
from vlmface.resources import resource
from vlmface.schema import FaceSample
from vlmface.utils import config

GOLDEN = Path(__file__).parent / "golden" / "prompts"
IDS = sorted(path.stem for path in resource("prompts").glob("*.yaml"))
BODY = rules.write({4: 4, 7: 2}, "anger", seed=0, body_only=True)
SAMPLE = FaceSample("s1", "mine", emotion="anger", rationale=BODY, rationale_source="rules")
WORDS = {"gender": "male", "age": 30.0}


def golden(prompt: prompts.Prompt) -> str:
    """Everything of a prompt that reaches a model, as text."""
    lines = [f"sha: {prompt.sha}"]
    for message in prompt.messages("EVIDENCE"):
        for block in message["content"]:
            text = block["text"] if block["type"] == "text" else f"<{block['type']}>"
            lines.append(f"--- {message['role']}: {block['type']}\n{text}")
    context = list(prompt.space.labels[: 1 + prompt.space.multi_label])
    sample = dataclasses.replace(SAMPLE, **WORDS, race=prompt.space.labels[0], context=context)
    return "\n".join([*lines, f"--- target\n{prompt.target(sample)}"]) + "\n"


@pytest.mark.parametrize("id", IDS)
def test_golden(id: str) -> None:
    assert golden(prompts.load(id)) == (GOLDEN / f"{id}.txt").read_text(encoding="utf-8")


def test_prompts_that_exist() -> None:
    assert IDS == [
        "context_both",
        "context_both_masked",
        "context_emotion_both",
        "context_emotion_face",
        "context_emotion_scene",
        "context_face",
        "context_masked",
        "context_scene",
        "emotic",
        "emotic_both",
        "emotic_person",
        "emotic_scene",
        "expllm",
        "expllm_label",
        "expllm_words",
        "face_cot",
        "face_cot_evidence",
        "face_gender_or_pass",
        "facescan_age",
        "facescan_boxed_age",
        "facescan_boxed_emotion",
        "facescan_boxed_gender",
        "facescan_boxed_race",
        "facescan_emotion",
        "facescan_gender",
        "facescan_race",
        "facescan_race_merged",
        "facial_r1",
        "r1_omni",
        "synth_ancestry",
    ]
    for id in IDS:
        prompt = prompts.load(id)
        assert prompt.id == id
        *pictures, question = prompt.messages("EVIDENCE")[-1]["content"]
        assert pictures == [{"type": "image"}] * prompt.images
        text = question["text"]
        asks_openly = id.startswith(("facescan", "synth"))
        assert (", ".join(prompt.space.labels) in text) is not asks_openly
        assert not re.search(r"\{\w+\}", text)


def test_the_default_is_short() -> None:
    (message,) = prompts.load("face_cot").messages()
    assert [block["type"] for block in message["content"]] == ["image", "text"]
    text = message["content"][1]["text"]
    assert len(text.split()) <= 60
    assert "AU" in text and "<think></think>" in text and "<answer></answer>" in text


def test_system_message() -> None:
    roles = [message["role"] for message in prompts.load("expllm").messages()]
    assert roles == ["system", "user"]


def test_au_definitions_come_from_the_catalogue() -> None:
    text = prompts.load("facial_r1").messages()[0]["content"][1]["text"]
    for au in facs.DEFINED_AUS:
        assert f"AU{au} {facs.AUS[au].name}: {facs.AUS[au].cue}." in text
    assert "AU13 sharp lip puller" in text and "AU34 cheek puff" in text


def test_every_scored_au_is_defined() -> None:
    """A model that is told which action units there are is told of all that a benchmark scores."""
    for name in benchmarks.benchmark_names():
        scored = benchmarks.load_benchmark(name).au_set
        assert set(scored) <= set(facs.DEFINED_AUS), name


def test_a_prompt_in_words_asks_for_no_numbers() -> None:
    prompt = prompts.load("expllm_words")
    assert "AU" not in str(prompt.messages()) and "number" not in str(prompt.messages())
    assert prompt.format == prompts.load("expllm").format
    for name in ("llava", "paligemma", "qwen", "smolvlm"):
        values = config.read_yaml(config.find_config(f"sft_cot_{name}"))
        assert (values["dataset"], values["prompt"]) == ("expllm", "expllm_words")


@pytest.mark.parametrize("id", IDS)
def test_target_is_strict_and_made_of_prefix_label_suffix(id: str) -> None:
    prompt = prompts.load(id)
    listed = prompt.space.field == "context"
    for emotion in prompt.space.labels:
        true = {prompt.space.field: [emotion] if listed else emotion}
        target = prompt.target(dataclasses.replace(SAMPLE, **true))
        assert target == prompt.completion(BODY, emotion)
        assert target == prompt.answer_prefix(BODY) + emotion + prompt.answer_suffix
        answer = prompt.parse(target)
        assert (answer.status, answer.label) == ("strict", emotion)
        assert answer.aus == ((4, 7) if prompt.has_rationale else ())
        # What was read can be wrapped again: labels are scored after a generated rationale.
        assert prompt.completion(answer.rationale, emotion) == target


def test_a_target_lists_several_labels_in_the_order_of_the_space() -> None:
    prompt = prompts.load("emotic")
    person = dataclasses.replace(SAMPLE, context=["Peace", "doubt", "Affection"])
    assert prompt.target_labels(person) == ("Affection", "Doubt/Confusion", "Peace")
    assert prompt.target(person) == "Affection, Doubt/Confusion, Peace"
    told = dataclasses.replace(prompt, format="think_labels")
    assert told.target(person) == f"<think>{BODY}</think>\n<answer>{prompt.target(person)}</answer>"
    assert told.has_rationale and told.multi_label and not prompt.has_rationale
    with pytest.raises(UserError, match="use a prompt of format 'labels'"):
        told.target(dataclasses.replace(person, rationale=None, rationale_source="none"))
    # Where one label is asked for, several are no truth.
    one = prompts.Prompt("x", 1, "label", "raer5", "?", "test")
    torn = dataclasses.replace(SAMPLE, context=["Fatigue", "Confusion"])
    assert (torn.label(one.space), one.target_labels(torn)) == (None, ())
    assert torn.labels(one.space) == ("Confusion", "Fatigue")
    with pytest.raises(UserError, match="cannot ask for emotic26"):
        dataclasses.replace(one, user="{candidates}?").with_label_space(prompt.space)


def test_target_errors() -> None:
    prompt = prompts.load("face_cot")
    with pytest.raises(UserError, match=r"'s1' has emotion None, .*'emotion8'.*anger, contempt"):
        prompt.target(dataclasses.replace(SAMPLE, emotion=None))
    with pytest.raises(UserError, match=r"'s1' has emotion 'contempt', .*'emotion7'"):
        prompts.load("expllm").target(dataclasses.replace(SAMPLE, emotion="contempt"))
    with pytest.raises(UserError, match="no rationale"):
        prompt.target(dataclasses.replace(SAMPLE, rationale=None))
    with pytest.raises(UserError, match="does not fit the format"):
        prompt.target(dataclasses.replace(SAMPLE, rationale="x</think><answer>fear</answer>"))


def test_target_of_an_attribute(tmp_path: Path) -> None:
    prompt = prompts.load(_write(tmp_path, format="label", label_space="gender"))
    assert prompt.target(dataclasses.replace(SAMPLE, gender="Female")) == "female"


def test_sha_follows_what_reaches_the_model(tmp_path: Path) -> None:
    base = prompts.load(_write(tmp_path))
    same = prompts.load(_write(tmp_path, notes="another note", source="another source"))
    assert same.sha == base.sha
    changes = {
        "version": 2,
        "format": "label",
        "label_space": "emotion7",
        "user": "Which of {candidates}?",
        "system": "Be brief.",
    }
    shas = {prompts.load(_write(tmp_path, **{key: value})).sha for key, value in changes.items()}
    assert len(shas | {base.sha}) == len(changes) + 1


def test_sha_follows_the_label_space(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = _write(tmp_path)
    before = prompts.load(path).sha
    space = label_spaces.SPACES["emotion8"]
    changed = dataclasses.replace(space, aliases={**space.aliases, "cross": "anger"})
    monkeypatch.setitem(label_spaces.SPACES, "emotion8", changed)
    assert prompts.load(path).sha != before


def test_unknown_id() -> None:
    with pytest.raises(UserError, match=r"no prompt 'face_cott'.*did you mean 'face_cot'"):
        prompts.load("face_cott")
    with pytest.raises(UserError, match="use one of context_both, context_both_masked"):
        prompts.load("zzz")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"usr": "x"}, r"unknown key 'usr' \(did you mean 'user'\?\)"),
        ({"user": None}, "lacks 'user'"),
        ({"user": "  "}, "lacks 'user'"),
        ({"version": "one"}, "'version' is 'one', but must be int"),
        ({"user": ["x"]}, "'user' is .*must be str"),
        ({"format": "xml"}, "format is 'xml', use one of think_answer, three_part, label"),
        ({"label_space": "emotion9"}, "no label space 'emotion9'"),
        ({"user": "Which of {labels}?"}, r"placeholder \{labels\}: use one of \{candidates\}"),
    ],
)
def test_broken_files(tmp_path: Path, changes: dict, message: str) -> None:
    path = _write(tmp_path, **changes)
    with pytest.raises(UserError, match=message):
        prompts.load(path)


@pytest.mark.parametrize("content", [b"- a list", b"a: [", b"\xff\xfe\xfa"])
def test_unreadable_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"the prompt .*mine\.yaml"):
        prompts.load(path)
    with pytest.raises(UserError, match=r"cannot read the prompt .*gone\.yaml"):
        prompts.load(tmp_path / "gone.yaml")


def test_braces_of_other_kinds_are_left_alone(tmp_path: Path) -> None:
    prompt = prompts.load(_write(tmp_path, user='One of {candidates} as {"emotion": ...}, {}.'))
    text = prompt.messages()[0]["content"][1]["text"]
    assert text.endswith('surprise as {"emotion": ...}, {}.')


def test_forms_are_the_parsers() -> None:
    assert set(answers.SUFFIX) == set(answers.FORMATS)


def _write(folder: Path, **changes: object) -> Path:
    content = {
        "id": "mine",
        "version": 1,
        "format": "think_answer",
        "label_space": "emotion8",
        "user": "One of {candidates}?",
        "source": "test",
    }
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({**content, **changes}), encoding="utf-8")
    return path


if __name__ == "__main__":
    for id in IDS:
        (GOLDEN / f"{id}.txt").write_text(golden(prompts.load(id)), encoding="utf-8")
