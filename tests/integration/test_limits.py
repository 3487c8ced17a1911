"""Limits of a policy's tenants, through a real proxy: what is refused, what is cut, what waits, and what comes back."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from typing import Any

import pytest

from egress_proxy.core.limits import Limits
from tests.conftest import Serve, StartProxy
from tests.support.client import RawClient, Response
from tests.support.dns import NameServer
from tests.support.edges import at_rest, stopped
from tests.support.origin import Origin
from tests.support.proxy import Proxy, configuration, rule
from tests.support.serving import echo, say_nothing
from tests.support.tools import MIB, wait_until

KIB = 1024


def policy(limits: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "name": "agents",
        "allow": [rule("origin.test"), rule("*.test")],
        "limits": limits,
        **more,
    }


def get(proxy: Proxy, url: str, **headers: str) -> Response:
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    with proxy.client() as client:
        return client.get(url, head=head)


def exceeded(proxy: Proxy, kind: str) -> float:
    return proxy.metrics().get(
        f'egress_proxy_limit_exceeded_total{{kind="{kind}",policy="agents"}}', 0.0
    )


def states(proxy: Proxy) -> dict[tuple[str, str], dict[str, Any]]:
    """What /v1/limits tells, by limit and tenant."""
    found = json.loads(proxy.ask_admin("/v1/limits").body)
    return {
        (used["limit"], each["tenant"]): used
        for each in found["tenants"]
        for used in each["limits"]
    }


def test_a_rate_and_an_honest_retry_after(start_proxy: StartProxy, origin: Origin) -> None:
    proxy = start_proxy(policies=[policy({"requests_per_second": 1, "burst": 2})])
    url = f"http://origin.test:{origin.http}/"
    with proxy.client() as client:
        assert [client.get(url).status for _ in range(2)] == [200, 200]
        refused = client.get(url)
        assert refused.status == 429
        assert refused["x-egress-error"] == "RATE_LIMIT_EXCEEDED"
        assert refused.error["reason"] == "request_rate"
        assert refused.error["retry"] is True
        assert refused["retry-after"] == "1"
        time.sleep(1)
        # The same connection goes on.
        assert client.get(url).status == 200
    line = proxy.wait_for_line(event="DENIED")
    assert (line["status"], line["code"], line["tenant"]) == (429, "RATE_LIMIT_EXCEEDED", "agents")
    assert exceeded(proxy, "request_rate") == 1
    at_rest(proxy)


def test_tunnels_that_are_open(start_proxy: StartProxy, serve: Serve) -> None:
    """The place of one that has ended is free, however it has ended."""
    server = serve(say_nothing)
    proxy = start_proxy(policies=[policy({"tunnels": 2})])
    authority = f"origin.test:{server.port}"
    with proxy.client() as first, proxy.client() as second, proxy.client() as third:
        assert first.connect(authority).status == 200
        assert second.connect(authority).status == 200
        refused = third.connect(authority)
        assert (refused.status, refused.error["reason"]) == (429, "tunnel_limit")
        first.reset()
        proxy.wait_for_lines(2)
        with proxy.client() as fourth:
            assert fourth.connect(authority).status == 200
    _closed(proxy)
    # One that never comes to be holds no place.
    for _ in range(3):
        with proxy.client() as client:
            assert client.connect("origin.test:1").status == 502
    _closed(proxy)
    with proxy.client() as first, proxy.client() as second:
        assert first.connect(authority).status == 200
        assert second.connect(authority).status == 200
    at_rest(proxy)


def test_a_websocket_is_a_tunnel(start_proxy: StartProxy, serve: Serve) -> None:
    def switch(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        )
        connection.recv(1)

    proxy = start_proxy(policies=[policy({"tunnels": 1})])
    url = f"http://origin.test:{serve(switch).port}/"
    head = "Connection: Upgrade\r\nUpgrade: websocket\r\n"
    with proxy.client() as first, proxy.client() as second:
        assert first.get(url, head=head).status == 101
        assert second.get(url, head=head).error["reason"] == "tunnel_limit"
    at_rest(proxy)


@pytest.mark.parametrize("budget", ["1MiB", {"up": "512KiB"}, {"down": "512KiB"}], ids=str)
def test_a_tunnel_that_spends_the_budget_is_closed(
    start_proxy: StartProxy, serve: Serve, budget: Any
) -> None:
    server = serve(echo)
    proxy = start_proxy(policies=[policy({"bytes_per_day": budget})])
    authority = f"origin.test:{server.port}"
    with proxy.client() as client:
        assert client.connect(authority).status == 200
        passed = 0
        with contextlib.suppress(OSError, AssertionError):
            for _ in range(1024):
                client.send(b"x" * 16 * KIB)
                client.exactly(16 * KIB)
                passed += 16 * KIB
    assert MIB // 2 - 32 * KIB <= passed < MIB // 2 + 64 * KIB
    line = proxy.wait_for_line(event="CLOSED")
    assert (line["code"], line["reason"]) == ("BUDGET_EXCEEDED", "byte_budget_spent")
    with proxy.client() as client:
        refused = client.connect(authority)
    assert (refused.status, refused.error["reason"]) == (429, "byte_budget")
    assert refused["x-egress-error"] == "BUDGET_EXCEEDED"
    assert 0 < int(refused["retry-after"]) <= 86_400
    assert exceeded(proxy, "byte_budget") == 2
    at_rest(proxy)


def test_a_download_that_spends_the_budget_is_cut(start_proxy: StartProxy, origin: Origin) -> None:
    """It must not look whole."""
    proxy = start_proxy(policies=[policy({"bytes_per_day": {"down": "1MiB"}})])
    with proxy.client() as client:
        client.send(
            f"GET http://origin.test:{origin.http}/bytes/{64 * MIB} HTTP/1.1\r\n"
            f"Host: origin.test:{origin.http}\r\n\r\n"
        )
        client.until(b"\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            client.rest()
    line = proxy.wait_for_line(event="CLOSED")
    assert line["reason"] == "byte_budget_spent"
    assert MIB <= line["bytes_received"] < 8 * MIB
    assert get(proxy, f"http://origin.test:{origin.http}/").error["reason"] == "byte_budget"
    at_rest(proxy)


def test_what_is_said_in_headers_counts(start_proxy: StartProxy, origin: Origin) -> None:
    proxy = start_proxy(policies=[policy({"bytes_per_day": {"up": "64KiB"}})])
    url = f"http://origin.test:{origin.http}/"
    statuses = [get(proxy, url, X_Data="x" * 20 * KIB).status for _ in range(6)]
    assert (statuses[0], statuses[-1]) == (200, 429)


def test_what_an_exchange_that_breaks_has_moved_counts(
    start_proxy: StartProxy, serve: Serve
) -> None:
    """Or who ends each within its body would move any number of bytes."""
    proxy = start_proxy(policies=[policy({"bytes_per_day": {"up": "64KiB"}})])
    authority = f"origin.test:{serve(say_nothing).port}"
    for count, reason in enumerate(("client_aborted", "byte_budget"), 1):
        with proxy.client() as client:
            with stopped(proxy):
                # All of it, and its end, are there when the proxy looks.
                client.send(
                    f"POST http://{authority}/ HTTP/1.1\r\nHost: {authority}\r\n"
                    f"Content-Length: {MIB}\r\n\r\n".encode()
                    + b"x" * 100 * KIB
                )
                client.eof()
            assert proxy.wait_for_lines(count)[-1]["reason"] == reason


def test_requests_of_a_day(start_proxy: StartProxy, origin: Origin) -> None:
    proxy = start_proxy(policies=[policy({"requests_per_day": 2})])
    url = f"http://origin.test:{origin.http}/"
    assert [get(proxy, url).status for _ in range(2)] == [200, 200]
    refused = get(proxy, url)
    assert (refused.status, refused.error["reason"]) == (429, "request_budget")
    assert proxy.wait_for_event("limit_near")["kind"] == "request_budget"


def test_new_hosts(start_proxy: StartProxy, origin: Origin, name_server: NameServer) -> None:
    """What is known may be asked again; what was refused anyway does not count."""
    for host in ("a.test", "b.test", "c.test"):
        name_server.set(host, "127.0.0.1")
    proxy = start_proxy(policies=[policy({"new_hosts_per_hour": 2}, deny=["denied.test"])])
    for host in ("denied.test", "a.test", "b.test", "a.test"):
        status = get(proxy, f"http://{host}:{origin.http}/").status
        assert status == (403 if host == "denied.test" else 200)
    refused = get(proxy, f"http://c.test:{origin.http}/")
    assert (refused.status, refused.error["reason"]) == (429, "new_hosts_limit")
    assert get(proxy, f"http://b.test:{origin.http}/").status == 200


@pytest.mark.parametrize("key", ["bandwidth", "tunnel_bandwidth"])
def test_bandwidth(start_proxy: StartProxy, serve: Serve, origin: Origin, key: str) -> None:
    """In a tunnel, spliced, and of a body; in both directions. What comes is whole."""
    server = serve(echo)
    proxy = start_proxy(policies=[policy({key: "1MiB"})])
    sent = bytes(range(256)) * 4 * KIB
    with proxy.client() as client:
        assert client.connect(f"origin.test:{server.port}").status == 200
        start = time.monotonic()
        client.send(sent)
        assert client.exactly(len(sent)) == sent
        tunnel = time.monotonic() - start
    with proxy.client() as client:
        start = time.monotonic()
        answer = client.get(f"http://origin.test:{origin.http}/bytes/{MIB + 300 * KIB}")
        assert len(answer.body) == MIB + 300 * KIB
        body = time.monotonic() - start
    # A bucket holds what passes in a part of a second.
    assert tunnel > 0.5, tunnel
    assert body > 0.5, body
    at_rest(proxy)


def test_what_one_tenant_uses_is_not_anothers(start_proxy: StartProxy, origin: Origin) -> None:
    proxy = start_proxy(policies=[policy({"requests_per_day": 1}, trust_tenant_header=True)])
    url = f"http://origin.test:{origin.http}/"
    for tenant in ("one", "two"):
        assert get(proxy, url, X_Tenant_ID=tenant).status == 200
        assert get(proxy, url, X_Tenant_ID=tenant).status == 429
    lines = proxy.wait_for_lines(4)
    assert [line["tenant"] for line in lines] == ["one", "one", "two", "two"]
    with proxy.client() as client:
        authority = f"origin.test:{origin.http}"
        assert client.connect(authority, head="X-Tenant-ID: three\r\n").status == 200
    assert {tenant for limit, tenant in states(proxy) if limit == "requests_per_day"} == {
        *("one", "two", "three")
    }


def test_a_tenant_that_is_not_trusted_is_nobody(start_proxy: StartProxy, origin: Origin) -> None:
    proxy = start_proxy(policies=[policy({"requests_per_day": 1})])
    url = f"http://origin.test:{origin.http}/"
    assert get(proxy, url, X_Tenant_ID="one").status == 200
    assert get(proxy, url, X_Tenant_ID="two").status == 429


def test_all_limits_of_several_policies_hold(start_proxy: StartProxy, origin: Origin) -> None:
    wide = {"name": "wide", "allow": [rule("origin.test")], "limits": {"requests_per_day": 5}}
    proxy = start_proxy(policies=[wide, policy({"requests_per_day": 2})])
    url = f"http://origin.test:{origin.http}/"
    assert [get(proxy, url).status for _ in range(3)] == [200, 200, 429]
    # Nothing was charged where another limit refused.
    used = {each["policy"]: each["requests"] for each in _tenants(proxy)}
    assert set(used) == {"wide", "agents"}
    assert [
        limit["used"]
        for each in _tenants(proxy)
        for limit in each["limits"]
        if limit["limit"] == "requests_per_day"
    ] == [2, 2]


def _closed(proxy: Proxy) -> None:
    wait_until(lambda: proxy.metrics()["egress_proxy_tunnels_active"] == 0, what="the end of all")


def _tenants(proxy: Proxy) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(proxy.ask_admin("/v1/limits").body)["tenants"]
    return found


def test_audit_mode_lets_through(start_proxy: StartProxy, origin: Origin) -> None:
    proxy = start_proxy(mode="audit", policies=[policy({"requests_per_day": 1})])
    url = f"http://origin.test:{origin.http}/"
    assert [get(proxy, url).status for _ in range(3)] == [200, 200, 200]
    lines = proxy.wait_for_lines(3)
    assert [line["event"] for line in lines] == ["ALLOWED", "WOULD_DENY", "WOULD_DENY"]
    assert {line.get("reason") for line in lines[1:]} == {"request_budget"}


def test_a_reload_forgets_nothing(
    start_proxy: StartProxy, origin: Origin, name_server: NameServer
) -> None:
    proxy = start_proxy(policies=[policy({"requests_per_day": 2})])
    url = f"http://origin.test:{origin.http}/"
    assert [get(proxy, url).status for _ in range(3)] == [200, 200, 429]
    changed = [policy({"requests_per_day": 3})]
    proxy.reload(configuration(name_server=name_server.address, allow=[], policies=changed))
    proxy.wait_for_event("policy_reloaded")
    assert [get(proxy, url).status for _ in range(2)] == [200, 429]


def test_a_restart_refills_nothing(start_proxy: StartProxy, origin: Origin, tmp_path: Any) -> None:
    state = f"sqlite://{tmp_path}/state.db"
    settings: dict[str, Any] = {"policies": [policy({"requests_per_day": 2})], "state": state}
    url = f"http://origin.test:{origin.http}/"
    first = start_proxy(**settings)
    assert [get(first, url).status for _ in range(2)] == [200, 200]
    first.stop()
    second = start_proxy(**settings)
    assert get(second, url).status == 429


def test_every_limit_is_tried_here() -> None:
    """A new one is to be shown in this file."""
    assert {*Limits.__dataclass_fields__} == {
        *("requests_per_second", "burst", "tunnels", "requests_per_day", "bytes_per_day"),
        *("bytes_up_per_day", "bytes_down_per_day", "time_zone", "bandwidth"),
        *("tunnel_bandwidth", "new_hosts_per_hour"),
    }


def test_a_client_that_leaves_gives_its_place_back(start_proxy: StartProxy, serve: Serve) -> None:
    """In the middle of the check of its hello."""
    server = serve(say_nothing)
    rules = [rule("origin.test", tls="verify")]
    proxy = start_proxy(policies=[policy({"tunnels": 1}) | {"allow": rules}])
    for _ in range(3):
        client: RawClient
        with proxy.client() as client:
            assert client.connect(f"origin.test:{server.port}").status == 200
            client.send(b"\x16\x03\x01")
            client.reset()
        wait_until(
            lambda: not any(each["tunnels"] for each in _tenants(proxy)), what="the tunnel's end"
        )
