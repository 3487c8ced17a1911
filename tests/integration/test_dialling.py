"""Destinations with several addresses: which one is reached, what the record says of the others, and what is left."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import Serve, StartProxy
from tests.net.dialling import Ports, ports
from tests.support.client import RawClient, Response
from tests.support.dns import Answer, NameServer
from tests.support.edges import at_rest
from tests.support.origin import Origin
from tests.support.proxy import SWEEP, Proxy, configuration, rule
from tests.support.serving import Server, say_nothing
from tests.support.tools import wait_until

METHODS = pytest.mark.parametrize("method", ["CONNECT", "GET"])
ALLOW = [rule("origin.test", allow_private=["127.0.0.0/8", "::1/128"])]
#: Each request is dialled for.
NONE_KEPT = {"idle_origins": 0}
FOUR, FOUR_TOO, SIX = "127.0.0.2", "127.0.0.3", "::1"
ELSEWHERE = "192.0.2.10"  # TEST-NET-1: no machine has it


@pytest.fixture
def port() -> Iterator[Ports]:
    with ports() as made:
        yield made


@pytest.fixture
def live(origin: Origin) -> Ports:
    """The origin's port, on 127.0.0.1 and as a test says on other addresses."""
    return Ports(origin.http)


def ask(proxy: Proxy, method: str, port: int) -> Response:
    with proxy.client() as client:
        if method == "CONNECT":
            return client.connect(f"origin.test:{port}")
        return client.get(f"http://origin.test:{port}/")


def told(line: dict[str, Any]) -> dict[str, Any]:
    """What the record says of dialling."""
    return {key: line[key] for key in ("address", "attempts", "failed") if key in line}


def test_one_address_is_told_as_before(start_proxy: StartProxy, origin: Origin) -> None:
    proxy = start_proxy()
    assert ask(proxy, "CONNECT", origin.http).status == 200
    line = proxy.wait_for_line(event="ALLOWED")
    assert told(line) == {"address": "127.0.0.1"}
    assert line["connect_ms"] > 0


@METHODS
def test_ipv6_refuses_and_ipv4_is_fine(
    start_proxy: StartProxy, origin: Origin, name_server: NameServer, method: str
) -> None:
    name_server.set("origin.test", Answer((SIX, "127.0.0.1")))
    proxy = start_proxy(allow=ALLOW, dial={"stagger": "10s"})
    start = time.monotonic()
    assert ask(proxy, method, origin.http).status == 200
    assert time.monotonic() - start < 5
    line = proxy.wait_for_line(event="ALLOWED")
    assert told(line) == {
        "address": "127.0.0.1",
        "attempts": 2,
        "failed": [f"{SIX} connection_refused"],
    }


@METHODS
def test_ipv6_is_silent_and_ipv4_is_fine(
    start_proxy: StartProxy, origin: Origin, name_server: NameServer, live: Ports, method: str
) -> None:
    """The second request begins with the address that answered."""
    name_server.set("origin.test", Answer((SIX, "127.0.0.1")))
    proxy = start_proxy(allow=ALLOW, dial={"stagger": "200ms"}, limits=NONE_KEPT)
    with contextlib.closing(live):
        live.silence(SIX)
        lines = []
        for count in (1, 2):
            assert ask(proxy, method, origin.http).status == 200
            lines.append(proxy.wait_for_lines(count, event="ALLOWED")[-1])
    first, second = lines
    assert told(first) == {"address": "127.0.0.1", "attempts": 2}
    assert first["connect_ms"] >= 195
    assert told(second) == {"address": "127.0.0.1"}
    assert second["connect_ms"] < 195
    at_rest(proxy)


@METHODS
def test_all_are_dead(
    start_proxy: StartProxy, port: Ports, name_server: NameServer, method: str
) -> None:
    name_server.set("origin.test", Answer((FOUR, FOUR_TOO, SIX)))
    proxy = start_proxy(allow=ALLOW)
    response = ask(proxy, method, port.number)
    assert response.status == 502
    assert response.error["reason"] == "connection_refused"
    assert "error=connection_refused" in response["proxy-status"]
    line = proxy.wait_for_line(event="FAILED")
    first, *others = line["failed"]
    assert line["attempts"] == 3
    assert first == f"{SIX} connection_refused"
    # The name server's addresses take turns at being the first.
    assert set(others) == {f"{ip} connection_refused" for ip in (FOUR, FOUR_TOO)}
    assert others[-1].startswith(line["address"])
    at_rest(proxy)


def test_all_are_silent(start_proxy: StartProxy, port: Ports, name_server: NameServer) -> None:
    name_server.set("origin.test", Answer((FOUR, FOUR_TOO)))
    port.silence(FOUR, FOUR_TOO)
    timeouts = {"connect": "800ms", "connect_attempt": "400ms"}
    proxy = start_proxy(allow=ALLOW, timeouts=timeouts, dial={"stagger": "100ms"})
    start = time.monotonic()
    response = ask(proxy, "CONNECT", port.number)
    assert 0.45 < time.monotonic() - start < 0.5 + SWEEP
    assert response.status == 504
    assert response.error["reason"] == "connection_timeout"
    line = proxy.wait_for_line(event="FAILED")
    assert set(line["failed"]) == {f"{ip} connection_timeout" for ip in (FOUR, FOUR_TOO)}
    at_rest(proxy)


def test_all_together_have_a_deadline(
    start_proxy: StartProxy, port: Ports, name_server: NameServer
) -> None:
    name_server.set("origin.test", Answer((FOUR, FOUR_TOO, SIX)))
    port.silence(FOUR, FOUR_TOO, SIX)
    timeouts = {"connect": "300ms", "connect_attempt": "300ms"}
    proxy = start_proxy(allow=ALLOW, timeouts=timeouts, dial={"stagger": "200ms"})
    start = time.monotonic()
    response = ask(proxy, "CONNECT", port.number)
    assert 0.25 < time.monotonic() - start < 0.3 + SWEEP
    assert response.status == 504
    # The third one's turn would be after the end.
    assert proxy.wait_for_line(event="FAILED")["attempts"] <= 2


@pytest.mark.parametrize(("prefer", "first"), [("ipv6", SIX), ("ipv4", "127.0.0.1")])
def test_the_preferred_family(
    start_proxy: StartProxy,
    origin: Origin,
    serve: Serve,
    name_server: NameServer,
    prefer: str,
    first: str,
) -> None:
    name_server.set("origin.test", Answer((SIX, "127.0.0.1")))
    serve(say_nothing, host=SIX, port=origin.http)
    proxy = start_proxy(allow=ALLOW, dial={"prefer": prefer, "stagger": "10s"})
    assert ask(proxy, "CONNECT", origin.http).status == 200
    assert told(proxy.wait_for_line(event="ALLOWED")) == {"address": first}


def test_a_reload_changes_how_the_next_request_is_dialled(
    start_proxy: StartProxy, origin: Origin, serve: Serve, name_server: NameServer
) -> None:
    name_server.set("origin.test", Answer((SIX, "127.0.0.1")))
    serve(say_nothing, host=SIX, port=origin.http)
    proxy = start_proxy(allow=ALLOW)
    assert ask(proxy, "CONNECT", origin.http).status == 200
    assert proxy.wait_for_line(event="ALLOWED")["address"] == SIX
    dial = {"prefer": "ipv4"}
    proxy.reload(configuration(name_server=name_server.address, allow=ALLOW, dial=dial))
    proxy.wait_for_event("policy_reloaded")
    assert ask(proxy, "CONNECT", origin.http).status == 200
    proxy.wait_for_line(event="ALLOWED", address="127.0.0.1")


def test_not_more_than_so_many(
    start_proxy: StartProxy, origin: Origin, name_server: NameServer
) -> None:
    name_server.set("origin.test", Answer((SIX, "127.0.0.1")))
    proxy = start_proxy(allow=ALLOW, dial={"max_attempts": 1, "failure_memory": "0s"})
    for _ in range(2):
        assert ask(proxy, "CONNECT", origin.http).status == 502
    for line in proxy.wait_for_lines(2, event="FAILED"):
        assert told(line) == {"address": SIX}


def test_a_dead_address_is_remembered_for_its_time(
    start_proxy: StartProxy, origin: Origin, name_server: NameServer
) -> None:
    name_server.set("origin.test", Answer((SIX, "127.0.0.1")))
    proxy = start_proxy(allow=ALLOW, dial={"failure_memory": "900ms"}, limits=NONE_KEPT)
    attempts = []
    for count in (1, 2, 3):
        assert ask(proxy, "GET", origin.http).status == 200
        line = proxy.wait_for_lines(count, event="ALLOWED")[-1]
        attempts.append(line.get("attempts"))
        if count == 2:
            time.sleep(0.95)
    assert attempts == [2, None, 2]


# Where connections come from --------------------------------------------------------------------


def test_a_source_address(start_proxy: StartProxy, serve: Serve) -> None:
    peers: list[str] = []
    server = serve(lambda connection: peers.append(connection.getpeername()[0]))
    proxy = start_proxy(dial={"source_addresses": ["127.0.0.77"]})
    assert ask(proxy, "CONNECT", server.port).status == 200
    wait_until(lambda: peers == ["127.0.0.77"], what=lambda: f"the source among {peers}")
    assert not [line for line in proxy.events() if line["event"] == "source_address_missing"]


def test_a_source_address_that_this_machine_lacks(
    start_proxy: StartProxy, origin: Origin, name_server: NameServer
) -> None:
    """The operator is told at the start, the client with each request, and nothing goes out from another address."""
    proxy = start_proxy(dial={"source_addresses": [ELSEWHERE]})
    assert proxy.wait_for_event("source_address_missing")["address"] == ELSEWHERE
    response = ask(proxy, "CONNECT", origin.http)
    assert response.status == 502
    assert response.error["reason"] == "connection_failed"
    assert origin.http_server.accepted == 0
    at_rest(proxy)
    allow = [rule("origin.test")]
    proxy.reload(configuration(name_server=name_server.address, allow=allow))
    proxy.wait_for_event("policy_reloaded")
    assert ask(proxy, "CONNECT", origin.http).status == 200
    dial = {"source_addresses": ["192.0.2.11"]}
    proxy.reload(configuration(name_server=name_server.address, allow=allow, dial=dial))
    assert proxy.wait_for_event("source_address_missing", count=2)["address"] == "192.0.2.11"


# In the middle ----------------------------------------------------------------------------------


@pytest.fixture
def racing(
    start_proxy: StartProxy, port: Ports, name_server: NameServer
) -> Iterator[tuple[Proxy, RawClient]]:
    """A proxy with two attempts under way, and a client who waits for them."""
    name_server.set("origin.test", Answer((FOUR, FOUR_TOO)))
    port.silence(FOUR, FOUR_TOO)
    timeouts = {"connect": "2s", "connect_attempt": "2s"}
    proxy = start_proxy(allow=ALLOW, timeouts=timeouts, dial={"stagger": "20ms"})
    with proxy.client() as client:
        authority = f"origin.test:{port.number}"
        client.send(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n")
        wait_until(lambda: proxy.sockets() == proxy.sockets_at_start + 3, what="a race")
        yield proxy, client


def test_draining(racing: tuple[Proxy, RawClient]) -> None:
    proxy, client = racing
    proxy.signal(signal.SIGTERM)
    response = client.response("CONNECT")
    assert response.status == 503
    assert response.error["reason"] == "drain_timeout"
    lines = proxy.stop()
    assert [(line["event"], line["reason"]) for line in lines] == [("CLOSED", "drain_timeout")]


def test_a_client_that_leaves(racing: tuple[Proxy, RawClient]) -> None:
    proxy, client = racing
    client.reset()
    proxy.wait_for_line(host="origin.test")
    at_rest(proxy)


def test_a_permission_that_is_taken_back(
    start_proxy: StartProxy, port: Ports, name_server: NameServer
) -> None:
    """The connection that stands then is not used."""
    name_server.set("origin.test", Answer((SIX, FOUR)))
    port.silence(SIX)
    port.listen(FOUR)
    proxy = start_proxy(allow=ALLOW, dial={"stagger": "1s"})
    with proxy.client() as client:
        authority = f"origin.test:{port.number}"
        client.send(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n")
        wait_until(lambda: proxy.sockets() == proxy.sockets_at_start + 2, what="an attempt")
        proxy.reload(configuration(name_server=name_server.address, allow=[rule("other.test")]))
        proxy.wait_for_event("policy_reloaded")
        response = client.response("CONNECT")
    assert response.status == 403
    at_rest(proxy)


def test_many_at_once(
    start_proxy: StartProxy, name_server: NameServer, serve: Serve, live: Ports
) -> None:
    """Each of them races; each gets its tunnel; nothing is left."""
    server: Server = serve(say_nothing)
    name_server.set("origin.test", Answer((SIX, "127.0.0.1")))
    proxy = start_proxy(allow=ALLOW, dial={"stagger": "50ms", "failure_memory": "0s"})
    with contextlib.closing(Ports(server.port)) as silent:
        silent.silence(SIX)
        statuses: list[int] = []
        threads = [
            threading.Thread(
                target=lambda: statuses.append(ask(proxy, "CONNECT", server.port).status)
            )
            for _ in range(30)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert statuses == [200] * 30
        assert {line["attempts"] for line in proxy.wait_for_lines(30, event="ALLOWED")} == {2}
        at_rest(proxy)
