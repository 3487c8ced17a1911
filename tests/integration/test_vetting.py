"""The address behind a name, and addresses in place of names: nothing private is reached unless a rule says so."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import pytest

from tests.conftest import Serve, StartProxy
from tests.support.client import Response
from tests.support.dns import Answer, NameServer
from tests.support.origin import Origin
from tests.support.proxy import ANY_PORT, Proxy, rule
from tests.support.serving import Server, echo
from tests.support.tools import wait_until


def _connect(proxy: Proxy, authority: str) -> Response:
    with proxy.client() as client:
        return client.connect(authority)


def _on_the_same_port(serve: Serve) -> tuple[Server, Server]:
    """Servers on 127.0.0.2 and on 127.0.0.1."""
    while True:
        first = serve(echo, host="127.0.0.2")
        with contextlib.suppress(OSError):  # somebody else's port
            return first, serve(echo, port=first.port)


def _prohibited(proxy: Proxy, response: Response) -> dict[str, Any]:
    assert response.status == 403
    assert response["x-egress-error"] == "POLICY_BLOCKED"
    assert response.error["reason"] == "destination_ip_prohibited"
    assert "error=destination_ip_prohibited" in response["proxy-status"]
    line = proxy.wait_for_line(request_id=response.error["request_id"])
    assert (line["event"], line["reason"]) == ("DENIED", "destination_ip_prohibited")
    assert line["address"]
    return line


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.255.255.254",
        "0.0.0.0",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "169.254.169.254",
        "169.254.170.2",
        "168.63.129.16",
        "100.100.100.200",
        "192.0.2.1",
        "224.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "fe80::1",
        "fd00:ec2::254",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "::7f00:1",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::1",
        "2002:7f00:1::",
        "2002:a9fe:a9fe::",
        "2001:0:1:2:3:4:80ff:fffe",
        "ff02::1",
        "fec0::1",
    ],
)
@pytest.mark.parametrize("method", ["CONNECT", "GET"])
def test_a_name_may_not_lead_inside(
    start_proxy: StartProxy, name_server: NameServer, address: str, method: str
) -> None:
    proxy = start_proxy(allow=[rule("inside.test", allow_private=[])])
    name_server.set("inside.test", Answer((address,)))
    with proxy.client() as client:
        ask = client.get if method == "GET" else client.connect
        response = ask({"CONNECT": "inside.test:443", "GET": "http://inside.test/"}[method])
    _prohibited(proxy, response)


@pytest.mark.parametrize(
    ("address", "lifted"),
    [
        ("127.0.0.1", ["0.0.0.0/0"]),
        ("127.0.0.1", ["10.0.0.0/8"]),
        ("127.0.0.1", ["127.0.0.2/32"]),
        ("169.254.169.254", ["0.0.0.0/0", "169.254.0.0/16"]),
        ("::1", ["::/0"]),
        ("::ffff:169.254.169.254", ["::/0", "0.0.0.0/0"]),
    ],
)
def test_a_wide_permission_does_not_open_loopback_or_metadata(
    start_proxy: StartProxy, name_server: NameServer, address: str, lifted: list[str]
) -> None:
    proxy = start_proxy(allow=[rule("inside.test", allow_private=lifted)])
    name_server.set("inside.test", Answer((address,)))
    _prohibited(proxy, _connect(proxy, "inside.test:443"))


def test_only_the_permitted_address_of_several_is_dialled(
    start_proxy: StartProxy, serve: Serve, name_server: NameServer
) -> None:
    allowed, forbidden = _on_the_same_port(serve)
    name_server.set("mixed.test", Answer(("127.0.0.1", "127.0.0.2", "10.0.0.1")))
    proxy = start_proxy(allow=[rule("mixed.test", allow_private=["127.0.0.2/32"])])
    for _ in range(4):
        assert _connect(proxy, f"mixed.test:{allowed.port}").status in {200, 403}
    assert forbidden.accepted == 0


def test_the_permission_of_one_name_is_not_anothers(
    start_proxy: StartProxy, origin: Origin, name_server: NameServer
) -> None:
    name_server.set("inside.test", "127.0.0.1")
    proxy = start_proxy(allow=[rule("origin.test"), rule("inside.test", allow_private=[])])
    assert _connect(proxy, f"origin.test:{origin.http}").status == 200
    _prohibited(proxy, _connect(proxy, f"inside.test:{origin.http}"))


def test_rebinding_between_two_requests(
    start_proxy: StartProxy, serve: Serve, name_server: NameServer
) -> None:
    server = serve(echo, host="127.0.0.2")
    name_server.set("rebind.test", Answer(("127.0.0.2",), ttl=0), Answer(("127.0.0.1",), ttl=0))
    proxy = start_proxy(
        allow=[rule("rebind.test", allow_private=["127.0.0.2/32"])], dns={"min_ttl": "0s"}
    )
    assert _connect(proxy, f"rebind.test:{server.port}").status == 200
    time.sleep(0.05)
    _prohibited(proxy, _connect(proxy, f"rebind.test:{server.port}"))


def test_the_address_that_was_checked_is_the_one_that_is_dialled(
    start_proxy: StartProxy, serve: Serve, name_server: NameServer
) -> None:
    """Each question gets another answer: whoever asks twice dials what was never checked."""
    good, evil = _on_the_same_port(serve)
    answers = [Answer(("127.0.0.2",), ttl=0), Answer(("127.0.0.1",), ttl=0)] * 10
    name_server.set("rebind.test", *answers)
    proxy = start_proxy(
        allow=[rule("rebind.test", allow_private=["127.0.0.2/32"])], dns={"min_ttl": "0s"}
    )
    statuses = [_connect(proxy, f"rebind.test:{good.port}").status for _ in range(10)]
    assert set(statuses) == {200, 403}
    assert evil.accepted == 0
    wait_until(lambda: good.accepted == statuses.count(200), what="as many connections as answers")


# Addresses in place of names --------------------------------------------------------------------

_LOOPBACK_SPELLINGS = [
    "127.0.0.1",
    "127.0.0.1.",
    "127.1",
    "127.0.1",
    "2130706433",
    "0x7f000001",
    "0X7F.1",
    "017700000001",
    "0177.0.0.1",
    "0x7f.0x0.0x0.0x1",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[0:0:0:0:0:FFFF:7F00:0001]",
]
_OTHER_SPELLINGS = [
    "[::1]",
    "[::1%25lo]",
    "[::1%lo]",
    "[::]",
    "[fe80::1%25eth0]",
    "[::127.0.0.1]",
    "[64:ff9b::127.0.0.1]",
    "0",
    "0.0.0.0",
    "169.254.169.254",
    "0xa9fea9fe",
    "8.8.8.8",
]


@pytest.mark.parametrize("spelling", _LOOPBACK_SPELLINGS + _OTHER_SPELLINGS)
def test_no_wildcard_matches_an_address(
    start_proxy: StartProxy, serve: Serve, spelling: str
) -> None:
    server = serve(echo)
    proxy = start_proxy(allow=[rule("*", allow_private=["127.0.0.0/8", "::1/128"])])
    response = _connect(proxy, f"{spelling}:{server.port}")
    assert response.status in {400, 403}
    assert response.error["reason"] in {"address_not_allowed", "bad_host", "bad_authority"}
    assert server.accepted == 0
    proxy.wait_for_line(event="DENIED")


@pytest.mark.parametrize("spelling", _LOOPBACK_SPELLINGS)
def test_every_spelling_is_the_same_address(
    start_proxy: StartProxy, serve: Serve, spelling: str, name_server: NameServer
) -> None:
    server = serve(echo)
    proxy = start_proxy(allow=[{"cidr": "127.0.0.0/8", "ports": ANY_PORT, "tls": "off"}])
    with proxy.client() as client:
        assert client.connect(f"{spelling}:{server.port}").status == 200
        client.send(b"x")
        assert client.exactly(1) == b"x"
    assert proxy.wait_for_line(event="ALLOWED")["host"] == "127.0.0.1"
    assert name_server.queries == []


@pytest.mark.parametrize("spelling", _LOOPBACK_SPELLINGS)
def test_every_spelling_can_be_denied(start_proxy: StartProxy, serve: Serve, spelling: str) -> None:
    server = serve(echo)
    proxy = start_proxy(
        allow=[{"cidr": "127.0.0.0/8", "ports": ANY_PORT, "tls": "off"}],
        deny=[{"cidr": "127.0.0.1/32"}],
    )
    assert _connect(proxy, f"{spelling}:{server.port}").error["reason"] == "deny_rule"
    assert server.accepted == 0


@pytest.mark.parametrize("host", ["origin.test", "ORIGIN.TEST", "origin.test.", "Origin.Test."])
def test_every_spelling_of_a_name_is_the_same_name(proxy: Proxy, origin: Origin, host: str) -> None:
    assert _connect(proxy, f"{host}:{origin.http}").status == 200
    assert proxy.wait_for_line(event="ALLOWED")["host"] == "origin.test"


@pytest.mark.parametrize(
    "host",
    [
        "origin.test..",
        ".origin.test",
        "origin..test",
        "origin.test%00",
        "origin.test%2e",
        "ori gin.test",
        "a" * 300,
    ],
)
def test_what_is_no_name_is_refused(proxy: Proxy, origin: Origin, host: str) -> None:
    assert _connect(proxy, f"{host}:{origin.http}").status in {400, 403}
    assert len(proxy.wait_for_lines(1, event="DENIED")) == 1


# Ports and rules --------------------------------------------------------------------------------


def test_another_port_is_another_destination(start_proxy: StartProxy, origin: Origin) -> None:
    proxy = start_proxy(allow=[rule("origin.test", ports=[origin.http])])
    assert _connect(proxy, f"origin.test:{origin.http}").status == 200
    response = _connect(proxy, f"origin.test:{origin.https}")
    assert (response.status, response.error["reason"]) == (403, "port_not_allowed")


def test_deny_beats_allow(start_proxy: StartProxy, origin: Origin, name_server: NameServer) -> None:
    name_server.set("a.origin.test", "127.0.0.1")
    name_server.set("b.origin.test", "127.0.0.1")
    proxy = start_proxy(allow=[rule("*.origin.test")], deny=["b.origin.test"])
    assert _connect(proxy, f"a.origin.test:{origin.http}").status == 200
    assert _connect(proxy, f"b.origin.test:{origin.http}").error["reason"] == "deny_rule"
    assert _connect(proxy, f"origin.test:{origin.http}").error["reason"] == "host_not_allowed"
    line = proxy.wait_for_line(event="DENIED", reason="deny_rule")
    assert (line["policy"], line["host"]) == ("test", "b.origin.test")
    assert "b.origin.test" in line["rule"]


def test_a_denied_network_is_closed_behind_names_too(
    start_proxy: StartProxy, origin: Origin
) -> None:
    proxy = start_proxy(allow=[rule("origin.test")], deny=[{"cidr": "127.0.0.1/32"}])
    assert _connect(proxy, f"origin.test:{origin.http}").status == 403


def test_policies_apply_by_client_address(start_proxy: StartProxy, origin: Origin) -> None:
    allow = [rule("origin.test")]
    proxy = start_proxy(
        policies=[
            {"name": "others", "subjects": [{"cidr": "10.0.0.0/8"}], "allow": allow},
            {"name": "ours", "subjects": [{"cidr": "127.0.0.0/8"}], "allow": ["other.test"]},
        ]
    )
    assert _connect(proxy, f"origin.test:{origin.http}").status == 403


# Audit mode -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["CONNECT", "GET"])
def test_audit_mode_lets_through_and_says_what_it_would_deny(
    start_proxy: StartProxy, lan_origin: Origin, method: str
) -> None:
    proxy = start_proxy(mode="audit", allow=["nothing.test"])
    authority = f"origin.test:{lan_origin.http}"
    with proxy.client() as client:
        if method == "CONNECT":
            assert client.connect(authority).status == 200
        else:
            assert client.get(f"http://{authority}/").status == 200
    line = proxy.wait_for_line(host="origin.test")
    assert (line["event"], line["reason"]) == ("WOULD_DENY", "host_not_allowed")
    proxy.stop()
    assert "DENIED" not in proxy.stdout


def test_audit_mode_does_not_hide_what_is_allowed_or_malformed(
    start_proxy: StartProxy, origin: Origin
) -> None:
    proxy = start_proxy(mode="audit")
    assert _connect(proxy, f"origin.test:{origin.http}").status == 200
    proxy.wait_for_line(event="ALLOWED")
    with proxy.client() as client:
        client.send("GET / HTTP/1.1\r\n\r\n")
        assert client.response().status == 400
    proxy.wait_for_line(event="DENIED")


@pytest.mark.parametrize("address", ["127.0.0.1", "169.254.169.254", "::1"])
def test_audit_mode_opens_neither_loopback_nor_metadata(
    start_proxy: StartProxy, name_server: NameServer, address: str
) -> None:
    name_server.set("inside.test", Answer((address,)))
    proxy = start_proxy(mode="audit", allow=["nothing.test"])
    _prohibited(proxy, _connect(proxy, "inside.test:443"))
