"""Canonical hosts: every spelling of a destination becomes one value, and what could be read in two ways becomes none."""

# ruff: noqa: E501 - a row of the tables is one line, however long its bytes are.

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from egress_proxy.core.errors import HostError
from egress_proxy.core.names import (
    Authority,
    AuthorityError,
    Host,
    canonical_host,
    canonical_ipv6,
    host_of_address,
    parse_authority,
    plain_address,
)
from tests.support.calm import CALM

LABEL_63 = "a" * 63
NAME_253 = ".".join([LABEL_63] * 3 + ["b" * 61])


# fmt: off
CANONICAL = [
    ("example.com", "example.com"),
    ("EXAMPLE.Com", "example.com"),
    ("example.com.", "example.com"),          # absolute, as pods write it to dodge ndots:5
    ("localhost", "localhost"),
    ("com", "com"),
    ("_dmarc.example.com", "_dmarc.example.com"),  # RFC 8552
    ("a_b.example", "a_b.example"),
    ("-a.example", "-a.example"),             # exists, and DNS carries it (RFC 2181 §11)
    ("a-.example", "a-.example"),
    ("r3---sn-4g5e6nsz.c.example", "r3---sn-4g5e6nsz.c.example"),
    ("3com.com", "3com.com"),
    ("0.example", "0.example"),               # only the last label makes it an address (WHATWG URL §3.5)
    ("127.0.0.1.example", "127.0.0.1.example"),
    ("1.2.3.4a", "1.2.3.4a"),
    ("0xz", "0xz"),
    (LABEL_63 + ".example", LABEL_63 + ".example"),
    (NAME_253, NAME_253),
    (NAME_253 + ".", NAME_253),
    # International names: A-labels by IDNA 2008 after the mapping of UTS 46.
    ("xn--bcher-kva.example", "xn--bcher-kva.example"),
    ("XN--BCHER-KVA.example", "xn--bcher-kva.example"),
    ("bücher.example", "xn--bcher-kva.example"),
    ("BÜCHER.example", "xn--bcher-kva.example"),
    ("bu\u0308cher.example", "xn--bcher-kva.example"),   # decomposed
    ("bücher.example.", "xn--bcher-kva.example"),
    ("bücher.xn--bcher-kva.Example", "xn--bcher-kva.xn--bcher-kva.example"),  # mixed forms
    ("faß.example", "xn--fa-hia.example"),    # non-transitional: not fass
    ("βόλος.example", "xn--nxasmm1c.example"),
    ("пример.example", "xn--e1afmkfd.example"),
    ("例え。テスト", "xn--r8jz45g.xn--zckzah"),
    # Dots that are no dots, letters that are other letters.
    ("example\u3002com", "example.com"),      # ideographic full stop
    ("example\uff0ecom", "example.com"),      # full-width full stop
    ("example\uff61com", "example.com"),      # half-width ideographic full stop
    ("example.com\u3002", "example.com"),
    ("ｅｘａｍｐｌｅ.com", "example.com"),       # full-width letters
    ("ｅxample．ｃｏｍ", "example.com"),
    ("\u212aubernetes.example", "kubernetes.example"),  # Kelvin sign
    ("exa\u00admple.com", "example.com"),     # soft hyphen, ignored
    ("exa\u200bmple.com", "example.com"),     # zero-width space, ignored
    ("ⓔxample.com", "example.com"),
    # IPv4 as inet_aton(3) takes it.
    ("127.0.0.1", "127.0.0.1"),
    ("127.0.0.1.", "127.0.0.1"),
    ("127.1", "127.0.0.1"),
    ("127.0.1", "127.0.0.1"),
    ("127.0.258", "127.0.1.2"),
    ("127.65537", "127.1.0.1"),
    ("2130706433", "127.0.0.1"),
    ("0x7f000001", "127.0.0.1"),
    ("0X7F000001", "127.0.0.1"),
    ("0x7f.1", "127.0.0.1"),
    ("0x7f.0x0.0x0.0x1", "127.0.0.1"),
    ("0177.0.0.01", "127.0.0.1"),
    ("017700000001", "127.0.0.1"),
    ("0000000000000000177.1", "127.0.0.1"),
    ("0x000000000000000007f.1", "127.0.0.1"),
    ("0300.0250.0x1.1", "192.168.1.1"),
    ("0xa9fea9fe", "169.254.169.254"),
    ("2852039166", "169.254.169.254"),
    ("0251.0376.0251.0376", "169.254.169.254"),
    ("169.254.43518", "169.254.169.254"),
    ("010.8.8.8", "8.8.8.8"),
    ("0", "0.0.0.0"),
    ("00", "0.0.0.0"),
    ("0x", "0.0.0.0"),                        # WHATWG reads it so; glibc takes it for a name. Never reachable either way
    ("4294967295", "255.255.255.255"),
    ("１２７.0.0.1", "127.0.0.1"),              # full-width digits
    ("①②⑦.0.0.1", "127.0.0.1"),
    ("127。0。0。1", "127.0.0.1"),
    ("0ｘ7f.1", "127.0.0.1"),
]
# fmt: on


@pytest.mark.parametrize(("text", "canonical"), CANONICAL)
def test_canonical(text: str, canonical: str) -> None:
    host = canonical_host(text)
    assert host.text == str(host) == canonical
    if re.fullmatch(r"[0-9.]+", canonical):
        assert host.address == ipaddress.ip_address(canonical)
    else:
        assert host.address is None
    assert canonical_host(canonical) == host


# fmt: off
TRAPS = [
    ("nothing", "", "empty"),
    ("a dot alone", ".", "empty"),
    ("two dots at the end", "example.com..", "empty label"),
    ("two dots", "example..com", "empty label"),
    ("a dot in front, which is a pattern in Squid", ".example.com", "empty label"),
    ("two dots, one of them ideographic", "例.\u3002com", "internationalised"),
    ("two dots at the end, one of them ideographic", "example.com.\u3002", "internationalised"),
    ("NUL, at which a C resolver stops (sandbox-runtime, OpenShell #1498)", "evil\0.google.com", "control"),
    ("NUL at the end", "google.com\0", "control"),
    ("a new line, which became configuration (gh-aw-firewall #1517)", "a.com\nb.com", "control"),
    ("a new line at the end, which `$` lets pass", "a.com\n", "control"),
    ("a carriage return", "a.com\r", "control"),
    ("a tab", "a\t.com", "control"),
    ("a space", "a b.com", "white space"),
    ("a space first", " a.com", "white space"),
    ("a space last", "a.com ", "white space"),
    ("an escape", "\x1b[2J.com", "control"),
    ("DEL", "a\x7f.com", "control"),
    ("percent-encoding", "a%2ecom", "percent"),
    ("percent-encoded letters", "%65xample.com", "percent"),
    ("percent-encoded NUL", "evil.com%00.google.com", "percent"),
    ("percent-encoded full stop of another script", "a%E3%80%82com", "percent"),
    ("a hash (gh-aw-firewall #1517)", "evil.com#.google.com", "no DNS name"),
    ("a question mark", "evil.com?.google.com", "no DNS name"),
    ("a slash", "evil.com/.google.com", "no DNS name"),
    ("a backslash", "evil.com\\.google.com", "no DNS name"),
    ("an at sign", "google.com@evil.com", "no DNS name"),
    ("a colon", "google.com:443", "no DNS name"),
    ("a comma", "a.com,b.com", "no DNS name"),
    ("a semicolon", "a.com;b.com", "no DNS name"),
    ("an asterisk", "*.com", "no DNS name"),
    ("an asterisk alone", "*", "no DNS name"),
    ("quotes", '"a.com"', "no DNS name"),
    ("brackets around a name (smokescreen #163)", "[a.com]", "no DNS name"),
    ("brackets around an address", "[::1]", "no DNS name"),
    ("brackets twice", "[[::1]]", "no DNS name"),
    ("an IPv6 address", "::1", "no DNS name"),
    ("a plus", "a+b.com", "no DNS name"),
    ("a dollar sign", "$HOME.com", "no DNS name"),
    ("a label of 64", "a" * 64 + ".com", "longer than 63"),
    ("a label of 64 without more", "a" * 64, "longer than 63"),
    ("a name of 254", "a" + NAME_253, "longer than 253"),
    ("a name of 254 and a dot", "a" + NAME_253 + ".", "longer than 253"),
    ("a name of 254, with all labels short", "a." * 127 + "b", "longer than 253"),
    ("a name that becomes too long as A-labels", ".".join(["bücher"] * 20), "internationalised"),
    ("a label that becomes too long as A-label", "ü" * 60 + ".com", "internationalised"),
    ("five numbers", "1.2.3.4.5", "ends in a number"),
    ("a name that ends in a number", "example.1", "ends in a number"),
    ("a name that ends in a hexadecimal number", "example.0x1", "ends in a number"),
    ("a name that ends in 0x", "example.0x", "ends in a number"),
    ("an address with an empty part", "127..1", "ends in a number"),
    ("an address with a dot in front", ".127.0.0.1", "ends in a number"),
    ("an octal number with an 8", "127.0.0.08", "ends in a number"),
    ("an octal number with a 9", "0189", "ends in a number"),
    ("an octet of 256", "127.0.0.256", "out of range"),
    ("a first octet of 256", "256.0.0.1", "out of range"),
    ("a last part of three bytes and one", "127.16777216", "out of range"),
    ("a last part of two bytes and one", "127.0.65536", "out of range"),
    ("2^32", "4294967296", "out of range"),
    ("2^32 and 127.0.0.1", "6425673729", "out of range"),
    ("2^32 in hexadecimal", "0x100000000", "out of range"),
    ("2^64 and 1", "18446744073709551617", "out of range"),
    ("a very long number", "9" * 250, "out of range"),
    ("a zero too many in front of a long octal number", "0" * 100 + "40000000000", "out of range"),
    ("an emoji (IDNA 2008)", "💩.example", "internationalised"),
    ("a symbol that maps to a slash: evil.c℀.google.com", "evil.c℀.google.com", "internationalised"),
    ("a full-width slash", "evil.com／.google.com", "internationalised"),
    ("a full-width at sign", "google.com＠evil.com", "internationalised"),
    ("a full-width colon", "evil.com：80", "internationalised"),
    ("a full-width percent sign", "evil％2ecom", "internationalised"),
    ("a non-breaking space", "a\u00a0b.com", "internationalised"),
    ("an ideographic space", "a\u3000b.com", "internationalised"),
    ("a right-to-left override", "a\u202eb.com", "internationalised"),
    ("mixed directions in a label (RFC 5893)", "aא.com", "internationalised"),
    ("a zero-width joiner out of its place (RFC 5892)", "a\u200db.com", "internationalised"),
    ("a combining mark first", "\u0301a.com", "internationalised"),
    ("a lone surrogate", "a\ud800.com", "internationalised"),
    ("a replacement character", "a\ufffd.com", "internationalised"),
    ("a bad A-label beside a U-label", "bücher.xn--\u00fc.com", "internationalised"),
    ("an underscore beside a U-label (STD 3)", "_a.bücher.example", "internationalised"),
    ("nothing but what is ignored", "\u00ad", "internationalised"),
]
# fmt: on


@pytest.mark.parametrize(
    ("text", "why"), [pytest.param(text, why, id=story) for story, text, why in TRAPS]
)
def test_traps(text: str, why: str) -> None:
    with pytest.raises(HostError, match=re.escape(why)) as caught:
        canonical_host(text)
    # What the client sent stands in no message: it goes to logs and terminals.
    assert str(caught.value).isascii()
    assert str(caught.value).isprintable()
    assert len(text) < 3 or text not in str(caught.value)


def test_a_sign_makes_a_name() -> None:
    """A hyphen may stand anywhere in a label. No resolver takes this one for an address either."""
    assert canonical_host("127.0.0.-1") == Host("127.0.0.-1")
    with pytest.raises(OSError, match="illegal IP"):
        socket.inet_aton("127.0.0.-1")


HOSTS = st.one_of(
    st.text(max_size=30),
    st.lists(
        st.sampled_from(
            ["a", "B", "1", "0x", "0", ".", "..", "-", "_", "xn--", "ü", "。", "．", "ｋ", "①", "ß", "\u200d", "א", "%", "\0", " ", "é", "x"]
        ),
        max_size=12,
    ).map("".join),
)  # fmt: skip


@CALM
@given(HOSTS)
@example("xn--a-ecp.ru")
@example("a" * 10_000)
@example("ü" * 1000)
def test_what_is_canonical_stays_so(text: str) -> None:
    try:
        host = canonical_host(text)
    except HostError:
        return
    assert canonical_host(host.text) == host
    assert canonical_host(host.text.upper()) == host
    assert canonical_host(host.text + ".") == host
    assert host.text == host.text.lower()
    assert 1 <= len(host.text) <= 253
    assert all(1 <= len(label) <= 63 for label in host.text.split("."))
    assert set(host.text) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_.")
    # No resolver could take a name of ours for an address, nor an address of ours for another.
    if host.address is None:
        with pytest.raises(OSError, match="illegal IP"):
            socket.inet_aton(host.text)
    else:
        assert socket.inet_aton(host.text) == host.address.packed


NUMBERS = st.one_of(
    st.sampled_from(
        [0, 1, 8, 127, 255, 256, 65535, 65536, 2**24 - 1, 2**24, 2**32 - 1, 2**32, 2**64]
    ),
    st.integers(0, 300),
)


@st.composite
def ipv4_parts(draw: st.DrawFn) -> str:
    number = draw(NUMBERS)
    zeros = "0" * draw(st.sampled_from([0, 0, 0, 1, 5]))
    return draw(
        st.sampled_from(
            [
                f"{number}",
                f"0{zeros}{number:o}",
                f"0x{zeros}{number:x}",
                f"0X{number:X}",
                f"0{number}",
                f"0x{number:x}g",
            ]
        )
    )


@settings(CALM, max_examples=500)
@given(st.lists(ipv4_parts(), min_size=1, max_size=5).map(".".join))
@example("1.2.3.4")
@example("0.0.0.0")
@example("08")
@example("0x.1")
def test_ipv4_is_read_as_the_c_library_reads_it(text: str) -> None:
    """inet_aton(3) is what getaddrinfo, and with it every client library, falls back to."""
    try:
        theirs: bytes | None = socket.inet_aton(text)
    except OSError:
        theirs = None
    ours: bytes | None = None
    with contextlib.suppress(HostError):
        host = canonical_host(text)
        ours = None if host.address is None else host.address.packed
    # `0x` without digits is 0 in the WHATWG URL standard, and no number in glibc.
    if "0x" not in text.lower().split("."):
        assert ours == theirs


@CALM
@given(st.ip_addresses(v=4), st.data())
def test_all_spellings_of_an_ipv4_address_are_one_host(
    address: ipaddress.IPv4Address, data: st.DataObject
) -> None:
    octets = list(address.packed)
    count = data.draw(st.integers(1, 4))
    numbers = [*octets[: count - 1], int.from_bytes(address.packed[count - 1 :])]
    forms = data.draw(
        st.lists(
            st.sampled_from(["%d", "0%o", "0x%x", "0X%X", "00%o", "0x0%x"]), min_size=4, max_size=4
        )
    )
    text = ".".join(form % number for form, number in zip(forms, numbers, strict=False))
    # `0%o` of a number such as 8 is `010`; `0` followed by zero is `00`. All are what inet_aton takes.
    assert socket.inet_aton(text) == address.packed
    assert canonical_host(text + data.draw(st.sampled_from(["", "."]))) == Host(
        str(address), address
    )


def ipv6_spellings(address: ipaddress.IPv6Address) -> list[str]:
    # Made from the bytes: newer Pythons write mapped addresses with dots.
    groups = [address.packed[start : start + 2].hex() for start in range(0, 16, 2)]
    exploded = ":".join(groups)
    tail = ".".join(str(octet) for octet in address.packed[12:])
    return [
        str(address),
        str(address).upper(),
        exploded,
        ":".join(group.lstrip("0") or "0" for group in groups),
        ":".join([*groups[:6], tail]),
        ":".join([*groups[:6], tail]).upper(),
        f"{address}%eth0",
        f"{address}%25eth0",
        f"{exploded}%1",
    ]


@CALM
@given(st.ip_addresses(v=6))
@example(ipaddress.IPv6Address("::1"))
@example(ipaddress.IPv6Address("::ffff:127.0.0.1"))
@example(ipaddress.IPv6Address("::ffff:0.0.0.0"))
@example(ipaddress.IPv6Address("fe80::1"))
def test_all_spellings_of_an_ipv6_address_are_one_host(address: ipaddress.IPv6Address) -> None:
    host = host_of_address(address)
    assert host.address == (address.ipv4_mapped or address)
    assert host.text == str(host.address)
    for text in ipv6_spellings(address):
        assert canonical_ipv6(text) == host, text
        assert parse_authority(f"[{text}]:443".encode(), None) == Authority(host, 443)


def test_a_mapped_address_is_its_ipv4_address() -> None:
    """RFC 4291 §2.5.5.2: the kernel connects to the IPv4 address, so rules about that one must see it."""
    for text in (
        "::ffff:127.0.0.1",
        "::FFFF:7f00:1",
        "0:0:0:0:0:ffff:127.0.0.1",
        "::ffff:127.0.0.1%eth0",
    ):
        assert canonical_ipv6(text) == canonical_host("127.0.0.1")
    # The compatible form (RFC 4291 §2.5.5.1) is another address, which the address gate knows.
    assert canonical_ipv6("::127.0.0.1").text == "::7f00:1"


def test_a_zone_is_dropped() -> None:
    address = ipaddress.ip_address("fe80::1%eth0")
    assert plain_address(address) == ipaddress.ip_address("fe80::1")
    assert host_of_address(address).text == "fe80::1"
    assert plain_address(ipaddress.ip_address("::ffff:1.2.3.4")) == ipaddress.ip_address("1.2.3.4")
    assert plain_address(ipaddress.ip_address("1.2.3.4")) == ipaddress.ip_address("1.2.3.4")


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        ":::",
        "1",
        "1.2.3.4",
        "::1::",
        "12345::",
        "::g",
        "1:2:3:4:5:6:7",
        "1:2:3:4:5:6:7:8:9",
        "::1.2.3",
        "::1.2.3.256",
        "::01.2.3.4",
        "::0x7f.0.0.1",
        "::1/64",
        " ::1",
        "::1\n",
        "::１",
        "[::1]",
        "%eth0",
    ],
)
def test_no_ipv6_address(text: str) -> None:
    with pytest.raises(HostError):
        canonical_ipv6(text)


# Authorities. The reasons that a client is told are in test_http1_request.py.


@pytest.mark.parametrize(
    ("text", "default", "canonical"),
    [
        (b"example.com:443", None, "example.com:443"),
        (b"example.com:443", 80, "example.com:443"),
        (b"example.com", 80, "example.com:80"),
        (b"Example.COM.:1", None, "example.com:1"),
        (b"h:65535", None, "h:65535"),
        (b"127.1:80", None, "127.0.0.1:80"),
        (b"[::1]", 80, "[::1]:80"),
        (b"[::1]:443", None, "[::1]:443"),
        (b"[::FFFF:1.2.3.4]:443", None, "1.2.3.4:443"),
        (b"[fe80::1%25eth0]:443", None, "[fe80::1]:443"),
    ],
)
def test_authority(text: bytes, default: int | None, canonical: str) -> None:
    authority = parse_authority(text, default)
    assert str(authority) == canonical
    assert parse_authority(str(authority).encode(), None) == authority


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"h", "the port is missing"),
        (b"[::1]", "the port is missing"),
        (b"", "the host is empty"),
        (b":443", "the host is empty"),
        (b"u@h:443", "user information"),
        (b"u:p@h:443", "user information"),
        (b"@h:443", "user information"),
        (b"h:443/", "the port is not a decimal number"),
        (b"h/:443", "a path or query"),
        (b"h?:443", "a path or query"),
        (b"h#:443", "a path or query"),
        (b"h\\:443", "a path or query"),
        (b"::1:443", "must stand in brackets"),
        (b"h:1:2", "must stand in brackets"),
        (b"[[::1]]:443", "the brackets do not hold an IPv6 address"),
        (b"[h]:443", "the brackets do not hold an IPv6 address"),
        (b"[::1%]:443", "the brackets do not hold an IPv6 address"),
        (b"[::1%" + b"a" * 33 + b"]:443", "the brackets do not hold an IPv6 address"),
        (b"[::1%a b]:443", "the brackets do not hold an IPv6 address"),
        *[
            (b"h:" + port, "the port is not a decimal number from 1 to 65535")
            for port in (b"", b"0", b"00", b"0443", b"+443", b"-1", b" 443", b"443 ", b"443\n", b"65536", b"99999", b"100000", b"4_43", b"0x1bb",
                         b"1e2", b"443.", "４４３".encode(), b"\xb2", b"https")
        ],
    ],
)  # fmt: skip
def test_no_authority(text: bytes, why: str) -> None:
    with pytest.raises(AuthorityError, match=re.escape(why)):
        parse_authority(text, None)


@pytest.mark.parametrize(
    "text",
    [
        b"[1.2.3.4]:443",
        b"[fade.cafe]:443",
        b"[::1::]:443",
        b"a..b:443",
        b"1.2.3.4.5:443",
        b"\xff:443",
        "bücher:443".encode(),
    ],
)
def test_an_authority_whose_host_is_wrong(text: bytes) -> None:
    with pytest.raises(HostError) as caught:
        parse_authority(text, None)
    assert not isinstance(caught.value, AuthorityError)


def test_a_request_speaks_ascii() -> None:
    """International names are for people and configurations; on the wire they are A-labels (RFC 9110 §4.2)."""
    with pytest.raises(HostError, match="A-labels"):
        parse_authority("example\u3002com:443".encode(), None)
    with pytest.raises(HostError, match="A-labels"):
        parse_authority("ｅxample.com:443".encode(), None)


@CALM
@given(st.binary(max_size=40), st.sampled_from([None, 80]))
def test_nothing_but_a_host_error_is_ever_raised(text: bytes, default: int | None) -> None:
    for whole in (text, text + b":443", b"[" + text + b"]:443", b"h:" + text):
        with contextlib.suppress(HostError):
            authority = parse_authority(whole, default)
            assert 1 <= authority.port <= 65535
            assert parse_authority(str(authority).encode(), None) == authority


def test_hosts_are_values() -> None:
    """They are keys of caches, and nobody can change one behind another's back."""
    assert canonical_host("a.example") == canonical_host("A.example.")
    assert hash(canonical_host("a.example")) == hash(Host("a.example"))
    assert canonical_host("127.1") != Host("127.0.0.1")
    with pytest.raises(AttributeError):
        canonical_host("a.example").text = "b.example"  # type: ignore[misc]
    with pytest.raises(AttributeError):
        Authority(Host("a"), 1).port = 2  # type: ignore[misc]
