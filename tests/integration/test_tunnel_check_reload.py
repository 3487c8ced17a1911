"""`tls: verify` when it is switched on or off, or the permission is taken back, or the proxy ends."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import Serve, StartProxy
from tests.support.client import RawClient
from tests.support.dns import NameServer
from tests.support.edges import at_rest, stopped, wait_for
from tests.support.held import BANNER, HELLO, Keeper, is_refused, opened
from tests.support.hellos import client_hello
from tests.support.proxy import Proxy, configuration, rule
from tests.support.tools import wait_until

VERIFIED, OFF = rule("origin.test", tls="verify"), rule("origin.test", tls="off")
LONG = {"client_hello": "30s"}
#: A rule that makes another configuration, and concerns nobody here.
OTHER = "nothing.test"

Changed = Callable[..., dict[str, Any]]


@pytest.fixture
def changed(name_server: NameServer) -> Changed:
    """Makes a configuration with other rules."""

    def make(*allow: Any, **keys: Any) -> dict[str, Any]:
        keys = {"timeouts": LONG, "drain_timeout": "1s", **keys}
        return configuration(name_server=name_server.address, allow=list(allow), **keys)

    return make


@pytest.fixture
def proxy(start_proxy: StartProxy) -> Proxy:
    return start_proxy(allow=[VERIFIED], timeouts=LONG)


@pytest.fixture
def keeper() -> Keeper:
    return Keeper(echo=True)


@pytest.fixture
def target(serve: Serve, keeper: Keeper) -> str:
    return f"origin.test:{serve(keeper).port}"


def _goes_on(client: RawClient) -> bool:
    client.send(b"ping")
    return client.exactly(4) == b"ping"


def _tunnel(proxy: Proxy, target: str, said: bytes) -> RawClient:
    """One that carries bytes."""
    client = opened(proxy, target, b"", said)
    assert client.exactly(len(said)) == said
    return client


def _adopted(proxy: Proxy, config: dict[str, Any]) -> None:
    generation = proxy.policy()["generation"]
    proxy.reload(config)
    wait_until(lambda: proxy.policy()["generation"] > generation, what="the next generation")
    # Open connections are looked at behind it, in a few turns of the loop.
    time.sleep(0.1)


# Switched on and off ----------------------------------------------------------------------------


def test_switched_on(start_proxy: StartProxy, target: str, changed: Changed) -> None:
    """What was not looked at may be anything, a hello or not, and ends; what was, stays; nothing else is asked."""
    other = rule("other.test", tls="verify")
    proxy = start_proxy(allow=[OFF, other])
    _, _, port = target.rpartition(":")
    with (
        _tunnel(proxy, target, b"SSH-2.0-client\r\n") as plain,
        _tunnel(proxy, target, HELLO) as not_looked_at,
        _tunnel(proxy, f"other.test:{port}", client_hello("other.test")) as verified,
    ):
        proxy.reload(changed(VERIFIED, other))
        assert plain.is_closed()
        assert not_looked_at.is_closed()
        assert _goes_on(verified)
    lines = proxy.wait_for_lines(2, event="CLOSED", reason="policy_revoked")
    assert {line["generation"] for line in lines} == {1}
    assert proxy.wait_for_event("revoked")["connections"] == 2
    proxy.wait_for_line(event="ALLOWED", host="other.test")
    at_rest(proxy)


def test_switched_off(proxy: Proxy, target: str, changed: Changed) -> None:
    with _tunnel(proxy, target, HELLO) as verified:
        _adopted(proxy, changed(OFF))
        assert _goes_on(verified)
        with _tunnel(proxy, target, b"SSH-2.0-client\r\n") as plain:
            _adopted(proxy, changed(OFF, OTHER))
            assert _goes_on(plain)
            # And on again: what was seen once counts.
            proxy.reload(changed(VERIFIED))
            assert plain.is_closed()
            assert _goes_on(verified)
    at_rest(proxy)


def test_switched_on_by_the_rule_that_lifted_it_being_gone(
    start_proxy: StartProxy, target: str, changed: Changed
) -> None:
    proxy = start_proxy(allow=[VERIFIED, rule("*.test", tls="off")])
    with _tunnel(proxy, target, b"SSH-2.0-client\r\n") as plain:
        proxy.reload(changed(VERIFIED))
        assert plain.is_closed()
    assert proxy.wait_for_line(event="CLOSED")["reason"] == "policy_revoked"
    at_rest(proxy)


def test_switched_on_and_told_to_keep(
    start_proxy: StartProxy, target: str, changed: Changed
) -> None:
    proxy = start_proxy(allow=[OFF])
    with _tunnel(proxy, target, b"SSH-2.0-client\r\n") as plain:
        _adopted(proxy, changed(VERIFIED, on_revoke="keep"))
        assert _goes_on(plain)
    at_rest(proxy)


def test_switched_on_while_a_download_runs(
    start_proxy: StartProxy, base: str, changed: Changed
) -> None:
    """Absolute-form requests are no tunnels."""
    proxy = start_proxy(allow=[OFF])
    with proxy.client() as client:
        client.send(f"GET {base}/drip/20 HTTP/1.1\r\nHost: {base[7:]}\r\n\r\n")
        client.until(b"\r\n\r\n.")
        _adopted(proxy, changed(VERIFIED))
        assert client.exactly(19) == b"." * 19
    proxy.wait_for_line(event="ALLOWED")
    at_rest(proxy)


# Audit mode -------------------------------------------------------------------------------------


def test_audit_mode_closes_nothing(start_proxy: StartProxy, target: str, changed: Changed) -> None:
    """Whatever is loaded meanwhile, also if the tunnel began without a check."""
    proxy = start_proxy(allow=[OFF])
    with _tunnel(proxy, target, b"SSH-2.0-client\r\n") as unasked:
        _adopted(proxy, changed(VERIFIED, mode="audit"))
        assert _goes_on(unasked)
        with _tunnel(proxy, target, b"SSH-2.0-client\r\n") as plain:
            _adopted(proxy, changed(VERIFIED, OTHER, mode="audit"))
            assert _goes_on(plain)
            assert _goes_on(unasked)
    assert "CLOSED" not in proxy.stdout
    assert "DENIED" not in proxy.stdout
    at_rest(proxy)


def test_from_audit_mode_to_enforcement(
    start_proxy: StartProxy, target: str, changed: Changed
) -> None:
    """What the check would have refused ends; what it would have passed goes on."""
    proxy = start_proxy(mode="audit", allow=[VERIFIED])
    with (
        _tunnel(proxy, target, b"SSH-2.0-client\r\n") as plain,
        _tunnel(proxy, target, client_hello("other.test")) as other,
        _tunnel(proxy, target, HELLO) as good,
    ):
        proxy.reload(changed(VERIFIED))
        assert plain.is_closed()
        assert other.is_closed()
        assert _goes_on(good)
    lines = proxy.wait_for_lines(2, event="CLOSED", reason="policy_revoked")
    assert {line.get("sni") for line in lines} == {None, "other.test"}
    at_rest(proxy)


# While the hello is awaited ---------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 50])
def test_a_permission_that_is_taken_back(
    proxy: Proxy, target: str, keeper: Keeper, changed: Changed, size: int
) -> None:
    with opened(proxy, target, b"", HELLO[:size]) as client:
        wait_for(keeper.said, 1)
        proxy.reload(changed(OTHER))
        assert client.is_closed()
    line = proxy.wait_for_line(event="CLOSED", reason="policy_revoked")
    assert (line["status"], line["generation"]) == (200, 1)
    keeper.got_nothing()
    at_rest(proxy)


def test_a_permission_that_is_taken_back_as_the_hello_comes(
    proxy: Proxy, target: str, keeper: Keeper, changed: Changed
) -> None:
    """Whoever is first, none of it goes through after the new policy is in force."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(opened(proxy, target)) for _ in range(20)]
        with stopped(proxy):
            proxy.reload(changed(OTHER))
            for client in clients:
                client.send(HELLO)
        for client in clients:
            got = b""
            with contextlib.suppress(ConnectionResetError):
                got = client.rest()
            assert got in {b"", HELLO}
    proxy.wait_for_lines(20, event="CLOSED", reason="policy_revoked")
    at_rest(proxy)


def test_switched_off_while_it_waits(
    proxy: Proxy, target: str, keeper: Keeper, changed: Changed
) -> None:
    """The tunnel goes on under the configuration that it began with."""
    with opened(proxy, target) as good, opened(proxy, target) as other:
        _adopted(proxy, changed(OFF))
        good.send(HELLO)
        assert good.exactly(len(HELLO)) == HELLO
        other.send(BANNER)
        is_refused(proxy, other, "tunnel_not_tls", generation=1)
    at_rest(proxy)


def test_switched_to_enforcement_while_it_waits(
    start_proxy: StartProxy, target: str, keeper: Keeper, changed: Changed
) -> None:
    """What audit mode would let through is not let through any more by then."""
    proxy = start_proxy(mode="audit", allow=[VERIFIED], timeouts=LONG)
    with opened(proxy, target) as good, opened(proxy, target) as other:
        _adopted(proxy, changed(VERIFIED))
        good.send(HELLO)
        assert good.exactly(len(HELLO)) == HELLO
        other.send(BANNER)
        assert other.is_closed()
        line = proxy.wait_for_line(event="CLOSED", reason="policy_revoked")
        assert line["generation"] == 1
    assert sorted(map(bytes, keeper.said)) == [b"", HELLO]
    at_rest(proxy)


def test_who_was_refused_is_not_revoked_as_well(
    proxy: Proxy, target: str, changed: Changed
) -> None:
    """It carries nothing any more while it is given time to read what it was told."""
    with opened(proxy, target, BANNER) as client:
        is_refused(proxy, client, "tunnel_not_tls")
        _adopted(proxy, changed(OTHER))
        assert not [line for line in proxy.events() if line["event"] == "revoked"]
    assert len(proxy.lines) == 1
    at_rest(proxy)


# The proxy ends ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 50])
def test_nothing_waits_beyond_the_drain_timeout(
    start_proxy: StartProxy, target: str, keeper: Keeper, size: int
) -> None:
    proxy = start_proxy(allow=[VERIFIED], timeouts=LONG, drain_timeout="300ms")
    with opened(proxy, target, b"", HELLO[:size]) as client:
        wait_for(keeper.said, 1)
        time.sleep(0.05)
        begun = time.monotonic()
        proxy.signal(signal.SIGTERM)
        assert client.is_closed()
        assert 0.2 < time.monotonic() - begun < 3
    assert proxy.wait() == 0
    (line,) = proxy.lines
    assert (line["event"], line["reason"], line["status"]) == ("CLOSED", "drain_timeout", 200)
    keeper.got_nothing()
    assert "Traceback" not in proxy.stderr


def test_a_hello_that_comes_while_draining(
    start_proxy: StartProxy, target: str, keeper: Keeper
) -> None:
    """Who has a 200 is served; who is refused is told, and holds nothing up."""
    proxy = start_proxy(allow=[VERIFIED], timeouts=LONG, drain_timeout="20s")
    with opened(proxy, target) as good, opened(proxy, target) as other:
        wait_for(keeper.said, 2)
        proxy.signal(signal.SIGTERM)
        proxy.wait_for_event("draining")
        other.send(client_hello("other.test"))
        is_refused(proxy, other, "sni_mismatch")
        good.send(HELLO)
        assert good.exactly(len(HELLO)) == HELLO
    begun = time.monotonic()
    assert proxy.wait() == 0
    assert time.monotonic() - begun < 3
    assert sorted(line["event"] for line in proxy.lines) == ["ALLOWED", "DENIED"]
    assert "Traceback" not in proxy.stderr


def test_a_second_signal_ends_all_that_wait(
    start_proxy: StartProxy, target: str, keeper: Keeper
) -> None:
    proxy = start_proxy(allow=[VERIFIED], timeouts=LONG, drain_timeout="30s")
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(opened(proxy, target)) for _ in range(50)]
        wait_for(keeper.said, 50)
        proxy.signal(signal.SIGTERM)
        proxy.wait_for_event("draining")
        proxy.signal(signal.SIGTERM)
        assert proxy.wait() == 0
        for client in clients:
            assert client.is_closed()
    assert {(line["event"], line["reason"]) for line in proxy.lines} == {
        ("CLOSED", "drain_timeout")
    }
    assert len(proxy.lines) == 50
    keeper.got_nothing()
