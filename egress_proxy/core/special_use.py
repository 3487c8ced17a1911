"""Addresses that are no ordinary hosts of the internet, and the networks that only this cluster knows as its own.

The table follows the IANA IPv4 and IPv6 special-purpose address registries (RFC 6890), the multicast and reserved
blocks, and the addresses at which clouds serve credentials to whoever asks. What the table does not know as ordinary
unicast space is special.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Network, ip_network
from typing import Final

from egress_proxy.core.embedding import (
    LOCAL_NAT64,
    WELL_KNOWN_NAT64,
    embedded_ipv4,
    is_nat64_address,
    is_nat64_prefix,
)
from egress_proxy.core.names import IPAddress
from egress_proxy.core.networks import IPNetwork, NetworkIndex, lies_within


@dataclass(frozen=True, slots=True)
class SpecialUse:
    """A network that ordinary internet hosts do not live in."""

    network: IPNetwork
    kind: str
    guarded: bool
    """Lifted only by a network that lies within this one, never by a wider one."""


def _table() -> tuple[SpecialUse, ...]:
    rows: list[tuple[str, bool, tuple[str, ...]]] = [
        # 0.0.0.0 and :: reach the machine itself on Linux, so they are guarded like loopback.
        ("unspecified", True, ("0.0.0.0/8", "::/128")),
        ("loopback", True, ("127.0.0.0/8", "::1/128")),
        (
            "link_local",
            True,
            (
                "169.254.0.0/16",
                "fe80::/10",
                "fd00:ec2::/32",  # what AWS offers each instance: the same services as in 169.254.0.0/16
            ),
        ),
        (
            "metadata",
            True,
            (
                # AWS, Google Cloud, Azure, Oracle Cloud, IBM Cloud, DigitalOcean, Hetzner, OpenStack and most others.
                "169.254.169.254/32",
                "169.254.169.252/32",  # Google Kubernetes Engine, where its nodes answer for the former
                "169.254.170.2/32",  # AWS ECS task credentials
                "169.254.170.23/32",  # AWS EKS pod identity
                "169.254.42.42/32",  # Scaleway
                "169.254.0.23/32",  # Tencent Cloud
                "fe80::a9fe:a9fe/128",  # OpenStack and Hetzner over IPv6
                "fd00:ec2::254/128",  # AWS over IPv6
                "fd00:ec2::23/128",  # AWS EKS pod identity over IPv6
                "fd20:ce::254/128",  # Google Cloud over IPv6
                "fd00:c1::a9fe:a9fe/128",  # Oracle Cloud over IPv6
                "fd00:100::100:200/128",  # Alibaba Cloud over IPv6
                "fd00:42::42/128",  # Scaleway over IPv6
                "fd00:a9fe:a9fe::1/128",  # Akamai (Linode) over IPv6
                "100.100.100.200/32",  # Alibaba Cloud
                "100.96.0.96/32",  # Volcano Engine
                "168.63.129.16/32",  # Azure's wire server, a public address that is not the internet
                "192.0.0.192/32",  # Oracle Cloud Classic
            ),
        ),
        (
            "private",
            False,
            ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7", "fec0::/10"),
        ),
        ("shared", False, ("100.64.0.0/10",)),  # CGNAT, RFC 6598
        (
            "documentation",
            False,
            ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32", "3fff::/20"),
        ),
        ("benchmarking", False, ("198.18.0.0/15", "2001:2::/48")),
        ("multicast", False, ("224.0.0.0/4", "ff00::/8")),
        # Globally reachable by the registries, and still no hosts of the internet: whichever machine is nearest answers
        # at these, which may well be one of our own network.
        (
            "anycast",
            False,
            (
                "192.0.0.9/32",  # port control: how to open a way through the nearest NAT (RFC 7723)
                "2001:1::1/128",
                "192.0.0.10/32",  # TURN: a relay to elsewhere (RFC 8155)
                "2001:1::2/128",
                "2001:1::3/128",  # where services register themselves (RFC 9665)
                "192.52.193.0/24",  # relays of multicast, AMT (RFC 7450)
                "2001:3::/32",
                "192.31.196.0/24",  # AS112: name servers for private addresses, which anybody may run (RFC 7534, 7535)
                "192.175.48.0/24",
                "2001:4:112::/48",
                "2620:4f:8000::/48",
                "192.88.99.0/24",  # 6to4 and 6a44 relays, deprecated (RFC 7526)
            ),
        ),
        (
            "reserved",
            False,
            (
                "192.0.0.0/24",  # DS-Lite, dummy and NAT64 discovery addresses
                "240.0.0.0/4",
                "255.255.255.255/32",
                # Its globally reachable rows that are not above, ORCHIDv2 and DETs, are names in the form of addresses,
                # and no packet is sent to them (RFC 7343, RFC 9374).
                "2001::/23",
            ),
        ),
        # RFC 4291 §2.4: all that is not 2000::/3 is not allocated, but for the networks in this table and NAT64. That
        # includes those that are discarded (100::/64), a dummy (100:0:0:1::/64) and instructions (SRv6, 5f00::/16).
        ("reserved", True, ("::/3", "4000::/2", "8000::/1")),
        # IPv4 inside IPv6: 6to4, Teredo. Mapped addresses never come here: they are IPv4.
        ("transition", False, ("2002::/16", "2001::/32")),
        # IPv4-compatible, and local-use NAT64 (RFC 8215): guarded, since nobody knows where in it the IPv4 address is.
        ("transition", True, ("::/96", str(LOCAL_NAT64))),
    ]
    return tuple(
        SpecialUse(ip_network(text), kind, guarded)
        for kind, guarded, networks in rows
        for text in networks
    )


SPECIAL_USE: Final = _table()
_INDEX: Final[NetworkIndex[SpecialUse]] = NetworkIndex()
for _row in SPECIAL_USE:
    _INDEX.add(_row.network, _row)

#: They are nothing but another way to write IPv4.
_MAPPED: Final = IPv6Network("::ffff:0:0/96")


# Compared by identity: each configuration has one, and it is part of caches' keys.
@dataclass(frozen=True, slots=True, eq=False)
class Surroundings:
    """What the configuration says about the network that the proxy is in.

    Raises ValueError for what is no NAT64 prefix.
    """

    internal: tuple[IPNetwork, ...] = ()
    """Networks of one's own that look like the internet's: special, of the kind ``internal``."""
    nat64: tuple[IPv6Network, ...] = ()
    """Prefixes of translators (RFC 6052 §2.2): the IPv4 address inside decides."""
    _index: NetworkIndex[SpecialUse] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        index: NetworkIndex[SpecialUse] = NetworkIndex()
        for network in self.internal:
            index.add(network, SpecialUse(network, "internal", guarded=False))
        object.__setattr__(self, "_index", index)
        for prefix in self.nat64:
            if not is_nat64_prefix(prefix):
                raise ValueError(f"{prefix} is no prefix of NAT64 (RFC 6052 §2.2)")

    def holding(self, address: IPAddress) -> Iterator[SpecialUse]:
        """The internal networks that hold the address, the narrowest first."""
        return self._index.holding(address)


ANYWHERE: Final = Surroundings()
"""Nothing is said about the network that the proxy is in."""


# Bounded, because answers of name servers choose the keys.
@lru_cache(maxsize=16384)
def special_use(address: IPAddress, surroundings: Surroundings = ANYWHERE) -> SpecialUse | None:
    """What is special about an address, or about an IPv4 address inside it; None for an ordinary one.

    The narrowest network tells, and of several addresses the one that is hardest to lift.
    """
    around = next(_INDEX.holding(address), None)
    internal = next(surroundings.holding(address), None)
    if isinstance(address, IPv4Address):
        return around or internal
    prefixes = [prefix for prefix in surroundings.nat64 if address in prefix]
    if address in WELL_KNOWN_NAT64 or address in _MAPPED or _is_overridden(around, prefixes):
        around = None
    if _is_overridden(internal, prefixes):
        internal = None
    found = [special_use(inner, surroundings) for inner in embedded_ipv4(address, prefixes)]
    found += [
        SpecialUse(prefix, "transition", guarded=True)
        for prefix in prefixes
        if not is_nat64_address(address, prefix)
    ]
    found += [around, internal]
    special = [each for each in found if each is not None]
    return next((each for each in special if each.guarded), special[0] if special else None)


def _is_overridden(special: SpecialUse | None, prefixes: list[IPv6Network]) -> bool:
    return special is not None and any(has_room_for_nat64(special, prefix) for prefix in prefixes)


def has_room_for_nat64(special: SpecialUse, prefix: IPv6Network) -> bool:
    """Whether a translator's prefix may have been taken from a special network, and then says more than that does."""
    if not lies_within(prefix, special.network):
        return False
    if special.kind == "internal":
        # What is internal as a whole prefix is meant to be internal.
        return prefix != special.network
    return special.kind in ("private", "documentation") or special.network == LOCAL_NAT64


def special_around(network: IPNetwork, surroundings: Surroundings = ANYWHERE) -> SpecialUse | None:
    """The narrowest special network that a network lies in."""
    address = network.network_address
    for special in (*_INDEX.holding(address), *surroundings.holding(address)):
        if special.network.prefixlen <= network.prefixlen:
            return special
    return None
