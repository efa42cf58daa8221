"""The parser: a table of real-looking outputs, and properties that hold for any text."""

from __future__ import annotations

import dataclasses
import re
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from vlmface import answers, facs, label_spaces
from vlmface.answers import au_vocabulary
from vlmface.errors import UserError
from vlmface.rationale import rules

CASES = yaml.safe_load((Path(__file__).parent / "answers_cases.yaml").read_text(encoding="utf-8"))
KINDS = yaml.safe_load((Path(__file__).parent / "answers_by_kind.yaml").read_text(encoding="utf-8"))
SPACE = label_spaces.SPACES["emotion8"]
formats = st.sampled_from(answers.FORMATS)
labels = st.sampled_from(SPACE.labels)
aus = st.sets(st.sampled_from(facs.AU_NUMBERS), min_size=1)
# Text that is likely to meet the parser's own vocabulary.
PIECES = (
    "<think>",
    "</think>",
    "<answer>",
    "</answer>",
    "**Key Observations:**",
    "**Conclusion:**",
    "AU4",
    "AUs 4, 7",
    "AU1+2",
    "no",
    "not",
    "is absent",
    "angry",
    "happiness",
    "unhappy",
    ",",
    ".",
    "\n",
    "(",
    ")",
    ": 0",
    "\ue000",
    "\ue0000\ue001",
    "\u200b",
    "\ud800",
)
messy = st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=30).map(" ".join)


@pytest.mark.parametrize("case", CASES, ids=lambda case: repr(case["text"])[:60])
def test_case(case: dict) -> None:
    space = label_spaces.SPACES[case.get("space", "emotion8")]
    answer = answers.parse(case["text"], space, case.get("format", "think_answer"))
    found = {"status": answer.status, "label": answer.label}
    found |= {"aus": list(answer.aus), "negated": list(answer.negated_aus)}
    expected = {"status": case["status"], "label": case.get("label")}
    if case.get("format") in answers.MULTI_LABEL_FORMATS:
        found["label"] = list(answer.labels)
        expected["label"] = case.get("labels", [])
    expected |= {"aus": case.get("aus", []), "negated": case.get("negated", [])}
    assert found == expected, case.get("why", "")


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_text_is_read_as_a_careful_person_would(kind: str) -> None:
    for text, *expected in KINDS[kind]:
        if len(expected) == 2:
            found = answers.mentioned_aus(text)
            assert [list(part) for part in found] == [sorted(part) for part in expected], text
            continue
        for format, whole in (
            ("label", text),
            ("think_answer", f"<think>x</think><answer>{text}</answer>"),
        ):
            answer = answers.parse(whole, SPACE, format)
            assert (answer.label or answer.status) == expected[0], whole


AU_TEXTS = [case[0] for kind in KINDS.values() for case in kind if len(case) == 3]


def test_sentences_that_deny_nothing_take_no_short_cut_to_another_reading(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts = AU_TEXTS + [case["text"] for case in CASES]
    found = [answers.mentioned_aus(text) for text in texts]
    monkeypatch.setattr(au_vocabulary, "_DENIAL_STEM", re.compile(""))
    assert [answers.mentioned_aus(text) for text in texts] == found


others = st.sampled_from(
    [
        "There is no {}.",
        "{} is absent.",
        "{} isn't active.",
        "{}: 0.",
        "The face lacks {}.",
        "{} can be ruled out.",
        "Absent: {}.",
        "I see {} without doubt.",
        "{} is active.",
    ]
)


@given(st.sampled_from(AU_TEXTS), others, st.booleans())
def test_a_sentence_about_another_au_changes_no_reading(text: str, more: str, line: bool) -> None:
    if text.rstrip()[-1:] not in ".!?":
        line = True
    other = max(set(facs.AU_NUMBERS) - set(range(31)))  # AU46, which no text names
    present, absent = answers.mentioned_aus(text)
    sentence = more.format(f"AU{other}")
    gap = "\n\n" if line else " "
    for whole in (f"{text}{gap}{sentence}", f"{sentence}{gap}{text}"):
        found = answers.mentioned_aus(whole)
        assert [tuple(au for au in part if au != other) for part in found] == [present, absent], (
            whole
        )
        assert (other in found[0]) == ("doubt" in more or "is active" in more), whole


@given(
    st.dictionaries(st.sampled_from(facs.AU_NUMBERS), st.floats(0.5, 5), max_size=4),
    st.booleans(),
    labels,
    st.integers(0, 9999),
    st.sampled_from(sorted(rules.STYLES)),
)
def test_what_rules_write_names_exactly_its_aus(
    others: dict[int, float], typical: bool, label: str, seed: int, style: str
) -> None:
    core = facs.PROTOTYPES[label].core_aus if typical else ()
    truth = dict.fromkeys(core, 3.0) | others
    answer = answers.parse(rules.write(truth, label, seed=seed, style=style), SPACE, "think_answer")
    assert (answer.status, answer.label) == ("strict", label)
    assert (answer.aus, answer.negated_aus) == (tuple(sorted(truth)), ())


def test_a_rule_written_text_that_names_a_denial() -> None:
    text = (
        "AU15: the lip corners are lowered. AU17: the chin is raised. Nothing is missing from it."
    )
    assert answers.mentioned_aus(text) == ((15, 17), ())


def test_table_is_large_and_covers_every_status() -> None:
    assert len(CASES) >= 80
    assert {case["status"] for case in CASES} == set(answers.STATUSES)
    assert {case.get("format", "think_answer") for case in CASES} == set(answers.FORMATS)


@given(st.text() | messy, formats)
def test_any_text_gives_a_consistent_answer(text: str, format: str) -> None:
    answer = answers.parse(text, SPACE, format)
    assert answer.status in answers.STATUSES
    assert bool(answer.labels) == (answer.status in ("strict", "lenient"))
    assert list(answer.labels) == [one for one in SPACE.labels if one in answer.labels]
    assert answer.label == (answer.labels[0] if len(answer.labels) == 1 else None)
    assert len(answer.labels) <= 1 or format in answers.MULTI_LABEL_FORMATS
    assert not set(answer.aus) & set(answer.negated_aus)
    assert set(answer.aus + answer.negated_aus) <= set(facs.AU_NUMBERS)
    assert list(answer.aus) == sorted(answer.aus)
    assert answer == answers.parse(text, SPACE, format)


@given(
    labels, formats, st.sampled_from(["The lips are parted (AU25). This is a sentence.", "One."])
)
def test_what_is_written_is_read_strictly(label: str, format: str, rationale: str) -> None:
    text = answers.completion_prefix(rationale, format) + label + answers.SUFFIX[format]
    answer = answers.parse(text, SPACE, format)
    assert (answer.status, answer.label) == ("strict", label)
    assert (
        rationale.split(". ")[0] in answer.rationale
        if answers.has_rationale(format)
        else answer.rationale == ""
    )


@given(labels)
def test_a_label_that_was_only_thought_is_no_answer(label: str) -> None:
    for text in (f"<think>The emotion is {label}.</think>", f"<think>{label}", f"{label}</think>"):
        assert answers.parse(text, SPACE, "think_answer").status == "none"


@given(
    st.lists(labels, min_size=2, unique=True), st.sampled_from([", ", " or ", "/", " and ", "\n"])
)
def test_several_labels_are_ambiguous(several: list[str], separator: str) -> None:
    text = separator.join(several)
    for text_in_form in (text, f"<think>x</think><answer>{text}</answer>"):
        assert answers.parse(text_in_form, SPACE, "think_answer").status == "ambiguous"


several = st.lists(st.sampled_from(label_spaces.EMOTIC), min_size=1, unique=True)
EMOTIC = label_spaces.SPACES["emotic26"]


@given(several, st.sampled_from(answers.MULTI_LABEL_FORMATS))
def test_several_labels_in_any_order_are_read_in_that_of_the_space(
    labels: list[str], format: str
) -> None:
    text = (
        answers.completion_prefix("Seen.", format)
        + answers.join_labels(labels)
        + answers.SUFFIX[format]
    )
    answer = answers.parse(text, EMOTIC, format)
    assert answer.status == "strict"
    assert answer.labels == tuple(one for one in EMOTIC.labels if one in labels)
    assert answer.text_labels == ", ".join(answer.labels)


@given(several, st.sampled_from([", ", ",", " and ", "; ", "\n", "\n- ", " & "]), st.booleans())
def test_other_letters_and_dividers_change_nothing(
    labels: list[str], divider: str, lower: bool
) -> None:
    text = divider.join(labels)
    answer = answers.parse(text.lower() if lower else text, EMOTIC, "labels")
    assert set(answer.labels) == set(labels)
    assert answer.status in ("strict", "lenient")


@given(several, st.integers(0), st.sampled_from(["unhappiness", "not Fear", "no", "maybe", "AU4"]))
def test_one_word_that_is_no_label_and_nothing_of_the_list_counts(
    labels: list[str], place: int, word: str
) -> None:
    words = list(labels)
    words.insert(place % (len(words) + 1), word)
    answer = answers.parse(", ".join(words), EMOTIC, "labels")
    assert (answer.labels, answer.status) == ((), "ambiguous")


@given(st.lists(st.sampled_from(label_spaces.EMOTIC), min_size=2, max_size=4, unique=True))
def test_alternatives_are_no_list(labels: list[str]) -> None:
    for divider in (" or ", "/", " ", " nor ", " rather than "):
        answer = answers.parse(divider.join(labels), EMOTIC, "labels")
        assert (answer.labels, answer.status) == ((), "ambiguous"), divider


@given(labels)
def test_an_answer_of_one_label_has_it_as_its_labels(label: str) -> None:
    assert answers.Answer(label, (), "strict", "").labels == (label,)
    assert answers.Answer(None, (), "none", "").labels == ()
    assert answers.parse(label, SPACE, "label").labels == (label,)


@given(st.sampled_from(sorted(SPACE.index)))
def test_a_negated_or_prefixed_label_is_not_the_label(word: str) -> None:
    for wrong in (f"not {word}", f"un{word}", f"no {word}", f"non-{word}", f"isn't {word}"):
        answer = answers.parse(f"<think>x</think><answer>{wrong}</answer>", SPACE, "think_answer")
        assert (answer.status, answer.label) == ("none", None)


@given(aus)
def test_mentioned_aus(numbers: set[int]) -> None:
    ordered = tuple(sorted(numbers))
    listed = ", ".join(f"AU{n}" for n in ordered)
    assert answers.mentioned_aus(f"Active: {listed}.") == (ordered, ())
    assert answers.mentioned_aus("AUs " + listed.replace("AU", "")) == (ordered, ())
    assert answers.mentioned_aus("+".join(f"AU{n}" for n in ordered)) == (ordered, ())
    assert answers.mentioned_aus(f"The nose is noticeable: {listed}.") == (ordered, ())


@given(aus)
def test_denied_aus(numbers: set[int]) -> None:
    ordered = tuple(sorted(numbers))
    listed = ", ".join(f"AU{n}" for n in ordered)
    for text in (
        f"There is no {listed}.",
        f"{listed} are absent.",
        f"{listed} are not active.",
        f"The face is without {listed}.",
        f"Absent: {listed}.",
        ", ".join(f"AU{n}: 0" for n in ordered),
        f"Neither {listed.replace(',', ' nor')} is seen.",
    ):
        assert answers.mentioned_aus(text) == ((), ordered), text


@pytest.mark.parametrize(
    "text",
    [
        "<think>" * 5_000,
        "<answer>" * 5_000,
        "<think>" + "a " * 10_000,
        "**Key Observations:** " + "a " * 10_000,
        "conclusion " * 5_000,
        "AU" * 10_000,
        "AUs 4, " * 5_000,
        "AU4 (" * 5_000,
        "not " * 5_000 + "AU4",
        " " * 20_000,
        "\n" * 20_000,
        "can not " * 5_000,
        "AU4, " * 1_200 + "AU7 are absent",
        "AU4 and " * 1_200,
        "AU1-" * 1_200,
        "AU4: no " * 1_200,
        "AU4 is not " * 1_200,
        "except AU4 " * 1_200,
        "AU4 (brow lowerer) " * 1_200,
        "AU4:" + " " * 20_000 + "x",
        "|AU4|no|\n" * 1_200,
        "[1," * 1_200 + "AU4",
        "{" * 1_200 + "AU4",
        "\u2717 AU4 " * 1_200,
        "50% " * 1_200,
        "hard to say, " * 1_200,
    ],
    ids=lambda text: text[:12].strip() or "space",
)
def test_long_degenerate_texts_are_read_fast(text: str) -> None:
    start = time.process_time()
    for format in answers.FORMATS:
        assert answers.parse(text, SPACE, format).label is None
    assert time.process_time() - start < 2


def test_unknown_form_is_an_error() -> None:
    with pytest.raises(UserError, match=r"think_anser.*think_answer, three_part, label"):
        answers.parse("anger", SPACE, "think_anser")
    with pytest.raises(UserError, match="xml"):
        answers.completion_prefix("One.", "xml")


def test_answers_are_frozen() -> None:
    answer = answers.parse("anger", SPACE, "label")
    with pytest.raises(dataclasses.FrozenInstanceError):
        answer.label = "fear"  # type: ignore[misc]


@pytest.mark.parametrize("format", answers.FORMATS)
@given(st.data())
def test_what_a_server_is_held_to_is_strict(format: str, data: st.DataObject) -> None:
    space = label_spaces.space("emotion8")
    text = data.draw(st.from_regex(answers.constraint_regex(space, format), fullmatch=True))
    answer = answers.parse(text, space, format)
    assert answer.status == "strict" and set(answer.labels) <= set(space.labels)
    assert answers.join_labels(answer.labels) in text  # in the order of the space, as targets are
