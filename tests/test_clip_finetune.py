"""The CLIP recipes through their real main(): resumed = uninterrupted, cached = uncached, a run is
answered, evaluated, shown and exported like any other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.run_files import read_metrics
from helpers.scripts import load_script, to_argv

from vlmface import data, label_texts, manifest
from vlmface.cli import main as vlmface
from vlmface.clip import model
from vlmface.errors import UserError
from vlmface.evaluate import answering
from vlmface.evaluate.run import main as evaluate
from vlmface.infer import loading
from vlmface.infer.clip import WEIGHTS, ClipModel
from vlmface.infer.predictor import Predictor
from vlmface.pipelines import clip as clip_run
from vlmface.train.clip.contrastive import logistic_regression

Finetune = Callable[..., Path]


def starter(recipe: str, clip_base: Path, **fixed: object) -> Finetune:
    """A recipe's main on the small random CLIP, with other settings by name."""
    main = load_script(f"recipes/{recipe}.py").main
    shared = {"base_model": clip_base, "batch_size": 16, "logging_steps": 1, "warmup_steps": 0}

    def run(output_dir: Path, **changes: object) -> Path:
        assert main(to_argv(shared | fixed | {"output_dir": output_dir} | changes)) == 0
        return output_dir

    return run


@pytest.fixture(scope="module")
def finetune(clip_base: Path) -> Finetune:
    """recipes/clip_finetune.py on 48 rendered faces."""
    return starter("clip_finetune", clip_base, n_train=48, n_eval=24, epochs=3, save_steps=4)


@pytest.fixture(scope="module")
def done(finetune: Finetune, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finetune(tmp_path_factory.mktemp("clip") / "run")


def _weights(run_dir: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(run_dir / WEIGHTS)


def test_a_run_holds_what_it_says(done: Path, clip_base: Path) -> None:
    scores = read_metrics(done)
    assert scores["train"]["steps"] == 9 and scores["train"]["n"] == 48
    assert sum(scores["train"]["labels"].values()) == 48
    assert scores["before"]["n"] == scores["after"]["n"] == 24
    assert scores["after"]["parse"]["strict"] == 1
    found, (asked,) = manifest.load(done)
    assert found.family == manifest.CLIP and found.base_model["id"] == str(clip_base)
    assert asked.sha == label_texts.load("clip_emotion").sha
    lines = answering.read_lines(done / "predictions.jsonl")
    for line in lines:
        shares = line["probabilities"]
        assert line["text"] == line["label"] == max(shares, key=shares.get)
        assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
    page = (done / "report.html").read_text()
    assert "clip_emotion" in page and "image_tower: lora" in page


def test_the_same_command_again_changes_nothing(done: Path, finetune: Finetune) -> None:
    before = (done / "metrics.json").read_bytes()
    finetune(done)
    assert (done / "metrics.json").read_bytes() == before


@pytest.mark.parametrize("augment", ["none", "face"])
def test_resumed_is_uninterrupted(augment: str, finetune: Finetune, tmp_path: Path) -> None:
    whole = finetune(tmp_path / "whole", augment=augment)
    broken = tmp_path / "broken"
    shutil.copytree(whole, broken)
    # As if killed after the second checkpoint of three.
    for name in ("report.html", "metrics.json", "predictions.jsonl", WEIGHTS, manifest.FILENAME):
        (broken / name).unlink()
    folders = sorted((broken / "checkpoints").iterdir(), key=lambda f: int(f.name.split("-")[1]))
    assert [folder.name for folder in folders] == ["checkpoint-8", "checkpoint-9"]
    (folders[1] / "complete").unlink()
    finetune(broken, augment=augment)
    ours, theirs = _weights(broken), _weights(whole)
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    logs = [
        [(line["step"], line["loss"]) for line in map(json.loads, log.read_text().splitlines())]
        for log in (broken / "log.jsonl", whole / "log.jsonl")
    ]
    assert logs[0] == logs[1]


def test_cached_features_are_uncached_ones(
    finetune: Finetune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = {"image_tower": "frozen", "text_tower": "frozen", "head": "linear", "augment": "none"}
    cached = finetune(tmp_path / "cached", **words)
    from vlmface.train.clip import trainer as clip_train

    # Half of nothing is mirrored: the tower is asked anew at each step, for the same pictures.
    monkeypatch.setattr(clip_train.augment, "augment_squares", lambda squares, kind: squares)
    uncached = finetune(tmp_path / "uncached", **(words | {"augment": "flip"}))
    ours, theirs = _weights(cached), _weights(uncached)
    assert set(ours) == {"linear.weight", "linear.bias"}
    for name in ours:
        assert torch.allclose(ours[name], theirs[name], atol=1e-4)


def test_a_run_answers_as_it_did_when_it_was_trained(done: Path) -> None:
    lines = answering.read_lines(done / "predictions.jsonl")
    rows = data.load("synth", split="test", n=24)
    for merge in (True, False):
        clip = ClipModel.load(done, merge=merge)
        for batch_size in (24, 1):
            found = clip.predict(list(rows["image"]), batch_size=batch_size, preprocessed=True)
            for one, line in zip(found, lines, strict=True):
                assert one.answer.label == line["label"]
                for label, share in line["probabilities"].items():
                    assert one.probabilities is not None
                    assert one.probabilities[label] == pytest.approx(share, abs=1e-5)


def test_evaluated_later_it_scores_the_same(done: Path, tmp_path: Path) -> None:
    out = tmp_path / "eval"
    words = ["--benchmark", "synth", "--model", str(done), "--n", "24", "--output_dir", str(out)]
    assert evaluate([*words, "--scoring", "both"]) == 0
    scores = read_metrics(out)
    after = read_metrics(done)["after"]
    for name in ("accuracy", "uar", "f1_macro"):
        assert scores["emotion"][name] == after["emotion"][name]
    readings = scores["emotion"]["readings"]
    assert readings and (out / "report.html").exists()


def test_zero_shot_is_an_evaluation_too(clip_base: Path, tmp_path: Path) -> None:
    words = ["--benchmark", "synth", "--model", str(clip_base), "--n", "8"]
    assert evaluate([*words, "--prompt", "clip_signs", "--output_dir", str(tmp_path / "x")]) == 0
    assert json.loads((tmp_path / "x/metrics.json").read_text())["prompt"]["id"] == "clip_signs"
    with pytest.raises(UserError, match="label texts"):
        evaluate([*words, "--output_dir", str(tmp_path / "y")])
    with pytest.raises(UserError, match="benchmark synth scores"):
        evaluate([*words, "--prompt", "clip_raer", "--output_dir", str(tmp_path / "z")])


def test_the_predictor_takes_it(done: Path) -> None:
    image = data.load("synth", split="test", n=1)[0]["image"]
    with Predictor.load(done) as predictor:
        (report,) = predictor.predict([image])
        streamed = list(predictor.stream(image))
    assert report.emotion == streamed[0] == streamed[-1].emotion  # type: ignore[union-attr]
    assert report.status == "strict" and report.probabilities is not None
    assert report.limitations and "rendered faces" in report.limitations


@pytest.fixture(scope="module")
def clips_run(finetune: Finetune, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is shown four frames of each row: of synth's, four times the one picture."""
    folder = tmp_path_factory.mktemp("clip") / "clips"
    words = {
        "image_tower": "frozen",
        "text_tower": "frozen",
        "temporal": "transformer",
        "num_frames": 4,
    }
    return finetune(folder, augment="none", n_eval=8, epochs=1, **words)


def test_the_predictor_takes_clips(clips_run: Path) -> None:
    rows = data.load("synth", split="test", n=8)
    frames = list(rows["image"])
    with Predictor.load(clips_run) as predictor:
        still, repeated, moving, long = predictor.predict(
            [frames[0], [frames[0]] * 3, frames[:4], [f for f in frames[:4] for _ in range(5)]]
        )
        assert still.probabilities == pytest.approx(repeated.probabilities, abs=1e-6)
        assert moving.probabilities == pytest.approx(long.probabilities, abs=1e-6)
        assert still.probabilities != pytest.approx(moving.probabilities, abs=1e-6)
        with pytest.raises(UserError, match="clip without frames"):
            predictor.predict([[]])


def test_a_video_is_answered_by_the_command(
    clips_run: Path, done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from helpers.videos import write

    path = tmp_path / "clip.mp4"
    write(path, 20, size=(96, 96))
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    for run_dir in (clips_run, done):  # of one frame: the middle one
        words = ["predict", str(path), str(broken), "--model", str(run_dir), "--json"]
        words += ["--faces", "none"]  # the video shows none
        assert vlmface(words) == 2
        out, err = capsys.readouterr()
        (line,) = [json.loads(text) for text in out.splitlines()]
        assert line["answers"]["emotion"]["label"] and "broken.mp4" in err


@pytest.mark.parametrize(
    "changes",
    [
        {"text_tower": "prompts", "image_tower": "frozen"},
        {
            "image_tower": "full",
            "layer_decay": 0.7,
            "optimizer": "sgd",
            "learning_rate": 0.01,
            "lr_scheduler": "steps",
            "milestones": "1",
            "epochs": 2,
        },
        {"head": "linear", "margins": "ldam", "label_weight_power": 0.5},
        {"affect": "graph", "label_smoothing": 0.0},
        {"prompt": "clip_signs_contrast", "negative_weight": 0.3, "text_tower": "frozen"},
    ],
    ids=str,
)
def test_every_way_of_training_comes_back(
    changes: dict[str, object], finetune: Finetune, tmp_path: Path
) -> None:
    run_dir = finetune(tmp_path / "run", **{"n_eval": 8, "epochs": 1, **changes})
    lines = answering.read_lines(run_dir / "predictions.jsonl")
    rows = data.load("synth", split="test", n=8)
    again = loading.load(run_dir).predict(list(rows["image"]), preprocessed=True)
    assert [one.answer.label for one in again] == [line["label"] for line in lines]
    if "affect" in changes:
        assert all(-1 <= line["affect"]["valence"] <= 1 for line in lines)


def test_several_labels_are_learnt_and_ranked(finetune: Finetune, tmp_path: Path) -> None:
    """EMOTIC's people, each by its box: learnt by heart."""
    from miniatures import emotic

    emotic.write(tmp_path / "data")
    (tmp_path / "seen.yaml").write_text(
        "{id: seen, dataset: emotic, split: train, label_space: emotic26, source: test}"
    )
    run_dir = finetune(
        tmp_path / "run",
        dataset="emotic",
        dataset_root=tmp_path / "data",
        prompt="clip_emotic",
        benchmark=tmp_path / "seen.yaml",
        views="[{size: 32, margin: 0.0}]",
        n_train="null",
        n_eval="null",
        epochs=300,
        batch_size=3,
        learning_rate=0.1,
        label_smoothing=0.0,
        augment="none",
        save_steps=500,
        image_tower="frozen",
        text_tower="frozen",
        head="linear",
    )
    scores = read_metrics(run_dir)
    assert scores["after"]["labels"]["map"] > scores["before"]["labels"]["map"]
    lines = answering.read_lines(run_dir / "predictions.jsonl")
    # The second and the third person are in one picture of a single colour.
    assert set(lines[0]["labels"]) == set(lines[0]["truth"]["labels"])
    for line in lines:
        likely = {label for label, share in line["probabilities"].items() if share > 0.5}
        best = max(line["probabilities"], key=line["probabilities"].get)
        assert set(line["labels"]) == likely | {best}


def test_wise_alpha_is_chosen_on_held_out_people(finetune: Finetune, tmp_path: Path) -> None:
    run_dir = finetune(tmp_path / "run", n_eval=8, validation_share=0.3, wise_ft_alpha="auto")
    found = read_metrics(run_dir)["train"]
    assert found["n"] < 48
    best = max(found["wise"]["uar"].values())
    assert found["wise"]["uar"][f"{found['wise']['alpha']:g}"] == best
    base_only = finetune(tmp_path / "zero", n_eval=8, wise_ft_alpha=0.0)
    before, after = (
        answering.read_lines(base_only / name)
        for name in ("predictions_before.jsonl", "predictions.jsonl")
    )
    for one, other in zip(before, after, strict=True):
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-6)


def test_an_exported_run_is_a_clip_of_open_clip(done: Path, tmp_path: Path) -> None:
    out = tmp_path / "towers"
    assert vlmface(["merge", str(done), str(out)]) == 0
    plain = ClipModel.load(out, prompt="clip_emotion")
    with pytest.raises(UserError, match="exists"):
        clip_run.export(done, out)
    rows = list(data.load("synth", split="test", n=6)["image"])
    for one, other in zip(plain.predict(rows), ClipModel.load(done).predict(rows), strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)


def test_what_does_not_fit_is_refused(done: Path, finetune: Finetune, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="rationales"):
        ClipModel.load(done).score([], ["because"])
    with pytest.raises(UserError, match="takes 1 view"):
        ClipModel.load(done).predict([[None, None]], preprocessed=True)
    with pytest.raises(UserError, match="was trained with prompt clip_emotion"):
        ClipModel.load(done, prompt="face_cot")
    prompts_run = finetune(
        tmp_path / "p", text_tower="prompts", image_tower="frozen", n_eval=8, epochs=1
    )
    with pytest.raises(UserError, match="text_tower: prompts"):
        clip_run.export(prompts_run, tmp_path / "out")
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in done.iterdir():
        if file.is_file():
            (broken / file.name).write_bytes(file.read_bytes())
    (broken / "prompts").mkdir()
    prompt = done / "prompts/clip_emotion.yaml"
    (broken / "prompts/clip_emotion.yaml").write_text(prompt.read_text().replace("photo", "view"))
    with pytest.raises(UserError, match="prompt clip_emotion"):
        ClipModel.load(broken)
    (broken / "prompts/clip_emotion.yaml").write_text(prompt.read_text())
    (broken / WEIGHTS).write_bytes(b"")
    with pytest.raises(UserError, match=r"trained\.safetensors is e3b0.*, but the model was"):
        ClipModel.load(broken)


# --- captions -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def captions(clip_base: Path) -> Finetune:
    """recipes/clip_captions.py on 32 rendered faces."""
    fixed = {"n_train": 32, "n_probe": 40, "epochs": 2, "save_steps": 1, "dataset_options": "{}"}
    return starter("clip_captions", clip_base, **fixed)


@pytest.mark.parametrize("policy", ["full", "lora"])
def test_captions_train_both_towers_and_resume(
    policy: str, captions: Finetune, clip_base: Path, tmp_path: Path
) -> None:
    whole = captions(tmp_path / "whole", image_tower=policy, text_tower=policy)
    scores = read_metrics(whole)
    assert scores["train"]["steps"] == 4 and scores["train"]["captions"] > 32
    assert set(scores["probes"]["after"]) == {"gender", "age_group", "race", "emotion", "au"}
    ours = model.load_clip(whole).model.state_dict()
    base = model.load_clip(clip_base).model.state_dict()
    assert set(ours) == set(base)
    for tower in ("visual.", "transformer."):
        changed = [n for n in ours if n.startswith(tower) and not torch.equal(ours[n], base[n])]
        assert changed
    broken = tmp_path / "broken"  # the same run, stopped after its third step
    shutil.copytree(whole, broken)
    for name in ("metrics.json", model.WEIGHTS, model.CONFIG, "checkpoints/checkpoint-4/complete"):
        (broken / name).unlink()
    captions(broken, image_tower=policy, text_tower=policy)
    again = model.load_clip(broken).model.state_dict()
    assert all(torch.equal(again[name], ours[name]) for name in ours)


def test_the_probe_is_logistic_regression() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 5)) * [1, 2, 3, 4, 5]
    y = (x @ rng.normal(size=(5, 3)) + rng.normal(size=(120, 3))).argmax(1)
    features = torch.tensor(x)
    labels = torch.nn.functional.one_hot(torch.tensor(y))
    ours = logistic_regression(features, labels, features, penalty=0.01)
    # sklearn scales features with 1/n, we with 1/(n - 1); its C is that of the summed loss.
    scaled = StandardScaler().fit_transform(x) * np.sqrt(119 / 120)
    theirs = LogisticRegression(C=1 / (0.01 * 120), tol=1e-8, max_iter=5000).fit(scaled, y)
    assert np.allclose(ours.softmax(-1), theirs.predict_proba(scaled), atol=1e-3)
