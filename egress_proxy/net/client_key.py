"""Whom a client's connection is counted with, where one client may have only so many."""

from __future__ import annotations

import socket
from functools import lru_cache
from typing import Final

#: IPv4 inside IPv6: mapped (RFC 4291 §2.5.5.2), as a socket for both shows it, and translated by the well-known prefix
#: (RFC 6052 §2.1), behind which are all IPv4 clients of a network that has IPv6 alone.
_IPV4_INSIDE: Final = (
    bytes(10) + b"\xff\xff",
    bytes.fromhex("0064ff9b") + bytes(8),
)


def client_key(address: str) -> str:
    """One name for all addresses that one client may have: an IPv4 address, or the /64 of an IPv6 address.

    Whoever has an IPv6 address has 2⁶⁴ of them most often: a machine chooses its own within the network it is on
    (RFC 4862, 8981), and an access line is given no less than a /64 (RFC 6177). On a link, though, all neighbours share
    one (``fe80::/64``), and are told apart. ``address`` is as the system writes it, with its zone if it has one.
    """
    # What is asked of nearly every client.
    return address if ":" not in address else _of_network(address)


# Asked a few times for each connection.
@lru_cache(maxsize=8192)
def _of_network(address: str) -> str:
    packed = socket.inet_pton(socket.AF_INET6, address.partition("%")[0])
    if packed.startswith(_IPV4_INSIDE):
        return socket.inet_ntop(socket.AF_INET, packed[12:])
    # fe80::/10 (RFC 4291 §2.5.6).
    if packed[0] == 0xFE and packed[1] & 0xC0 == 0x80:
        return address
    return socket.inet_ntop(socket.AF_INET6, packed[:8] + bytes(8)) + "/64"
