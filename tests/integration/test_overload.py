"""Too many of something: those over the limit are answered at once, and the others go on."""

from __future__ import annotations

import contextlib
import time

from tests.conftest import Serve, StartProxy
from tests.support.edges import at_rest
from tests.support.origin import Origin
from tests.support.proxy import SWEEP, rule
from tests.support.serving import echo, say_nothing
from tests.support.tools import wait_until

ALLOW = [rule("origin.test")]


def test_one_client_with_many_connections(start_proxy: StartProxy, origin: Origin) -> None:
    proxy = start_proxy(allow=ALLOW, limits={"connections_per_client": 3})
    url = f"http://origin.test:{origin.http}/"
    with contextlib.ExitStack() as stack:
        kept = [stack.enter_context(proxy.client(source="127.0.0.9")) for _ in range(3)]
        assert [client.get(url).status for client in kept] == [200] * 3
        with proxy.client(source="127.0.0.9") as over:
            refused = over.get(url)
            assert refused.status == 503
            assert refused["retry-after"] == "1"
            assert refused.error["reason"] == "client_connections"
        with proxy.client(source="127.0.0.10") as other:
            assert other.get(url).status == 200
        assert [client.get(url).status for client in kept] == [200] * 3
        kept[0].close()
        # Who has closed one may open one.
        wait_until(
            lambda: proxy.metrics()["egress_proxy_connections_active"] == 2,
            what="two that are left",
        )
        with proxy.client(source="127.0.0.9") as again:
            assert again.get(url).status == 200
    line = proxy.wait_for_line(reason="client_connections")
    assert (line["event"], line["client"], line["status"]) == ("FAILED", "127.0.0.9", 503)
    at_rest(proxy)


def test_too_many_tunnels(start_proxy: StartProxy, serve: Serve, origin: Origin) -> None:
    server = serve(say_nothing)
    proxy = start_proxy(allow=ALLOW, limits={"tunnels": 2})
    authority = f"origin.test:{server.port}"
    with proxy.client() as first, proxy.client() as second, proxy.client() as third:
        assert first.connect(authority).status == 200
        assert second.connect(authority).status == 200
        refused = third.connect(authority)
        assert (refused.status, refused.error["reason"]) == (503, "overloaded")
        with proxy.client() as plain:
            assert plain.get(f"http://origin.test:{origin.http}/").status == 200
    wait_until(lambda: proxy.metrics()["egress_proxy_tunnels_active"] == 0, what="the end of all")
    with proxy.client() as client:
        assert client.connect(authority).status == 200
    at_rest(proxy)


def test_too_many_heads_under_way(start_proxy: StartProxy, serve: Serve, origin: Origin) -> None:
    """Slow ones (slowloris) cannot take all of the room; who has been served before does not count."""
    server = serve(echo)
    proxy = start_proxy(allow=ALLOW, limits={"heads": 4}, timeouts={"head": "30s"})
    url = f"http://origin.test:{origin.http}/"
    with contextlib.ExitStack() as stack:
        served = stack.enter_context(proxy.client())
        assert served.get(url).status == 200
        tunnel = stack.enter_context(proxy.client())
        assert tunnel.connect(f"origin.test:{server.port}").status == 200
        slow = [
            stack.enter_context(proxy.client(source=f"127.0.0.{number}")) for number in range(5, 9)
        ]
        for client in slow:
            client.send("GET http://origin")
        wait_until(
            lambda: proxy.metrics()["egress_proxy_connections_active"] == 6, what="four slow heads"
        )
        with proxy.client() as over:
            over.send("GET http://origin")
            refused = over.response()
            assert refused.status == 503
            assert refused.error["reason"] == "overloaded"
            assert refused["retry-after"] == "1"
        # A head that comes in one piece needs no waiting, and those who are there go on.
        with proxy.client() as quick:
            assert quick.get(url).status == 200
        assert served.get(url).status == 200
        tunnel.send(b"ping")
        assert tunnel.exactly(4) == b"ping"
        slow[0].send(f".test:{origin.http}/ HTTP/1.1\r\nHost: origin.test:{origin.http}\r\n\r\n")
        assert slow[0].response().status == 200
        with proxy.client() as room:
            room.send(f"GET {url} HTTP/1.1\r\n")
            time.sleep(0.1)
            room.send(f"Host: origin.test:{origin.http}\r\n\r\n")
            assert room.response().status == 200
    at_rest(proxy)


def test_a_body_that_drips_ends(start_proxy: StartProxy, origin: Origin) -> None:
    """Each byte is in time, and all together are not."""
    proxy = start_proxy(allow=ALLOW, timeouts={"lifetime": "1s"})
    with proxy.client() as client:
        client.send(
            f"POST http://origin.test:{origin.http}/ HTTP/1.1\r\n"
            f"Host: origin.test:{origin.http}\r\nContent-Length: 100000\r\n\r\n"
        )
        start = time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() - start < 10:
                client.send(b"x")
                if client.is_closed(seconds=0.1):
                    break
        assert 0.9 < time.monotonic() - start < 1 + 2 * SWEEP
    line = proxy.wait_for_line()
    assert (line["event"], line["reason"]) == ("CLOSED", "lifetime_exceeded")
    at_rest(proxy)


def test_slow_heads_of_one_client(start_proxy: StartProxy, origin: Origin) -> None:
    """It has a quarter of the room at most, and the others go on being slow if they are."""
    proxy = start_proxy(allow=ALLOW, limits={"heads": 8})
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(proxy.client(source="127.0.0.9")).send("GET http://o")
        wait_until(
            lambda: proxy.metrics()["egress_proxy_connections_active"] == 2, what="two slow heads"
        )
        with proxy.client(source="127.0.0.9") as over:
            over.send("GET http://o")
            assert over.response().error["reason"] == "client_connections"
        with proxy.client(source="127.0.0.10") as other:
            other.send("GET ")
            time.sleep(0.05)
            other.send(f"http://origin.test:{origin.http}/ HTTP/1.1\r\n")
            other.send(f"Host: origin.test:{origin.http}\r\n\r\n")
            assert other.response().status == 200
    at_rest(proxy)


def test_tunnels_that_are_about_to_open_count(start_proxy: StartProxy, serve: Serve) -> None:
    """Or many that wait for their ClientHello would be too many."""
    server = serve(say_nothing)
    rules = [rule("origin.test", tls="verify")]
    proxy = start_proxy(allow=rules, limits={"tunnels": 1})
    authority = f"origin.test:{server.port}"
    with proxy.client() as first, proxy.client() as second:
        assert first.connect(authority).status == 200
        assert second.connect(authority).error["reason"] == "overloaded"
    at_rest(proxy)
