"""The verifier: every trap is caught under its own name, and sound texts pass."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmface import au_descriptions, facs, label_spaces
from vlmface.errors import UserError
from vlmface.rationale import ground_truth, rules, verify
from vlmface.rationale.ground_truth import GroundTruth
from vlmface.rationale.verify import Limits
from vlmface.schema import AULabel, FaceSample

SPACE = label_spaces.SPACES["emotion8"]
ALL = frozenset(facs.AU_NUMBERS)
ANGER = GroundTruth("anger", {4: 3.0, 7: 2.0}, ALL)
SOUND = "The brows are lowered (AU4) and the lids are tightened (AU7). Both belong to anger."


def check(text: str, label: str = "anger", of: GroundTruth = ANGER, **limits) -> verify.Verdict:
    completion = f"<think>{text}</think>\n<answer>{label}</answer>"
    return verify.check(completion, of, SPACE, "think_answer", Limits(**limits))


def reasons(*arguments, **options) -> set[str]:
    return set(check(*arguments, **options).reasons)


def test_a_sound_text_passes():
    verdict = check(SOUND)
    assert verdict.kept and verdict.body == SOUND
    assert (verdict.precision, verdict.recall) == (1.0, 1.0)


def test_action_units():
    brow = "The brows are strongly lowered (AU4), which tells of anger."
    assert reasons(brow) == {"missing_au"}
    assert check(brow).recall == 0.5
    assert reasons(SOUND.replace("Both", "The lip corners are pulled up (AU12). Both")) == {
        "hallucinated_au"
    }
    denial = "There is no AU4, but the lids are tightened (AU7), a sign of anger."
    assert reasons(denial) == {"denied_au"}
    # A denial is no naming: to say that an absent unit is absent is right.
    assert check(SOUND + " There is no AU12.").kept
    assert check(SOUND.replace("Both", "AU12 is not active. Both")).kept


def test_a_unit_that_nobody_looked_for_cannot_be_checked():
    some = GroundTruth("anger", {4: 3.0, 7: 2.0}, frozenset({4, 7, 12}))
    assert check(SOUND, of=some).kept
    assert reasons(SOUND + " The chin is raised (AU17).", of=some) == {"unchecked_au"}
    assert reasons(SOUND + " AU17 is absent.", of=some) == {"unchecked_au"}


def test_limits_can_be_relaxed():
    brow = "The brows are strongly lowered (AU4), which tells of anger."
    assert check(brow, min_recall=0.5).kept
    extra = SOUND.replace("Both", "The lips are pressed (AU24). Both")
    assert check(extra, min_precision=0.6).kept
    assert check(extra).precision == pytest.approx(2 / 3)


def test_labels():
    assert reasons(SOUND, label="fear") == {"wrong_label"}
    assert check(SOUND, label="Angry").kept  # beyond doubt, though not letter by letter
    assert reasons(SOUND, label="anger or fear") == {"unreadable"}
    other = SOUND.replace("anger", "joy")
    assert reasons(other) == {"argues_otherwise"}
    assert check(SOUND.replace("anger", "it")).kept


def test_forms():
    verdict = verify.check("I cannot determine the emotion.", ANGER, SPACE, "think_answer")
    assert "refused" in verdict.reasons
    assert "unreadable" in verify.check("", ANGER, SPACE, "think_answer").reasons
    cut = f"<think>{SOUND}</think>\n<answer>"
    assert verify.check(cut, ANGER, SPACE, "think_answer").reasons == ("unreadable",)
    three = (
        f"**Key Observations:** {SOUND}\n**Overall Emotional Interpretation:** It is anger.\n"
        "**Conclusion:** anger"
    )
    assert verify.check(three, ANGER, SPACE, "three_part").kept


@pytest.mark.parametrize(
    "text",
    [
        "the brows are raised (AU4)",
        "the cheeks rise, the brows are raised (AU4)",
        "AU4 raises the brows",
        "raised inner brows [AU4]",
        "the lip corners are pulled up (AU4)",
        "AU12: the corners of the mouth are turned down",
        "AU15 - lip corners lifted",
        "the lips are parted (AU24)",
        "the eyes are closed (AU5)",
        "the lips are tightly closed (AU25)",
        "the jaw is clenched (AU26)",
        "the brows are drawn together (AU1)",
    ],
)
def test_words_that_contradict_their_unit(text):
    assert len(au_descriptions.contradictions(f"A face. {text.capitalize()}.")) == 1


@pytest.mark.parametrize(
    "text",
    [
        "the brows are lowered (AU4) and the lids tightened (AU7)",
        "AU4 lowers the brows and AU12 pulls the lip corners up",
        "brows lowered by AU4, lip corners raised by AU12",
        "the cheeks are raised and the brows furrowed (AU4)",
        "the inner brows are raised and the brows drawn together (AU1, AU4)",
        "the brow lowerer (AU4) is active",
        "AU25 (lips part) shows in the open mouth",
        "the brows are not raised but lowered (AU4)",
        "**AU6 (Cheek Raiser):** The cheeks are lifted and the eyes narrowed",
        "the upper lids are raised, so the eyes are wide open (AU5)",
        "the lips are pressed together (AU24) and the jaw is not dropped",
        "the lower lip is lowered (AU16)",
        "the chin is pushed up, the lip corners pulled down (AU15)",
        "the lower lids are tightened, the eyes wide open (AU5, AU7)",
    ],
)
def test_words_that_fit_their_unit(text):
    assert not au_descriptions.contradictions(text)


def test_contradiction_is_a_fault_that_says_what_the_unit_is():
    (fault,) = check(SOUND.replace("lowered", "raised")).faults
    assert fault.reason == "contradiction"
    assert "AU4 (brow lowerer): the brows are lowered and drawn together" in fault.message


@pytest.mark.parametrize(
    "phrase", ["Given the label anger,", "As annotated by the annotators,", "You told me that"]
)
def test_talk_of_the_annotation(phrase):
    assert reasons(f"{phrase} {SOUND}") == {"cites_annotation"}


def test_length():
    assert reasons("AU4, AU7: anger.") == {"too_short"}
    assert reasons(SOUND + " It is a clear face." * 40) == {"too_long"}
    assert check(SOUND + " It is a clear face." * 40, max_words=300).kept


def test_messages_tell_the_writer_what_to_mend():
    verdict = check("The brows are lowered (AU4) and the lip corners pulled up (AU12) in anger.")
    assert [fault.message for fault in verdict.faults] == [
        "It leaves out AU7 (lid tightener).",
        "It names AU12 (lip corner puller), which the face does not show.",
    ]
    assert set(verify.REASONS) >= {fault.reason for fault in verdict.faults}


faces = st.dictionaries(
    st.sampled_from(facs.AU_NUMBERS), st.none() | st.floats(0.1, 5), max_size=10
)


@given(faces, st.sampled_from(label_spaces.EMOTIONS), st.integers(0, 2**40), st.data())
def test_what_rules_write_passes_and_any_change_of_the_truth_is_seen(aus, emotion, seed, data):
    format = data.draw(st.sampled_from(("think_answer", "three_part")))
    style = data.draw(st.sampled_from(sorted(rules.STYLES)))
    text = rules.write(aus, emotion, format=format, seed=seed, style=style)
    verdict = verify.check(text, GroundTruth(emotion, aus, ALL), SPACE, format)
    assert verdict.kept, verdict.faults
    au = data.draw(st.sampled_from(facs.AU_NUMBERS))
    other = dict(aus) if au not in aus else {a: x for a, x in aus.items() if a != au}
    if au not in aus:
        other[au] = 3.0
    expected = "missing_au" if au not in aus else "hallucinated_au"
    assert verify.check(text, GroundTruth(emotion, other, ALL), SPACE, format).reasons == (
        expected,
    )


def test_near_duplicates():
    long = "the brows are lowered and drawn together while the lids are tense and the lips pressed "
    texts = [
        long * 2 + "in anger",
        "something else is said about this face and its raised cheeks",
        long * 2 + "in rage",
        "short text",
        "short text",
        "",
    ]
    assert verify.near_duplicates(texts) == [None, None, 0, None, 3, None]
    assert verify.near_duplicates(texts, 1.0) == [None, None, None, None, 3, None]
    assert verify.near_duplicates([]) == []


def test_near_duplicates_are_found_quickly_among_many():
    rng = random.Random(0)
    texts = [
        rules.write(
            {au: rng.uniform(1, 5) for au in rng.sample(facs.SYNTH_AUS, 4)},
            rng.choice(SPACE.labels),
            seed=seed,
            style="varied",
        )
        for seed in range(3000)
    ]
    start = time.process_time()
    found = verify.near_duplicates(texts + texts[:100])
    assert time.process_time() - start < 10
    assert [twin for twin in found[3000:]] == list(range(100))
    assert sum(twin is not None for twin in found[:3000]) < 60


def test_truth_of_a_sample():
    labels = [AULabel(4, 3.0, True), AULabel(12, 0.0, False), AULabel(7, None, True)]
    sample = FaceSample("a", "mine", emotion="anger", aus=labels)
    found = ground_truth.annotated_truth(sample, "anger")
    assert found == GroundTruth("anger", {4: 3.0, 7: None}, frozenset({4, 7, 12}))
    assert ground_truth.annotated_truth(FaceSample("b", "mine"), "anger") is None
    assert ground_truth.label_of(sample, SPACE) == "anger"
    contempt = FaceSample("c", "mine", emotion="contempt")
    assert ground_truth.label_of(contempt, label_spaces.SPACES["emotion7"]) is None


def test_truth_from_an_estimator():
    found = ground_truth.estimated_truth(
        {"4": 3.0, "12": 0.4, "7": None}, "anger", threshold=1, source="x:y"
    )
    assert found == GroundTruth("anger", {4: 3.0, 7: None}, frozenset({4, 7, 12}), "x:y")
    zero = ground_truth.estimated_truth({4: 0.0}, "anger", threshold=0, source="x:y")
    assert zero is not None and zero.aus == {}
    assert ground_truth.estimated_truth(None, "anger", threshold=1, source="x:y") is None
    assert ground_truth.load_estimator("json:loads")("1") == 1
    for name in ("json", "json:nothing", "no_such_module:f", "json:__doc__"):
        with pytest.raises(UserError, match="AU estimator"):
            ground_truth.load_estimator(name)
    for wrong in ({3: 1.0}, {4: 6.0}, {4: float("nan")}):
        with pytest.raises(UserError, match="'x:y' returned"):
            ground_truth.run_estimator(lambda image, wrong=wrong: wrong, "x:y", None)  # type: ignore[misc, arg-type]
