"""Addresses for the tests of the address gate: what the registries say, and every way to write one.

What is expected stands in ``data/``, copied from the registries, not in the table under test.
"""

from __future__ import annotations

import csv
import ipaddress
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

from hypothesis import strategies as st

from egress_proxy.core.addresses import PUBLIC_ONLY, Grant, vet
from egress_proxy.core.special_use import ANYWHERE, SPECIAL_USE, Surroundings

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network

DATA = Path(__file__).parent / "data"


def rows(name: str) -> list[dict[str, str]]:
    with (DATA / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


REGISTRY = rows("iana-ipv4-special-registry.csv") + rows("iana-ipv6-special-registry.csv")
METADATA = [ipaddress.ip_address(row["address"]) for row in rows("metadata-addresses.csv")]
NETWORKS = {row["network"]: ipaddress.ip_network(row["network"]) for row in REGISTRY}

MAPPED = IPv6Network("::ffff:0:0/96")
NAT64 = IPv6Network("64:ff9b::/96")
#: These two stand for the whole of IPv4: the address inside decides.
DECIDED_INSIDE = {"::ffff:0:0/96", "64:ff9b::/96"}
#: What no special-purpose registry lists but the registries of multicast, IPv6 and 6to4 address space do.
MORE = [ipaddress.ip_network(text) for text in ("224.0.0.0/4", "ff00::/8", "fec0::/10", "::/96")]
PROHIBITED_NETWORKS: list[IPNetwork] = [
    *[network for text, network in NETWORKS.items() if text not in DECIDED_INSIDE],
    *MORE,
    *[ipaddress.ip_network(address) for address in METADATA],
]
GLOBAL_UNICAST = IPv6Network("2000::/3")


def holds(network: IPNetwork, address: IPAddress) -> bool:
    return address.version == network.version and address in network


def prohibited(address: IPAddress) -> bool:
    """The expectation, by a plain look at every network."""
    if isinstance(address, IPv6Address):
        if address in MAPPED or address in NAT64:
            return prohibited(IPv4Address(int(address) & 0xFFFFFFFF))
        if address not in GLOBAL_UNICAST:
            return True
        isatap = address.packed[8:12] in (b"\0\0\x5e\xfe", b"\2\0\x5e\xfe")
        if isatap and prohibited(IPv4Address(address.packed[12:])):
            return True
    return any(holds(network, address) for network in PROHIBITED_NETWORKS)


def passes(text: str, grant: Grant = PUBLIC_ONLY) -> bool:
    vetting = vet([text], 443, grant)
    assert bool(vetting.passed) != bool(vetting.prohibited)
    return bool(vetting.passed)


def grant(
    *networks: str,
    deny: tuple[str, ...] = (),
    audit: bool = False,
    around: Surroundings = ANYWHERE,
) -> Grant:
    closed = tuple(map(ipaddress.ip_network, deny))

    def closes(address: IPAddress) -> bool:
        return any(holds(network, address) for network in closed)

    allow = tuple(map(ipaddress.ip_network, networks))
    return Grant(allow, closes if deny else None, audit, around)


def surroundings(*internal: str, nat64: tuple[str, ...] = ()) -> Surroundings:
    return Surroundings(tuple(map(ipaddress.ip_network, internal)), tuple(map(IPv6Network, nat64)))


def step(address: IPAddress, by: int) -> IPAddress | None:
    value = int(address) + by
    return type(address)(value) if 0 <= value < 2**address.max_prefixlen else None


def edges() -> Iterator[IPAddress]:
    """First, last, one before and one after of every network that anybody has named."""
    for network in [*NETWORKS.values(), *MORE, *[row.network for row in SPECIAL_USE]]:
        for address in (network[0], network[-1], step(network[0], -1), step(network[-1], 1)):
            if address is not None:
                yield address


def nat64(address: IPv4Address, prefix: str) -> IPv6Address:
    """The address as a translator with this prefix writes it, by the figure in RFC 6052 §2.2."""
    network = IPv6Network(prefix)
    octets = network.network_address.packed[: network.prefixlen // 8] + address.packed
    if network.prefixlen < 96:
        octets = octets[:8] + b"\0" + octets[8:]
    return IPv6Address(octets.ljust(16, b"\0"))


def teredo(client: IPv4Address, server: IPv4Address) -> IPv6Address:
    hidden = bytes(octet ^ 0xFF for octet in client.packed)
    return IPv6Address(b"\x20\x01\0\0" + server.packed + bytes(4) + hidden)


PUBLIC = IPv4Address("8.8.8.8")


def embedded(address: IPv4Address) -> dict[str, IPv6Address]:
    """Every IPv6 address that a translator, a tunnel or the kernel would take to this IPv4 address."""
    octets = address.packed
    return {
        "mapped": IPv6Address(bytes(10) + b"\xff\xff" + octets),
        "compatible": IPv6Address(bytes(12) + octets),
        "translated": IPv6Address(bytes(8) + b"\xff\xff\0\0" + octets),
        "NAT64": nat64(address, "64:ff9b::/96"),
        "local NAT64": nat64(address, "64:ff9b:1::/96"),
        "local NAT64, 48 bits": nat64(address, "64:ff9b:1::/48"),
        "local NAT64, 56 bits": nat64(address, "64:ff9b:1:100::/56"),
        "local NAT64, 64 bits": nat64(address, "64:ff9b:1:1::/64"),
        "6to4": IPv6Address(b"\x20\x02" + octets + bytes(9) + b"\1"),
        "Teredo client": teredo(address, PUBLIC),
        "Teredo server": teredo(PUBLIC, address),
        "ISATAP": IPv6Address(bytes.fromhex("26064700000000010000 5efe") + octets),
        "ISATAP, global": IPv6Address(bytes.fromhex("26064700000000010200 5efe") + octets),
        "ISATAP, link-local": IPv6Address(bytes.fromhex("fe8000000000000000005efe") + octets),
    }


PROHIBITED_IPV4 = (
    st.sampled_from([net for net in PROHIBITED_NETWORKS if isinstance(net, IPv4Network)])
    .flatmap(lambda network: st.ip_addresses(network=network))
    .map(IPv4Address)
)
PROHIBITED_IPV6 = (
    st.sampled_from([net for net in PROHIBITED_NETWORKS if isinstance(net, IPv6Network)])
    .flatmap(lambda network: st.ip_addresses(network=network))
    .map(IPv6Address)
)
