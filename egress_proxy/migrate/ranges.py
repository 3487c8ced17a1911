"""Sets of whole numbers as sorted ranges: ports, and addresses as numbers."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    collapse_addresses,
    summarize_address_range,
)
from typing import Final

from egress_proxy.core.networks import IPNetwork, lies_within

#: Inclusive, sorted, neither touching nor overlapping.
Ranges = tuple[tuple[int, int], ...]

_MAPPED: Final = IPv6Network("::ffff:0:0/96")
#: IPv6 addresses come behind the IPv4 ones, so that one set holds both.
_IPV6: Final = 1 << 32
EVERY_IPV4: Final[Ranges] = ((0, _IPV6 - 1),)
EVERY_IPV6: Final[Ranges] = ((_IPV6, _IPV6 + (1 << 128) - 1),)
# Not one range: a range never holds addresses of both versions.
EVERY_ADDRESS: Final[Ranges] = EVERY_IPV4 + EVERY_IPV6


def merged(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """The same numbers, sorted and without overlap; IPv4 is not joined with IPv6."""
    found: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if found and low <= found[-1][1] + 1 and low != _IPV6:
            found[-1] = (found[-1][0], max(found[-1][1], high))
        else:
            found.append((low, high))
    return tuple(found)


def holds(ranges: Sequence[tuple[int, int]], number: int) -> bool:
    position = bisect_right(ranges, number, key=lambda entry: entry[0]) - 1
    return position >= 0 and number <= ranges[position][1]


def pieces(whole: Ranges, sets: Iterable[Sequence[tuple[int, int]]]) -> list[tuple[int, int]]:
    """The whole, cut wherever one of the sets begins or ends: each piece lies in a set or outside of it."""
    cuts = {low for low, _ in whole}
    for ranges in sets:
        for low, high in ranges:
            cuts.update((low, high + 1))
    starts = sorted(cuts)
    found: list[tuple[int, int]] = []
    for low, high in whole:
        at = bisect_right(starts, low)
        first = low
        while at < len(starts) and starts[at] <= high:
            found.append((first, starts[at] - 1))
            first = starts[at]
            at += 1
        found.append((first, high))
    return found


def of_network(network: IPNetwork) -> tuple[int, int]:
    low = _number(network.network_address)
    return low, low + network.num_addresses - 1


def of_addresses(low: IPv4Address | IPv6Address, high: IPv4Address | IPv6Address) -> Ranges:
    """All addresses from one to another of the same version; none where the second comes first."""
    return ((_number(low), _number(high)),) if _number(low) <= _number(high) else ()


def _number(address: IPv4Address | IPv6Address) -> int:
    return int(address) + (_IPV6 if address.version == 6 else 0)


def networks(ranges: Iterable[tuple[int, int]]) -> list[IPNetwork]:
    """The fewest networks that hold exactly these addresses."""
    four: list[IPv4Network] = []
    six: list[IPv6Network] = []
    for low, high in merged(ranges):
        if low < _IPV6:
            four += summarize_address_range(IPv4Address(low), IPv4Address(high))
        else:
            six += summarize_address_range(IPv6Address(low - _IPV6), IPv6Address(high - _IPV6))
    # What is left of ::ffff:0:0/96 by itself is no network of ours: those addresses are IPv4.
    plain = (network for network in six if not lies_within(network, _MAPPED))
    return [*collapse_addresses(four), *collapse_addresses(plain)]
