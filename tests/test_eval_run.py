"""eval/run.py: the numbers of a run from its manifest alone, and refusals."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from samples import ROOT, samples

from vlmface import facs, manifest, prompts
from vlmface.errors import UserError
from vlmface.evaluate import run as evaluation


def test_a_later_evaluation_gives_the_numbers_of_the_recipe(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--benchmark", "synth", "--model", str(run_dir), "--n", "8"]
    assert evaluation.main([*argv, "--output_dir", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "metrics.json").read_text())
    expected = json.loads((run_dir / "metrics.json").read_text())["after"]
    for name in ("wall_s", "peak_rss_gib"):
        found.pop(name), expected.pop(name)
    assert found == expected
    ours = evaluation.read_lines(tmp_path / "predictions.jsonl")
    theirs = evaluation.read_lines(run_dir / "predictions.jsonl")
    assert [line["text"] for line in ours] == [line["text"] for line in theirs]
    assert "<html" in (tmp_path / "report.html").read_text()
    assert evaluation.summary(expected) in capsys.readouterr().out


def test_a_base_model_can_be_evaluated(base: Path, run_dir: Path, tmp_path: Path) -> None:
    argv = ["--benchmark", "synth", "--model", str(base), "--prompt", "face_cot", "--n", "8"]
    with pytest.raises(UserError, match="say where to with --output_dir"):
        evaluation.main(argv)
    evaluation.main([*argv, "--output_dir", str(tmp_path), "--max_new_tokens", "24"])
    found = evaluation.read_lines(tmp_path / "predictions.jsonl")
    before = evaluation.read_lines(run_dir / "predictions_before.jsonl")
    assert [line["text"] for line in found] == [line["text"] for line in before]


def test_a_run_whose_base_is_gone_or_whose_prompt_changed(
    base: Path, run_dir: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run_dir, copy, ignore=shutil.ignore_patterns("checkpoints"))
    found, _ = manifest.load(copy)
    argv = ["--benchmark", "synth", "--model", str(copy)]
    dataclasses.replace(found, base={"id": str(tmp_path / "gone"), "sha": "0"}).save(copy)
    with pytest.raises(UserError, match=r"needs its base model '.*gone', which is gone"):
        evaluation.main(argv)
    found.save(copy)
    sha = found.prompts[0]["sha"]
    with pytest.raises(UserError, match=f"trained with prompt face_cot {sha}, not with expllm"):
        evaluation.main([*argv, "--prompt", "expllm"])
    file = copy / "prompts" / "face_cot.yaml"
    file.write_text(file.read_text().replace("moved", "move"))
    with pytest.raises(UserError, match=f"prompt face_cot in prompts/ is .* trained with {sha}"):
        evaluation.main(argv)


def test_synth_scores_what_the_renderer_moves() -> None:
    assert tuple(evaluation.load_benchmark("synth").au_set) == facs.SYNTH_AUS


def test_wrong_names_and_label_spaces_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no benchmark 'snth' \(did you mean 'synth'\?\)"):
        evaluation.load_benchmark("snth")
    synth = evaluation.load_benchmark("synth")
    with pytest.raises(UserError, match="ask expllm for emotion7, but benchmark synth scores"):
        evaluation.scored_prompts(synth, [prompts.load("expllm")])
    with pytest.raises(UserError, match=r"'modle' \(did you mean 'model'\?\)"):
        evaluation.main(["--benchmark", "synth", "--modle", "x"])
    with pytest.raises(UserError, match="lacks model"):
        evaluation.main(["--benchmark", "synth"])


def test_truth_takes_null_as_not_annotated_and_the_threshold_of_the_benchmark() -> None:
    sample = samples(2)[1]  # sadness: 1, 4, 15 and a trace of 17
    synth = evaluation.load_benchmark("synth")
    found = evaluation.truth(sample, synth)
    assert found["aus"] == {"1": 2.0, "4": 3.0, "15": 2.0, "17": 1.0}
    assert found["annotated_aus"] == sorted(facs.SYNTH_AUS)
    assert found["attributes"] == {"gender": None, "age_group": None, "race": None}
    strict = dataclasses.replace(synth, au_threshold=2.0)
    assert set(evaluation.truth(sample, strict)["aus"]) == {"1", "4", "15"}
    sample.aus = None
    assert evaluation.truth(sample, synth)["aus"] is None
    assert evaluation.truth(sample, synth)["annotated_aus"] is None


def test_a_prompt_for_the_label_alone_is_not_scored_on_aus() -> None:
    synth = evaluation.load_benchmark("synth")
    label_only = dataclasses.replace(prompts.load("face_cot"), form="label")
    assert evaluation.au_set(synth, label_only) == []
    assert evaluation.au_set(synth, prompts.load("face_cot")) == synth.au_set


def test_a_baseline_lies_beside_its_protocol(tmp_path: Path) -> None:
    protocol = (ROOT / "eval/benchmarks/synth.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(protocol.replace("synth_baseline.json", "mine.json"))
    benchmark = evaluation.load_benchmark(str(tmp_path / "mine.yaml"))
    with pytest.raises(UserError, match=r"cannot read its baseline .*mine\.json"):
        evaluation.load_baseline(benchmark)
    (tmp_path / "mine.json").write_text('{"name": "a plain model"}')
    assert evaluation.load_baseline(benchmark) == {"name": "a plain model"}
    shipped = evaluation.load_baseline(evaluation.load_benchmark("synth"))
    assert shipped is not None and 0 < shipped["emotion"]["accuracy"] < 1
