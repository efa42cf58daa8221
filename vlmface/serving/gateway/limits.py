"""Who may ask, how often, and how much is at work at once."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence

from vlmface.serving.gateway.http_errors import Refusal
from vlmface.serving.gateway.settings import Settings

MOST_CLIENTS = 10_000  # whose rates are remembered
READING = 2  # bodies that may be arriving, times the requests that may be answered at once
PICTURES = 8  # of the largest size that may be in memory, or more that are smaller
BUSY_S = 1  # to come back after


class Keys:
    """Which of the keys a request has; compared in a time that tells nothing about them."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    def check(self, authorization: str | None) -> int | None:
        """The number of the key in an `Authorization: Bearer KEY` header; None if no keys are
        needed. Raises Refusal."""
        if not self._digests:
            return None
        scheme, _, key = (authorization or "").partition(" ")
        given = _digest(key.strip())
        same = [hmac.compare_digest(given, known) for known in self._digests]
        if scheme.lower() != "bearer" or not any(same):
            what = "there is none" if authorization is None else "it is not one of them"
            raise Refusal(
                "unauthorized",
                f"a key is needed, {what}: send the header Authorization: Bearer KEY",
            )
        return same.index(True)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


class Rate:
    """`rate` requests a minute for each client, all at once or spread (a token bucket)."""

    def __init__(
        self, rate: float, most: int = MOST_CLIENTS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.rate, self.most, self._clock = rate, most, clock
        self._known: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, when

    def check(self, client: str) -> None:
        """Raises Refusal if the client has asked too often."""
        now = self._clock()
        tokens, when = self._known.pop(client, (self.rate, now))
        tokens = min(self.rate, tokens + (now - when) * self.rate / 60)
        served = tokens >= 1
        self._known[client] = (tokens - served, now)
        if len(self._known) > self.most:
            self._known.popitem(last=False)
        if not served:
            raise Refusal(
                "rate",
                f"you have asked more than {self.rate:g} times a minute: ask more slowly",
                retry_after_s=math.ceil((1 - tokens) * 60 / self.rate),
            )


def client_of(host: str | None, key: int | None) -> str:
    """Whom a rate is counted for. An IPv6 client has a whole network of addresses."""
    if key is not None:
        return f"key {key}"
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError:
        return "unknown"
    if isinstance(address, ipaddress.IPv6Address):
        mapped = address.ipv4_mapped
        return str(mapped or ipaddress.ip_network((int(address), 64), strict=False))
    return str(address)


class Load:
    """How much is at work. For one event loop."""

    def __init__(self, settings: Settings) -> None:
        self._most = {
            "reading": READING * settings.max_in_flight,
            "answering": settings.max_in_flight,
            "pixels": PICTURES * settings.max_pixels,
        }
        self.at_work = dict.fromkeys(self._most, 0)
        self.draining = False

    @property
    def idle(self) -> bool:
        return not any(self.at_work.values())

    @contextlib.contextmanager
    def taking(self, what: str, much: int = 1) -> Iterator[None]:
        """Raises Refusal at once instead of waiting for others to finish."""
        if self.draining and what == "reading":
            # The connection stays open: closed before the body has arrived, it would be reset, and
            # the client might not see this.
            raise Refusal("draining", "the gateway stops: ask another one", retry_after_s=BUSY_S)
        if self.at_work[what] + much > self._most[what]:
            raise busy()
        self.at_work[what] += much
        try:
            yield
        finally:
            self.at_work[what] -= much


def busy() -> Refusal:
    return Refusal("busy", "too many requests are at work: come back", retry_after_s=BUSY_S)
