"""The gateway at a real port: hostile requests, slow clients, all that its schema allows."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import hypothesis
import pytest
import schemathesis
from fastapi.testclient import TestClient
from helpers.gateway import KEY, Failing, Live, gateway, same, wait_for
from helpers.hostile_requests import ANALYZE, FACE, GOOD, HEAD, HOSTILE, RAW, b64, encoded
from helpers.samples import picture
from PIL import Image
from schemathesis import GenerationMode

from vlmface.infer.predictor import Predictor
from vlmface.serving.gateway import command
from vlmface.serving.gateway.app import create_app
from vlmface.serving.gateway.settings import Settings
from vlmface.utils.hosts import Hosts

# --- a real server --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client(predictor: Predictor) -> Iterator[TestClient]:
    with gateway(predictor) as found:
        yield found


@pytest.fixture(scope="module")
def live(predictor: Predictor) -> Iterator[Live]:
    with Live(predictor, max_mb=1, max_megapixels=4, body_timeout_s=1, max_faces=4) as found:
        yield found


def test_the_hostile_set_is_large() -> None:
    assert len(HOSTILE) >= 150


def test_hostile_requests_are_refused_with_a_reason_and_the_next_honest_one_is_served(
    live: Live,
) -> None:
    wrong = []
    for name, (status, reason, how) in HOSTILE.items():
        how = {"method": "POST", "url": ANALYZE, **how}
        reply = live.client.request(**how)
        found = reply.json()
        if (reply.status_code, found.get("reason")) != (status, reason):
            wrong.append(f"{name}: {reply.status_code} {reply.text}")
        assert found["message"] and found["request_id"] == reply.headers["x-request-id"], name
        assert "root:" not in reply.text and "set-cookie" not in reply.headers, name
        live.honest()
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", RAW)
def test_broken_http_is_refused(live: Live, name: str) -> None:
    status, sent = RAW[name]
    found, reply = live.raw(sent)
    assert found == status, reply[:300]
    assert "set-cookie" not in reply.lower()
    live.honest()


def test_a_body_that_drips_is_answered_408(live: Live) -> None:
    began = time.monotonic()
    status, reply = live.raw(HEAD + b"Content-Length: 1000\r\n\r\n", *[b" "] * 15, pause_s=0.1)
    assert status == 408 and '"slow"' in reply
    assert time.monotonic() - began < 5
    live.honest()


def test_many_drips_do_not_keep_others_out(predictor: Predictor) -> None:
    with Live(predictor, max_in_flight=4, body_timeout_s=5) as live:
        drips = [socket.create_connection(("127.0.0.1", live.port)) for _ in range(7)]
        for drip in drips:
            drip.sendall(HEAD + b"Content-Length: 1000\r\n\r\n[")
        wait_for(lambda: live.server.limits.in_flight["reading"] == 7)
        live.honest()
        drips.append(socket.create_connection(("127.0.0.1", live.port)))
        drips[-1].sendall(HEAD + b"Content-Length: 1000\r\n\r\n[")
        wait_for(lambda: live.server.limits.in_flight["reading"] == 8)
        reply = live.client.post(ANALYZE, files={"image": FACE})
        assert reply.status_code == 429 and reply.headers["retry-after"] == "1"
        for drip in drips:
            drip.close()
        wait_for(lambda: live.server.limits.idle)
        live.honest()


def test_an_address_that_a_client_makes_up_is_not_believed(predictor: Predictor) -> None:
    with Live(predictor, rate=2) as live:
        statuses = [
            live.client.post(
                ANALYZE, json={"image": GOOD}, headers={"X-Forwarded-For": f"192.0.2.{i}"}
            ).status_code
            for i in range(4)
        ]
    assert statuses == [200, 200, 429, 429]


def test_connections_without_a_request_are_closed(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vlmface.serving.gateway import command

    monkeypatch.setattr(command, "IDLE_TIMEOUT_S", 0.3)
    with Live(predictor, max_mb=0.001) as live:
        for sent in (b"", b"POST /v1/ana", b"GET / HTTP/1.1\r\nHost"):
            began = time.monotonic()
            assert live.raw(sent) == (0, "")
            assert time.monotonic() - began < 3
        endless = HEAD.replace(b"Connection: close\r\n", b"") + b"Content-Length: 99999999\r\n\r\n"
        began = time.monotonic()
        with socket.create_connection(("127.0.0.1", live.port), timeout=10) as connection:
            connection.sendall(endless + bytes(5000))
            assert connection.recv(1000).startswith(b"HTTP/1.1 413")
            with contextlib.suppress(OSError):
                while time.monotonic() - began < 8:  # its timer for idle ones starts anew each time
                    connection.sendall(b"x")
                    time.sleep(0.05)
            assert time.monotonic() - began < 3


def test_many_clients_are_answered_as_alone(live: Live, predictor: Predictor) -> None:
    images = [picture(seed, (64, 48)) for seed in range(24)]
    expected = predictor.predict(images)

    def ask(image: Image.Image) -> Any:
        return live.client.post(ANALYZE, files={"image": encoded(image)})

    with ThreadPoolExecutor(24) as pool:
        replies = list(pool.map(ask, images))
    for reply, report in zip(replies, expected, strict=True):
        assert reply.status_code == 200
        same(reply.json()["faces"][0], report.as_dict())


def test_what_a_client_that_hung_up_asked_is_not_answered() -> None:
    begun, ended = threading.Event(), threading.Event()

    class Slow(Failing):
        async def apredict_view(self, *_: Any, **__: Any) -> Any:
            begun.set()
            try:
                await asyncio.sleep(30)
            finally:
                ended.set()

    with Live(Slow(Exception()), drain_s=1) as live:  # type: ignore[arg-type]
        content = json.dumps({"image": GOOD}).encode()
        with socket.create_connection(("127.0.0.1", live.port)) as connection:
            connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(content) + content)
            assert begun.wait(10) and live.server.limits.in_flight["answering"] == 1
        assert ended.wait(5)


def test_told_to_stop_it_finishes_what_is_at_work(predictor: Predictor) -> None:
    go, report = threading.Event(), predictor.predict([picture(1, (64, 48))])[0]

    class Slow(Failing):
        async def apredict_view(self, *_: Any, **__: Any) -> Any:
            await asyncio.to_thread(go.wait, 20)
            return report

    live = Live(Slow(Exception()))  # type: ignore[arg-type]
    with live, ThreadPoolExecutor(3) as pool:
        begun = [pool.submit(live.client.post, ANALYZE, json={"image": GOOD}) for _ in range(3)]
        wait_for(lambda: live.server.limits.in_flight["answering"] == 3)
        live.server.handle_exit(signal.SIGTERM, None)
        health = live.client.get("/healthz")
        assert (health.status_code, health.json()["status"]) == (503, "draining")
        late = live.client.post(ANALYZE, json={"image": GOOD})
        assert (late.status_code, late.json()["reason"]) == (503, "draining")
        assert late.headers["retry-after"] == "1" and live.thread.is_alive()
        go.set()
        assert [future.result().status_code for future in begun] == [200, 200, 200]
        live.thread.join(10)
        assert not live.thread.is_alive()


# --- every request that the schema allows, and many that it does not -----------------------------


@pytest.fixture(scope="module")
def api(predictor: Predictor) -> Any:
    app = create_app(predictor, Settings(keys=(KEY,), max_mb=0.1))
    config = schemathesis.Config.from_dict(
        {
            # That a string is a picture cannot be said in a schema.
            "checks": {"positive_data_acceptance": {"expected-statuses": [200, 413, 422]}},
            "auth": {"openapi": {"HTTPBearer": {"bearer": KEY}}},
        }
    )
    return schemathesis.openapi.from_asgi("/openapi.json", app, config=config)


def checked(strategy: Any, n: int) -> set[int]:
    """The statuses of n requests, each of which must be what the schema says."""
    statuses = set()

    @hypothesis.settings(
        max_examples=n,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(strategy)
    def holds(case: schemathesis.Case) -> None:
        statuses.add(case.call_and_validate().status_code)

    holds()
    return statuses


@pytest.mark.parametrize("mode", GenerationMode)
def test_requests_made_from_the_schema_are_answered_as_it_says(
    api: Any, mode: GenerationMode
) -> None:
    statuses = checked(api[ANALYZE]["POST"].as_strategy(mode), 100)
    assert (422 if mode.is_positive else 400) in statuses and max(statuses) < 500


def test_requests_made_from_the_schema_with_a_real_picture_are_answered(api: Any) -> None:
    def pictured(case: Any) -> Any:
        case.body["image"] = GOOD if case.media_type == "application/json" else FACE
        return case

    assert 200 in checked(api[ANALYZE]["POST"].as_strategy().map(pictured), 40)


@pytest.mark.parametrize("path", ["/healthz", "/metrics"])
def test_health_and_metrics_are_as_the_schema_says(api: Any, path: str) -> None:
    assert checked(api[path]["GET"].as_strategy(), 3) == {200}


# --- other sites, clients that do not read, costly pictures ---------------------------------------


def test_pages_of_other_sites_are_refused_before_anything_is_read(predictor: Predictor) -> None:
    app = create_app(predictor, Settings(), Hosts.for_server("127.0.0.1", ["faces.test"]))
    send = {"json": {"image": b64(FACE)}}
    with TestClient(app, base_url="http://127.0.0.1:8080") as client:
        assert client.post(ANALYZE, **send).status_code == 200
        for headers in (
            {"Host": "attacker.test"},
            {"Origin": "http://attacker.test"},
            {"Origin": "null"},
            {"Origin": "http://127.0.0.1:3000"},
        ):
            for reply in (
                client.post(ANALYZE, headers=headers, **send),
                *(
                    client.get(path, headers=headers)
                    for path in ("/healthz", "/metrics", "/docs", "/openapi.json", "/nowhere")
                ),
            ):
                assert (reply.status_code, reply.json()["reason"]) == (403, "host"), headers
                assert reply.headers["x-request-id"] == reply.json()["request_id"]
        for headers in (
            {"Host": "faces.test"},
            {"Origin": "http://127.0.0.1:8080"},
            {"Host": "localhost:1"},
            {"Origin": "https://faces.test"},
        ):
            assert client.post(ANALYZE, headers=headers, **send).status_code == 200


def test_no_path_is_redirected(client: TestClient) -> None:
    for path in (f"{ANALYZE}/", "/healthz/", "/metrics/"):
        assert client.get(path, follow_redirects=False).status_code == 404


def test_a_client_that_does_not_read_its_answers_is_cut_off(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "IDLE_TIMEOUT_S", 0.1)
    monkeypatch.setattr(command, "CLIENT_READ_TIMEOUT_S", 0.3)
    asked = b"GET /openapi.json HTTP/1.1\r\nHost: gateway\r\n\r\n"
    with Live(predictor) as live, socket.socket() as lazy:
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lazy.connect(("127.0.0.1", live.port))
        lazy.settimeout(5)
        with contextlib.suppress(TimeoutError, ConnectionError):
            lazy.sendall(asked * 5_000)
        wait_for(lambda: not live.server.server_state.connections)
        live.honest()
