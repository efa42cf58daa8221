"""eval/robustness.py: every corruption at every strength is asked once and drawn."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from helpers.run_files import read_metrics

from vlmface.data import corruptions
from vlmface.errors import UserError
from vlmface.evaluate import robustness
from vlmface.infer.local import LocalModel


def test_the_curve(
    run_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    argv = [
        "--model",
        str(run_dir),
        "--n",
        "4",
        "--max_new_tokens",
        "24",
        "--output_dir",
        str(tmp_path),
        "--corruptions",
        "blur,hand",
    ]
    assert robustness.main(argv) == 0
    assert "accuracy: " in capsys.readouterr().out
    found = json.loads((tmp_path / "robustness.json").read_text())
    assert list(found["corruptions"]) == ["blur", "hand"]
    assert all(len(points) == 5 for points in found["corruptions"].values())
    points = [point for curve in found["corruptions"].values() for point in curve]
    mean = sum(point["accuracy"]["value"] for point in points) / 10
    assert found["mean"]["accuracy"] == pytest.approx(mean)
    clean = read_metrics(run_dir)["after"]
    lines = (run_dir / "predictions.jsonl").read_text().splitlines()[:4]
    right = [line["label"] == line["truth"]["emotion"] for line in map(json.loads, lines)]
    assert found["clean"]["accuracy"]["value"] == pytest.approx(sum(right) / 4) and clean
    page = (tmp_path / "robustness.html").read_text()
    assert page.count("<polyline") == 2 * 3 and page.count("<img") == 2 * 5
    assert not re.search(r"(?:src|href)=\"(?!data:)", page)

    # Another corruption later: what is known is not asked again.
    asked: list[int] = []
    real = LocalModel.predict

    def counted(self: LocalModel, images: Any, **words: Any) -> Any:
        asked.append(len(images))
        return real(self, images, **words)

    monkeypatch.setattr(LocalModel, "predict", counted)
    assert robustness.main([*argv[:-1], "blur,hand,jpeg"]) == 0
    assert asked == [4] * 5
    with pytest.raises(UserError, match="was started with n = 4, but now n = 3"):
        robustness.main(["--model", str(run_dir), "--n", "3", *argv[4:]])


def test_what_cannot_be_measured(base: Path, run_dir: Path) -> None:
    with pytest.raises(UserError, match=f"no corruption 'fog': use some of {corruptions.NAMES[0]}"):
        robustness.main(["--model", str(run_dir), "--corruptions", "fog"])
    with pytest.raises(UserError, match="say where to with --output_dir"):
        robustness.main(["--model", str(base), "--prompt", "face_cot"])
