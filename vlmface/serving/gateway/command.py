"""`vlmface gateway`: the server process, with a graceful shutdown."""

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
from vlmface.serving.gateway.limits import BODIES_PER_SLOT, InFlightLimits
from vlmface.serving.gateway.observability import log, log_to_stderr
from vlmface.serving.gateway.settings import Settings
from vlmface.utils.hosts import LOOPBACK, Hosts

MAX_HEADER_BYTES = 16_384
KEEP_ALIVE_S = 5
SHUTDOWN_GRACE_S = 5  # for requests that are in flight after draining
IDLE_TIMEOUT_S = 10.0  # of a connection without a request
CLIENT_READ_TIMEOUT_S = 60.0  # for a client to read a response


def gateway_command(
    model: str,
    settings: Settings,
    host: str = "127.0.0.1",
    port: int = 8080,
    trusted_proxy: str | None = None,
    allowed_hosts: Sequence[str] = (),
    **load_options: Any,
) -> int:
    """Serve a model until SIGTERM or SIGINT.

    Args:
        model: See `Predictor.load`.
        settings: The gateway's limits.
        host: The address to listen at.
        port: 0: any free port.
        trusted_proxy: The address of a proxy whose X-Forwarded-For is trusted.
        allowed_hosts: Host names that it answers to, in addition to `host` and this machine's.
        **load_options: Of `Predictor.load`.

    Returns:
        The exit code.

    Raises:
        UserError: The model cannot be loaded, or the port is not free.
    """
    from transformers.utils import logging as transformers_logging

    hosts = Hosts.for_server(host, allowed_hosts)
    listener = _bind(host, port)
    log_to_stderr()
    transformers_logging.disable_progress_bar()
    options = {
        "concurrency": settings.max_in_flight,
        "timeout_s": settings.answer_timeout_s,
        "attempts": 2,
        **load_options,
    }
    with listener, Predictor.load(model, **options) as predictor:
        if not settings.keys and host not in LOOPBACK:
            log(
                "no API keys configured; the gateway accepts requests from anyone (see "
                "--client-keys-env)",
                level=logging.WARNING,
            )
        if predictor.detector_warning:
            log(predictor.detector_warning, level=logging.WARNING)
        elif predictor.default_faces != "none":
            predictor.faces(Image.new("RGB", (64, 64)))  # fails now rather than at every request
        GracefulServer(predictor, settings, trusted_proxy, hosts).run([listener])
    log("stopped")
    return 0


def _bind(host: str, port: int) -> socket.socket:
    """A bound socket. It listens only once the model is loaded."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        return listener
    except (OSError, OverflowError) as error:
        listener.close()
        raise UserError(
            f"cannot listen at {host}, port {port} ({error}): choose another --port or --host"
        ) from None


class GracefulServer(uvicorn.Server):
    """A server that drains at the first signal: /healthz reports it, new requests are rejected, and
    the process stays until those in flight are answered, at most `drain_s` seconds. The second
    signal stops it at once."""

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
                http=IdleTimeoutProtocol,
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                h11_max_incomplete_event_size=MAX_HEADER_BYTES,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=SHUTDOWN_GRACE_S,
                limit_concurrency=2 * (BODIES_PER_SLOT + 1) * settings.max_in_flight,
                proxy_headers=trusted_proxy is not None,
                forwarded_allow_ips=trusted_proxy or "",
            )
        )
        self.limits: InFlightLimits = app.state.limits
        self.drain_s = settings.drain_s
        self._drain_deadline = 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Does not call uvicorn's own, which would send the signal to this process again at the end.
        if self.limits.draining:
            self.should_exit = self.force_exit = True
        self.limits.draining = True
        self._drain_deadline = time.monotonic() + self.drain_s

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or ():
            host, port = listener.getsockname()[:2]
            log("listening", host=host, port=port)

    async def on_tick(self, counter: int) -> bool:
        is_over = self.limits.idle or time.monotonic() > self._drain_deadline
        if self.limits.draining and is_over:
            self.should_exit = True
        return await super().on_tick(counter)


class IdleTimeoutProtocol(H11Protocol):
    """Closes connections without a request, and those of clients that do not read their responses.
    uvicorn itself waits without limit for the first request, for the remaining body of a rejected
    request, and for a client to read."""

    _unread_checks = 0  # in a row that found a part of a response unread

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.loop.call_later(IDLE_TIMEOUT_S, self._check_idle, self._idle_marker())

    def _idle_marker(self) -> object:
        """Equal to the earlier marker only if no request was received in between; a new object
        while a request is answered."""
        is_answered = self.cycle is None or self.cycle.response_complete
        return self.cycle if is_answered else object()

    def _check_idle(self, earlier_marker: object) -> None:
        unread = self.transport.get_write_buffer_size()
        self._unread_checks = self._unread_checks + 1 if unread else 0
        if self._unread_checks * IDLE_TIMEOUT_S > CLIENT_READ_TIMEOUT_S:
            self.transport.abort()
            return
        marker = self._idle_marker()
        if marker is earlier_marker:
            self.transport.close()
        if unread or not self.transport.is_closing():
            self.loop.call_later(IDLE_TIMEOUT_S, self._check_idle, marker)
