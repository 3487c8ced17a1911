"""One busy connection does not keep the others waiting, whichever side is busy."""

from __future__ import annotations

import socket
import time

import pytest

from tests.conftest import Serve, StartProxy
from tests.support.edges import (
    in_background,
    request,
)
from tests.support.origin import Exchange, Origin
from tests.support.proxy import SWEEP, Proxy
from tests.support.tools import MIB

# One busy connection and the others -------------------------------------------------------------


def _slowest(proxy: Proxy, *, times: int = 10) -> float:
    """Seconds that a small request of somebody else takes at most."""
    slowest = 0.0
    for _ in range(times):
        start = time.monotonic()
        with proxy.client(seconds=2) as client:
            assert client.get("http://denied.test/").status == 403
        slowest = max(slowest, time.monotonic() - start)
        time.sleep(0.02)
    return slowest


def test_a_client_that_pipelines_without_end_leaves_room_for_others(proxy: Proxy) -> None:
    requests = request("http://flood.test/") * 2000
    with proxy.client() as busy:

        def push() -> None:
            while True:
                busy.socket.sendall(requests)

        def drain() -> None:
            while busy.socket.recv(1 << 20):
                pass

        with in_background(push, drain):
            time.sleep(0.3)
            try:
                slowest = _slowest(proxy)
            finally:
                busy.socket.shutdown(socket.SHUT_RDWR)
    assert slowest < 1


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_an_origin_that_floods_with_interim_answers(
    start_proxy: StartProxy, origin: Origin, base: str, version: str
) -> None:
    """It neither starves the others nor gets more time than an origin that is silent."""

    def flood(exchange: Exchange) -> None:
        exchange.close = True
        interim = b"HTTP/1.1 103 Early Hints\r\n\r\n" * 5000
        while True:
            exchange.connection.sendall(interim)

    origin.extensions["/flood"] = flood
    proxy = start_proxy(timeouts={"response": "1s"})
    with proxy.client() as busy:
        busy.send(request(f"{base}/flood", version=version))

        def drain() -> None:
            while busy.socket.recv(1 << 20):
                pass

        with in_background(drain):
            time.sleep(0.2)
            try:
                slowest = _slowest(proxy)
                proxy.wait_for_line(host="origin.test", event="FAILED", seconds=1 + SWEEP)
            finally:
                busy.socket.shutdown(socket.SHUT_RDWR)
    assert slowest < 1


@pytest.mark.parametrize("direction", ["download", "upload"])
def test_a_large_body_leaves_room_for_others(proxy: Proxy, serve: Serve, direction: str) -> None:
    data = b"x" * MIB

    def peer(connection: socket.socket) -> None:
        connection.recv(65536)
        if direction == "download":
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            while True:
                connection.sendall(data)
        while connection.recv(1 << 20):
            pass

    server = serve(peer)
    with proxy.client() as busy:
        if direction == "download":
            busy.send(request(f"http://origin.test:{server.port}/"))
        else:
            busy.send(
                request(
                    f"http://origin.test:{server.port}/",
                    method="PUT",
                    head=f"Content-Length: {1 << 50}\r\n",
                )
            )

        def move() -> None:
            if direction == "download":
                while busy.socket.recv(1 << 20):
                    pass
            while True:
                busy.socket.sendall(data)

        with in_background(move):
            time.sleep(0.2)
            try:
                slowest = _slowest(proxy)
            finally:
                busy.socket.shutdown(socket.SHUT_RDWR)
    assert slowest < 1
