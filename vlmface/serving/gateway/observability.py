"""Request ids, a log line a request, metrics: counts and times, nothing of pictures or answers."""

from __future__ import annotations

import json
import logging
import re
import time
import traceback
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vlmface.serving.gateway.http_errors import Refusal
from vlmface.serving.gateway.limits import Load
from vlmface.utils.hosts import Hosts

LOGGER = logging.getLogger("vlmface.serving.gateway")
ID = "[A-Za-z0-9._-]{1,64}"
BUCKETS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)  # s
_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


@dataclass
class Record:
    """What is known of a request while it is answered."""

    request_id: str
    route: str
    method: str
    began: float = field(default_factory=time.perf_counter)
    reason: str | None = None
    faces: int = 0
    size: int = 0  # bytes of its body that were read
    status: int = 0

    @property
    def seconds(self) -> float:
        return round(time.perf_counter() - self.began, 4)


def record_of(scope: Scope) -> Record:
    found = scope["vlmface"]
    assert isinstance(found, Record)
    return found


class Metrics:
    """Prometheus' counts of one gateway."""

    def __init__(self, load: Load) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._of(
            Counter, "requests", "Requests by route and status", "route", "status"
        )
        self.seconds = self._of(
            Histogram, "request_seconds", "Time to answer", "route", buckets=BUCKETS
        )
        self.faces = self._of(Counter, "faces", "Faces that were reported on")
        self.rejected = self._of(Counter, "rejected", "Requests without an answer", "reason")
        for name in load.at_work:
            gauge = self._of(
                Gauge,
                name,
                {
                    "reading": "Requests whose body is arriving",
                    "answering": "Requests that wait for their answer",
                    "pixels": "Pixels of the pictures in memory",
                }[name],
            )
            gauge.set_function(lambda name=name: load.at_work[name])

    def _of(self, kind: Any, name: str, text: str, *labels: str, **how: Any) -> Any:
        return kind(f"vlmface_gateway_{name}", text, labels, registry=self.registry, **how)

    def count(self, record: Record) -> None:
        self.requests.labels(record.route, str(record.status)).inc()
        self.seconds.labels(record.route).observe(record.seconds)
        self.faces.inc(record.faces)
        if record.reason:
            self.rejected.labels(record.reason).inc()


class Observed:
    """Wraps an app: every request has an id, is logged and counted, and is answered whatever
    happens."""

    def __init__(
        self, app: ASGIApp, metrics: Metrics, routes: frozenset[str], hosts: Hosts | None
    ) -> None:
        self.app, self.metrics, self.routes, self.hosts = app, metrics, routes, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"]
        record = Record(uuid.uuid4().hex, path if path in self.routes else "other", scope["method"])
        scope["vlmface"] = record

        async def receiving() -> Message:
            message = await receive()
            record.size += len(message.get("body", b""))
            return message

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                added = {**_HEADERS, "X-Request-ID": record.request_id}
                message["headers"] = [
                    *message["headers"],
                    *((name.encode(), value.encode()) for name, value in added.items()),
                ]
            await send(message)

        try:
            try:
                record.request_id = _own_id(scope) or record.request_id
                if self.hosts is not None and (problem := self.hosts.problem(scope["headers"])):
                    raise Refusal("host", problem)
            except Refusal as refusal:
                await failure(record, refusal)(scope, receiving, sending)
            else:
                await self.app(scope, receiving, sending)
        except Exception as error:
            log(
                "crash", request_id=record.request_id, error=type(error).__name__, at=_places(error)
            )
            if record.status:  # too late for another answer
                raise
            crash = Refusal("crash", "the gateway has a fault: tell whoever runs it this id")
            await failure(record, crash)(scope, receiving, sending)
        finally:
            self.metrics.count(record)
            log(
                "request",
                request_id=record.request_id,
                method=_known(record.method),
                route=record.route,
                status=record.status,
                reason=record.reason,
                seconds=record.seconds,
                bytes=record.size,
                faces=record.faces,
            )


def failure(record: Record, refusal: Refusal) -> JSONResponse:
    """The answer to a request that is refused, which is noted."""
    record.reason = refusal.reason
    return JSONResponse(
        {"request_id": record.request_id, "reason": refusal.reason, "message": refusal.message},
        refusal.status,
        dict(refusal.headers),
    )


def _own_id(scope: Scope) -> str | None:
    """The id that the client gives its request. Raises Refusal for one that could do harm in a log
    or a header."""
    given = [value for name, value in scope["headers"] if name == b"x-request-id"]
    if not given:
        return None
    text = given[0].decode("latin-1")
    if len(given) > 1 or not re.fullmatch(ID, text):
        raise Refusal(
            "malformed",
            "X-Request-ID is not 1 to 64 letters, digits, dots, dashes or _: leave it "
            "out, and one is made",
        )
    return text


def _places(error: BaseException) -> list[str]:
    """Where an error arose. Its text is left out, which may hold what a client sent."""
    frames = traceback.extract_tb(error.__traceback__)
    return [f"{Path(one.filename).name}:{one.lineno} {one.name}" for one in frames]


def _known(method: str) -> str:
    return method if method in {"GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE"} else "other"


# --- the log --------------------------------------------------------------------------------------


def log(event: str, level: int = logging.INFO, **fields: Any) -> None:
    LOGGER.log(level, event, extra={"fields": fields})


class OneLine(logging.Formatter):
    """A JSON object a line. Of errors only their kind: the texts of other libraries' may hold
    anything."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": when, "level": record.levelname.lower(), "event": record.getMessage()}
        line |= getattr(record, "fields", {})
        if record.exc_info and record.exc_info[0]:
            line["error"] = record.exc_info[0].__name__
        return json.dumps(line)


def log_to_stderr() -> None:
    """What the gateway says of its requests, and what libraries warn of. For a process of its
    own."""
    handler = logging.StreamHandler()
    handler.setFormatter(OneLine())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.captureWarnings(True)
    LOGGER.setLevel(logging.INFO)
