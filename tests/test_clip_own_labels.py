"""A CLIP on own labels: texts for any label space, and a data set's file from `data init` to an
evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import own_labels
import pytest
import yaml

from vlmface import label_spaces, label_texts, manifest
from vlmface.cli import main
from vlmface.errors import UserError


def space_of(**content: object) -> label_spaces.LabelSpace:
    values = {"id": "own", "field": "context", "source": "s", **content}
    return label_spaces.from_mapping(values, "the test")


def test_texts_of_any_label_space() -> None:
    texts = label_texts.generate(space_of(labels=["Abgewandt", "zugewandt"]))
    assert texts.positive["Abgewandt"][0] == "a photo of a person: abgewandt."
    assert all(len(filled) > 1 for filled in texts.positive.values())
    emotions = label_texts.generate(label_spaces.space("emotion8"))
    assert emotions.label_space == "emotion8"
    assert emotions.positive == label_texts.load("clip_emotion").positive
    units = label_texts.generate(space_of(labels=["no action unit", "AU12"], multi_label=True))
    assert units.multi_label and "the lip corners" in units.positive["AU12"][0]
    merged = label_texts.generate(space_of(field="emotion", labels=["anger", "other"], aliases={}))
    assert merged.positive["anger"][0].endswith("looks angry.")


@pytest.mark.parametrize("id", sorted(label_spaces.SPACES))
def test_every_built_in_space_has_different_texts_for_its_labels(id: str) -> None:
    positive = label_texts.generate(label_spaces.space(id)).positive
    assert len({tuple(texts) for texts in positive.values()}) == len(positive)


def test_texts_are_read_back_from_a_run(tmp_path: Path) -> None:
    texts = label_texts.generate(space_of(labels=["a{b}", "c"]))
    path = tmp_path / "texts.yaml"
    path.write_text(yaml.safe_dump(texts.to_mapping(), allow_unicode=True))
    assert label_texts.read(path, trusted=False).sha == texts.sha


def test_texts_about_another_label_space_are_refused() -> None:
    with pytest.raises(UserError, match="written for a label space: name one"):
        label_texts.load("label")
    with pytest.raises(UserError, match="clip_emotion are about emotion8, and not about gender"):
        label_texts.load("clip_emotion", label_spaces.space("gender"))


def test_from_a_table_to_an_evaluation(
    clip_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    study = tmp_path / "study"
    study.mkdir()
    own_labels.write(study, 40, people=12)
    assert main(["data", "init", "study/faces.csv"]) == 0
    printed = capsys.readouterr().out
    (command,) = [line for line in printed.splitlines() if "clip_finetune" in line]
    words = command.partition("vlmface ")[2].split()
    small = {"base_model": str(clip_base), "epochs": 2, "batch_size": 8, "logging_steps": 1}
    small |= {"eval_steps": 2, "metric_for_best_model": "uar", "warmup_steps": 0, "save_steps": 2}
    for name, value in small.items():
        words += [f"--{name}", str(value)]
    assert main(words) == 0
    run = Path("runs/faces_clip")
    _, (texts,) = manifest.load(run)
    assert set(texts.space.labels) == {"approach", "neutral", "withdraw"}
    assert json.loads((run / "metrics.json").read_text())["train"]["best"]["metric"] == "uar"
    for model, more in ((str(run), []), (str(clip_base), ["--output_dir", "runs/base"])):
        assert (
            main(["eval", "run", "--benchmark", "study/faces.yaml", "--model", model, *more]) == 0
        )
    assert json.loads(Path("runs/base/metrics.json").read_text())["attributes"]["context"]["n"] > 0
