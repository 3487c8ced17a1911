"""What becomes of a connection: whether it carries another request, or switches to another protocol.

When an origin's can carry one is in ``data/http/responses.md``.
"""

from __future__ import annotations

import pytest

from egress_proxy.core.http1 import ProxyRequest, origin_request, parent_request, parse_request
from tests.core.http_tables import LIMITS


def request(*lines: str) -> ProxyRequest:
    return parse_request("".join(f"{line}\r\n" for line in (*lines, "")).encode(), LIMITS)


def lines_of(head: bytes) -> list[bytes]:
    assert head.endswith(b"\r\n\r\n")
    return head[:-4].split(b"\r\n")


def test_a_connection_that_is_kept_is_not_said_to_close() -> None:
    asked = request("GET http://h/ HTTP/1.1", "Host: h", "Connection: close")
    assert lines_of(origin_request(asked, b"p"))[-1] == b"Connection: close"
    kept = lines_of(origin_request(asked, b"p", keep_alive=True))
    assert kept == [b"GET / HTTP/1.1", b"Host: h", b"Via: 1.1 p"]
    kept[0] = b"GET http://h/ HTTP/1.1"
    assert lines_of(parent_request(asked, b"p", keep_alive=True)) == kept


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"])
def test_what_can_be_sent_twice(method: str) -> None:
    assert request(f"{method} http://h/ HTTP/1.1", "Host: h").idempotent


@pytest.mark.parametrize("method", ["POST", "PATCH", "CONNECT", "get", "LOCK", "PUTS"])
def test_what_cannot(method: str) -> None:
    """RFC 9110 §9.2.2. Of a method that nobody here knows, nobody here knows what it does."""
    target = "h:443" if method == "CONNECT" else "http://h/"
    assert not request(f"{method} {target} HTTP/1.1", "Host: h").idempotent


def test_a_handshake_goes_through_a_parent() -> None:
    asked = request(
        "GET http://h/chat HTTP/1.1",
        "Host: h",
        "Upgrade: websocket",
        "Connection: keep-alive, Upgrade",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Proxy-Authorization: Basic Y2xpZW50OnM=",
    )
    head = parent_request(asked, b"p", b"Basic b3VyOnM=", upgrade=asked.upgrade)
    assert lines_of(head) == [
        b"GET http://h/chat HTTP/1.1",
        b"Host: h",
        b"Proxy-Authorization: Basic b3VyOnM=",
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        b"Via: 1.1 p",
        b"Connection: Upgrade",
        b"Upgrade: websocket",
    ]
