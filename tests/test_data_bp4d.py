"""BP4D: codes by header, 9 is unknown, folds, frame numbers with and without zeros."""

from __future__ import annotations

import pytest
from miniatures import bp4d, text

from vlmface import data
from vlmface.data.adapters import bp4d as adapter
from vlmface.errors import UserError

T = bp4d.ARGUMENTS


def present(row: dict) -> dict[int, bool]:
    return {unit["au"]: unit["present"] for unit in row["aus"]}


def test_the_parts_are_the_41_people():
    people = [person for part in adapter.PARTS for person in part]
    assert [len(part) for part in adapter.PARTS] == [14, 14, 13]
    women = {f"F{i:03d}" for i in range(1, 24)}
    assert set(people) == women | {f"M{i:03d}" for i in range(1, 19)} and len(people) == 41


@pytest.mark.parametrize("name", ["{frame:04d}.jpg", "{frame}.jpg", "{frame:05d}.png"])
def test_labels_come_by_the_names_of_the_header(tmp_path, name):
    bp4d.write(tmp_path, name)
    rows = data.load("bp4d", tmp_path, "test", **T)  # fold 1 tests on F004 and its part
    assert len(rows) == 13 * 2 * 2
    assert rows["id"][:4] == [
        "bp4d-F004-T1-2440",
        "bp4d-F004-T1-2441",
        "bp4d-F004-T8-2440",
        "bp4d-F004-T8-2441",
    ]
    assert rows["subject"][0] == "F004" and rows["meta"][2] == '{"task": "T8"}'
    nothing = dict.fromkeys(adapter.AUS, False)
    assert present(rows[0]) == nothing | {6: True}
    assert present(rows[1]) == nothing | {6: True, 12: True}
    assert present(rows[3]) == nothing | {6: True, 12: True, 24: True}
    assert {unit["intensity"] for unit in rows[0]["aus"]} == {None}
    assert rows[1]["image"].filename.endswith("T1/" + name.format(frame=2441))
    assert present(data.load("bp4d", tmp_path, "test", aus=[5, 7], **T)[0]) == {5: True, 7: False}


def test_unknown_is_not_annotated(tmp_path):
    bp4d.write(tmp_path)
    rows = data.load("bp4d", tmp_path, "test", fold=3, **T)  # M001's part
    of = {i: present(row) for i, row in zip(rows["id"], rows, strict=True)}
    assert 12 not in of["bp4d-M001-T1-2441"] and len(of["bp4d-M001-T1-2441"]) == 11
    assert of["bp4d-M004-T1-2441"][12] is True


def test_folds_share_nobody_and_test_everybody_once(tmp_path):
    bp4d.write(tmp_path)
    tested = []
    for fold, number in ((1, 13), (2, 14), (3, 14)):
        train = set(data.load("bp4d", tmp_path, fold=fold, **T)["subject"])
        test = set(data.load("bp4d", tmp_path, "test", fold=fold, **T)["subject"])
        assert len(test) == number and len(train) == 41 - number and not train & test
        tested += test
    assert len(set(tested)) == 41


def test_coded_frames_without_an_image_are_counted(tmp_path):
    bp4d.write(tmp_path)
    (tmp_path / "Sequences(2D+3D)" / "F004" / "T8" / "2441.jpg").unlink()
    rows = data.read("bp4d", tmp_path, "test", **T)
    assert rows.skipped == {"coded frame without an image": ["F004 T8 frame 2441"]}
    assert len(rows) == 13 * 2 * 2 - 1
    shifted = data.read("bp4d", tmp_path, "test", offset=1, **T)  # images counted from one more
    assert shifted.columns["id"][0] == "bp4d-F004-T1-2440"
    assert shifted.columns["image"][0].endswith("2441.jpg")


def test_what_is_wrong_with_a_copy_is_named(tmp_path):
    bp4d.write(tmp_path)
    with pytest.raises(UserError, match="folds 1 to 3"):
        data.load("bp4d", tmp_path, fold=4, **T)
    with pytest.raises(UserError, match="'T9': BP4D has T1"):
        data.load("bp4d", tmp_path, tasks=["T9"])
    with pytest.raises(UserError, match=r"img is missing.*Sequences"):
        data.load("bp4d", tmp_path, images="img", **T)
    with pytest.raises(UserError, match=r"no column of AU99.*0,1,2,4"):
        data.load("bp4d", tmp_path, "test", aus=[99], **T)
    with pytest.raises(UserError, match=r"M001_T1.csv has the code 9, expected 0, 1 or -1"):
        data.load("bp4d", tmp_path, fold=1, unknown=-1, **T)
    path = tmp_path / "AUCoding" / "AU_OCC" / "F004_T1.csv"
    text(path, "0,1,2", "2440,0")
    with pytest.raises(UserError, match=r"F004_T1.csv is not the csv file"):
        data.load("bp4d", tmp_path, "test", **T)
    path.unlink()
    with pytest.raises(UserError, match=r"F004_T1.csv is missing.*F004_T8.csv"):
        data.load("bp4d", tmp_path, "test", **T)


def test_a_code_that_is_no_number_is_named_with_its_file(tmp_path):
    bp4d.write(tmp_path)
    path = tmp_path / "AUCoding" / "AU_OCC" / "F004_T1.csv"
    head, first, *rest = path.read_text().split("\n")
    text(path, head, first.partition(",")[0] + ",x" * first.count(","), *rest)
    with pytest.raises(UserError, match=r"F004_T1\.csv holds something else than codes"):
        data.load("bp4d", tmp_path, "test", **T)
