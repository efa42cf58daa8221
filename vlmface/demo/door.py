"""What the demo's web server answers: its own pages and events, and nothing else of Gradio's."""

from __future__ import annotations

import os
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

# Neither API pages, nor other machines fetched by this one (file=https://...), nor recordings.
_OPEN = re.compile(
    r"/|/(config|theme\.css|favicon\.ico|manifest\.json|robots\.txt)"
    r"|/(assets|static)/.*"
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


class Door:
    """ASGI middleware: closed paths are answered with 404, all answers get _HEADERS."""

    def __init__(self, app: Callable[[Message, Receive, Send], Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"]
        if not _OPEN.fullmatch(path if path == "/" else path.rstrip("/")):
            text = b"There is nothing here: the demo is at /"
            headers = [(b"content-type", b"text/plain"), *_encoded(set())]
            await send({"type": "http.response.start", "status": 404, "headers": headers})
            await send({"type": "http.response.body", "body": text})
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *_encoded(given)]
            await send(message)

        await self.app(scope, receive, guarded)


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
