"""`vlmface gateway`: serve until told to stop, then finish what is at work."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any

import uvicorn
from PIL import Image
from uvicorn.protocols.http.h11_impl import H11Protocol

from vlmface.errors import UserError
from vlmface.infer.predictor import Predictor
from vlmface.serving.gateway.app import create_app
from vlmface.serving.gateway.limits import READING, Load
from vlmface.serving.gateway.observability import log, log_to_stderr
from vlmface.serving.gateway.settings import Settings
from vlmface.utils.hosts import LOOPBACK, Hosts

LONGEST_HEADERS = 16_384  # bytes
KEEP_ALIVE_S = 5
LAST_S = 5  # for what is still at work after draining
PATIENCE_S = 10.0  # that a connection may be without a request
LONGEST_READING_S = 60.0  # of an answer, by its client


def gateway_command(
    model: str,
    settings: Settings,
    host: str = "127.0.0.1",
    port: int = 8080,
    trusted_proxy: str | None = None,
    allowed_hosts: Sequence[str] = (),
    **how: Any,
) -> int:
    """Serve a model until SIGTERM or SIGINT. `trusted_proxy`: the address whose X-Forwarded-For is
    believed. `allowed_hosts`: names that it answers to, besides `host` and this machine's. `how`:
    see `Predictor.load`. Returns the exit code; raises UserError."""
    from transformers.utils import logging as transformers_logging

    hosts = Hosts.of(host, allowed_hosts)
    listener = _bound(host, port)
    log_to_stderr()
    transformers_logging.disable_progress_bar()
    with (
        listener,
        Predictor.load(
            model,
            concurrency=settings.max_in_flight,
            timeout_s=settings.answer_timeout_s,
            attempts=2,
            **how,
        ) as predictor,
    ):
        if not settings.keys and host not in LOOPBACK:
            log(
                "anybody who reaches this gateway may ask it: see --client_keys_env",
                level=logging.WARNING,
            )
        if predictor.faces_note:
            log(predictor.faces_note, level=logging.WARNING)
        elif predictor.faces_by_default != "none":
            predictor.faces(Image.new("RGB", (64, 64)))  # or else every request would fail
        Draining(predictor, settings, trusted_proxy, hosts).run([listener])
    log("stopped")
    return 0


def _bound(host: str, port: int) -> socket.socket:
    """A socket that has its address, but listens only when the model is there."""
    found = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
        return found
    except (OSError, OverflowError) as error:
        found.close()
        raise UserError(
            f"cannot listen at {host}, port {port} ({error}): choose another --port or --host"
        ) from None


class Draining(uvicorn.Server):
    """Told to stop, it says so at /healthz and takes no more requests, but stays until those at
    work are answered, at most `drain_s` seconds. Told again, it stops at once."""

    def __init__(
        self,
        predictor: Predictor,
        settings: Settings,
        trusted_proxy: str | None = None,
        hosts: Hosts | None = None,
    ) -> None:
        app = create_app(predictor, settings, hosts)
        super().__init__(
            uvicorn.Config(
                app,
                http=Patient,
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                h11_max_incomplete_event_size=LONGEST_HEADERS,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=LAST_S,
                limit_concurrency=2 * (READING + 1) * settings.max_in_flight,
                proxy_headers=trusted_proxy is not None,
                forwarded_allow_ips=trusted_proxy or "",
            )
        )
        self.load: Load = app.state.load
        self.drain_s = settings.drain_s
        self._until = 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Not uvicorn's own, which would send itself the signal once more at the end.
        if self.load.draining:
            self.should_exit = self.force_exit = True
        self.load.draining = True
        self._until = time.monotonic() + self.drain_s

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for one in sockets or ():
            host, port = one.getsockname()[:2]
            log("listening", host=host, port=port)

    async def on_tick(self, counter: int) -> bool:
        if self.load.draining and (self.load.idle or time.monotonic() > self._until):
            self.should_exit = True
        return await super().on_tick(counter)


class Patient(H11Protocol):
    """Closes connections that have no request for a while, and those of clients that do not read
    their answers. uvicorn itself waits for ever for the first request, for the rest of a body that
    was refused early, and for a client to read."""

    _unread = 0  # times in a row that a part of an answer was found unread

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.loop.call_later(PATIENCE_S, self._look, self._idle_since())

    def _idle_since(self) -> object:
        """The request that was the last one; something new while one is answered."""
        answered = self.cycle is None or self.cycle.response_complete
        return self.cycle if answered else object()

    def _look(self, before: object) -> None:
        unread = self.transport.get_write_buffer_size()
        self._unread = self._unread + 1 if unread else 0
        if self._unread * PATIENCE_S > LONGEST_READING_S:
            self.transport.abort()
            return
        now = self._idle_since()
        if now is before:
            self.transport.close()
        if unread or not self.transport.is_closing():
            self.loop.call_later(PATIENCE_S, self._look, now)
