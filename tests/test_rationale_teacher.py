"""The teacher writer against a real server on this machine that misbehaves in every known way."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from helpers.fake_teacher import FakeTeacher, Reply, TeacherRequest, completion

from vlmface import facs, label_spaces
from vlmface.errors import UserError
from vlmface.infer.endpoint import Endpoint
from vlmface.infer.jobs import MAX_CONSECUTIVE_FAILURES
from vlmface.rationale import teacher_prompts, verify
from vlmface.rationale.ground_truth import GroundTruth
from vlmface.rationale.teacher import Job, Teacher
from vlmface.resources import resource
from vlmface.utils.jsonl_journal import Journal

SPACE = label_spaces.SPACES["emotion8"]
LIMITS = verify.Limits()
ANGER = GroundTruth("anger", {4: 3.0, 7: 2.0}, frozenset(facs.AU_NUMBERS))


def ask(url: str, path: Path, *, n: int = 1, prompt: str = "with_label", repairs: int = 1, **more):
    """(records by id, the Teacher) after asking about `n` angry faces."""
    options = {"backoff_s": 0.01, "timeout_s": 10.0, "concurrency": 4} | more
    teacher = Teacher(Endpoint(url, "big-model", **options), teacher_prompts.load(prompt), repairs)
    with Journal(path / "answers.jsonl") as journal:
        jobs = (
            Job(
                f"f{i}",
                teacher.prompt.messages(ANGER, SPACE, LIMITS, f"data:image/jpeg;base64,{i}"),
                lambda text: verify.check(text, ANGER, SPACE, "think_answer", LIMITS),
            )
            for i in range(n)
            if f"f{i}" not in journal.records
        )
        teacher.run(jobs, journal, lambda: None)
        return dict(journal.records), teacher


def once(reply: Reply, times: int = 1):
    """Misbehave on the first requests about a face, then answer."""
    return lambda asked: reply if asked.round < times else None


def wrapped(text: str, label: str) -> str:
    return f"<think>{text}</think>\n<answer>{label}</answer>"


def kept(record) -> bool:
    return verify.check(record["text"], ANGER, SPACE, "think_answer", LIMITS).kept


# --- a server that behaves ------------------------------------------------------------------------


def test_what_is_sent_and_what_comes_back(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret-123")
    with FakeTeacher() as server:
        records, _ = ask(
            server.url + "/",
            tmp_path,
            api_key_env="MY_KEY",
            request={"max_tokens": 9, "top_p": None},
        )
    (asked,) = server.requests
    assert asked.headers["path"] == "/v1/chat/completions"
    assert asked.headers["authorization"] == "Bearer secret-123"
    assert {k: v for k, v in asked.body.items() if k != "messages"} == {
        "model": "big-model",
        "max_tokens": 9,
    }
    assert asked.face == "data:image/jpeg;base64,0"
    assert asked.aus() == [4, 7] and "The expression is anger." in asked.prompt()
    assert "AU4 brow lowerer (clearly): the brows are lowered" in asked.prompt()
    assert records["f0"] == {
        "id": "f0",
        "text": asked.right(),
        "requests": 1,
        "prompt_tokens": 1000,
        "completion_tokens": 100,
        "requests_without_usage": 0,
    }
    assert "secret" not in (tmp_path / "answers.jsonl").read_text()


def test_as_many_at_a_time_as_allowed(tmp_path):
    with FakeTeacher(lambda asked: Reply(delay=0.1)) as server:
        records, _ = ask(server.url, tmp_path, n=12, concurrency=3)
    assert len(records) == len(server.requests) == 12
    assert server.most_at_once == 3


def test_finished_faces_are_not_asked_again(tmp_path):
    with FakeTeacher() as server:
        ask(server.url, tmp_path, n=3)
        records, _ = ask(server.url, tmp_path, n=5)
    assert len(server.requests) == len(records) == 5


# --- a server that misbehaves ---------------------------------------------------------------------


def test_retry_after_is_honoured(tmp_path):
    with FakeTeacher(once(Reply(status=429, headers={"Retry-After": "1"}))) as server:
        start = time.monotonic()
        records, _ = ask(server.url, tmp_path)
        assert time.monotonic() - start >= 1
    assert kept(records["f0"]) and len(server.requests) == 2


def test_retry_after_may_be_a_date(tmp_path):
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
    with FakeTeacher(once(Reply(status=503, headers={"Retry-After": date}))) as server:
        start = time.monotonic()
        records, _ = ask(server.url, tmp_path)
        assert time.monotonic() - start >= 0.5
    assert kept(records["f0"])


def test_a_wait_of_hours_stops_the_build(tmp_path):
    with (
        FakeTeacher(once(Reply(status=429, headers={"Retry-After": "7200"}))) as server,
        pytest.raises(UserError, match="asks to wait 120 minutes: rerun the same command"),
    ):
        ask(server.url, tmp_path)


@pytest.mark.parametrize(
    "reply",
    [
        Reply(status=500),
        Reply(status=503, body=b"<html>overloaded</html>"),
        Reply(body=completion("x" * 200)[:90]),
        Reply(body=b"{}"),
        Reply(body=b'{"choices": [{"message": {"content": ["a"]}}]}'),
        Reply(body=b'{"choices": []}'),
    ],
)
def test_passing_errors_are_retried(tmp_path, reply):
    with FakeTeacher(once(reply, times=2)) as server:
        records, _ = ask(server.url, tmp_path)
    assert kept(records["f0"]) and records["f0"]["requests"] == 1 and len(server.requests) == 3


def test_a_timeout_is_retried(tmp_path):
    with FakeTeacher(once(Reply(delay=1.5))) as server:
        records, _ = ask(server.url, tmp_path, timeout_s=0.5)
    assert kept(records["f0"]) and len(server.requests) == 2


def test_wrong_aus_are_right_after_the_repair_request(tmp_path):
    wrong = wrapped("The brows are raised (AU4) and AU12 is there: anger.", "anger")
    with FakeTeacher(once(Reply(text=wrong))) as server:
        records, _ = ask(server.url, tmp_path)
    first, second = server.requests
    assert second.body["messages"][:-2] == first.body["messages"]
    assert second.body["messages"][-2] == {"role": "assistant", "content": wrong}
    repair = second.body["messages"][-1]["content"]
    for fault in ("leaves out AU7", "names AU12", '"The brows are raised" does not describe AU4'):
        assert fault in repair
    record = records["f0"]
    assert kept(record) and record["first"] == wrong
    assert record["first_reasons"] == ["missing_au", "hallucinated_au", "contradiction"]
    assert (record["requests"], record["prompt_tokens"]) == (2, 2000)


def test_a_text_that_stays_wrong_is_kept_for_the_verdict(tmp_path):
    with FakeTeacher(lambda asked: Reply(text="It is anger.")) as server:
        records, _ = ask(server.url, tmp_path, repairs=2)
    assert len(server.requests) == 3 and not kept(records["f0"])


def test_an_empty_text_is_a_text(tmp_path):
    with FakeTeacher(lambda asked: Reply(body=completion(None))) as server:
        records, _ = ask(server.url, tmp_path)
    assert records["f0"]["text"] == "" and len(server.requests) == 2


def test_a_repair_never_tells_what_the_prompt_holds_back(tmp_path):
    wrong = wrapped("The brows are lowered (AU4), the lids tense (AU7): fear.", "fear")
    with FakeTeacher(lambda asked: Reply(text=wrong)) as server:
        records, _ = ask(server.url, tmp_path, prompt="without_label")
    assert len(server.requests) == 1 and "first" not in records["f0"]
    assert "The expression is" not in server.requests[0].prompt()


def test_one_refused_face_does_not_stop_the_others(tmp_path):
    def behave(asked: TeacherRequest) -> Reply | None:
        if asked.face.endswith(",2"):
            return Reply(status=400, body=b"image too large")
        if asked.face.endswith(",3"):
            return Reply(body=completion("", finish_reason="content_filter"))
        return None

    with FakeTeacher(behave) as server:
        records, teacher = ask(server.url, tmp_path, n=6)
    assert sorted(records) == ["f0", "f1", "f4", "f5"] and len(server.requests) == 6
    assert teacher.unanswered == {
        "f2": "HTTP 400 image too large",
        "f3": "the endpoint's content filter blocked it",
    }


@pytest.mark.parametrize("status", [401, 403, 404, 302])
def test_what_no_face_can_change_stops_at_once(tmp_path, status):
    headers = {"Location": "http://127.0.0.1:9/elsewhere"}
    with FakeTeacher(
        lambda asked: Reply(status=status, body=b"no such model", headers=headers)
    ) as server:
        with pytest.raises(UserError, match=f"answers HTTP {status}: no such model; check URL"):
            ask(server.url, tmp_path, n=20, concurrency=2)
        assert len(server.requests) <= 2


def test_an_endpoint_that_is_gone_stops_the_build(tmp_path):
    with FakeTeacher() as server:
        ask(server.url, tmp_path, n=2)
    with pytest.raises(
        UserError, match=r"no answer for 5 faces in a row \(last: ConnectError.*2 faces"
    ):
        ask(server.url, tmp_path, n=40, attempts=2)
    assert MAX_CONSECUTIVE_FAILURES == 5


# --- settings, journal, prompts -------------------------------------------------------------------


@pytest.mark.parametrize(
    "endpoint, message",
    [
        (Endpoint("localhost:8000", "m"), "is not a URL"),
        (Endpoint("http://me:secret@host/v1", "m"), "holds credentials"),
        (Endpoint("https://host/v1?key=secret", "m"), "holds credentials"),
        (
            Endpoint("https://host/v1", "m", api_key_env="NOT_SET_ANYWHERE"),
            "NOT_SET_ANYWHERE is not",
        ),
        (Endpoint("https://host/v1", "m", concurrency=0), "concurrency is 0"),
    ],
)
def test_endpoints_that_cannot_work(endpoint, message):
    with pytest.raises(UserError, match=message) as error:
        endpoint.check()
    assert "secret" not in str(error.value)


def test_a_line_cut_by_a_kill_is_dropped(tmp_path):
    path = tmp_path / "j.jsonl"
    with Journal(path) as journal:
        journal.add({"id": "a", "text": "\ud800 ü"})
        journal.add({"id": "b"})
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:9])
    with Journal(path) as journal:
        assert set(journal.records) == {"a", "b"}
        assert journal.records["a"]["text"] == "\ud800 ü"
        with pytest.raises(UserError, match=r"j\.jsonl is in use by process \d+ on "):
            Journal(path)
        journal.add({"id": "c"})
    assert path.read_bytes() == whole + b'{"id": "c"}\n'
    path.write_text("nonsense\n")
    with pytest.raises(UserError, match=r"line 1 is damaged"):
        Journal(path)


PROMPTS = sorted(file.stem for file in resource("prompts/teacher").glob("*.yaml"))


def test_shipped_prompts(tmp_path):
    assert PROMPTS == ["with_label", "without_label"]
    for id in PROMPTS:
        prompt = teacher_prompts.load(id)
        assert prompt.id == id and prompt.shows_aus
        assert prompt.shows_label == (id == "with_label")
        system, user = prompt.messages(ANGER, SPACE, LIMITS, "data:...")
        assert (system["role"], user["role"]) == ("system", "user")
        text = user["content"][1]["text"]
        assert "{" not in text and "150 words" in text
        assert ("anger" in text.replace("anger, contempt", "")) == prompt.shows_label
        assert len(prompt.sha(SPACE, LIMITS)) == 12
        assert prompt.sha(SPACE, LIMITS) != prompt.sha(label_spaces.SPACES["emotion7"], LIMITS)
        assert prompt.sha(SPACE, LIMITS) != prompt.sha(SPACE, verify.Limits(max_words=99))
    neutral = GroundTruth("neutral", {}, frozenset())
    told = json.dumps(teacher_prompts.load("with_label").messages(neutral, SPACE, LIMITS, ""))
    assert "none: no muscle moves visibly" in told


def test_prompts_of_ones_own(tmp_path):
    path = tmp_path / "mine.yaml"
    good = (
        "id: mine\nversion: 1\nformat: think_answer\nsource: me\n"
        "user: Why? {candidates}\nrepair: '{faults}'\n"
    )
    path.write_text(good)
    prompt = teacher_prompts.load(path)
    assert not prompt.shows_label and not prompt.shows_aus
    for change, message in (
        (("{candidates}", "{face}"), r"placeholder {face}: use {aus}"),
        (("think_answer", "label"), "format is 'label'"),
        (("source", "sauce"), "no setting 'sauce'"),
    ):
        path.write_text(good.replace(*change))
        with pytest.raises(UserError, match=message):
            teacher_prompts.load(path)
    with pytest.raises(UserError, match="unknown teacher prompt 'best': use one of with_label"):
        teacher_prompts.load("best")
