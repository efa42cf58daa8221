"""A real HTTP server that speaks the OpenAI chat protocol, writes right rationales, and misbehaves
on request."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from vlmface import facs
from vlmface.rationale import rules


@dataclass
class Reply:
    """What the server sends: after `delay` seconds a status, headers and a body. A `text` is
    wrapped as a chat completion; `body` is sent as it is, `pieces` one by one, `pause` seconds
    apart, behind a length that is never reached."""

    text: str | None = None
    body: bytes | None = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    pieces: Iterable[bytes] | None = None
    pause: float = 0.0


@dataclass
class TeacherRequest:
    """A request as the server saw it: which of all it is, and which about its face."""

    number: int
    round: int
    face: str
    body: dict[str, Any]
    headers: dict[str, str]

    def aus(self) -> list[int]:
        return [int(n) for n in re.findall(r"^- AU(\d+) ", self.prompt(), re.MULTILINE)]

    def prompt(self) -> str:
        user = next(m for m in self.body["messages"] if m["role"] == "user")
        return user["content"][1]["text"]

    def right(self) -> str:
        """What a good teacher says: all AUs that it was told, and the label if it was told."""
        told = re.search(r"The expression is (\w+)\.", self.prompt())
        scores = facs.evidence(self.aus())
        label = told[1] if told else max(scores, key=scores.__getitem__)
        return rules.write(dict.fromkeys(self.aus(), 3.0), label, seed=self.number, style="varied")


class FakeTeacher:
    """`behave(asked)` returns a Reply, or None for a right answer. Counts what it saw."""

    def __init__(
        self, behave: Callable[[TeacherRequest], Reply | None] = lambda asked: None
    ) -> None:
        self.behave = behave
        self.requests: list[TeacherRequest] = []
        self.models = ["teacher"]  # what it says that it serves
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        teacher = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                teacher.handle(self)

            def do_GET(self) -> None:
                content = json.dumps({"data": [{"id": id} for id in teacher.models]}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *arguments: Any) -> None:
                """Nothing on stderr."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def handle(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self.lock:
            face = next(m for m in body["messages"] if m["role"] == "user")["content"][0]
            face = face["image_url"]["url"]
            before = sum(asked.face == face for asked in self.requests)
            headers = {name.lower(): value for name, value in handler.headers.items()}
            asked = TeacherRequest(
                len(self.requests), before, face, body, headers | {"path": handler.path}
            )
            self.requests.append(asked)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        reply = self.behave(asked) or Reply()
        time.sleep(reply.delay)
        content = reply.body
        if content is None and reply.pieces is None:
            text = asked.right() if reply.text is None else reply.text
            content = completion(text)
        content = content or b""
        with self.lock:
            self.at_once -= 1
        try:
            handler.send_response(reply.status)
            for name, value in reply.headers.items():
                handler.send_header(name, value)
            length = len(content) if reply.pieces is None else 10**12
            handler.send_header("Content-Length", str(length))
            handler.end_headers()
            handler.wfile.write(b"" if reply.pieces is not None else content)
            for piece in reply.pieces or ():
                handler.wfile.write(piece)
                handler.wfile.flush()
                time.sleep(reply.pause)
        except OSError:
            handler.close_connection = True  # the client has given up or was killed

    def __enter__(self) -> FakeTeacher:
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def completion(text: str | None, **choice: Any) -> bytes:
    """A chat completion of 1000 prompt and 100 completion tokens."""
    message = {"role": "assistant", "content": text}
    return json.dumps(
        {
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"} | choice],
            "usage": {"prompt_tokens": 1000, "completion_tokens": 100},
        }
    ).encode()
