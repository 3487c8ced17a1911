"""`tls: verify`, when the server asks for a second ClientHello: real ones go by the name in that."""

from __future__ import annotations

import contextlib
import ssl
import threading

import pytest

from tests.conftest import Serve, StartProxy
from tests.support import hellos
from tests.support.certificates import Authority
from tests.support.client import RawClient
from tests.support.edges import at_rest
from tests.support.held import denials, opened
from tests.support.hellos import message, record, records, sized, typical
from tests.support.proxy import Proxy, rule
from tests.support.serving import echo

VERIFIED = rule("origin.test", tls="verify")
KEY_SHARE = 51
CHANGE_CIPHER_SPEC = record(b"\1", kind=20, version=hellos.TLS12)
#: A group's number, and a point of it that is one (X25519).
SHARE = hellos.numbers(0x001D) + sized(2, bytes([9]) + bytes(31))


def _hello(name: str | None, share: bytes) -> bytes:
    """A handshake message whose key share is this, or none."""
    extensions = [
        (kind, data) for kind, data in typical(name, versions=(hellos.TLS13,)) if kind != KEY_SHARE
    ]
    return message([*extensions, (KEY_SHARE, sized(2, share))], session_id=bytes(32))


FIRST = records(_hello("origin.test", b""))
SAME = _hello("origin.test", SHARE)
OTHER = _hello("other.test", SHARE)
NAMELESS = _hello(None, SHARE)


class TlsOrigin:
    """OpenSSL's server, and the names that it was told, in their order."""

    def __init__(self, serve: Serve, authority: Authority) -> None:
        self.names: list[str | None] = []
        context = authority.server_context()
        context.sni_callback = lambda _socket, name, _context: self.names.append(name)
        self.context = context
        self.target = f"origin.test:{serve(echo, tls=context).port}"


@pytest.fixture
def origin(serve: Serve, authority: Authority) -> TlsOrigin:
    return TlsOrigin(serve, authority)


@pytest.fixture
def proxy(start_proxy: StartProxy) -> Proxy:
    return start_proxy(allow=[VERIFIED])


def _asked_again(proxy: Proxy, origin: TlsOrigin) -> RawClient:
    """A client whose first hello was answered with a HelloRetryRequest."""
    client = opened(proxy, origin.target, b"", FIRST)
    header = client.exactly(5)
    answer = client.exactly(int.from_bytes(header[3:]))
    assert header[0] == 22
    assert answer[0] == 2
    assert answer[6:14].hex() == "cf21ad74e59a6111"
    return client


def _is_ended(client: RawClient) -> None:
    """Whatever of the server's is still on its way; no ServerHello, which would be a second one."""
    got = b""
    with contextlib.suppress(ConnectionResetError):
        while data := client.some():
            got += data
    assert record(b"\2")[:1] + b"\3\3" not in got


WAYS = {
    "one record": records(OTHER),
    "behind what middleboxes want to see": CHANGE_CIPHER_SPEC + records(OTHER),
    "behind early data": record(bytes(100), kind=23, version=hellos.TLS12) + records(OTHER),
    "small records": records(OTHER, [1, 2, 3, 50]),
    "behind the same one in early data": record(SAME, kind=23, version=hellos.TLS12)
    + records(OTHER),
}


@pytest.mark.parametrize("early", [True, False])
def test_another_name(proxy: Proxy, origin: TlsOrigin, early: bool) -> None:
    """Early: before the server has asked. It would be answered all the same."""
    for count, (way, said) in enumerate(WAYS.items(), 1):
        with (
            opened(proxy, origin.target, b"", FIRST + said)
            if early
            else _asked_again(proxy, origin)
        ) as client:
            if not early:
                client.send(said)
            _is_ended(client)
        line = proxy.wait_for_lines(count, event="DENIED", reason="sni_mismatch")[-1]
        assert line["code"] == "POLICY_BLOCKED", way
        assert denials(proxy)["sni_mismatch"] == count
    assert set(origin.names) <= {"origin.test"}
    at_rest(proxy)


def test_another_name_byte_by_byte(proxy: Proxy, origin: TlsOrigin) -> None:
    with _asked_again(proxy, origin) as client:
        with contextlib.suppress(ConnectionError):
            for octet in WAYS["behind what middleboxes want to see"]:
                client.send(bytes([octet]))
        _is_ended(client)
    proxy.wait_for_line(event="DENIED", reason="sni_mismatch")
    assert origin.names == ["origin.test"]
    at_rest(proxy)


def test_no_name(proxy: Proxy, origin: TlsOrigin) -> None:
    with _asked_again(proxy, origin) as client:
        client.send(records(NAMELESS))
        _is_ended(client)
    proxy.wait_for_line(event="DENIED", reason="sni_missing")
    assert origin.names == ["origin.test"]
    at_rest(proxy)


def test_audit_mode_tells_and_passes(start_proxy: StartProxy, origin: TlsOrigin) -> None:
    """And so it is shown that the server would have gone by the second name."""
    proxy = start_proxy(mode="audit", allow=[VERIFIED])
    with _asked_again(proxy, origin) as client:
        client.send(WAYS["behind what middleboxes want to see"])
        assert client.until(b"\x16\3\3")
    line = proxy.wait_for_line(event="WOULD_DENY", reason="sni_mismatch")
    assert line["sni"] == "origin.test"
    assert origin.names == ["origin.test", "other.test"]
    assert "DENIED" not in proxy.stdout
    at_rest(proxy)


@pytest.mark.parametrize("byte_by_byte", [True, False])
def test_the_same_name(proxy: Proxy, origin: TlsOrigin, byte_by_byte: bool) -> None:
    with _asked_again(proxy, origin) as client:
        said = CHANGE_CIPHER_SPEC + records(SAME, [10, 20])
        for part in [bytes([octet]) for octet in said] if byte_by_byte else [said]:
            client.send(part)
        assert client.until(b"\x16\3\3")  # the ServerHello
        assert client.exactly(2)
        assert client.exactly(1) == b"\2"
    assert origin.names == ["origin.test", "origin.test"]
    proxy.wait_for_line(event="ALLOWED")
    at_rest(proxy)


# Real clients -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("curve", "newest"),
    [
        ("prime256v1", ssl.TLSVersion.TLSv1_3),
        ("secp384r1", ssl.TLSVersion.TLSv1_3),
        ("X25519", ssl.TLSVersion.TLSv1_3),
        ("prime256v1", ssl.TLSVersion.TLSv1_2),
    ],
    ids=["asks again", "asks again for another", "does not ask", "TLS 1.2"],
)
def test_real_ones(
    proxy: Proxy,
    origin: TlsOrigin,
    authority: Authority,
    curve: str,
    newest: ssl.TLSVersion,
) -> None:
    """Before, while and after they are looked at, all that they say comes through, in both directions."""
    origin.context.set_ecdh_curve(curve)
    origin.context.maximum_version = newest
    data = bytes(range(256)) * 4096
    for _ in range(3):
        with (
            opened(proxy, origin.target) as client,
            authority.client_context().wrap_socket(
                client.socket, server_hostname="origin.test"
            ) as tls,
        ):
            assert tls.version() == ("TLSv1.3" if newest is ssl.TLSVersion.TLSv1_3 else "TLSv1.2")
            writer = threading.Thread(target=tls.sendall, args=(data,))
            writer.start()
            got = b""
            while len(got) < len(data):
                got += tls.recv(65536)
            writer.join()
            assert got == data
    retried = newest is ssl.TLSVersion.TLSv1_3 and curve != "X25519"
    assert origin.names == ["origin.test"] * (6 if retried else 3)
    proxy.wait_for_lines(3, event="ALLOWED", sni="origin.test")
    at_rest(proxy)
