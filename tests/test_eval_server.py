"""eval/run.py against a server: the figures of the same model in this process, and bad servers."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_teacher import Asked, FakeTeacher, Reply
from PIL import Image

from vlmface.errors import UserError
from vlmface.evaluate import answering
from vlmface.evaluate import run as evaluation
from vlmface.infer.local import LocalModel


@pytest.fixture(scope="module")
def answers(run_dir: Path) -> Iterator[FakeTeacher]:
    """A server behind which the run answers."""
    predictor = LocalModel.load(run_dir)
    one_at_a_time = threading.Lock()

    def behave(asked: Asked) -> Reply:
        picture = Image.open(io.BytesIO(base64.b64decode(asked.face.partition(",")[2])))
        assert asked.prompt() == predictor.messages[-1]["content"][-1]["text"]
        with one_at_a_time:
            (found,) = predictor.predict([picture], probabilities=False)
        return Reply(found.text)

    with FakeTeacher(behave) as server:
        yield server


def words(url: str, run_dir: Path, out: Path) -> list[str]:
    return ["--benchmark", "synth", "--model", url, "--run", str(run_dir), "--n", "8",
            "--out", str(out)]  # fmt: skip


def test_a_served_run_has_the_figures_of_the_local_one(
    answers: FakeTeacher, run_dir: Path, tmp_path: Path
) -> None:
    assert evaluation.main(words(answers.url, run_dir, tmp_path)) == 0
    assert answers.most_at_once > 1
    assert {asked.body["model"] for asked in answers.asked} == {"teacher"}
    assert all(asked.body["temperature"] == 0 for asked in answers.asked)
    found = json.loads((tmp_path / "metrics.json").read_text())
    local = json.loads((run_dir / "metrics.json").read_text())["after"]
    assert (found["emotion"], found["au"], found["parse"]) == (
        local["emotion"], local["au"], local["parse"],
    )  # fmt: skip
    ours = answering.read_lines(tmp_path / "predictions.jsonl")
    theirs = answering.read_lines(run_dir / "predictions.jsonl")
    assert [line["text"] for line in ours] == [line["text"] for line in theirs]


def test_faces_that_a_server_refuses_count_as_wrong_and_are_asked_again(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = True

    def behave(asked: Asked) -> Reply | None:
        text = "<think>The lip corners are pulled up (AU12).</think><answer>happiness</answer>"
        return Reply(status=400, body=b"too hot") if refused and asked.number == 2 else Reply(text)

    with FakeTeacher(behave) as server:
        assert evaluation.main([*words(server.url, run_dir, tmp_path), "--concurrency", "1"]) == 2
        assert "1 faces got no answer and count as wrong" in capsys.readouterr().err
        found = json.loads((tmp_path / "metrics.json").read_text())
        assert found["unanswered"] == 1 and found["parse"]["none"] == pytest.approx(1 / 8)
        assert len(server.asked) == 8
        refused = False
        assert evaluation.main([*words(server.url, run_dir, tmp_path), "--concurrency", "1"]) == 0
        assert len(server.asked) == 9  # nothing is asked twice
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert "unanswered" not in found and found["parse"]["strict"] == 1


def test_a_server_that_writes_garbage(run_dir: Path, tmp_path: Path) -> None:
    with FakeTeacher(lambda asked: Reply("\u0000 happiness fear <answer>")) as server:
        evaluation.main(words(server.url, run_dir, tmp_path))
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert found["parse"]["ambiguous"] + found["parse"]["none"] == 1
    assert found["emotion"]["accuracy"] == 0
    with (
        FakeTeacher(lambda asked: Reply(status=401, body=b"no key")) as server,
        pytest.raises(UserError, match="answers HTTP 401"),
    ):
        evaluation.main(words(server.url, run_dir, tmp_path / "other"))


def test_what_a_server_must_be_told(run_dir: Path, tmp_path: Path) -> None:
    with FakeTeacher() as server:
        argv = ["--benchmark", "synth", "--model", server.url, "--out", str(tmp_path)]
        with pytest.raises(UserError, match="give --run, the folder of the run that it serves"):
            evaluation.main(argv)
        with pytest.raises(UserError, match="cannot be asked in mode 'both'"):
            evaluation.main([*argv, "--mode", "both"])
        server.models = ["base", "lora"]
        with pytest.raises(UserError, match="serves base, lora: say which with --served"):
            evaluation.main([*argv, "--prompt", "face_cot"])
    with pytest.raises(UserError, match="is no URL"):
        evaluation.main(["--benchmark", "synth", "--model", "http://", "--prompt", "face_cot",
                         "--out", str(tmp_path)])  # fmt: skip
    argv = ["--benchmark", "synth", "--model", str(run_dir), "--run", str(run_dir), "--n", "4"]
    with pytest.raises(UserError, match="is no server's URL: leave it out"):
        evaluation.main(argv)
