"""`tls: verify`: what passes, byte for byte, and what is refused before the origin has a byte of it."""

from __future__ import annotations

import csv
import time
from pathlib import Path

import pytest

from tests.conftest import Serve, StartProxy
from tests.support import hellos
from tests.support.client import RawClient
from tests.support.dns import NameServer
from tests.support.edges import at_rest, connect
from tests.support.held import HELLO, Keeper, denials, is_refused, opened
from tests.support.hellos import client_hello, message, record, records, server_name_extension
from tests.support.proxy import Proxy, rule
from tests.support.serving import Server
from tests.support.tools import wait_until

CORPUS = Path(__file__).parents[1] / "core" / "data" / "hellos"


@pytest.fixture
def proxy(start_proxy: StartProxy) -> Proxy:
    return start_proxy(allow=[rule("origin.test", tls="verify")])


@pytest.fixture
def keeper() -> Keeper:
    return Keeper(echo=True)


@pytest.fixture
def server(serve: Serve, keeper: Keeper) -> Server:
    return serve(keeper)


@pytest.fixture
def target(server: Server) -> str:
    return f"origin.test:{server.port}"


#: Behind a ClientHello there are records, until the server has answered.
MORE = record(b"and more", kind=23)


def _passes(client: RawClient, said: bytes) -> None:
    """What was said has come to the origin as it was, and so does what follows, and its end."""
    assert client.exactly(len(said)) == said
    client.send(MORE)
    client.eof()
    assert client.rest() == MORE


# What passes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ("origin.test", "origin.test"),
        ("ORIGIN.test", "origin.TEST"),
        ("origin.test.", "origin.test"),
        ("origin.test", "Origin.Test."),
    ],
)
def test_the_name_that_was_asked_for(
    proxy: Proxy, server: Server, keeper: Keeper, asked: str, named: str
) -> None:
    """As other names, it is compared in its canonical form; what is sent on is what came."""
    hello = client_hello(named, alpn=("h2", "http/1.1"))
    with opened(proxy, f"{asked}:{server.port}", b"", hello) as client:
        _passes(client, hello)
    line = proxy.wait_for_line(event="ALLOWED", host="origin.test", sni="origin.test")
    assert (line["tls_version"], line["alpn"]) == ("TLSv1.3", "h2,http/1.1")
    assert line["status"] == 200
    assert line["bytes_sent"] == line["bytes_received"] == len(hello) + len(MORE)
    assert list(line).index("sni") == list(line).index("generation") + 1
    assert "reason" not in line
    assert [bytes(said) for said in keeper.said] == [hello + MORE]
    assert denials(proxy) == {}
    at_rest(proxy)


@pytest.mark.parametrize("name", ["xn--bcher-kva.test", "_sip._tcp.test", "a.b.c.d.test"])
def test_other_kinds_of_names(
    start_proxy: StartProxy, server: Server, name_server: NameServer, name: str
) -> None:
    name_server.set(name, "127.0.0.1")
    proxy = start_proxy(allow=[rule("*.test", tls="verify")])
    with opened(proxy, f"{name}:{server.port}", client_hello(name)) as client:
        _passes(client, client_hello(name))
    proxy.wait_for_line(event="ALLOWED", sni=name)


def test_every_split_into_segments(proxy: Proxy, target: str, keeper: Keeper) -> None:
    """In two, at each place, the request's end included, and one byte at a time."""
    whole = connect(target) + HELLO
    for place in range(len(whole) - len(HELLO) - 4, len(whole)):
        with proxy.client() as client:
            client.send(whole[:place])
            if place % 16 == 0:
                time.sleep(0.005)  # so that some are surely read apart
            client.send(whole[place:])
            assert client.response("CONNECT").status == 200
            _passes(client, HELLO)
    with opened(proxy, target) as client:
        for octet in HELLO:
            client.send(bytes([octet]))
        _passes(client, HELLO)
    assert {bytes(said) for said in keeper.said} == {HELLO + MORE}
    assert {line["event"] for line in proxy.stop()} == {"ALLOWED"}


def test_every_split_into_records(proxy: Proxy, target: str, keeper: Keeper) -> None:
    handshake = message(hellos.typical())
    wires = [records(handshake, [place]) for place in range(1, len(handshake))]
    wires += [records(handshake, [1] * 60), records(handshake, [3, 1, 4, 1, 5, 9])]
    for wire in wires:
        with opened(proxy, target, wire) as client:
            _passes(client, wire)
    assert sorted(map(bytes, keeper.said)) == sorted(wire + MORE for wire in wires)


@pytest.mark.parametrize("early", [True, False])
def test_a_long_hello(proxy: Proxy, target: str, keeper: Keeper, early: bool) -> None:
    """A post-quantum key share, tickets, padding: more than one record and more than one read."""
    for size in (1_300, 8_000, 16_000, 16_384, 32_000):
        hello = client_hello("origin.test", extra=[(hellos.PADDING, bytes(size))])
        said = (hello,) if early else (b"", hello[:700], hello[700:])
        with opened(proxy, target, *said) as client:
            _passes(client, hello)
        assert keeper.said.pop() == hello + MORE


@pytest.mark.parametrize("early", [True, False])
def test_what_comes_at_once_behind_it(
    proxy: Proxy, target: str, keeper: Keeper, early: bool
) -> None:
    """Early data, or whatever a client sends that does not wait for an answer."""
    for size in (1, 100, 20_000, 1_000_000):
        pieces = (min(2**14, size - start) for start in range(0, size, 2**14))
        said = HELLO + b"".join(record(bytes(piece), kind=23) for piece in pieces)
        with opened(proxy, target, *((said,) if early else (b"", said)), seconds=5) as client:
            _passes(client, said)
        assert keeper.said.pop() == said + MORE


def test_the_hellos_of_real_clients(
    start_proxy: StartProxy, server: Server, name_server: NameServer
) -> None:
    """As they were captured; what they say stands in the line."""
    with (CORPUS / "manifest.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["server_name"].endswith(".test")]
    for name in {row["server_name"] for row in rows}:
        name_server.set(name, "127.0.0.1")
    proxy = start_proxy(allow=[rule("*.test", tls="verify")])
    assert len(rows) > 20
    for row in rows:
        hello = (CORPUS / f"{row['name']}.bin").read_bytes()
        with opened(proxy, f"{row['server_name']}:{server.port}", b"", hello) as client:
            _passes(client, hello)
        wait_until(lambda: len(proxy.lines) > rows.index(row), what="its line")  # noqa: B023
        line = proxy.lines[-1]
        assert line["event"] == "ALLOWED", row
        assert (line["sni"], line["tls_version"]) == (row["server_name"], row["tls_version"])
        alpn = row["alpn"]
        assert line.get("alpn", "") == (alpn if len(alpn) <= 64 else f"{alpn[:61]}...")


# What is refused --------------------------------------------------------------------------------


def _all_refused(
    proxy: Proxy, target: str, keeper: Keeper, cases: dict[str, bytes], reason: str, **fields: str
) -> None:
    for count, (case, said) in enumerate(cases.items(), 1):
        with opened(proxy, target, b"", said) as client:
            try:
                is_refused(proxy, client, reason, count=count, **fields)
            except AssertionError as error:
                error.add_note(case)
                raise
    keeper.got_nothing()
    assert set(denials(proxy)) == {reason}
    at_rest(proxy)


MISMATCHES = {
    "another host": "other.test",
    "the domain above": "test",
    "a name below": "www.origin.test",
    "in front of another domain": "origin.test.other.test",
    "behind another label's end": "notorigin.test",
    "an address": "127.0.0.1",
}


def test_another_name(proxy: Proxy, target: str, keeper: Keeper) -> None:
    said = {"alpn": "h2", "tls_version": "TLSv1.3", "policy": "test", "address": "127.0.0.1"}
    for count, name in enumerate(MISMATCHES.values(), 1):
        hello = client_hello(name, alpn=["h2"])
        with opened(proxy, target, b"", hello) as client:
            is_refused(proxy, client, "sni_mismatch", count=count, sni=name, **said)
    keeper.got_nothing()
    counted = proxy.metrics()
    name = 'egress_proxy_denied_total{namespace="",policy="test",reason="sni_mismatch"}'
    assert counted[name] == len(MISMATCHES)
    assert proxy.stdout.count("DENIED") == len(MISMATCHES)
    at_rest(proxy)


def test_no_name(proxy: Proxy, target: str, keeper: Keeper) -> None:
    handshake = message(None, legacy_version=hellos.TLS10)
    cases = {
        "no extension": client_hello(None),
        "no extensions at all": records(handshake),
        "no extensions, several records": records(handshake, [5, 5]),
    }
    _all_refused(proxy, target, keeper, cases, "sni_missing")


NOT_TLS = {
    "a request": b"GET / HTTP/1.1\r\nHost: origin.test\r\n\r\n",
    "HTTP/2 with prior knowledge": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "another CONNECT": connect("other.test:443"),
    "SSH": b"SSH-2.0-OpenSSH_9.2\r\n",
    "PostgreSQL that asks for TLS": b"\0\0\0\x08\x04\xd2\x16\x2f",
    "SSL 2.0 with a hello for SSL 3": bytes.fromhex("802e0103010015000000100100800300800700c0"),
    "application data": record(HELLO, kind=23),
    "an alert": record(b"\x02\x70", kind=21),
    "a change of ciphers first": record(b"\1", kind=20) + HELLO,
    "SSL 2.0's version": b"\x16\2\0" + HELLO[3:],
    "one byte": b"\n",
    "the first byte alone is right": b"\x16\x00",
}


def test_no_tls(proxy: Proxy, target: str, keeper: Keeper) -> None:
    _all_refused(proxy, target, keeper, NOT_TLS, "tunnel_not_tls")
    assert not any("sni" in line for line in proxy.lines)


_HANDSHAKE = message(hellos.typical())
_OWN, _OTHER = server_name_extension("origin.test"), server_name_extension("other.test")

#: In each, a lenient server could find another name, or another message, than a lenient proxy.
MALFORMED = {
    "two SNI extensions, the right one first": records(message([_OWN, _OTHER])),
    "two SNI extensions, the right one last": records(message([_OTHER, _OWN])),
    "two names": records(message([server_name_extension("origin.test", "other.test")])),
    "two names of which one is of another type": records(
        message([server_name_extension((1, b"other.test"), "origin.test")])
    ),
    "a name of another type": records(message([server_name_extension((1, b"origin.test"))])),
    "an empty name": client_hello(""),
    "a list without names": records(message([server_name_extension()])),
    "an SNI extension without a list": records(message([(0, b"")])),
    "a NUL behind the name": client_hello(b"origin.test\0.other.test"),
    "a NUL at the end": client_hello(b"origin.test\0"),
    "a wildcard": client_hello("*.test"),
    "a port": client_hello("origin.test:443"),
    "a URL": client_hello("https://origin.test/"),
    "a space": client_hello(" origin.test"),
    "a line end": client_hello(b"origin.test\r\nX-Evil: 1"),
    "two dots": client_hello("origin.test.."),
    "a dot before": client_hello(".origin.test"),
    "a full stop of another script": client_hello("origin\u3002test"),
    "letters of full width": client_hello("\uff4frigin.test"),
    "not UTF-8": client_hello(b"\xff\xfe"),
    "an address in another spelling": client_hello("0x7f.1"),
    "254 characters": client_hello(".".join(["a" * 63] * 4)),
    "something behind the extensions": records(message([_OWN], after=b"\0")),
    "a server's hello": records(message([_OWN], kind=2)),
    "a second message in the record": record(_HANDSHAKE + _HANDSHAKE),
    "a second message in the last record": record(_HANDSHAKE[:40])
    + record(_HANDSHAKE[40:] + b"\x01"),
    "another record in between": record(_HANDSHAKE[:40])
    + record(b"\1", kind=20)
    + record(_HANDSHAKE[40:]),
    "an empty record": record(b"") + HELLO,
    "a record of 16385 bytes": b"\x16\x03\x01\x40\x01",
    "a length of nothing": b"\x16\x03\x01\x00\x04\x01\0\0\0",
    "a length of 16 MiB": b"\x16\x03\x01\x40\x00\x01\xff\xff\xff",
    "65 records": records(_HANDSHAKE, [1] * 65),
    "no version that is known": client_hello(versions=[hellos.GREASE, 0x0300]),
    "SSL 3.0": records(message([_OWN], legacy_version=0x0300)),
    "an inner hello of ECH": client_hello(extra=[(0xFE0D, b"\1")]),
}


def test_no_proper_hello(proxy: Proxy, target: str, keeper: Keeper) -> None:
    _all_refused(proxy, target, keeper, MALFORMED, "client_hello_malformed")
    assert not any("sni" in line for line in proxy.lines)
    assert "evil" not in (proxy.stdout + proxy.stderr).lower()


def test_a_refusal_for_what_comes_with_the_request(
    proxy: Proxy, target: str, keeper: Keeper
) -> None:
    """In one segment with it, before there was a 200."""
    cases = {
        "sni_mismatch": client_hello("other.test"),
        "sni_missing": client_hello(None),
        "tunnel_not_tls": b"GET / HTTP/1.1\r\n\r\n",
        "client_hello_malformed": MALFORMED["two names"],
    }
    for reason, said in cases.items():
        with opened(proxy, target, said + bytes(100_000)) as client:
            is_refused(proxy, client, reason)
    keeper.got_nothing()
    at_rest(proxy)


def test_a_tunnel_that_was_refused_is_no_request(proxy: Proxy, target: str, keeper: Keeper) -> None:
    """What follows is neither passed on nor answered."""
    with opened(proxy, target, b"GET / HTTP/1.1\r\n\r\n", connect(target), HELLO) as client:
        is_refused(proxy, client, "tunnel_not_tls")
    keeper.got_nothing()
    assert len(proxy.lines) == 1
    at_rest(proxy)


def test_the_client_chooses_what_the_line_says_but_not_how(
    proxy: Proxy, target: str, keeper: Keeper
) -> None:
    hostile = (b'","event":"ALLOWED', b"\r\n\x1b[2J", b"DENIED", "ü".encode(), b"x" * 200)
    with opened(proxy, target, b"", client_hello("other.test", alpn=hostile)) as client:
        line = is_refused(proxy, client, "sni_mismatch")
    assert line["alpn"].isascii()
    assert line["alpn"].isprintable()
    assert len(line["alpn"]) <= 64
    assert not set(line["alpn"]) & set('"\\ ')
    keeper.got_nothing()


# How long it may be -----------------------------------------------------------------------------


def test_the_longest_that_is_allowed(start_proxy: StartProxy, target: str, serve: Serve) -> None:
    proxy = start_proxy(
        allow=[rule("origin.test", tls="verify")], limits={"client_hello_bytes": "1KiB"}
    )
    bare = len(client_hello("origin.test", extra=[(hellos.PADDING, b"")]))
    longest = client_hello("origin.test", extra=[(hellos.PADDING, bytes(1024 - bare))])
    assert len(longest) == 1024
    with opened(proxy, target, b"", longest) as client:
        _passes(client, longest)
    behind = record(bytes(5000), kind=23)
    with opened(proxy, target, longest + behind) as client:
        assert client.exactly(6029) == longest + behind
    too_long = client_hello("origin.test", extra=[(hellos.PADDING, bytes(1025 - bare))])
    in_records = records(hellos.handshake_of(longest), [100])
    cases = {
        "by a byte": too_long,
        "as soon as it says so": too_long[:9],
        "as soon as its record says so": too_long[:5],
        "with the headers of its records": in_records,
        "as soon as the header of a record says so": in_records[:110],
    }
    keeper = Keeper()
    target = f"origin.test:{serve(keeper).port}"
    _all_refused(proxy, target, keeper, cases, "client_hello_malformed")
