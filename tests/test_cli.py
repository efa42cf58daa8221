"""The command line: quick to start, plain about what is wrong."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

import pytest
from helpers.scripts import ROOT

from vlmface import __version__
from vlmface.cli import EVALUATIONS, RECIPES, main


def test_help_starts_in_a_third_of_a_second_without_torch():
    code = (
        "import sys; from vlmface.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    cpu = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(cpu) < 0.3, f"vlmface --help took {min(cpu):.2f} s of CPU time"


def test_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert __version__ in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["predikt"], ["predict", "a.jpg"], ["synth", "--n"]])
def test_misuse_is_explained(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "usage: vlmface" in capsys.readouterr().err


def test_what_a_user_did_wrong_is_one_line(capsys, tmp_path):
    assert main(["synth", "--n", "0", "--sheet", str(tmp_path / "a.png")]) == 2
    assert capsys.readouterr().err == "error: n is 0, but must be a whole number at least 1\n"
    assert main(["synth", "--n", "2000", "--sheet", str(tmp_path / "a.png")]) == 2
    assert capsys.readouterr().err == "error: a sheet shows 1 to 1024 rows, not 2000\n"
    assert not list(tmp_path.iterdir())


# --- recipes and evaluations ----------------------------------------------------------------------


def test_recipes_and_evaluations_are_listed(capsys):
    assert main(["train", "--list"]) == 0
    page = capsys.readouterr().out
    scripts = {path.stem for path in (ROOT / "recipes").glob("*.py")}
    assert set(RECIPES) == scripts - {"fit_aus", "pretrain_tiny", "vllm_cpu"}
    assert all(f"  {name} " in page for name in RECIPES) and "sft_cot_tiny" in page
    assert main(["eval", "--list"]) == 0
    page = capsys.readouterr().out
    scripts = {path.stem for path in (ROOT / "eval").glob("*.py")}
    modules = {module.rpartition(".")[2] for module, _ in EVALUATIONS.values()}
    assert modules >= scripts - {"baseline_cnn"}
    assert all(f"  {name} " in page for name in EVALUATIONS)


@pytest.mark.parametrize("words", [["train", "sft_cot"], ["eval", "run"], ["demo"]])
def test_they_explain_their_own_settings(words, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([*words, "--help"])
    assert "--model" in (page := capsys.readouterr().out) or "--lora_rank" in page


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "sft_ct"], "there is no recipe 'sft_ct' (did you mean 'sft_cot'?)"),
        (["train"], "a name is missing"),
        (["train", "--lora_rank", "4"], "--lora_rank stands before the name"),
        (["eval", "rum"], "there is no evaluation 'rum' (did you mean 'run'?)"),
        (["train", "sft_cot", "--epoch", "2"], "there is no setting 'epoch'"),
        (["eval", "run", "--modle", "x"], "there is no setting 'modle'"),
    ],
)
def test_misspelt_names_are_one_line(words, message, capsys):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("package", "code", "extra"),
    [
        ("trl", "main(['train', 'clip_finetune', '--output_dir', 'run'])", "train"),
        ("open_clip", "main(['train', 'clip_finetune', '--output_dir', 'run'])", "clip"),
        ("embreex", "main(['synth', '--sheet', 'a.png'])", "synth"),
    ],
)
def test_a_missing_extra_is_one_line_with_the_command(package, code, extra, tmp_path):
    block = f"import sys; sys.modules[{package!r}] = None; from vlmface.cli import main; "
    done = subprocess.run(
        [sys.executable, "-c", f"{block}sys.exit({code})"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 2
    assert f"pip install 'vlmface[{extra}]'" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
