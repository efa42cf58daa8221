"""API keys, rate limits, and limits on the requests in flight."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence

from vlmface.serving.gateway.http_errors import RequestError
from vlmface.serving.gateway.settings import Settings

MAX_CLIENTS = 10_000  # whose rates are stored
BODIES_PER_SLOT = 2  # bodies that may be arriving, for each request that may be answered at once
PICTURES_IN_MEMORY = 8  # of the largest size, or more that are smaller
RETRY_AFTER_S = 1


class ApiKeys:
    """Compares a request's key with the valid ones, in a time that does not depend on them."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    def check(self, authorization: str | None) -> int | None:
        """Check an `Authorization: Bearer KEY` header.

        Returns:
            The index of the key; None if no keys are configured.

        Raises:
            RequestError: The header is missing or has another key.
        """
        if not self._digests:
            return None
        scheme, _, key = (authorization or "").partition(" ")
        digest = _digest(key.strip())
        matches = [hmac.compare_digest(digest, valid) for valid in self._digests]
        if scheme.lower() != "bearer" or not any(matches):
            cause = "it is missing" if authorization is None else "this one is not valid"
            raise RequestError(
                "unauthorized",
                f"a key is required, and {cause}: send the header Authorization: Bearer KEY",
            )
        return matches.index(True)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


class RateLimiter:
    """A token bucket per client: `rate` requests a minute, at once or spread."""

    def __init__(
        self,
        rate: float,
        max_clients: int = MAX_CLIENTS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rate, self.max_clients, self._clock = rate, max_clients, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, time

    def check(self, client: str) -> None:
        """Count a request. Raises RequestError if the client has exceeded the rate."""
        now = self._clock()
        tokens, updated = self._buckets.pop(client, (self.rate, now))
        tokens = min(self.rate, tokens + (now - updated) * self.rate / 60)
        is_allowed = tokens >= 1
        self._buckets[client] = (tokens - is_allowed, now)
        if len(self._buckets) > self.max_clients:
            self._buckets.popitem(last=False)
        if not is_allowed:
            raise RequestError(
                "rate",
                f"the limit is {self.rate:g} requests a minute: send them more slowly",
                retry_after_s=math.ceil((1 - tokens) * 60 / self.rate),
            )


def rate_limit_key(host: str | None, key: int | None) -> str:
    """The client for which requests are counted.

    Args:
        host: The client's address. IPv6 addresses are grouped by /64.
        key: The index of its API key, which takes precedence.
    """
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


class InFlightLimits:
    """Counts what is in flight, on one event loop.

    Attributes:
        in_flight: {"reading": bodies that are arriving, "answering": requests that wait for their
            answer, "pixels": of the pictures in memory}.
        draining: Whether new requests are rejected, since the gateway is shutting down.
    """

    def __init__(self, settings: Settings) -> None:
        self._limits = {
            "reading": BODIES_PER_SLOT * settings.max_in_flight,
            "answering": settings.max_in_flight,
            "pixels": PICTURES_IN_MEMORY * settings.max_pixels,
        }
        self.in_flight = dict.fromkeys(self._limits, 0)
        self.draining = False

    @property
    def idle(self) -> bool:
        """Whether nothing is in flight."""
        return not any(self.in_flight.values())

    @contextlib.contextmanager
    def acquire(self, resource: str, amount: int = 1) -> Iterator[None]:
        """Use a part of a limit until the block ends.

        Args:
            resource: A key of `in_flight`.
            amount: How much of it.

        Raises:
            RequestError: At once, if the limit is reached or the gateway is shutting down.
        """
        if self.draining and resource == "reading":
            # The connection stays open: closed before the body has arrived, it would be reset, and
            # the client might not receive this response.
            raise RequestError(
                "draining", "the gateway is shutting down: retry", retry_after_s=RETRY_AFTER_S
            )
        if self.in_flight[resource] + amount > self._limits[resource]:
            raise busy_error()
        self.in_flight[resource] += amount
        try:
            yield
        finally:
            self.in_flight[resource] -= amount


def busy_error() -> RequestError:
    """The error for a request beyond a limit."""
    return RequestError(
        "busy", "too many requests are in flight: retry later", retry_after_s=RETRY_AFTER_S
    )
