"""DISFA: intensities and the threshold, folds, frames counted from 0 or 1, frames that lack."""

from __future__ import annotations

import numpy as np
import pytest
from miniatures import disfa, face, text

from vlmface import data
from vlmface.data.adapters import disfa as adapter
from vlmface.errors import UserError


def aus(row: dict) -> dict[int, tuple[float, bool]]:
    return {unit["au"]: (unit["intensity"], unit["present"]) for unit in row["aus"]}


def test_the_parts_are_the_27_people():
    people = [person for part in adapter.PARTS for person in part]
    assert [len(part) for part in adapter.PARTS] == [9, 9, 9]
    assert len(set(people)) == 27 and {"SN014", "SN015", "SN019", "SN020"}.isdisjoint(people)


def test_intensities_are_kept_and_present_from_2_on(tmp_path):
    disfa.write(tmp_path)
    rows = data.load("disfa", tmp_path, "test")  # fold 1 tests on SN003's part
    assert len(rows) == 9 * 3
    assert rows["id"][:3] == ["disfa-SN003-00001", "disfa-SN003-00002", "disfa-SN003-00003"]
    assert rows["subject"][:4] == ["SN003", "SN003", "SN003", "SN004"]
    assert aus(rows[0]) == dict.fromkeys(adapter.BENCHMARK, (0, False))
    assert aus(rows[1]) == {
        1: (1, False),
        2: (2, True),
        4: (3, True),
        6: (0, False),
        9: (0, False),
        12: (4, True),
        25: (0, False),
        26: (2, True),
    }
    all12 = data.load("disfa", tmp_path, "test", aus=12, threshold=3)[1]
    assert list(aus(all12)) == list(adapter.AUS)
    assert aus(all12)[5] == (5, True) and aus(all12)[2] == (2, False)


def test_folds_share_nobody_and_test_everybody_once(tmp_path):
    disfa.write(tmp_path)
    tested = []
    for fold in (1, 2, 3):
        train = set(data.load("disfa", tmp_path, fold=fold)["subject"])
        test = set(data.load("disfa", tmp_path, "test", fold=fold)["subject"])
        assert len(train) == 18 and len(test) == 9 and not train & test
        tested += test
    assert len(set(tested)) == 27


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("{person}/{number}.png", 0),
        ("{person}/{number:05d}.jpg", 1),
        ("LeftVideo{person}_comp/LeftVideo{person}_comp_{number:05d}.jpg", 1),
        ("{person}/frame{number}.jpg", 0),
    ],
)
def test_each_frame_gets_its_own_labels_however_frames_are_named(tmp_path, name, first):
    disfa.write(tmp_path, name, first)
    rows = data.load("disfa", tmp_path, "test")
    expected = face(tmp_path / "expected.png", 3 * 2 + 2)  # SN003 is the third person
    shown = data.load("disfa", tmp_path, "test")[1]["image"]
    assert shown.filename.endswith(name.format(person="SN003", number=1 + first))
    assert aus(rows[1])[12] == (4, True)
    if name.endswith("png"):
        from PIL import Image

        assert np.array_equal(np.asarray(shown), np.asarray(Image.open(expected)))


def test_frames_that_lack_are_counted(tmp_path):
    disfa.write(tmp_path)
    face(tmp_path / "Images" / "SN002" / "3.png", 0)  # the labels end with frame 3, here 2.png
    rows = data.read("disfa", tmp_path, "train")
    assert len(rows) == 18 * 3 - 1
    assert rows.skipped["frame that was not extracted"] == ["SN001 frame 2"]
    assert [path[-11:] for path in rows.skipped["frame without a label"]] == ["SN002/3.png"]
    assert "disfa-SN001-00002" not in rows.columns["id"]
    from_one = data.read(
        "disfa", tmp_path, "train", first_frame=1
    )  # 0.png would be before the first
    assert "SN002 frame 3" not in from_one.skipped["frame that was not extracted"]
    assert "SN006 frame 3" in from_one.skipped["frame that was not extracted"]


def test_an_au_file_that_ends_early_is_not_annotated_there(tmp_path):
    disfa.write(tmp_path)
    text(tmp_path / "ActionUnit_Labels" / "SN003" / "SN003_au12.txt", "1,3")
    rows = data.load("disfa", tmp_path, "test")
    assert aus(rows[0])[12] == (3, True)
    assert 12 not in aus(rows[1]) and 4 in aus(rows[1])


def test_what_is_wrong_with_a_copy_is_named(tmp_path):
    disfa.write(tmp_path, "LeftVideo{person}/{number}.png")
    face(tmp_path / "Images" / "RightVideoSN003" / "0.png", 0)
    assert len(data.load("disfa", tmp_path, "test")) == 27  # the left camera
    with pytest.raises(UserError, match="DISFA has folds 1 to 3"):
        data.load("disfa", tmp_path, fold=0)
    with pytest.raises(UserError, match=r"frames is missing.*Images"):
        data.load("disfa", tmp_path, frames_dir="frames")
    face(tmp_path / "Images" / "LeftVideoSN003" / "0.jpg", 0)
    with pytest.raises(UserError, match="two images number 0"):
        data.load("disfa", tmp_path, "test")
    (tmp_path / "Images" / "LeftVideoSN003" / "0.jpg").unlink()
    (tmp_path / "Images" / "LeftVideoSN004").rename(tmp_path / "Images" / "other")
    with pytest.raises(UserError, match="one folder of SN004's frames, found: none"):
        data.load("disfa", tmp_path, "test")


def test_labels_out_of_range_or_missing(tmp_path):
    disfa.write(tmp_path)
    path = text(tmp_path / "ActionUnit_Labels" / "SN003" / "SN003_au4.txt", "1,0", "2,6", "3,0")
    with pytest.raises(UserError, match=r"SN003_au4.txt has intensities 0 to 6"):
        data.load("disfa", tmp_path, "test")
    path.unlink()
    with pytest.raises(UserError, match="SN003's intensities of AU4"):
        data.load("disfa", tmp_path, "test")
