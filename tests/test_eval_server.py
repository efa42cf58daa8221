"""eval/run.py against a server: the figures of the same model in this process, and bad servers."""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.fake_teacher import FakeTeacher, Reply, TeacherRequest, completion
from helpers.run_files import read_metrics
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

    def behave(asked: TeacherRequest) -> Reply:
        picture = Image.open(io.BytesIO(base64.b64decode(asked.face.partition(",")[2])))
        assert asked.prompt() == predictor.messages[-1]["content"][-1]["text"]
        with one_at_a_time:
            (found,) = predictor.predict([picture], probabilities=False)
        return Reply(found.text)

    with FakeTeacher(behave) as server:
        yield server


def words(url: str, run_dir: Path, out: Path) -> list[str]:
    return [
        "--benchmark",
        "synth",
        "--model",
        url,
        "--run_dir",
        str(run_dir),
        "--n",
        "8",
        "--output_dir",
        str(out),
    ]


def test_a_served_run_has_the_figures_of_the_local_one(
    answers: FakeTeacher, run_dir: Path, tmp_path: Path
) -> None:
    assert evaluation.main(words(answers.url, run_dir, tmp_path)) == 0
    assert answers.most_at_once > 1
    assert {asked.body["model"] for asked in answers.requests} == {"teacher"}
    assert all(asked.body["temperature"] == 0 for asked in answers.requests)
    found = read_metrics(tmp_path)
    local = read_metrics(run_dir)["after"]
    assert (found["emotion"], found["au"], found["parse"]) == (
        local["emotion"],
        local["au"],
        local["parse"],
    )
    ours = answering.read_lines(tmp_path / "predictions.jsonl")
    theirs = answering.read_lines(run_dir / "predictions.jsonl")
    assert [line["text"] for line in ours] == [line["text"] for line in theirs]


def test_faces_that_a_server_refuses_count_as_wrong_and_are_asked_again(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = True

    def behave(asked: TeacherRequest) -> Reply | None:
        text = "<think>The lip corners are pulled up (AU12).</think><answer>happiness</answer>"
        return Reply(status=400, body=b"too hot") if refused and asked.number == 2 else Reply(text)

    with FakeTeacher(behave) as server:
        assert evaluation.main([*words(server.url, run_dir, tmp_path), "--concurrency", "1"]) == 2
        assert "1 faces got no answer and count as wrong" in capsys.readouterr().err
        found = read_metrics(tmp_path)
        assert found["unanswered"] == 1 and found["parse"]["none"] == pytest.approx(1 / 8)
        assert len(server.requests) == 8
        refused = False
        assert evaluation.main([*words(server.url, run_dir, tmp_path), "--concurrency", "1"]) == 0
        assert len(server.requests) == 9  # nothing is asked twice
    found = read_metrics(tmp_path)
    assert "unanswered" not in found and found["parse"]["strict"] == 1


def test_a_server_that_writes_garbage(run_dir: Path, tmp_path: Path) -> None:
    with FakeTeacher(lambda asked: Reply("\u0000 happiness fear <answer>")) as server:
        evaluation.main(words(server.url, run_dir, tmp_path))
    found = read_metrics(tmp_path)
    assert found["parse"]["ambiguous"] + found["parse"]["none"] == 1
    assert found["emotion"]["accuracy"] == 0
    with (
        FakeTeacher(lambda asked: Reply(status=401, body=b"no key")) as server,
        pytest.raises(UserError, match="answers HTTP 401"),
    ):
        evaluation.main(words(server.url, run_dir, tmp_path / "other"))


def test_what_a_server_must_be_told(run_dir: Path, tmp_path: Path) -> None:
    with FakeTeacher() as server:
        argv = ["--benchmark", "synth", "--model", server.url, "--output_dir", str(tmp_path)]
        with pytest.raises(UserError, match="give --run_dir, the folder of the run that it serves"):
            evaluation.main(argv)
        with pytest.raises(UserError, match="cannot be asked with scoring 'both'"):
            evaluation.main([*argv, "--scoring", "both"])
        server.models = ["base", "lora"]
        with pytest.raises(
            UserError, match="serves base, lora: choose one with --served_model_name"
        ):
            evaluation.main([*argv, "--prompt", "face_cot"])
    with pytest.raises(UserError, match="is not a URL"):
        evaluation.main(
            [
                "--benchmark",
                "synth",
                "--model",
                "http://",
                "--prompt",
                "face_cot",
                "--output_dir",
                str(tmp_path),
            ]
        )
    argv = ["--benchmark", "synth", "--model", str(run_dir), "--run_dir", str(run_dir), "--n", "4"]
    with pytest.raises(UserError, match="is not a server's URL: leave it out"):
        evaluation.main(argv)


GOOD = "<think>The lip corners are pulled up (AU12).</think>\n<answer>happiness</answer>"


def bare(url: str, out: Path, *more: str) -> list[str]:
    return [
        "--benchmark",
        "synth",
        "--model",
        url,
        "--prompt",
        "face_cot",
        "--n",
        "3",
        "--concurrency",
        "1",
        "--output_dir",
        str(out),
        *more,
    ]


def test_answers_of_two_models_do_not_end_up_in_one_file(tmp_path: Path) -> None:
    def behave(asked: TeacherRequest) -> Reply:
        return Reply(status=400, body=b"dark") if asked.number == 1 else Reply(GOOD)

    with FakeTeacher(behave) as server:
        server.models = ["a"]
        assert evaluation.main(bare(server.url, tmp_path)) == 2
        assert read_metrics(tmp_path)["served_model"] == "a"
        before = {file: file.read_bytes() for file in tmp_path.iterdir()}
        server.models = ["b"]
        with pytest.raises(UserError, match="served_model 'a' was started there, now it is 'b'"):
            evaluation.main(bare(server.url, tmp_path))
        assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before
        server.models = ["a"]
        assert evaluation.main(bare(server.url, tmp_path)) == 0
    scores = read_metrics(tmp_path)
    assert (scores["served_model"], scores["parse"]["strict"]) == ("a", 1)
    assert "unanswered" not in scores


def test_the_request_of_an_evaluation_can_be_changed(tmp_path: Path, run_dir: Path) -> None:
    with FakeTeacher(lambda asked: Reply(GOOD)) as server:
        words = ["--request", "temperature=null", "max_tokens=null", "max_completion_tokens=99"]
        assert evaluation.main(bare(server.url, tmp_path / "a", *words)) == 0
        body = server.requests[-1].body
        assert body["max_completion_tokens"] == 99 and not {"temperature", "max_tokens"} & set(body)
    argv = ["--benchmark", "synth", "--model", str(run_dir), "--request", "temperature=1"]
    with pytest.raises(UserError, match=r"request is .* is not a server's URL: leave it out"):
        evaluation.main(argv)


def test_texts_with_lone_surrogates_are_stored(tmp_path: Path) -> None:
    body = completion(GOOD).replace(b"pulled", b"pulled \\ud83d")
    with FakeTeacher(lambda asked: Reply(body=body)) as server:
        assert evaluation.main(bare(server.url, tmp_path)) == 0
    (line, *_) = answering.read_lines(tmp_path / "predictions.jsonl")
    assert "pulled \ufffd up" in line["text"]
