"""The gateway: what it answers, its limits, and that failures tell no secrets."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from helpers.fake_teacher import FakeTeacher, Reply
from helpers.gateway import KEY, Failing, gateway, same
from helpers.hostile_requests import ANALYZE, FACE, b64, encoded
from helpers.samples import picture
from PIL import Image

from vlmface.data.face_search import FaceSearch
from vlmface.errors import UserError
from vlmface.infer.batcher import QueueFullError
from vlmface.infer.endpoint import NoAnswerError
from vlmface.infer.predictor import Predictor
from vlmface.serving.gateway.http_errors import RequestError
from vlmface.serving.gateway.inference import _redacted
from vlmface.serving.gateway.limits import ApiKeys, InFlightLimits, RateLimiter, rate_limit_key
from vlmface.serving.gateway.settings import Settings, keys_from_env


@pytest.fixture(scope="module")
def client(predictor: Predictor) -> Iterator[TestClient]:
    with gateway(predictor) as found:
        yield found


# --- what it answers ------------------------------------------------------------------------------


def test_a_form_is_answered_as_the_predictor_does(client: TestClient, predictor: Predictor) -> None:
    reply = client.post(ANALYZE, files={"image": ("face.png", FACE)}, data={"tasks": "emotion"})
    assert reply.status_code == 200, reply.text
    found = reply.json()
    assert (found["width"], found["height"], found["skipped"]) == (64, 48, 0)
    assert found["model"] == "finished" and found["latency_s"] > 0
    assert reply.headers["x-request-id"] == found["request_id"]
    assert reply.headers["cache-control"] == "no-store"
    (expected,) = predictor.predict([picture(1, (64, 48))])
    same(found["faces"][0], expected.as_dict())


@pytest.mark.parametrize("start", ["", "data:image/png;base64,"])
def test_json_with_boxes_is_answered_box_by_box(
    client: TestClient, predictor: Predictor, start: str
) -> None:
    boxes = [[0, 0, 30, 30], [20.5, 4, 60, 48], [0, 0, 64, 48]]
    reply = client.post(ANALYZE, json={"image": start + b64(FACE), "boxes": boxes})
    assert reply.status_code == 200, reply.text
    image = picture(1, (64, 48))
    expected = predictor.predict([image] * 3, boxes=boxes)
    for found, report in zip(reply.json()["faces"], expected, strict=True):
        same(found, report.as_dict())


def test_a_clip_answers_with_its_label_and_probabilities(clip_faces: Path) -> None:
    with Predictor.load(clip_faces) as predictor, gateway(predictor) as client:
        assert client.get("/healthz").json()["tasks"] == ["emotion"]
        boxes = [[0, 0, 30, 30], [20.5, 4, 60, 48]]
        reply = client.post(ANALYZE, json={"image": b64(FACE), "boxes": boxes})
        assert reply.status_code == 200, reply.text
        expected = predictor.predict([picture(1, (64, 48))] * 2, boxes=boxes)
        for found, report in zip(reply.json()["faces"], expected, strict=True):
            said = found["answers"]["emotion"]
            assert (
                said["label"]
                == said["text"]
                == max(said["probabilities"], key=said["probabilities"].get)
            )
            assert (found["aus"], found["rationale"]) == ([], "")
            same(found, report.as_dict())


def test_a_clip_with_several_views_says_that_it_judged_the_scene_alone(clip_views: Path) -> None:
    from PIL import Image as Pictures

    field = Pictures.new("RGB", (64, 48), (90, 140, 90))
    with Predictor.load(clip_views) as predictor, gateway(predictor) as client:
        try:
            predictor.faces(field)
        except UserError as error:
            pytest.skip(str(error))
        for faces in ({}, {"faces": "largest"}, {"faces": "all"}):
            reply = client.post(ANALYZE, json={"image": b64(encoded(field, "PNG")), **faces})
            assert reply.status_code == 200, reply.text
            (found,) = reply.json()["faces"]
            assert (found["face_found"], found["scene_only"]) == (False, True), faces
            assert not found["is_confident"] and found["answers"]["context"]["label"]
        reply = client.post(ANALYZE, json={"image": b64(encoded(field, "PNG")), "faces": "none"})
        assert reply.json()["faces"][0]["face_found"] is None
        reply = client.post(ANALYZE, json={"image": b64(FACE), "boxes": [[0, 0, 30, 30]]})
        assert reply.json()["faces"][0]["scene_only"] is False


def test_base64_may_be_wrapped(client: TestClient) -> None:
    wrapped = base64.encodebytes(FACE).decode()
    assert "\n" in wrapped.strip()
    assert client.post(ANALYZE, json={"image": wrapped}).status_code == 200


def test_a_turned_photograph_is_upright_and_nothing_of_its_exif_comes_back(
    client: TestClient,
) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "SECRETCAMERA"
    photo = encoded(picture(2, (64, 48)), "JPEG", exif=exif)
    reply = client.post(ANALYZE, files={"image": photo})
    found = reply.json()
    assert (found["width"], found["height"]) == (48, 64)
    assert "SECRETCAMERA" not in reply.text + str(reply.headers)


def detect(
    monkeypatch: pytest.MonkeyPatch,
    predictor: Predictor,
    boxes: list[tuple[float, float, float, float]],
) -> None:
    """Let every picture have faces in these boxes."""
    meshes = [np.array([box[:2], box[2:]]) for box in boxes]
    for name in ("_search", "_quick_search"):
        monkeypatch.setattr(predictor, name, lambda image: FaceSearch(meshes, 20))


def test_faces_are_looked_for_if_asked(
    client: TestClient, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    boxes = [(i, i, i + 30.0, i + 30.0) for i in range(12)]
    detect(monkeypatch, predictor, boxes)
    found = client.post(ANALYZE, json={"image": b64(FACE), "faces": "all"}).json()
    assert [face["box"] for face in found["faces"]] == [list(box) for box in boxes[:10]]
    assert found["skipped"] == 2
    found = client.post(ANALYZE, json={"image": b64(FACE), "faces": "largest"}).json()
    assert [face["box"] for face in found["faces"]] == [list(boxes[0])]
    assert found["faces"][0]["face_found"] is True and found["skipped"] == 0


def test_about_a_picture_without_a_face_nothing_is_asked(
    client: TestClient, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = client.post(ANALYZE, json={"image": b64(FACE)}).json()["faces"][0]
    assert whole["face_found"] is None
    detect(monkeypatch, predictor, [])
    found = client.post(ANALYZE, files={"image": FACE}, data={"faces": "all"}).json()["faces"]
    assert len(found) == 1 and found[0]["face_found"] is False and found[0]["box"] is None
    assert whole["answers"]["emotion"]["text"] and not found[0]["answers"]["emotion"]["text"]
    assert found[0]["answers"]["emotion"]["label"] is None and not found[0]["is_confident"]


def test_without_a_detector_the_client_is_told(
    client: TestClient, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> None:
        raise UserError("pip install 'vlmface[detect]'")

    monkeypatch.setattr(predictor, "_open_detector", none)
    reply = client.post(ANALYZE, json={"image": b64(FACE), "faces": "all"})
    assert (reply.status_code, reply.json()["reason"]) == (422, "detector")
    assert "pip" not in reply.text


def test_health_and_the_openapi_page(client: TestClient, predictor: Predictor) -> None:
    assert client.get("/healthz").json() == {
        "status": "ready",
        "model": "finished",
        "tasks": list(predictor.tasks),
    }
    spec = client.get("/openapi.json").json()
    responses = spec["paths"][ANALYZE]["post"]["responses"]
    assert {"200", "400", "401", "408", "413", "415", "422", "429", "503"} <= responses.keys()
    tasks = spec["paths"][ANALYZE]["post"]["requestBody"]["content"]["multipart/form-data"]
    assert tasks["schema"]["properties"]["tasks"]["items"]["enum"] == list(predictor.tasks)
    assert client.get("/docs").status_code == 200


# --- keys, rates, sizes, load ---------------------------------------------------------------------


def test_a_key_is_needed_where_keys_are(predictor: Predictor) -> None:
    with gateway(predictor, keys=("another-key-of-characters", KEY)) as client:
        send = {"json": {"image": b64(FACE)}}
        for given in (
            None,
            "",
            "Bearer",
            f"Basic {KEY}",
            f"Bearer {KEY}x",
            f"Bearer {KEY[:-1]}",
            KEY,
        ):
            headers = {} if given is None else {"Authorization": given}
            reply = client.post(ANALYZE, headers=headers, **send)
            assert (reply.status_code, reply.json()["reason"]) == (401, "unauthorized"), given
            assert reply.headers["www-authenticate"] == "Bearer" and KEY not in reply.text
        good = client.post(ANALYZE, headers={"Authorization": f"Bearer {KEY}"}, **send)
        assert good.status_code == 200
        assert client.get("/healthz").status_code == 200
        assert "security" in client.get("/openapi.json").json()["paths"][ANALYZE]["post"]


def test_keys_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIENT_KEYS", f" {KEY},\n{KEY} another-key-of-characters,")
    assert keys_from_env("CLIENT_KEYS") == (KEY, "another-key-of-characters")
    assert keys_from_env(None) == () and KEY not in repr(Settings(keys=(KEY,)))
    assert (
        ApiKeys([KEY, "another-key-of-characters"]).check("bearer another-key-of-characters") == 1
    )
    monkeypatch.setenv("CLIENT_KEYS", " ,")
    with pytest.raises(UserError, match="CLIENT_KEYS is not set"):
        keys_from_env("CLIENT_KEYS")
    with pytest.raises(UserError, match="shorter than 16"):
        Settings(keys=("short",))
    with pytest.raises(UserError, match="max_mb is -1"):
        Settings(max_mb=-1)


def test_who_asks_too_often_is_told_when_to_come_back(predictor: Predictor) -> None:
    with gateway(predictor, rate=2) as client:
        send = {"json": {"image": b64(FACE)}}
        assert [client.post(ANALYZE, **send).status_code for _ in range(2)] == [200, 200]
        reply = client.post(ANALYZE, **send)
        assert (reply.status_code, reply.json()["reason"]) == (429, "rate")
        assert 0 < int(reply.headers["retry-after"]) <= 30


def test_rates_are_counted_by_client_and_remembered_for_a_bounded_number() -> None:
    now = 0.0
    rate = RateLimiter(60, max_clients=3, clock=lambda: now)
    for _ in range(60):
        rate.check("a")
    with pytest.raises(RequestError) as refused:
        rate.check("a")
    assert refused.value.retry_after_s == 1
    rate.check("b")
    now = 1.0
    rate.check("a")
    for i in range(1000):
        rate.check(f"client {i}")
    assert len(rate._buckets) == 3
    assert rate_limit_key("2001:db8::1", None) == rate_limit_key("2001:db8::ffff", None)
    assert rate_limit_key("192.0.2.1", None) != rate_limit_key("192.0.2.2", None)
    assert (
        rate_limit_key("::ffff:192.0.2.1", None) == rate_limit_key("192.0.2.1", None) == "192.0.2.1"
    )
    assert rate_limit_key("fe80::1%eth0", None) == "fe80::/64"
    assert rate_limit_key("192.0.2.1", 0) != rate_limit_key("192.0.2.1", 1)


def test_too_much_at_work_is_refused_at_once() -> None:
    limits = InFlightLimits(Settings(max_in_flight=1))
    with (
        limits.acquire("answering"),
        pytest.raises(RequestError, match="too many"),
        limits.acquire("answering"),
    ):
        pass
    assert limits.idle
    with limits.acquire("answering"):
        limits.draining = True
    with pytest.raises(RequestError, match="shutting down"), limits.acquire("reading"):
        pass


@pytest.mark.parametrize(
    "error, status, reason",
    [
        (QueueFullError("64 wait already"), 429, "busy"),
        (NoAnswerError("HTTP 503 SECRET", retryable=True, wait_s=7), 503, "no_answer"),
        (NoAnswerError("HTTP 400 SECRET", retryable=False), 502, "upstream"),
        (
            UserError("the picture is odd, see /srv/SECRET/file or http://SECRET:8000/v1"),
            422,
            "model",
        ),
        (ZeroDivisionError("SECRET"), 500, "crash"),
    ],
)
def test_failures_have_a_status_and_tell_no_secrets(
    error: Exception, status: int, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with gateway(Failing(error)) as client, caplog.at_level("INFO"):
        reply = client.post(ANALYZE, json={"image": b64(FACE)})
        assert (reply.status_code, reply.json()["reason"]) == (status, reason)
        assert reply.headers["x-request-id"] == reply.json()["request_id"]
        assert "SECRET" not in reply.text + str([vars(record) for record in caplog.records])
        if status in (429, 503):
            assert reply.headers["retry-after"] == ("7" if status == 503 else "1")
        metrics = client.get("/metrics").text
        assert f'vlmface_gateway_rejected_total{{reason="{reason}"}} 1.0' in metrics
        assert f'requests_total{{route="{ANALYZE}",status="{status}"}} 1.0' in metrics


def test_a_server_that_has_the_model_fails_in_its_own_name(run_dir: Path) -> None:
    says = "<think>She smiles.</think><answer>happiness</answer>"
    replies = [
        Reply(text=says),
        Reply(status=401, text="SECRET"),
        Reply(status=400, text="SECRET"),
        Reply(status=503, text="SECRET", headers={"Retry-After": "9"}),
    ]
    expected = [(200, None), (502, "upstream"), (502, "upstream"), (503, "no_answer")]
    with (
        FakeTeacher(lambda asked: replies[asked.number]) as teacher,
        Predictor.load(teacher.url, run_dir=run_dir, attempts=1) as served,
        gateway(served) as client,
    ):
        send = {"files": {"image": FACE}, "data": {"faces": "none"}}
        found = [client.post(ANALYZE, **send) for _ in replies]
        assert [(one.status_code, one.json().get("reason")) for one in found] == expected
        assert found[0].json()["faces"][0]["answers"]["emotion"]["text"] == says
        assert found[3].headers["retry-after"] == "9"
        for one in found[1:]:
            assert "SECRET" not in one.text and "127.0.0.1" not in one.text


def test_messages_keep_what_helps_and_drop_where_it_was() -> None:
    assert _redacted(
        UserError("'/data/x/y.png' is cut off (<_io.BytesIO object at 0x7f00aa>)")
    ) == ("... is cut off (<_io.BytesIO object at ...")
    kept = "the image bytes holds text (16 x 16, 24.0 megapixels, and/or so)"
    assert _redacted(UserError(kept)) == kept


def test_a_model_that_hangs_is_given_up(predictor: Predictor) -> None:
    class Hanging(Failing):
        async def apredict_view(self, *_: Any, **__: Any) -> Any:
            await asyncio.sleep(60)

    with gateway(Hanging(Exception()), answer_timeout_s=0.2) as client:
        reply = client.post(ANALYZE, json={"image": b64(FACE)})
        assert (reply.status_code, reply.json()["reason"]) == (504, "timeout")
        assert "vlmface_gateway_answering 0.0" in client.get("/metrics").text


def test_metrics_count_faces_and_only_known_routes(predictor: Predictor) -> None:
    with gateway(predictor) as client:
        boxes = [[0, 0, 30, 30], [0, 0, 64, 48]]
        client.post(ANALYZE, json={"image": b64(FACE), "boxes": boxes})
        client.get("/nowhere/a"), client.get("/nowhere/b")
        text = client.get("/metrics").text
    assert "vlmface_gateway_faces_total 2.0" in text
    assert 'requests_total{route="other",status="404"} 2.0' in text
    assert "nowhere" not in text
    assert f'request_seconds_count{{route="{ANALYZE}"}} 1.0' in text
