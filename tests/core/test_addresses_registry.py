"""The table of special addresses against the registries that it follows, and against Python's own."""

from __future__ import annotations

import ipaddress
import random
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from egress_proxy.core.special_use import SPECIAL_USE, special_use
from tests.core.address_forms import (
    DECIDED_INSIDE,
    MAPPED,
    NAT64,
    NETWORKS,
    REGISTRY,
    IPAddress,
    edges,
    embedded,
    grant,
    holds,
    passes,
    prohibited,
)
from tests.support.calm import CALM

# The registries.


def test_the_data_has_all_of_the_registries() -> None:
    """A row that is lost is a network that nobody tests."""
    assert len(REGISTRY) == len(NETWORKS)
    assert [sum(net.version == version for net in NETWORKS.values()) for version in (4, 6)] == [
        26,
        25,
    ]
    assert {row["globally_reachable"] for row in REGISTRY} == {"yes", "no", "n/a"}


@pytest.mark.parametrize(
    "row",
    [row for row in REGISTRY if row["network"] not in DECIDED_INSIDE],
    ids=lambda row: f"{row['network']} {row['name']}",
)
def test_a_row_of_the_registries(row: dict[str, str]) -> None:
    """Its edges, its middle, and some of it by chance. None passes, be it globally reachable or not."""
    network = NETWORKS[row["network"]]
    chance = random.Random(row["network"])
    size = network.num_addresses
    inside = {network[chance.randrange(size)] for _ in range(50)}
    for address in {network[0], network[-1], network[size // 2], *inside}:
        assert not passes(str(address))
        assert not passes(str(address), grant(audit=True)) or not is_guarded(address)


def is_guarded(address: IPAddress) -> bool:
    special = special_use(address)
    assert special is not None
    return special.guarded


#: Globally reachable by the registries, and yet no hosts of the internet: what they are to the table, which says why.
REACHABLE = {
    "192.0.0.9/32": "anycast",
    "192.0.0.10/32": "anycast",
    "192.31.196.0/24": "anycast",
    "192.52.193.0/24": "anycast",
    "192.175.48.0/24": "anycast",
    "2001:1::1/128": "anycast",
    "2001:1::2/128": "anycast",
    "2001:1::3/128": "anycast",
    "2001:3::/32": "anycast",
    "2001:4:112::/48": "anycast",
    "2620:4f:8000::/48": "anycast",
    "2001:20::/28": "reserved",
    "2001:30::/28": "reserved",
}


def test_what_is_globally_reachable_is_judged_row_by_row() -> None:
    reachable = {row["network"] for row in REGISTRY if row["globally_reachable"] == "yes"}
    # 64:ff9b::/96 is another way to write IPv4.
    assert reachable - {"64:ff9b::/96"} == REACHABLE.keys()


@pytest.mark.parametrize(("text", "kind"), REACHABLE.items())
def test_what_is_globally_reachable_can_be_opened(text: str, kind: str) -> None:
    """Who needs it names it."""
    network = NETWORKS[text]
    for address in (network[0], network[-1]):
        special = special_use(address)
        assert special is not None
        assert (special.kind, special.guarded) == (kind, False)
        assert passes(str(address), grant(text))


@pytest.mark.parametrize(
    "text",
    [
        *("1.0.0.1", "1.1.1.1", "8.8.8.8", "9.9.9.9", "11.0.0.1", "100.63.255.255", "100.128.0.1"),
        *("126.255.255.255", "128.0.0.1", "140.82.112.3", "168.63.129.15", "168.63.129.17"),
        *("169.253.255.255", "169.255.0.1", "172.15.255.255", "172.32.0.1", "185.199.108.133"),
        *("191.255.255.255", "192.0.1.1", "192.0.3.1", "192.31.195.255", "192.88.98.255"),
        *("192.167.255.255", "192.169.0.1", "198.17.255.255", "198.20.0.1", "198.51.99.255"),
        *("203.0.112.255", "203.0.114.1", "223.255.255.255"),
        *("2001:200::1", "2001:4860:4860::8888", "2001:db7::1", "2001:db9::1", "2003::1"),
        *("2400:cb00::1", "2606:4700::1111", "2620:4f:7fff::1", "2620:4f:8001::1", "2620:fe::fe"),
        *("2a00:1450::1", "3ffe:ffff::1", "3fff:1000::1"),
    ],
)  # fmt: skip
def test_an_ordinary_address_passes(text: str) -> None:
    """What stands next to each special network is the internet."""
    assert passes(text)
    assert special_use(ipaddress.ip_address(text)) is None


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


#: Global by some release of Python, and prohibited by us.
STRICTER = [
    ipaddress.ip_network(text)
    for text in (
        "168.63.129.16/32",  # Azure's wire server
        "192.0.0.0/24",
        "192.31.196.0/24",
        "192.52.193.0/24",
        "192.88.99.0/24",
        "192.175.48.0/24",
        "224.0.0.0/4",
        "2001::/23",
        "2002::/16",
        "2620:4f:8000::/48",
        "3fff::/20",
        "::/3",  # not allocated
        "4000::/2",
        "8000::/1",
    )
]


def expected(address: IPAddress) -> bool:
    """Whether Python finds an address global, and all IPv4 addresses that it may lead to, and none is one of these."""
    if isinstance(address, IPv6Address) and (address in MAPPED or address in NAT64):
        return expected(IPv4Address(int(address) & 0xFFFFFFFF))
    if isinstance(address, IPv6Address) and int(address) >> 32 & 0xFDFFFFFF == 0x5EFE:
        # ISATAP, of which Python knows nothing.
        return expected(IPv6Address(int(address) ^ 1 << 32)) and expected(
            IPv4Address(int(address) & 0xFFFFFFFF)
        )
    return address.is_global and not any(holds(network, address) for network in STRICTER)


@settings(CALM, max_examples=500)
@given(ADDRESSES)
@example(IPv4Address("8.8.8.8"))
@example(IPv6Address("2001:4860:4860::8888"))
@example(IPv6Address("2606:4700::5efe:7f00:1"))
def test_python_says_the_same_but_for_these(address: IPAddress) -> None:
    assert passes(str(address)) is expected(address)


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
        ("64:ff9b:1:7f00:0:100::", "loopback", True),
        ("64:ff9b:1:808:8:800::", "transition", True),
        ("2606:4700::5efe:10.0.0.1", "private", False),
        ("2606:4700::200:5efe:127.0.0.1", "loopback", True),
        ("fe80::5efe:10.0.0.1", "link_local", True),
        ("fe80::5efe:127.0.0.1", "loopback", True),
        ("2001:0:a9fe:a9fe::f7f7:f7f7", "metadata", True),
        ("2001:0:808:808::5601:5601", "metadata", True),
        ("192.0.0.9", "anycast", False),
        ("192.0.0.8", "reserved", False),
        ("2001:20::1", "reserved", False),
        ("fd00:ec2::253", "link_local", True),
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
