"""A permission that is taken back reaches what is open."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Any

import bcrypt
import pytest

from tests.conftest import Serve, StartProxy
from tests.support.client import RawClient
from tests.support.dns import Answer, NameServer
from tests.support.proxy import Proxy, configuration, rule, write
from tests.support.serving import Server, echo
from tests.support.tools import wait_until

#: Seconds in which a tunnel must be closed after the file has changed.
IN_TIME = 2.0

Changed = Callable[..., dict[str, Any]]


@pytest.fixture
def changed(name_server: NameServer) -> Changed:
    """Makes a configuration with other rules."""

    def make(*allow: Any, **keys: Any) -> dict[str, Any]:
        return configuration(name_server=name_server.address, allow=list(allow), **keys)

    return make


@pytest.fixture
def server(serve: Serve) -> Server:
    return serve(echo)


def opened(proxy: Proxy, target: str, head: str = "") -> RawClient:
    client = proxy.client()
    assert client.connect(target, head=head).status == 200
    assert goes_on(client)
    return client


def goes_on(client: RawClient) -> bool:
    client.send(b"ping")
    return client.exactly(4) == b"ping"


def wait_for_generation(proxy: Proxy, generation: int) -> None:
    wait_until(lambda: proxy.policy()["generation"] == generation, what=f"generation {generation}")


def test_a_tunnel_that_is_no_longer_allowed_is_closed(
    proxy: Proxy, server: Server, changed: Changed
) -> None:
    with opened(proxy, f"origin.test:{server.port}") as client:
        begun = time.monotonic()
        write(proxy.config, changed("nothing.test"))
        assert client.is_closed()
        assert time.monotonic() - begun < IN_TIME
    line = proxy.wait_for_line(event="CLOSED")
    assert (line["reason"], line["code"]) == ("policy_revoked", "POLICY_BLOCKED")
    assert (line["generation"], line["bytes_sent"], line["bytes_received"]) == (1, 4, 4)
    assert proxy.metrics()["egress_proxy_tunnels_active"] == 0
    assert proxy.wait_for_event("revoked")["connections"] == 1


@pytest.mark.parametrize("why", ["deny", "ask", "port", "subject", "private", "closed-network"])
def test_whatever_takes_the_permission_back(
    proxy: Proxy, server: Server, changed: Changed, why: str
) -> None:
    after = changed(rule("origin.test"))
    policy = after["policies"][0]
    match why:
        case "deny":
            policy["deny"] = ["*.test"]
        case "ask":
            policy["ask"] = [rule("origin.test")]
        case "port":
            policy["allow"] = [rule("origin.test", ports=[1])]
        case "subject":
            policy["subjects"] = [{"cidr": "192.0.2.0/24"}]
        case "private":
            policy["allow"] = [{"host": "origin.test", "ports": ["1-65535"]}]
        case _:
            policy["deny"] = [{"cidr": "127.0.0.0/8"}]
    with opened(proxy, f"origin.test:{server.port}") as client:
        proxy.reload(after)
        assert client.is_closed()
    assert proxy.wait_for_line(event="CLOSED")["reason"] == "policy_revoked"


def test_from_audit_to_enforcement(
    start_proxy: StartProxy, server: Server, changed: Changed
) -> None:
    """What audit mode let through ends when the policy is enforced, and not before."""
    policy = {"name": "test", "ask": [rule("origin.test")]}
    proxy = start_proxy(mode="audit", policies=[policy])
    with opened(proxy, f"origin.test:{server.port}") as client:
        proxy.reload(changed(mode="audit", policies=[policy], drain_timeout="2s"))
        wait_for_generation(proxy, 2)
        assert goes_on(client)
        proxy.reload(changed(policies=[policy]))
        assert client.is_closed()
    assert proxy.wait_for_line(event="CLOSED")["reason"] == "policy_revoked"


def test_what_is_still_allowed_goes_on(proxy: Proxy, server: Server, changed: Changed) -> None:
    """By another rule of another policy, and with other tunnels being closed beside it."""
    with (
        opened(proxy, f"origin.test:{server.port}") as kept,
        opened(proxy, f"origin.test:{server.port}") as kept_too,
    ):
        proxy.reload(changed({**rule("origin.test"), "host": "*.test"}))
        wait_for_generation(proxy, 2)
        assert goes_on(kept)
        proxy.reload(changed("nothing.test", on_revoke="keep"))
        wait_for_generation(proxy, 3)
        assert goes_on(kept)
        assert goes_on(kept_too)
        # Taken back once more, and this time for good.
        proxy.reload(changed("nothing.test", on_revoke="close"))
        assert kept.is_closed()
        assert kept_too.is_closed()
    assert proxy.wait_for_event("revoked")["connections"] == 2


def test_a_broken_file_closes_nothing(proxy: Proxy, server: Server, changed: Changed) -> None:
    with opened(proxy, f"origin.test:{server.port}") as client:
        proxy.reload("version: 1\npolicies: [{name: a, allow: [.broken]}]\n")
        proxy.wait_for_event("reload_failed")
        assert goes_on(client)


def test_a_download_is_closed_too(start_proxy: StartProxy, serve: Serve, changed: Changed) -> None:
    def endless(connection: Any) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\nbegin")
        connection.recv(1)

    server = serve(endless)
    proxy = start_proxy()
    with proxy.client() as client:
        client.send(f"GET http://origin.test:{server.port}/ HTTP/1.1\r\nHost: origin.test\r\n\r\n")
        client.until(b"begin")
        proxy.reload(changed("nothing.test"))
        assert client.is_closed()
    assert proxy.wait_for_line(event="CLOSED")["reason"] == "policy_revoked"


def test_a_request_under_way_is_refused_by_the_new_policy(
    start_proxy: StartProxy, server: Server, changed: Changed, name_server: NameServer
) -> None:
    """It was allowed, then its name took a while, and by then it no longer is."""
    name_server.set("slow.test", Answer(("127.0.0.1",), delay=0.8))
    proxy = start_proxy(allow=[rule("slow.test")], dns={"timeout": "9s"})
    with proxy.client() as client:
        client.send(f"CONNECT slow.test:{server.port} HTTP/1.1\r\nHost: slow.test\r\n\r\n")
        wait_until(lambda: name_server.asked("slow.test"), what="a question")
        proxy.reload(changed("nothing.test"))
        wait_for_generation(proxy, 2)
        response = client.response()
        assert (response.status, response.error["reason"]) == (403, "host_not_allowed")
    line = proxy.wait_for_line(event="DENIED")
    assert line["generation"] == 2
    assert "rule" not in line


USER = "Proxy-Authorization: Basic YWxpY2U6c2VjcmV0\r\n"  # alice:secret


@pytest.mark.parametrize("way", ["removed", "another-password", "untouched", "required"])
def test_a_user_s_permission(
    start_proxy: StartProxy, server: Server, changed: Changed, way: str, tmp_path: Any
) -> None:
    def hashed(password: str) -> str:
        return bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()

    users = tmp_path / "users"
    alice = f"alice:{hashed('secret')}\n"
    users.write_text(alice)
    credentials = {"users_file": str(users)}
    proxy = start_proxy(credentials=credentials)
    target = f"origin.test:{server.port}"
    with opened(proxy, target, USER) as client, opened(proxy, target) as nobody:
        match way:
            case "removed":
                users.write_text(f"bob:{hashed('secret')}\n")
                proxy.signal(signal.SIGHUP)
                assert client.is_closed()
                assert goes_on(nobody)
            case "another-password":
                users.write_text(f"alice:{hashed('other')}\n")
                proxy.signal(signal.SIGHUP)
                assert client.is_closed()
                assert goes_on(nobody)
            case "untouched":
                users.write_text(f"{alice}bob:{hashed('secret')}\n")
                wait_for_generation(proxy, 2)
                assert goes_on(client)
                assert goes_on(nobody)
            case _:
                required = {**credentials, "required": True}
                proxy.reload(changed(rule("origin.test"), credentials=required))
                assert nobody.is_closed()
                assert goes_on(client)
