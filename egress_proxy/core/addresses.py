"""The address gate: which addresses may be dialled, and the only way to make one that can be.

The table follows the IANA IPv4 and IPv6 special-purpose address registries (RFC 6890), the
multicast and reserved blocks, and the addresses at which clouds serve credentials to whoever asks.
What the table does not know as ordinary unicast space is prohibited.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Network, ip_address, ip_network
from typing import Final, final

from egress_proxy.core.names import IPAddress, plain_address
from egress_proxy.core.networks import IPNetwork, lies_within


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
        ("link_local", True, ("169.254.0.0/16", "fe80::/10")),
        (
            "metadata",
            True,
            (
                "169.254.169.254/32",  # AWS, GCP, Azure, OpenStack, DigitalOcean and others
                "169.254.170.2/32",  # AWS ECS task credentials
                "169.254.170.23/32",  # AWS EKS pod identity
                "169.254.42.42/32",  # Scaleway
                "169.254.0.23/32",  # Tencent Cloud
                "fe80::a9fe:a9fe/128",  # OpenStack over IPv6
                "fd00:ec2::254/128",  # AWS over IPv6
                "fd00:ec2::23/128",  # AWS EKS pod identity over IPv6
                "fd20:ce::254/128",  # GCP over IPv6
                "fd00:42::42/128",  # Scaleway over IPv6
                "100.100.100.200/32",  # Alibaba Cloud
                "168.63.129.16/32",  # Azure's wire server, a public address that is not the internet
                "192.0.0.192/32",  # Oracle Cloud
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
        (
            "reserved",
            False,
            ("192.0.0.0/24", "192.88.99.0/24", "240.0.0.0/4", "255.255.255.255/32", "2001::/23"),
        ),
        # RFC 4291 §2.4: all that is not 2000::/3 is not allocated, but for the networks in this table and NAT64.
        ("reserved", True, ("::/3", "4000::/2", "8000::/1")),
        # IPv4 inside IPv6: 6to4, Teredo. Mapped addresses never come here: they are IPv4.
        ("transition", False, ("2002::/16", "2001::/32")),
        # IPv4-compatible, and local-use NAT64 (RFC 8215): guarded, since nobody knows where in it the IPv4 address is.
        ("transition", True, ("::/96", "64:ff9b:1::/48")),
    ]
    return tuple(
        SpecialUse(ip_network(text), kind, guarded)
        for kind, guarded, networks in rows
        for text in networks
    )


SPECIAL_USE: Final = _table()
_NAT64: Final = IPv6Network("64:ff9b::/96")
#: Where the last 32 bits are an IPv4 address: well-known NAT64 (RFC 6052), IPv4-translated (RFC 7915).
_IPV4_AT_THE_END: Final = (_NAT64, IPv6Network("::ffff:0:0:0/96"))
#: Where they may be one: IPv4-compatible (RFC 4291 §2.5.5.1), NAT64 with a local prefix in its usual form (RFC 8215).
_PERHAPS_AT_THE_END: Final = (IPv6Network("::/96"), IPv6Network("64:ff9b:1::/48"))


# Bounded, because answers of name servers choose the keys.
@lru_cache(maxsize=16384)
def special_use(address: IPAddress) -> SpecialUse | None:
    """The narrowest special-use network that holds the address, or that holds the IPv4 address embedded in it."""
    rows = [
        row
        for row in SPECIAL_USE
        if row.network.version == address.version and address in row.network
    ]
    outer = max(rows, key=lambda row: row.network.prefixlen, default=None)
    embedded = _embedded_ipv4(address)
    if embedded is None:
        return outer
    inner = special_use(embedded)
    # These two are ways to write the whole of IPv4. The other forms are prohibited by themselves.
    if address in _NAT64 or plain_address(address) == embedded:
        return inner
    return (
        inner
        if inner is not None and (inner.guarded or outer is None or not outer.guarded)
        else outer
    )


def _embedded_ipv4(address: IPAddress) -> IPv4Address | None:
    """The IPv4 address that a translator or tunnel would take the packet to."""
    if isinstance(address, IPv4Address):
        return None
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    last = IPv4Address(int(address) & 0xFFFFFFFF)
    if any(address in network for network in _IPV4_AT_THE_END):
        return last
    # What would be in 0.0.0.0/8 is something else: `::1`, or the end of a longer form.
    if int(last) > 0xFFFFFF and any(address in network for network in _PERHAPS_AT_THE_END):
        return last
    return None


def lifts(network: IPNetwork, address: IPAddress, special: SpecialUse) -> bool:
    """Whether a network that a rule names opens the special-use address.

    Guarded networks (loopback, link-local, metadata) are opened only from within: ``127.0.0.0/8``
    or ``169.254.169.254/32``, never ``0.0.0.0/0``.
    """
    if network.version != address.version or address not in network:
        return False
    return not special.guarded or lies_within(network, special.network)


_GATE: Final = object()


@final
class VettedAddress:
    """An address that passed the gate. The dialler takes nothing else, and only :func:`vet` makes one.

    It cannot be changed, copied, pickled or subclassed. That stops mistakes, not code that means to do harm.
    """

    __slots__ = ("ip", "port")

    ip: str
    port: int

    def __init__(self, ip: str, port: int, *, gate: object) -> None:
        if gate is not _GATE:
            raise TypeError("a VettedAddress is made by vet() alone")
        object.__setattr__(self, "ip", ip)
        object.__setattr__(self, "port", port)

    def __init_subclass__(cls) -> None:
        raise TypeError("a VettedAddress has no subclasses")

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("a VettedAddress does not change")

    def __delattr__(self, name: str) -> None:
        raise AttributeError("a VettedAddress does not change")

    def __reduce__(self) -> str:
        raise TypeError("a VettedAddress is made by vet() alone")

    def __repr__(self) -> str:
        return f"VettedAddress({self.ip!r}, {self.port})"


# Compared by identity: it is part of a cache's key with each request, and deny rules may name many networks.
@dataclass(frozen=True, slots=True, eq=False)
class Grant:
    """What a decision lets the gate pass, beyond public addresses."""

    allow: tuple[IPNetwork, ...] = ()
    """Networks whose special-use addresses are lifted (see :func:`lifts`)."""
    closed: Callable[[IPAddress], bool] | None = None
    """Whether a deny rule names the address's network: it is then prohibited even behind an allowed name."""
    audit: bool = False
    """Report only: pass what is prohibited, except guarded addresses."""


PUBLIC_ONLY: Final = Grant()


@dataclass(frozen=True, slots=True)
class Vetting:
    """The gate's answer about the addresses of one destination."""

    passed: tuple[VettedAddress, ...]
    prohibited: tuple[str, ...]
    """Addresses that were dropped."""
    would_prohibit: bool = False
    """Whether what passed did so only because the grant is an audit's."""


def vet(addresses: Iterable[str], port: int, grant: Grant = PUBLIC_ONLY) -> Vetting:
    """Keep the addresses that may be dialled, in their order.

    What isn't an address is prohibited too: a gate that cannot read an address does not let it pass. What passes
    carries the canonical text of the value that was judged, not the text that came, so that the dialler reads the same.
    An audit's grant passes what is prohibited only where nothing else passes, as that alone would have been refused.
    """
    return _vet(tuple(addresses), port, grant)


# The verdict about an address does not change, and a busy destination asks for it with every request. Bounded, because
# answers of name servers choose the keys.
@lru_cache(maxsize=8192)
def _vet(addresses: tuple[str, ...], port: int, grant: Grant) -> Vetting:
    passed: list[VettedAddress] = []
    audited: list[tuple[str, VettedAddress]] = []
    prohibited: list[str] = []
    for text in addresses:
        try:
            address = plain_address(ip_address(text))
        except ValueError:
            prohibited.append(text)
            continue
        special = special_use(address)
        lifted = special is None or any(lifts(network, address, special) for network in grant.allow)
        if lifted and not _is_closed(address, grant.closed):
            passed.append(VettedAddress(str(address), port, gate=_GATE))
            continue
        if grant.audit and (special is None or not special.guarded):
            audited.append((text, VettedAddress(str(address), port, gate=_GATE)))
        else:
            prohibited.append(text)
    if audited and not passed:
        return Vetting(tuple(vetted for _, vetted in audited), tuple(prohibited), True)
    return Vetting(tuple(passed), (*prohibited, *(text for text, _ in audited)))


def _is_closed(address: IPAddress, closed: Callable[[IPAddress], bool] | None) -> bool:
    """Whether the address is closed, or the IPv4 address embedded in it: the packet goes to either."""
    if closed is None:
        return False
    embedded = _embedded_ipv4(address)
    return closed(address) or (embedded is not None and closed(embedded))
