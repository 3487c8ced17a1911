"""`tls: verify` among the rules: addresses as destinations, several rules for one host, and audit mode."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.conftest import Serve, StartProxy
from tests.support.edges import at_rest
from tests.support.held import BANNER, HELLO, Keeper, denials, is_refused, opened
from tests.support.hellos import client_hello
from tests.support.origin import Origin
from tests.support.proxy import ANY_PORT, Proxy, rule
from tests.support.serving import Server, answer_after_eof, echo, greet

VERIFIED = rule("origin.test", tls="verify")
LONG = {"client_hello": "30s"}


@pytest.fixture
def server(serve: Serve) -> Server:
    return serve(echo)


def _passes(proxy: Proxy, authority: str, said: bytes) -> None:
    """All of it comes back, and so does more."""
    with opened(proxy, authority, b"", said) as client:
        assert client.exactly(len(said)) == said
        client.send(b"more")
        client.eof()
        assert client.rest() == b"more"


# Addresses --------------------------------------------------------------------------------------


def _network(tls: str | None = None) -> dict[str, Any]:
    """A rule for loopback's addresses, verified by default."""
    return {"cidr": "127.0.0.0/8", "ports": ANY_PORT} | ({"tls": tls} if tls else {})


def test_an_address_needs_no_name(start_proxy: StartProxy, server: Server) -> None:
    """Nobody has a name to tell who asks for an address (RFC 6066 §3); some clients tell the address itself."""
    proxy = start_proxy(allow=[_network()])
    for spelling in ("127.0.0.1", "127.1", "[::ffff:127.0.0.1]"):
        _passes(proxy, f"{spelling}:{server.port}", client_hello(None))
        _passes(proxy, f"{spelling}:{server.port}", client_hello("127.0.0.1"))
    lines = proxy.wait_for_lines(6, event="ALLOWED", host="127.0.0.1")
    assert [line.get("sni") for line in lines] == [None, "127.0.0.1"] * 3
    at_rest(proxy)


def test_an_address_is_no_way_to_a_name(start_proxy: StartProxy, serve: Serve) -> None:
    keeper = Keeper()
    target = f"127.0.0.1:{serve(keeper).port}"
    proxy = start_proxy(allow=[_network(), VERIFIED])
    for count, name in enumerate(["origin.test", "other.test", "127.0.0.2"], 1):
        with opened(proxy, target, client_hello(name)) as client:
            is_refused(proxy, client, "sni_mismatch", count=count, sni=name, host="127.0.0.1")
    with opened(proxy, target, b"GET / HTTP/1.1\r\n\r\n") as client:
        is_refused(proxy, client, "tunnel_not_tls")
    with opened(proxy, target, client_hello("0x7f000001")) as client:
        is_refused(proxy, client, "client_hello_malformed")
    keeper.got_nothing()
    at_rest(proxy)


def test_an_ipv6_address(start_proxy: StartProxy, serve: Serve) -> None:
    keeper = Keeper(echo=True)
    try:
        server = serve(keeper, host="::1")
    except OSError:
        pytest.skip("this machine has no IPv6")
    proxy = start_proxy(allow=[{"cidr": "::1/128", "ports": ANY_PORT}])
    _passes(proxy, f"[::1]:{server.port}", client_hello(None))
    with opened(proxy, f"[::1]:{server.port}", client_hello("origin.test")) as client:
        is_refused(proxy, client, "sni_mismatch")
    # An IPv6 address is no host name in any spelling.
    with opened(proxy, f"[::1]:{server.port}", client_hello("::1")) as client:
        is_refused(proxy, client, "client_hello_malformed")
    assert len([said for said in keeper.said if said]) == 1
    at_rest(proxy)


def test_off_lifts_it_for_addresses(start_proxy: StartProxy, server: Server) -> None:
    proxy = start_proxy(allow=[_network("off")])
    for said in (b"GET / HTTP/1.1\r\n\r\n", client_hello("other.test"), b"\x16"):
        _passes(proxy, f"127.0.0.1:{server.port}", said)
    at_rest(proxy)


# Several rules ----------------------------------------------------------------------------------


def test_off_lifts_all_of_it(start_proxy: StartProxy, serve: Serve) -> None:
    """A server that speaks first, too. Nothing is read, so nothing of it stands in the line."""
    proxy = start_proxy(allow=[rule("origin.test", tls="off")], timeouts={"client_hello": "100ms"})
    server = serve(greet)
    with opened(proxy, f"origin.test:{server.port}") as client:
        assert client.until(b"\n") == b"220 origin.test ready\r\n"
        time.sleep(0.25)  # a look at the deadlines
        client.send(client_hello("other.test"))
        client.exactly(len(client_hello("other.test")))
    assert "sni" not in proxy.wait_for_line(event="ALLOWED")
    at_rest(proxy)


@pytest.mark.parametrize(
    ("rules", "lifted"),
    [
        ([VERIFIED, rule("origin.test", tls="off")], True),
        ([VERIFIED, rule("*.test", tls="off")], True),
        ([rule("*.test", tls="verify"), rule("origin.test", tls="off")], True),
        ([VERIFIED, rule("other.test", tls="off")], False),
        ([VERIFIED, rule("origin.test", ports=[22], tls="off")], False),
        ([VERIFIED, {"cidr": "127.0.0.0/8", "ports": ANY_PORT, "tls": "off"}], False),
    ],
    ids=["same host", "wildcard", "below a wildcard", "other host", "other port", "its network"],
)
def test_one_rule_with_off_is_enough(
    start_proxy: StartProxy, server: Server, rules: list[Any], lifted: bool
) -> None:
    """If it names this host, and this port; its network is no matter of names."""
    proxy = start_proxy(allow=rules)
    target = f"origin.test:{server.port}"
    if lifted:
        _passes(proxy, target, b"SSH-2.0-client\r\n")
    else:
        with opened(proxy, target, b"SSH-2.0-client\r\n") as client:
            is_refused(proxy, client, "tunnel_not_tls")
        _passes(proxy, target, HELLO)
    at_rest(proxy)


def test_another_s_off_lifts_nothing(start_proxy: StartProxy, server: Server) -> None:
    """Of a policy that is for somebody else."""
    proxy = start_proxy(
        policies=[
            {"name": "everyone", "allow": [VERIFIED]},
            {
                "name": "others",
                "subjects": [{"cidr": "192.0.2.0/24"}],
                "allow": [rule("origin.test", tls="off")],
            },
        ]
    )
    with opened(proxy, f"origin.test:{server.port}", b"SSH-2.0-client\r\n") as client:
        is_refused(proxy, client, "tunnel_not_tls", policy="everyone")
    at_rest(proxy)


def test_absolute_form_is_not_concerned(start_proxy: StartProxy, origin: Origin) -> None:
    proxy = start_proxy(allow=[VERIFIED])
    with proxy.client() as client:
        for _ in range(2):
            assert client.get(f"http://origin.test:{origin.http}/").status == 200
    assert not any("sni" in line for line in proxy.wait_for_lines(2, event="ALLOWED"))
    at_rest(proxy)


def test_a_tunnel_behind_a_request_on_the_same_connection(
    start_proxy: StartProxy, origin: Origin, server: Server
) -> None:
    proxy = start_proxy(allow=[VERIFIED], timeouts=LONG)
    for hello, passes in ((HELLO, True), (client_hello("other.test"), False)):
        with proxy.client() as client:
            assert client.get(f"http://origin.test:{origin.http}/").status == 200
            assert client.connect(f"origin.test:{server.port}").status == 200
            client.send(hello)
            if passes:
                assert client.exactly(len(hello)) == hello
            else:
                is_refused(proxy, client, "sni_mismatch")
    at_rest(proxy)


# Audit mode -------------------------------------------------------------------------------------

NOT_ALLOWED = {
    "sni_mismatch": client_hello("other.test"),
    "sni_missing": client_hello(None),
    "tunnel_not_tls": b"GET / HTTP/1.1\r\n\r\n",
    "client_hello_malformed": client_hello("*"),
}


@pytest.fixture
def auditing(start_proxy: StartProxy) -> Proxy:
    return start_proxy(mode="audit", allow=[VERIFIED], timeouts=LONG)


def _would_deny(proxy: Proxy, reason: str) -> dict[str, Any]:
    line = proxy.wait_for_line(event="WOULD_DENY", reason=reason)
    assert (line["status"], line["code"]) == (200, "POLICY_BLOCKED")
    assert "DENIED" not in proxy.stdout
    assert denials(proxy) == {}
    return line


@pytest.mark.parametrize("early", [True, False])
def test_audit_mode_tells_and_passes(auditing: Proxy, server: Server, early: bool) -> None:
    for reason, beginning in NOT_ALLOWED.items():
        said = beginning + bytes(50_000)
        parts = (said,) if early else (b"", said)
        with opened(auditing, f"origin.test:{server.port}", *parts) as client:
            assert client.exactly(len(said)) == said
            client.send(b"more")
            client.eof()
            assert client.rest() == b"more"
        line = _would_deny(auditing, reason)
        assert line["bytes_sent"] == line["bytes_received"] == len(said) + 4
    at_rest(auditing)


def test_audit_mode_says_nothing_of_what_is_in_order(auditing: Proxy, server: Server) -> None:
    _passes(auditing, f"origin.test:{server.port}", HELLO)
    assert "reason" not in auditing.wait_for_line(event="ALLOWED", sni="origin.test")


def test_audit_mode_lets_a_server_speak_first(auditing: Proxy, serve: Serve) -> None:
    begun = time.monotonic()
    with opened(auditing, f"origin.test:{serve(greet).port}") as client:
        assert client.until(b"\n") == b"220 origin.test ready\r\n"
        assert time.monotonic() - begun < 5
        client.send(b"EHLO\r\n")
        assert client.until(b"\n") == b"EHLO\r\n"
    _would_deny(auditing, "tunnel_not_tls")
    at_rest(auditing)


@pytest.mark.parametrize("size", [0, 50])
@pytest.mark.parametrize("speaks", ["answers", "has spoken"])
def test_audit_mode_passes_an_end_on(auditing: Proxy, serve: Serve, size: int, speaks: str) -> None:
    """Of a client that has sent nothing, too: what the server says then is what it came for."""
    handler = answer_after_eof if speaks == "answers" else Keeper(greeting=BANNER, echo=True)
    with opened(auditing, f"origin.test:{serve(handler).port}", b"", HELLO[:size]) as client:
        if speaks == "answers":
            assert client.is_silent(0.05)
        client.eof()
        expected = (b"you said: " if speaks == "answers" else BANNER) + HELLO[:size]
        assert client.rest() == expected
    at_rest(auditing)


def test_audit_mode_passes_what_came_too_late(start_proxy: StartProxy, server: Server) -> None:
    proxy = start_proxy(mode="audit", allow=[VERIFIED], timeouts={"client_hello": "200ms"})
    with opened(proxy, f"origin.test:{server.port}", b"", HELLO[:50]) as client:
        assert client.exactly(50) == HELLO[:50]
        client.send(HELLO[50:])
        assert client.exactly(len(HELLO) - 50) == HELLO[50:]
    _would_deny(proxy, "client_hello_timeout")
    at_rest(proxy)


def test_audit_mode_tells_of_the_rule_first(start_proxy: StartProxy, lan_origin: Origin) -> None:
    """Where no rule names the host, that is what must be mended, whatever the tunnel carries."""
    proxy = start_proxy(mode="audit", allow=["nothing.test"], timeouts=LONG)
    with opened(proxy, f"origin.test:{lan_origin.http}", b"GET / HTTP/1.1\r\n\r\n") as client:
        assert client.until(b"\r\n") == b"HTTP/1.1 200 OK\r\n"
    assert "DENIED" not in proxy.stdout
    proxy.wait_for_line(event="WOULD_DENY", reason="host_not_allowed")
    at_rest(proxy)
