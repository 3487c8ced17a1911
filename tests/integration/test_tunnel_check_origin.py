"""`tls: verify`, and an origin that speaks first, or leaves, while the hello is awaited."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

import pytest

from tests.conftest import Serve, StartProxy
from tests.support.edges import (
    at_rest,
    connect,
    stopped,
    tunnel_whose_200_waits,
    wait_for,
)
from tests.support.held import BANNER, HELLO, Keeper, is_refused, opened
from tests.support.hellos import client_hello, record
from tests.support.parent import ESTABLISHED, ScriptedParent, says
from tests.support.proxy import Proxy, rule
from tests.support.serving import answer_after_eof, reset, until_eof
from tests.support.tools import wait_until

VERIFIED = rule("origin.test", tls="verify")
#: So long that a test fails which has to wait for it.
LONG = {"client_hello": "30s"}


@pytest.fixture
def proxy(start_proxy: StartProxy) -> Proxy:
    return start_proxy(allow=[VERIFIED], timeouts=LONG)


@pytest.mark.parametrize("size", [0, 60])
@pytest.mark.parametrize("when", ["at once", "later", "before the proxy looks"])
def test_an_origin_that_speaks_first(proxy: Proxy, serve: Serve, size: int, when: str) -> None:
    """It is no TLS, so nobody waits for the client's hello; and its banner stays with the proxy."""
    keeper = Keeper(greeting=BANNER)
    target = f"origin.test:{serve(keeper).port}"
    if when == "later":
        keeper.greets.clear()
    begun = time.monotonic()
    if when == "before the proxy looks":
        with proxy.client() as client:
            with stopped(proxy):
                client.send(connect(target) + HELLO[:size])
            assert client.response("CONNECT").status == 200
            is_refused(proxy, client, "tunnel_not_tls")
    else:
        with opened(proxy, target, HELLO[:size]) as client:
            wait_for(keeper.said, 1)
            keeper.greets.set()
            is_refused(proxy, client, "tunnel_not_tls")
    assert time.monotonic() - begun < 5
    keeper.got_nothing()
    at_rest(proxy)


def test_an_origin_that_speaks_while_the_200_waits(
    start_proxy: StartProxy, serve: Serve, base: str
) -> None:
    """Its edge comes when nobody waits for it."""
    keeper = Keeper(greeting=BANNER)
    server = serve(keeper)
    for _ in range(10):
        proxy = start_proxy(allow=[VERIFIED], timeouts=LONG)
        client, size = tunnel_whose_200_waits(proxy, base, server)
        with client:
            held_up = not any(line["event"] == "DENIED" for line in proxy.lines)
            begun = time.monotonic()
            assert len(client.response().body) == size
            assert client.response("CONNECT").status == 200
            assert client.rest() == b""
            assert time.monotonic() - begun < 5
        at_rest(proxy)
        if held_up:
            assert proxy.wait_for_line(event="DENIED")["reason"] == "tunnel_not_tls"
            break
    else:
        pytest.fail("the 200 was never held up")
    keeper.got_nothing()


def test_a_hello_while_the_200_waits(start_proxy: StartProxy, serve: Serve, base: str) -> None:
    proxy = start_proxy(allow=[VERIFIED], timeouts=LONG)
    client, size = tunnel_whose_200_waits(proxy, base, serve(answer_after_eof), early=HELLO)
    with client:
        data = record(b"data", kind=23)
        client.send(data)
        client.eof()
        assert len(client.response().body) == size
        assert client.response("CONNECT").status == 200
        assert client.rest() == b"you said: " + HELLO + data
    at_rest(proxy)


@pytest.mark.parametrize("way", ["close", "half-close", "reset"])
def test_an_origin_that_leaves_first(proxy: Proxy, serve: Serve, way: str) -> None:
    """Its end is no word. What the client says next meets it, and no refusal is made of that."""
    go, gone = threading.Event(), threading.Event()

    def leave(connection: socket.socket) -> None:
        assert go.wait(5)
        if way == "half-close":
            connection.shutdown(socket.SHUT_WR)
            gone.set()
            until_eof(connection)
        elif way == "reset":
            reset(connection)
        gone.set()

    target = f"origin.test:{serve(leave).port}"
    with opened(proxy, target) as client:
        go.set()
        assert gone.wait(5)
        assert client.is_silent(0.05)
        client.send(HELLO)
        with contextlib.suppress(ConnectionError):
            assert client.rest() == b""
    line = proxy.wait_for_line(host="origin.test", sni="origin.test")
    if way != "close":  # which ends as either, by who is faster
        reason = "origin_reset" if way == "reset" else None
        assert (line["event"], line.get("reason")) == ("FAILED" if reason else "ALLOWED", reason)
    at_rest(proxy)


def test_both_at_once(proxy: Proxy, serve: Serve) -> None:
    """A banner and a hello, or something else, or an end, that the proxy sees in one batch."""

    deeds = {
        "hello": HELLO,
        "half": HELLO[:50],
        "plain": BANNER,
        "other": client_hello("other.test"),
        "nothing": b"",
    }
    for ends in (False, True):
        for name, said in deeds.items():
            keeper = Keeper(greeting=BANNER)
            keeper.greets.clear()
            with opened(proxy, f"origin.test:{serve(keeper).port}") as client:
                wait_for(keeper.said, 1)
                with stopped(proxy):
                    keeper.greets.set()
                    client.send(said)
                    if ends:
                        client.eof()
                    time.sleep(0.02)
                if name == "hello":
                    if not ends:
                        client.eof()
                    assert client.rest() == BANNER
                else:
                    assert BANNER not in client.rest()
                    keeper.got_nothing()
    at_rest(proxy)


# Through a parent -------------------------------------------------------------------------------


def test_what_the_client_says_while_the_parent_is_asked(
    start_proxy: StartProxy, serve: Serve
) -> None:
    """Its edges come when the parent's answer is awaited, and its end is lost on nobody."""
    answered = threading.Event()
    said: list[bytes] = []

    def script(connection: socket.socket) -> None:
        assert answered.wait(5)
        connection.sendall(ESTABLISHED)
        said.append(until_eof(connection))
        connection.sendall(b"answer")

    parent = ScriptedParent(script)
    upstream = {"proxy": f"http://127.0.0.1:{serve(parent).port}"}
    allow = [rule("far.example", allow_private=[], tls="verify")]
    proxy = start_proxy(allow=allow, upstream=upstream, timeouts=LONG)
    request, hello = connect("far.example:443"), client_hello("far.example")
    with proxy.client(seconds=5) as client:
        client.send(request[:20])
        wait_until(lambda: proxy.metrics()["egress_proxy_connections_active"], what="a client")
        client.send(request[20:])
        wait_for(parent.heads, 1)
        client.send(hello)
        assert client.is_silent(0.05)
        client.eof()
        answered.set()
        assert client.response("CONNECT").status == 200
        assert client.rest() == b"answer"
    assert said == [hello]
    at_rest(proxy)


@pytest.mark.parametrize("together", [True, False])
def test_a_banner_behind_the_parent_s_answer(
    start_proxy: StartProxy, serve: Serve, together: bool
) -> None:
    parent = ScriptedParent(
        says(ESTABLISHED + BANNER) if together else says(ESTABLISHED, BANNER, pause=0.05)
    )
    upstream = {"proxy": f"http://127.0.0.1:{serve(parent).port}"}
    allow = [rule("far.example", allow_private=[], tls="verify")]
    proxy = start_proxy(allow=allow, upstream=upstream, timeouts=LONG)
    with opened(proxy, "far.example:443") as client:
        is_refused(proxy, client, "tunnel_not_tls", host="far.example")
    at_rest(proxy)
