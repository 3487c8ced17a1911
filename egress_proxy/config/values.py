"""Typed values of the configuration: each reads one YAML node, and reports why where it cannot.

A reader is called with the node, the name that messages give it, and the report; it returns None
after a report. Each number has bounds, because a limit of zero or of a thousand years is a mistake.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Any, Final

from egress_proxy.config.errors import Code, Report, quoted
from egress_proxy.config.model import SocketAddress
from egress_proxy.config.nodes import items, scalar, text
from egress_proxy.config.units import meant_duration, meant_size
from egress_proxy.config.yaml_source import Node, place_of

Reader = Callable[[Node, str, Report], Any]

# Numbers ----------------------------------------------------------------------------------------------------------

_INTEGER: Final = re.compile(r"0|[1-9][0-9]*")
NUMBER_AND_UNIT: Final = re.compile(r"(0|[1-9][0-9]{0,11})([A-Za-z]+)")
#: A number that nothing here is as large as.
_TOO_LONG: Final = re.compile(r"[1-9][0-9]{12,}([A-Za-z]{1,3})")
DURATION_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
SIZE_UNITS: Final = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


@dataclass(frozen=True, slots=True)
class Integer:
    """A whole number in plain decimal, without quotes."""

    low: int
    high: int

    def __call__(self, node: Node, name: str, report: Report) -> int | None:
        instead = f"write a whole number from {self.low} to {self.high}"
        found = scalar(node, name, report, instead)
        if found is None:
            return None
        if not found.plain and _INTEGER.fullmatch(found.text):
            report.error(
                Code.WRONG_TYPE,
                place_of(node, report),
                f"{name} is a number in quotes",
                f"write {found.text} without quotes",
            )
            return None
        if not found.plain or not _INTEGER.fullmatch(found.text):
            what = f"{name} is not a whole number in plain digits: {quoted(found.text)}"
            report.error(Code.BAD_VALUE, place_of(node, report), what, instead)
            return None
        # By its length first: to make a number of a million digits takes its time.
        value = int(found.text) if len(found.text) < 16 else self.high + 1
        if not self.low <= value <= self.high:
            report.error(
                Code.BAD_VALUE,
                place_of(node, report),
                f"{name} is out of range: {quoted(found.text)}",
                instead,
            )
            return None
        return value


@dataclass(frozen=True, slots=True)
class Duration:
    """A number with its unit, such as ``500ms`` or ``24h``; read as seconds."""

    low: str
    high: str

    def __call__(self, node: Node, name: str, report: Report) -> float | None:
        bounds = self.low, self.high
        return _with_unit(node, name, report, DURATION_UNITS, bounds, "s", meant_duration)


@dataclass(frozen=True, slots=True)
class Size:
    """A number with its binary unit, such as ``32KiB``; read as bytes."""

    low: str
    high: str

    def __call__(self, node: Node, name: str, report: Report) -> int | None:
        bounds = self.low, self.high
        size = _with_unit(node, name, report, SIZE_UNITS, bounds, "KiB", meant_size)
        return None if size is None else int(size)


def _with_unit(
    node: Node,
    name: str,
    report: Report,
    units: dict[str, Any],
    bounds: tuple[str, str],
    likely: str,
    meant: Callable[[str], str | None],
) -> float | None:
    low, high = bounds
    instead = f"write one from {low} to {high}, with a unit ({', '.join(units)})"
    found = scalar(node, name, report, instead)
    if found is None:
        return None
    if _INTEGER.fullmatch(found.text):
        what = f"{name} has no unit: {quoted(found.text)}"
        report.error(
            Code.BAD_VALUE,
            place_of(node, report),
            what,
            f"write {found.text}{_likely(found.text, units, bounds, likely)}, or with another of {', '.join(units)}",
        )
        return None
    value = parse_with_unit(found.text, units)
    if value is None:
        what = f"{name} is not a whole number with one of our units: {quoted(found.text)}"
        probably = meant(found.text)
        likely_value = None if probably is None else parse_with_unit(probably, units)
        too_long = _TOO_LONG.fullmatch(found.text)
        if (too_long is not None and too_long[1] in units) or (
            likely_value is not None and not bounds_hold(likely_value, units, bounds)
        ):
            what = f"{name} is out of range: {quoted(found.text)}"
        elif likely_value is not None:
            shown = f" ({likely_value:,.0f} bytes)" if units is SIZE_UNITS else ""
            instead = f"write {probably}{shown}; units are {', '.join(units)}"
        report.error(Code.BAD_VALUE, place_of(node, report), what, instead)
        return None
    if not bounds_hold(value, units, bounds):
        report.error(
            Code.BAD_VALUE,
            place_of(node, report),
            f"{name} is out of range: {quoted(found.text)}",
            instead,
        )
        return None
    return value


def _likely(text: str, units: dict[str, Any], bounds: tuple[str, str], usual: str) -> str:
    """The unit that was most likely meant: the usual one, or else the first that makes it a value within the bounds."""
    for unit in (usual, *units):
        value = parse_with_unit(f"{text}{unit}", units)
        if value is not None and bounds_hold(value, units, bounds):
            return unit
    return usual


def parse_with_unit(text: str, units: dict[str, Any]) -> float | None:
    """A number with exactly one unit, without sign, fraction, white space or leading zero; None for anything else."""
    match = NUMBER_AND_UNIT.fullmatch(text)
    if match is None or match[2] not in units:
        return None
    # Through integers where the unit is a fraction, so that 100ms is 0.1 and not the nearest product.
    factor = units[match[2]]
    return int(match[1]) / 1000 if factor == 0.001 else int(match[1]) * factor


def bounds_hold(value: float, units: dict[str, Any], bounds: tuple[str, str]) -> bool:
    low, high = (parse_with_unit(bound, units) for bound in bounds)
    assert low is not None and high is not None  # noqa: S101, PT018 - both stand in our own tables
    return low <= value <= high


def boolean(node: Node, name: str, report: Report) -> bool | None:
    """``true`` or ``false``. YAML's other spellings are refused: half of its readers take them for texts."""
    instead = "write `true` or `false`"
    found = scalar(node, name, report, instead)
    if found is None:
        return None
    if not found.plain or found.text not in ("true", "false"):
        what = f"{name} must be true or false, not {quoted(found.text)}"
        report.error(Code.WRONG_TYPE, place_of(node, report), what, instead)
        return None
    return found.text == "true"


# Texts ------------------------------------------------------------------------------------------------------------


#: The name of a policy or of a set. It stands in log lines, and that of a policy in metrics.
NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
NAME_FORM: Final = "write 1 to 64 letters, digits, dots, hyphens or underscores"


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a few words."""

    words: type[StrEnum]

    def __call__(self, node: Node, name: str, report: Report) -> StrEnum | None:
        instead = "write " + " or ".join(f"`{word}`" for word in self.words)
        found = text(node, name, report, instead)
        if found is None:
            return None
        if found not in set(self.words):
            report.error(
                Code.BAD_VALUE, place_of(node, report), f"{name} cannot be {quoted(found)}", instead
            )
            return None
        return self.words(found)


@dataclass(frozen=True, slots=True)
class ChoiceWithOff(Choice):
    """One of a few words, ``off`` among them: to YAML 1.1 a truth value, and to its writer it never was."""

    def __call__(self, node: Node, name: str, report: Report) -> StrEnum | None:
        instead = "write " + " or ".join(f"`{word}`" for word in self.words)
        found = scalar(node, name, report, instead)
        if found is None:
            return None
        if found.text not in set(self.words):
            what = f"{name} cannot be {quoted(found.text)}"
            report.error(Code.BAD_VALUE, place_of(node, report), what, instead)
            return None
        return self.words(found.text)


def file_path(node: Node, name: str, report: Report) -> str | None:
    """An absolute path: what a relative one means depends on where the proxy was started."""
    instead = "write an absolute path, such as /etc/egress-proxy/file"
    found = text(node, name, report, instead)
    if found is None:
        return None
    if not found.startswith("/") or not found.isprintable():
        report.error(
            Code.BAD_VALUE,
            place_of(node, report),
            f"{name} is not an absolute path: {quoted(found)}",
            instead,
        )
        return None
    return found


def relative_path(node: Node, name: str, report: Report) -> str | None:
    """A path, relative to the directory of the file that names it."""
    instead = "write a path, such as hosts.txt or /etc/egress-proxy/hosts.txt"
    found = text(node, name, report, instead)
    if found is None:
        return None
    if not found or not found.isprintable():
        what = f"{name} is not a path: {quoted(found)}"
        report.error(Code.BAD_VALUE, place_of(node, report), what, instead)
        return None
    return str(Path(report.file).parent / found)


_ADDRESS_AND_PORT: Final = re.compile(r"(?:\[([^\[\]]*)\]|([^\[\]:]*)):([0-9]{1,5})")


def socket_address(node: Node, name: str, report: Report) -> SocketAddress | None:
    """Where to listen: an address of this machine and a port. Port 0 lets the system choose one."""
    return _address_and_port(node, name, report, "0.0.0.0:3128 or [::]:3128", lowest_port=0)


def name_server(node: Node, name: str, report: Report) -> str | None:
    """A name server's address and port, as text."""
    found = _address_and_port(
        node, name, report, "10.96.0.10:53 or [2001:db8::53]:53", lowest_port=1
    )
    return None if found is None else str(found)


def source_address(node: Node, name: str, report: Report) -> str | None:
    """An address of this machine, as text."""
    instead = "write an IP address of this machine, such as 192.0.2.10"
    found = text(node, name, report, instead)
    if found is None:
        return None
    try:
        address = ip_address(found)
    except ValueError:
        what = f"{name} is not an IP address: {quoted(found)}"
    else:
        mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
        if mapped is not None:
            what, instead = f"{name} is an IPv4 address inside IPv6", f"write {mapped}"
        elif not (
            address.is_unspecified
            or address.is_multicast
            or str(address) == "255.255.255.255"
            # Of which interface, there is no way to say.
            or (isinstance(address, IPv6Address) and address.is_link_local)
            or "%" in found
        ):
            return str(address)
        else:
            what = f"{name} cannot be {quoted(found)}"
    report.error(Code.BAD_VALUE, place_of(node, report), what, instead)
    return None


def _address_and_port(
    node: Node, name: str, report: Report, example: str, *, lowest_port: int
) -> SocketAddress | None:
    instead = f"write address:port, such as {example}"
    found = text(node, name, report, instead)
    if found is None:
        return None
    match = _ADDRESS_AND_PORT.fullmatch(found)
    if match is None:
        report.error(
            Code.BAD_VALUE,
            place_of(node, report),
            f"{name} is not address:port: {quoted(found)}",
            instead,
        )
        return None
    try:
        address = ip_address(match[2] if match[1] is None else match[1])
    except ValueError:
        what = f"{name} does not name an IP address: {quoted(found)}"
        report.error(Code.BAD_VALUE, place_of(node, report), what, instead)
        return None
    if isinstance(address, IPv6Address):
        if match[1] is None or address.scope_id is not None:
            report.error(
                Code.BAD_VALUE,
                place_of(node, report),
                f"{name} is not address:port: {quoted(found)}",
                instead,
            )
            return None
        if address.ipv4_mapped is not None:
            what = f"{name} is an IPv4 address inside IPv6"
            report.error(
                Code.BAD_VALUE,
                place_of(node, report),
                what,
                f"write {address.ipv4_mapped}:{match[3]}",
            )
            return None
    elif match[1] is not None:
        what = f"{name} has brackets around an IPv4 address"
        report.error(Code.BAD_VALUE, place_of(node, report), what, f"write {address}:{match[3]}")
        return None
    port = match[3]
    if not _INTEGER.fullmatch(port) or not lowest_port <= int(port) <= 65535:
        what = f"the port of {name} is not a number from {lowest_port} to 65535"
        report.error(Code.BAD_VALUE, place_of(node, report), what, instead)
        return None
    return SocketAddress(str(address), int(port))


@dataclass(frozen=True, slots=True)
class ListOf:
    """A list of values of one type; none of them if one is broken."""

    reader: Reader
    at_most: int
    example: str

    def __call__(self, node: Node, name: str, report: Report) -> tuple[Any, ...] | None:
        entries = items(node, name, report, self.example)
        if entries is None:
            return None
        if len(entries) > self.at_most:
            what = f"{name} has {len(entries):,} entries"
            report.error(
                Code.BAD_VALUE, place_of(node, report), what, f"write at most {self.at_most}"
            )
            return None
        values = [self.reader(entry, f"an entry of {name}", report) for entry in entries]
        return None if None in values else tuple(values)
