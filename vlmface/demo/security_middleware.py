"""Middleware that exposes the demo's pages and events, and none of Gradio's other routes."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

from vlmface.demo import uploads
from vlmface.demo.uploads import Uploads
from vlmface.utils.hosts import Hosts

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

# Excluded are API pages, requests to other machines (file=https://...), recordings, and the ffmpeg
# with which a browser would trim videos.
_ALLOWED_PATHS = re.compile(
    r"/|/(config|theme\.css|favicon\.ico|manifest\.json|robots\.txt)"
    r"|/(assets|static)/(?!ffmpeg/).*"
    r"|/gradio_api/(upload|upload_progress|queue/join|queue/data|cancel|reset|startup-events)"
    r"|/gradio_api/heartbeat/\w+"
    r"|/gradio_api/file=(?!\w+:).*",
    re.DOTALL,
)
# A browser sends no request to another machine, whatever the page contains. Gradio's own script is
# inline.
_HEADERS = {
    "content-security-policy": "default-src 'self'; script-src 'self' 'unsafe-inline' "
    "'unsafe-eval'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' "
    "blob:; font-src 'self' data:; worker-src 'self' blob:; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
}


_EVENTS, _UPLOAD = "/gradio_api/queue/join", "/gradio_api/upload"
_MAX_EVENT_BYTES = 2**20  # of an event: files are uploaded before it and named in it


class RouteAllowlist:
    """ASGI middleware that rejects all requests except those the demo needs.

    Other paths get status 404, events that name a file outside the folder of uploads 403, and
    uploads that are too large or too many 413 or 503. All responses get _HEADERS.

    Args:
        app: Gradio's app.
        uploads: The folder of uploads.
        hosts: The allowed Host and Origin headers; others get status 403.
        store: Limits on uploads.
    """

    def __init__(
        self,
        app: Callable[[Message, Receive, Send], Awaitable[None]],
        uploads: str | Path,
        hosts: Hosts | None = None,
        store: Uploads | None = None,
    ) -> None:
        self.app, self.uploads = app, Path(os.path.abspath(uploads))
        self.hosts, self.store = hosts, store

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # Gradio's events need none
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if self.hosts is not None and (problem := self.hosts.problem(scope["headers"])):
            await _send_error(send, 403, problem)
            return
        path = scope["path"]
        if not _ALLOWED_PATHS.fullmatch(path if path == "/" else path.rstrip("/")):
            await _send_error(send, 404, "This path does not exist: the demo is at /")
            return
        if path.rstrip("/") == _EVENTS:
            body = await _body(receive)
            if body is None or not self._names_uploads(body):
                await _send_error(send, 403, "Only files that were uploaded here can be used")
                return
            receive = _replay(body, receive)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *_missing_headers(present)]
            await send(message)

        if path.rstrip("/") == _UPLOAD and self.store is not None:
            await self._upload(self.store, scope, receive, send_with_headers)
        else:
            await self.app(scope, receive, send_with_headers)

    async def _upload(self, store: Uploads, scope: Message, receive: Receive, send: Send) -> None:
        """Handle an upload within the limits on time and bytes."""
        if problem := store.problem():
            await _send_error(send, 503, problem)
            return
        stored, size, started = store.size, 0, False

        async def counting_receive() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            store.arriving += len(message.get("body", b""))
            if size > uploads.MAX_REQUEST_BYTES or stored + store.arriving > uploads.MAX_BYTES:
                raise _TooLargeError
            return message

        async def tracking_send(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        store.at_once += 1
        try:
            async with asyncio.timeout(uploads.UPLOAD_S):
                await self.app(scope, counting_receive, tracking_send)
        except (TimeoutError, _TooLargeError) as error:
            if not started:
                if isinstance(error, TimeoutError):
                    await _send_error(send, 408, "The files did not arrive in time")
                else:
                    await _send_error(send, 413, "The files are too large")
        finally:
            store.at_once -= 1
            store.arriving -= size

    def _names_uploads(self, body: bytes) -> bool:
        """Whether an event names files in the folder of uploads only. Gradio itself would fetch a
        path that is a URL."""
        try:
            paths = list(_paths(json.loads(body)))
        except (ValueError, RecursionError):
            return False
        return all(
            isinstance(path, str) and Path(os.path.abspath(path)).is_relative_to(self.uploads)
            for path in paths
            if path is not None
        )


class _TooLargeError(Exception):
    """An upload exceeds the limit on its size."""


def _paths(value: Any) -> Iterator[Any]:
    """All values of the key "path" in parsed JSON."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key == "path":
                yield item
            yield from _paths(item)
    elif isinstance(value, list):
        for item in value:
            yield from _paths(item)


async def _body(receive: Receive) -> bytes | None:
    """The body of a request, None if it is too long."""
    body, more_body = b"", True
    while more_body and len(body) <= _MAX_EVENT_BYTES:
        message = await receive()
        body += message.get("body", b"")
        more_body = message.get("more_body", False)
    return None if more_body or len(body) > _MAX_EVENT_BYTES else body


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that first returns a body that has already been read."""
    pending = [{"type": "http.request", "body": body, "more_body": False}]

    async def replaying_receive() -> Message:
        return pending.pop() if pending else await receive()

    return replaying_receive


async def _send_error(send: Send, status: int, message: str) -> None:
    headers = [(b"content-type", b"text/plain"), *_missing_headers(set())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": message.encode()})


def _missing_headers(present: set[bytes]) -> list[tuple[bytes, bytes]]:
    headers = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
    return [header for header in headers if header[0] not in present]


def harden_gradio_env(temporary: str) -> None:
    """Disable Gradio's telemetry, sharing and servers. Must be called before Gradio is imported.

    Args:
        temporary: The folder for uploads.
    """
    os.environ |= {
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_SHARE": "False",
        "GRADIO_SSR_MODE": "False",
        "GRADIO_MCP_SERVER": "False",
        "GRADIO_TEMP_DIR": temporary,
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
