"""A parent proxy that leads back here, that changes, and whose permissions are taken back."""

from __future__ import annotations

import socket
import threading
from typing import Any

import pytest

from tests.conftest import Serve, StartProxy
from tests.support.client import RawClient
from tests.support.dns import NameServer
from tests.support.parent import (
    ESTABLISHED,
    ScriptedParent,
    ask,
    plain,
    reloaded,
    then_echoes,
    through,
)
from tests.support.serving import say_nothing

METHODS = pytest.mark.parametrize("method", ["CONNECT", "GET"])
#: A name that nobody here can resolve: the parent's business.
FAR = "far.test"


# Loops -----------------------------------------------------------------------------------------------------------


@METHODS
@pytest.mark.parametrize("port", ["proxy", "admin"])
def test_a_proxy_is_not_its_own_parent(
    start_proxy: StartProxy, name_server: NameServer, method: str, port: str
) -> None:
    proxy = start_proxy(allow=[plain(FAR)])
    own = getattr(proxy, "address" if port == "proxy" else "admin")
    reloaded(proxy, name_server, allow=[plain(FAR)], upstream={"proxy": f"http://{own}"})
    response = ask(proxy, method, f"{FAR}:443")
    assert (response.status, response.error["reason"]) == (403, "proxy_loop")
    line = proxy.wait_for_line(event="DENIED")
    assert (line["address"], line["parent"]) == ("127.0.0.1", own)


@METHODS
def test_two_proxies_that_are_each_other_s_parents(
    start_proxy: StartProxy, name_server: NameServer, method: str
) -> None:
    one = start_proxy(allow=[plain(FAR)])
    two = start_proxy(allow=[plain(FAR)], upstream=through(one))
    reloaded(one, name_server, allow=[plain(FAR)], upstream=through(two))
    response = ask(one, method, f"{FAR}:443")
    assert response.status == 403
    assert one.wait_for_line(event="DENIED")["reason"] == "proxy_loop"
    # Once round, and no further.
    reasons = [str(line.get("reason")) for line in one.wait_for_lines(2, host=FAR)]
    if method == "CONNECT":
        assert response.error["reason"] == "parent_refused"
        assert sorted(reasons) == ["parent_refused", "proxy_loop"]
        assert two.wait_for_line(host=FAR)["reason"] == "parent_refused"
    else:
        assert response.error["reason"] == "proxy_loop"


# Reload ----------------------------------------------------------------------------------------------------------


def _goes_on(client: RawClient) -> bool:
    client.send(b"ping")
    return client.exactly(4) == b"ping"


def test_open_tunnels_stay_and_new_ones_use_the_new_parent(
    start_proxy: StartProxy, serve: Serve, name_server: NameServer
) -> None:
    parents = [ScriptedParent(then_echoes(ESTABLISHED)) for _ in range(2)]
    ports = [serve(parent) for parent in parents]
    proxy = start_proxy(allow=[plain(FAR)], upstream=through(ports[0]))
    with proxy.client() as old, proxy.client() as new:
        assert old.connect(f"{FAR}:443").status == 200
        # The parent is on loopback, which no rule opens: it is no destination.
        reloaded(proxy, name_server, allow=[plain(FAR)], upstream=through(ports[1]))
        assert new.connect(f"{FAR}:443").status == 200
        assert _goes_on(old)
        assert _goes_on(new)
        # Directly, it could not even be resolved.
        reloaded(proxy, name_server, allow=[plain(FAR)])
        assert _goes_on(old)
        assert _goes_on(new)
        reloaded(proxy, name_server, allow=[plain("other.test")], upstream=through(ports[1]))
        assert old.is_closed()
        assert new.is_closed()
    assert [len(parent.heads) for parent in parents] == [1, 1]
    for line in proxy.wait_for_lines(2, event="CLOSED"):
        assert line["reason"] == "policy_revoked"


@pytest.mark.parametrize(
    ("allow", "stays"),
    [
        ([{"cidr": "10.0.0.0/8", "tls": "off"}], True),
        ([{"cidr": "0.0.0.0/0", "tls": "off"}], False),
    ],
)
def test_an_address_behind_the_parent_is_judged_again(
    start_proxy: StartProxy,
    serve: Serve,
    name_server: NameServer,
    allow: list[Any],
    *,
    stays: bool,
) -> None:
    upstream = through(serve(ScriptedParent(then_echoes(ESTABLISHED))))
    proxy = start_proxy(allow=[{"cidr": "10.0.0.0/16", "tls": "off"}], upstream=upstream)
    with proxy.client() as client:
        assert client.connect("10.0.0.1:443").status == 200
        reloaded(proxy, name_server, allow=allow, upstream=upstream)
        if stays:
            assert _goes_on(client)
        else:
            assert client.is_closed()


def test_a_permission_that_ends_while_the_parent_thinks(
    start_proxy: StartProxy, serve: Serve, name_server: NameServer
) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def script(connection: socket.socket) -> None:
        asked.set()
        assert go_on.wait(10)
        connection.sendall(ESTABLISHED)
        say_nothing(connection)

    proxy = start_proxy(allow=[plain(FAR)], upstream=through(serve(ScriptedParent(script))))
    with proxy.client() as client:
        client.send(f"CONNECT {FAR}:443 HTTP/1.1\r\nHost: {FAR}:443\r\n\r\n")
        assert asked.wait(5)
        reloaded(proxy, name_server, allow=[plain("other.test")])
        go_on.set()
        response = client.response("CONNECT")
    assert (response.status, response.error["reason"]) == (403, "host_not_allowed")
    assert proxy.wait_for_line(event="DENIED")["generation"] == 2


def test_draining_ends_the_wait_for_a_parent(start_proxy: StartProxy, serve: Serve) -> None:
    asked = threading.Event()

    def script(connection: socket.socket) -> None:
        asked.set()
        say_nothing(connection)

    proxy = start_proxy(
        allow=[plain(FAR)],
        upstream=through(serve(ScriptedParent(script))),
        drain_timeout="0s",
    )
    with proxy.client() as client:
        client.send(f"CONNECT {FAR}:443 HTTP/1.1\r\nHost: {FAR}:443\r\n\r\n")
        assert asked.wait(5)
        proxy.stop()
        assert client.response("CONNECT").error["reason"] == "drain_timeout"
