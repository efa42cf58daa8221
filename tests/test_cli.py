"""The command line: quick to start, plain about what is wrong."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from vlmface import __version__
from vlmface.cli import main


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
