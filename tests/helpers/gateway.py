"""A gateway in this process, or at a port, and what it answers."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient

from helpers.hostile_requests import ANALYZE, FACE
from vlmface.infer.face_views import FaceView
from vlmface.infer.predictor import Predictor
from vlmface.serving.gateway.app import create_app
from vlmface.serving.gateway.command import GracefulServer
from vlmface.serving.gateway.settings import Settings

KEY = "a-key-of-enough-characters"


@contextlib.contextmanager
def gateway(predictor: Any, **settings: Any) -> Iterator[TestClient]:
    app = create_app(predictor, Settings(**settings))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def timeless(face: dict[str, Any]) -> dict[str, Any]:
    answers = {
        task: {k: v for k, v in said.items() if k != "latency_s"}
        for task, said in face["answers"].items()
    }
    return {**face, "answers": answers}


def same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Equal, probabilities to rounding: pictures may be answered in other batches."""
    found, expected = timeless(found), timeless(expected)
    for task, said in expected["answers"].items():
        likely = found["answers"][task].pop("probabilities")
        assert likely == pytest.approx(said.pop("probabilities"), abs=1e-4)
    assert found == expected


class Failing:
    """A predictor that fails in one way."""

    name, tasks, backend, default_faces = "failing", ("emotion",), None, "none"

    def __init__(self, error: Exception) -> None:
        self.error = error

    def face_views(self, image: Any, **_: Any) -> list[FaceView]:
        return [FaceView(image, None, None)]

    def select_prompts(self, tasks: Any) -> dict[str, Any]:
        return {}

    async def apredict_view(self, *_: Any, **__: Any) -> Any:
        raise self.error


class Live:
    """A gateway in a thread of this process, at a real port."""

    def __init__(self, predictor: Predictor, **settings: Any) -> None:
        self.server = GracefulServer(predictor, Settings(**settings))
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.thread = threading.Thread(target=self.server.run, args=[[self.listener]])
        self.client = httpx2.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=30)

    def __enter__(self) -> Live:
        self.thread.start()
        wait_for(lambda: self.server.started)
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.server.handle_exit(signal.SIGTERM, None)
        self.thread.join(20)
        assert not self.thread.is_alive()

    def raw(self, *pieces: bytes, pause_s: float = 0.0) -> tuple[int, str]:
        """(status, all of the reply) to bytes sent as they are."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=15) as connection:
            for piece in pieces:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    connection.sendall(piece)
                time.sleep(pause_s)
            found = b""
            with contextlib.suppress(ConnectionResetError, TimeoutError):
                while piece := connection.recv(65536):
                    found += piece
        text = found.decode("utf-8", "replace")
        status = re.match(r"HTTP/1\.1 (\d+)", text)
        return int(status[1]) if status else 0, text

    def honest(self) -> None:
        reply = self.client.post(ANALYZE, files={"image": FACE})
        assert reply.status_code == 200, reply.text


def wait_for(true: Callable[[], bool], seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.02)
