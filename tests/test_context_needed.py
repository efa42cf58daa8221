"""What the rendered scenes are for: where the truth needs face and context, a model that is shown
one of them fails, and one that is shown both does not."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.run_files import read_metrics
from helpers.scripts import load_script


@pytest.mark.slow
@pytest.mark.parametrize("model", ["clip-caer", "vlm"])
def test_face_and_context_are_both_needed(model: str, tmp_path: Path) -> None:
    main = load_script("recipes/context_emotion.py").main
    words = ["--model", model, "--ablation", "true", "--output_dir", str(tmp_path)]
    assert main(words) == 0
    scores = {
        arm: read_metrics(tmp_path / arm)["after"]["attributes"]["context"]
        for arm in ("face", "scene", "both")
    }
    low, _ = scores["both"]["ci95"]["accuracy"]
    for alone in ("face", "scene"):
        assert scores[alone]["ci95"]["accuracy"][1] < low
    from vlmface.synth.scenes import bounds

    known = bounds()
    # No model can know more than its views tell (and 500 scenes tell that to four hundredths).
    assert scores["face"]["accuracy"] < known["face_only"] + 0.04
    assert scores["scene"]["accuracy"] < known["context_only"] + 0.04
