"""However an address is written, it is the same address or none: no spelling of a prohibited one passes.

Clients write destinations, name servers write answers. Both ways are gone from the text to the gate.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from egress_proxy.core.addresses import PUBLIC_ONLY, Grant, Vetting, vet
from egress_proxy.core.decide import decide, vet_addresses
from egress_proxy.core.errors import HostError
from egress_proxy.core.identity import Identity
from egress_proxy.core.names import Authority, Host, canonical_host, parse_authority
from egress_proxy.core.policy import (
    Action,
    CompiledPolicy,
    HostPattern,
    Mode,
    Place,
    Policy,
    Rule,
)
from egress_proxy.core.special_use import special_use
from tests.core.address_forms import (
    METADATA,
    PROHIBITED_IPV4,
    PROHIBITED_IPV6,
    IPAddress,
    embedded,
    grant,
)
from tests.support.calm import CALM

HERE = Place("f.yaml", 1, 1)
ME = Identity("198.51.100.1")


def everything(mode: Mode = Mode.ENFORCE) -> CompiledPolicy:
    """All that can be allowed without naming a special network."""
    targets = (
        HostPattern("", wildcard=True),
        ipaddress.ip_network("0.0.0.0/0"),
        ipaddress.ip_network("::/0"),
    )
    rules = tuple(Rule(Action.ALLOW, target, HERE) for target in targets)
    return CompiledPolicy([Policy("p", rules, None, HERE)], mode)


ENFORCED, AUDITED = everything(), everything(Mode.AUDIT)


def dialled(host: Host, policy: CompiledPolicy = ENFORCED) -> list[str]:
    """The addresses that a client reaches with this host; a name has none that are known here."""
    destination = Authority(host, 443)
    decision = decide(policy, ME, destination)
    if host.address is None or not decision.allowed:
        return []
    vetting, _ = vet_addresses(decision, (host.text,), 443)
    return [vetted.ip for vetted in vetting.passed]


def takes_for_address(text: str) -> bool:
    """Whether the C library reads the text as an IPv4 address, as every program does that hands it to connect()."""
    # It stops at white space, whatever follows.
    with contextlib.suppress(OSError, UnicodeError, ValueError):
        return not text[-1:].isspace() and bool(socket.inet_aton(text))
    return False


# How addresses are written.


@st.composite
def ipv4_spellings(draw: st.DrawFn, address: IPv4Address) -> str:
    """As inet_aton(3) reads it: one to four parts, each in one of three bases, with zeros in front."""
    count = draw(st.integers(1, 4))
    octets = address.packed
    numbers = [*octets[: count - 1], int.from_bytes(octets[count - 1 :], "big")]
    parts = []
    for number in numbers:
        zeros = "0" * draw(st.sampled_from([0, 0, 0, 1, 2, 12]))
        match draw(st.sampled_from(["decimal", "octal", "hexadecimal"])):
            case "decimal":
                parts.append(str(number))
            case "octal":
                parts.append(f"0{zeros}{number:o}")
            case _:
                digits = f"{zeros}{number:x}"
                # Zero may lack its digit.
                if number == 0 and draw(st.booleans()):
                    digits = zeros
                parts.append(draw(st.sampled_from(["0x", "0X"])) + mixed(draw, digits))
    return ".".join(parts)


def mixed(draw: st.DrawFn, text: str) -> str:
    """The text in lower, upper or changing case."""
    upper = draw(st.sampled_from([0, -1, 0b0101101]))
    return "".join(
        letter.upper() if upper >> position % 8 & 1 else letter
        for position, letter in enumerate(text)
    )


@st.composite
def ipv6_spellings(draw: st.DrawFn, address: IPv6Address) -> str:
    """As inet_pton(3) reads it: any zeros left out once, others in front, the end perhaps as IPv4."""
    groups = [
        f"{group:x}" for group in (int(address) >> shift & 0xFFFF for shift in range(112, -1, -16))
    ]
    zero = [group == "0" for group in groups]
    groups = [group.zfill(draw(st.sampled_from([0, 0, 2, 4]))) for group in groups]
    if draw(st.booleans()):
        groups[6:] = [str(IPv4Address(int(address) & 0xFFFFFFFF))]
        zero[6:] = [False]
    start = draw(st.integers(0, len(groups) - 1))
    end = start
    while end < len(groups) and zero[end]:
        end += 1
    if end > start and draw(st.integers(0, 3)):
        text = ":".join(groups[:start]) + "::" + ":".join(groups[end:])
    else:
        text = ":".join(groups)
    return mixed(draw, text)


ZONES = st.sampled_from(["", "", "", "%eth0", "%25eth0", "%1", "%lo", "%25"])


@st.composite
def destinations(draw: st.DrawFn) -> tuple[IPAddress, bytes]:
    """A prohibited address, perhaps inside another one, and a CONNECT target for it."""
    address: IPAddress = draw(PROHIBITED_IPV4 | PROHIBITED_IPV6)
    if isinstance(address, IPv4Address):
        form = draw(st.sampled_from(["itself", "itself", *embedded(address)]))
        if form == "itself":
            text = draw(ipv4_spellings(address)) + draw(st.sampled_from(["", "", "."]))
            return address, f"{text}:443".encode()
        address = embedded(address)[form]
    text = draw(ipv6_spellings(address)) + draw(ZONES)
    return address, f"[{text}]:443".encode()


@settings(CALM, max_examples=1500)
@given(destinations())
@example((IPv4Address("127.0.0.1"), b"127.1:443"))
@example((IPv4Address("127.0.0.1"), b"0x7f.1:443"))
@example((IPv4Address("169.254.169.254"), b"0251.0376.0251.0376:443"))
@example((IPv4Address("169.254.169.254"), b"2852039166.:443"))
@example((IPv4Address("0.0.0.0"), b"0:443"))
@example((IPv4Address("0.0.0.0"), b"0x:443"))
@example((IPv6Address("::1"), b"[0:0:0:0:0:0:0.0.0.1]:443"))
@example((IPv6Address("::ffff:127.0.0.1"), b"[::FFFF:7F00:1%25lo]:443"))
def test_no_spelling_of_a_prohibited_destination_is_dialled(
    destination: tuple[IPAddress, bytes],
) -> None:
    address, target = destination
    try:
        host = parse_authority(target, None).host
    except HostError:
        return
    # It is that address, or what it stands for, and no name.
    plain = getattr(address, "ipv4_mapped", None) or address
    assert host.address == plain
    assert dialled(host) == []
    special = special_use(plain)
    assert special is not None
    assert bool(dialled(host, AUDITED)) is not special.guarded


@settings(CALM, max_examples=500)
@given(
    PROHIBITED_IPV4.flatmap(lambda address: st.tuples(st.just(address), ipv4_spellings(address)))
)
def test_every_spelling_that_a_resolver_takes_is_read(spelt: tuple[IPv4Address, str]) -> None:
    """Otherwise the whole property above would hold for want of anything that is read."""
    address, text = spelt
    assert canonical_host(text).address == address
    # glibc wants a digit behind 0x; others do not.
    assert takes_for_address(text) or any(part.lower() == "0x" for part in text.split("."))


@settings(CALM, max_examples=500)
@given(
    PROHIBITED_IPV6.flatmap(lambda address: st.tuples(st.just(address), ipv6_spellings(address)))
)
def test_every_spelling_of_an_ipv6_address_is_read(spelt: tuple[IPv6Address, str]) -> None:
    address, text = spelt
    assert socket.inet_pton(socket.AF_INET6, text) == address.packed
    plain = address.ipv4_mapped or address
    assert parse_authority(f"[{text}]:1".encode(), None).host.address == plain


@settings(CALM, max_examples=500)
@given(st.text("0123456789abcdefxX.%:-_ \t１。٣", max_size=24))
@example("127.0.0.1 ")
@example("１２７.0.0.1")
@example("127。0。0。1")
@example("127.0.0.1.example")
@example("0x7f.example.1")
@example("1.2.3.4.5")
def test_no_name_is_an_address_to_the_resolver(text: str) -> None:
    """What is taken for a name, nobody else may take for an address."""
    try:
        host = canonical_host(text)
    except HostError:
        return
    if host.address is None:
        assert not takes_for_address(host.text)
        with pytest.raises(ValueError, match="does not appear"):
            ipaddress.ip_address(host.text)
    elif takes_for_address(text):
        assert host.address.packed == socket.inet_aton(text)


@settings(CALM, max_examples=500)
@given(st.data())
def test_no_spelling_of_a_prohibited_answer_is_dialled(data: st.DataObject) -> None:
    """Name servers and the hosts file give texts too. What the gate does not read as an address does not pass."""
    address = data.draw(PROHIBITED_IPV4 | PROHIBITED_IPV6)
    forms = [address, *(embedded(address).values() if isinstance(address, IPv4Address) else ())]
    texts = []
    for form in forms:
        if isinstance(form, IPv4Address):
            texts.append(data.draw(ipv4_spellings(form)))
        else:
            texts.append(data.draw(ipv6_spellings(form)) + data.draw(ZONES))
        texts += wrapped(form)
    vetting = vet(texts, 443)
    assert vetting == Vetting((), tuple(texts))


@pytest.mark.parametrize("address", METADATA, ids=str)
def test_no_form_of_a_metadata_address_passes(address: IPAddress) -> None:
    forms = [address, *(embedded(address).values() if isinstance(address, IPv4Address) else ())]
    for form in forms:
        for audit in (False, True):
            wide = grant("0.0.0.0/0", "::/0", audit=audit)
            assert vet([str(form), form.exploded.upper()], 443, wide).passed == ()


def wrapped(address: IPAddress) -> list[str]:
    """The address with something around it that one reader drops and another does not."""
    found = [f"{address}.", f" {address}", f"{address} ", f"{address}\n", f"{address}\0"]
    found += [f"{address}/{address.max_prefixlen}", f"[{address}]", f"{address}%", f"{address}%\n"]
    return found


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "localhost",
        "example.com",
        "8.8.8.8.",
        "8.8.8",
        "8.8.8.8.8",
        "08.8.8.8",
        "8.8.8.8 ",
        " 8.8.8.8",
        "8.8.8.8\n",
        "8.8.8.8\0",
        "8.8.8.8:443",
        "8.8.8.8/32",
        "8.8.8.256",
        "８.8.8.8",
        "134744072",
        "0x8080808",
        "[2606:4700::1111]",
        "2606:4700:::1111",
        "2606:4700::11111",
        "2606:4700::1111/128",
        "2606:4700::1111%",
        "None",
        "*",
    ],
)
@pytest.mark.parametrize(
    "grant_",
    [PUBLIC_ONLY, grant("0.0.0.0/0", "::/0"), grant(audit=True)],
    ids=["public", "all", "audit"],
)
def test_what_cannot_be_read_is_prohibited(text: str, grant_: Grant) -> None:
    """A check that could not parse the address let it pass (iron-proxy's dial guard)."""
    assert vet([text], 443, grant_) == Vetting((), (text,))


def test_what_passes_is_what_was_judged() -> None:
    """The text that came is for people; the dialler gets the canonical text of the value that was looked up."""
    vetting = vet(
        [
            "8.8.8.8",
            "2606:4700:0:0::1111",
            "2606:4700::ABCD",
            "::ffff:8.8.4.4",
            "2606:4700::1%eth0",
        ],
        8443,
    )
    assert [(vetted.ip, vetted.port) for vetted in vetting.passed] == [
        ("8.8.8.8", 8443),
        ("2606:4700::1111", 8443),
        ("2606:4700::abcd", 8443),
        ("8.8.4.4", 8443),
        ("2606:4700::1", 8443),
    ]


def test_addresses_keep_their_order() -> None:
    vetting = vet(["8.8.8.8", "10.0.0.1", "2606:4700::1111", "junk", "1.1.1.1"], 443)
    assert [vetted.ip for vetted in vetting.passed] == ["8.8.8.8", "2606:4700::1111", "1.1.1.1"]
    assert vetting.prohibited == ("10.0.0.1", "junk")
    assert not vetting.would_prohibit
    assert vet([], 443) == Vetting((), ())
    assert [vetted.ip for vetted in vet(iter(["1.1.1.1"]), 1).passed] == ["1.1.1.1"]
