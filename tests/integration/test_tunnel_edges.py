"""Tunnels: what comes at once, in the wrong order, or exactly where a limit lies."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import threading
import time
from typing import Any

import pytest

from tests.conftest import Serve, StartProxy
from tests.support.client import RawClient
from tests.support.dns import Answer, NameServer
from tests.support.edges import (
    at_rest,
    connect,
    request,
    stopped,
    tunnel_whose_200_waits,
    wait_for,
)
from tests.support.proxy import SWEEP, Proxy, configuration, rule
from tests.support.serving import (
    answer_after_eof,
    echo,
    full_backlog,
    reset,
    say_nothing,
    until_eof,
)
from tests.support.tools import MIB, blocks, descriptors, digest_of_blocks, wait_until

# Edges that come together -----------------------------------------------------------------------


def test_urgent_data_does_not_hide_what_follows(proxy: Proxy, serve: Serve) -> None:
    """A read ends at the urgent mark, although more is there; and splice(2) never passes it."""
    server = serve(echo)
    for before in (0, 300_000):
        with proxy.client(seconds=3) as client:
            client.connect(f"origin.test:{server.port}")
            client.send(b"x" * before)
            client.exactly(before)
            with stopped(proxy):
                client.send(b"one ")
                client.socket.send(b"!", socket.MSG_OOB)
                client.send(b"two ")
            got = client.until(b"two ")
            assert got.replace(b"!", b"") == b"one two "
            client.send(b"three")
            assert client.exactly(5) == b"three"
    proxy.wait_for_lines(2, event="ALLOWED")
    at_rest(proxy)


def test_everything_at_once(proxy: Proxy, serve: Serve) -> None:
    """Data, ends and resets of both sides that the poller sees in one batch."""
    accepted: list[socket.socket] = []
    go_on = threading.Event()

    def hold(connection: socket.socket) -> None:
        accepted.append(connection)
        go_on.wait(20)

    server = serve(hold)

    def nothing(_: socket.socket) -> None:
        pass

    def data(peer: socket.socket) -> None:
        peer.sendall(b"x" * 1000)

    def much(peer: socket.socket) -> None:
        peer.sendall(b"x" * 70_000)

    def end(peer: socket.socket) -> None:
        peer.shutdown(socket.SHUT_WR)

    def data_and_end(peer: socket.socket) -> None:
        data(peer)
        end(peer)

    def data_and_reset(peer: socket.socket) -> None:
        data(peer)
        reset(peer)

    def data_and_close(peer: socket.socket) -> None:
        much(peer)
        peer.close()

    def read(peer: socket.socket) -> int:
        """Bytes up to the end; -1 where that is a reset."""
        peer.settimeout(5)
        try:
            return len(until_eof(peer))
        except OSError:
            return -1

    deeds = [nothing, data, much, end, data_and_end, reset, data_and_reset, data_and_close]
    pairs = [(one, other) for one in deeds for other in deeds if (one, other) != (nothing, nothing)]
    clients: list[socket.socket] = []
    for number in range(len(pairs)):
        opened = proxy.client()
        opened.connect(f"origin.test:{server.port}")
        clients.append(opened.socket)
        wait_for(accepted, number + 1)  # so that both lists have the same order
    with stopped(proxy):
        for client, origin_side, (one, other) in zip(clients, accepted, pairs, strict=True):
            one(client)
            other(origin_side)
    for client, origin_side, (one, other) in zip(clients, accepted, pairs, strict=True):
        for peer, deed in ((client, one), (origin_side, other)):
            if peer.fileno() >= 0 and deed in {nothing, data, much}:
                with contextlib.suppress(OSError):
                    peer.shutdown(socket.SHUT_WR)
        said = {nothing: 0, data: 1000, much: 70_000, end: 0, data_and_end: 1000}
        polite = one in said and other in said
        for peer, deed in ((client, other), (origin_side, one)):
            if peer.fileno() >= 0:
                got = read(peer)
                if polite:
                    assert got == said[deed], (one, other)
                peer.close()
    go_on.set()
    lines = proxy.wait_for_lines(len(pairs), host="origin.test")
    assert {line["event"] for line in lines} <= {"ALLOWED", "FAILED"}
    assert {line.get("reason") for line in lines} <= {None, "origin_reset"}
    at_rest(proxy)


def test_an_end_behind_a_full_chunk_is_seen(proxy: Proxy, serve: Serve) -> None:
    """The end comes together with exactly as many bytes as one read, or one turn, takes."""
    sizes = [size + more for size in (65_536, 8 * 65_536) for more in (-1, 0, 1)]
    sizes += [131_071, 131_072, 131_073, 262_144, 262_145]
    server = serve(say_nothing)
    for size in sizes:
        with proxy.client() as client:
            client.connect(f"origin.test:{server.port}")
            with stopped(proxy):
                client.send(b"x" * size)
                client.eof()
            assert client.is_closed()
    lines = proxy.wait_for_lines(len(sizes), event="ALLOWED")
    assert [line["bytes_sent"] for line in lines] == sizes
    at_rest(proxy)


def test_an_origin_that_said_all_before_the_tunnel_was_made(proxy: Proxy, serve: Serve) -> None:
    """Its bytes and its end may come with the edge that says that the connection is made."""

    def say_and_leave(connection: socket.socket) -> None:
        connection.sendall(b"bye")

    server = serve(say_and_leave)
    for _ in range(200):
        with proxy.client(seconds=2) as client:
            assert client.connect(f"origin.test:{server.port}").status == 200
            assert client.rest() == b"bye"
    proxy.wait_for_lines(200, event="ALLOWED", bytes_received=3)
    at_rest(proxy)


def test_a_client_that_said_all_before_the_tunnel_was_made(
    start_proxy: StartProxy, serve: Serve, name_server: NameServer
) -> None:
    """The edge of its end comes when nobody waits for it."""
    proxy = start_proxy(allow=[rule("origin.test"), rule("slow.test")])
    name_server.set("slow.test", Answer(("127.0.0.1",), delay=0.3))
    server = serve(answer_after_eof)
    target = f"slow.test:{server.port}"
    with proxy.client(seconds=3) as client:
        assert client.get("http://denied.test/").status == 403
        time.sleep(0.05)  # now the proxy waits for another request
        client.send(connect(target))
        time.sleep(0.05)
        client.send(b"all of it")
        client.eof()
        assert client.response("CONNECT").status == 200
        assert client.rest() == b"you said: all of it"
    line = proxy.wait_for_line(method="CONNECT")
    assert (line["bytes_sent"], line["bytes_received"]) == (9, 19)
    at_rest(proxy)


# Around the size from which bytes are spliced ---------------------------------------------------


def _trickle(connection: socket.socket, digest: Any, *, pieces: tuple[int, ...]) -> int:
    """Read in odd pieces, with pauses at first, to the end."""
    got = turn = 0
    while data := connection.recv(pieces[turn % len(pieces)]):
        digest.update(data)
        got += len(data)
        turn += 1
        if turn < 40:
            time.sleep(0.002)
    return got


@pytest.mark.parametrize("direction", ["download", "upload"])
def test_partial_writes_around_the_splice_threshold(
    proxy: Proxy, serve: Serve, direction: str
) -> None:
    """Small windows: each write is partial, and the pipe stays full while the reader pauses."""
    sizes = [131_071, 131_072, 131_073, 196_609, 500_001, 3 * MIB + 1]
    pieces = (1, 4096, 60_000, 7, 131_072)
    results: list[tuple[int, str]] = []

    def read(connection: socket.socket) -> None:
        digest = hashlib.sha256()
        results.append((_trickle(connection, digest, pieces=pieces), digest.hexdigest()))

    def write(connection: socket.socket) -> None:
        size = int(connection.recv(100))
        for block in blocks(size):
            connection.sendall(block)
        connection.shutdown(socket.SHUT_WR)
        until_eof(connection)

    server = serve(read if direction == "upload" else write, receive_buffer=8192)
    for size in sizes:
        with proxy.client(receive_buffer=8192) as client:
            client.connect(f"origin.test:{server.port}")
            if direction == "upload":
                for block in blocks(size):
                    client.socket.sendall(block)
                client.eof()
                client.rest()
            else:
                client.send(str(size))
                read(client.socket)
    assert results == [(size, digest_of_blocks(size)) for size in sizes]
    field = "bytes_sent" if direction == "upload" else "bytes_received"
    lines = proxy.wait_for_lines(len(sizes), event="ALLOWED")
    assert [line[field] for line in lines] == sizes
    at_rest(proxy)


@pytest.mark.parametrize("size", [200_000, 32 * MIB])
def test_a_reset_while_bytes_wait_for_a_slow_reader(proxy: Proxy, serve: Serve, size: int) -> None:
    """By either side, with bytes left over in memory or in a pipe; counts are of what was passed on."""
    stalled: list[socket.socket] = []

    def push(connection: socket.socket) -> None:
        stalled.append(connection)
        connection.settimeout(0.3)
        with contextlib.suppress(TimeoutError):
            for block in blocks(size):
                connection.sendall(block)
        connection.settimeout(10)
        until_eof(connection)

    server = serve(push)
    before = len(descriptors(proxy.pid))
    for number, who in enumerate(("client", "origin", "client", "origin")):
        with proxy.client(receive_buffer=4096) as client:
            client.connect(f"origin.test:{server.port}")
            wait_for(stalled, number + 1)
            time.sleep(0.4)
            if who == "client":
                client.reset()
            else:
                reset_now(stalled[-1])
                with contextlib.suppress(OSError):
                    client.rest()
            line = proxy.wait_for_lines(number + 1, host="origin.test")[-1]
            assert line["bytes_received"] <= size
            assert line["bytes_sent"] == 0
            if who == "client":
                assert line["event"] == "ALLOWED"
    at_rest(proxy)
    assert len(descriptors(proxy.pid)) <= before + 4  # pipes that are kept


def reset_now(connection: socket.socket) -> None:
    """Reset a connection that another thread reads."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RD)
    connection.close()


# Time limits ------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", ["idle", "lifetime"])
def test_limits_hold_while_a_reader_is_stalled(
    start_proxy: StartProxy, serve: Serve, limit: str
) -> None:
    proxy = start_proxy(timeouts={limit: "1s"})

    def push(connection: socket.socket) -> None:
        for block in blocks(64 * MIB):
            connection.sendall(block)

    server = serve(push)
    with proxy.client(receive_buffer=4096) as client:
        client.connect(f"origin.test:{server.port}")
        line = proxy.wait_for_line(event="CLOSED", seconds=1 + 2 * SWEEP)
        assert line["reason"] == ("idle_timeout" if limit == "idle" else "lifetime_exceeded")
        got = 0
        with contextlib.suppress(ConnectionError):
            while data := client.some():
                got += len(data)
        assert got <= line["bytes_received"] < 64 * MIB
    at_rest(proxy)


def test_a_half_closed_tunnel_has_an_idle_limit_too(start_proxy: StartProxy, serve: Serve) -> None:
    proxy = start_proxy(timeouts={"idle": "500ms"})
    done = threading.Event()

    def keep(connection: socket.socket) -> None:
        connection.recv(100)
        done.wait(10)

    server = serve(keep)
    with proxy.client() as client:
        client.connect(f"origin.test:{server.port}")
        client.send(b"bye")
        client.eof()
        assert client.is_closed(seconds=0.5 + SWEEP)
        done.set()
    line = proxy.wait_for_line(event="CLOSED", reason="idle_timeout")
    assert (line["bytes_sent"], line["bytes_received"]) == (3, 0)
    at_rest(proxy)


# The end of the origin's side -------------------------------------------------------------------


def test_goodbyes_to_an_origin_that_has_gone_are_no_failure(proxy: Proxy, serve: Serve) -> None:
    """TLS peers say goodbye each; the one who closed first answers the other's with a reset."""

    def leave(connection: socket.socket) -> None:
        connection.recv(100)
        connection.sendall(b"all of it, and goodbye")

    server = serve(leave)
    for _ in range(5):
        with proxy.client() as client:
            client.connect(f"origin.test:{server.port}")
            client.send(b"question")
            assert client.rest() == b"all of it, and goodbye"
            client.send(b"goodbye")
            time.sleep(0.02)
    lines = proxy.wait_for_lines(5, host="origin.test")
    assert [line["event"] for line in lines] == ["ALLOWED"] * 5


# While the origin is being dialled --------------------------------------------------------------


def test_what_the_client_sends_is_not_taken_for_the_origins_answer(
    start_proxy: StartProxy, base: str
) -> None:
    """The client's edges come while a connection to a silent origin is being made."""
    proxy = start_proxy(timeouts={"connect": "600ms", "connect_attempt": "600ms"})
    with full_backlog() as port, proxy.client() as client:
        assert client.get(f"{base}/").status == 200  # so that the client is watched already
        client.send(request(f"http://origin.test:{port}/"))
        for _ in range(3):
            time.sleep(0.05)
            client.send(request(f"{base}/bytes/7"))
        client.eof()
        response = client.response()
        assert (response.status, response.error["reason"]) == (504, "connection_timeout")
        for _ in range(3):
            assert len(client.response().body) == 7
        assert client.is_closed()
    assert [line["status"] for line in proxy.wait_for_lines(5, host="origin.test")] == [
        200,
        504,
        200,
        200,
        200,
    ]
    at_rest(proxy)


@pytest.mark.parametrize("method", ["CONNECT", "GET"])
def test_a_client_that_leaves_while_its_origin_is_dialled(
    start_proxy: StartProxy, method: str
) -> None:
    proxy = start_proxy(timeouts={"connect": "500ms", "connect_attempt": "500ms"})
    with full_backlog() as port:
        for leave in (RawClient.reset, RawClient.close):
            client = proxy.client()
            target = f"origin.test:{port}"
            client.send(connect(target) if method == "CONNECT" else request(f"http://{target}/"))
            time.sleep(0.05)
            leave(client)
        proxy.wait_for_lines(2, method=method, reason="connection_timeout")
    at_rest(proxy)


# An answer that the client's system does not take -----------------------------------------------


def _wait_for_last_line(proxy: Proxy, **fields: Any) -> None:
    """Attempts that came to nothing have lines before it."""

    def told() -> dict[str, Any]:
        line = proxy.lines[-1]
        return {name: line.get(name) for name in fields}

    wait_until(lambda: proxy.lines and told() == fields, what=lambda: f"{fields} of {proxy.lines}")


def test_a_tunnel_whose_200_has_to_wait(proxy: Proxy, base: str, serve: Serve) -> None:
    """Meanwhile the origin speaks first and the client sends early data: neither's edge is lost."""
    greeting = b"g" * 1000

    def greet_then_echo(connection: socket.socket) -> None:
        connection.sendall(greeting)
        echo(connection)

    server = serve(greet_then_echo)
    client, size = tunnel_whose_200_waits(proxy, base, server, early=b"early")
    with client:
        client.send(b"data")
        assert len(client.response().body) == size
        assert client.response("CONNECT").status == 200
        assert client.exactly(1009) == greeting + b"earlydata"
    _wait_for_last_line(proxy, method="CONNECT", bytes_sent=9, bytes_received=1009)
    at_rest(proxy)


def test_an_origin_that_goes_before_the_200_was_sent(proxy: Proxy, base: str, serve: Serve) -> None:
    """What it said arrives, and its end."""

    def say_and_leave(connection: socket.socket) -> None:
        connection.sendall(b"bye")

    client, size = tunnel_whose_200_waits(proxy, base, serve(say_and_leave))
    with client:
        client.socket.settimeout(3)
        assert len(client.response().body) == size
        assert client.response("CONNECT").status == 200
        assert client.rest() == b"bye"
    _wait_for_last_line(proxy, method="CONNECT", bytes_received=3)
    at_rest(proxy)


def test_a_client_that_goes_before_its_200_was_sent(proxy: Proxy, base: str, serve: Serve) -> None:
    server = serve(say_nothing)
    client, _ = tunnel_whose_200_waits(proxy, base, server)
    client.reset()
    _wait_for_last_line(proxy, method="CONNECT", reason="client_aborted", status=None)
    at_rest(proxy)


def test_a_permission_that_is_taken_back_before_the_200_was_sent(
    proxy: Proxy, base: str, serve: Serve, name_server: NameServer
) -> None:
    """Half of a 200 may be on its way, so nothing else is said after it."""
    server = serve(say_nothing)
    client, _ = tunnel_whose_200_waits(proxy, base, server)
    with client:
        proxy.reload(configuration(name_server=name_server.address, allow=["nothing.test"]))
        _wait_for_last_line(proxy, method="CONNECT", event="CLOSED", reason="policy_revoked")
    at_rest(proxy)
