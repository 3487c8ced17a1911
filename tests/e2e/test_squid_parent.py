"""A real Squid as the parent proxy, with users and rules of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import StartProxy
from tests.migrate.real_squid import RealSquid, need_squid, running_squid
from tests.support.certificates import Authority
from tests.support.client import Response
from tests.support.origin import Origin
from tests.support.proxy import Proxy, rule
from tests.support.tools import MIB, blocks, digest_of_blocks

pytestmark = pytest.mark.e2e

METHODS = pytest.mark.parametrize("method", ["CONNECT", "GET"])

_HELPER = """\
while read user password; do
  if [ "$user $password" = "proxy s:ecret" ]; then echo OK; else echo ERR; fi
done
"""
_RULES = """\
auth_param basic program /bin/sh {folder}/helper.sh
auth_param basic realm theirs
acl known proxy_auth REQUIRED
acl fine dstdomain origin.test
http_access deny !known
http_access allow fine
http_access deny all
"""


@pytest.fixture
def squid(tmp_path: Path) -> Iterator[RealSquid]:
    """It asks for credentials, and lets one name through."""
    need_squid()
    folder = tmp_path / "squid"
    folder.mkdir()
    (folder / "helper.sh").write_text(_HELPER)
    names = [("origin.test", "127.0.0.1"), ("other.test", "127.0.0.1")]
    with running_squid(folder, _RULES.format(folder=folder), names) as running:
        yield running


@pytest.fixture
def behind(start_proxy: StartProxy, squid: RealSquid, tmp_path: Path) -> Proxy:
    """A proxy that allows what it is asked for, and knows Squid's password but not the origin's address."""
    (tmp_path / "parent").write_text("proxy:s:ecret\n")
    return start_proxy(
        allow=[_plain("*.test"), _plain("*.test", tls="verify", ports=[443])],
        dns={"servers": ["127.0.0.1:1"]},
        upstream={
            "proxy": f"http://127.0.0.1:{squid.port}",
            "credentials_file": str(tmp_path / "parent"),
        },
    )


def _plain(host: str, **more: Any) -> dict[str, Any]:
    return rule(host, allow_private=[], **more)


def _ask(proxy: Proxy, method: str, authority: str) -> Response:
    with proxy.client() as client:
        if method == "CONNECT":
            return client.connect(authority)
        return client.get(f"http://{authority}/")


def test_tls_through_it(behind: Proxy, origin: Origin, authority: Authority) -> None:
    with behind.client() as client:
        assert client.connect(f"origin.test:{origin.https}").status == 200
        context = authority.client_context()
        with context.wrap_socket(client.socket, server_hostname="origin.test") as tls:
            tls.sendall(b"GET / HTTP/1.1\r\nHost: origin.test\r\nConnection: close\r\n\r\n")
            assert b"hello from https" in b"".join(iter(lambda: tls.recv(65536), b""))
    line = behind.wait_for_line(event="ALLOWED")
    assert (line["host"], line["address"]) == ("origin.test", "127.0.0.1")


def test_plain_requests_through_it(behind: Proxy, origin: Origin) -> None:
    base = f"http://origin.test:{origin.http}"
    with behind.client() as client:
        for _ in range(2):
            got = client.get(f"{base}/bytes/{MIB}").body
            assert hashlib.sha256(got).hexdigest() == digest_of_blocks(MIB)
        body = b"".join(map(bytes, blocks(MIB)))
        head = f"Content-Length: {MIB}\r\n"
        said = client.get(f"{base}/upload", method="POST", head=head, body=body).body
    assert digest_of_blocks(MIB).encode() in said
    assert not any(b"roxy-Authorization" in head for head in origin.heads)
    assert b"Via: 1.1 egress-proxy-" in origin.heads[0]


@METHODS
@pytest.mark.parametrize("line", ["proxy:wrong", None])
def test_it_does_not_take_our_credentials(
    start_proxy: StartProxy, squid: RealSquid, tmp_path: Path, method: str, line: str | None
) -> None:
    upstream = {"proxy": f"http://127.0.0.1:{squid.port}"}
    if line is not None:
        (tmp_path / "parent").write_text(line)
        upstream["credentials_file"] = str(tmp_path / "parent")
    proxy = start_proxy(allow=[_plain("*.test")], upstream=upstream)
    response = _ask(proxy, method, "origin.test:80")
    assert (response.status, response.error["reason"]) == (502, "parent_credentials")
    assert "proxy-authenticate" not in response
    assert "theirs" not in str(response)
    assert proxy.wait_for_line(event="FAILED")["reason"] == "parent_credentials"


def test_it_refuses_what_we_allow(behind: Proxy) -> None:
    response = _ask(behind, "CONNECT", "other.test:80")
    assert (response.status, response.error["reason"]) == (403, "parent_refused")
    response = _ask(behind, "GET", "other.test:80")
    assert response.status == 403
    assert b"ERR_ACCESS_DENIED" in response.body


def test_it_cannot_reach_what_both_allow(behind: Proxy) -> None:
    response = _ask(behind, "CONNECT", "origin.test:1")
    assert (response.status, response.error["reason"]) == (502, "parent_failed")
    assert response.error["message"].endswith(": it answered 503.")
