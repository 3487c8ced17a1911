"""What a rule names: a host pattern or a network. Everything else is refused with the form to write.

Operators come from proxies whose rules have leading dots, globs, regular expressions, URLs or ports
in the name. To guess what such a rule means is how allow-lists open, so each of them is named.
"""

from __future__ import annotations

import re
from ipaddress import (
    AddressValueError,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Final

from egress_proxy.config.errors import Code, Report, quoted
from egress_proxy.config.nodes import in_quotes, text
from egress_proxy.config.yaml_source import Node, place_of
from egress_proxy.core.errors import HostError
from egress_proxy.core.names import canonical_host
from egress_proxy.core.networks import IPNetwork
from egress_proxy.core.policy import HostPattern, Place

_HOST_FORMS: Final = "write a host such as example.com, or {cidr: …} for an address"

_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://([^/?#]*).*")
_PATH: Final = re.compile(r"([^/?#]+)[/?#].*")
_NETWORK: Final = re.compile(r"[0-9A-Fa-f:.]+/[0-9.]+")
_HOST_AND_PORTS: Final = re.compile(r"(.+):([0-9,*-]+)")
_ONE_PORT: Final = re.compile(r"[1-9][0-9]{0,4}")
#: ``^(.*\.)?example\.com$`` and its kind: what stands before the name, and the name.
_SIMPLE_REGEX: Final = re.compile(r"\^?(?P<below>[.*(\\+)?]*)(?P<name>[A-Za-z0-9\\._-]+)\$?")


class _RefusedError(Exception):
    """Why a text is no host pattern, and what to write instead."""

    def __init__(self, what: str, instead: str = _HOST_FORMS) -> None:
        super().__init__(what)
        self.what = what
        self.instead = instead


def host_pattern(node: Node, name: str, report: Report) -> HostPattern | None:
    """Read ``example.com``, ``*.example.com`` or ``*``."""
    found = text(node, name, report, _HOST_FORMS, _write_quoted)
    return None if found is None else host_pattern_of(found, place_of(node, report), report)


def host_pattern_of(found: str, place: Place, report: Report) -> HostPattern | None:
    """Read a host pattern that stands at a place."""
    try:
        return _parse_pattern(found)
    except _RefusedError as refused:
        report.error(Code.BAD_HOST, place, refused.what, refused.instead)
        return None


def _parse_pattern(pattern: str) -> HostPattern:
    try:
        found = _read(pattern)
    except HostError as error:
        raise _refusal(pattern, str(error)) from None
    if isinstance(found, HostPattern):
        return found
    raise _RefusedError(f"{quoted(pattern)} is an IP address", f'write {{cidr: "{found}"}}')


def _read(pattern: str) -> HostPattern | IPNetwork:
    """What the text says if it is in the one form that is accepted, or an IPv4 address.

    Raises HostError.
    """
    if pattern == "*":
        return HostPattern("", wildcard=True)
    wildcard = pattern.startswith("*.")
    host = canonical_host(pattern[2:] if wildcard else pattern)
    if host.address is None:
        return HostPattern(host.text, wildcard)
    if wildcard:
        raise HostError(_WILDCARD_ADDRESS)
    return ip_network(host.address)


_WILDCARD_ADDRESS: Final = "a wildcard matches names, never addresses"
_NO_GLOB: Final = "write each host, or *.example.com for every name below example.com"


def _refusal(pattern: str, reason: str) -> _RefusedError:
    """Find out what the writer meant. Nothing here accepts a pattern; it only chooses the words."""
    if pattern.startswith("@"):
        what = f"{quoted(pattern)} is a set, and a set holds hosts alone"
        return _RefusedError(what, "write the hosts of the other set here too")
    url = _URL.fullmatch(pattern)
    authority = url[1] if url else pattern
    if "@" in authority:
        # What stands before the @ may be a password, so nothing of it is quoted.
        host = _PATH.sub(r"\1", authority.rpartition("@")[2])
        what = "a rule names a host, without user information (`user@`)"
        return _RefusedError(what, _write(host))
    if url:
        return _RefusedError(
            f"{quoted(pattern)} is a URL, and a rule names a host", _write(authority)
        )
    if _NETWORK.fullmatch(pattern):
        return _RefusedError(f"{quoted(pattern)} is a network", f'write {{cidr: "{pattern}"}}')
    if reason == _WILDCARD_ADDRESS:
        what = f"{quoted(pattern)} is no host pattern: {reason}"
        return _RefusedError(what, "write {cidr: …} with the network, such as {cidr: 192.0.2.0/24}")
    if _ipv6(pattern) is not None:
        return _RefusedError(f"{quoted(pattern)} is an IP address", _write(pattern))
    if _HOST_AND_PORTS.fullmatch(pattern) and (instead := _write(pattern, "")):
        return _RefusedError(f"{quoted(pattern)} has a port in the host", instead)
    if any(character in pattern for character in " \t\n,;"):
        what = f"{quoted(pattern)} is not one host"
        return _RefusedError(what, "write each host as an entry of its own")
    if pattern.startswith(".*") or any(character in pattern for character in "^$()|\\+[]{}"):
        what = f"{quoted(pattern)} looks like a regular expression, and rules have none"
        return _RefusedError(what, _without_regex(pattern))
    if path := _PATH.fullmatch(pattern):
        what = f"{quoted(pattern)} has a path, and a rule names a host"
        return _RefusedError(what, _write(path[1]))
    if pattern.startswith("."):
        return _RefusedError(f"{quoted(pattern)} starts with a dot", _write(f"*{pattern}"))
    if "*" in pattern:
        what = f"{quoted(pattern)} has a `*` that is not the whole first label"
        return _RefusedError(what, _write(f"*.{pattern.lstrip('*').lstrip('.')}", _NO_GLOB))
    return _RefusedError(f"{quoted(pattern)} is no host pattern: {reason}")


def _write(host: str, otherwise: str = _HOST_FORMS) -> str:
    """The advice to write this host, with its ports as a key, if it would be accepted."""
    split = _HOST_AND_PORTS.fullmatch(host)
    target = _target(host)
    ports = ""
    if target is None and split is not None:
        target = _target(split[1])
        ports = _ports(split[2])
    if target is None:
        return otherwise
    if ports or target.startswith("cidr"):
        return f"write {{{target}{ports}}}"
    return "write " + target.removeprefix("host: ")


def _write_quoted(host: str) -> str:
    """The advice about a text that YAML does not read as one: ``no`` may be a host, ``127.1`` is none."""
    target = _target(host)
    if target is not None and target.startswith("host"):
        return in_quotes(host)
    return _write(host) if "." in host else _HOST_FORMS


def _target(text: str) -> str | None:
    """``host: …`` or ``cidr: …`` for a text that is a pattern or an address."""
    if (address := _ipv6(text)) is not None:
        return f'cidr: "{address}/128"'
    try:
        found = _read(text)
    except HostError:
        return None
    if not isinstance(found, HostPattern):
        return f'cidr: "{found}"'
    return f'host: "{found}"' if found.wildcard else f"host: {found}"


def _ports(text: str) -> str:
    """``, ports: […]`` for what stood behind the colon; a `*` there is every port."""
    entries = ["1-65535" if entry == "*" else entry for entry in text.split(",")]
    numbers = [port for entry in entries for port in entry.split("-")]
    if not all(_ONE_PORT.fullmatch(port) and int(port) <= 65535 for port in numbers):
        return ""
    return (
        ", ports: [" + ", ".join(f'"{entry}"' if "-" in entry else entry for entry in entries) + "]"
    )


def _without_regex(pattern: str) -> str:
    """The pattern that a common regular expression stands for."""
    simple = _SIMPLE_REGEX.fullmatch(pattern.strip("/"))
    if simple is None:
        return _NO_GLOB
    name = simple["name"].replace("\\.", ".").lstrip(".")
    return _write(f"*.{name}" if simple["below"] else name, _NO_GLOB)


def _ipv6(text: str) -> IPv6Address | None:
    try:
        address = IPv6Address(text.removeprefix("[").removesuffix("]").partition("%")[0])
    except AddressValueError:
        return None
    return IPv6Address(int(address))


# Networks ---------------------------------------------------------------------------------------

_NETWORK_FORM: Final = "write an address and a prefix length, such as 192.0.2.0/24 or 2001:db8::/32"
_PREFIX_LENGTH: Final = re.compile(r"0|[1-9][0-9]{0,2}")
_MAPPED: Final = IPv6Network("::ffff:0:0/96")


def network(node: Node, name: str, report: Report) -> IPNetwork | None:
    """Read ``192.0.2.0/24``; a single address is a network of one."""
    found = text(node, name, report, _NETWORK_FORM)
    if found is None:
        return None
    try:
        return _parse_network(found)
    except _RefusedError as refused:
        report.error(Code.BAD_NETWORK, place_of(node, report), refused.what, refused.instead)
        return None


def _parse_network(text: str) -> IPNetwork:
    address, slash, prefix = text.partition("/")
    # A netmask or a hostmask would be read too, each in its own way: one spelling alone.
    if "%" in text or (slash and not _PREFIX_LENGTH.fullmatch(prefix)):
        raise _RefusedError(f"{quoted(text)} is not a network", _NETWORK_FORM)
    try:
        found: IPNetwork = ip_network(text, strict=False)
        single = ip_address(address)
    except ValueError:
        raise _RefusedError(f"{quoted(text)} is not a network", _no_network(text)) from None
    if isinstance(found, IPv6Network) and found.prefixlen >= 96 and found.subnet_of(_MAPPED):
        inner = found.network_address.ipv4_mapped
        assert inner is not None  # noqa: S101 - the network lies in the mapped range
        what = f"{quoted(text)} is IPv4 inside IPv6, and is compared as IPv4"
        raise _RefusedError(what, f"write {IPv4Network((inner, found.prefixlen - 96))}")
    if found.network_address != single:
        what = f"{quoted(text)} has bits set behind its prefix"
        raise _RefusedError(what, f"write {found} for the network, or {address} for the address")
    return found


def _no_network(text: str) -> str:
    """A name, or an address in a short spelling, is the likely mistake."""
    target = _target(text)
    if target is None:
        return _NETWORK_FORM
    return (
        f"write {target.removeprefix('cidr: ')}"
        if target.startswith("cidr")
        else f"write {{{target}}}"
    )
