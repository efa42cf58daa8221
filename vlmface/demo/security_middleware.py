"""What the demo's web server answers: its own pages and events, and nothing else of Gradio's."""

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

# Neither API pages, nor other machines fetched by this one (file=https://...), nor recordings, nor
# the ffmpeg with which a browser would cut videos.
_OPEN = re.compile(
    r"/|/(config|theme\.css|favicon\.ico|manifest\.json|robots\.txt)"
    r"|/(assets|static)/(?!ffmpeg/).*"
    r"|/gradio_api/(upload|upload_progress|queue/join|queue/data|cancel|reset|startup-events)"
    r"|/gradio_api/heartbeat/\w+"
    r"|/gradio_api/file=(?!\w+:).*",
    re.DOTALL,
)
# A browser asks no other machine, whatever a page may hold. Gradio's own script is inline.
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
_MOST_BYTES = 2**20  # of an event: files are uploaded before it and named in it


class Door:
    """ASGI middleware: closed paths are answered with 404, events that name a file outside the
    folder `uploads` with 403, and all answers get _HEADERS. Requests that `hosts` refuses are
    answered with 403, and uploads for which `store` has no room with 413 or 503."""

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
            await _refuse(send, 403, problem)
            return
        path = scope["path"]
        if not _OPEN.fullmatch(path if path == "/" else path.rstrip("/")):
            await _refuse(send, 404, "There is nothing here: the demo is at /")
            return
        if path.rstrip("/") == _EVENTS:
            body = await _body(receive)
            if body is None or not self._names_uploads(body):
                await _refuse(send, 403, "Only files that were uploaded here can be asked about")
                return
            receive = _again(body, receive)

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *_encoded(given)]
            await send(message)

        if path.rstrip("/") == _UPLOAD and self.store is not None:
            await self._upload(self.store, scope, receive, guarded)
        else:
            await self.app(scope, receive, guarded)

    async def _upload(self, store: Uploads, scope: Message, receive: Receive, send: Send) -> None:
        """An upload within the limits of `store` on time and bytes."""
        if problem := store.problem():
            await _refuse(send, 503, problem)
            return
        present, size, started = store.size, 0, False

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            store.arriving += len(message.get("body", b""))
            if size > uploads.MAX_REQUEST_BYTES or present + store.arriving > uploads.MAX_BYTES:
                raise _TooLargeError
            return message

        async def noted(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        store.at_once += 1
        try:
            async with asyncio.timeout(uploads.UPLOAD_S):
                await self.app(scope, counted, noted)
        except (TimeoutError, _TooLargeError) as error:
            if not started:
                late = isinstance(error, TimeoutError)
                words = "The files did not arrive in time" if late else "The files are too large"
                await _refuse(send, 408 if late else 413, words)
        finally:
            store.at_once -= 1
            store.arriving -= size

    def _names_uploads(self, body: bytes) -> bool:
        """Gradio itself would fetch a path that is an address."""
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
    """More of an upload has arrived than is taken."""


def _paths(value: Any) -> Iterator[Any]:
    """All values of the key "path" in parsed JSON."""
    if isinstance(value, dict):
        for key, inside in value.items():
            if key == "path":
                yield inside
            yield from _paths(inside)
    elif isinstance(value, list):
        for inside in value:
            yield from _paths(inside)


async def _body(receive: Receive) -> bytes | None:
    """The body of a request, None if it is too long."""
    body, more = b"", True
    while more and len(body) <= _MOST_BYTES:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return None if more or len(body) > _MOST_BYTES else body


def _again(body: bytes, receive: Receive) -> Receive:
    """`receive` with the body that was read already."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return waiting.pop() if waiting else await receive()

    return replayed


async def _refuse(send: Send, status: int, words: str) -> None:
    headers = [(b"content-type", b"text/plain"), *_encoded(set())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": words.encode()})


def _encoded(given: set[bytes]) -> list[tuple[bytes, bytes]]:
    pairs = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
    return [pair for pair in pairs if pair[0] not in given]


def close_gradio(temporary: str) -> None:
    """Switch off, before Gradio is imported, what it would send or keep."""
    os.environ |= {
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_SHARE": "False",
        "GRADIO_SSR_MODE": "False",
        "GRADIO_MCP_SERVER": "False",
        "GRADIO_TEMP_DIR": temporary,
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
