"""Tunnels whose first bytes are held (``tls: verify``): an origin that keeps what it gets, and how a refusal looks."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Any

from tests.support.client import RawClient
from tests.support.edges import connect
from tests.support.hellos import client_hello
from tests.support.proxy import Proxy
from tests.support.tools import wait_until

HELLO = client_hello("origin.test")
BANNER = b"SSH-2.0-origin\r\n"

#: What a client that speaks TLS is told, by the reason (RFC 8446 §6).
ALERTS = {
    "sni_mismatch": 112,
    "sni_missing": 112,
    "ech_not_allowed": 112,
    "client_hello_malformed": 50,
}


class Keeper:
    """An origin that keeps what each connection said."""

    def __init__(self, *, greeting: bytes = b"", echo: bool = False) -> None:
        self.said: list[bytearray] = []
        """By connection."""
        self.ended = 0
        """Connections whose other side has closed."""
        self.greets = threading.Event()
        """Set while it speaks first. Whoever clears it decides when."""
        self.greets.set()
        self._greeting = greeting
        self._echo = echo

    def __call__(self, connection: socket.socket) -> None:
        said = bytearray()
        self.said.append(said)
        with contextlib.suppress(OSError):
            if self._greeting and self.greets.wait(20):
                connection.sendall(self._greeting)
            while data := connection.recv(65536):
                said += data
                if self._echo:
                    connection.sendall(data)
        self.ended += 1

    def got_nothing(self) -> None:
        """Fails unless every connection has ended without a byte."""
        wait_until(
            lambda: self.ended == len(self.said),
            what=lambda: f"{len(self.said)} connections, {self.ended} have ended: the end of all",
        )
        assert not any(self.said), self.said


def alert_of(reason: str) -> bytes:
    """What a refused client gets behind its 200."""
    return bytes((21, 3, 3, 0, 2, 2, ALERTS[reason])) if reason in ALERTS else b""


def opened(proxy: Proxy, authority: str, *said: bytes, **options: Any) -> RawClient:
    """A client with its 200, that has said this; the first of it in one piece with the request."""
    client = proxy.client(**options)
    try:
        early, *later = said or (b"",)
        client.send(connect(authority) + early)
        assert client.response("CONNECT").status == 200
        client.send(*later)
    except BaseException:
        client.close()
        raise
    return client


def is_refused(
    proxy: Proxy, client: RawClient, reason: str, *, count: int = 1, **fields: Any
) -> dict[str, Any]:
    """The last one of so many lines; fails unless the client is told and closed, and the line says so, and counts."""
    assert client.rest() == alert_of(reason)
    line = proxy.wait_for_lines(count, event="DENIED", reason=reason)[-1]
    expected = {"status": 200, "code": "POLICY_BLOCKED", "bytes_sent": 0, "bytes_received": 0}
    expected |= {"method": "CONNECT", **fields}
    assert {name: line.get(name) for name in expected} == expected
    assert denials(proxy)[reason] == count
    return line


def denials(proxy: Proxy) -> dict[str, float]:
    """egress_proxy_denied_total by its reason."""
    found: dict[str, float] = {}
    for name, value in proxy.metrics().items():
        if name.startswith("egress_proxy_denied_total{"):
            found[name.partition('reason="')[2].partition('"')[0]] = value
    return found
