"""A parent proxy between us and the world: ours is the parent, too."""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Serve, StartProxy
from tests.support.certificates import Authority
from tests.support.client import Response
from tests.support.credentials import authorization, write_users
from tests.support.dns import SERVFAIL, Answer, NameServer
from tests.support.origin import Origin
from tests.support.parent import (
    ESTABLISHED,
    ScriptedParent,
    ask,
    plain,
    reloaded,
    then_echoes,
    through,
)
from tests.support.proxy import Proxy, rule
from tests.support.serving import echo, full_backlog, say_nothing
from tests.support.tools import MIB, blocks, wait_until

METHODS = pytest.mark.parametrize("method", ["CONNECT", "GET"])
#: The name of the origin, which the parent alone can resolve.
FAR = "far.test"


@pytest.fixture
def far_name_server() -> Iterator[NameServer]:
    """The parent's: it knows ``far.test`` on loopback."""
    with NameServer() as server:
        server.set(FAR, "127.0.0.1")
        yield server


@pytest.fixture
def far(start_proxy: StartProxy, far_name_server: NameServer) -> Proxy:
    """A parent that lets ``far.test`` through."""
    return start_proxy(allow=[rule(FAR)], dns={"servers": [far_name_server.address]})


@pytest.fixture
def proxy(start_proxy: StartProxy, far: Proxy) -> Proxy:
    """One whose parent is ``far``, and whose own name server does not know ``far.test``."""
    return start_proxy(allow=[plain(FAR)], upstream=through(far))


# The way through -------------------------------------------------------------------------------------------------


def test_a_tunnel_through_two_proxies(
    proxy: Proxy, far: Proxy, serve: Serve, name_server: NameServer
) -> None:
    server = serve(echo)
    with proxy.client() as client:
        assert client.connect(f"{FAR}:{server.port}").status == 200
        for size in (1, 70_000, 3 * MIB):
            data = b"".join(map(bytes, blocks(size)))
            sender = threading.Thread(target=client.send, args=(data,))
            sender.start()
            assert client.exactly(size) == data
            sender.join()
        client.eof()
        assert client.rest() == b""
    total = 70_001 + 3 * MIB
    line = proxy.wait_for_line(event="ALLOWED", host=FAR)
    assert (line["bytes_sent"], line["bytes_received"]) == (total, total)
    assert (line["parent"], line["address"]) == (far.address, "127.0.0.1")
    assert line["connect_ms"] >= 0
    # The parent is written as an address, and the destination's name is its business.
    assert "dns" not in line
    assert "dns_ms" not in line
    assert not name_server.queries
    theirs = far.wait_for_line(event="ALLOWED", host=FAR)
    assert (theirs["address"], theirs["bytes_sent"]) == ("127.0.0.1", total)
    assert "parent" not in theirs


def test_tls_through_two_proxies(
    start_proxy: StartProxy, far_name_server: NameServer, authority: Authority, origin: Origin
) -> None:
    """Both hold the tunnel until its handshake names the host."""
    far_name_server.set("origin.test", "127.0.0.1")
    verified = rule("origin.test", tls="verify")
    far = start_proxy(allow=[verified], dns={"servers": [far_name_server.address]})
    proxy = start_proxy(allow=[verified], upstream=through(far))
    with proxy.client() as client:
        assert client.connect(f"origin.test:{origin.https}").status == 200
        context = authority.client_context()
        with context.wrap_socket(client.socket, server_hostname="origin.test") as tls:
            tls.sendall(b"GET / HTTP/1.1\r\nHost: origin.test\r\nConnection: close\r\n\r\n")
            assert b"hello from https" in b"".join(iter(lambda: tls.recv(65536), b""))
    for each in (proxy, far):
        assert each.wait_for_line(event="ALLOWED")["sni"] == "origin.test"


def test_plain_requests_through_two_proxies(proxy: Proxy, far: Proxy, origin: Origin) -> None:
    base = f"http://{FAR}:{origin.http}"
    body = b"".join(map(bytes, blocks(MIB)))
    with proxy.client() as client:
        head = "Proxy-Authorization: Basic Y2xpZW50OnNlY3JldA==\r\nX-Kept: yes\r\n"
        seen = client.get(f"{base}/head?a=b", head=head).body.decode().split("\r\n")
        got = client.get(
            f"{base}/upload", method="POST", head=f"Content-Length: {MIB}\r\n", body=body
        )
        assert client.get(f"{base}/chunked/300000").status == 200
        assert client.get(f"{base}/bytes/5", method="HEAD")["content-length"] == "5"
    assert seen[0] == "GET /head?a=b HTTP/1.1"
    assert "X-Kept: yes" in seen
    assert not [line for line in seen if line.lower().startswith("proxy-")]
    via = [line.removeprefix("Via: ") for line in seen if line.startswith("Via: ")]
    assert len(via) == 2
    assert len({*via}) == 2
    uploaded = json.loads(got.body)
    assert (uploaded["length"], uploaded["sha256"]) == (MIB, hashlib.sha256(body).hexdigest())
    for line in proxy.wait_for_lines(4, event="ALLOWED"):
        assert (line["host"], line["parent"]) == (FAR, far.address)


def test_a_parent_by_name(
    start_proxy: StartProxy, far: Proxy, serve: Serve, name_server: NameServer
) -> None:
    name_server.set("proxy.test", "127.0.0.1")
    port = far.address.rpartition(":")[2]
    proxy = start_proxy(allow=[plain(FAR)], upstream={"proxy": f"http://Proxy.TEST:{port}"})
    authority = f"{FAR}:{serve(echo).port}"
    for dns in ("miss", "hit"):
        assert ask(proxy, "CONNECT", authority).status == 200
        line = proxy.wait_for_line(dns=dns)
        assert (line["host"], line["parent"]) == (FAR, f"proxy.test:{port}")
        assert ("dns_ms" in line) == (dns == "miss")
    assert name_server.asked("proxy.test") == 1
    assert name_server.asked(FAR) == 0


def test_the_parent_s_addresses_are_tried_in_turn(
    start_proxy: StartProxy, serve: Serve, name_server: NameServer
) -> None:
    parent = serve(ScriptedParent(then_echoes(ESTABLISHED)), host="127.0.0.2")
    name_server.set("proxy.test", Answer(("127.0.0.1", "127.0.0.2")))
    proxy = start_proxy(allow=[plain(FAR)], upstream={"proxy": f"http://proxy.test:{parent.port}"})
    for _ in range(3):
        assert ask(proxy, "CONNECT", f"{FAR}:443").status == 200
    lines = proxy.wait_for_lines(3, event="ALLOWED", address="127.0.0.2")
    failed = [line["failed"] for line in lines if "failed" in line]
    assert failed == [["127.0.0.1 connection_refused"]] * len(failed)
    assert failed


# Who goes through it, and who does not ---------------------------------------------------------------------------


def test_each_destination_its_own_way(
    start_proxy: StartProxy, serve: Serve, origin: Origin, name_server: NameServer
) -> None:
    common, other = (ScriptedParent(then_echoes(ESTABLISHED)) for _ in range(2))
    for name in ("a.direct.test", "svc.test"):
        name_server.set(name, "127.0.0.1")
    proxy = start_proxy(
        allow=[
            plain("*.test"),
            rule("*.direct.test"),
            rule("origin.test") | {"upstream": "direct"},
            rule("svc.test"),
            plain("*.other.test") | {"upstream": through(serve(other))},
            {"cidr": "127.0.0.0/8", "ports": ["1-65535"], "tls": "off"},
        ],
        upstream=through(serve(common), no_proxy=["*.direct.test", "svc.test", "127.0.0.0/8"]),
    )
    for host in ("origin.test", "a.direct.test", "svc.test", "127.0.0.1"):
        assert ask(proxy, "GET", f"{host}:{origin.http}").status == 200
        assert "parent" not in proxy.wait_for_line(host=host)
    for host in ("a.test", "direct.test", "b.svc.test", "a.other.test", "other.test"):
        assert ask(proxy, "CONNECT", f"{host}:443").status == 200
    asked = [[head.split()[1].decode() for head in parent.heads] for parent in (common, other)]
    assert asked == [
        ["a.test:443", "direct.test:443", "b.svc.test:443", "other.test:443"],
        ["a.other.test:443"],
    ]


@METHODS
@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.1",
        "[::1]",
        "10.0.0.1",
        "169.254.169.254",
        "[::ffff:10.0.0.1]",
        "localhost",
    ],
)
def test_what_is_known_to_be_special_is_refused_here(
    start_proxy: StartProxy, serve: Serve, method: str, host: str
) -> None:
    parent = serve(say_nothing)
    cidrs = [{"cidr": network, "ports": ["1-65535"]} for network in ("0.0.0.0/0", "::/0")]
    proxy = start_proxy(allow=[plain("*"), *cidrs], upstream=through(parent))
    response = ask(proxy, method, f"{host}:80")
    assert response.error["reason"] == "destination_ip_prohibited"
    assert "parent" not in proxy.wait_for_line(event="DENIED")
    assert parent.accepted == 0


def test_a_network_that_a_rule_opens_is_open_behind_the_parent(
    start_proxy: StartProxy, serve: Serve
) -> None:
    parent = ScriptedParent(then_echoes(ESTABLISHED))
    opened = {"cidr": "10.0.0.0/8", "tls": "off"}
    local = rule("localhost", allow_private=["127.0.0.0/8"])
    proxy = start_proxy(allow=[opened, local], upstream=through(serve(parent)))
    for host in ("10.0.0.1", "localhost"):
        assert ask(proxy, "CONNECT", f"{host}:443").status == 200
    assert [head.split()[1] for head in parent.heads] == [b"10.0.0.1:443", b"localhost:443"]


@METHODS
def test_what_no_rule_allows_does_not_reach_the_parent(
    start_proxy: StartProxy, serve: Serve, method: str
) -> None:
    parent = serve(say_nothing)
    proxy = start_proxy(allow=[plain(FAR)], deny=["no.far.test"], upstream=through(parent))
    for host, reason in (("no.far.test", "deny_rule"), ("other.test", "host_not_allowed")):
        assert ask(proxy, method, f"{host}:80").error["reason"] == reason
    assert parent.accepted == 0


def test_audit_mode_goes_through_the_parent(
    start_proxy: StartProxy, far: Proxy, serve: Serve
) -> None:
    proxy = start_proxy(allow=[plain("a.test")], mode="audit", upstream=through(far))
    assert ask(proxy, "CONNECT", f"{FAR}:{serve(echo).port}").status == 200
    line = proxy.wait_for_line(event="WOULD_DENY")
    assert (line["reason"], line["parent"]) == ("host_not_allowed", far.address)


# Never past it ---------------------------------------------------------------------------------------------------


def _failed(proxy: Proxy, response: Response, status: int, reason: str, detail: str) -> None:
    assert (response.status, response.error["reason"]) == (status, reason)
    assert response.error["message"].endswith(f": {detail}.")
    line = proxy.wait_for_line(event="FAILED")
    assert (line["reason"], line["status"]) == (reason, status)
    assert "parent" in line


@METHODS
@pytest.mark.parametrize("how", ["refused", "unknown name", "no answer", "no use", "full"])
def test_a_parent_that_cannot_be_reached(
    start_proxy: StartProxy, origin: Origin, name_server: NameServer, method: str, how: str
) -> None:
    """The origin could be reached directly, and is not."""
    with contextlib.ExitStack() as stack:
        taken = stack.enter_context(socket.socket())
        taken.bind(("127.0.0.1", 0))
        port, host = taken.getsockname()[1], "127.0.0.1"
        status, reason, detail = 502, "parent_unreachable", "connection_refused"
        match how:
            case "unknown name":
                host, detail = "proxy.test", "dns_nxdomain"
            case "no answer":
                host, detail = "proxy.test", "dns_failure"
                name_server.set(host, SERVFAIL)
            case "no use":
                host, detail = "proxy.test", "dns_no_address"
                name_server.set(host, Answer(("0.0.0.0", "224.0.0.1")))
            case "full":
                port = stack.enter_context(full_backlog())
                status, reason = 504, "parent_timeout"
                detail = "it did not accept the connection in time"
        proxy = start_proxy(
            upstream={"proxy": f"http://{host}:{port}"},
            timeouts={"connect": "300ms", "connect_attempt": "300ms"},
        )
        response = ask(proxy, method, f"origin.test:{origin.http}")
    _failed(proxy, response, status, reason, detail)
    assert origin.http_server.accepted == 0
    assert name_server.asked("origin.test") == 0


def test_a_parent_that_refuses(proxy: Proxy, far: Proxy, name_server: NameServer) -> None:
    """It has the last word about a tunnel; about a plain request, its own words."""
    response = ask(proxy, "CONNECT", f"{FAR}:1")
    # Nobody listens there.
    _failed(proxy, response, 502, "parent_failed", "it answered 502")
    name_server.set(FAR, "127.0.0.1")
    reloaded(far, name_server, allow=["a.test"])
    response = ask(proxy, "CONNECT", f"{FAR}:443")
    assert (response.status, response.error["reason"]) == (403, "parent_refused")
    assert response.error["message"].endswith(": it answered 403.")
    assert response.error["retry"] is False
    response = ask(proxy, "GET", f"{FAR}:80")
    assert (response.status, response.error["reason"]) == (403, "host_not_allowed")


# Credentials -----------------------------------------------------------------------------------------------------


def _with_users(start_proxy: StartProxy, far_name_server: NameServer, users: Path) -> Proxy:
    return start_proxy(
        allow=[rule(FAR)],
        dns={"servers": [far_name_server.address]},
        credentials={"users_file": str(users), "required": True},
    )


@METHODS
@pytest.mark.parametrize("shown", ["right", "wrong", "none"])
def test_credentials_for_the_parent(
    start_proxy: StartProxy,
    far_name_server: NameServer,
    origin: Origin,
    tmp_path: Path,
    method: str,
    shown: str,
) -> None:
    users = write_users(tmp_path / "users", proxy="se:cret")
    far = _with_users(start_proxy, far_name_server, users)
    (tmp_path / "parent").write_text({"right": "proxy:se:cret\n"}.get(shown, "proxy:wrong-one"))
    more = {} if shown == "none" else {"credentials_file": str(tmp_path / "parent")}
    proxy = start_proxy(allow=[plain(FAR)], upstream=through(far, **more))
    # What the client shows is not for the parent.
    response = ask(proxy, method, f"{FAR}:{origin.http}", head=authorization("proxy", "se:cret"))
    if shown == "right":
        assert response.status == 200
        assert far.wait_for_line(event="ALLOWED")["user"] == "proxy"
    else:
        assert (response.status, response.error["reason"]) == (502, "parent_credentials")
        assert "proxy-authenticate" not in response
        why = "proxy_credentials_required" if shown == "none" else "proxy_credentials_wrong"
        assert far.wait_for_line(event="DENIED")["reason"] == why
    for secret in ("se:cret", "wrong-one", "cHJveHk6"):
        assert secret not in proxy.stdout + proxy.stderr + str(proxy.policy())


def test_clients_and_the_proxy_have_credentials_of_their_own(
    start_proxy: StartProxy, far_name_server: NameServer, origin: Origin, tmp_path: Path
) -> None:
    far = _with_users(
        start_proxy, far_name_server, write_users(tmp_path / "theirs", proxy="secret")
    )
    (tmp_path / "parent").write_text("proxy:secret")
    proxy = start_proxy(
        allow=[plain(FAR)],
        credentials={
            "users_file": str(write_users(tmp_path / "ours", alice="hers")),
            "required": True,
        },
        upstream=through(far, credentials_file=str(tmp_path / "parent")),
    )
    authority = f"{FAR}:{origin.http}"
    assert ask(proxy, "GET", authority).status == 407
    assert ask(proxy, "GET", authority, head=authorization("alice", "hers")).status == 200
    assert proxy.wait_for_line(event="ALLOWED")["user"] == "alice"
    assert far.wait_for_line(event="ALLOWED")["user"] == "proxy"
    assert not any(b"roxy-Authorization" in head for head in origin.heads)


def test_new_credentials_are_used_when_their_file_changes(
    start_proxy: StartProxy, far_name_server: NameServer, serve: Serve, tmp_path: Path
) -> None:
    users = write_users(tmp_path / "users", proxy="new")
    far = _with_users(start_proxy, far_name_server, users)
    file = tmp_path / "parent"
    file.write_text("proxy:old")
    proxy = start_proxy(allow=[plain(FAR)], upstream=through(far, credentials_file=str(file)))
    before = proxy.policy()
    authority = f"{FAR}:{serve(echo).port}"
    assert ask(proxy, "CONNECT", authority).error["reason"] == "parent_credentials"
    file.write_text("proxy:new")
    wait_until(lambda: proxy.policy()["generation"] == 2)
    # Who may see the hash could try passwords on it.
    assert proxy.policy()["hash"] == before["hash"]
    assert ask(proxy, "CONNECT", authority).status == 200
