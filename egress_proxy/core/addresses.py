"""The address gate: which addresses may be dialled, and the only way to make one that can be."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, ip_address
from typing import Final, final

from egress_proxy.core.embedding import embedded_ipv4
from egress_proxy.core.names import IPAddress, plain_address
from egress_proxy.core.networks import IPNetwork, lies_within
from egress_proxy.core.special_use import ANYWHERE, SpecialUse, Surroundings, special_use


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
    """An address that passed the gate. The dialler takes nothing else.

    Only :func:`vet` makes one of what a client asked for, and :func:`vet_configured` of what the configuration says.
    It cannot be changed, copied, pickled or subclassed. That stops mistakes, not code that means to do harm.
    """

    __slots__ = ("ip", "port")

    ip: str
    port: int

    def __init__(self, ip: str, port: int, *, gate: object) -> None:
        if gate is not _GATE:
            raise TypeError("a VettedAddress is made by the address gate alone")
        object.__setattr__(self, "ip", ip)
        object.__setattr__(self, "port", port)

    def __init_subclass__(cls) -> None:
        raise TypeError("a VettedAddress has no subclasses")

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("a VettedAddress does not change")

    def __delattr__(self, name: str) -> None:
        raise AttributeError("a VettedAddress does not change")

    def __reduce__(self) -> str:
        raise TypeError("a VettedAddress is made by the address gate alone")

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
    surroundings: Surroundings = ANYWHERE
    """What is special here beyond what is special everywhere."""


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
        special = special_use(address, grant.surroundings)
        lifted = special is None or any(lifts(network, address, special) for network in grant.allow)
        if lifted and not _is_closed(address, grant):
            passed.append(VettedAddress(str(address), port, gate=_GATE))
            continue
        if grant.audit and (special is None or not special.guarded):
            audited.append((text, VettedAddress(str(address), port, gate=_GATE)))
        else:
            prohibited.append(text)
    if audited and not passed:
        return Vetting(tuple(vetted for _, vetted in audited), tuple(prohibited), True)
    return Vetting(tuple(passed), (*prohibited, *(text for text, _ in audited)))


def forget() -> None:
    """Let go of every verdict, and of the policies behind them: another policy is in force."""
    _vet.cache_clear()
    special_use.cache_clear()


def _is_closed(address: IPAddress, grant: Grant) -> bool:
    """Whether the address is closed, or an IPv4 address embedded in it: the packet goes to either."""
    closed = grant.closed
    return closed is not None and (
        closed(address) or any(map(closed, embedded_ipv4(address, grant.surroundings.nat64)))
    )


_BROADCAST: Final = IPv4Address("255.255.255.255")


def vet_configured(address: str, port: int) -> VettedAddress:
    """Let an address through that the configuration names, such as a parent proxy's.

    It is vetted as configuration, not as a destination: private networks and loopback are where such things live. So
    no text that came from a client may ever be passed here. Raises ValueError for what nobody can connect to: no
    address, an unspecified, a multicast or the broadcast address, or no port.
    """
    found = plain_address(ip_address(address))
    special = special_use(found)
    if found == _BROADCAST or (
        special is not None and special.kind in ("unspecified", "multicast")
    ):
        raise ValueError(f"nobody can connect to {found}")
    if not 1 <= port <= 65535:
        raise ValueError(f"{port} is not a port")
    return VettedAddress(str(found), port, gate=_GATE)
