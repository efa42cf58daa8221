"""Label spaces, aliases and the benchmarks' own codes."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmface import label_spaces, schema
from vlmface.errors import UserError

SPACE = label_spaces.SPACES["emotion8"]


def test_spaces() -> None:
    assert set(label_spaces.SPACES) == {
        "emotion8",
        "emotion7",
        "rafdb_compound11",
        "mafw11",
        "raer5",
        "bah2",
        "gender",
        "age_group5",
        "age_group9",
        "race3",
        "race5",
        "race6",
        "race7",
        "emotic26",
    }
    fields = {field.name for field in dataclasses.fields(schema.FaceSample)}
    for id, space in label_spaces.SPACES.items():
        assert space.id == id
        assert space.field in fields
        assert len(set(space.labels)) == len(space.labels)
        assert set(space.aliases.values()) <= set(space.labels)
        # No two labels share a word, and every label is itself.
        keys = [label_spaces.normalise(word) for word in (*space.labels, *space.aliases)]
        assert len(set(keys)) == len(keys)
        assert [space.match(label) for label in space.labels] == list(space.labels)
    assert set(SPACE.labels) - set(label_spaces.SPACES["emotion7"].labels) == {"contempt"}


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("Happy", "happiness"),
        (" ANGRY! ", "anger"),
        ("**sadness**", "sadness"),
        ("\uff46\uff45\uff41\uff52", "fear"),
        ("sur\u200bprise", "surprise"),
        ("unhappy", None),
        ("not happy", None),
        ("happy sad", None),
        ("happi ness", None),
        ("happiness is", None),
        ("", None),
        ("?", None),
    ],
)
def test_canonical(text: str, label: str | None) -> None:
    assert SPACE.match(text) == label


def test_canonical_of_attributes() -> None:
    race, age = label_spaces.SPACES["race7"], label_spaces.SPACES["age_group5"]
    assert race.match("latino hispanic") == "Latino_Hispanic"
    assert race.match("east-asian") == "East Asian"
    assert race.match("asian") is None
    assert age.match("20 \u2013 39") == "20-39"
    assert age.match("2039") is None
    assert label_spaces.SPACES["emotion7"].match("contempt") is None


@given(st.text())
def test_canonical_takes_any_text(text: str) -> None:
    for space in label_spaces.SPACES.values():
        assert space.match(text) in (None, *space.labels)


def test_the_shas_are_those_of_runs_and_golden_files() -> None:
    assert {id: space.sha for id, space in label_spaces.SPACES.items()} == {
        "emotion8": "5d89a76f9850",
        "emotion7": "11ccfd49e4b3",
        "rafdb_compound11": "b4b8d3033c72",
        "mafw11": "5b4f67f0fdf5",
        "raer5": "601a90cd5a0b",
        "bah2": "0975a8837d2b",
        "gender": "3f05b4ebed3e",
        "age_group5": "f4f943f353fe",
        "race7": "d1be579606bb",
        "race6": "c8a9a28f159a",
        "race3": "388f3bc21332",
        "race5": "6b8b51e398fd",
        "age_group9": "7bec3996b0d1",
        "emotic26": "ee8bfc17cac3",
    }


def test_sha_changes_with_any_content() -> None:
    changed = [
        dataclasses.replace(SPACE, id="other"),
        dataclasses.replace(SPACE, labels=SPACE.labels[::-1]),
        dataclasses.replace(SPACE, aliases={**SPACE.aliases, "cross": "anger"}),
    ]
    shas = {space.sha for space in (SPACE, *changed)}
    assert len(shas) == 4
    assert all(len(sha) == 12 for sha in shas)
    assert dataclasses.replace(SPACE, source="elsewhere").sha == SPACE.sha


CODES: dict[str, dict[int, str | None]] = {
    "rafdb": {1: "surprise", 6: "anger", 7: "neutral"},
    "affectnet": {0: "neutral", 5: "disgust", 6: "anger", 7: "contempt", 9: None},
    "affectnet_sample": {1: "neutral", 8: "contempt"},
    "fer2013": {0: "anger", 6: "neutral"},
    "ferplus": {2: "surprise", 8: None},
    "ckplus": {1: "anger", 7: "surprise"},
    "dfew": {1: "happiness", 7: "fear"},
    "affwild2": {1: "anger", 7: None, -1: None},
}


@pytest.mark.parametrize(
    ("coding", "code", "emotion"),
    [(name, code, emotion) for name, codes in CODES.items() for code, emotion in codes.items()],
)
def test_codings(coding: str, code: int, emotion: str | None) -> None:
    assert label_spaces.CODINGS[coding].decode(code) == emotion


def test_codings_are_complete() -> None:
    for id, coding in label_spaces.CODINGS.items():
        assert coding.id == id
        found = [label for label in coding.codes.values() if label]
        assert len(set(found)) == len(found) >= 7
        assert set(found) <= set(label_spaces.EMOTIONS)
    sizes = {
        id: len([c for c in coding.codes.values() if c])
        for id, coding in label_spaces.CODINGS.items()
    }
    assert sizes == {
        "rafdb": 7,
        "affectnet": 8,
        "affectnet_sample": 8,
        "fer2013": 7,
        "ferplus": 8,
        "ckplus": 8,
        "dfew": 7,
        "affwild2": 7,
        "faba": 7,
    }


def test_unknown_codes_and_spaces_are_errors() -> None:
    with pytest.raises(UserError, match=r"rafdb has no emotion code 0: .*1=surprise"):
        label_spaces.CODINGS["rafdb"].decode(0)
    with pytest.raises(UserError, match=r"no label space 'emotion9'.*did you mean 'emotion8'"):
        label_spaces.space("emotion9")
    assert label_spaces.space("gender") is label_spaces.SPACES["gender"]
