"""What servers really send: each odd reply is the right answer or one message, and costs no other
face its answer. The servers are real, the loopback's."""

from __future__ import annotations

import gzip
import itertools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.fake_teacher import FakeTeacher, Reply, TeacherRequest, completion
from helpers.samples import picture

from vlmface.cli import main
from vlmface.errors import UserError
from vlmface.infer import Predictor, endpoint
from vlmface.infer.endpoint import NoAnswerError
from vlmface.infer.prediction import Prediction

THOUGHT = "The lip corners are pulled up (AU12). The cheeks are raised (AU6)."
GOOD = f"<think>{THOUGHT}</think>\n<answer>happiness</answer>"
PICTURE = picture(1)


def reply(message: dict[str, Any], **rest: Any) -> Reply:
    """A chat completion with that message; `rest` overrides finish_reason and usage."""
    finish = rest.pop("finish_reason", "stop")
    content = {
        "choices": [{"message": message, "finish_reason": finish}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 30},
    }
    return Reply(body=json.dumps(content | rest).encode())


def events(*pieces: dict[str, Any], **headers: str) -> Reply:
    lines = "".join(f"data: {json.dumps(piece, ensure_ascii=False)}\n\n" for piece in pieces)
    return Reply(
        body=lines.encode() + b"data: [DONE]\n\n", headers={"Content-Type": "text/event-stream"}
    )


def delta(content: Any = None, reason: str | None = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"delta": {"content": content, **more}, "finish_reason": reason}]}


def predictor(server: FakeTeacher, **how: Any) -> Predictor:
    return Predictor.load(server.url, **{"prompt": "face_cot", "attempts": 1, **how})


def predicted(sent: Reply | Callable[[TeacherRequest], Reply | None], **how: Any) -> Prediction:
    behave = sent if callable(sent) else lambda asked: sent
    with FakeTeacher(behave) as server, predictor(server, **how) as asked:
        (report,) = asked.predict([PICTURE])
        return report.primary


def streamed(sent: Reply, **how: Any) -> tuple[list[Any], Prediction]:
    with FakeTeacher(lambda asked: sent) as server, predictor(server, **how) as asked:
        *pieces, report = asked.stream(PICTURE)
        assert not isinstance(report, str)
        return pieces, report.primary


# --- the right answer -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        {"content": GOOD},
        {"content": "\n<answer>happiness</answer>", "reasoning_content": THOUGHT},
        {"content": "<answer>happiness</answer>", "reasoning": THOUGHT},
        {"content": "<answer>happiness</answer>", "reasoning": None, "reasoning_content": THOUGHT},
        {"content": GOOD, "reasoning_content": "Let me think of what was asked."},
        {"content": [{"type": "text", "text": GOOD}]},
        {"content": [{"type": "text", "text": GOOD[:20]}, {"type": "text", "text": GOOD[20:]}]},
        {"content": GOOD, "refusal": None},
    ],
)
def test_where_servers_put_the_answer(message: dict[str, Any]) -> None:
    said = predicted(reply(message))
    assert (said.answer.label, said.answer.aus, said.answer.status) == (
        "happiness",
        (6, 12),
        "strict",
    )
    assert said.answer.rationale == THOUGHT and said.complete


def test_reasoning_is_no_part_of_a_form_without_a_rationale() -> None:
    said = predicted(reply({"content": "happiness", "reasoning": THOUGHT}), prompt="expllm_label")
    assert (said.text, said.answer.status, said.answer.aus) == ("happiness", "strict", ())


@pytest.mark.parametrize(
    "usage",
    [
        None,
        [],
        "lots",
        {"completion_tokens": "many"},
        {"completion_tokens": None},
        {"completion_tokens": -3},
        {"completion_tokens": True},
    ],
)
def test_odd_token_counts_cost_nothing(usage: Any) -> None:
    said = predicted(reply({"content": GOOD}, usage=usage))
    assert said.answer.status == "strict" and said.complete


def test_a_number_of_thousands_of_digits() -> None:
    body = completion(GOOD).replace(
        b'"completion_tokens": 100', b'"completion_tokens": ' + b"9" * 5000
    )
    assert predicted(Reply(body=body)).answer.status == "strict"


@pytest.mark.parametrize(
    ("reason", "usage", "complete"),
    [
        ("stop", {"completion_tokens": 256}, True),
        ("length", {"completion_tokens": 20}, False),
        ("length", None, False),
        ("max_tokens", None, False),
        (None, {"completion_tokens": 20}, True),
        (None, {"completion_tokens": 256}, False),
        ("eos", None, True),
    ],
)
def test_why_an_answer_ended(reason: str | None, usage: Any, complete: bool) -> None:
    sent = reply({"content": GOOD}, finish_reason=reason, usage=usage)
    assert predicted(sent).complete == complete


@pytest.mark.parametrize(
    "message",
    [
        {"content": None, "refusal": "That would be against the rules."},
        {"content": "", "refusal": "That would be against the rules."},
        {"content": [{"type": "refusal", "refusal": "That would be against the rules."}]},
    ],
)
def test_a_refusal_is_refused(message: dict[str, Any]) -> None:
    said = predicted(reply(message))
    assert (said.answer.status, said.answer.label) == ("refused", None)
    assert said.text == "That would be against the rules."


def test_lone_surrogates_are_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    body = (
        completion(GOOD).replace(b"raised", b"raised \\ud83d").replace(b"pulled", b"\\ud83d\\ude00")
    )
    PICTURE.save(tmp_path / "face.png")
    with FakeTeacher(lambda asked: Reply(body=body)) as server:
        words = ["--model", server.url, "--prompt", "face_cot", "--json"]
        assert main(["predict", str(tmp_path / "face.png"), *words]) == 0
    text = json.loads(capsys.readouterr().out)["answers"]["emotion"]["text"]
    assert "raised \ufffd (AU6)" in text and "\U0001f600" in text


# --- streams --------------------------------------------------------------------------------------


def test_pieces_without_choices_are_skipped() -> None:
    pieces = [delta(GOOD[i : i + 20]) for i in range(0, len(GOOD), 20)]
    filters = {"choices": [], "prompt_filter_results": []}
    usage = {"choices": [], "usage": {"completion_tokens": 30}}
    texts, said = streamed(events(filters, *pieces, delta(None, "stop"), usage))
    assert (said.answer.status, said.answer.aus, said.complete) == ("strict", (6, 12), True)
    assert all(b.startswith(a) for a, b in itertools.pairwise(texts))


def test_streamed_reasoning_is_the_rationale() -> None:
    thought = [delta("", reasoning_content=THOUGHT[i : i + 9]) for i in range(0, len(THOUGHT), 9)]
    for name in ("reasoning", "reasoning_content"):
        renamed = json.loads(json.dumps(thought).replace("reasoning_content", name))
        texts, said = streamed(
            events(*renamed, delta("<answer>happiness</answer>"), delta(None, "stop"))
        )
        assert (said.answer.status, said.answer.rationale) == ("strict", THOUGHT)
        assert all(b.startswith(a) for a, b in itertools.pairwise(texts))


@pytest.mark.parametrize("reason", ["length", None])
def test_a_stream_that_was_cut_off_is_incomplete(reason: str | None) -> None:
    _, said = streamed(events(delta("<think>The lip"), delta(None, reason)))
    assert not said.complete


def test_odd_streams() -> None:
    _, said = streamed(events(delta("caf\u00e9 \u2028\u0085 happiness"), delta(None, "stop")))
    assert "\u2028" in said.text
    _, said = streamed(events(delta(None, refusal="Against the rules."), delta(None, "stop")))
    assert said.answer.status == "refused"
    _, said = streamed(Reply(body=completion(GOOD), headers={"Content-Type": "application/json"}))
    assert said.answer.status == "strict"  # a server that does not stream
    with pytest.raises(NoAnswerError, match="an error instead of an answer: overloaded"):
        streamed(events({"error": {"message": "overloaded", "code": 502}}))
    with pytest.raises(NoAnswerError, match="no piece of an answer"):
        streamed(events({"choices": []}))


# --- replies without end --------------------------------------------------------------------------


def endless(piece: bytes) -> Iterator[bytes]:
    return itertools.repeat(piece)


BOMB = gzip.compress(b" " * 60_000_000, 1)


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (lambda: Reply(pieces=endless(b" "), pause=0.05), "not complete after 1 s"),
        (lambda: Reply(pieces=endless(b" " * 2**17)), "larger than 1 MiB"),
        (lambda: Reply(body=BOMB, headers={"Content-Encoding": "gzip"}), "larger than 1 MiB"),
        (lambda: Reply("x", delay=3), "not complete after 1 s"),
        (lambda: Reply(body=b"[" * 200_000 + b"]" * 200_000), "nested too deep"),
        (lambda: Reply(body=b'{"choices": [{"message": null}]}'), "unreadable reply"),
        (lambda: Reply(body=b"{}", headers={"Content-Encoding": "br"}), "compressed"),
        (lambda: Reply(body=b'{"error": {"message": "down", "code": 502}}'), "an answer: down"),
    ],
    ids=["drip", "endless", "gzip", "hang", "deep", "null", "br", "error"],
)
def test_a_reply_that_cannot_be_read_is_one_message(
    sent: Callable[[], Reply], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "MAX_REPLY_BYTES", 2**20)
    start = time.monotonic()
    for ask in (predicted, streamed):
        if ask is streamed and message == "nested too deep":
            message = "no piece of an answer"  # a list is no event
        timeout = 1 if "not complete" in message else 60
        with pytest.raises(NoAnswerError, match=message):
            ask(sent(), timeout_s=timeout)
    assert time.monotonic() - start < 60


def test_a_compressed_reply_is_read() -> None:
    headers = {"Content-Encoding": "gzip"}
    assert predicted(Reply(body=gzip.compress(completion(GOOD)), headers=headers)).complete


@pytest.mark.parametrize("after", ["nan", "-1", "soon", ""])
def test_retries_end_whatever_the_server_asks_to_wait(after: str) -> None:
    with FakeTeacher(lambda asked: Reply(status=429, headers={"Retry-After": after})) as server:
        with (
            predictor(server, attempts=2) as asked,
            pytest.raises(NoAnswerError, match="HTTP 429"),
        ):
            asked.predict([PICTURE])
        assert len(server.requests) == 2


def test_all_pauses_of_a_request_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "MAX_RETRY_WAIT_S", 1.5)
    with FakeTeacher(lambda asked: Reply(status=503, headers={"Retry-After": "1"})) as server:
        with predictor(server, attempts=9) as asked, pytest.raises(NoAnswerError):
            asked.predict([PICTURE])
        assert len(server.requests) == 2


# --- one face without an answer -------------------------------------------------------------------


def faces(folder: Path, count: int) -> list[str]:
    for seed in range(count):
        picture(seed).save(folder / f"{seed}.png")
    return [str(folder / f"{seed}.png") for seed in range(count)]


@pytest.mark.parametrize("as_json", [True, False])
def test_one_refused_face_costs_no_other_its_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    def behave(asked: TeacherRequest) -> Reply:
        return Reply(status=400, body=b"too dark") if asked.number == 1 else Reply(GOOD)

    with FakeTeacher(behave) as server:
        words = ["--model", server.url, "--prompt", "face_cot", *(["--json"] if as_json else [])]
        assert main(["predict", *faces(tmp_path, 3), *words]) == 2
    found = capsys.readouterr()
    assert found.out.count("happiness") >= 2 and found.err.count("\n") == 1
    assert found.err.startswith("error: ") and "HTTP 400 too dark" in found.err
    if as_json:
        reports = [json.loads(line) for line in found.out.splitlines()]
        assert [one["answers"]["emotion"]["label"] for one in reports] == ["happiness"] * 2


def test_a_server_that_refuses_every_face_is_asked_no_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeTeacher(lambda asked: Reply(status=400, body=b"closed")) as server:
        argv = ["predict", *faces(tmp_path, 9), "--model", server.url, "--prompt", "face_cot"]
        assert main([*argv, "--batch_size", "5"]) == 2
        assert len(server.requests) == 5
    assert "gave no answer for 5 faces in a row" in capsys.readouterr().err.splitlines()[-1]


# --- changed requests -----------------------------------------------------------------------------


def picky(asked: TeacherRequest) -> Reply:
    """As servers of reasoning models are."""
    for name in ("max_tokens", "temperature"):
        if name in asked.body:
            error = {"message": f"Unsupported parameter: '{name}' is not supported.", "param": name}
            return Reply(status=400, body=json.dumps({"error": error}).encode())
    return Reply(GOOD)


def test_fields_of_the_request_can_be_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (face,) = faces(tmp_path, 1)
    with FakeTeacher(picky) as server:
        argv = ["predict", face, "--model", server.url, "--prompt", "face_cot"]
        assert main(argv) == 2
        error = capsys.readouterr().err
        assert "does not accept the field 'max_tokens'" in error and error.count("\n") == 1
        assert "--request max_tokens=null" in error
        words = ["temperature=null", "max_tokens=null", "max_completion_tokens=256"]
        assert main([*argv, "--request", *words]) == 0
        assert main([*argv, "--request", words[0], "--request", *words[1:]]) == 0
        body = server.requests[-1].body
        assert body["max_completion_tokens"] == 256
        assert not {"max_tokens", "temperature"} & set(body)
        change = {"temperature": None, "max_tokens": None}
        with predictor(server, request=change) as asked:
            *_, report = asked.stream(PICTURE)
        assert not isinstance(report, str) and report.emotion == "happiness"
    assert main([*argv, "--request", "temperature"]) == 2
    assert "--request 'temperature' is not NAME=VALUE" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b'{"detail": "Extra inputs are not permitted: temperature"}', True),
        (b'{"error": {"message": "bad picture", "param": "messages[0].content"}}', False),
        (b'{"error": {"message": "The image could not be processed."}}', False),
        (b"temperature", False),
    ],
)
def test_a_refusal_that_names_a_field_is_about_the_request(body: bytes, named: bool) -> None:
    with pytest.raises(UserError if named else NoAnswerError):
        predicted(Reply(status=400, body=body))
