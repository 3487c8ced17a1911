"""Absolute-form requests and their bodies: what comes too early, too late, too much, or broken."""

from __future__ import annotations

import contextlib
import json
import socket
import time

import pytest

from tests.conftest import Serve, StartProxy
from tests.support.client import RawClient
from tests.support.dns import Answer, NameServer
from tests.support.edges import (
    at_rest,
    connect,
    request,
    wait_for,
)
from tests.support.origin import Exchange, Origin
from tests.support.proxy import Proxy, rule
from tests.support.serving import (
    echo,
    reset,
)
from tests.support.tools import MIB, wait_until

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
            client.send(request(f"{base}/bytes/100000"), connect(target), early)
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
    at_rest(proxy)


def test_what_a_client_does_while_it_is_answered_is_noticed_afterwards(
    proxy: Proxy, origin: Origin, base: str
) -> None:
    """Nothing is read from a client until its answer is written: what came before counts then."""
    clients: list[RawClient] = []

    def answer(exchange: Exchange) -> None:
        does, client = exchange.path.rpartition("/")[2], clients[-1]
        if does == "asks":
            client.send(request(f"{base}/bytes/7"), request(f"{base}/bytes/8"))
        elif does == "ends":
            client.eof()
        elif does == "asks-and-ends":
            client.send(request(f"{base}/bytes/7"))
            client.eof()
        elif does == "marks":
            asked = request(f"{base}/bytes/7")
            client.send(asked[:9])
            client.urgent(b"!")
            client.send(asked[9:])
        exchange.answer(b"done")

    origin.extensions["/while"] = answer
    expected = {"asks": [7, 8], "ends": [], "asks-and-ends": [7], "marks": [7]}
    for does, sizes in expected.items():
        with proxy.client() as client:
            clients.append(client)
            # A connection that the proxy knows, and one that it has just got.
            if does != "ends":
                assert client.get(f"{base}/bytes/1").status == 200
            client.send(request(f"{base}/while/{does}"))
            assert client.response().body == b"done"
            for size in sizes:
                assert len(client.response().body) == size
            if "ends" in does:
                assert client.is_closed()
            else:
                assert client.get(f"{base}/bytes/9").status == 200
    at_rest(proxy)


def test_an_origin_that_answers_before_it_is_asked(proxy: Proxy, serve: Serve) -> None:
    """As one that is overloaded does. The edge that tells of its connection tells of its answer, too."""

    def answer(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 503 Busy\r\nContent-Length: 2\r\n\r\nno")
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(4096):
            pass

    server = serve(answer)
    asked = request(f"http://origin.test:{server.port}/")
    # Many at once, so that the origin has spoken by the time that the proxy looks.
    for _ in range(4):
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(proxy.client()) for _ in range(25)]
            for client in clients:
                client.send(asked)
            assert {client.response().status for client in clients} == {503}
    at_rest(proxy)


def test_a_client_that_is_gone_before_its_origin_is_reached(
    start_proxy: StartProxy, origin: Origin, name_server: NameServer, serve: Serve
) -> None:
    """A reset while the name is looked up is not told again, and the origin may take its time."""

    def never_answer(connection: socket.socket) -> None:
        while connection.recv(4096):
            pass

    server = serve(never_answer)
    name_server.set("slow.test", Answer(("127.0.0.1",), delay=0.4))
    proxy = start_proxy(allow=[rule("origin.test"), rule("slow.test")])
    client = proxy.client()
    # From here on the poller looks after its connection.
    assert client.get(f"http://origin.test:{origin.http}/").status == 200
    client.send(request(f"http://slow.test:{server.port}/gone"))
    wait_until(lambda: name_server.asked("slow.test"), what="a question")
    client.reset()
    (line,) = proxy.wait_for_lines(1, path="/gone")
    assert line["reason"] == "client_aborted"
    assert server.accepted == 1
    at_rest(proxy)


def test_a_client_that_ends_between_two_requests_is_let_go(proxy: Proxy, base: str) -> None:
    with proxy.client() as client:
        for _ in range(3):
            assert client.get(f"{base}/bytes/1").status == 200
        client.eof()
        assert client.is_closed()
    at_rest(proxy)


def test_a_body_longer_than_its_length_begins_the_next_request(proxy: Proxy, base: str) -> None:
    with proxy.client() as client:
        client.send(
            request(f"{base}/upload", method="POST", head="Content-Length: 3\r\n"),
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
    at_rest(proxy)


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
                request(f"{base}/upload", method="POST", head="Transfer-Encoding: chunked\r\n"),
                b"5\r\nhello\r\n",
            )
            wait_for(origin.heads, number + 1)
            client.send(ending)
            response = client.response()
            assert (response.status, response.error["reason"]) == (400, "bad_chunk")
            assert client.is_closed()
    lines = proxy.wait_for_lines(len(endings), event="DENIED", reason="bad_chunk")
    assert len(proxy.lines) == len(endings)
    assert {line["bytes_received"] for line in lines} == {0}
    at_rest(proxy)


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
            request(f"{base}/refuse", method="PUT", head="Content-Length: 1000\r\n"), b"x" * 10
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
                request(f"{base}/refuse", method="PUT", head=f"Content-Length: {MIB}\r\n"),
                b"x" * 300_000,
            )
            response = client.response()
            assert (response.status, response.body) == (413, b"too big\n")
    proxy.wait_for_lines(10, status=413)
    at_rest(proxy)


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
            client.send(request(f"{base}/split/{position}"))
            assert client.response().status == 100
            assert client.response().body == b"hello"
    lines = proxy.wait_for_lines(len(whole) - 1, event="ALLOWED")
    # The content alone: how many chunks it took is chance.
    assert {line["bytes_received"] for line in lines} == {5}
    at_rest(proxy)


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
        client.send(request(f"{base}/{path}", version="1.0"))
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
                request(f"{base}/hints/{count}", method="POST", head="Content-Length: 10\r\n"),
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
        client.send(request(f"{base}/{path}"))
        if path == "half":
            client.until(b"hello")
        else:
            time.sleep(0.1)
        client.reset()
    line = proxy.wait_for_line(host="origin.test", seconds=3)
    assert line["reason"] == "client_aborted"
    at_rest(proxy)


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
