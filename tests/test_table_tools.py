"""The tables of OpenFace, py-feat and LibreFace."""

from __future__ import annotations

import json

import pytest
from miniatures import face, face_tools, text

from vlmface import data
from vlmface.errors import UserError
from vlmface.schema import FaceSample


def units(row):
    return {unit["au"]: (unit["present"], unit["intensity"]) for unit in row["aus"]}


def test_openface_of_a_folder_of_pictures(tmp_path):
    face_tools.write_openface(tmp_path)
    table = tmp_path / "processed" / "clip.csv"
    options = {"tool": "openface", "images": str(tmp_path / "videos")}
    found = data.read("table", table, **options)
    assert found.skipped == {
        "OpenFace did not find the face (success is 0)": [f"{table}, line 5"],
    }
    rows = data.load("table", table, **options)
    assert rows["id"] == [
        "table-clip/000001",
        "table-clip/000002",
        "table-clip/000002#2",
        "table-clip/000004",
    ]
    # The first picture of the folder is frame 1, whatever its name.
    paths = [str(value).rpartition("/")[2] for value in found.columns["image"]]
    assert paths == ["7.jpg", "8.jpg", "8.jpg", "10.jpg"]
    assert rows["face_box"][0] == pytest.approx([10, 20, 16.7, 26.7])
    assert rows["face_box"][2][0] == pytest.approx(30)
    absent = (False, pytest.approx(0.4))
    assert units(rows[0]) == {1: absent, 12: (True, pytest.approx(3.2)), 28: (False, None)}
    assert units(rows[1]) == {1: (True, None), 12: (True, 1.5), 28: (True, None)}
    for row in rows:
        FaceSample.from_row(row).validate()


def test_openface_with_aligned_faces_has_no_boxes(tmp_path):
    face_tools.write_openface_aligned(tmp_path)
    rows = data.load("table", tmp_path / "processed", tool="openface")
    assert len(rows) == 4 and rows["face_box"] == [None] * 4
    aligned = tmp_path / "processed" / "clip_aligned"
    found = data.read("table", tmp_path / "processed", tool="openface")
    assert found.columns["image"][2] == str(aligned / "frame_det_01_000002.bmp")
    (aligned / "frame_det_01_000002.bmp").unlink()
    found = data.read("table", tmp_path / "processed", tool="openface")
    table = tmp_path / "processed" / "clip.csv"
    assert found.skipped["no picture of the frame"] == [f"{table}, line 4"]


def test_openface_of_single_pictures(tmp_path):
    landmarks = [f"{axis}_{i}" for axis in ("x", "y") for i in range(68)]
    for number, name in enumerate(("ann", "bob")):
        face(tmp_path / "pictures" / f"{name}.png", number, (200, 200))
        faces = [[n, 0.9, *[50 + 60 * n + i / 10 for i in range(136)], n, 2 * n] for n in range(2)]
        lines = [", ".join(map(str, row)) for row in faces[: number + 1]]
        header = ", ".join(("face", "confidence", *landmarks, "AU04_c", "AU04_r"))
        text(tmp_path / "processed" / f"{name}.csv", header, *lines)
    images = str(tmp_path / "pictures")
    rows = data.load("table", tmp_path / "processed", tool="openface", images=images)
    assert rows["id"] == ["table-ann", "table-bob", "table-bob#2"]
    assert rows["face_box"][2][0] == 110 and units(rows[2]) == {4: (True, 2)}
    (tmp_path / "pictures" / "bob.png").unlink()
    with pytest.raises(UserError, match=r"expected one picture .*bob\.jpg .*there are 0"):
        data.load("table", tmp_path / "processed", tool="openface", images=images)


def test_tables_without_some_of_the_usual_columns(tmp_path):
    face_tools.write_openface(tmp_path)
    path = tmp_path / "processed" / "clip.csv"
    whole = path.read_text()
    options = {"tool": "openface", "images": str(tmp_path / "videos")}
    path.write_text(whole.replace("_c", "_c_of_another"))
    rows = data.load("table", path, **options)
    assert units(rows[0]) == {1: (False, pytest.approx(0.4)), 12: (True, pytest.approx(3.2))}
    path.write_text(whole.replace("AU", "unit"))
    with pytest.warns(UserWarning, match="no column was read as a label"):
        rows = data.load("table", path, **options)
    assert len(rows) == 4 and rows["aus"] == [None] * 4


def test_openface_needs_its_pictures(tmp_path):
    face_tools.write_openface(tmp_path)
    with pytest.raises(
        UserError, match=r"line 2: there is no video and no folder of frames .*clip"
    ):
        data.load("table", tmp_path / "processed" / "clip.csv", tool="openface")


def test_pyfeat_of_pictures(tmp_path):
    path = face_tools.write_pyfeat(tmp_path)
    with pytest.warns(UserWarning, match="1 have tied votes"):
        rows = data.load("table", path, tool="pyfeat")
    assert rows["id"] == ["table-a.jpg", "table-a.jpg#2", "table-b.jpg"]
    assert rows["emotion"] == ["anger", None, "happiness"]
    assert json.loads(rows["label_votes"][0])["anger"] == 0.8
    assert rows["face_box"][0] == pytest.approx([4.5, 5, 24.5, 30])
    assert units(rows[0]) == {1: (False, None), 4: (True, None), 12: (True, None)}
    found = data.read("table", path, tool="pyfeat")
    assert found.skipped == {"py-feat did not find a face": [f"{path}, line 5"]}


def test_libreface(tmp_path):
    path = face_tools.write_libreface(tmp_path)
    rows = data.load("table", path, tool="libreface")
    assert rows["emotion"] == ["happiness", "neutral"]
    assert rows["id"] == ["table-talk/000000", "table-talk/000002"]
    found = data.read("table", path, tool="libreface")
    assert found.columns["image"][1] == str(tmp_path / "talk" / "frame_000000003.png")
    assert found.skipped == {"LibreFace did not find a face": [f"{path}, line 3"]}
    assert units(rows[0]) == {1: (True, None), 12: (False, None), 25: (True, 5.0)}
    assert units(rows[1]) == {1: (False, pytest.approx(0.8)), 12: (True, None), 25: (False, 0)}


def test_options_of_a_tool_can_be_replaced(tmp_path):
    path = face_tools.write_pyfeat(tmp_path)
    grades = data.load(
        "table", path, tool="pyfeat", aus="AU1*", au_values="intensity", au_threshold=2
    )
    assert units(grades[2]) == {12: (False, pytest.approx(0.9))}
    rows = data.load(
        "table",
        path,
        tool="pyfeat",
        au_threshold=0.05,
        votes=["happiness", "neutral"],
        where="AU12 > 0.45",
    )
    assert rows["id"] == ["table-a.jpg", "table-b.jpg"]
    assert units(rows[0])[1] == (True, None)
    assert rows["emotion"] == [None, "happiness"]


def test_action_units_as_labels(tmp_path):
    path = face_tools.write_libreface(tmp_path)
    options = {"tool": "libreface", "columns": {"emotion": None}, "au_labels": True}
    rows = data.load("table", path, label_field="context", **options)
    assert rows["context"] == [["AU1", "AU25"], ["AU12"]]
    assert [json.loads(meta)["video"] for meta in rows["meta"]] == ["talk", "talk"]
    with pytest.raises(UserError, match="au_labels makes words of the field context"):
        data.load("table", path, **options)
    columns = {"emotion": None, "context": "au_1"}
    with pytest.raises(UserError, match="needs columns of action units, and none of labels"):
        data.load("table", path, **options | {"label_field": "context", "columns": columns})
