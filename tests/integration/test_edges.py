"""Edges, in time and in numbers: what comes at once, in the wrong order, too often, or exactly where a limit lies."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Serve, StartProxy
from tests.support.client import RawClient
from tests.support.dns import Answer, NameServer
from tests.support.origin import Exchange, Origin
from tests.support.proxy import SWEEP, Proxy, rule
from tests.support.serving import (
    Server,
    answer_after_eof,
    echo,
    full_backlog,
    reset,
    say_nothing,
    until_eof,
)
from tests.support.tools import MIB, blocks, descriptors, digest_of_blocks, wait_until


@pytest.fixture
def base(origin: Origin) -> str:
    return f"http://origin.test:{origin.http}"


def _request(url: str, *, method: str = "GET", head: str = "", version: str = "1.1") -> bytes:
    host = url.split("/")[2]
    return f"{method} {url} HTTP/{version}\r\nHost: {host}\r\n{head}\r\n".encode()


def _connect(authority: str) -> bytes:
    return f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode()


def _no_trace(proxy: Proxy) -> None:
    """Nothing went wrong inside."""
    assert "Traceback" not in proxy.stderr
    assert not {line.get("event") for line in proxy.events()} & {"defect", "library_message"}
    assert "internal_error" not in proxy.stdout


def _at_rest(proxy: Proxy) -> None:
    """No connection is left, in the system's eyes and in the proxy's own."""
    proxy.settled()
    metrics = proxy.metrics()
    assert metrics["egress_proxy_connections_active"] == 0
    assert metrics["egress_proxy_tunnels_active"] == 0
    _no_trace(proxy)


def _wait_for(things: list[Any], count: int) -> None:
    """Until a peer's list has so many entries."""
    wait_until(lambda: len(things) == count, what=lambda: f"{count} entries in {things}")


@contextlib.contextmanager
def _stopped(proxy: Proxy) -> Iterator[None]:
    """What the peers do meanwhile comes to the proxy at once."""
    proxy.signal(signal.SIGSTOP)
    wait_until(
        lambda: Path(f"/proc/{proxy.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T",
        what="the proxy's standstill",
    )
    try:
        yield
    finally:
        proxy.signal(signal.SIGCONT)


@contextlib.contextmanager
def _in_background(*calls: Callable[[], object]) -> Iterator[None]:
    """Threads that end when their connections do."""

    def quietly(call: Callable[[], object]) -> None:
        with contextlib.suppress(OSError):
            call()

    threads = [threading.Thread(target=quietly, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()


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
    requests = _request("http://flood.test/") * 2000
    with proxy.client() as busy:

        def push() -> None:
            while True:
                busy.socket.sendall(requests)

        def drain() -> None:
            while busy.socket.recv(1 << 20):
                pass

        with _in_background(push, drain):
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
        busy.send(_request(f"{base}/flood", version=version))

        def drain() -> None:
            while busy.socket.recv(1 << 20):
                pass

        with _in_background(drain):
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
            busy.send(_request(f"http://origin.test:{server.port}/"))
        else:
            busy.send(
                _request(
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

        with _in_background(move):
            time.sleep(0.2)
            try:
                slowest = _slowest(proxy)
            finally:
                busy.socket.shutdown(socket.SHUT_RDWR)
    assert slowest < 1


# Edges that come together -----------------------------------------------------------------------


def test_urgent_data_does_not_hide_what_follows(proxy: Proxy, serve: Serve) -> None:
    """A read ends at the urgent mark, although more is there; and splice(2) never passes it."""
    server = serve(echo)
    for before in (0, 300_000):
        with proxy.client(seconds=3) as client:
            client.connect(f"origin.test:{server.port}")
            client.send(b"x" * before)
            client.exactly(before)
            with _stopped(proxy):
                client.send(b"one ")
                client.socket.send(b"!", socket.MSG_OOB)
                client.send(b"two ")
            got = client.until(b"two ")
            assert got.replace(b"!", b"") == b"one two "
            client.send(b"three")
            assert client.exactly(5) == b"three"
    proxy.wait_for_lines(2, event="ALLOWED")
    _at_rest(proxy)


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
        _wait_for(accepted, number + 1)  # so that both lists have the same order
    with _stopped(proxy):
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
    _at_rest(proxy)


def test_an_end_behind_a_full_chunk_is_seen(proxy: Proxy, serve: Serve) -> None:
    """The end comes together with exactly as many bytes as one read, or one turn, takes."""
    sizes = [size + more for size in (65_536, 8 * 65_536) for more in (-1, 0, 1)]
    sizes += [131_071, 131_072, 131_073, 262_144, 262_145]
    server = serve(say_nothing)
    for size in sizes:
        with proxy.client() as client:
            client.connect(f"origin.test:{server.port}")
            with _stopped(proxy):
                client.send(b"x" * size)
                client.eof()
            assert client.is_closed()
    lines = proxy.wait_for_lines(len(sizes), event="ALLOWED")
    assert [line["bytes_sent"] for line in lines] == sizes
    _at_rest(proxy)


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
    _at_rest(proxy)


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
        client.send(_connect(target))
        time.sleep(0.05)
        client.send(b"all of it")
        client.eof()
        assert client.response("CONNECT").status == 200
        assert client.rest() == b"you said: all of it"
    line = proxy.wait_for_line(method="CONNECT")
    assert (line["bytes_sent"], line["bytes_received"]) == (9, 19)
    _at_rest(proxy)


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
    _at_rest(proxy)


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
            _wait_for(stalled, number + 1)
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
    _at_rest(proxy)
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
    _at_rest(proxy)


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
    _at_rest(proxy)


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
        client.send(_request(f"http://origin.test:{port}/"))
        for _ in range(3):
            time.sleep(0.05)
            client.send(_request(f"{base}/bytes/7"))
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
    _at_rest(proxy)


@pytest.mark.parametrize("method", ["CONNECT", "GET"])
def test_a_client_that_leaves_while_its_origin_is_dialled(
    start_proxy: StartProxy, method: str
) -> None:
    proxy = start_proxy(timeouts={"connect": "500ms", "connect_attempt": "500ms"})
    with full_backlog() as port:
        for leave in (RawClient.reset, RawClient.close):
            client = proxy.client()
            target = f"origin.test:{port}"
            client.send(_connect(target) if method == "CONNECT" else _request(f"http://{target}/"))
            time.sleep(0.05)
            leave(client)
        proxy.wait_for_lines(2, method=method, reason="connection_timeout")
    _at_rest(proxy)


# Connections with several requests --------------------------------------------------------------


def test_a_tunnel_on_a_connection_that_carried_requests(
    proxy: Proxy, base: str, serve: Serve
) -> None:
    server = serve(echo)
    target = f"origin.test:{server.port}"
    for early in (b"", b"early", b"x" * 200_000):
        with proxy.client() as client:
            assert client.get(f"{base}/").status == 200
            assert client.get("http://denied.test/").status == 403
            client.send(_request(f"{base}/bytes/100000"), _connect(target), early)
            assert len(client.response().body) == 100_000
            assert client.response("CONNECT").status == 200
            assert client.exactly(len(early)) == early
            client.send(b"later")
            assert client.exactly(5) == b"later"
        (line,) = (
            one for one in proxy.wait_for_lines(1, method="CONNECT", bytes_sent=len(early) + 5)
        )
        assert line["bytes_received"] == len(early) + 5
    assert len(proxy.lines) == 12
    _at_rest(proxy)


def test_a_body_longer_than_its_length_begins_the_next_request(proxy: Proxy, base: str) -> None:
    with proxy.client() as client:
        client.send(
            _request(f"{base}/upload", method="POST", head="Content-Length: 3\r\n"),
            b"abcdef\r\n\r\n",
        )
        assert json.loads(client.response().body)["length"] == 3
        assert client.response().error["reason"] == "malformed_request_line"
        assert client.is_closed()
    lines = proxy.stop()
    assert [(line["event"], line.get("bytes_sent")) for line in lines] == [
        ("ALLOWED", 3),
        ("DENIED", None),
    ]


def test_an_answer_longer_than_its_length_is_cut(proxy: Proxy, origin: Origin, base: str) -> None:
    """And bodies that should not be there: none of it can be taken for the next answer."""
    surplus = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
    answers = {
        "length": b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood" + surplus,
        "empty": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n" + surplus,
        "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\ngood\r\n0\r\n\r\n"
        + surplus,
        "204": b"HTTP/1.1 204 No Content\r\nContent-Length: 4\r\n\r\nevil" + surplus,
        "304": b"HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\nevil" + surplus,
        "head": b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil" + surplus,
        "chunked-304": b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nevil\r\n"
        + surplus,
    }

    def answer(exchange: Exchange) -> None:
        exchange.close = True
        exchange.connection.sendall(answers[exchange.path.rpartition("/")[2]])

    origin.extensions["/surplus"] = answer
    with proxy.client() as client:
        for name in answers:
            response = client.get(
                f"{base}/surplus/{name}", method="HEAD" if name == "head" else "GET"
            )
            assert response.status in {200, 204, 304}
            assert response.body in {b"", b"good"}
            assert client.get(f"{base}/").body == b"hello from http\n"
    lines = proxy.wait_for_lines(2 * len(answers), event="ALLOWED")
    assert [line["bytes_received"] for line in lines[::2]] == [4, 0, 4, 0, 0, 0, 0]
    _at_rest(proxy)


# Bodies -----------------------------------------------------------------------------------------


def test_a_request_body_that_goes_wrong_halfway(proxy: Proxy, origin: Origin, base: str) -> None:
    """The origin has had a part of it already."""
    endings = [
        b"zz\r\n",
        b"5\r\nhelloX\r\n",
        b"5\nhello",
        b"0\r\nno trailer\r\n\r\n",
        b"0\r\n" + b"x" * 9000,
    ]
    for number, ending in enumerate(endings):
        with proxy.client() as client:
            client.send(
                _request(f"{base}/upload", method="POST", head="Transfer-Encoding: chunked\r\n"),
                b"5\r\nhello\r\n",
            )
            _wait_for(origin.heads, number + 1)
            client.send(ending)
            response = client.response()
            assert (response.status, response.error["reason"]) == (400, "bad_chunk")
            assert client.is_closed()
    lines = proxy.wait_for_lines(len(endings), event="DENIED", reason="bad_chunk")
    assert len(proxy.lines) == len(endings)
    assert {line["bytes_received"] for line in lines} == {0}
    _at_rest(proxy)


def test_an_answer_before_the_request_is_complete_is_given_whole(
    proxy: Proxy, origin: Origin, base: str
) -> None:
    """Also to a client that takes it as a reason to send no more."""

    def refuse(exchange: Exchange) -> None:
        exchange.close = True
        exchange.start("Content-Length: 20\r\n", status="413 Content Too Large")
        for _ in range(20):
            exchange.connection.sendall(b".")
            time.sleep(0.01)

    origin.extensions["/refuse"] = refuse
    with proxy.client() as client:
        client.send(
            _request(f"{base}/refuse", method="PUT", head="Content-Length: 1000\r\n"), b"x" * 10
        )
        head = client.until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 413 ")
        client.eof()
        assert client.exactly(20) == b"." * 20
        assert client.is_closed()
    line = proxy.wait_for_line(status=413)
    assert (line["bytes_sent"], line["bytes_received"]) == (10, 20)


def test_a_reset_by_an_origin_that_answered_early_leaves_the_answer(
    proxy: Proxy, origin: Origin, base: str
) -> None:
    """It closes without reading what the client still sends."""

    def refuse(exchange: Exchange) -> None:
        exchange.close = True
        exchange.start("Content-Length: 8\r\n", status="413 Content Too Large")
        exchange.connection.sendall(b"too big\n")

    origin.extensions["/refuse"] = refuse
    for _ in range(10):
        with proxy.client() as client:
            client.send(
                _request(f"{base}/refuse", method="PUT", head=f"Content-Length: {MIB}\r\n"),
                b"x" * 300_000,
            )
            response = client.response()
            assert (response.status, response.body) == (413, b"too big\n")
    proxy.wait_for_lines(10, status=413)
    _at_rest(proxy)


def test_an_answer_split_at_every_byte(proxy: Proxy, origin: Origin, base: str) -> None:
    whole = (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"5;x\r\nhello\r\n0\r\nX-T: y\r\n\r\n"
    )

    def answer(exchange: Exchange) -> None:
        exchange.close = True
        position = int(exchange.path.rpartition("/")[2])
        exchange.connection.sendall(whole[:position])
        time.sleep(0.003)
        exchange.connection.sendall(whole[position:])

    origin.extensions["/split"] = answer
    with proxy.client() as client:
        for position in range(1, len(whole)):
            client.send(_request(f"{base}/split/{position}"))
            assert client.response().status == 100
            assert client.response().body == b"hello"
    lines = proxy.wait_for_lines(len(whole) - 1, event="ALLOWED")
    # The content alone: how many chunks it took is chance.
    assert {line["bytes_received"] for line in lines} == {5}
    _at_rest(proxy)


def test_a_broken_answer_of_which_nothing_was_given_is_answered(
    proxy: Proxy, origin: Origin, base: str
) -> None:
    """Head and malformed body come together: there is still time for a 502."""

    def answer(exchange: Exchange) -> None:
        exchange.close = True
        exchange.connection.sendall(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\nhello\r\n0\r\n\r\n"
        )

    origin.extensions["/broken"] = answer
    with proxy.client() as client:
        response = client.get(f"{base}/broken")
        assert response.status == 502
        assert response.error["reason"] in {"origin_malformed", "origin_truncated"}
    line = proxy.wait_for_line(event="FAILED")
    assert line["status"] == 502


@pytest.mark.parametrize("path", ["cut-chunk", "reset-body"])
def test_an_answer_that_breaks_off_does_not_end_like_a_whole_one(
    proxy: Proxy, origin: Origin, base: str, path: str
) -> None:
    """An HTTP/1.0 client takes the connection's end for the end of the answer, unless that is a reset."""

    def until_reset(exchange: Exchange) -> None:
        exchange.close = True
        exchange.start("")
        exchange.connection.sendall(b"not all of it")
        time.sleep(0.1)
        reset(exchange.connection)

    origin.extensions["/reset-body"] = until_reset
    with proxy.client() as client:
        client.send(_request(f"{base}/{path}", version="1.0"))
        with pytest.raises(ConnectionResetError):
            client.rest()
    proxy.wait_for_line(event="FAILED")


def test_interim_answers_to_a_slow_reader_do_not_hide_its_body(
    proxy: Proxy, origin: Origin, base: str
) -> None:
    """The rest of the body comes while the proxy waits to pass on the last of them."""
    interim = b"HTTP/1.1 103 Early Hints\r\nX-Fill: " + b"x" * 8000 + b"\r\n\r\n"
    counts = [400, 430, 460, 490, 520]

    def answer(exchange: Exchange) -> None:
        exchange.connection.sendall(interim * int(exchange.path.rpartition("/")[2]))
        exchange.answer(b"final\n")

    origin.extensions["/hints"] = answer
    for count in counts:
        with proxy.client(receive_buffer=4096, seconds=4) as client:
            client.send(
                _request(f"{base}/hints/{count}", method="POST", head="Content-Length: 10\r\n"),
                b"hello",
            )
            time.sleep(0.15)
            client.send(b"world")
            time.sleep(0.05)
            for _ in range(count):
                assert client.response().status == 103
            assert client.response().body == b"final\n"
    proxy.wait_for_lines(len(counts), event="ALLOWED", bytes_sent=10)


@pytest.mark.parametrize("path", ["hang", "half"])
def test_a_client_that_resets_while_it_waits_frees_the_origin(
    proxy: Proxy, base: str, path: str
) -> None:
    """Nobody else would: the origin is silent, and the time limits are long."""
    with proxy.client() as client:
        client.send(_request(f"{base}/{path}"))
        if path == "half":
            client.until(b"hello")
        else:
            time.sleep(0.1)
        client.reset()
    line = proxy.wait_for_line(host="origin.test", seconds=3)
    assert line["reason"] == "client_aborted"
    _at_rest(proxy)


@pytest.mark.parametrize("size", [65_535, 65_536, 65_537, 131_072])
def test_bodies_that_end_where_a_read_ends(
    proxy: Proxy, origin: Origin, base: str, size: int
) -> None:
    """Head and body in one piece, so that the whole is as long as a read."""

    def answer(exchange: Exchange) -> None:
        exchange.close = True
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %06d\r\n\r\n"
        body = b"x" * (size - len(head % 0))
        exchange.connection.sendall(head % len(body) + body)

    def chunked(exchange: Exchange) -> None:
        exchange.close = True
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        body = b"x" * (size - len(head) - 15)
        exchange.connection.sendall(head + b"%06x\r\n%b\r\n0\r\n\r\n" % (len(body), body))

    origin.extensions |= {"/exact": answer, "/exact-chunked": chunked}
    with proxy.client() as client:
        for path in ("exact", "exact-chunked"):
            assert set(client.get(f"{base}/{path}").body) == {ord("x")}
            assert client.get(f"{base}/{path}").status == 200
    proxy.wait_for_lines(4, event="ALLOWED")


# An answer that the client's system does not take -----------------------------------------------


def tunnel_whose_200_waits(
    proxy: Proxy, base: str, server: Server, *, early: bytes = b""
) -> tuple[RawClient, int]:
    """A client whose connection is filled to the last byte by an answer of that size when its tunnel is made."""
    target = f"origin.test:{server.port}"
    whole = f"/bytes/{8 * MIB}"
    for attempt in range(1, 21):
        accepted = server.accepted
        with proxy.client(receive_buffer=4096) as probe:
            probe.send(_request(base + whole))
            time.sleep(0.2)
            probe.reset()
            size = proxy.wait_for_lines(attempt, path=whole)[-1]["bytes_received"]
        client = proxy.client(receive_buffer=4096, seconds=20)
        client.send(_request(f"{base}/bytes/{size}"), _connect(target), early)
        time.sleep(0.2)
        if server.accepted > accepted and not proxy.metrics()["egress_proxy_tunnels_active"]:
            return client, size
        client.reset()  # the system took another number of bytes this time
        wait_until(lambda: not proxy.metrics()["egress_proxy_connections_active"], what="its end")
    raise AssertionError("each time, the system took another number of bytes")


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
    _at_rest(proxy)


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
    _at_rest(proxy)


def test_a_client_that_goes_before_its_200_was_sent(proxy: Proxy, base: str, serve: Serve) -> None:
    server = serve(say_nothing)
    client, _ = tunnel_whose_200_waits(proxy, base, server)
    client.reset()
    _wait_for_last_line(proxy, method="CONNECT", reason="client_aborted", status=None)
    _at_rest(proxy)


# Names ------------------------------------------------------------------------------------------


class _HalfDeaf(NameServer):
    """Says nothing when asked for a type, as some do that do not know it."""

    deaf_to = "AAAA"

    def _reply(self, wire: bytes, transport: str) -> tuple[Answer, bytes | None]:
        answer, reply = super()._reply(wire, transport)
        return answer, None if self.queries[-1].kind == self.deaf_to else reply


def test_silence_about_ipv6_does_not_hide_ipv4(start_proxy: StartProxy, serve: Serve) -> None:
    server = serve(say_nothing)
    with _HalfDeaf() as deaf:
        deaf.set("origin.test", "127.0.0.1")
        proxy = start_proxy(dns={"servers": [deaf.address], "timeout": "600ms"})
        with proxy.client() as client:
            assert client.connect(f"origin.test:{server.port}").status == 200


def test_answers_that_come_after_the_clients_have_left(
    proxy: Proxy, serve: Serve, name_server: NameServer
) -> None:
    """They are worth keeping, and nobody who left is answered in another's place."""
    server = serve(echo)
    name_server.set("origin.test", Answer(("127.0.0.1",), delay=0.4))
    target = f"origin.test:{server.port}"
    left = [proxy.client() for _ in range(20)]
    for number, client in enumerate(left):
        client.send(_connect(target) if number % 2 else _request(f"http://{target}/"))
    time.sleep(0.1)
    for number, client in enumerate(left):
        (client.reset if number % 4 < 2 else client.close)()
    with proxy.client() as client:
        # Its descriptor may be one that has just been given back.
        assert client.get("http://denied.test/").status == 403
        assert client.connect(target).status == 200
        client.send(b"mine")
        assert client.exactly(4) == b"mine"
    proxy.wait_for_lines(21, host="origin.test")
    assert name_server.asked("origin.test") == 1
    _at_rest(proxy)


def test_a_hosts_file_that_becomes_unreadable(
    start_proxy: StartProxy,
    origin: Origin,
    name_server: NameServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Whatever it holds, the proxy goes on; what it no longer says is asked for."""
    hosts = tmp_path_factory.mktemp("hosts") / "hosts"
    hosts.write_text("127.0.0.1 origin.test\n")
    proxy = start_proxy(dns={"hosts_file": str(hosts)})

    def get() -> int:
        with proxy.client() as client:
            return client.get(f"http://origin.test:{origin.http}/").status

    assert get() == 200
    assert name_server.queries == []
    hosts.write_bytes(b"\xff\xfe\x00\n#\n127.0.0.1\nx y z\n1.2.3.4.5 origin.test\n" + b"a " * 5000)
    wait_until(lambda: get() == 200 and name_server.queries, what="the question")
    hosts.unlink()
    hosts.mkdir()
    time.sleep(1.1)  # it is looked at once a second
    assert get() == 200
    _no_trace(proxy)


# Too many ---------------------------------------------------------------------------------------


def test_running_out_of_descriptors(proxy: Proxy, serve: Serve, origin: Origin) -> None:
    """Some are refused or wait; nothing breaks, and all is well when there is room again."""
    server = serve(echo)
    base = f"http://origin.test:{origin.http}"
    with proxy.client() as client:
        assert client.get(f"{base}/").status == 200
    proxy.settled()
    room = max(descriptors(proxy.pid)) + 12
    hard = resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE)[1]
    resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE, (room, hard))
    clients = [proxy.client(seconds=0.1) for _ in range(16)]
    tunnels, refused = 0, 0
    for client in clients:
        client.send(_connect(f"origin.test:{server.port}"))
    for client in clients:
        with contextlib.suppress(TimeoutError):
            response = client.response("CONNECT")
            if response.status == 200:
                tunnels += 1
                client.send(b"x" * 200_000)
                assert client.exactly(200_000) == b"x" * 200_000
            else:
                refused += 1
                assert response.status in {502, 503}
                assert response["x-egress-error"] == "RETRY_LATER"
    assert tunnels
    for client in clients:
        client.close()
    resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE, (hard, hard))
    wait_until(lambda: proxy.stdout.count("\n") == len(clients) + 1, what="a line for each client")
    with proxy.client() as client:
        assert client.get(f"{base}/").status == 200
    _at_rest(proxy)


def test_the_limit_of_connections_is_exact(start_proxy: StartProxy, serve: Serve) -> None:
    """Tunnels and idle connections count alike, and each one that ends makes room for one."""
    proxy = start_proxy(limits={"connections": 4})
    server = serve(echo)
    target = f"origin.test:{server.port}"
    open_ones = [proxy.client() for _ in range(4)]
    for number, client in enumerate(open_ones):
        status = (
            client.connect(target).status
            if number % 2
            else client.get("http://denied.test/").status
        )
        assert status == (200 if number % 2 else 403)

    def admitted() -> bool:
        with proxy.client() as client:
            return client.connect(target).status == 200

    for client in open_ones[:]:
        assert not admitted()
        client.close()
        wait_until(admitted, what="room for one")
        wait_until(
            lambda: proxy.metrics()["egress_proxy_connections_active"] == 3, what="that one's end"
        )
        open_ones.append(proxy.client())
        assert open_ones[-1].connect(target).status == 200
    assert not admitted()
    for client in open_ones:
        client.close()
    assert {line["reason"] for line in proxy.lines if line["event"] == "FAILED"} == {"overloaded"}
    _at_rest(proxy)


def _abort_somewhere(proxy: Proxy, target: str, base: str, chance: random.Random) -> None:
    """One connection that is given up at some moment."""
    requests = [
        _connect(target) + b"x" * chance.choice([0, 10, 40_000, 300_000]),
        _connect("denied.test:443") + b"x" * chance.choice([0, 100]),
        _request(f"{base}/bytes/{chance.choice([0, 100, 200_000, 5_000_000])}"),
        _request(f"{base}/chunked/{chance.choice([10, 300_000])}") * 3,
        _request(f"{base}/upload", method="PUT", head="Content-Length: 500000\r\n")
        + b"x" * chance.randrange(600_000),
        _request(f"{base}/upload", method="PUT", head="Transfer-Encoding: chunked\r\n")
        + b"5\r\nhello\r\n" * chance.randrange(5),
        _request(f"{base}/drip/3"),
        _request(f"{base}/reset-body"),
        _request("http://slow.test/"),
        b"GET http",
    ]
    with proxy.client(seconds=2) as client, contextlib.suppress(OSError, AssertionError):
        data = b"".join(chance.choices(requests, k=chance.choice([1, 1, 2])))
        cut = chance.choice([len(data), len(data), chance.randrange(1, len(data))])
        client.socket.settimeout(chance.choice([0.001, 0.02, 0.2]))
        client.socket.sendall(data[:cut])
        if chance.random() < 0.3:
            client.eof()
        for _ in range(chance.choice([0, 0, 1, 5])):
            client.some()
        time.sleep(chance.choice([0, 0, 0.001, 0.01]))
        if chance.random() < 0.4:
            client.reset()


def test_connections_given_up_at_any_moment(
    start_proxy: StartProxy, origin: Origin, name_server: NameServer, serve: Serve
) -> None:
    """Hundreds of them leave nothing behind: no descriptor, no number that is off by one."""
    proxy = start_proxy(
        allow=[rule("origin.test"), rule("slow.test")],
        timeouts={"idle": "2s", "response": "1s", "head": "1s"},
    )
    name_server.set("slow.test", Answer(("127.0.0.1",), delay=0.2, ttl=0))
    server = serve(echo)
    target, base = f"origin.test:{server.port}", f"http://origin.test:{origin.http}"
    before = len(descriptors(proxy.pid))

    def some(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(60):
            _abort_somewhere(proxy, target, base, chance)

    threads = [threading.Thread(target=some, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_until(
        lambda: proxy.metrics()["egress_proxy_connections_active"] == 0,
        seconds=8,
        what=lambda: f"rest; {proxy.metrics()}",
    )
    _at_rest(proxy)
    with proxy.client() as client:
        assert client.connect(target).status == 200
        client.send(b"x")
        assert client.exactly(1) == b"x"
    wait_until(
        lambda: len(descriptors(proxy.pid)) <= before + 2 * 64,  # pipes are kept
        what=lambda: f"{before} descriptors before, now {descriptors(proxy.pid)}",
    )
    lines = proxy.stop()
    assert len({line["request_id"] for line in lines}) == len(lines)
