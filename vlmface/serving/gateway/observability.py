"""Request ids, one log line per request, and metrics. They contain counts and times only, nothing
of pictures or answers."""

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

from vlmface.serving.gateway.http_errors import RequestError
from vlmface.serving.gateway.limits import InFlightLimits
from vlmface.utils.hosts import Hosts

LOGGER = logging.getLogger("vlmface.serving.gateway")
REQUEST_ID_PATTERN = "[A-Za-z0-9._-]{1,64}"
LATENCY_BUCKETS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)  # s
_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
_METHODS = ("GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE")
_GAUGES = {
    "reading": "Requests whose body is arriving",
    "answering": "Requests that wait for their answer",
    "pixels": "Pixels of the pictures in memory",
}


@dataclass
class RequestRecord:
    """What is logged and counted for a request. `size`: bytes of its body that were read."""

    request_id: str
    route: str
    method: str
    start_time: float = field(default_factory=time.perf_counter)
    reason: str | None = None
    faces: int = 0
    size: int = 0
    status: int = 0

    @property
    def latency_s(self) -> float:
        """Seconds since the request arrived."""
        return round(time.perf_counter() - self.start_time, 4)


def record_of(scope: Scope) -> RequestRecord:
    """The record of the request with this ASGI scope."""
    record = scope["vlmface"]
    assert isinstance(record, RequestRecord)
    return record


class Metrics:
    """The Prometheus metrics of one gateway."""

    def __init__(self, limits: InFlightLimits) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._metric(
            Counter, "requests", "Requests by route and status", "route", "status"
        )
        self.seconds = self._metric(
            Histogram, "request_seconds", "Time to answer", "route", buckets=LATENCY_BUCKETS
        )
        self.faces = self._metric(Counter, "faces", "Faces that were reported on")
        self.rejected = self._metric(Counter, "rejected", "Requests without an answer", "reason")
        for name in limits.in_flight:
            gauge = self._metric(Gauge, name, _GAUGES[name])
            gauge.set_function(lambda name=name: limits.in_flight[name])

    def _metric(self, kind: Any, name: str, text: str, *labels: str, **options: Any) -> Any:
        return kind(f"vlmface_gateway_{name}", text, labels, registry=self.registry, **options)

    def count(self, record: RequestRecord) -> None:
        """Count an answered request."""
        self.requests.labels(record.route, str(record.status)).inc()
        self.seconds.labels(record.route).observe(record.latency_s)
        self.faces.inc(record.faces)
        if record.reason:
            self.rejected.labels(record.reason).inc()


class ObservabilityMiddleware:
    """ASGI middleware: gives every request an id, logs and counts it, checks its Host and Origin
    headers, and answers it even if the app raises."""

    def __init__(
        self, app: ASGIApp, metrics: Metrics, routes: frozenset[str], hosts: Hosts | None
    ) -> None:
        self.app, self.metrics, self.routes, self.hosts = app, metrics, routes, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"]
        route = path if path in self.routes else "other"
        record = RequestRecord(uuid.uuid4().hex, route, scope["method"])
        scope["vlmface"] = record

        async def counting_receive() -> Message:
            message = await receive()
            record.size += len(message.get("body", b""))
            return message

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                headers = {**_HEADERS, "X-Request-ID": record.request_id}
                message["headers"] = [
                    *message["headers"],
                    *((name.encode(), value.encode()) for name, value in headers.items()),
                ]
            await send(message)

        try:
            await self._respond(scope, counting_receive, send_with_headers)
        finally:
            self.metrics.count(record)
            log(
                "request",
                request_id=record.request_id,
                method=record.method if record.method in _METHODS else "other",
                route=record.route,
                status=record.status,
                reason=record.reason,
                seconds=record.latency_s,
                bytes=record.size,
                faces=record.faces,
            )

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = record_of(scope)
        try:
            try:
                record.request_id = _client_request_id(scope) or record.request_id
                if self.hosts is not None and (problem := self.hosts.problem(scope["headers"])):
                    raise RequestError("host", problem)
            except RequestError as error:
                await error_response(record, error)(scope, receive, send)
            else:
                await self.app(scope, receive, send)
        except Exception as error:
            log(
                "crash",
                request_id=record.request_id,
                error=type(error).__name__,
                at=_traceback_lines(error),
            )
            if record.status:  # a response has already been started
                raise
            crash = RequestError(
                "crash", "internal error: report this request id to the gateway's operator"
            )
            await error_response(record, crash)(scope, receive, send)


def error_response(record: RequestRecord, error: RequestError) -> JSONResponse:
    """The response for an error, whose reason is noted in the request's record."""
    record.reason = error.reason
    return JSONResponse(
        {"request_id": record.request_id, "reason": error.reason, "message": error.message},
        error.status,
        dict(error.headers),
    )


def _client_request_id(scope: Scope) -> str | None:
    """The X-Request-ID header. Raises RequestError for one that is unsafe in a log or a header."""
    values = [value for name, value in scope["headers"] if name == b"x-request-id"]
    if not values:
        return None
    request_id = values[0].decode("latin-1")
    if len(values) > 1 or not re.fullmatch(REQUEST_ID_PATTERN, request_id):
        raise RequestError(
            "malformed",
            "X-Request-ID is not 1 to 64 letters, digits, dots, dashes or _: leave it out, and one "
            "is generated",
        )
    return request_id


def _traceback_lines(error: BaseException) -> list[str]:
    """Where an error was raised. Its message is omitted: it may contain what a client sent."""
    frames = traceback.extract_tb(error.__traceback__)
    return [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames]


# --- the log --------------------------------------------------------------------------------------


def log(event: str, level: int = logging.INFO, **fields: Any) -> None:
    """Log an event with fields for JSON."""
    LOGGER.log(level, event, extra={"fields": fields})


class JsonFormatter(logging.Formatter):
    """One JSON object per line. Of exceptions only the type is logged: messages of other libraries
    may contain anything."""

    def format(self, record: logging.LogRecord) -> str:
        timestamp = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": timestamp, "level": record.levelname.lower(), "event": record.getMessage()}
        line |= getattr(record, "fields", {})
        if record.exc_info and record.exc_info[0]:
            line["error"] = record.exc_info[0].__name__
        return json.dumps(line)


def log_to_stderr() -> None:
    """Send the gateway's log and the warnings of libraries to stderr, for the whole process."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.captureWarnings(True)
    # Its warnings quote what clients sent.
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)
    LOGGER.setLevel(logging.INFO)
