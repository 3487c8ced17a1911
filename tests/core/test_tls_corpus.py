"""ClientHellos of real clients, captured by ``tests/support/capture_hellos.py``: none may be refused or misread."""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path

import pytest

from egress_proxy.core.tls import MAX_ALPN_LENGTH, ClientHello, parse_client_hello
from tests.support.certificates import Authority
from tests.support.hellos import OpenSSL, handshake_of, records

CORPUS = Path(__file__).parent / "data" / "hellos"
LIMIT = 32 * 1024

with (CORPUS / "manifest.csv").open(encoding="utf-8", newline="") as file:
    EXPECTED = {row["name"]: row for row in csv.DictReader(file)}

each_client = pytest.mark.parametrize("name", EXPECTED)


@cache
def hello_of(name: str) -> bytes:
    return (CORPUS / f"{name}.bin").read_bytes()


def expected(name: str, wire: bytes) -> ClientHello:
    """What the client was told to offer, in records of its own or others."""
    row = EXPECTED[name]
    alpn = row["alpn"]
    if len(alpn) > MAX_ALPN_LENGTH:
        alpn = alpn[: MAX_ALPN_LENGTH - 3] + "..."
    return ClientHello(
        server_name=row["server_name"] or None,
        tls_version=row["tls_version"],
        alpn=alpn or None,
        ech=int(row["ech"]) if row["ech"] else None,
        size=len(wire),
    )


@each_client
def test_a_real_hello(name: str) -> None:
    hello = hello_of(name)
    assert parse_client_hello(hello, LIMIT) == expected(name, hello)
    assert parse_client_hello(hello, len(hello)) == expected(name, hello)
    assert parse_client_hello(hello + b"\x14\3\3\0\1\1", LIMIT) == expected(name, hello)


@each_client
def test_it_is_awaited_to_its_last_byte(name: str) -> None:
    hello = hello_of(name)
    for length in range(len(hello)):
        assert parse_client_hello(hello[:length], LIMIT) is None


@each_client
def test_it_may_be_split_into_records_anywhere(name: str) -> None:
    handshake = handshake_of(hello_of(name))
    for size in range(1, len(handshake)):
        wire = records(handshake, [size])
        assert parse_client_hello(wire, LIMIT) == expected(name, wire)
        # And a piece of one byte in between.
        wire = records(handshake, [size, 1])
        assert parse_client_hello(wire, LIMIT) == expected(name, wire)


@each_client
def test_openssl_as_a_server_is_told_the_same_name(name: str, authority: Authority) -> None:
    seen = OpenSSL(authority.server_context()).sees(hello_of(name))
    assert [each and each.lower().removesuffix(".") for each in seen.names] == [
        expected(name, b"").server_name
    ]
    assert seen.answered


def test_the_corpus_is_whole() -> None:
    assert {path.stem for path in CORPUS.glob("*.bin")} == set(EXPECTED)
    assert {row["client"].split()[0] for row in EXPECTED.values()} >= {
        "curl",
        "OpenSSL",
        "Python",
        "requests",
        "aiohttp",
        "Node.js",
        "Chromium",
        "Mozilla",
        "git",
        "pip",
        "gnutls-cli",
        "go",
        "openjdk",
    }


def test_the_corpus_has_every_kind() -> None:
    """Else the tests above would hold less than they seem to."""
    assert {row["tls_version"] for row in EXPECTED.values()} == {
        "TLSv1",
        "TLSv1.1",
        "TLSv1.2",
        "TLSv1.3",
    }
    assert {row["server_name"] for row in EXPECTED.values()} >= {"", "192.0.2.1"}
    # Encrypted ClientHello: GREASE of two browsers, and a real one, whose outer name is all that can be seen.
    assert {name for name, row in EXPECTED.items() if row["ech"]} == {
        "chromium",
        "firefox",
        "go-ech",
    }
    assert b"secret.test" not in hello_of("go-ech")
    # In more than one record; upper case; with a trailing dot.
    assert hello_of("openssl-small-records").count(b"\x16\x03\x01") == 2
    assert b"ORIGIN.TEST" in hello_of("openssl-sni-upper-case")
    assert b"origin.test." in hello_of("openssl-sni-trailing-dot")
    # Post-quantum key shares (X25519MLKEM768, 0x11ec, of 1,216 bytes).
    for name in ("chromium", "firefox", "go", "openssl4", "uv"):
        assert b"\x11\xec\x04\xc0" in hello_of(name)
