"""eval/run.py: the numbers of a run from its manifest alone, and refusals."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.run_files import assert_same_scores, read_metrics
from helpers.samples import samples
from helpers.scripts import ROOT

from vlmface import benchmarks, facs, manifest, prompts
from vlmface.data.row_images import open_row_image
from vlmface.errors import UserError
from vlmface.evaluate import answering
from vlmface.evaluate import run as evaluation
from vlmface.infer.local import LocalModel


def test_a_later_evaluation_gives_the_numbers_of_the_recipe(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--benchmark", "synth", "--model", str(run_dir), "--n", "8"]
    assert evaluation.main([*argv, "--output_dir", str(tmp_path)]) == 0
    assert_same_scores(tmp_path, run_dir)
    assert "<html" in (tmp_path / "report.html").read_text()
    assert evaluation.one_line_summary(read_metrics(run_dir)["after"]) in capsys.readouterr().out


def test_a_base_model_can_be_evaluated(
    base: Path, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["--benchmark", "synth", "--model", str(base), "--prompt", "face_cot", "--n", "8"]
    monkeypatch.chdir(tmp_path)
    evaluation.main([*argv, "--max_new_tokens", "24"])
    found = answering.read_lines(tmp_path / f"runs/eval_synth_{base.name}/predictions.jsonl")
    before = answering.read_lines(run_dir / "predictions_before.jsonl")
    assert [line["text"] for line in found] == [line["text"] for line in before]


def test_a_run_whose_base_is_gone_or_whose_prompt_changed(
    base: Path, run_dir: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run_dir, copy, ignore=shutil.ignore_patterns("checkpoints"))
    found, _ = manifest.load(copy)
    argv = ["--benchmark", "synth", "--model", str(copy)]
    dataclasses.replace(found, base_model={"id": str(tmp_path / "gone"), "sha": "0" * 12}).save(
        copy
    )
    with pytest.raises(UserError, match=r"needs its base model '.*gone', which is missing"):
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
    assert tuple(benchmarks.load_benchmark("synth").au_set) == facs.SYNTH_AUS


def test_wrong_names_and_label_spaces_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no benchmark 'snth' \(did you mean 'synth'"):
        benchmarks.load_benchmark("snth")
    synth = benchmarks.load_benchmark("synth")
    with pytest.raises(UserError, match="ask expllm for emotion7, but benchmark synth scores"):
        answering.scored_prompts(synth, [prompts.load("expllm")])
    with pytest.raises(UserError, match=r"'modell' \(did you mean 'model'\?\)"):
        evaluation.main(["--benchmark", "synth", "--modell", "x"])
    with pytest.raises(UserError, match="lacks model"):
        evaluation.main(["--benchmark", "synth"])


def test_truth_takes_null_as_not_annotated_and_the_threshold_of_the_benchmark() -> None:
    sample = samples(2)[1]  # sadness: 1, 4, 15 and a trace of 17
    synth = benchmarks.load_benchmark("synth")
    found = answering.ground_truth(sample, synth)
    assert found["aus"] == {"1": 2.0, "4": 3.0, "15": 2.0, "17": 1.0}
    assert found["annotated_aus"] == sorted(facs.SYNTH_AUS)
    assert found["attributes"] == {"gender": None, "age_group": None, "race": None}
    strict = dataclasses.replace(synth, au_threshold=2.0)
    assert set(answering.ground_truth(sample, strict)["aus"]) == {"1", "4", "15"}
    sample.aus = None
    assert answering.ground_truth(sample, synth)["aus"] is None
    assert answering.ground_truth(sample, synth)["annotated_aus"] is None


def test_a_prompt_for_the_label_alone_is_not_scored_on_aus() -> None:
    synth = benchmarks.load_benchmark("synth")
    label_only = dataclasses.replace(prompts.load("face_cot"), format="label")
    assert answering.au_set(synth, label_only) == []
    assert answering.au_set(synth, prompts.load("face_cot")) == synth.au_set


def test_a_baseline_lies_beside_its_protocol(tmp_path: Path) -> None:
    protocol = (ROOT / "eval/benchmarks/synth.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(protocol.replace("synth_baseline.json", "mine.json"))
    benchmark = benchmarks.load_benchmark(str(tmp_path / "mine.yaml"))
    with pytest.raises(UserError, match=r"cannot read its baseline .*mine\.json"):
        benchmarks.load_baseline(benchmark)
    (tmp_path / "mine.json").write_text('{"name": "a plain model"}')
    assert benchmarks.load_baseline(benchmark) == {"name": "a plain model"}
    shipped = benchmarks.load_baseline(benchmarks.load_benchmark("synth"))
    assert shipped is not None and 0 < shipped["emotion"]["accuracy"] < 1


# --- readings, resumption, servers ----------------------------------------------------------------


def test_three_readings(run_dir: Path, tmp_path: Path) -> None:
    argv = ["--benchmark", "synth", "--model", str(run_dir), "--n", "8"]
    both, scored = tmp_path / "both", tmp_path / "scored"
    assert evaluation.main([*argv, "--scoring", "both", "--output_dir", str(both)]) == 0
    found = read_metrics(both)
    read = found["emotion"]["readings"]
    assert set(read) == {
        "generated",
        "after_rationale",
        "likelihood",
        "likelihood_per_token",
        "likelihood_minus_prior",
    }
    assert read["generated"]["accuracy"] == found["emotion"]["accuracy"]
    assert "calibration" not in read["generated"] and read["likelihood"]["calibration"]["nll"] > 0
    lines = answering.read_lines(both / "predictions.jsonl")
    right = [
        max(line["scores"]["log_likelihood"].items(), key=lambda item: item[1])[0]
        == line["truth"]["emotion"]
        for line in lines
    ]
    assert read["likelihood"]["accuracy"] == pytest.approx(sum(right) / 8)

    assert evaluation.main([*argv, "--scoring", "likelihood", "--output_dir", str(scored)]) == 0
    alone = read_metrics(scored)
    assert alone["scoring"] == "likelihood" and "au" not in alone
    assert alone["emotion"]["accuracy"] == read["likelihood"]["accuracy"]
    assert all(not line["text"] for line in answering.read_lines(scored / "predictions.jsonl"))
    page = (scored / "report.html").read_text()
    assert "Did the model answer?" not in page
    assert "How the model is read" in (both / "report.html").read_text()
    with pytest.raises(
        UserError, match=r"scoring is 'all', but must be generate \| likelihood \| both"
    ):
        evaluation.main([*argv, "--scoring", "all"])


def test_the_table_for_data_frames(run_dir: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    argv = ["--benchmark", "synth", "--model", str(run_dir), "--n", "8", "--scoring", "both"]
    evaluation.main([*argv, "--output_dir", str(tmp_path)])
    table = pq.read_table(tmp_path / "predictions.parquet").to_pylist()
    lines = answering.read_lines(tmp_path / "predictions.jsonl")
    assert [row["text"] for row in table] == [line["text"] for line in lines]
    assert [row["true_emotion"] for row in table] == [line["truth"]["emotion"] for line in lines]
    assert table[0]["p_anger"] == lines[0]["probabilities"]["anger"]
    assert table[0]["ll_fear"] == lines[0]["scores"]["log_likelihood"]["fear"]
    assert table[0]["true_aus"] == [int(au) for au in lines[0]["truth"]["aus"]]


def test_a_stopped_evaluation_goes_on(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["--benchmark", "synth", "--model", str(run_dir), "--n", "8", "--batch_size", "2"]
    evaluation.main([*argv, "--output_dir", str(tmp_path / "whole")])
    real, asked = LocalModel.predict, []

    def counted(self: LocalModel, images: Any, **words: Any) -> Any:
        asked.append(len(images))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return real(self, images, **words)

    out = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(LocalModel, "predict", counted)
        with pytest.raises(KeyboardInterrupt):
            evaluation.main([*argv, "--output_dir", str(out)])
        assert not (out / "metrics.json").exists()
        with pytest.raises(UserError, match="with n 8 was started there, now it is 6"):
            evaluation.main(
                [
                    "--benchmark",
                    "synth",
                    "--model",
                    str(run_dir),
                    "--n",
                    "6",
                    "--output_dir",
                    str(out),
                ]
            )
        assert evaluation.main([*argv, "--output_dir", str(out)]) == 0
    assert sum(asked) - 2 == 8  # the batch that was stopped was asked for again, and nothing else
    assert not (out / evaluation.JOURNAL).exists()

    def rows(folder: Path) -> Any:
        lines = answering.read_lines(folder / "predictions.jsonl")
        return [{k: v for k, v in line.items() if k != "latency_s"} for line in lines]

    assert rows(out) == rows(tmp_path / "whole")


def test_every_benchmark_that_has_data(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--benchmark", "ALL", "--model", str(run_dir), "--n", "4"]
    with pytest.raises(UserError, match="give --output_dir"):
        evaluation.main(argv)
    (tmp_path / "data" / "rafdb").mkdir(parents=True)
    argv += ["--dataset_root", str(tmp_path / "data"), "--output_dir", str(tmp_path / "out")]
    assert evaluation.main(argv) == 0
    shown = capsys.readouterr().out
    assert "synth: emotion accuracy" in shown and "disfa8: no folder" in shown
    assert "rafdb: " in shown and (tmp_path / "out" / "synth" / "report.html").exists()


def test_ids_that_occur_twice() -> None:
    with pytest.raises(UserError, match=r"1 ids of the data set occur more than once.*'a'"):
        answering.check_ids(["a", "b", "a"])


def test_large_pictures_are_asked_together() -> None:
    from helpers.samples import rows

    data = rows(6)
    order = [i for batch in answering._batches(data, range(6), 2, pads=True) for i in batch]
    areas = [answering._area(data[i]["image"]) for i in order]
    assert sorted(order) == list(range(6)) and areas == sorted(areas)


@pytest.mark.parametrize("gpu", [False, True])
def test_rows_come_with_their_pictures_in_order(gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a GPU's model threads open the pictures of the next batch."""
    import torch
    from helpers.samples import rows

    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    data = rows(7)
    batches = [[3, 0], [5, 1], [6, 2], [4]]
    found = list(answering._batches_with_images(data, iter(batches)))
    assert [[row["id"] for row in part] for part, _ in found] == [
        [data[i]["id"] for i in batch] for batch in batches
    ]
    for part, pictures in found:
        for row, picture in zip(part, pictures, strict=True):
            assert picture.tobytes() == open_row_image(row["image"]).tobytes()
