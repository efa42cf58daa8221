"""The AU catalogue, the prototypes and the evidence formula."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmface import facs, label_spaces
from vlmface.errors import UserError

au_sets = st.dictionaries(
    st.sampled_from(facs.AU_NUMBERS), st.none() | st.floats(0, 5), max_size=10
)


def test_catalogue() -> None:
    assert list(facs.AU_NUMBERS) == sorted(set(facs.AU_NUMBERS))
    assert 3 not in facs.AUS  # no such unit in FACS; 40, 41, 42 and 44 became grades of others
    assert not {40, 41, 42, 44} & set(facs.AUS)
    for number, unit in facs.AUS.items():
        assert unit.number == number
        assert unit.region in facs.REGIONS
        assert " is " in unit.cue or " are " in unit.cue
        assert not unit.cue.endswith(".")
    # Units that public code confuses: the puff is 34, not 13.
    assert facs.AUS[13].name == "sharp lip puller"
    assert facs.AUS[34].name == "cheek puff"
    assert facs.AUS[12].muscle == "zygomaticus major"


def test_selections() -> None:
    assert set(facs.SYNTH_AUS) <= set(facs.COMMON_AUS) <= set(facs.AU_NUMBERS)
    assert len(facs.SYNTH_AUS) == 24
    assert len(facs.COMMON_AUS) == 30
    # The AUs that the published benchmarks code are all common ones.
    disfa, bp4d = (
        {1, 2, 4, 5, 6, 9, 12, 15, 17, 20, 25, 26},
        {1, 2, 4, 6, 7, 10, 12, 14, 15, 17, 23},
    )
    assert disfa | bp4d <= set(facs.COMMON_AUS)


@pytest.mark.parametrize(
    ("aus", "emotion"),
    [
        ([6, 12], "happiness"),
        ([6, 12, 25], "happiness"),
        ([1, 4, 15], "sadness"),
        ([1, 4, 15, 17], "sadness"),
        ([1, 2, 5, 26], "surprise"),
        ([1, 2, 5, 25, 27], "surprise"),
        ([1, 2, 4, 5, 20, 25], "fear"),
        ([1, 2, 4, 5, 7, 20, 26], "fear"),
        ([4, 5, 7, 23], "anger"),
        ([4, 7, 24], "anger"),
        ([9, 15, 16], "disgust"),
        ([10, 17], "disgust"),
        ([14], "contempt"),
        ([12, 14], "contempt"),
        ([], "neutral"),
        ([45], "neutral"),
        ([25], "neutral"),
        ([4], "anger"),
        ([5], "surprise"),
    ],
)
def test_textbook_faces(aus: list[int], emotion: str) -> None:
    scores = facs.evidence(aus)
    assert max(scores, key=scores.__getitem__) == emotion
    assert facs.supports(aus, emotion)
    assert [e for e in scores if facs.supports(aus, e)] == [emotion]


def test_evidence_by_hand() -> None:
    # AU12 at grade B: x = 2/3. happiness: recall = 2 * x / 3 = 4/9, precision = 1;
    # neutral: 1 - x = 1/3.
    happiness, neutral = (2 * 4 / 9 / (1 + 4 / 9)) ** 2, (1 / 3) ** 2
    scores = facs.evidence({12: 2})
    assert scores["happiness"] == pytest.approx(happiness / (happiness + neutral))
    assert scores["neutral"] == pytest.approx(neutral / (happiness + neutral))
    assert scores["anger"] == 0


def test_intensity_matters() -> None:
    assert facs.supports({12: 1}, "neutral")
    assert facs.supports({12: 3}, "happiness")
    assert facs.evidence({12: 0}) == facs.evidence([])
    assert facs.evidence({12: None}) == facs.evidence({12: 3}) == facs.evidence([12])


def test_ties_count_as_support() -> None:
    # AU4 is a third of anger, AU6 of happiness, and each is half of what is seen.
    scores = facs.evidence([4, 6])
    assert scores["anger"] == pytest.approx(scores["happiness"])
    assert [e for e in scores if facs.supports([4, 6], e)] == ["anger", "happiness"]


def test_some_evidence_is_no_support() -> None:
    assert facs.evidence([15])["disgust"] > 0
    assert not facs.supports([15], "disgust")


@given(au_sets)
def test_evidence_is_a_distribution(aus: dict[int, float | None]) -> None:
    scores = facs.evidence(aus)
    assert tuple(scores) == label_spaces.EMOTIONS
    assert all(score >= 0 for score in scores.values())
    assert sum(scores.values()) == pytest.approx(1)
    assert any(facs.supports(aus, emotion) for emotion in scores)
    assert scores == facs.evidence(dict(reversed(aus.items())))


@given(st.sampled_from(facs.AU_NUMBERS))
def test_names(number: int) -> None:
    assert facs.parse_name(facs.name(number)) == number
    for text in (f"au{number:02}", f" AU {number} ", f"Au_{number}", str(number)):
        assert facs.parse_name(text) == number


@pytest.mark.parametrize("text", ["AU3", "AU99", "AU", "", "AU4x", "AU4 AU7", "brow", "AU-4-"])
def test_unknown_names(text: str) -> None:
    with pytest.raises(UserError, match="not a known action unit"):
        facs.parse_name(text)


def test_grades() -> None:
    grades = [facs.grade(i) for i in (0.2, 1, 1.4, 1.5, 2, 3, 4.49, 4.5, 5)]
    assert grades == [1, 1, 1, 2, 2, 3, 4, 5, 5]
    assert len(facs.GRADES) == 5


def test_top_down() -> None:
    assert facs.top_down([26, 12, 4, 17, 9, 6, 1, 7]) == [1, 4, 7, 6, 9, 12, 17, 26]


def test_prototypes_name_known_units_once() -> None:
    assert tuple(facs.PROTOTYPES) == label_spaces.EMOTIONS
    for prototype in facs.PROTOTYPES.values():
        assert len(set(prototype.aus)) == len(prototype.aus)
        assert set(prototype.aus) <= set(facs.COMMON_AUS)
