"""A request that would come back: the proxy is no destination of its own, and knows what has come through it."""

from __future__ import annotations

import re
import socket
from typing import Any

import pytest

from tests.conftest import Serve, StartProxy
from tests.support.client import RawClient, Response
from tests.support.dns import Answer, NameServer
from tests.support.origin import Origin
from tests.support.proxy import ANY_PORT, Proxy, rule
from tests.support.serving import Server, greet

METHODS = ("CONNECT", "GET")
#: Everything that a test's name may lead to, this machine's own addresses included.
LIFTED = ["127.0.0.0/8", "::1/128", "0.0.0.0/8", "::/128", "10.0.0.0/8", "172.16.0.0/12"]
LIFTED += ["192.168.0.0/16", "192.0.2.0/24", "fc00::/7", "2001:db8::/32"]


def ask(proxy: Proxy, method: str, authority: str, *, head: str = "") -> Response:
    """Through a proxy that may listen on every address."""
    with RawClient(f"127.0.0.1:{_port(proxy.address)}") as client:
        if method == "CONNECT":
            return client.connect(authority, head=head)
        return client.get(f"http://{authority}/", head=head)


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])


def is_loop(proxy: Proxy, response: Response) -> dict[str, Any]:
    """Refused as a loop; the line about it."""
    assert response.status == 403
    assert response["x-egress-error"] == "POLICY_BLOCKED"
    assert response.error["reason"] == "proxy_loop"
    assert response.error["retry"] is False
    assert "error=proxy_loop_detected" in response["proxy-status"]
    line = proxy.wait_for_line(request_id=response.error["request_id"])
    assert (line["event"], line["reason"], line["status"]) == ("DENIED", "proxy_loop", 403)
    return line


def own_addresses() -> list[str]:
    """The machine's own, but for loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            return []
        return [probe.getsockname()[0]]


# The way leads to the proxy itself ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "addresses"),
    [
        ("127.0.0.1", ["127.0.0.1", "::ffff:127.0.0.1"]),
        ("0.0.0.0", ["127.0.0.1", "127.0.0.2", "0.0.0.0", "::1", *own_addresses()]),
        ("[::]", ["::1", "::", "127.0.0.1", "127.0.0.2", "0.0.0.0", *own_addresses()]),
    ],
    ids=["loopback", "all of IPv4", "all"],
)
def test_a_name_that_leads_to_its_own_ports(
    start_proxy: StartProxy, name_server: NameServer, host: str, addresses: list[str]
) -> None:
    """The proxy's, and the admin port's."""
    listen = {"proxy": f"{host}:0", "admin": f"{host}:0"}
    proxy = start_proxy(allow=[rule("*.test", allow_private=LIFTED)], listen=listen)
    for number, address in enumerate(addresses):
        name_server.set(f"name{number}.test", address)
        for own in (proxy.address, proxy.admin):
            for method in METHODS:
                line = is_loop(proxy, ask(proxy, method, f"name{number}.test:{_port(own)}"))
                assert line["address"] == address.removeprefix("::ffff:")


@pytest.mark.parametrize(("host", "address"), [("127.0.0.1", "0.0.0.0"), ("[::1]", "::")])
def test_no_address_at_all_leads_to_loopback(
    start_proxy: StartProxy, name_server: NameServer, host: str, address: str
) -> None:
    """The system takes them for 127.0.0.1 and ::1."""
    listen = {"proxy": "127.0.0.1:0", "admin": f"{host}:0"}
    proxy = start_proxy(allow=[rule("origin.test", allow_private=LIFTED)], listen=listen)
    name_server.set("origin.test", address)
    is_loop(proxy, ask(proxy, "CONNECT", f"origin.test:{_port(proxy.admin)}"))


def test_its_own_address_as_a_literal(start_proxy: StartProxy) -> None:
    """In any spelling, with a rule that allows it."""
    proxy = start_proxy(allow=[{"cidr": "127.0.0.0/8", "ports": ANY_PORT, "tls": "off"}])
    for address in ("127.0.0.1", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]"):
        for own in (proxy.address, proxy.admin):
            for method in METHODS:
                is_loop(proxy, ask(proxy, method, f"{address}:{_port(own)}"))


def test_nobody_asks_the_admin_port_in_the_proxys_name(start_proxy: StartProxy) -> None:
    """What comes from loopback needs no token there."""
    proxy = start_proxy()
    with proxy.client() as client:
        is_loop(proxy, client.get(f"http://origin.test:{_port(proxy.admin)}/v1/policy"))


def test_audit_mode_lets_no_loop_through(start_proxy: StartProxy) -> None:
    proxy = start_proxy(mode="audit")
    is_loop(proxy, ask(proxy, "CONNECT", f"origin.test:{_port(proxy.address)}"))


# Not a loop -------------------------------------------------------------------------------------


def test_the_same_port_of_another_address(
    start_proxy: StartProxy, serve: Serve, name_server: NameServer
) -> None:
    name_server.set("origin.test", "127.0.0.2")
    proxy = start_proxy()
    port = _port(proxy.address)
    serve(greet, host="127.0.0.2", port=port)
    with proxy.client() as client:
        assert client.connect(f"origin.test:{port}").status == 200
        assert client.until(b"\n") == b"220 origin.test ready\r\n"


def test_another_port_of_the_same_address(start_proxy: StartProxy, origin: Origin) -> None:
    proxy = start_proxy()
    assert ask(proxy, "GET", f"origin.test:{origin.http}").status == 200


def test_the_others_of_a_names_addresses_are_reached(
    start_proxy: StartProxy, serve: Serve, name_server: NameServer
) -> None:
    name_server.set("origin.test", Answer(("127.0.0.1", "127.0.0.2")))
    proxy = start_proxy()
    port = _port(proxy.address)
    server: Server = serve(greet, host="127.0.0.2", port=port)
    for _ in range(3):
        with proxy.client() as client:
            assert client.connect(f"origin.test:{port}").status == 200
    for line in proxy.wait_for_lines(3, event="ALLOWED"):
        assert line["address"] == "127.0.0.2"
        assert "attempts" not in line
    assert server.accepted == 3


# The request has come through it before ---------------------------------------------------------


@pytest.fixture
def pseudonym(proxy: Proxy, origin: Origin) -> str:
    """What the proxy calls itself."""
    assert ask(proxy, "GET", f"origin.test:{origin.http}").status == 200
    (via,) = re.findall(rb"\r\nVia: 1\.1 ([^\r]*)\r\n", origin.heads[-1])
    return str(via.decode())


def test_requests_that_have_passed(proxy: Proxy, origin: Origin, pseudonym: str) -> None:
    """RFC 9110 §7.6.3."""
    authority = f"origin.test:{origin.http}"
    for head in (
        "Via: 1.1 {}\r\n",
        "via:1.0 {}\r\n",
        "VIA: HTTP/1.1 {}\r\n",
        "Via: 1.1 other.test, 1.1 {}\r\n",
        "Via: 1.1 {} (egress), 1.1 other.test:3128\r\n",
        "Via: 1.1\t {}\r\n",
        "Via: 1.1 other.test\r\nVia: 1.0 {}\r\n",
        "Via: ,, 1.1 {} ,\r\n",
    ):
        for method in METHODS:
            is_loop(proxy, ask(proxy, method, authority, head=head.format(pseudonym)))
    assert origin.http_server.accepted == 1


def test_requests_that_have_not(proxy: Proxy, origin: Origin, pseudonym: str) -> None:
    authority = f"origin.test:{origin.http}"
    for head in (
        "Via: 1.1 other.test\r\n",
        "Via: 1.1 {}0\r\n",
        "Via: 1.1 x{}\r\n",
        "Via: 1.1 egress-proxy\r\n",
        "X-Via: 1.1 {}\r\n",
        "User-Agent: {}\r\n",
        "Via: 1.1 other.test ({})\r\n",
    ):
        for method in METHODS:
            response = ask(proxy, method, authority, head=head.format(pseudonym))
            assert response.status == 200, head


def test_two_proxies_have_two_names(start_proxy: StartProxy, origin: Origin) -> None:
    """One behind the other is no loop."""
    for proxy in (start_proxy(), start_proxy()):
        assert ask(proxy, "GET", f"origin.test:{origin.http}").status == 200
    names = {re.findall(rb"\r\nVia: ([^\r]*)", head)[0] for head in origin.heads}
    assert len(names) == 2


def test_a_loop_says_nothing_about_what_is_not_allowed(
    proxy: Proxy, origin: Origin, pseudonym: str
) -> None:
    """Nobody is asked for a name's addresses, and no rule is told."""
    head = f"Via: 1.1 {pseudonym}\r\n"
    line = is_loop(proxy, ask(proxy, "CONNECT", "denied.test:443", head=head))
    assert "rule" not in line
    assert "address" not in line
