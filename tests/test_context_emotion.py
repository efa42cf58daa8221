"""A model that is shown a face and its scene: the recipe, its evaluation, its answers to
photographs, and what the face and the scene are worth."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.fake_teacher import FakeTeacher, Reply
from helpers.run_files import read_metrics
from helpers.samples import picture
from helpers.scripts import load_script, to_argv
from miniatures import emotic, raer
from safetensors.torch import load_file

from vlmface import benchmarks, manifest
from vlmface.data import crops, row_images
from vlmface.errors import UserError
from vlmface.evaluate import answering
from vlmface.infer import Predictor
from vlmface.infer.local import LocalModel
from vlmface.metrics.shares import in_brackets
from vlmface.utils.images import as_list

Recipe = Callable[..., int]
VIEWS = "[{size: 32, margin: 0.1, view: face}, {size: 32, margin: 0.1, view: face_boxed}]"
BOX = (20.0, 10.0, 50.0, 40.0)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("RAER")
    raer.write(folder)
    path = folder / "bounding_box" / "face.json"
    boxes = json.loads(path.read_text())
    boxes["test/Distraction/007"] = {f"{i}.jpg": [5, 5, 30, 30] for i in range(12)}
    path.write_text(json.dumps(boxes))
    path = folder / "bounding_box" / "body.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"test/Neutrality/003": [2, 2, 40, 40]})
    )
    return folder


@pytest.fixture(scope="module")
def recipe(base: Path, root: Path) -> Recipe:
    """recipes/context_emotion.py's main on RAER's five small clips and the random model."""
    main = load_script("recipes/context_emotion.py").main

    def run(output_dir: Path, **words: Any) -> int:
        fixed = {
            "base_model": base,
            "output_dir": output_dir,
            "dataset": "raer",
            "dataset_root": root,
            "dataset_options": "{num_frames: 4}",
            "benchmark": "raer",
            "views": VIEWS,
            "epochs": 2,
            "batch_size": 2,
            "learning_rate": 3e-3,
            "warmup_steps": 0,
            "logging_steps": 1,
            "save_steps": 2,
        }
        argv = to_argv(fixed | words)
        return main(argv)

    return run


@pytest.fixture(scope="module")
def run_dir(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("context") / "run"
    with pytest.warns(UserWarning, match="no face boxed in 4 of 5 pictures"):
        assert recipe(folder) == 0
    return folder


# --- the run --------------------------------------------------------------------------------------


def test_what_a_run_leaves_behind(run_dir: Path) -> None:
    found, (prompt,) = manifest.load(run_dir)
    assert found.recipe == "context_emotion" and found.num_frames == 1
    assert crops.parse_views(found.views) == crops.parse_views(
        [{"size": 32, "margin": 0.1}, {"size": 32, "margin": 0.1, "view": "face_boxed"}]
    )
    assert prompt.id == "context_both_masked" and prompt.images == 2
    scores = read_metrics(run_dir)
    assert scores["after"]["scoring"] == "likelihood" and scores["train"]["n"] == 5
    assert scores["after"]["attributes"]["context"]["n"] == 2
    lines = answering.read_lines(run_dir / "predictions.jsonl")
    assert [line["face_found"] for line in lines] == [True, False]
    assert all(set(line["scores"]["log_likelihood"]) == set(prompt.space.labels) for line in lines)
    assert (run_dir / "report.html").exists()


def test_a_later_evaluation_gives_the_same_numbers(
    run_dir: Path, root: Path, tmp_path: Path
) -> None:
    evaluate = load_script("eval/run.py").main
    words = ["--benchmark", "raer", "--model", str(run_dir), "--dataset_root", str(root)]
    assert evaluate([*words, "--scoring", "both", "--output_dir", str(tmp_path)]) == 0
    own = answering.read_lines(run_dir / "predictions.jsonl")
    again = answering.read_lines(tmp_path / "predictions.jsonl")
    for line, other in zip(own, again, strict=True):
        for name in ("log_likelihood", "prior"):
            assert line["scores"][name] == pytest.approx(other["scores"][name], abs=1e-4)
        assert other["text"] or other["status"] == "none"


def test_a_journal_of_the_run_is_read_again_and_other_settings_are_refused(
    recipe: Recipe, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert recipe(run_dir) == 0
    assert "is complete" in capsys.readouterr().out
    with pytest.raises(UserError, match="was started with seed = 0, but now seed = 5"):
        recipe(run_dir, seed=5)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def test_cached_features_and_pixels_train_the_same(recipe: Recipe, tmp_path: Path) -> None:
    for name, cached in (("cached", "true"), ("pixels", "false")):
        assert recipe(tmp_path / name, language_model="lora", cache_features=cached) == 0
    ours, theirs = weights(tmp_path / "cached"), weights(tmp_path / "pixels")
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-5) for name in theirs)
    both = weights(tmp_path / "cached")
    assert (
        recipe(
            tmp_path / "face",
            language_model="lora",
            prompt="context_face",
            views="[{size: 32, margin: 0.1}]",
        )
        == 0
    )
    one = weights(tmp_path / "face")
    assert any(not torch.allclose(one[name], both[name]) for name in both)  # the scene is seen


def test_frames_of_one_view(recipe: Recipe, tmp_path: Path, root: Path) -> None:
    assert recipe(tmp_path, views="[{size: 32, margin: 0.1}]", num_frames=2, epochs=1) == 0
    found, _ = manifest.load(tmp_path)
    assert found.num_frames == 2 and len(found.views or ()) == 1
    rows = benchmarks.load_rows(
        benchmarks.load_benchmark("raer"), str(root), None, crops.parse_views(found.views), 2
    )
    model = LocalModel.load(tmp_path)
    shown = [row_images.open_images(row) for row in rows]
    expected = answering.read_lines(tmp_path / "predictions.jsonl")
    for line, scores in zip(expected, model.score(shown, preprocessed=True), strict=True):
        assert line["scores"]["log_likelihood"] == pytest.approx(scores.log_likelihood, abs=1e-4)
    still = as_list(shown[0])[0]
    whole = crops.render_view(still, None, model.views[0])
    (stands,), (twice,) = model.score([still]), model.score([[whole, whole]])
    assert stands.log_likelihood == twice.log_likelihood  # a photograph: a clip that stands still


def test_what_cannot_be_asked(recipe: Recipe, tmp_path: Path) -> None:
    cases = {
        r"context_both_masked is about 2 picture\(s\), but 1 would be shown": {
            "views": "[{size: 32}]"
        },
        r"context_face is about 1 picture\(s\), but 2 would be shown": {"prompt": "context_face"},
        r"context_emotion_both asks for emotion .* cannot ask for raer5": {
            "prompt": "context_emotion_both",
            "label_space": "raer5",
        },
        "an ablation has one prompt": {
            "ablation": "true",
            "prompt": "context_both,context_both_masked",
        },
        "model is 'clap': use one of vlm": {"model": "clap"},
        r"run scene has 0 view\(s\)": {"ablation": "true", "views": "[{size: 32}]"},
        r"run face has 1 view\(s\) and prompt None": {
            "ablation": "true",
            "single_view_prompts": "{scene: x}",
        },
    }
    for number, (said, words) in enumerate(cases.items()):
        with pytest.raises(UserError, match=said):
            recipe(tmp_path / f"run{number}", **words)


def test_other_recipes_and_sweeps_refuse_views_that_do_not_fit(
    sft_cot: Any, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"face_cot is about 1 picture\(s\), but 2 would be shown"):
        sft_cot(tmp_path / "run", "--views", VIEWS)
    sweep = load_script("eval/sweep.py").main
    with pytest.raises(UserError, match=r"context_both is about 2 .*1 would be shown"):
        sweep(
            [
                "--models",
                "vlmface-tiny",
                "--prompts",
                "context_face,context_both",
                "--benchmarks",
                "raer",
                "--output_dir",
                str(tmp_path),
            ]
        )


# --- the ablation ---------------------------------------------------------------------------------


def test_face_context_and_both(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert recipe(tmp_path, ablation="true", epochs=1) == 0
    shows = {}
    for arm, prompt in (
        ("face", "context_face"),
        ("scene", "context_masked"),
        ("both", "context_both_masked"),
    ):
        found, (asked,) = manifest.load(tmp_path / arm)
        assert asked.id == prompt and found.seed == 0
        shows[arm] = [view.view for view in crops.parse_views(found.views)]
        prints = found.dataset["fingerprint"], found.dataset["n"]
        assert prints == (manifest.load(tmp_path / "face")[0].dataset["fingerprint"], 5)
    assert shows == {"face": ["face"], "scene": ["face_boxed"], "both": ["face", "face_boxed"]}
    result = json.loads((tmp_path / "ablation.json").read_text())
    assert [run["name"] for run in result["runs"]] == ["face only", "context only", "both"]
    assert [(p["second"], p["first"]) for p in result["pairs"]] == [
        ("context only", "face only"),
        ("both", "face only"),
        ("both", "context only"),
    ]
    block = result["runs"][2]["scores"]["attributes"]["context"]
    interval = in_brackets(block["ci95"].get("accuracy"), ".1f", scale=100)
    table = (tmp_path / "ablation.md").read_text()
    expected = f"{100 * block['accuracy']:.1f}{interval}"
    assert f"| both | {expected} |" in table and "| both − face only |" in table
    assert table in capsys.readouterr().out
    assert "What it takes" in (tmp_path / "ablation.html").read_text()
    assert recipe(tmp_path, ablation="true", epochs=1) == 0  # everything is there already


def test_person_context_and_both_with_several_labels(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    emotic.write(tmp_path / "data")
    words = {
        "config": "context_vlm_emotic",
        "base_model": base,
        "dataset_root": tmp_path / "data",
        "output_dir": tmp_path / "run",
        "ablation": "true",
        "epochs": 1,
        "batch_size": 2,
        "gradient_accumulation": 1,
        "max_pixels": "null",
        "max_new_tokens": 8,
        "save_steps": 10,
        "logging_steps": 10,
        "gradient_checkpointing": "false",
        "dataloader_workers": 0,
        "views": "[{size: 32, view: person}, {size: 32, view: face_boxed}]",
    }
    main = load_script("recipes/context_emotion.py").main
    assert main(to_argv(words)) == 0
    asked = {arm: manifest.load(tmp_path / "run" / arm)[1][0] for arm in ("face", "scene", "both")}
    assert [one.id for one in asked.values()] == ["emotic_person", "emotic_scene", "emotic_both"]
    assert all(one.format == "labels" for one in asked.values())
    table = (tmp_path / "run" / "ablation.md").read_text()
    assert "| shown | mAP | Jaccard index |" in table and "McNemar" not in table
    scores = read_metrics(tmp_path / "run" / "both")["after"]
    block = scores["labels"]
    assert "2 annotated faces: too few" in block["no_ci95"]
    assert f"| both | {100 * block['map']:.1f} |" in table
    assert "| person only |" in table and "| both − person only |" in table
    assert table in capsys.readouterr().out


# --- photographs ----------------------------------------------------------------------------------


def test_a_photograph_is_shown_in_every_view(run_dir: Path) -> None:
    photograph = picture(3, (120, 80))
    views = crops.parse_views(manifest.load(run_dir)[0].views)
    local = LocalModel.load(run_dir)
    expected = local.predict([crops.image_views(photograph, BOX, views)])[0]
    (own,) = local.predict([photograph], boxes=[BOX])
    assert (own.text, own.face_found) == (expected.text, True)
    (nobody,) = local.predict([photograph])
    assert nobody.face_found is False
    with Predictor.load(run_dir) as predictor:
        (report,) = predictor.predict([photograph], boxes=[BOX])
        assert report.primary.text == expected.text
        assert report.primary.probabilities == pytest.approx(expected.probabilities, abs=1e-5)
        assert report.face_found is True and report.scene_only is False
        *_, streamed = predictor.stream(photograph, box=BOX)
        assert not isinstance(streamed, str) and streamed.primary.text == expected.text


@pytest.mark.parametrize("box", [None, (500.0, 500.0, 600.0, 600.0), (9.0, 9.0, 9.0, 9.0)])
def test_without_a_face_the_scene_alone_is_judged(
    run_dir: Path, box: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    nobody = picture(5, (120, 80))
    with Predictor.load(run_dir) as predictor:
        assert predictor.default_faces == "largest"
        (report,) = predictor.predict([nobody], boxes=[box])
        views = predictor.views
    expected = LocalModel.load(run_dir).predict([crops.image_views(nobody, None, views)])[0]
    assert report.primary.text == expected.text
    assert report.face_found is False and report.scene_only is True
    assert report.as_dict()["scene_only"] is True


def test_the_command_says_that_the_scene_alone_was_judged(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from vlmface.cli import main

    picture(5, (120, 80)).save(tmp_path / "nobody.png")
    assert main(["predict", str(tmp_path / "nobody.png"), "--model", str(run_dir)]) == 0
    assert "the scene alone was judged" in capsys.readouterr().out


def test_a_server_is_sent_every_view(run_dir: Path) -> None:
    with (
        FakeTeacher(lambda asked: Reply("Fatigue")) as server,
        Predictor.load(server.url, run_dir=run_dir) as predictor,
    ):
        (report,) = predictor.predict([picture(3, (120, 80))], boxes=[BOX])
        sent = server.requests[0].body["messages"][-1]["content"]
    assert [part["type"] for part in sent] == ["image_url", "image_url", "text"]
    assert sent[0] != sent[1]
    assert report.attributes == {"context": "Fatigue"}


# --- reinforcement learning -----------------------------------------------------------------------


@pytest.mark.parametrize("how", ["cached", "batch", "checkpointing"])
def test_grpo_goes_on_with_several_pictures(
    recipe: Recipe, root: Path, tmp_path: Path, how: str
) -> None:
    """The trainer holds its log-probabilities against the rollout's at every step: features of
    another picture, or in another order, would show."""
    start = tmp_path / "start"
    assert recipe(start, vision_tower="frozen", epochs=1, scoring="generate") == 0
    words = {
        "init_from": start,
        "output_dir": tmp_path / "grpo",
        "dataset": "raer",
        "dataset_root": root,
        "dataset_options": "{num_frames: 4}",
        "benchmark": "raer",
        "rewards": "{emotion: 1, length_penalty: 0.1}",
        "num_generations": 2,
        "batch_size": 2,
        "max_steps": 2,
        "max_new_tokens": 6,
        "save_steps": 2,
        "warmup_steps": 0,
        "learning_rate": 1e-4,
        "completions_every": 1,
        "max_logprob_drift": 1e-4,
        "cache_features": str(how == "cached").lower(),
        "gradient_checkpointing": str(how == "checkpointing").lower(),
    }
    main = load_script("recipes/grpo.py").main
    assert main(to_argv(words)) == 0
    found, (prompt,) = manifest.load(tmp_path / "grpo")
    assert prompt.images == 2 and len(crops.parse_views(found.views)) == 2
    for line in (tmp_path / "grpo" / "log.jsonl").read_text().splitlines():
        assert json.loads(line)["rollout_drift"] < 1e-4
