"""Networks, indexed so that an address is looked up once per prefix length and never compared with each."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network
from typing import Generic, TypeVar

from egress_proxy.core.names import IPAddress

IPNetwork = IPv4Network | IPv6Network
T = TypeVar("T")


def lies_within(inner: IPNetwork, outer: IPNetwork) -> bool:
    """Whether one network is the other or a part of it."""
    if isinstance(inner, IPv4Network):
        return isinstance(outer, IPv4Network) and inner.subnet_of(outer)
    return isinstance(outer, IPv6Network) and inner.subnet_of(outer)


class NetworkIndex(Generic[T]):
    """Values by network. It is filled once and then only read."""

    __slots__ = ("_levels",)

    def __init__(self) -> None:
        # For each version the prefix lengths that occur, the longest first, with how far to shift an address.
        self._levels: dict[int, dict[int, dict[int, list[T]]]] = {4: {}, 6: {}}

    def add(self, network: IPNetwork, value: T) -> None:
        shift = network.max_prefixlen - network.prefixlen
        levels = self._levels[network.version]
        if shift not in levels:
            levels[shift] = {}
            self._levels[network.version] = levels = dict(sorted(levels.items()))
        levels[shift].setdefault(int(network.network_address) >> shift, []).append(value)

    def holding(self, address: IPAddress) -> Iterator[T]:
        """The values of every network that holds the address, the narrowest network first."""
        number = int(address)
        for shift, values in self._levels[address.version].items():
            yield from values.get(number >> shift, ())

    def __bool__(self) -> bool:
        return any(self._levels.values())
