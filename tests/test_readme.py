"""README and docs: commands parse, links and names exist, outputs are git-ignored."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.scripts import load_script

from vlmface.utils import config

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", README, re.S)
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(ROOT.glob("docs/*.md")),
    *sorted(ROOT.glob("vlmface/assets/*/README.md")),
]
SETTINGS = sorted(
    file
    for folder in ("recipes/configs", "recipes/accelerate", "eval/benchmarks")
    for file in ROOT.glob(f"{folder}/*.yaml")
)
SCRIPTS = ("recipes/", "eval/", "app/", "tests/")
OUTPUTS = ("output_dir", "output", "out", "sheet")
DEFAULTS = {"data check": "checks/NAME", "score": "scores/FILE"}
# That pages write.
_OWN = ("faces", "gesichter", "ratings")
DATASET_FILES = ("faces.yaml", "photos.yaml", *(f"study/{name}.yaml" for name in _OWN))
MEDIA = re.compile(r"[\w./-]+\.(?:jpe?g|png|gif|webp|mp4)")


# --- the commands of a page ---------------------------------------------------------------------


def code_of(page: Path) -> list[str]:
    """The bash blocks of a Markdown page, or the command lines at the top of a YAML file."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".yaml":
        header = text.split("\n#\n")[0].splitlines()
        return ["\n".join(line.removeprefix("#").strip() for line in header)]
    fenced = re.findall(r"```(\w*)\n(.*?)```", text, re.S)
    indented = re.findall(r"(?:^|\n)\n((?: {4}.*\n?)+)", re.sub(r"```.*?```", "", text, flags=re.S))
    return [block for language, block in fenced if language == "bash"] + indented


def commands_of(page: Path) -> Iterator[list[str]]:
    """Each command of a page as words, without placeholders for optional arguments."""
    for block in code_of(page):
        for line in block.replace("\\\n", " ").splitlines():
            plain = re.sub(r"\[[^\]]*\]|\.\.\.", "", re.sub(r"\s# .*|^#.*", "", line))
            for part in re.split(r"&&|\s\|\s", plain):
                words = [word for word in shlex.split(part) if word not in ("<", ">")]
                while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                    del words[0]
                if words:
                    yield words


def is_ours(words: list[str]) -> bool:
    return words[0] in ("vlmface", "accelerate", "sbatch") or (
        words[0] == "python" and words[1].startswith(SCRIPTS)
    )


class ParsedError(Exception):
    """Raised instead of running a command, with the arguments that it parsed."""

    def __init__(self, arguments: Any) -> None:
        super().__init__("parsed")
        self.arguments = arguments


def parse_script(script: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The settings or arguments of a script of the repository. Fails if they are not valid.

    The real `main` runs up to the end of parsing: both parsers of the project then raise.
    """
    assert (ROOT / script).is_file(), f"there is no {script}"
    parse_args, refuse_unused = argparse.ArgumentParser.parse_args, config.refuse_unused

    def stop_after_argparse(*args: Any, **kwargs: Any) -> Any:
        raise ParsedError(parse_args(*args, **kwargs))

    def stop_after_settings(settings: Any, *fields: Any) -> None:
        refuse_unused(settings, *fields)
        if getattr(settings, "output_dir", None) != "":  # a stage of recipes/facial_r1_loop.py
            raise ParsedError(settings)

    with monkeypatch.context() as patch:
        patch.syspath_prepend(str((ROOT / script).parent))
        patch.setattr(argparse.ArgumentParser, "parse_args", stop_after_argparse)
        patch.setattr(config, "refuse_unused", stop_after_settings)
        with pytest.raises(ParsedError) as parsed:
            load_script(script).main(words)
    return parsed.value.arguments


def parse_vlmface(words: list[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The arguments of a `vlmface` command; None for lists. Fails if they are not valid."""
    from vlmface.cli import FORWARDED, parser
    from vlmface.tools.recipe_setup import settings_from

    if words[0] in FORWARDED and words[1:] != ["--list"]:
        folder = {"train": "recipes", "eval": "eval", "demo": "app"}[words[0]]
        name, *words = words if words[0] == "demo" else words[1:]
        name = {"temporal": "temporal_ablation"}.get(name, name)
        return parse_script(f"{folder}/{name}.py", words, monkeypatch)
    if words[0] in FORWARDED:
        return None
    arguments, rest = parser().parse_known_args(words)
    assert not rest or hasattr(arguments, "words"), f"unknown arguments {rest}"
    if words[0] in ("inspect", "estimate-memory"):
        settings_from(arguments.config, rest)
    return arguments


def parse_command(words: list[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The arguments of one of our commands; None for scripts that are not parsed here."""
    if words[0] == "vlmface":
        return parse_vlmface(words[1:], monkeypatch)
    if words[0] == "accelerate":
        from accelerate.commands.launch import launch_command_parser

        launch = launch_command_parser().parse_args(words[2:])
        if launch.config_file is not None and "NAME" not in launch.config_file:
            assert (ROOT / launch.config_file).is_file(), f"there is no {launch.config_file}"
        if launch.module:
            assert launch.training_script == "vlmface"
            return parse_vlmface(launch.training_script_args, monkeypatch)
        return parse_script(launch.training_script, launch.training_script_args, monkeypatch)
    if words[0] == "sbatch":
        recipe = words.index("recipes/slurm.sh") + 1
        return parse_script(words[recipe], words[recipe + 1 :], monkeypatch)
    if words[1].startswith("tests/") or words[1] == "recipes/vllm_cpu.py":
        assert (ROOT / words[1]).is_file(), f"there is no {words[1]}"
        return None
    return parse_script(words[1], words[2:], monkeypatch)


def outputs_of(words: list[str], arguments: Any) -> set[str]:
    """The paths that a command writes, and the photographs that it reads, below the checkout."""
    found = {match for word in words for match in MEDIA.findall(word)}
    if words[1:3] == ["-m", "venv"] or words[1:2] == ["recipes/vllm_cpu.py"]:
        found.add(words[-1])
    for option, value in itertools.pairwise(words):
        if option in ("--output_dir", "--output_path", "--sheet"):
            found.add(value)
    if arguments is not None:
        values = (
            vars(arguments)
            if isinstance(arguments, argparse.Namespace)
            else {f.name: getattr(arguments, f.name) for f in dataclasses.fields(arguments)}
        )
        found |= {str(values[name]) for name in OUTPUTS if values.get(name) is not None}
        command = " ".join(words[1:])
        if values.get("output", values.get("output_dir")) is None:
            found |= {path for name, path in DEFAULTS.items() if command.startswith(name)}
    return {path for path in found if not path.startswith(("/", "docs/", "."))}


@pytest.mark.parametrize("page", PAGES + SETTINGS, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_of_the_docs_is_valid_and_writes_where_git_ignores_it(
    page, monkeypatch, tmp_path
):
    (tmp_path / "study").mkdir()
    for name in DATASET_FILES:
        (tmp_path / name).write_text("{dataset: table, root: faces.csv}")
    monkeypatch.chdir(tmp_path)
    git = shutil.which("git") is not None and (ROOT / ".git").exists()
    for words in commands_of(page):
        arguments = None
        if is_ours(words):
            try:
                arguments = parse_command(words, monkeypatch)
            except (SystemExit, Exception) as error:
                pytest.fail(f"{page.name}: {shlex.join(words)}: {error}")
        for path in outputs_of(words, arguments) if git else ():
            inside = path if MEDIA.fullmatch(path) else f"{path}/x"
            ignored = subprocess.run(["git", "check-ignore", "-q", inside], cwd=ROOT).returncode
            assert ignored == 0, f"{page.name}: {path} of {shlex.join(words)} is not git-ignored"


def test_the_commands_are_found():
    """The parser of pages above finds what readers see."""
    pages = {page.name: list(commands_of(page)) for page in ROOT.glob("docs/*.md")}
    ours = {name: sum(map(is_ours, commands)) for name, commands in pages.items()}
    assert ours["gpu.md"] >= 5 and ours["context.md"] >= 7 and ours["serving.md"] >= 4
    assert ["vlmface", "merge", "runs/sft_cot", "merged/sft_cot"] in pages["commands.md"]
    assert sum(is_ours(words) for file in SETTINGS for words in commands_of(file)) >= 50


@pytest.mark.parametrize(
    "line",
    [
        "vlmface predict face.jpg --model RUN --no_such_option",
        "vlmface inspect --config sft_cot_tiny --no_such_field 1",
        "python recipes/sft_cot.py --no_such_field 1",
        "python eval/run.py --benchmark synth --no_such_field 1",
        "python recipes/no_such_recipe.py",
        "accelerate launch --no_such_option recipes/sft_cot.py",
    ],
)
def test_a_wrong_command_is_detected(line, monkeypatch, capsys):
    with pytest.raises((SystemExit, AssertionError, Exception)):
        parse_command(shlex.split(line), monkeypatch)


def test_no_tracked_file_is_ignored():
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "-ci", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == ""


# --- links and names ----------------------------------------------------------------------------


def anchors_of(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_file_and_heading_the_docs_link_to_exists():
    for page in [*PAGES, ROOT / "CHANGELOG.md"]:
        for target in re.findall(r"\]\(([^):]+)\)", page.read_text(encoding="utf-8")):
            path, _, anchor = target.partition("#")
            file = page.parent / path if path else page
            assert file.exists(), f"{page.name} links to {target}"
            assert not anchor or anchor in anchors_of(file), f"{page.name} links to {target}"


def test_every_file_the_docs_name_exists():
    names = re.compile(
        r"`((?:vlmface|recipes|eval|tests|prompts|app|docs)/[\w./*-]*(?:\.\w+|/))[`\s:]"
    )
    for page in PAGES:
        for name in names.findall(page.read_text(encoding="utf-8")):
            if "NAME" not in name and not name.startswith("eval/synth"):
                assert any(ROOT.glob(name.rstrip("/"))), f"{page.name} names {name}"


def test_every_object_the_docs_name_exists():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for name in re.findall(r"`(vlmface(?:\.[a-z_]\w*)+(?:\.[A-Z]\w*)?)\b", text):
            if name.endswith((".json", ".yaml")):
                continue
            parts = name.split(".")
            found: Any = importlib.import_module(parts[0])
            for part in parts[1:]:
                if not hasattr(found, part):
                    found = importlib.import_module(f"{found.__name__}.{part}")
                else:
                    found = getattr(found, part)


def test_the_column_functions_of_adding_a_dataset_exist():
    from vlmface.data import folds, records, rows, text_files

    page = (ROOT / "docs/adding-a-dataset.md").read_text(encoding="utf-8")
    cells = " ".join(re.findall(r"^\| (.*?) \|", page, re.M))
    names = re.findall(r"`(?:\w+\.)?(\w+)(?:\([^`]*\))?`", cells)
    assert len(names) >= 12
    for name in names:
        assert any(hasattr(module, name) for module in (rows, folds, records, text_files)), name


def test_python_blocks_parse_and_their_imports_exist():
    for page in PAGES:
        blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
        for block in blocks:
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.ImportFrom):
                    module = importlib.import_module(str(node.module))
                    for alias in node.names:
                        assert hasattr(module, alias.name), f"{page.name}: {alias.name}"


def test_the_architecture_page_has_the_layers_of_the_import_contract():
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \d+ \| (.*?) \| [^|]*\|$", text.replace("\\|", ";"), re.M)
    documented = [set(re.findall(r"`(\w+)`", row)) for row in rows]
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = next(c["layers"] for c in contracts["contracts"] if c["id"] == "layers")
    assert documented == [set(re.split(r" [:|] ", layer)) for layer in layers]


def test_the_architecture_page_names_existing_modules():
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    modules = text[text.index("## Modules") : text.index("## Data flow")]
    for first, second in re.findall(r"^\| (.*?) \| (.*) \|$", modules, re.M):
        names = re.findall(r"`([\w/*.]+(?:\.py|\.yaml|/))`", first)
        for name in names:
            places = [ROOT / "vlmface", ROOT]
            assert any(any(place.glob(name.rstrip("/"))) for place in places), name
        folders = [ROOT / "vlmface" / name for name in names if name.endswith("/")]
        for name in re.findall(r"`([\w/]+\.py)`", second) if folders else ():
            known = [*folders, ROOT]
            assert any((folder / name).exists() for folder in known), f"{names}: {name}"


# --- the README ---------------------------------------------------------------------------------


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 170


def test_ci_runs_exactly_the_test_command_of_the_readme():
    command = re.search(r"<!-- tests -->\s*```bash\n(.*?)\n```", README, re.S)
    assert command and command[1].endswith("pytest")
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert command[1] in script.splitlines()
    # A failure anywhere in that chain stops the script.
    after = script[script.index("export HF_HUB_OFFLINE") :].replace(command[1], "false && true")
    stubbed = f"set -euo pipefail\naccelerate() {{ echo trained; }}\n{after}"
    done = subprocess.run(["bash", "-c", stubbed], capture_output=True, text=True)
    assert done.returncode != 0 and "trained" not in done.stdout


def test_the_cpu_wheels_are_of_the_versions_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    torch = next(name for name in project["dependencies"] if name.startswith("torch>"))
    assert f"pip install '{torch}' torchvision --index-url" in README


@pytest.mark.slow
def test_the_commands_of_the_readme_run_as_written(tmp_path):
    """All blocks run in order in one folder, on a short training run, except those that install
    packages or need a data set or a GPU."""
    environment = {**os.environ, "VLMFACE_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    for name in ("recipes", "eval"):
        (tmp_path / name).symlink_to(ROOT / name)

    def run(command: str) -> str:
        done = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    run("accelerate launch recipes/sft_cot.py --n_train 128 --n_eval 32")
    run("vlmface synth --n 64 --sheet sheet.png")
    from skimage import data
    from skimage.io import imsave

    imsave(tmp_path / "face.jpg", data.astronaut()[0:250, 100:350])
    (tmp_path / "more_faces").mkdir()
    imsave(tmp_path / "more_faces" / "a.png", data.astronaut())
    ran = 0
    for language, text in BLOCKS:
        if any(word in text for word in ("pip install", "git clone", "/data/")):
            continue
        if language == "bash":
            text = re.sub(r".*--config_file.*\n", "", text)  # for GPUs
            text = text.replace("--benchmark synth", "--benchmark synth --n 32")
            text = text.replace("--n_train 512", "--n_train 128 --n_eval 32")
            text = text.replace("grpo.py", "grpo.py --n_train 32 --n_eval 32 --max_steps 2")
            run(text)
        else:
            run(f"{sys.executable} -c {shlex.quote(text)}")
        ran += 1
    assert ran >= 5
    assert (tmp_path / "sheet.png").exists()
    assert (tmp_path / "runs/eval_synth/report.html").exists()
    assert (tmp_path / "runs/grpo/report.html").exists()
