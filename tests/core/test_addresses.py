"""The address gate: what may not be reached isn't, however it is written; and nothing else makes a vetted address.

What is expected stands in ``data/``, copied from the registries, not in the table under test.
"""

from __future__ import annotations

import copy
import csv
import ipaddress
import pickle
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from egress_proxy.core import addresses
from egress_proxy.core.addresses import (
    PUBLIC_ONLY,
    SPECIAL_USE,
    Grant,
    VettedAddress,
    Vetting,
    lifts,
    special_use,
    vet,
)
from egress_proxy.core.networks import lies_within

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network

CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
DATA = Path(__file__).parent / "data"


def rows(name: str) -> list[dict[str, str]]:
    with (DATA / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


REGISTRY = rows("iana-ipv4-special-registry.csv") + rows("iana-ipv6-special-registry.csv")
METADATA = [ipaddress.ip_address(row["address"]) for row in rows("metadata-addresses.csv")]
NETWORKS = {row["network"]: ipaddress.ip_network(row["network"]) for row in REGISTRY}

MAPPED = IPv6Network("::ffff:0:0/96")
NAT64 = IPv6Network("64:ff9b::/96")
#: Globally reachable by the registry, and ordinary hosts for us.
LET_THROUGH = {"192.31.196.0/24", "192.52.193.0/24", "192.175.48.0/24", "2620:4f:8000::/48"}
#: These two stand for the whole of IPv4: the address inside decides.
DECIDED_INSIDE = {"::ffff:0:0/96", "64:ff9b::/96"}
#: What no special-purpose registry lists but the registries of multicast, IPv6 and 6to4 address space do.
MORE = [ipaddress.ip_network(text) for text in ("224.0.0.0/4", "ff00::/8", "fec0::/10", "::/96")]
PROHIBITED_NETWORKS: list[IPNetwork] = [
    *[network for text, network in NETWORKS.items() if text not in LET_THROUGH | DECIDED_INSIDE],
    *MORE,
    *[ipaddress.ip_network(address) for address in METADATA],
]
GLOBAL_UNICAST = IPv6Network("2000::/3")


def prohibited(address: IPAddress) -> bool:
    """The expectation, by a plain look at every network."""
    if isinstance(address, IPv6Address):
        if address in MAPPED or address in NAT64:
            return prohibited(IPv4Address(int(address) & 0xFFFFFFFF))
        if address not in GLOBAL_UNICAST:
            return True
    return any(
        address.version == network.version and address in network for network in PROHIBITED_NETWORKS
    )


def passes(text: str, grant: Grant = PUBLIC_ONLY) -> bool:
    vetting = vet([text], 443, grant)
    assert bool(vetting.passed) != bool(vetting.prohibited)
    return bool(vetting.passed)


def grant(*networks: str, deny: tuple[str, ...] = (), audit: bool = False) -> Grant:
    closed = tuple(map(ipaddress.ip_network, deny))

    def closes(address: IPAddress) -> bool:
        return any(address.version == net.version and address in net for net in closed)

    return Grant(tuple(map(ipaddress.ip_network, networks)), closes if deny else None, audit)


def step(address: IPAddress, by: int) -> IPAddress | None:
    value = int(address) + by
    return type(address)(value) if 0 <= value < 2**address.max_prefixlen else None


def teredo(address: IPv4Address) -> IPv6Address:
    return IPv6Address((0x20010000 << 96) | (0x08080808 << 64) | (int(address) ^ 0xFFFFFFFF))


def embedded(address: IPv4Address) -> dict[str, IPv6Address]:
    """Every IPv6 address that a translator, a tunnel or the kernel would take to this IPv4 address."""
    value = int(address)
    return {
        "mapped": IPv6Address((0xFFFF << 32) | value),
        "compatible": IPv6Address(value),
        "translated": IPv6Address((0xFFFF << 48) | value),
        "NAT64": IPv6Address((0x64FF9B << 96) | value),
        "local NAT64": IPv6Address((0x64FF9B0001 << 80) | value),
        "6to4": IPv6Address((0x2002 << 112) | (value << 80) | 1),
        "Teredo": teredo(address),
    }


def spellings(address: IPAddress) -> list[str]:
    """Ways to write an address, of which ``ipaddress`` reads some and a C library more."""
    if isinstance(address, IPv4Address):
        octets = list(address.packed)
        return [
            str(address),
            ".".join(f"0{octet:o}" for octet in octets),
            ".".join(f"0x{octet:x}" for octet in octets),
            ".".join(f"{octet:03}" for octet in octets),
            f"{octets[0]}.{int(address) & 0xFFFFFF}",
            str(int(address)),
            hex(int(address)),
            f"0{int(address):o}",
            f"{address}.",
            f" {address}",
            f"{address} ",
            f"{address}\n",
            f"{address}\0",
            f"{address}%eth0",
            f"{address}/32",
            f"[{address}]",
            f"::{address}",
            f"::ffff:{address}",
            f"0:0:0:0:0:FFFF:{address}",
            f"64:ff9b::{address}",
            f"::ffff:{address}%eth0",
        ]
    groups = address.exploded.split(":")
    tail = str(IPv4Address(int(address) & 0xFFFFFFFF))
    return [
        str(address),
        str(address).upper(),
        address.exploded,
        ":".join([*groups[:6], tail]),
        f"{address}%eth0",
        f"{address}%25eth0",
        f"{address}%",
        f"[{address}]",
        f"{address}/128",
        f" {address}",
        f"{address}\n",
    ]


# The registries.


@pytest.mark.parametrize(
    "row",
    [row for row in REGISTRY if row["network"] not in DECIDED_INSIDE],
    ids=lambda row: f"{row['network']} {row['name']}",
)
def test_a_row_of_the_registries(row: dict[str, str]) -> None:
    network = NETWORKS[row["network"]]
    for address in (network[0], network[-1], network[network.num_addresses // 2]):
        assert passes(str(address)) is (row["network"] in LET_THROUGH)


def test_what_is_let_through_is_globally_reachable() -> None:
    reachable = {row["network"] for row in REGISTRY if row["globally_reachable"] == "yes"}
    assert reachable >= LET_THROUGH
    # Anycast services and identifiers that no web server lives at.
    assert reachable - LET_THROUGH - DECIDED_INSIDE == {
        "192.0.0.9/32",
        "192.0.0.10/32",
        "2001:1::1/128",
        "2001:1::2/128",
        "2001:1::3/128",
        "2001:3::/32",
        "2001:4:112::/48",
        "2001:20::/28",
        "2001:30::/28",
    }


def edges() -> Iterator[IPAddress]:
    """First, last, one before and one after of every network that anybody has named."""
    for network in [*NETWORKS.values(), *MORE, *[row.network for row in SPECIAL_USE]]:
        for address in (network[0], network[-1], step(network[0], -1), step(network[-1], 1)):
            if address is not None:
                yield address


def test_the_edges_of_every_network() -> None:
    wrong = [address for address in edges() if passes(str(address)) is prohibited(address)]
    assert wrong == []


ADDRESSES = st.one_of(
    st.ip_addresses(),
    st.sampled_from(sorted({str(address) for address in edges()})).map(ipaddress.ip_address),
    st.ip_addresses(v=4)
    .map(IPv4Address)
    .flatmap(lambda address: st.sampled_from(list(embedded(address).values()))),
)


@settings(CALM, max_examples=500)
@given(ADDRESSES)
def test_any_address(address: IPAddress) -> None:
    assert passes(str(address)) is not prohibited(address)


def is_global(address: IPAddress) -> bool:
    if isinstance(address, IPv6Address) and (address in MAPPED or address in NAT64):
        return is_global(IPv4Address(int(address) & 0xFFFFFFFF))
    return address.is_global


#: Global by some release of Python, and prohibited by us.
STRICTER = [
    ipaddress.ip_network(text)
    for text in (
        "168.63.129.16/32",  # Azure's wire server
        "192.0.0.0/24",
        "192.88.99.0/24",
        "224.0.0.0/4",
        "2001::/23",
        "2002::/16",
        "3fff::/20",
        "::/3",  # not allocated
        "4000::/2",
        "8000::/1",
    )
]


@settings(CALM, max_examples=500)
@given(ADDRESSES)
@example(IPv4Address("8.8.8.8"))
@example(IPv6Address("2001:4860:4860::8888"))
def test_python_says_the_same_or_less(address: IPAddress) -> None:
    if not is_global(address):
        assert not passes(str(address))
    elif not passes(str(address)):
        address = address.ipv4_mapped or address if isinstance(address, IPv6Address) else address
        if isinstance(address, IPv6Address) and address in NAT64:
            address = IPv4Address(int(address) & 0xFFFFFFFF)
        assert any(
            address.version == network.version and address in network for network in STRICTER
        )


@pytest.mark.parametrize(
    ("text", "kind", "guarded"),
    [
        ("0.0.0.0", "unspecified", True),
        ("0.1.2.3", "unspecified", True),
        ("127.255.255.254", "loopback", True),
        ("169.254.1.1", "link_local", True),
        ("169.254.169.254", "metadata", True),
        ("100.100.100.200", "metadata", True),
        ("168.63.129.16", "metadata", True),
        ("10.1.2.3", "private", False),
        ("172.31.255.255", "private", False),
        ("192.168.0.1", "private", False),
        ("100.64.0.1", "shared", False),
        ("192.0.2.1", "documentation", False),
        ("198.19.255.255", "benchmarking", False),
        ("239.255.255.255", "multicast", False),
        ("250.0.0.1", "reserved", False),
        ("::", "unspecified", True),
        ("::1", "loopback", True),
        ("::2", "transition", True),
        ("fe80::1", "link_local", True),
        ("fd00:ec2::254", "metadata", True),
        ("fd00::1", "private", False),
        ("fec0::1", "private", False),
        ("ff02::1", "multicast", False),
        ("2001:db8::1", "documentation", False),
        ("5f00::1", "reserved", True),
        ("100::1", "reserved", True),
        ("2001:0:808:808::f7f7:f7f7", "transition", False),
        ("2002:808:808::1", "transition", False),
        # The address inside says more than the form it is written in.
        ("::ffff:10.0.0.1", "private", False),
        ("::10.0.0.1", "transition", True),
        ("64:ff9b::10.0.0.1", "private", False),
        ("2002:a00:1::1", "private", False),
        ("::127.0.0.1", "loopback", True),
        ("2002:7f00:1::1", "loopback", True),
        ("2002:a9fe:a9fe::1", "metadata", True),
        ("::ffff:0:169.254.169.254", "metadata", True),
        ("64:ff9b::169.254.169.254", "metadata", True),
        ("64:ff9b:1::169.254.169.254", "metadata", True),
        ("64:ff9b:1::10.0.0.1", "transition", True),
        ("64:ff9b:1:7f00:0:100::", "transition", True),
    ],
)
def test_the_kind_of_an_address(text: str, kind: str, guarded: bool) -> None:
    special = special_use(ipaddress.ip_address(text))
    assert special is not None
    assert (special.kind, special.guarded) == (kind, guarded)


@pytest.mark.parametrize(
    "text", ["8.8.8.8", "2606:4700::1111", "64:ff9b::8.8.8.8", "::ffff:8.8.8.8"]
)
def test_an_ordinary_address_has_no_kind(text: str) -> None:
    assert special_use(ipaddress.ip_address(text)) is None


def test_the_table_names_its_networks_once() -> None:
    networks = [row.network for row in SPECIAL_USE]
    assert len(networks) == len(set(networks))


# However it is written.

PROHIBITED_IPV4 = st.sampled_from(
    [network for network in PROHIBITED_NETWORKS if isinstance(network, IPv4Network)]
).flatmap(lambda network: st.ip_addresses(network=network))
PROHIBITED_IPV6 = st.sampled_from(
    [network for network in PROHIBITED_NETWORKS if isinstance(network, IPv6Network)]
).flatmap(lambda network: st.ip_addresses(network=network))


@settings(CALM, max_examples=200)
@given(PROHIBITED_IPV4 | PROHIBITED_IPV6)
@example(IPv4Address("127.0.0.1"))
@example(IPv4Address("169.254.169.254"))
@example(IPv4Address("10.0.0.1"))
@example(IPv4Address("0.0.0.0"))
@example(IPv6Address("::1"))
@example(IPv6Address("fd00:ec2::254"))
def test_no_spelling_of_a_prohibited_address_passes(address: IPAddress) -> None:
    forms = [address, *(embedded(address).values() if isinstance(address, IPv4Address) else ())]
    texts = [text for form in forms for text in spellings(form)]
    vetting = vet(texts, 443)
    assert vetting == Vetting((), tuple(texts))


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


@pytest.mark.parametrize("text", ["64:ff9b::8.8.8.8", "64:ff9b::808:808"])
def test_nat64_reaches_what_ipv4_may(text: str) -> None:
    """A cluster behind DNS64 reaches the IPv4 internet in this way alone."""
    assert passes(text)


@pytest.mark.parametrize("text", ["64:ff9b:1:808:8:800::", "64:ff9b:1::8.8.8.8"])
def test_a_local_translator_is_reached_by_its_own_network(text: str) -> None:
    """RFC 6052 §2.2: behind a prefix of 48 bits the address stands in the middle, behind one of 96 at the end."""
    assert not passes(text, grant("::/0", audit=True))
    assert passes(text, grant("64:ff9b:1::/48"))


# What a rule may lift.


@pytest.mark.parametrize(
    "row", [row for row in SPECIAL_USE if row.guarded], ids=lambda row: str(row.network)
)
def test_no_wider_network_lifts_a_guarded_one(row: addresses.SpecialUse) -> None:
    for address in {row.network[0], row.network[-1], row.network[row.network.num_addresses // 2]}:
        if special_use(address) != row:
            continue  # A narrower guarded row holds it.
        for length in range(row.network.prefixlen):
            wide = row.network.supernet(new_prefix=length)
            assert not lifts(wide, address, row)
            assert not passes(str(address), Grant((wide,)))
        assert lifts(row.network, address, row)
        assert passes(str(address), Grant((row.network,)))
        assert passes(str(address), Grant((ipaddress.ip_network(address),)))


@pytest.mark.parametrize(
    "row", [row for row in SPECIAL_USE if not row.guarded], ids=lambda row: str(row.network)
)
def test_any_network_that_holds_it_lifts_another(row: addresses.SpecialUse) -> None:
    for address in {row.network[0], row.network[-1]}:
        if special_use(address) != row:
            continue
        for length in range(row.network.prefixlen + 1):
            assert passes(str(address), Grant((row.network.supernet(new_prefix=length),)))
        assert passes(str(address), Grant((ipaddress.ip_network(address),)))


@settings(CALM, max_examples=200)
@given(PROHIBITED_IPV4 | PROHIBITED_IPV6, st.integers(0, 128), st.booleans())
def test_a_network_lifts_nothing_that_it_does_not_hold(
    address: IPAddress, length: int, audit: bool
) -> None:
    length = min(length, address.max_prefixlen)
    network = ipaddress.ip_network(f"{address}/{length}", strict=False)
    if length:
        sibling = type(address)(int(network[0]) ^ (1 << (network.max_prefixlen - length)))
        assert not passes(str(address), Grant((ipaddress.ip_network(f"{sibling}/{length}"),)))
    special = special_use(address)
    assert special is not None
    if special.guarded and not lies_within(network, special.network):
        assert not passes(str(address), Grant((network,), audit=audit))


@pytest.mark.parametrize("address", METADATA, ids=str)
@pytest.mark.parametrize("audit", [False, True])
def test_metadata_is_reached_by_its_own_name_alone(address: IPAddress, audit: bool) -> None:
    own = ipaddress.ip_network(address)
    assert passes(str(address), Grant((own,), audit=audit))
    special = special_use(address)
    assert special is not None
    assert special.kind == "metadata"
    wide = [own.supernet(new_prefix=length) for length in range(own.prefixlen)]
    assert not passes(str(address), Grant(tuple(wide), audit=audit))


def test_metadata_stays_closed_where_link_local_is_open() -> None:
    opened = grant("169.254.0.0/16", "127.0.0.0/8")
    assert passes("169.254.1.1", opened)
    assert passes("127.0.0.1", opened)
    assert not passes("169.254.169.254", opened)
    assert not passes("169.254.170.2", opened)
    assert passes("169.254.169.254", grant("169.254.169.254/32"))


@settings(CALM, max_examples=200)
@given(
    st.sampled_from(["127.0.0.1", "169.254.169.254", "169.254.1.1", "168.63.129.16"]),
    st.integers(0, 128),
)
def test_no_embedding_of_a_guarded_address_is_ever_lifted(text: str, length: int) -> None:
    """Their own IPv6 form is no range of theirs: who wants them writes the IPv4 network."""
    for name, form in embedded(IPv4Address(text)).items():
        if name != "mapped":
            for audit in (False, True):
                assert not passes(
                    str(form), Grant((IPv6Network((int(form), length), strict=False),), audit=audit)
                ), name


def test_a_mapped_address_is_lifted_as_ipv4() -> None:
    assert passes("::ffff:10.0.0.1", grant("10.0.0.0/8"))
    assert not passes("::ffff:10.0.0.1", grant("::/0"))


def test_an_ipv4_network_does_not_lift_its_embeddings() -> None:
    for name, form in embedded(IPv4Address("10.0.0.1")).items():
        assert passes(str(form), grant("10.0.0.0/8")) is (name == "mapped")


def test_nothing_is_lifted_in_space_that_is_not_allocated() -> None:
    """`::/0` means the internet, which is 2000::/3."""
    for text in ("1::1", "100::1", "4000::1", "5f00::1", "8000::1", "fe00::1", "::ffff:0:8.8.8.8"):
        assert not passes(text, grant("::/0"))
        assert not passes(text, grant("::/0", audit=True))


# What a deny rule closes.


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("8.8.8.8", "8.8.8.0/24"),
        ("8.8.8.8", "0.0.0.0/0"),
        ("::ffff:8.8.8.8", "8.8.8.8/32"),
        ("64:ff9b::8.8.8.8", "8.8.8.8/32"),
        ("64:ff9b::8.8.8.8", "64:ff9b::/96"),
        ("2606:4700::1", "2606:4700::/32"),
        ("2606:4700::1", "::/0"),
    ],
)
def test_a_denied_network_is_closed(text: str, network: str) -> None:
    assert passes(text)
    assert not passes(text, grant(deny=(network,)))
    assert not passes(text, grant("0.0.0.0/0", "::/0", deny=(network,)))
    assert not passes(text, grant(network, deny=(network,)))
    audited = vet([text], 443, grant(deny=(network,), audit=True))
    assert len(audited.passed) == 1
    assert audited.would_prohibit


@pytest.mark.parametrize(
    "name", ["compatible", "NAT64", "local NAT64", "6to4", "Teredo", "translated"]
)
def test_a_denied_ipv4_network_is_closed_in_every_embedding(name: str) -> None:
    form = embedded(IPv4Address("9.9.9.9"))[name]
    own = str(ipaddress.ip_network(form))
    assert passes(str(form), grant(own))
    assert not passes(str(form), grant(own, deny=("9.9.9.0/24",)))
    assert passes(str(form), grant(own, deny=("9.9.8.0/24",)))


def test_a_denied_network_closes_nothing_else() -> None:
    assert passes("8.8.4.4", grant(deny=("8.8.8.0/24",)))
    assert passes("2606:4700::1", grant(deny=("0.0.0.0/0",)))
    assert passes("8.8.8.8", grant(deny=("::/0",)))
    assert passes("10.0.0.1", grant("10.0.0.0/8", deny=("10.1.0.0/16",)))


# Audit mode.


def test_audit_lets_through_and_says_so() -> None:
    for text in ("10.0.0.1", "100.64.0.1", "192.0.2.1", "fd00::1", "2002:808:808::1", "224.0.0.1"):
        vetting = vet([text], 443, grant(audit=True))
        assert [vetted.ip for vetted in vetting.passed] == [text]
        assert vetting.would_prohibit
    assert not vet(["8.8.8.8"], 443, grant(audit=True)).would_prohibit
    assert not vet(["10.0.0.1"], 443, grant("10.0.0.0/8", audit=True)).would_prohibit


def test_audit_dials_what_would_be_dialled_without_it() -> None:
    for texts in (["8.8.8.8", "10.0.0.1", "127.0.0.1"], ["127.0.0.1", "10.0.0.1", "8.8.8.8"]):
        vetting = vet(texts, 443, grant(audit=True))
        assert [vetted.ip for vetted in vetting.passed] == ["8.8.8.8"]
        assert set(vetting.prohibited) == {"10.0.0.1", "127.0.0.1"}
        assert not vetting.would_prohibit
    vetting = vet(["10.0.0.1", "127.0.0.1"], 443, grant(audit=True))
    assert [vetted.ip for vetted in vetting.passed] == ["10.0.0.1"]
    assert vetting.prohibited == ("127.0.0.1",)
    assert vetting.would_prohibit


@settings(CALM, max_examples=300)
@given(PROHIBITED_IPV4 | PROHIBITED_IPV6)
def test_audit_never_lets_a_guarded_address_through(address: IPAddress) -> None:
    special = special_use(address)
    assert special is not None
    assert passes(str(address), grant(audit=True)) is not special.guarded
    if isinstance(address, IPv4Address) and special.guarded:
        for form in embedded(address).values():
            assert not passes(str(form), grant(audit=True))
            assert not passes(str(form), grant("0.0.0.0/0", "::/0", audit=True))


def test_audit_does_not_undo_a_deny_of_a_guarded_address() -> None:
    assert passes("127.0.0.1", grant("127.0.0.0/8", audit=True))
    assert not passes("127.0.0.1", grant("127.0.0.0/8", deny=("127.0.0.0/8",), audit=True))


@pytest.mark.parametrize(
    "text",
    [
        "127.0.0.1",
        "::1",
        "169.254.169.254",
        "0.0.0.0",
        "::",
        "fe80::1",
        "::ffff:127.0.0.1",
        "::127.0.0.1",
    ],
)
def test_audit_guards(text: str) -> None:
    assert not passes(text, grant(audit=True))


# Networks.


@pytest.mark.parametrize(
    ("inner", "outer", "expected"),
    [
        ("10.0.0.0/8", "10.0.0.0/8", True),
        ("10.1.0.0/16", "10.0.0.0/8", True),
        ("10.0.0.0/7", "10.0.0.0/8", False),
        ("0.0.0.0/0", "10.0.0.0/8", False),
        ("11.0.0.0/8", "10.0.0.0/8", False),
        ("::/0", "0.0.0.0/0", False),
        ("0.0.0.0/0", "::/0", False),
        ("fd00::/8", "fc00::/7", True),
        ("fc00::/6", "fc00::/7", False),
    ],
)
def test_lies_within(inner: str, outer: str, expected: bool) -> None:
    assert lies_within(ipaddress.ip_network(inner), ipaddress.ip_network(outer)) is expected


# A vetted address is made by the gate alone.


@pytest.fixture
def vetted() -> VettedAddress:
    return vet(["8.8.8.8"], 443).passed[0]


def test_it_cannot_be_made_directly() -> None:
    make: Any = VettedAddress
    with pytest.raises(TypeError):
        make("127.0.0.1", 443)
    for gate in (None, object(), True, "gate"):
        with pytest.raises(TypeError, match=r"made by vet\(\) alone"):
            make("127.0.0.1", 443, gate=gate)


def test_it_cannot_be_changed(vetted: VettedAddress) -> None:
    changed: Any = vetted
    with pytest.raises(AttributeError):
        changed.ip = "127.0.0.1"
    with pytest.raises(AttributeError):
        changed.port = 22
    with pytest.raises(AttributeError):
        changed.other = 1
    with pytest.raises(AttributeError):
        del changed.ip
    with pytest.raises(AttributeError):
        changed.__class__ = object
    assert (vetted.ip, vetted.port) == ("8.8.8.8", 443)
    assert repr(vetted) == "VettedAddress('8.8.8.8', 443)"
    assert not hasattr(vetted, "__dict__")


@pytest.mark.parametrize(
    "replicate", [copy.copy, copy.deepcopy, pickle.dumps], ids=lambda call: call.__name__
)
def test_it_cannot_be_copied(vetted: VettedAddress, replicate: Any) -> None:
    with pytest.raises(TypeError, match=r"made by vet\(\) alone"):
        replicate(vetted)


def test_it_cannot_be_subclassed() -> None:
    with pytest.raises(TypeError):
        type("Forged", (VettedAddress,), {})


def test_one_that_skips_its_constructor_is_empty() -> None:
    """`object.__new__` and `object.__setattr__` are stronger than any class; without the latter it holds no address."""
    forged = object.__new__(VettedAddress)
    with pytest.raises(AttributeError):
        _ = forged.ip
    with pytest.raises(AttributeError):
        forged.ip = "127.0.0.1"


def test_values_are_values(vetted: VettedAddress) -> None:
    for value, name in [
        (PUBLIC_ONLY, "audit"),
        (Vetting((vetted,), ()), "passed"),
        (SPECIAL_USE[0], "guarded"),
    ]:
        changeable: Any = value
        with pytest.raises(AttributeError):
            setattr(changeable, name, True)
    assert (PUBLIC_ONLY.allow, PUBLIC_ONLY.closed, PUBLIC_ONLY.audit) == ((), None, False)
