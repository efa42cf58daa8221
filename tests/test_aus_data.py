"""Estimated action units next to a data set, in rationales, and as a row of an evaluation."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import yaml

from vlmface import data
from vlmface.aus import model as aus_model
from vlmface.aus.estimator import Estimator
from vlmface.cli import main
from vlmface.data import detect, estimates
from vlmface.errors import UserError
from vlmface.rationale import ground_truth
from vlmface.schema import FaceSample
from vlmface.synth import dataset as synth

needs_detector = pytest.mark.skipif(
    detect.unavailable_reason() is not None, reason="vlmface[detect] is missing"
)
N = 6


@pytest.fixture
def faces_yaml(tmp_path: Path) -> Path:
    """Rendered faces with labels and without action units, as a user's own data set."""
    (tmp_path / "img").mkdir()
    with (tmp_path / "faces.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("file", "emotion", "person"))
        for index in range(N):
            row = synth.make_row(0, "validation", index, 160)
            (tmp_path / f"img/{index}.jpg").write_bytes(row["image"]["bytes"])
            rows.writerow((f"img/{index}.jpg", row["emotion"], f"p{index}"))
    content = {
        "dataset": "table",
        "root": "faces.csv",
        "options": {"columns": {"image": "file", "label": "emotion", "subject": "person"}},
    }
    path = tmp_path / "faces.yaml"
    path.write_text("# my faces\n" + yaml.safe_dump(content))
    return path


def estimates_of(rows) -> list[dict | None]:
    return [json.loads(meta).get(estimates.FIELD) for meta in rows["meta"]]


@needs_detector
def test_estimates_stand_beside_the_data_and_are_not_annotations(faces_yaml, monkeypatch, capsys):
    assert main(["data", "add-aus", str(faces_yaml)]) == 0
    assert "not annotations" in capsys.readouterr().out
    text = faces_yaml.read_text()
    assert text.startswith("# my faces\n") and "estimated_aus: " in text
    rows = data.load(str(faces_yaml))
    assert rows["aus"][:] == [None] * N
    estimates = [estimate for estimate in estimates_of(rows) if estimate]
    assert len(estimates) >= N - 1
    assert all(e["sha256"] == aus_model.SHA256 and e["aus"] and e["confidence"] for e in estimates)
    before = faces_yaml.with_name("faces.aus.jsonl").read_text()

    with monkeypatch.context() as patched:
        patched.setattr(Estimator, "largest", lambda *_, **__: pytest.fail("measured again"))
        assert main(["data", "add-aus", str(faces_yaml)]) == 0
    assert f"{N} of them earlier" in capsys.readouterr().out
    assert faces_yaml.with_name("faces.aus.jsonl").read_text() == before
    assert faces_yaml.read_text() == text

    (faces_yaml.parent / "img/0.jpg").write_bytes((faces_yaml.parent / "img/1.jpg").read_bytes())
    assert main(["data", "add-aus", str(faces_yaml)]) == 0
    assert f"{N - 1} of them earlier" in capsys.readouterr().out


@needs_detector
def test_estimates_of_another_model_are_replaced_on_demand(faces_yaml, capsys):
    path = faces_yaml.with_name("faces.aus.jsonl")
    header = {"id": "", "estimator": "other-1", "sha256": "00"}
    path.write_text(json.dumps(header) + "\n")
    assert main(["data", "add-aus", str(faces_yaml)]) == 2
    assert "other-1" in capsys.readouterr().err
    assert main(["data", "add-aus", str(faces_yaml), "--overwrite"]) == 0
    assert estimates.read(path)[0]["sha256"] == aus_model.SHA256


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        '{"id": 3}',
        '{"id": "a", "aus": {"12": 9}}',
        '{"id": "a", "aus": {"12": NaN}}',
        '{"id": "a", "aus": {"999": 1}}',
        '{"id": "a", "aus": [12]}',
        "{",
    ],
)
def test_a_file_of_estimates_from_outside_is_checked(tmp_path, line):
    path = tmp_path / "x.aus.jsonl"
    path.write_text(f'{{"id": "", "estimator": "e", "sha256": "0"}}\n{line}\n')
    with pytest.raises(UserError, match="line 2 is not an estimate"):
        estimates.read(path)
    path.write_text('{"id": "a", "aus": null}\n')
    with pytest.raises(UserError, match="does not name its estimator"):
        estimates.read(path)
    with pytest.raises(UserError, match="cannot be read"):
        estimates.read(tmp_path / "missing")


def test_only_the_yaml_file_of_a_data_set_gets_estimates(capsys):
    assert main(["data", "add-aus", "rafdb"]) == 2
    assert "YAML file" in capsys.readouterr().err


@needs_detector
def test_rationales_from_landmarks(faces_yaml, tmp_path, monkeypatch):
    build = ["rationale", "build", "--dataset", str(faces_yaml), "--aus", "landmarks"]
    assert main([*build, "--output-dir", str(tmp_path / "measured")]) == 0
    assert main(["data", "add-aus", str(faces_yaml)]) == 0
    with monkeypatch.context() as patched:
        patched.setattr(Estimator, "largest", lambda *_, **__: None)
        assert main([*build, "--output-dir", str(tmp_path / "stored")]) == 0
    texts = []
    for name in ("measured", "stored"):
        rows = data.load("rationales", None, "train", folder=str(tmp_path / name))
        assert rows["aus"][:] == [None] * len(rows)
        notes = [json.loads(meta)["rationale"] for meta in rows["meta"]]
        assert {note["aus"] for note in notes} == {"landmarks"}
        texts.append(rows["rationale"][:])
    assert texts[0] == texts[1]


@needs_detector
def test_unsure_units_are_neither_named_nor_denied():
    estimator = ground_truth.load_estimator("landmarks")
    assert isinstance(estimator, ground_truth.LandmarkEstimator)
    estimate = {
        "aus": {"12": 3.0, "4": 0.0, "9": 2.0},
        "confidence": {"12": 0.9, "4": 0.8, "9": 0.5},
    }
    sample = FaceSample("a", "b", meta={estimates.FIELD: estimate | {"sha256": estimator.sha256}})
    with estimator:
        assert estimator.stored(sample) == {12: 3.0, 4: 0.0}
        sample.meta[estimates.FIELD]["sha256"] = "other"
        assert estimator.stored(sample) is None
        assert estimator.stored(FaceSample("a", "b")) is None


@needs_detector
def test_the_estimator_alone_is_a_row_of_comparisons(tmp_path, capsys):
    out = tmp_path / "alone"
    words = ["eval", "landmarks", "--benchmark", "synth", "--n", "24", "--output_dir", str(out)]
    assert main(words) == 0
    scores = json.loads((out / "metrics.json").read_text())
    assert scores["n"] == 24 and scores["model"].startswith("landmarks-")
    assert scores["au"]["f1_macro"] > 0.5
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert all(line["status"] in ("strict", "none") for line in lines)
    assert main(["compare", str(out), f"again={out}", "--output-dir", str(tmp_path / "c")]) == 0
    assert "landmarks" in capsys.readouterr().out or (tmp_path / "c").exists()
    assert main(["eval", "landmarks", "--benchmark", "utkface", "--n", "2"]) == 2
    assert "not evidence" in capsys.readouterr().err
