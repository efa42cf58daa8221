"""Votes over any words become a distribution over one label space."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmface import label_spaces
from vlmface.label_votes import distribution

EMOTIONS = label_spaces.space("emotion8")
OWN = label_spaces.from_mapping(
    {
        "id": "engagement3",
        "field": "context",
        "labels": ["bored", "neutral", "engaged"],
        "aliases": {"bored": ["uninterested"]},
        "source": "test",
    },
    "test",
)


def test_aliases_are_added_up_and_words_outside_the_space_are_reported():
    votes = {"Happy": 3, "happiness": 1, "sad": 4, "unknown": 1, "no_face": 1}
    shares = distribution(votes, EMOTIONS)
    assert shares.probabilities == dict.fromkeys(EMOTIONS.labels, 0.0) | {
        "happiness": 0.5,
        "sadness": 0.5,
    }
    assert list(shares.probabilities) == list(EMOTIONS.labels)
    assert shares.outside == pytest.approx(0.2)
    assert shares.majority() is None  # a tie


def test_the_same_votes_over_a_label_space_of_the_users_own():
    votes = {"uninterested": 0.2, "Bored": 0.4, "neutral": 0.2, "anger": 0.2}
    shares = distribution(votes, OWN)
    assert shares.probabilities == pytest.approx({"bored": 0.75, "neutral": 0.25, "engaged": 0})
    assert shares.outside == pytest.approx(0.2) and shares.majority() == "bored"
    of_emotions = distribution(votes, EMOTIONS)
    assert of_emotions.probabilities["anger"] == of_emotions.probabilities["neutral"] == 0.5
    assert of_emotions.outside == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("votes", "outside"), [({}, 0), ({"anger": 0}, 0), ({"unknown": 3}, 1), ({"other": 0}, 0)]
)
def test_no_vote_for_a_label_is_none_and_not_a_flat_distribution(votes, outside):
    shares = distribution(votes, EMOTIONS)
    assert shares.probabilities is None and shares.outside == outside
    assert shares.majority() is None


@given(
    st.dictionaries(
        st.sampled_from([*EMOTIONS.labels, "Happy", "sad", "other", "no_face", "?"]),
        st.floats(0, 1e6, allow_subnormal=False),
    )
)
def test_shares_sum_to_one_and_follow_the_votes(votes):
    shares = distribution(votes, EMOTIONS)
    counted = math.fsum(n for word, n in votes.items() if EMOTIONS.match(word))
    assert (shares.probabilities is None) == (counted == 0)
    assert 0 <= shares.outside <= 1
    if shares.probabilities is not None:
        assert math.fsum(shares.probabilities.values()) == pytest.approx(1)
        assert shares.probabilities["anger"] == pytest.approx(votes.get("anger", 0) / counted)
        doubled = distribution({word: 2 * n for word, n in votes.items()}, EMOTIONS)
        assert doubled.probabilities == pytest.approx(shares.probabilities)
