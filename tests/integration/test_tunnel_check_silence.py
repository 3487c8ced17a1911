"""`tls: verify`, when the hello is late, or half, or never comes, and when the client leaves."""

from __future__ import annotations

import contextlib
import itertools
import socket
import time
from functools import partial

import pytest

from tests.conftest import Serve, StartProxy
from tests.support.dns import Answer, NameServer
from tests.support.edges import (
    at_rest,
    connect,
    in_background,
    stopped,
    wait_for,
)
from tests.support.held import BANNER, HELLO, Keeper, alert_of, is_refused, opened
from tests.support.hellos import client_hello, record
from tests.support.proxy import SWEEP, Proxy, rule
from tests.support.serving import Server, answer_after_eof
from tests.support.tools import wait_until

VERIFIED = rule("origin.test", tls="verify")
#: So long that a test fails which has to wait for it.
LONG = {"client_hello": "30s"}


@pytest.fixture
def proxy(start_proxy: StartProxy) -> Proxy:
    return start_proxy(allow=[VERIFIED], timeouts=LONG)


@pytest.fixture
def hasty(start_proxy: StartProxy) -> Proxy:
    """A proxy that waits for no hello long."""
    return start_proxy(allow=[VERIFIED], timeouts={"client_hello": "300ms"})


@pytest.fixture
def keeper() -> Keeper:
    return Keeper()


@pytest.fixture
def server(serve: Serve, keeper: Keeper) -> Server:
    return serve(keeper)


@pytest.fixture
def target(server: Server) -> str:
    return f"origin.test:{server.port}"


# Time -------------------------------------------------------------------------------------------


def test_a_hello_that_does_not_come(hasty: Proxy, target: str, keeper: Keeper) -> None:
    """Or not all of it: with the request, or behind the 200."""
    begun = time.monotonic()
    with contextlib.ExitStack() as stack:
        parts = [HELLO[:size] for size in (0, 1, 5, 100, len(HELLO) - 1)]
        clients = [stack.enter_context(opened(hasty, target, part)) for part in parts]
        clients += [stack.enter_context(opened(hasty, target, b"", part)) for part in parts]
        assert clients[0].is_silent(0.1)
        for client in clients:
            assert client.rest() == b""
        assert 0.25 < time.monotonic() - begun < 0.3 + SWEEP
        line = is_refused(hasty, clients[-1], "client_hello_timeout", count=len(clients))
    assert 250 < line["duration_ms"] < 300 + 1000 * SWEEP
    keeper.got_nothing()
    at_rest(hasty)


def test_a_byte_now_and_then_gains_no_time(hasty: Proxy, target: str, keeper: Keeper) -> None:
    with opened(hasty, target) as client:
        for octet in HELLO:
            client.send(bytes([octet]))
            if not client.is_silent(0.02):
                break
        is_refused(hasty, client, "client_hello_timeout")
    keeper.got_nothing()
    at_rest(hasty)


def test_many_that_wait_hold_nobody_up(hasty: Proxy, serve: Serve, keeper: Keeper) -> None:
    """Each ends in time, and nothing is left of it; meanwhile others are served as ever."""
    server = serve(keeper)
    target = f"origin.test:{server.port}"
    count = 200
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(opened(hasty, target)) for _ in range(count)]
        with opened(hasty, target, HELLO) as other:
            other.eof()
            assert other.rest() == b""
        for client in clients:
            assert client.rest() == b""
    wait_until(lambda: len(hasty.lines) == count + 1, what="a line for each")
    assert len([line for line in hasty.lines if line.get("reason") == "client_hello_timeout"]) == (
        count
    )
    assert sorted(map(bytes, keeper.said))[:-1] == [b""] * count
    at_rest(hasty)


def test_who_was_refused_cannot_stay(hasty: Proxy, target: str) -> None:
    """A client that goes on sending and never closes has two seconds to read what it was told."""
    with opened(hasty, target, client_hello("other.test")) as client:
        assert client.exactly(7) == alert_of("sni_mismatch")
        begun = time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() - begun < 2 + 2 * SWEEP:
                client.send(bytes(1000))
                time.sleep(0.05)
        assert time.monotonic() - begun < 2 + SWEEP
        at_rest(hasty)


# The client leaves ------------------------------------------------------------------------------


def test_half_a_hello_and_the_end(proxy: Proxy, target: str, keeper: Keeper) -> None:
    pairs = [(size, together) for size in (1, 60, len(HELLO) - 1) for together in (True, False)]
    for count, (size, together) in enumerate(pairs, 1):
        with opened(proxy, target) as client:
            with stopped(proxy) if together else contextlib.nullcontext():
                client.send(HELLO[:size])
                client.eof()
            is_refused(proxy, client, "client_hello_malformed", count=count)
    keeper.got_nothing()
    at_rest(proxy)


@pytest.mark.parametrize("way", ["half-close", "close"])
@pytest.mark.parametrize("early", [True, False])
def test_nothing_and_the_end(proxy: Proxy, serve: Serve, way: str, early: bool) -> None:
    """Who has sent nothing has done nothing wrong, and gets nothing either, be there something to get or not."""
    keeper = Keeper(greeting=BANNER)
    keeper.greets.clear()
    target = f"origin.test:{serve(keeper).port}"
    client = proxy.client()
    with client:
        client.send(connect(target))
        if early:
            client.eof()
        assert client.response("CONNECT").status == 200
        if not early:
            client.eof()
        if way == "close":
            client.close()
        else:
            assert client.rest() == b""
        line = proxy.wait_for_line(event="ALLOWED")
        keeper.greets.set()
    assert (line["status"], line["bytes_sent"], line["bytes_received"]) == (200, 0, 0)
    assert "reason" not in line
    keeper.got_nothing()
    at_rest(proxy)


@pytest.mark.parametrize("size", [0, 60])
def test_a_reset_while_the_hello_is_awaited(
    proxy: Proxy, target: str, keeper: Keeper, size: int
) -> None:
    with opened(proxy, target, b"", HELLO[:size]) as client:
        wait_for(keeper.said, 1)
        time.sleep(0.05)
        client.reset()
    line = proxy.wait_for_line(event="FAILED", reason="client_aborted")
    assert line["status"] == 200
    keeper.got_nothing()
    at_rest(proxy)


def test_a_reset_does_not_hide_what_was_tried(proxy: Proxy, target: str, keeper: Keeper) -> None:
    """The bytes and the reset come at once: there is nobody to be told, and still it was an attempt."""
    tries = {
        "sni_mismatch": client_hello("other.test"),
        "sni_missing": client_hello(None),
        "tunnel_not_tls": b"GET / HTTP/1.1\r\n\r\n",
        "client_hello_malformed": client_hello("*"),
    }
    for reason, said in tries.items():
        with opened(proxy, target) as client:
            with stopped(proxy):
                client.send(said)
                client.reset()
            line = proxy.wait_for_line(reason=reason)
            assert (line["event"], line["code"]) == ("DENIED", "POLICY_BLOCKED")
    keeper.got_nothing()
    at_rest(proxy)


def test_a_hello_and_a_reset_at_once(proxy: Proxy, target: str) -> None:
    with opened(proxy, target) as client, stopped(proxy):
        client.send(HELLO)
        client.reset()
    assert proxy.wait_for_line(host="origin.test")["event"] in {"ALLOWED", "FAILED"}
    at_rest(proxy)


# An end that must not be lost -------------------------------------------------------------------


def test_a_hello_and_an_end_at_once(proxy: Proxy, serve: Serve) -> None:
    server = serve(answer_after_eof)
    for size, early in itertools.product((0, 1, 16_000), (True, False)):
        with proxy.client(seconds=5) as client:
            said = HELLO + record(bytes(size), kind=23) if size else HELLO
            request = connect(f"origin.test:{server.port}")
            if early:
                with stopped(proxy):
                    client.send(request[:20])
                    time.sleep(0.01)
                    client.send(request[20:] + said)
                    client.eof()
                assert client.response("CONNECT").status == 200
            else:
                client.send(request)
                assert client.response("CONNECT").status == 200
                with stopped(proxy):
                    client.send(said)
                    client.eof()
            assert client.rest() == b"you said: " + said
    at_rest(proxy)


def test_a_hello_and_half_a_record(proxy: Proxy, serve: Serve) -> None:
    """No server makes anything of it; but what it answers to the rest must arrive."""
    server = serve(answer_after_eof)
    for behind in (b"a", b"\x16", record(b"data", kind=23)[:-1], HELLO[:-1]):
        said = HELLO + behind
        with opened(proxy, f"origin.test:{server.port}", b"", said, seconds=5) as client:
            client.eof()
            assert client.rest() in {b"you said: " + HELLO, b"you said: " + said}
    proxy.wait_for_lines(4, event="ALLOWED")
    at_rest(proxy)


@pytest.mark.parametrize("apart", [True, False])
def test_an_end_that_came_while_the_way_was_made(
    start_proxy: StartProxy, serve: Serve, name_server: NameServer, apart: bool
) -> None:
    """The client is watched, because its head came in two pieces; while the name is asked for, nobody waits for it."""
    name_server.set("slow.test", Answer(("127.0.0.1",), delay=0.4))
    proxy = start_proxy(allow=[rule("slow.test", tls="verify")], timeouts=LONG)
    server = serve(answer_after_eof)
    request = connect(f"slow.test:{server.port}")
    with proxy.client(seconds=5) as client:
        client.send(request[:20])
        wait_until(lambda: proxy.metrics()["egress_proxy_connections_active"], what="a client")
        client.send(request[20:])
        wait_until(lambda: name_server.asked("slow.test"), what="a question")
        hello = client_hello("slow.test")
        client.send(hello)
        if apart:
            time.sleep(0.05)
        client.eof()
        assert client.response("CONNECT").status == 200
        assert client.rest() == b"you said: " + hello
    proxy.wait_for_line(event="ALLOWED", sni="slow.test", bytes_sent=len(hello))
    at_rest(proxy)


def test_urgent_data_behind_the_hello_hides_nothing(proxy: Proxy, serve: Serve) -> None:
    """A read ends at the urgent mark, although more is there. The urgent byte itself is nobody's."""
    keeper = Keeper()
    server = serve(keeper)
    with opened(proxy, f"origin.test:{server.port}") as client:
        with stopped(proxy):
            client.send(HELLO + record(b"one ", kind=23))
            client.socket.send(b"!", socket.MSG_OOB)
            client.send(record(b"two ", kind=23))
        wait_for(keeper.said, 1)
        expected = HELLO + record(b"one ", kind=23) + record(b"two ", kind=23)
        wait_until(
            lambda: keeper.said[0].replace(b"!", b"") == expected, what=lambda: str(keeper.said)
        )
        with stopped(proxy):
            client.eof()
        assert client.rest() == b""
    at_rest(proxy)


def test_urgent_data_inside_the_hello(proxy: Proxy, serve: Serve) -> None:
    """What is compared is what is sent on."""
    keeper = Keeper()
    server = serve(keeper)
    with opened(proxy, f"origin.test:{server.port}", b"", HELLO[:60]) as client:
        client.socket.send(b"!", socket.MSG_OOB)
        client.send(HELLO[60:])
        wait_for(keeper.said, 1)
        wait_until(lambda: keeper.said[0] == HELLO, what=lambda: str(keeper.said))
    at_rest(proxy)


# By the way -------------------------------------------------------------------------------------


def test_many_kinds_at_the_same_time(proxy: Proxy, serve: Serve) -> None:
    """What one tunnel is refused for says nothing about another."""
    keeper = Keeper()
    target = f"origin.test:{serve(keeper).port}"
    kinds = [client_hello("other.test"), b"GET / HTTP/1.1\r\n\r\n", client_hello(None)]
    count = 50

    def many(said: bytes) -> None:
        for _ in range(count):
            with opened(proxy, target, b"", said) as client:
                client.eof()
                client.rest()

    with in_background(*(partial(many, said) for said in (HELLO, *kinds))):
        pass
    wait_until(lambda: len(proxy.lines) == 4 * count, what=lambda: f"{len(proxy.lines)} lines")
    said = [bytes(one) for one in keeper.said if one]
    assert said == [HELLO] * count
    assert sum(line["event"] == "ALLOWED" for line in proxy.lines) == count
    at_rest(proxy)
