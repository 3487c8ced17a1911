"""Real clients that name one host in their CONNECT and another in their TLS (domain fronting), or none there."""

from __future__ import annotations

import re
import socket
import ssl
import subprocess
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.conftest import StartProxy
from tests.support.certificates import Authority
from tests.support.clients import environment, need, run
from tests.support.origin import Origin
from tests.support.proxy import Proxy, rule

pytestmark = pytest.mark.e2e

#: As OpenSSL and GnuTLS call the alert.
UNRECOGNIZED = re.compile("unrecogni[sz]ed.name", re.IGNORECASE)


@pytest.fixture
def env(proxy: Proxy, authority: Authority, tmp_path: Path) -> dict[str, str]:
    return environment(proxy.url, authority, tmp_path / "home")


def _is_denied(proxy: Proxy, origin: Origin, reason: str, **fields: Any) -> None:
    """By one line, and the origin has seen no request."""
    (line,) = proxy.stop()
    expected = {
        "event": "DENIED",
        "reason": reason,
        "code": "POLICY_BLOCKED",
        "status": 200,
        "method": "CONNECT",
        "host": "origin.test",
        "bytes_sent": 0,
        "bytes_received": 0,
        **fields,
    }
    assert {name: line.get(name) for name in expected} == expected
    assert origin.heads == []


def test_curl_that_connects_to_another_host(
    proxy: Proxy, origin: Origin, env: dict[str, str]
) -> None:
    need("curl")
    front = ("--connect-to", f"denied.test:443:origin.test:{origin.https}")
    done = run(["curl", "-sS", "--max-time", "20", *front, "https://denied.test/"], env)
    assert done.returncode == 35, done.stderr  # CURLE_SSL_CONNECT_ERROR
    assert UNRECOGNIZED.search(done.stderr.decode()), done.stderr
    assert done.stdout == b""
    sni = {"sni": "denied.test", "tls_version": "TLSv1.3", "alpn": "h2,http/1.1"}
    _is_denied(proxy, origin, "sni_mismatch", **sni)


def test_curl_that_connects_to_the_same_host_in_another_spelling(
    proxy: Proxy, origin: Origin, env: dict[str, str]
) -> None:
    need("curl")
    url = f"https://ORIGIN.test.:{origin.https}/"
    done = run(["curl", "-sSk", "--max-time", "20", url], env)
    assert done.stdout == b"hello from https\n", done.stderr
    (line,) = proxy.stop()
    assert (line["event"], line["host"], line["sni"]) == ("ALLOWED", "origin.test", "origin.test")


def test_curl_in_the_clear(proxy: Proxy, origin: Origin, env: dict[str, str]) -> None:
    need("curl")
    url = f"http://origin.test:{origin.http}/"
    done = run(["curl", "-sS", "--max-time", "20", "--proxytunnel", url], env)
    assert done.returncode == 52, done.stderr  # CURLE_GOT_NOTHING
    assert done.stdout == b""
    _is_denied(proxy, origin, "tunnel_not_tls")


def _openssl(proxy: Proxy, authority: Authority, port: int, *arguments: str) -> tuple[int, str]:
    need("openssl")
    command = ["openssl", "s_client", "-proxy", proxy.address, "-connect", f"origin.test:{port}"]
    command += ["-CAfile", str(authority.file), "-verify_return_error", "-verify", "3"]
    done = subprocess.run(
        [*command, *arguments],
        input=b"GET / HTTP/1.0\r\n\r\n",
        capture_output=True,
        check=False,
        timeout=20,
    )
    return done.returncode, (done.stdout + done.stderr).decode(errors="replace")


@pytest.mark.parametrize("version", ["-tls1_3", "-tls1_2"])
def test_openssl(proxy: Proxy, origin: Origin, authority: Authority, version: str) -> None:
    code, said = _openssl(proxy, authority, origin.https, "-servername", "Origin.Test", version)
    assert code == 0, said
    assert "Verify return code: 0 (ok)" in said
    (line,) = proxy.stop()
    assert (line["event"], line["sni"]) == ("ALLOWED", "origin.test")
    assert line["tls_version"] == {"-tls1_3": "TLSv1.3", "-tls1_2": "TLSv1.2"}[version]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("-servername denied.test -tls1_3", "sni_mismatch"),
        ("-servername denied.test -tls1_2", "sni_mismatch"),
        ("-servername 127.0.0.1", "sni_mismatch"),
        ("-noservername", "sni_missing"),
        ("-servername *.test", "client_hello_malformed"),
    ],
)
def test_openssl_with_another_name(
    proxy: Proxy, origin: Origin, authority: Authority, arguments: str, reason: str
) -> None:
    code, said = _openssl(proxy, authority, origin.https, *arguments.split())
    assert code == 1, said
    if reason == "client_hello_malformed":
        assert "decode error" in said
    else:
        assert UNRECOGNIZED.search(said), said
    _is_denied(proxy, origin, reason)


@pytest.mark.asyncio(
    loop_factories=["asyncio"]
)  # libuv keeps a descriptor of its own for each loop
async def test_aiohttp_that_is_told_another_name(
    proxy: Proxy, origin: Origin, authority: Authority
) -> None:
    """One of the libraries that have a switch for it."""
    tls = authority.client_context()
    async with aiohttp.ClientSession() as session:
        request = session.get(
            f"https://origin.test:{origin.https}/",
            proxy=proxy.url,
            ssl=tls,
            server_hostname="denied.test",
        )
        with pytest.raises(aiohttp.ClientConnectionError, match=UNRECOGNIZED):
            await request
    _is_denied(proxy, origin, "sni_mismatch", sni="denied.test")


def test_a_session_of_the_front_is_resumed_for_another_host(
    start_proxy: StartProxy, origin: Origin, authority: Authority
) -> None:
    """A ticket carries no name past the check: the hello that shows it has one of its own."""
    proxy = start_proxy(allow=[rule("origin.test", tls="verify")])
    context = authority.client_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # where Python knows the session at once
    target = f"origin.test:{origin.https}"
    session = None
    for _ in range(2):
        with proxy.client() as client:
            assert client.connect(target).status == 200
            with context.wrap_socket(
                client.socket, server_hostname="origin.test", session=session
            ) as tls:
                assert tls.session_reused is (session is not None)
                session = tls.session
    with proxy.client() as client:
        assert client.connect(target).status == 200
        with pytest.raises(ssl.SSLError, match=UNRECOGNIZED):
            context.wrap_socket(client.socket, server_hostname="denied.test", session=session)
    lines = proxy.stop()
    assert [line["event"] for line in lines] == ["ALLOWED", "ALLOWED", "DENIED"]
    assert lines[2]["sni"] == "denied.test"


def test_a_client_in_audit_mode(
    start_proxy: StartProxy, origin: Origin, authority: Authority, tmp_path: Path
) -> None:
    """It goes through, and the line says what enforcement would do."""
    need("curl")
    proxy = start_proxy(mode="audit", allow=[rule("origin.test", tls="verify")])
    env = environment(proxy.url, authority, tmp_path / "home")
    front = ("--connect-to", f"denied.test:443:origin.test:{origin.https}")
    done = run(["curl", "-sS", "--max-time", "20", *front, "https://denied.test/"], env)
    assert done.stdout == b"hello from https\n", done.stderr
    (line,) = proxy.stop()
    assert (line["event"], line["reason"]) == ("WOULD_DENY", "sni_mismatch")
    assert (line["host"], line["sni"]) == ("origin.test", "denied.test")
    assert "DENIED" not in proxy.stdout


def test_wget_and_an_address(
    start_proxy: StartProxy, origin: Origin, authority: Authority, tmp_path: Path
) -> None:
    """Clients name no host to an address, and need not."""
    network = {"cidr": "127.0.0.0/8", "ports": ["1-65535"]}
    proxy = start_proxy(allow=[network])
    env = environment(proxy.url, authority, tmp_path / "home")
    url = f"https://127.0.0.1:{origin.https}/"
    clients = {"curl": ["curl", "-sS"], "wget": ["wget", "-q", "-O", "-"]}
    for name, command in clients.items():
        need(name)
        done = run([*command, url], env)
        assert done.stdout == b"hello from https\n", (name, done.stderr)
    lines = proxy.stop()
    assert [line["event"] for line in lines] == ["ALLOWED"] * 2
    assert all(line.get("sni") in {None, "127.0.0.1"} for line in lines)
    assert socket.inet_aton(lines[0]["host"])
