"""What users add without touching vlmface: from an installed package, from files, from modules."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from helpers.run_files import read_metrics
from PIL import Image

from vlmface import benchmarks, data, label_spaces, label_texts, manifest, prompts
from vlmface.cli import main
from vlmface.data.catalog import DATASETS
from vlmface.errors import UserError
from vlmface.infer.predictor import Predictor
from vlmface.registry import Registry
from vlmface.train import rewards

EXTENSION = Path(__file__).parent / "extension"
SHADES = {"bright": 230, "dark": 25, "grey": 128}
SPACE = {
    "id": "mine",
    "field": "context",
    "labels": ["up", "down"],
    "aliases": {"up": ["high"]},
    "source": "test",
}


def write_yaml(path: Path, content: Any) -> Path:
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def write_portraits(root: Path) -> None:
    """Four training pictures and two test pictures of each mood."""
    for split, n in (("train", 4), ("test", 2)):
        for mood, shade in SHADES.items():
            folder = root / split / mood
            folder.mkdir(parents=True)
            for i in range(n):
                noise = np.random.default_rng([shade, i, n]).integers(-20, 21, (32, 32, 3))
                Image.fromarray((shade + noise).astype(np.uint8)).save(folder / f"{i}.png")


# --- an installed package -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the package of tests/extension is installed into."""
    folder = tmp_path_factory.mktemp("extension")
    shutil.copytree(EXTENSION, folder / "source")
    options = ["--quiet", "--no-build-isolation", "--no-deps", "--no-index"]
    where = ["--target", folder / "site", folder / "source"]
    command = [sys.executable, "-m", "pip", "install", *options, *where]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "site"


@pytest.fixture(scope="module")
def trained(installed: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with what tests/extension/use_them.py writes: sft, grpo and again."""
    folder = tmp_path_factory.mktemp("trained")
    write_portraits(folder / "data")
    write_yaml(
        folder / "bench.yaml",
        {
            "id": "moods",
            "dataset": "portraits",
            "split": "test",
            "label_space": "mood3",
            "metrics": ["dark_missed"],
            "source": "test",
        },
    )
    path = os.pathsep.join(filter(None, (str(installed), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, str(EXTENSION / "use_them.py"), str(base), str(folder)],
        env={**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_a_package_trains_evaluates_and_compares(trained: Path) -> None:
    scores = {name: read_metrics(trained / name) for name in ("sft", "grpo", "again")}
    block = scores["sft"]["after"]["attributes"]["context"]
    assert block["accuracy"] > 0.9 > scores["sft"]["before"]["attributes"]["context"]["accuracy"]
    assert scores["again"]["attributes"] == scores["grpo"]["after"]["attributes"]
    assert scores["again"]["label_spaces"].keys() == {"mood3"}
    log = (trained / "grpo" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert {"rewards/format/mean", "rewards/mood/mean"} <= json.loads(log[0]).keys()
    found = json.loads((trained / "grpo" / "vlmface.json").read_text(encoding="utf-8"))
    assert found["dataset"]["rewards"] == {"format": 1, "mood": {"weight": 2, "wrong": -1}}
    assert found["dataset"]["name"] == "portraits"
    after = scores["sft"]["after"]["attributes"]["context"]
    assert (after["dark_missed"], after["ci95"]["dark_missed"][0]) == (0, 0)
    family = json.loads((trained / "family" / "vlmface.json").read_text(encoding="utf-8"))
    assert family["family"] == "face_llava"


def test_a_run_needs_the_package_no_longer(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It holds its label space: this process has not installed the package."""
    found, (prompt,) = manifest.load(trained / "sft")
    assert prompt.space.labels == ("bright", "dark", "grey")
    assert found.prompts[0]["label_space"] == "mood3"
    with pytest.raises(UserError, match="no label space 'mood3'"):
        label_spaces.space("mood3")
    picture = next((trained / "data" / "test" / "dark").iterdir())
    words = ["--model", str(trained / "sft"), "--faces", "none", "--json"]
    assert main(["predict", str(picture), *words]) == 0
    line = capsys.readouterr().out
    assert json.loads(line)["answers"]["context"]["label"] == "dark"
    words = [str(trained / "sft"), str(trained / "grpo"), "--output_dir", str(trained / "both")]
    assert main(["compare", *words]) == 0
    assert "sft" in capsys.readouterr().out


def test_what_a_run_names_is_not_imported(
    trained: Path, installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only training imports extensions, even where they are installed."""
    monkeypatch.syspath_prepend(str(installed))
    for registry in (label_spaces.REGISTRY, prompts.PROMPTS, DATASETS, rewards.REWARDS):
        fresh = Registry(registry.kind, registry.group).entry_points
        assert fresh
        monkeypatch.setitem(vars(registry), "entry_points", fresh)
    picture = next((trained / "data" / "test" / "dark").iterdir())
    grpo = str(trained / "grpo")
    assert main(["predict", str(picture), "--model", grpo, "--faces", "none"]) == 0
    assert main(["merge", grpo, str(trained / "merged")]) == 0
    assert not [name for name in sys.modules if "faces_ext" in name]


# --- a run folder from a stranger -----------------------------------------------------------------


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], bool]:
    """A module trap.py that can be imported by its path and its name; call it to know whether it
    was."""
    mark = tmp_path / "imported"
    (tmp_path / "trap.py").write_text(
        f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n"
        "SPLITS = ('train',)\nread = PROMPT = SPACE = reward = len\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "trap", raising=False)
    return mark.exists


@pytest.mark.parametrize(
    "name", ["trap:SPACE", "trap.py:SPACE", "PATH/trap.py:SPACE", "spaces.yaml"]
)
def test_the_label_space_of_a_run_is_built_in_or_contained(
    run_dir: Path, tmp_path: Path, trap: Callable[[], bool], name: str
) -> None:
    copied = tmp_path / "run"
    shutil.copytree(run_dir, copied, ignore=shutil.ignore_patterns("checkpoints"))
    write_yaml(copied / "prompts" / "spaces.yaml", SPACE)
    path = copied / "prompts" / "face_cot.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    write_yaml(path, content | {"label_space": name.replace("PATH", str(tmp_path))})
    with pytest.raises(UserError, match="there is no built-in label space"):
        manifest.load(copied)
    assert not trap()


def test_other_names_in_a_run_import_nothing(
    run_dir: Path, tmp_path: Path, trap: Callable[[], bool]
) -> None:
    copied = tmp_path / "run"
    shutil.copytree(run_dir, copied, ignore=shutil.ignore_patterns("checkpoints"))
    path = copied / manifest.FILENAME
    content = json.loads(path.read_text(encoding="utf-8"))
    named = {"rewards": {"trap:reward": 1, f"{tmp_path}/trap.py:reward": 1}}
    for name in ("trap", "trap.py", f"{tmp_path}/trap.py"):
        path.write_text(
            json.dumps(content | {"dataset": content["dataset"] | named | {"name": name}})
        )
        merged = tmp_path / f"merged{len(name)}"
        assert main(["merge", str(copied), str(merged)]) == 0
        assert Path(name).name in (merged / "README.md").read_text(encoding="utf-8")
    scores = {"label_space": "trap:SPACE", "prompts": [], "n": 0}
    with pytest.raises(UserError, match="no definition of label space 'trap:SPACE'"):
        label_spaces.of_results(scores, "trap:SPACE")
    for family in ("trap", "trap.py"):
        path.write_text(json.dumps(content | {"family": family}))
        with pytest.raises(UserError):
            Predictor.load(copied)
    assert not trap()


# --- label spaces ---------------------------------------------------------------------------------


def test_a_label_space_from_a_file(tmp_path: Path) -> None:
    path = write_yaml(tmp_path / "space.yaml", SPACE)
    space = label_spaces.space(path)
    assert (space.id, space.labels, space.match("HIGH")) == ("mine", ("up", "down"), "up")
    assert not space.is_built_in and label_spaces.SPACES["gender"].is_built_in
    assert label_spaces.from_mapping(space.to_mapping(), "here") == space
    for built_in in label_spaces.SPACES.values():
        assert label_spaces.from_mapping(built_in.to_mapping(), "here") == built_in
    # A copy of a built-in one is that one.
    copy = write_yaml(tmp_path / "copy.yaml", label_spaces.SPACES["emotion7"].to_mapping())
    assert label_spaces.space(copy) is label_spaces.SPACES["emotion7"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            label_spaces.SPACES["raer5"].to_mapping() | {"multi_label": True},
            "is the id of a built-in",
        ),
        ({"id": "emotion8"}, "is the id of a built-in label space with other labels"),
        ({"id": "../x"}, "the id is '../x'"),
        ({"field": "mood"}, "field is 'mood': use one of emotion, context"),
        ({"labels": ["up"]}, "labels: expected a list of 2 or more texts"),
        ({"labels": ["up", True]}, "in quotes"),
        ({"labels": ["up", "UP!"]}, "'UP!' is there twice"),
        ({"labels": ["up", "?"]}, "'\\?' is empty"),
        ({"aliases": {"left": ["west"]}}, "aliases has 'left', which is not one of the labels"),
        ({"aliases": {"up": ["down"]}}, "'down' is there twice"),
        ({"aliases": ["up"]}, "aliases is"),
        ({"multi_label": "yes"}, "multi_label is 'yes', use true or false"),
        ({"field": "emotion"}, "no emotion of FaceSample .* is 'up'"),
        ({"field": "age_group"}, "the age group 'up' must begin with its first year"),
        ({"source": None}, "source is None"),
        ({"label": ["x"]}, "unknown key 'label'"),
    ],
)
def test_a_wrong_label_space(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write_yaml(tmp_path / "space.yaml", {**SPACE, **changes})
    with pytest.raises(UserError, match=message):
        label_spaces.space(path)


def test_a_hostile_file_is_read_quickly(tmp_path: Path) -> None:
    many = "\n".join(f"k{i}: 1" for i in range(20_000))
    for text, message in [
        (many, "unknown key 'k0'"),
        (f"{many}\nk7: 2", "sets 'k7' twice"),
        ("? [a]\n: 1\n? [a]\n: 2", "cannot read the label space"),
        ("a: &a [x]\nb: *a", "unknown key 'a'"),
    ]:
        (tmp_path / "space.yaml").write_text(text)
        start = time.perf_counter()
        with pytest.raises(UserError, match=message):
            label_spaces.space(tmp_path / "space.yaml")
        assert time.perf_counter() - start < 30


def test_emotions_can_be_merged(tmp_path: Path) -> None:
    """Labels of other words for the emotions of FaceSample: what is true, and what is scored."""
    from vlmface.evaluate import answering
    from vlmface.schema import FaceSample

    merged = {
        "id": "valence2",
        "field": "emotion",
        "labels": ["positive", "negative"],
        "source": "test",
        "aliases": {"positive": ["happiness"], "negative": ["anger", "fear", "sadness"]},
    }
    write_yaml(tmp_path / "valence.yaml", merged)
    benchmark = write_yaml(
        tmp_path / "bench.yaml",
        {
            "id": "b",
            "dataset": "synth",
            "split": "test",
            "label_space": "valence.yaml",
            "source": "test",
        },
    )
    loaded = benchmarks.load_benchmark(str(benchmark))
    (space,) = loaded.spaces
    sample = FaceSample(id="x", dataset="test", emotion="fear")
    assert sample.label(space) == "negative"
    assert answering.ground_truth(sample, loaded)["emotion"] == "negative"
    plain = benchmarks.load_benchmark("rafdb")
    assert answering.ground_truth(sample, plain)["emotion"] == "fear"


def test_answers_of_another_system_are_scored_by_it(tmp_path: Path) -> None:
    merged = SPACE | {"field": "emotion", "aliases": {"up": ["happiness"], "down": ["sadness"]}}
    write_yaml(tmp_path / "space.yaml", merged)
    lines = [{"id": i, "text": "happiness" if i % 2 else "down", "truth": "up"} for i in range(40)]
    path = tmp_path / "answers.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    words = ["--format", "jsonl", "--label_space", str(tmp_path / "space.yaml"), "--output_dir"]
    for name in ("first", "second"):
        assert main(["score", str(path), *words, str(tmp_path / name)]) == 0
    scores = read_metrics(tmp_path / "first")
    assert scores["emotion"]["accuracy"] == 0.5
    assert scores["label_spaces"]["mine"]["labels"] == ["up", "down"]
    folders = [str(tmp_path / name) for name in ("first", "second", "compared")]
    assert main(["compare", *folders[:2], "--output_dir", folders[2]]) == 0


# --- prompts --------------------------------------------------------------------------------------


def test_a_prompt_with_a_label_space_of_its_own(tmp_path: Path) -> None:
    write_yaml(tmp_path / "space.yaml", SPACE)
    content = {"id": "asks", "version": 1, "source": "test"}
    content |= {"format": "label", "user": "{candidates}?"}
    for where in ("space.yaml", SPACE):  # beside the prompt, or inside it
        path = write_yaml(tmp_path / "asks.yaml", content | {"label_space": where})
        prompt = prompts.load(path)
        assert prompt.messages()[0]["content"][1]["text"] == "up, down?"
        manifest.save_prompts([prompt], tmp_path / "run")
        copy = prompts.read(tmp_path / "run" / "prompts" / "asks.yaml", trusted=False)
        assert (copy.sha, copy.space) == (prompt.sha, prompt.space)
    raer = prompt.with_label_space(label_spaces.space("raer5"))
    assert raer.label_space == "raer5"
    assert raer.with_label_space(prompt.space) == prompt


def test_label_texts_with_a_label_space_of_their_own(tmp_path: Path) -> None:
    write_yaml(tmp_path / "space.yaml", SPACE)
    content = {
        "id": "shows",
        "version": 1,
        "label_space": "space.yaml",
        "source": "test",
        "templates": ["a {word} arrow"],
    }
    texts = label_texts.load(write_yaml(tmp_path / "shows.yaml", content))
    assert texts.positive == {"up": ["a up arrow"], "down": ["a down arrow"]}
    manifest.save_prompts([texts], tmp_path)
    copy = label_texts.read(tmp_path / "prompts" / "shows.yaml", trusted=False)
    assert (copy.sha, copy.space) == (texts.sha, texts.space)


# --- data sets ------------------------------------------------------------------------------------


def test_a_data_set_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_portraits(tmp_path / "copy")
    file = tmp_path / "my_set.py"
    shutil.copy(EXTENSION / "faces_ext" / "portraits.py", file)
    rows = data.load(str(file), tmp_path / "copy", "test")
    assert len(rows) == 6 and set(rows["dataset"]) == {"my_set"}
    assert len(data.load(str(file), tmp_path / "copy", "test", moods="dark")) == 2
    with pytest.raises(UserError, match="has no option 'mood'"):
        data.load(str(file), tmp_path / "copy", "test", mood="dark")
    with pytest.raises(UserError, match="no split 'validation': it has train, test"):
        data.load(str(file), tmp_path / "copy", "validation")
    with pytest.raises(UserError, match="needs the root of your copy"):
        data.load(str(file), None, "test")
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "sets").mkdir()
    shutil.copy(file, tmp_path / "sets" / "portraits.py")
    assert len(data.load("sets.portraits", tmp_path / "copy", "train")) == 12
    assert data.shows_faces("sets.portraits")


def test_a_mixture_and_a_check_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_portraits(tmp_path / "copy")
    shutil.copy(EXTENSION / "faces_ext" / "portraits.py", tmp_path / "my_set.py")
    mixture = write_yaml(
        tmp_path / "mixture.yaml", {"sources": [{"dataset": "my_set.py", "root": "copy", "cap": 5}]}
    )
    assert len(data.load(str(mixture))) == 5
    assert data.shows_faces(str(mixture))
    monkeypatch.chdir(tmp_path)
    assert main(["data", "check", str(tmp_path / "my_set.py"), "copy"]) == 0
    report = json.loads((tmp_path / "checks" / "my_set" / "check.json").read_text())
    assert report["title"] == "my_set" and report["splits"]["train"]["rows"] == 12


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("SPLITS = ('train',)", "no function read"),
        ("def read(root, split): ...", "no SPLITS"),
        ("import nothing_of_that_name", "cannot be imported: ModuleNotFoundError"),
        (
            "NEEDS_ROOT = False; SPLITS = ('train',)\ndef read(root, split): ...",
            "returned a NoneType, but must return vlmface.data.rows.Rows",
        ),
        (
            "NEEDS_ROOT = False; SPLITS = ('train',)\nfrom vlmface.data.rows import Rows\n"
            "def read(root, split): return Rows({'id': ['x'], 'mood': ['y']})",
            "fills the columns mood, which are not fields of FaceSample",
        ),
    ],
)
def test_a_wrong_data_set(tmp_path: Path, source: str, message: str) -> None:
    (tmp_path / "my_set.py").write_text(source)
    with pytest.raises(UserError, match=message):
        data.load(str(tmp_path / "my_set.py"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rafdbb", r"no data set 'rafdbb'.*did you mean 'rafdb'"),
        ("no/such/set.py", "does not exist: check the spelling"),
        ("no_such_package.set", "cannot be imported"),
    ],
)
def test_an_unknown_data_set(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        data.dataset_module(name)


# --- rewards --------------------------------------------------------------------------------------


def test_rewards_from_files_and_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_rewards.py").write_text(
        (EXTENSION / "faces_ext" / "rewards.py").read_text()
        + "\n\ndef plain(answer, sample, space, *, words: 'Unknown' = 3, loud=False):\n"
        "    return float(len(answer.rationale.split()) <= words)\n\n\nNUMBER = 3\n"
    )
    file = f"{tmp_path}/own_rewards.py"
    mood, plain = rewards.parse({f"{file}:mood": {"wrong": -0.5}, f"{file}:plain": 2})
    assert (mood.name, mood.weight, mood.options) == ("mood", 0.5, {"wrong": -0.5})
    assert mood.reward.needs_annotation and not plain.reward.needs_annotation
    assert mood.reward.description == "1 if the mood is the annotated one, else `wrong`."
    assert plain.reward.options == {"words": int, "loud": bool}
    monkeypatch.syspath_prepend(str(tmp_path))
    (plain,) = rewards.parse({"own_rewards:plain": {"words": "5", "loud": True}})
    assert (plain.weight, plain.options) == (1.0, {"words": 5, "loud": True})
    assert rewards.code_shas([mood, plain]).keys() == {"mood", "plain"}
    assert rewards.code_shas(rewards.parse({"format": 1})) == {}
    for bad, message in [
        ({f"{file}:moood": 1}, "has no 'moood'.*did you mean 'mood'"),
        ({f"{file}:NUMBER": 1}, "is a int, but must be a function"),
        ({f"{file}:mood": {"right": 1}}, "no option 'right': it has weight, wrong"),
        ({f"{file}:plain": 1, "own_rewards:plain": 1}, "is called 'plain', as another one is"),
        ({"moood": 1}, "there is no reward 'moood'"),
        ({"no_such.py:mood": 1}, "does not exist"),
    ]:
        with pytest.raises(UserError, match=message):
            rewards.parse(bad)


def test_docs_list_the_built_in_rewards() -> None:
    page = (Path(__file__).parent.parent / "docs" / "rewards.md").read_text(encoding="utf-8")
    listed = [line.split("`")[1] for line in page.splitlines() if line.startswith("| `")]
    assert listed == list(rewards.REWARDS.built_in)
    for name, item in rewards.REWARDS.built_in.items():
        assert isinstance(item, rewards.Reward) and item.name == name and item.description


# --- the page about it ----------------------------------------------------------------------------


def blocks(kind: str) -> list[str]:
    """The code blocks of a kind in docs/extending.md."""
    page = (Path(__file__).parent.parent / "docs" / "extending.md").read_text(encoding="utf-8")
    return [part.split("```")[0] for part in page.split(f"```{kind}\n")[1:]]


def test_the_examples_of_the_page_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = {}
    for block in [*blocks("yaml"), *blocks("python")]:
        first, _, rest = block.partition("\n")
        files[first.removeprefix("# ")] = rest
    for name, text in files.items():
        Path(name).write_text(text, encoding="utf-8")
    assert label_spaces.space("engagement3.yaml").match("Uninterested") == "bored"
    assert prompts.load("asks_engagement.yaml").space.id == "engagement3"
    write_portraits(tmp_path / "copy")
    assert len(data.load("my_set.py", "copy", "test")) == 6
    (item,) = rewards.parse({"my_rewards.py:short": {"weight": 2, "words": 30}})
    assert (item.weight, item.options, item.reward.needs_annotation) == (2, {"words": 30}, False)


def test_the_entry_points_of_the_page_are_those_that_are_read() -> None:
    (block,) = blocks("toml")
    groups = tomllib.loads(block)["project"]["entry-points"]
    tested = tomllib.loads((EXTENSION / "pyproject.toml").read_text(encoding="utf-8"))
    assert groups.keys() == tested["project"]["entry-points"].keys()


# --- the registry ---------------------------------------------------------------------------------


def test_a_registry(tmp_path: Path) -> None:
    registry: Registry[Any] = Registry("thing", "vlmface.no_such_group", hint="or make one")
    registry.register("one")(1)
    assert registry.get("one") == 1 and "one" in registry and list(registry) == ["one"]
    with pytest.raises(ValueError, match="already a thing named 'one'"):
        registry.register("one")(2)
    with pytest.raises(UserError, match=r"no thing 'onee'.*did you mean 'one'.*, or make one"):
        registry.get("onee")
    (tmp_path / "things.py").write_text("import random\nTHING = random.random()\n")
    file = f"{tmp_path}/things.py:THING"
    assert registry.get(file) == registry.get(file)  # imported once
