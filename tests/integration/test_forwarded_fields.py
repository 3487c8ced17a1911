"""What an origin is told about the client and the way, and requests that end at the proxy."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from tests.conftest import Serve, StartProxy
from tests.support.edges import at_rest
from tests.support.origin import Origin
from tests.support.proxy import rule

ALLOW = [rule("origin.test")]
ABOUT = "Forwarded: for=192.0.2.7\r\nX-Forwarded-For: 192.0.2.7\r\nX-Real-IP: 192.0.2.7\r\n"


class Listening:
    """An origin that keeps the heads that it is sent, and answers each with 204."""

    def __init__(self) -> None:
        self.heads: list[bytes] = []

    def __call__(self, connection: socket.socket) -> None:
        data = b""
        while received := connection.recv(65536):
            data += received
            if data.endswith(b"\r\n\r\n"):
                self.heads.append(data)
                data = b""
                connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        (None, None),
        ("remove", None),
        ("keep", b"X-Forwarded-For: 192.0.2.7\r\n"),
        ("add", b"X-Forwarded-For: 127.0.0.1\r\n"),
    ],
)
def test_who_asks(
    start_proxy: StartProxy, serve: Serve, setting: str | None, told: bytes | None
) -> None:
    origin = Listening()
    keys: dict[str, Any] = {"forwarded_for": setting} if setting else {}
    proxy = start_proxy(allow=ALLOW, **keys)
    url = f"http://origin.test:{serve(origin).port}/"
    with proxy.client() as client:
        assert client.get(url, head=ABOUT).status == 204
    (head,) = origin.heads
    if told is None:
        assert b"192.0.2.7" not in head
        assert b"127.0.0.1" not in head
    else:
        assert told in head
    at_rest(proxy)


def test_the_last_one_answers(start_proxy: StartProxy, origin: Origin, serve: Serve) -> None:
    """Max-Forwards counts the proxies; a request that no rule allows is denied all the same."""
    listening = Listening()
    proxy = start_proxy(allow=ALLOW)
    url = f"http://origin.test:{serve(listening).port}/"
    with proxy.client() as client:
        secret = "Max-Forwards: 0\r\nAuthorization: Basic c2VjcmV0\r\n"
        traced = client.get(url, method="TRACE", head=secret)
        assert traced.status == 200
        assert traced["content-type"] == "message/http"
        assert traced.body.startswith(b"TRACE http://origin.test:")
        assert b"c2VjcmV0" not in traced.body
        options = client.get(url, method="OPTIONS", head="Max-Forwards: 0\r\n")
        assert options.status == 200
        assert "CONNECT" in options["allow"]
        assert listening.heads == []
        assert client.get(url, method="OPTIONS", head="Max-Forwards: 1\r\n").status == 204
        assert b"Max-Forwards: 0\r\n" in listening.heads[0]
        denied = client.get("http://denied.test/", method="TRACE", head="Max-Forwards: 0\r\n")
        assert denied.status == 403
    assert proxy.wait_for_line(method="TRACE", event="ALLOWED")["status"] == 200
    at_rest(proxy)
