"""Every client that people put behind a proxy: fetching, and being refused, by CONNECT and in absolute-form."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.conftest import StartProxy
from tests.support.certificates import Authority
from tests.support.clients import HTTP_CLIENTS, Client, environment, need
from tests.support.origin import Origin
from tests.support.proxy import Proxy

pytestmark = pytest.mark.e2e

every_client = pytest.mark.parametrize("client", HTTP_CLIENTS, ids=lambda client: client.name)


@pytest.fixture
def env(proxy: Proxy, authority: Authority, tmp_path: Path) -> dict[str, str]:
    return environment(proxy.url, authority, tmp_path / "home")


@every_client
def test_tls_through_connect(
    client: Client, proxy: Proxy, origin: Origin, env: dict[str, str]
) -> None:
    need(client.program)
    fetched = client.fetch(f"https://origin.test:{origin.https}/", env)
    assert (fetched.exit, fetched.status) == (0, 200), fetched.said
    assert fetched.body == b"hello from https\n"
    (line,) = proxy.stop()
    assert (line["event"], line["method"]) == ("ALLOWED", "CONNECT")
    assert (line["host"], line["port"]) == ("origin.test", origin.https)
    assert (line["status"], line["sni"]) == (200, "origin.test")
    assert "path" not in line


@every_client
def test_plain_http_in_absolute_form(
    client: Client, proxy: Proxy, origin: Origin, env: dict[str, str]
) -> None:
    need(client.program)
    fetched = client.fetch(f"http://origin.test:{origin.http}/?secret=1", env)
    assert (fetched.exit, fetched.status) == (0, 200), fetched.said
    assert fetched.body == b"hello from http\n"
    (line,) = proxy.stop()
    assert (line["event"], line["method"]) == ("ALLOWED", "GET")
    assert (line["host"], line["port"], line["path"]) == ("origin.test", origin.http, "/")
    assert "secret" not in proxy.stdout
    (head,) = origin.heads
    assert f"\r\nHost: origin.test:{origin.http}\r\n".encode() in head
    assert b"\r\nproxy-" not in head.lower()


def _the_one_denial(proxy: Proxy, method: str) -> None:
    (line,) = proxy.stop()
    assert proxy.stdout.count("DENIED") == 1
    assert (line["event"], line["method"]) == ("DENIED", method)
    assert (line["code"], line["reason"]) == ("POLICY_BLOCKED", "host_not_allowed")
    assert line["host"] == "denied.test"


def _says_why(headers: dict[str, str]) -> None:
    assert headers["x-egress-error"] == "POLICY_BLOCKED"
    assert "error=http_request_denied" in headers["proxy-status"]
    assert headers["content-type"] == "application/json"
    assert "retry-after" not in headers


@every_client
def test_connect_is_refused(
    client: Client, proxy: Proxy, origin: Origin, env: dict[str, str]
) -> None:
    need(client.program)
    fetched = client.fetch(f"https://denied.test:{origin.https}/", env)
    assert fetched.exit == client.tunnel_exit, fetched.said
    assert re.search(client.tunnel_says, fetched.said, re.DOTALL), fetched.said
    if client.tunnel_headers:
        _says_why(fetched.headers)
    assert origin.heads == []
    _the_one_denial(proxy, "CONNECT")


@every_client
def test_absolute_form_is_refused(
    client: Client, proxy: Proxy, origin: Origin, env: dict[str, str]
) -> None:
    need(client.program)
    fetched = client.fetch(f"http://denied.test:{origin.http}/", env)
    assert (fetched.exit, fetched.status) == (client.forward_exit, 403), fetched.said
    _says_why(fetched.headers)
    assert fetched.body is not None
    error = json.loads(fetched.body)["error"]
    assert (error["code"], error["reason"]) == ("POLICY_BLOCKED", "host_not_allowed")
    assert (error["host"], error["port"], error["retry"]) == ("denied.test", origin.http, False)
    assert origin.heads == []
    _the_one_denial(proxy, "GET")
    assert error["request_id"] == proxy.lines[0]["request_id"]


@every_client
def test_audit_mode_lets_it_through(
    client: Client,
    start_proxy: StartProxy,
    lan_origin: Origin,
    authority: Authority,
    tmp_path: Path,
) -> None:
    need(client.program)
    proxy = start_proxy(mode="audit", allow=["nothing.test"])
    env = environment(proxy.url, authority, tmp_path / "home")
    fetched = client.fetch(f"https://origin.test:{lan_origin.https}/", env)
    assert fetched.body == b"hello from https\n", fetched.said
    (line,) = proxy.stop()
    assert (line["event"], line["reason"]) == ("WOULD_DENY", "host_not_allowed")
    assert "DENIED" not in proxy.stdout
