"""Rewards pay for what is right, and for nothing else."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmface import facs, label_spaces, prompts
from vlmface.answers import parse
from vlmface.errors import UserError
from vlmface.metrics import multilabel
from vlmface.schema import AULabel, FaceSample
from vlmface.train import rewards
from vlmface.train.label_weights import label_weights

PROMPT = prompts.load("face_cot")
SPACE = PROMPT.space
FEAR = {1: 3.0, 2: 2.0, 4: 3.0, 5: 4.0, 20: 3.0}


def face(present: dict[int, float | None] | None, label: str | None = "fear") -> FaceSample:
    """A face on which the common AUs are annotated, or none if `present` is None."""
    aus = None
    if present is not None:
        aus = [AULabel(n, present.get(n, 0.0), n in present) for n in facs.COMMON_AUS]
    return FaceSample(id="x", dataset="test", emotion=label, aus=aus)


def text(aus: Any, label: str) -> str:
    listed = ", ".join(f"AU{n}" for n in aus)
    return f"<think>I see {listed or 'no movement'}.</think>\n<answer>{label}</answer>"


def earned(written: str, sample: FaceSample) -> dict[str, float | None]:
    answer = PROMPT.parse(written)
    return {
        name: function(answer, sample, SPACE) for name, function in rewards.REWARDS.built_in.items()
    }


RIGHT = text(FEAR, "fear")
TRUE = {
    "format": 1.0,
    "emotion": 1.0,
    "rating": None,  # for numbers of a scale
    "jaccard": 1.0,
    "au": 1.0,
    "au_intensity": 1.0,
    "consistency": 1.0,
    "au_description": 0.0,
    "length_penalty": 0.0,
    "repetition": 0.0,
}


def test_the_right_answer_earns_the_most() -> None:
    assert earned(RIGHT, face(dict(FEAR))) == TRUE


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("", {"format": 0, "emotion": 0, "au": -1, "consistency": 0}),
        ("<think></think><answer></answer>", {"format": 0, "emotion": 0, "au": -1}),
        ("<think> </think><answer>fear</answer>", {"format": 0, "emotion": 1, "au": -1}),
        (text(FEAR, ", ".join(SPACE.labels)), {"format": 0, "emotion": 0, "au": -1}),
        (text(FEAR, "fear or anger"), {"format": 0, "emotion": 0, "au": -1}),
        ("<think>It is fear. I see AU1, AU4.</think>", {"format": 0, "emotion": 0, "au": -1}),
        (text(FEAR, "fear") + "<answer>anger</answer>", {"format": 0, "emotion": 0}),
        (f"<think>{RIGHT}</think>", {"format": 0}),
        ("<think><think>AU1</think></think><answer>fear</answer>", {"format": 0}),
        (text(FEAR, "Fear"), {"format": 0, "emotion": 1, "au": 1}),
        ("<think>AU1 and AU4 are absent.</think><answer>fear</answer>", {"au": -1, "emotion": 1}),
        (text(FEAR, "anger"), {"format": 1, "emotion": 0, "au": 1, "consistency": 0}),
        (text((), "neutral"), {"format": 1, "emotion": 0, "au": -1, "consistency": 1}),
    ],
)
def test_what_is_not_right_earns_less(written: str, expected: dict[str, float]) -> None:
    found = earned(written, face(dict(FEAR)))
    assert {name: found[name] for name in expected} == expected


# --- several labels -------------------------------------------------------------------------------

EMOTIC = prompts.load("emotic")
categories = st.sets(st.sampled_from(label_spaces.EMOTIC))


def jaccard(written: str, true: set[str]) -> float | None:
    person = FaceSample(id="x", dataset="test", context=sorted(true) or None)
    return rewards.jaccard(EMOTIC.parse(written), person, EMOTIC.space)


@given(categories.filter(bool), categories.filter(bool))
def test_jaccard_is_the_metric_of_one_face(said: set[str], true: set[str]) -> None:
    found = jaccard(", ".join(said), true)
    assert found is not None and 0 <= found <= 1
    assert (found == 1) == (said == true) and (found == 0) == (not said & true)
    line = {
        "id": "x",
        "truth": {"labels": sorted(true)},
        "labels": sorted(said),
        "status": "strict",
    }
    counts = multilabel.counts([line], EMOTIC.space)
    assert multilabel.jaccard(counts[0]) == found


@given(categories.filter(bool), categories, st.sampled_from(label_spaces.EMOTIC))
def test_a_label_more_pays_if_and_only_if_it_is_right(
    true: set[str], said: set[str], label: str
) -> None:
    before, after = (jaccard(", ".join(labels), true) for labels in (said, said | {label}))
    assert before is not None and after is not None
    if label not in said and label in true:
        assert after > before
    elif label not in said:
        assert after < before or after == before == 0
    else:
        assert after == before


@given(categories.filter(bool), st.sampled_from(["{}?", "not {}", "{}, Joy", "{} or none", ""]))
def test_what_cannot_be_read_earns_nothing(true: set[str], format: str) -> None:
    assert jaccard(format.format(", ".join(sorted(true))), true) == 0


def test_several_labels_and_the_other_rewards() -> None:
    one = FaceSample(id="x", dataset="test", context=["Peace"])
    answer = EMOTIC.parse("Peace")
    assert rewards.emotion(answer, one, EMOTIC.space) is None
    assert rewards.jaccard(answer, one, EMOTIC.space) == 1
    assert jaccard("Peace", set()) is None
    with pytest.raises(UserError, match="reward emotion: none of the 1 faces has the annotation"):
        rewards.check_truth(rewards.parse({"emotion": 1}), [one], EMOTIC.space)
    with pytest.raises(UserError, match=r"label_weight_power is 0\.5, but a face may have"):
        rewards.RewardScorer(rewards.parse({"jaccard": 1}), [one], EMOTIC, label_weight_power=0.5)
    (function,) = rewards.RewardScorer(rewards.parse({"jaccard": 2}), [one], EMOTIC).functions()
    said = [[{"role": "assistant", "content": text}] for text in ("Peace, Pain", "Pain")]
    assert function(said, index=[0, 0]) == [0.5, 0]
    # In a format with a rationale, named AUs count with several labels as with one.
    told = prompts.Prompt("t", 1, "think_labels", "emotic26", "{candidates}?", "test")
    happy = FaceSample(id="x", dataset="test", context=["Peace"], aus=[AULabel(12, 3.0, True)])
    answer = told.parse("<think>AU12.</think><answer>Peace, Pain</answer>")
    assert rewards.au(answer, happy, EMOTIC.space) == 1


def test_unhappy_is_not_happy() -> None:
    happy = face({6: 3.0, 12: 4.0}, "happiness")
    assert earned(text((6, 12), "unhappy"), happy)["emotion"] == 0
    assert earned(text((6, 12), "happy"), happy)["emotion"] == 1


def test_the_au_reward_is_f_beta() -> None:
    sample = face({1: 1.0, 4: 5.0})
    answer = PROMPT.parse(text((1, 12), "fear"))
    assert rewards.au(answer, sample, SPACE) == pytest.approx(2 * 0.5 - 1)
    from sklearn.metrics import fbeta_score

    named = PROMPT.parse(text((1, 4, 12, 25), "fear"))
    for beta in (0.5, 1.0, 2.0):
        truth = [n in (1, 4) for n in facs.COMMON_AUS]
        said = [n in (1, 4, 12, 25) for n in facs.COMMON_AUS]
        expected = 2 * fbeta_score(truth, said, beta=beta) - 1
        assert rewards.au(named, sample, SPACE, beta=beta) == pytest.approx(expected)
    # A strong movement counts more than a trace.
    strong = rewards.au_intensity(PROMPT.parse(text((4,), "fear")), sample, SPACE)
    trace = rewards.au_intensity(PROMPT.parse(text((1,), "fear")), sample, SPACE)
    assert strong is not None and trace is not None
    assert strong == pytest.approx(2 * 2 * (5 / 6) / (1 + 5 / 6) - 1) and strong > trace


def test_what_was_not_annotated_gives_no_signal() -> None:
    unlabelled = earned(RIGHT, face(None, None))
    assert (unlabelled["emotion"], unlabelled["au"], unlabelled["au_intensity"]) == (None,) * 3
    assert unlabelled["format"] == 1
    ungraded = earned(RIGHT, face({1: None, 4: None}))
    assert ungraded["au_intensity"] is None and ungraded["au"] is not None
    # An AU outside of the annotation is neither right nor wrong.
    only = FaceSample(id="x", dataset="t", emotion="fear", aus=[AULabel(1, None, True)])
    assert earned(text((1, 12, 25), "fear"), only)["au"] == 1
    group = label_spaces.space("age5") if "age5" in label_spaces.SPACES else None
    if group is not None:
        answer = parse(f"{group.labels[0]}", group, "label")
        assert rewards.consistency(answer, face(None), group) is None


def test_a_face_without_movement() -> None:
    still = face({}, "neutral")
    assert earned(text((), "neutral"), still)["au"] == 1
    assert earned(text((12,), "neutral"), still)["au"] == -1
    assert earned("", still)["au"] == -1  # silence is no observation


def test_length_and_repetition() -> None:
    words = " ".join(f"word{i}" for i in range(180))
    long = f"<think>{words}</think><answer>fear</answer>"
    found = earned(long, face(dict(FEAR)))
    assert found["length_penalty"] == pytest.approx(-0.5) and found["repetition"] == 0
    loop = f"<think>{'the brows are low ' * 20}</think><answer>fear</answer>"
    assert earned(loop, face(dict(FEAR)))["repetition"] == pytest.approx(-(77 - 4) / 77)


def test_numbers_that_their_words_do_not_describe() -> None:
    def au_description(thought: str) -> float | None:
        return earned(f"<think>{thought}</think><answer>fear</answer>", face(dict(FEAR)))[
            "au_description"
        ]

    assert au_description("The lips are tightened (AU2) and the brows are lowered (AU4).") == -0.5
    assert au_description("The brows are lowered (AU1).") == -1
    assert au_description("The inner brows are raised (AU1) and the lids are tense (AU7).") == 0
    assert au_description("I see AU1, AU4 and no AU12.") == 0  # numbers alone claim nothing else
    assert au_description("The face is still.") == 0


RANGES = {
    "format": (0, 1),
    "emotion": (0, 1),
    "rating": (0, 1),
    "jaccard": (0, 1),
    "au": (-1, 1),
    "au_intensity": (-1, 1),
    "consistency": (0, 1),
    "au_description": (-1, 0),
    "length_penalty": (-1, 0),
    "repetition": (-1, 0),
}
PIECES = [
    "<think>",
    "</think>",
    "<answer>",
    "</answer>",
    "fear",
    "Fear",
    "anger",
    "happy",
    "unhappy",
    "AU1",
    "AU4",
    "lips parted",
    "not AU5",
    "no AU1",
    "AU20",
    "AU999",
    "AU",
    "**Conclusion:**",
    "\n",
    " ",
    ".",
    "I see",
    "are absent",
    "or",
    "and",
    "\u200b",
    "\u2019",
    "<",
    "neutral",
]


@settings(max_examples=1000, deadline=None)
@given(st.text(max_size=200) | st.lists(st.sampled_from(PIECES), max_size=25).map(" ".join))
def test_any_text_stays_in_range(written: str) -> None:
    for sample in (face(dict(FEAR)), face({}, "neutral"), face(None, None)):
        for name, value in earned(written, sample).items():
            low, high = RANGES[name]
            assert value is None or low <= value <= high, (name, value)


def total(written: str, sample: FaceSample) -> float:
    return sum(value or 0 for value in earned(written, sample).values())


def test_ten_thousand_strings_find_no_cheaper_way_to_the_best_reward() -> None:
    """Whatever reaches the best total says the right label in the format, and the right AUs."""
    sample, chance = face(dict(FEAR)), random.Random(0)
    best = total(RIGHT, sample)
    reached = 0
    for _ in range(10_000):
        if chance.random() < 0.3:  # the right answer, damaged or not
            words = RIGHT.replace(">", "> ").replace("<", " <").split(" ")
            for _ in range(chance.randint(0, 2)):
                words[chance.randrange(len(words))] = chance.choice(PIECES)
            written = " ".join(words)
        else:
            written = " ".join(chance.choices(PIECES, k=chance.randint(0, 20)))
        if total(written, sample) >= best - 1e-9:
            answer = PROMPT.parse(written)
            assert answer.status == "strict" and answer.label == "fear", written
            assert set(answer.aus) & set(facs.COMMON_AUS) == set(FEAR), written
            reached += 1
    assert reached  # the search is able to find it


def test_no_set_of_aus_or_label_beats_the_truth() -> None:
    sample = face(dict(FEAR))
    for label in SPACE.labels:
        for size in range(4):
            for aus in itertools.combinations((1, 2, 4, 5, 12, 20), size):
                assert total(text(aus, label), sample) < total(RIGHT, sample)


# --- what a run is given --------------------------------------------------------------------------


def test_weights_and_options_are_read() -> None:
    found = rewards.parse({"format": 1, "au": {"weight": 2, "beta": 0.5}})
    assert [(one.name, one.weight, dict(one.options)) for one in found] == [
        ("format", 1.0, {}),
        ("au", 2.0, {"beta": 0.5}),
    ]
    for bad, message in [
        ({"emotions": 1}, "no reward 'emotions'.*did you mean 'emotion'"),
        ({"au": -1}, "weight is -1"),
        ({"au": True}, "weight is True"),
        ({"au": {"gamma": 1}}, "no option 'gamma': it has weight, beta"),
        ({"au": {"beta": 0}}, "beta is 0"),
        ({}, "rewards is empty"),
    ]:
        with pytest.raises(UserError, match=message):
            rewards.parse(bad)


def test_a_reward_without_any_truth_is_refused() -> None:
    used = rewards.parse({"format": 1, "au": 1})
    rewards.check_truth(used, [face(None), face({1: 1.0})], SPACE)
    with pytest.raises(UserError, match="reward au: none of the 2 faces"):
        rewards.check_truth(used, [face(None), face(None)], SPACE)


def test_rare_labels_weigh_more() -> None:
    counts = {"anger": 6, "fear": 2}
    assert label_weights(counts, 0) == {"anger": 1, "fear": 1}
    full = label_weights(counts, 1)
    assert full["anger"] * 6 == pytest.approx(full["fear"] * 2)
    assert (full["anger"] * 6 + full["fear"] * 2) / 8 == pytest.approx(1)
    half = label_weights(counts, 0.5)
    assert full["anger"] < half["anger"] < 1 < half["fear"] < full["fear"]
    assert label_weights({}, 1) == {}
    samples = [face(None, "anger")] * 6 + [face(None, "fear")] * 2 + [face(None, None)]
    scorer = rewards.RewardScorer(rewards.parse({"emotion": 1}), samples, PROMPT, 1)
    assert scorer.weights == full
    assert [scorer.weight(i) for i in (0, 7, 8)] == [full["anger"], full["fear"], 1.0]


def test_trl_is_given_the_same_numbers() -> None:
    used = rewards.parse({"format": 1, "emotion": 1, "au": 1})
    samples = [face(dict(FEAR)), face(None, "anger")]
    scorer = rewards.RewardScorer(used, samples, PROMPT, label_weight_power=1)
    functions = scorer.functions()
    assert [function.__name__ for function in functions] == ["format", "emotion", "au"]
    completions = [[{"role": "assistant", "content": RIGHT}]] * 2
    format, emotion, au = (
        function(prompts=["", ""], completions=completions, index=[0, 1], more=[1, 2])
        for function in functions
    )
    assert format == [1.0, 1.0] and emotion == [1.0, 0.0] and au == [1.0, None]
