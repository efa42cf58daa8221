"""MAFW: eleven words of which three are no emotion of ours, and two orders of numbers."""

from __future__ import annotations

import pytest
from miniatures import mafw

from vlmface import data, label_spaces
from vlmface.errors import UserError

EMOTIONS = [*mafw.WORDS[:8], None, None, None]


def test_words(tmp_path):
    mafw.write(tmp_path)
    rows = data.load("mafw", tmp_path, **mafw.ARGUMENTS)
    assert rows["id"][0] == "mafw-00001"
    assert rows["emotion"] == EMOTIONS
    assert rows["context"] == [[word] for word in mafw.WORDS]
    assert set(mafw.WORDS) == set(label_spaces.space("mafw11").labels)
    assert len(rows[0]["frames"]) == 4
    test = data.load("mafw", tmp_path, "test", num_frames=2)
    assert test["emotion"] == [None, "happiness"]
    assert test["context"] == [["helplessness"], ["happiness"]]


@pytest.mark.parametrize(
    ("order", "first", "three"),
    [
        ("anger", 0, ["anger", "disgust", "fear"]),
        ("anger", 1, ["anger", "disgust", "fear"]),
        ("happiness", 0, ["happiness", "sadness", "neutral"]),
    ],
)
def test_numbers_mean_what_their_order_says(tmp_path, order, first, three):
    mafw.write(tmp_path, tuple(str(first + i) for i in range(11)))
    rows = data.load("mafw", tmp_path, num_frames=1, order=order, first=first)
    assert rows["emotion"][:3] == three
    assert sorted(rows["emotion"][:8]) == sorted(mafw.WORDS[:8])
    assert rows["emotion"][8:] == [None] * 3
    assert [words[0] for words in rows["context"]][7:] == list(mafw.WORDS[7:])


def test_face_crops_are_preferred(tmp_path):
    mafw.write(tmp_path)
    mafw.clip(tmp_path / "data" / "faces" / "00101", ["1.jpg"])
    rows = data.read("mafw", tmp_path, "test", num_frames=1)
    assert rows.columns["frames"] == [[str(tmp_path / "data" / "faces" / "00101" / "1.jpg")]]
    assert len(rows.skipped["no folder of frames"]) == 1


def test_what_is_wrong_is_named(tmp_path):
    mafw.write(tmp_path, tuple(str(i) for i in range(1, 12)))
    with pytest.raises(UserError, match=r"no label '11'.*first=1"):
        data.load("mafw", tmp_path)
    with pytest.raises(UserError, match="order='alphabet'"):
        data.load("mafw", tmp_path, order="alphabet")
    with pytest.raises(UserError, match=r"fold=0"):
        data.load("mafw", tmp_path, fold=0)
    (tmp_path / "data" / "frames").rename(tmp_path / "data" / "jpg")
    with pytest.raises(UserError, match=r"no folder of extracted frames or videos.*ffmpeg"):
        data.load("mafw", tmp_path, first=1)
    mafw.write(tmp_path, ("joyful", "angry", "boredom"))
    with pytest.raises(UserError, match="'boredom' is not a label of mafw11"):
        data.load("mafw", tmp_path)
    (tmp_path / "Train & Test Set").rename(tmp_path / "lists")
    with pytest.raises(UserError, match="MAFW's lists of single labels not found"):
        data.load("mafw", tmp_path)
