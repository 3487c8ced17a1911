"""Canonical hosts and authorities: every spelling of a destination becomes one value, once.

The matcher, the resolver, the dialler and the log all share that value, so they cannot disagree
about what was asked for.
"""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import AddressValueError, IPv4Address, IPv6Address

import idna
import msgspec

from egress_proxy.core.errors import HostError

IPAddress = IPv4Address | IPv6Address

#: RFC 1035 §3.1: 255 octets on the wire are 253 characters of text.
MAX_NAME_LENGTH = 253
MAX_LABEL_LENGTH = 63

# Letters, digits, hyphen, and the underscore of service names (RFC 2782, RFC 8552). A hyphen may
# stand anywhere: names such as `-a.example` exist, DNS carries them (RFC 2181 §11), and one
# canonical text is all that a decision needs.
_NAME = re.compile(r"[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")
_PORT = re.compile(rb"[1-9][0-9]{0,4}")
_IPV4_PART = re.compile(r"0[xX][0-9a-fA-F]*|[0-9]+")
_BRACKETED = re.compile(rb"\[([0-9A-Fa-f:.]{2,45})(?:%[0-9A-Za-z._~-]{1,32})?\](?::([^:]*))?")
_UNBRACKETED = re.compile(rb"([^\[\]:@/?#\\]+)(?::([^:]*))?")

_SPACE_OR_CONTROL = re.compile(r"[\x00-\x20\x7f]")


class Host(msgspec.Struct, frozen=True):
    """A canonical host: a lower-case A-label name without trailing dot, or an address."""

    text: str
    address: IPAddress | None = None

    def __str__(self) -> str:
        return self.text


class Authority(msgspec.Struct, frozen=True):
    """A canonical destination: host and port (RFC 3986 §3.2 without user information)."""

    host: Host
    port: int

    def __str__(self) -> str:
        """As it stands in a Host field or a CONNECT target: IPv6 in brackets."""
        if isinstance(self.host.address, IPv6Address):
            return f"[{self.host.text}]:{self.port}"
        return f"{self.host.text}:{self.port}"


def plain_address(address: IPAddress) -> IPAddress:
    """The address without a zone id; IPv4 mapped into IPv6 (RFC 4291 §2.5.5.2) is the IPv4 address that it reaches."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address.scope_id is not None:
            return IPv6Address(int(address))
    return address


def host_of_address(address: IPAddress) -> Host:
    """The host of an address, which is made plain first."""
    address = plain_address(address)
    return Host(str(address), address)


def canonical_host(text: str) -> Host:
    """Parse a host name, or an IPv4 address in any spelling that a resolver takes (``127.1``, ``0x7f000001``).

    One trailing dot is dropped. A name whose last label is a number is an address or nothing, as in the WHATWG URL
    standard (§3.5), because a resolver would read it as one.

    Raises HostError, whose message does not quote the text.
    """
    name = (text if text.isascii() else _to_ascii(text)).lower().removesuffix(".")
    if not name:
        raise HostError("the host is empty")
    if len(name) > MAX_NAME_LENGTH:
        raise HostError(f"the host is longer than {MAX_NAME_LENGTH} characters")
    if _IPV4_PART.fullmatch(name.rpartition(".")[2]):
        address = _any_ipv4(name)
        return Host(str(address), address)
    if _NAME.fullmatch(name) is None:
        raise HostError(_why_not_a_name(name))
    return Host(name)


def canonical_ipv6(text: str) -> Host:
    """Parse the inside of ``[…]``. A zone id (RFC 6874) says nothing about where the address lies and is dropped.

    Raises HostError.
    """
    try:
        return host_of_address(IPv6Address(text.partition("%")[0]))
    except AddressValueError:
        raise HostError("the text in brackets is not an IPv6 address") from None


# Bounded, because clients choose the keys; only what was understood is kept, so none is longer than 260 bytes.
@lru_cache(maxsize=8192)
def parse_authority(text: bytes, default_port: int | None) -> Authority:
    """Parse ``host:port`` or ``[IPv6]:port``, the authority of a request target or of a Host field.

    Without default_port the port is required, as in CONNECT (RFC 9112 §3.2.3).

    Raises HostError with a message that does not quote the text; ``AuthorityError`` where it isn't
    the host that is wrong.
    """
    match = _BRACKETED.fullmatch(text)
    if match is not None:
        host = canonical_ipv6(match[1].decode("ascii"))
    else:
        match = _UNBRACKETED.fullmatch(text)
        if match is None:
            raise AuthorityError(_why_not_an_authority(text))
        try:
            host = canonical_host(match[1].decode("ascii"))
        except UnicodeDecodeError:
            raise HostError(
                "the host holds bytes beyond ASCII; send it as A-labels (xn--…)"
            ) from None
    return Authority(host, _port(match[2], default_port))


class AuthorityError(HostError):
    """The text around the host (port, brackets, user information) is wrong, not the host itself."""


def _port(text: bytes | None, default_port: int | None) -> int:
    if text is None:
        if default_port is None:
            raise AuthorityError("the port is missing")
        return default_port
    # One spelling alone: no sign, no leading zero, no white space, so that no two readers can differ.
    if _PORT.fullmatch(text) is None or (port := int(text)) > 65535:
        raise AuthorityError("the port is not a decimal number from 1 to 65535")
    return port


def _why_not_an_authority(text: bytes) -> str:
    if b"@" in text:
        return "user information (`user@`) is not allowed in the target"
    if b"/" in text or b"?" in text or b"#" in text or b"\\" in text:
        return "a path or query is not allowed here"
    if b"[" in text or b"]" in text:
        return "the brackets do not hold an IPv6 address"
    if text.count(b":") > 1:
        return "an IPv6 address must stand in brackets"
    return "the host is empty"


def _any_ipv4(text: str) -> IPv4Address:
    """Read an IPv4 address as inet_aton(3) does.

    It has one to four parts, each decimal, octal (``0…``) or hexadecimal (``0x…``).
    """
    parts = text.split(".")
    if len(parts) > 4:
        raise HostError("the host ends in a number but is not an IPv4 address")
    numbers: list[int] = []
    for part in parts:
        if _IPV4_PART.fullmatch(part) is None:
            raise HostError("the host ends in a number but is not an IPv4 address")
        try:
            if part[:2] == "0x":
                numbers.append(int(part[2:] or "0", 16))
            elif part[0] == "0" and len(part) > 1:
                numbers.append(int(part, 8))
            else:
                numbers.append(int(part))
        except ValueError:
            raise HostError("the host ends in a number but is not an IPv4 address") from None
    # All parts but the last are one octet; the last fills what remains.
    if any(number > 255 for number in numbers[:-1]) or numbers[-1] >= 256 ** (5 - len(numbers)):
        raise HostError("a part of the IPv4 address is out of range")
    value = numbers[-1]
    for position, number in enumerate(numbers[:-1]):
        value |= number << (8 * (3 - position))
    return IPv4Address(value)


def _to_ascii(name: str) -> str:
    """IDNA 2008 with the mapping of UTS 46, non-transitional, as browsers do."""
    try:
        return idna.encode(name, uts46=True, transitional=False, std3_rules=True).decode("ascii")
    except (idna.IDNAError, UnicodeError):
        raise HostError("the host is not a valid internationalised name (IDNA 2008)") from None


def _why_not_a_name(name: str) -> str:
    if _SPACE_OR_CONTROL.search(name):
        return "the host holds white space or a control character"
    if "%" in name:
        return "the host holds percent-encoding"
    labels = name.split(".")
    if "" in labels:
        return "the host has an empty label"
    if any(len(label) > MAX_LABEL_LENGTH for label in labels):
        return f"a label of the host is longer than {MAX_LABEL_LENGTH} characters"
    return "the host holds a character that no DNS name has"
