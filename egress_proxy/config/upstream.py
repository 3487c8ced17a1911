"""Parent proxies: which URL each has, who is reached without one, and the credentials that one asks for."""

from __future__ import annotations

import base64
import re
from ipaddress import IPv4Address
from typing import Final

from egress_proxy.config.destinations import host_pattern, network
from egress_proxy.config.errors import Code, ConfigError, Report, quoted, told
from egress_proxy.config.model import Upstream
from egress_proxy.config.nodes import fields, scalar, text
from egress_proxy.config.sources import Sources
from egress_proxy.config.values import relative_path
from egress_proxy.config.yaml_source import Mapping, Node, Scalar, place_of
from egress_proxy.core.addresses import vet_configured
from egress_proxy.core.errors import HostError
from egress_proxy.core.names import Authority, canonical_host, canonical_ipv6, parse_authority
from egress_proxy.core.networks import IPNetwork
from egress_proxy.core.policy import HostPattern, Place
from egress_proxy.core.upstream import DIRECT, Parent, Route
from egress_proxy.core.upstream import Upstream as Routes

#: Keys of a rule's parent.
PARENT_KEYS: Final = ("proxy", "credentials_file")
#: Entries of ``no_proxy``. A decision walks along the networks.
MAX_NO_PROXY: Final = 1000
#: Bytes of ``user:password``: it goes with each request, and parents take heads of some KiB.
MAX_CREDENTIALS: Final = 4096

_PROXY_EXAMPLE: Final = "http://proxy.example.com:3128"
_PROXY_FORM: Final = f"write http://HOST:PORT, such as {_PROXY_EXAMPLE}"
_ROUTE_EXAMPLE: Final = f'`direct`, or {{proxy: "{_PROXY_EXAMPLE}"}}'
_NO_PROXY_FORM: Final = "write a host, *.example.com for every name below it, or a network"


# The URL ----------------------------------------------------------------------------------------------------------

_URL: Final = re.compile(r"(?:([A-Za-z][A-Za-z0-9+.-]*)://)?([^/?#\\]*)(.*)", re.DOTALL)


def proxy_url(node: Node, name: str, report: Report) -> Authority | None:
    """Read ``http://HOST:PORT``."""
    found = text(node, name, report, _PROXY_FORM)
    if found is None:
        return None
    place = place_of(node, report)
    if "@" in found:
        # What stands before the @ may be a password, so nothing is quoted.
        what = f"{name} has user information (`user:password@`)"
        instead = "write it in a file of its own, and that file's name as `credentials_file`"
        report.error(Code.BAD_VALUE, place, what, instead)
        return None
    match = _URL.fullmatch(found)
    assert match is not None  # noqa: S101 - every text matches
    scheme, rest = (match[1] or "").lower(), match[3]
    try:
        parent = _authority(match[2])
    except HostError as error:
        report.error(Code.BAD_VALUE, place, f"{name} is no URL of a proxy: {error}", _PROXY_FORM)
        return None
    instead = f"write http://{parent}"
    if not scheme:
        what = f"{name} is not a URL: {quoted(found)}"
    elif scheme != "http":
        what = f"{name} has the scheme {quoted(scheme)}, and a parent is spoken to in plain HTTP"
        instead += ", if it takes that there"
    elif rest:
        what = f"{name} has a path"
    elif isinstance(parent.host.address, IPv4Address) and match[2] != str(parent):
        what = f"{name} has an address in an unusual spelling: {quoted(found)}"
    elif parent.host.address is not None and not _can_be_reached(parent):
        what, instead = f"nobody can connect to {quoted(found)}", "write the parent's address"
    else:
        return parent
    report.error(Code.BAD_VALUE, place, what, instead)
    return None


def _authority(found: str) -> Authority:
    """Raises HostError."""
    if not found.isascii():
        # A name is written as people write it.
        host, colon, port = found.rpartition(":")
        found = canonical_host(host).text + colon + port if colon else canonical_host(found).text
        if not found.isascii():
            raise HostError("the port is not a decimal number from 1 to 65535")
    return parse_authority(found.encode("ascii"), None)


def _can_be_reached(parent: Authority) -> bool:
    try:
        vet_configured(parent.host.text, parent.port)
    except ValueError:
        return False
    return True


# Who is reached directly ------------------------------------------------------------------------------------------

#: With a prefix length, or as IPv6 is written, well or badly.
_NETWORK: Final = re.compile(r"[0-9A-Fa-f:.%]+/[0-9.]+|[0-9A-Fa-f]*:[0-9A-Fa-f]*:[0-9A-Fa-f:.]*")
_PORT_BEHIND: Final = re.compile(r"([^:]+|\[.*\]):[0-9*]*")


def no_proxy_entry(node: Node, name: str, report: Report) -> HostPattern | IPNetwork | None:
    """Read a host pattern, as rules have them, or a network."""
    if not isinstance(node, Scalar):
        text(node, name, report, _NO_PROXY_FORM)
        return None
    found = node.text
    place = place_of(node, report)
    if _NETWORK.fullmatch(found) or _is_address(found):
        read = network(node, name, report)
        if read is not None and read.prefixlen == 0:
            what = f"`{read}` of `no_proxy` stands for every address of its kind, so none goes through the parent"
            report.warning(
                Code.WIDE_RULE, place, what, "write the networks that are reached directly"
            )
        return read
    if found == "*":
        what = "`*` of `no_proxy` stands for every host, so none goes through the parent"
        instead = "write the hosts that are reached directly, or remove `upstream`"
        report.warning(Code.WIDE_RULE, place, what, instead)
    if found.startswith("@"):
        what = f"{quoted(found)} is a set, and `no_proxy` lists hosts and networks"
        report.error(Code.BAD_HOST, place, what, "write the hosts of the set here too")
        return None
    behind = _PORT_BEHIND.fullmatch(found)
    if behind is not None:
        what = f"{quoted(found)} has a port, and `no_proxy` is for every port"
        report.error(Code.BAD_HOST, place, what, f"write {quoted(behind[1])}")
        return None
    return host_pattern(node, name, report)


def _is_address(found: str) -> bool:
    try:
        if found.count(":") > 1:
            canonical_ipv6(found.removeprefix("[").removesuffix("]"))
            return True
        return canonical_host(found).address is not None
    except HostError:
        return False


def routes(found: Upstream) -> Routes | None:
    """What the top level says, as a decision asks for it; None where it names no parent."""
    if found.proxy is None:
        return None
    hosts = [entry for entry in found.no_proxy if isinstance(entry, HostPattern)]
    return Routes(
        Parent(found.proxy, found.credentials_file),
        frozenset(host.name for host in hosts if not host.wildcard),
        tuple(f".{host.name}" if host.name else "" for host in hosts if host.wildcard),
        tuple(entry for entry in found.no_proxy if not isinstance(entry, HostPattern)),
    )


# Rules ------------------------------------------------------------------------------------------------------------


def read_route(node: Node, report: Report, credentials: ParentCredentials) -> Route | None:
    """What a rule says about its destinations: ``direct``, or a parent of its own."""
    if not isinstance(node, Mapping):
        found = scalar(node, "`upstream` of a rule", report, f"write {_ROUTE_EXAMPLE}")
        if found is None:
            return None
        if found.text == "direct":
            return DIRECT
        # What stands before an @ may be a password.
        shown = "a text with an `@`" if "@" in found.text else quoted(found.text)
        what = f"`upstream` of a rule cannot be {shown}"
        report.error(Code.BAD_VALUE, place_of(node, report), what, f"write {_ROUTE_EXAMPLE}")
        return None
    found_keys = fields(node, "`upstream` of a rule", report, PARENT_KEYS, {}, _ROUTE_EXAMPLE)
    parent: Authority | None = None
    if "proxy" in found_keys:
        parent = proxy_url(found_keys["proxy"], "`proxy`", report)
    elif lacks(node, "proxy"):
        report_no_proxy(place_of(node, report), report)
    path: str | None = ""
    if "credentials_file" in found_keys:
        inner = found_keys["credentials_file"]
        path = relative_path(inner, "`credentials_file`", report)
        if path is not None:
            credentials.read(path, place_of(inner, report), report)
    return None if parent is None or path is None else Parent(parent, path)


def lacks(node: Node, key: str) -> bool:
    """Whether a mapping that says something does not say this, well or badly."""
    return (
        isinstance(node, Mapping)
        and bool(node.entries)
        and all(found.text != key for found, _ in node.entries)
    )


def report_no_proxy(place: Place, report: Report) -> None:
    what = "`upstream` has no `proxy`"
    report.error(Code.MISSING_KEY, place, what, f'write `proxy: "{_PROXY_EXAMPLE}"`')


# Credentials ------------------------------------------------------------------------------------------------------

#: RFC 7617 §2: neither part holds a control character. The first part ends at the first colon.
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_LINE: Final = "write one line `user:password`"


class ParentCredentials:
    """Reads the files with the credentials that parents ask for, each once. No message shows what one holds."""

    def __init__(self, sources: Sources) -> None:
        self.found: dict[str, bytes] = {}
        """The value of Proxy-Authorization, by the path of the file."""
        self._sources = sources
        self._seen: set[str] = set()

    def read(self, path: str, place: Place, report: Report) -> None:
        """Read a file that is named at a place."""
        if path in self._seen:
            return
        self._seen.add(path)
        try:
            data = self._sources.read(path, secret=True)
        except ConfigError as error:
            what, instead = told(error)
            if ":" in path:
                # It may be the credentials themselves, so it is not quoted.
                what = "`credentials_file` names no file that can be read"
                instead = "write the path of a file with the one line `user:password`, not the line itself"
            report.error(Code.UNREADABLE_FILE, place, what, instead)
            return
        line = _line(data, report.beside(path))
        if line is not None:
            self.found[path] = b"Basic " + base64.b64encode(line)


def _line(data: bytes, report: Report) -> bytes | None:
    """The one line of the file, without its end; None once it was reported."""
    place = Place(report.file, 1, 1)

    def error(what: str, instead: str = _LINE) -> None:
        report.error(Code.BAD_USER, place, what, instead)

    line = data.removesuffix(b"\n")
    if not line:
        error("the file is empty")
    elif b"\n" in line:
        error("the file has more than one line")
    elif len(line) > MAX_CREDENTIALS:
        error(f"the line is longer than {MAX_CREDENTIALS:,} bytes")
    elif line.endswith(b"\r"):
        error("the line ends with CR", "save the file with the line ends of Unix (LF alone)")
    else:
        try:
            decoded = line.decode("utf-8")
        except UnicodeDecodeError:
            error("the file is not UTF-8", "save it as UTF-8 text")
            return None
        if decoded.startswith("\ufeff"):
            instead = "save it as UTF-8 without a byte order mark"
            error("the file starts with the byte order mark of UTF-8", instead)
        elif _CONTROL.search(decoded):
            error("the line holds a control character", "remove it")
        elif ":" not in decoded:
            error("the line has no colon")
        elif decoded == ":":
            error("the line has neither a user nor a password")
        else:
            if decoded != decoded.strip():
                what = "the line begins or ends with white space, which is taken for a part of it"
                report.warning(Code.BAD_USER, place, what, "remove it unless it is meant")
            return line
    return None
