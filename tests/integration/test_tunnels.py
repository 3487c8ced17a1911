"""CONNECT tunnels: every byte once, in order, in both directions, and an end for each of them."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import threading
import time

import pytest

from tests.conftest import Serve, StartProxy
from tests.support.dns import Answer, NameServer
from tests.support.proxy import SWEEP, Proxy
from tests.support.serving import (
    Handler,
    answer_after_eof,
    echo,
    greet,
    greet_and_reset,
    reset_after_first_bytes,
    say_nothing,
    until_eof,
)
from tests.support.tools import MIB, blocks, digest_of_blocks, socket_buffers, wait_until

SLACK = 16 * MIB
"""What the proxy itself may hold while a reader is slow."""


def test_both_directions_are_counted_exactly(proxy: Proxy, serve: Serve) -> None:
    server = serve(echo)
    with proxy.client() as client:
        response = client.connect(f"origin.test:{server.port}")
        assert response.status == 200
        assert "content-length" not in response
        assert "transfer-encoding" not in response
        for size in (1, 1000, 70_000, 300_000):
            client.send(b"x" * size)
            assert client.exactly(size) == b"x" * size
        name = client.name
    line = proxy.wait_for_line(event="ALLOWED")
    assert (line["bytes_sent"], line["bytes_received"]) == (371_001, 371_001)
    assert line["client"] in {name, "127.0.0.1"}
    assert (line["method"], line["host"], line["port"]) == ("CONNECT", "origin.test", server.port)
    assert line["address"].startswith("127.0.0.1")
    assert (line["policy"], line["status"], line["generation"]) == ("test", 200, 1)
    assert line["dns_ms"] >= 0
    assert line["connect_ms"] >= 0
    assert line["duration_ms"] >= 0


def test_early_data_is_neither_lost_nor_sent_too_soon(
    proxy: Proxy, serve: Serve, name_server: NameServer
) -> None:
    """A client need not wait for the 200."""
    arrived: list[tuple[float, bytes]] = []

    def record(connection: socket.socket) -> None:
        data = connection.recv(65536)
        arrived.append((time.monotonic(), data))
        connection.sendall(data + until_eof(connection))

    server = serve(record)
    name_server.set("origin.test", Answer(("127.0.0.1",), delay=0.4))
    with proxy.client() as client:
        sent = time.monotonic()
        target = f"origin.test:{server.port}"
        client.send(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n", b"early ")
        assert client.is_silent(0.2)
        client.send(b"data")
        assert client.response("CONNECT").status == 200
        client.eof()
        assert client.rest() == b"early data"
    assert arrived[0][0] - sent > 0.35
    line = proxy.wait_for_line(event="ALLOWED")
    assert (line["bytes_sent"], line["bytes_received"]) == (10, 10)


def test_much_early_data(proxy: Proxy, serve: Serve, name_server: NameServer) -> None:
    """More than any buffer of a head holds, sent while the name is still looked up."""
    server = serve(answer_after_eof)
    name_server.set("origin.test", Answer(("127.0.0.1",), delay=0.3))
    data = b"".join(bytes(block) for block in blocks(2 * MIB))
    with proxy.client() as client:
        target = f"origin.test:{server.port}"

        def send() -> None:
            client.send(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode() + data)
            client.eof()

        sender = threading.Thread(target=send)
        sender.start()
        assert client.response("CONNECT").status == 200
        assert client.rest() == b"you said: " + data
        sender.join()
    line = proxy.wait_for_line(event="ALLOWED")
    assert line["bytes_sent"] == 2 * MIB


def test_early_data_of_a_refused_connect_goes_nowhere(proxy: Proxy, serve: Serve) -> None:
    server = serve(echo)
    target = f"denied.test:{server.port}"
    with proxy.client() as client:
        client.send(
            f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n", b"\x16\x03\x01hello" * 50
        )
        assert client.response().status == 403
        # The early data is no request: nothing more is said about it.
        client.eof()
        assert client.is_closed()
    assert server.accepted == 0
    proxy.wait_for_line(event="DENIED")
    assert len(proxy.stop()) == 1


def test_a_refused_client_can_read_the_answer_though_it_keeps_sending(proxy: Proxy) -> None:
    """An end by reset could overtake the 403 (RFC 9112 §9.6)."""
    for _ in range(20):
        with proxy.client() as client:
            client.send(
                b"CONNECT denied.test:443 HTTP/1.1\r\nHost: denied.test:443\r\n\r\n" + b"x" * 60_000
            )
            assert client.response().status == 403
    proxy.wait_for_lines(20, event="DENIED")


def test_a_server_that_speaks_first(proxy: Proxy, serve: Serve) -> None:
    server = serve(greet)
    with proxy.client() as client:
        assert client.connect(f"origin.test:{server.port}").status == 200
        assert client.until(b"\r\n") == b"220 origin.test ready\r\n"
        client.send(b"hello")
        assert client.exactly(5) == b"hello"


def test_a_server_that_answers_after_the_clients_end(proxy: Proxy, serve: Serve) -> None:
    server = serve(answer_after_eof)
    with proxy.client() as client:
        client.connect(f"origin.test:{server.port}")
        client.send(b"question")
        client.eof()
        assert client.rest() == b"you said: question"
    line = proxy.wait_for_line(event="ALLOWED")
    assert (line["bytes_sent"], line["bytes_received"]) == (8, 18)


def test_a_client_that_goes_on_after_the_servers_end(proxy: Proxy, serve: Serve) -> None:
    got: list[bytes] = []

    def end_first(connection: socket.socket) -> None:
        connection.sendall(b"bye")
        connection.shutdown(socket.SHUT_WR)
        got.append(until_eof(connection))

    server = serve(end_first)
    with proxy.client() as client:
        client.connect(f"origin.test:{server.port}")
        assert client.rest() == b"bye"
        client.send(b"x" * 100_000)
        time.sleep(0.05)
        client.send(b"end")
        client.eof()
        wait_until(lambda: got, what="the server's end")
    assert got == [b"x" * 100_000 + b"end"]
    line = proxy.wait_for_line(event="ALLOWED")
    assert (line["bytes_sent"], line["bytes_received"]) == (100_003, 3)


def test_a_half_open_tunnel_is_closed_when_idle(start_proxy: StartProxy, serve: Serve) -> None:
    proxy = start_proxy(timeouts={"idle": "500ms"})
    server = serve(say_nothing)
    with proxy.client() as client:
        client.connect(f"origin.test:{server.port}")
        client.send(b"hello")
        assert client.is_closed(seconds=0.5 + SWEEP)
    line = proxy.wait_for_line(event="CLOSED")
    assert (line["reason"], line["bytes_sent"]) == ("idle_timeout", 5)


def test_a_tunnel_that_is_in_use_is_not_idle(start_proxy: StartProxy, serve: Serve) -> None:
    proxy = start_proxy(timeouts={"idle": "1500ms"})
    server = serve(echo)
    with proxy.client() as client:
        client.connect(f"origin.test:{server.port}")
        for _ in range(10):
            client.send(b"x")
            assert client.exactly(1) == b"x"
            time.sleep(0.3)
    proxy.wait_for_line(event="ALLOWED")


def test_no_tunnel_outlives_its_lifetime(start_proxy: StartProxy, serve: Serve) -> None:
    proxy = start_proxy(timeouts={"lifetime": "1s"})
    server = serve(echo)
    start = time.monotonic()
    with proxy.client() as client:
        client.connect(f"origin.test:{server.port}")
        with contextlib.suppress(ConnectionError):
            while client.socket.send(b"x") and client.socket.recv(100):
                assert time.monotonic() - start < 1 + SWEEP
                time.sleep(0.05)
    assert time.monotonic() - start > 0.9
    line = proxy.wait_for_line(event="CLOSED")
    assert line["reason"] == "lifetime_exceeded"


def test_a_server_that_resets(proxy: Proxy, serve: Serve) -> None:
    server = serve(greet_and_reset)
    with proxy.client() as client:
        client.connect(f"origin.test:{server.port}")
        assert client.exactly(5) == b"hello"
        client.send(b"x")
        assert client.is_closed()
    line = proxy.wait_for_line(host="origin.test")
    assert line["event"] in {"ALLOWED", "FAILED"}
    assert line["event"] == "ALLOWED" or line["reason"] == "origin_reset"


def test_a_client_that_resets(proxy: Proxy, serve: Serve) -> None:
    ended = threading.Event()

    def wait_for_end(connection: socket.socket) -> None:
        try:
            until_eof(connection)
        finally:
            ended.set()

    server = serve(wait_for_end)
    with proxy.client() as client:
        client.connect(f"origin.test:{server.port}")
        client.send(b"x" * 1000)
        time.sleep(0.05)
        client.reset()
    assert ended.wait(5)
    line = proxy.wait_for_line(host="origin.test")
    assert (line["event"], line["bytes_sent"]) == ("ALLOWED", 1000)


def test_a_reset_loses_nothing_that_came_before(proxy: Proxy, serve: Serve) -> None:
    server = serve(reset_after_first_bytes)
    for _ in range(20):
        with proxy.client() as client:
            assert client.connect(f"origin.test:{server.port}").status == 200
            client.send(b"x")
            assert client.is_closed()
    proxy.wait_for_lines(20, host="origin.test")


@pytest.mark.parametrize("direction", ["download", "upload"])
def test_a_slow_reader_holds_the_writer_back(proxy: Proxy, serve: Serve, direction: str) -> None:
    """Only what sockets buffer gets through, and the proxy's memory does not grow."""
    buffered = socket_buffers() + SLACK
    size = 4 * buffered
    pushed = 0

    def push(connection: socket.socket) -> None:
        nonlocal pushed
        for block in blocks(size):
            connection.sendall(block)
            pushed += len(block)

    go_on = threading.Event()

    def stall(connection: socket.socket) -> None:
        go_on.wait(20)

    server = serve(push if direction == "download" else stall, receive_buffer=64 * 1024)
    with proxy.client(receive_buffer=64 * 1024) as client:
        client.connect(f"origin.test:{server.port}")
        before = proxy.memory()
        pusher = threading.Thread(target=_quietly, args=(push, client.socket))
        if direction == "upload":
            pusher.start()
        wait_until(lambda: pushed, what="the first block")
        was = -1
        while was != pushed:  # until it stands still
            was = pushed
            time.sleep(0.5)
        assert pushed < buffered
        assert proxy.memory() - before < SLACK
        client.close()
        go_on.set()
        if direction == "upload":
            pusher.join(10)
    line = proxy.wait_for_line(host="origin.test")
    assert max(line["bytes_sent"], line["bytes_received"]) < buffered


def _quietly(push: Handler, connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        push(connection)


def test_a_slow_reader_gets_everything(proxy: Proxy, serve: Serve) -> None:
    """With pauses at which every buffer on the way is full."""
    size = 48 * MIB

    def push(connection: socket.socket) -> None:
        for block in blocks(size):
            connection.sendall(block)

    server = serve(push)
    digest, got = hashlib.sha256(), 0
    with proxy.client() as client:
        client.connect(f"origin.test:{server.port}")
        while data := client.some():
            digest.update(data)
            if got // (8 * MIB) != (got + len(data)) // (8 * MIB):
                time.sleep(0.1)
            got += len(data)
    assert (got, digest.hexdigest()) == (size, digest_of_blocks(size))
    line = proxy.wait_for_line(event="ALLOWED")
    assert line["bytes_received"] == size


def test_both_directions_at_once(proxy: Proxy, serve: Serve) -> None:
    """An echo of 64 MiB: neither direction waits for the other's end."""
    size = 64 * MIB
    server = serve(echo)
    digest, got = hashlib.sha256(), 0
    with proxy.client() as client:
        client.connect(f"origin.test:{server.port}")

        def push() -> None:
            for block in blocks(size):
                client.socket.sendall(block)
            client.eof()

        pusher = threading.Thread(target=push)
        pusher.start()
        while data := client.some():
            digest.update(data)
            got += len(data)
        pusher.join()
    assert (got, digest.hexdigest()) == (size, digest_of_blocks(size))
    line = proxy.wait_for_line(event="ALLOWED")
    assert (line["bytes_sent"], line["bytes_received"]) == (size, size)


def test_one_busy_tunnel_leaves_room_for_others(proxy: Proxy, serve: Serve) -> None:
    stop = threading.Event()

    def flood(connection: socket.socket) -> None:
        data = b"x" * MIB
        while not stop.is_set():
            connection.sendall(data)

    flooding, echoing = serve(flood), serve(echo)
    with proxy.client() as busy, proxy.client() as other:
        busy.connect(f"origin.test:{flooding.port}")

        def drain() -> None:
            while busy.some():
                pass

        drainer = threading.Thread(target=drain)
        drainer.start()
        other.connect(f"origin.test:{echoing.port}")
        slowest = 0.0
        for _ in range(50):
            start = time.monotonic()
            other.send(b"ping")
            assert other.exactly(4) == b"ping"
            slowest = max(slowest, time.monotonic() - start)
        stop.set()
        drainer.join(10)
    assert slowest < 0.5


def test_a_tunnel_is_seen_in_the_metrics(proxy: Proxy, serve: Serve) -> None:
    server = serve(echo)
    with proxy.client() as client:
        client.connect(f"origin.test:{server.port}")
        client.send(b"12345")
        client.exactly(5)
        metrics = proxy.metrics()
        assert metrics["egress_proxy_tunnels_active"] == 1
        assert metrics["egress_proxy_connections_active"] == 1
    proxy.wait_for_line(event="ALLOWED")
    metrics = proxy.metrics()
    assert metrics["egress_proxy_tunnels_active"] == 0
    assert metrics["egress_proxy_connections_active"] == 0
    counted = {
        name: value
        for name, value in metrics.items()
        if name.startswith("egress_proxy_bytes_total")
    }
    assert sorted(counted.values()) == [5, 5]
    assert not any("origin.test" in name for name in metrics)


def test_http_1_0_connect(proxy: Proxy, serve: Serve) -> None:
    server = serve(echo)
    with proxy.client() as client:
        client.send(f"CONNECT origin.test:{server.port} HTTP/1.0\r\n\r\n")
        assert client.response("CONNECT").status == 200
        client.send(b"hello")
        assert client.exactly(5) == b"hello"
