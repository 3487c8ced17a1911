"""IPv4 addresses inside IPv6 ones: where a translator or a tunnel would take the packet.

Some addresses can be read in more than one way, and only who runs the network knows in which. Then each reading counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from typing import Final

from egress_proxy.core.names import IPAddress

#: RFC 6052 §2.1, for the whole internet.
WELL_KNOWN_NAT64: Final = IPv6Network("64:ff9b::/96")
#: RFC 8215, for each network by itself: prefixes of any length are taken from it.
LOCAL_NAT64: Final = IPv6Network("64:ff9b:1::/48")
#: RFC 6052 §2.2: bits that a translator's prefix may have.
NAT64_PREFIX_LENGTHS: Final = (32, 40, 48, 56, 64, 96)

_32_BITS: Final = 0xFFFF_FFFF
_56_BITS: Final = (1 << 56) - 1
#: The first 96 bits of what has an IPv4 address at the end, and nowhere else: mapped (RFC 4291 §2.5.5.2), well-known
#: NAT64, IPv4-translated (RFC 2765 §2.1).
_IPV4_AT_THE_END: Final = frozenset((0xFFFF, 0x0064_FF9B << 64, 0xFFFF << 16))
_6TO4: Final = 0x2002
_TEREDO: Final = 0x2001_0000
_LOCAL_NAT64: Final = int(LOCAL_NAT64.network_address) >> 80
#: RFC 5214 §6.1: the first half of an interface identifier, of a private and of a global IPv4 address.
_ISATAP: Final = frozenset((0x0000_5EFE, 0x0200_5EFE))
#: What would be read as 0.0.0.0/8 is no IPv4 address: `::1`, or zeros of a longer form.
_THIS_NETWORK: Final = 0x00FF_FFFF


def embedded_ipv4(address: IPAddress, nat64: Iterable[IPv6Network] = ()) -> tuple[IPv4Address, ...]:
    """Every IPv4 address that the address may lead to; ``nat64`` are further prefixes of translators."""
    if isinstance(address, IPv4Address):
        return ()
    # Mostly there is none, so that nothing is made.
    return tuple(dict.fromkeys(map(IPv4Address, _readings(address, nat64))))


def _readings(address: IPv6Address, nat64: Iterable[IPv6Network]) -> Iterator[int]:
    number = int(address)
    last, above = number & _32_BITS, number >> 32
    known = False
    for prefix in nat64:
        if address in prefix:
            known = True
            yield _read(number, prefix.prefixlen)
    if above in _IPV4_AT_THE_END or (above == 0 and last > _THIS_NETWORK):
        yield last  # the second: IPv4-compatible (RFC 4291 §2.5.5.1)
    if above & _32_BITS in _ISATAP:
        yield last
    if number >> 112 == _6TO4:
        yield number >> 80 & _32_BITS  # RFC 3056 §2
    elif number >> 96 == _TEREDO:
        yield last ^ _32_BITS  # the client, with every bit turned (RFC 4380 §4) ...
        yield number >> 64 & _32_BITS  # ... and the server
    elif number >> 80 == _LOCAL_NAT64 and not known:
        # Nobody has said how long the prefix is.
        for length in NAT64_PREFIX_LENGTHS:
            if length >= LOCAL_NAT64.prefixlen and (found := _read(number, length)) > _THIS_NETWORK:
                yield found


def is_nat64_prefix(prefix: IPv6Network) -> bool:
    """Whether a translator's prefix may look like this: its length is one of six, and bits 64 to 71 are zero."""
    return prefix.prefixlen in NAT64_PREFIX_LENGTHS and _reserved(int(prefix.network_address)) == 0


def is_nat64_address(address: IPv6Address, prefix: IPv6Network) -> bool:
    """Whether a translator would write an address of its prefix like this: all that isn't IPv4 is zero.

    Others are for extensions that do not exist (RFC 6052 §2.2), so that nobody knows what becomes of them.
    """
    number = int(address)
    suffix = 0 if prefix.prefixlen == 96 else _joined(number) & ((1 << 88 - prefix.prefixlen) - 1)
    return _reserved(number) == suffix == 0


def _read(number: int, length: int) -> int:
    """The IPv4 address behind a prefix of so many bits (RFC 6052 §2.2)."""
    return number & _32_BITS if length == 96 else _joined(number) >> 88 - length & _32_BITS


def _reserved(number: int) -> int:
    """Bits 64 to 71, which the IPv4 address goes around."""
    return number >> 56 & 0xFF


def _joined(number: int) -> int:
    """The other 120 bits."""
    return number >> 64 << 56 | number & _56_BITS
