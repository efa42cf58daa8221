"""Which names a server answers to: a defence against web pages that are open in a user's browser.

A page can send requests to any address, also to a server that only this machine reaches. Its
`Origin` header gives it away; where the page's own name was made to resolve to this machine (DNS
rebinding), its `Host` header does.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vlmface.errors import UserError

LOOPBACK = ("localhost", "127.0.0.1", "::1")
_EVERY_ADDRESS = ("", "0.0.0.0", "::")
_NAME = re.compile(r"(?i)[a-z0-9_](?:[a-z0-9_.-]{0,252}[a-z0-9_])?|[0-9a-f:.]+:[0-9a-f:.]*")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]/@\s]+)(?::\d{1,5})?")
_ORIGIN = re.compile(r"https?://([^/]+)")


@dataclass(frozen=True)
class Hosts:
    """The names in lower case, and whether any IP address is one: it cannot be rebound."""

    names: frozenset[str]
    addresses: bool = False
    origins: frozenset[str] = frozenset()  # whose pages may send requests, besides the server's own

    @classmethod
    def for_server(cls, listening: str, allowed: Sequence[str] = ()) -> Hosts:
        """Of a server.

        Args:
            listening: The address that it listens at. For all addresses of a machine, its name and
                any IP address are answered to.
            allowed: More names, without port.

        Raises:
            UserError: One of `allowed` is not a name.
        """
        for name in allowed:
            if not _NAME.fullmatch(name):
                raise UserError(
                    f"--allowed-hosts has {name!r}: give names without scheme, port and path, such "
                    "as faces.example.org"
                )
        extra_names = frozenset(name.lower().rstrip(".") for name in allowed)
        everywhere = listening in _EVERY_ADDRESS
        served = socket.gethostname() if everywhere else listening
        return cls(frozenset((*LOOPBACK, served.lower(), *extra_names)), everywhere, extra_names)

    def problem(self, headers: Iterable[tuple[bytes, bytes]]) -> str | None:
        """Why a request with these ASGI headers is refused, None if it is not."""
        sent_headers: dict[bytes, list[str]] = {b"host": [], b"origin": []}
        for name, value in headers:
            if name.lower() in sent_headers:
                sent_headers[name.lower()].append(value.decode("latin-1"))
        hosts, origins = sent_headers[b"host"], sent_headers[b"origin"]
        if len(hosts) != 1 or not self._answers_to(hosts[0]):
            return (
                "the Host header is not a name of this server: use the address that it listens "
                "at, or start it with --allowed-hosts NAME"
            )
        if any(not self._may_send(origin, hosts[0]) for origin in origins):
            return "the Origin header is of another site, whose pages may not send requests"
        return None

    def _answers_to(self, host: str) -> bool:
        name = _name_of(host)
        if name is None:
            return False
        return name in self.names or (self.addresses and _is_address(name))

    def _may_send(self, origin: str, host: str) -> bool:
        match = _ORIGIN.fullmatch(origin)
        if match is None:  # "null" of a sandboxed page or a local file
            return False
        return match[1].lower() == host.lower() or _name_of(match[1]) in self.origins


def _name_of(host: str) -> str | None:
    """The name in "NAME:PORT", in lower case; None if it is malformed."""
    match = _HOST.fullmatch(host)
    return match[1].strip("[]").lower().rstrip(".") if match else None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
