"""Reading ``acl`` lines: each value as Squid 5 takes it, or a note that says why it is not known."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Network, ip_address, ip_network
from typing import Final

from egress_proxy.core.errors import HostError
from egress_proxy.core.names import IPAddress, canonical_host
from egress_proxy.core.networks import lies_within
from egress_proxy.migrate.ranges import (
    EVERY_ADDRESS,
    EVERY_IPV4,
    EVERY_IPV6,
    Ranges,
    of_addresses,
    of_network,
)
from egress_proxy.migrate.squid_acls import MAYBE, UNKNOWN_TYPES, YES, Acl, Literal
from egress_proxy.migrate.squid_lines import Directive, Files, reason_of, values_of_file
from egress_proxy.migrate.squid_urls import read_path, read_url
from egress_proxy.migrate.ways import METHOD
from egress_proxy.migrate.writing import MigrationError, shown

#: Values of one acl that are named one by one; a file may hold thousands that are wrong in the same way.
_MAX_NAMED: Final = 5

_SCHEMES_NOT_HERE: Final = frozenset(
    ("ftp", "gopher", "wais", "whois", "urn", "cache_object", "coap", "coaps")
)
_EVERY_TEXT: Final = frozenset(
    ("0/0", "0.0.0.0/0", "0.0.0.0/0.0.0.0", "0.0.0.0-255.255.255.255", "0.0.0.0-0.0.0.0/0")
)
#: Options of regular expressions, which may stand between them too.
_CASE: Final = ("-i", "+i")
_PORT_RANGE: Final = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")
_MAPPED: Final = IPv6Network("::ffff:0:0/96")

_REGEX_NAME: Final = r"(?P<name>[a-z0-9_-]+(?:\\\.[a-z0-9_-]+)*)"
#: Regular expressions that stand for a name, for all below it, or for both. The texts of Squid are extended POSIX ones.
_REGEX_FORMS: Final = tuple(
    (re.compile(before + _REGEX_NAME + r"\$"), exact, below, whole)
    for before, exact, below, whole in (
        (r"\^", True, False, True),
        (r"\(\^\|\\\.\)", True, True, True),
        (r"\^\(\.[*+]\\\.\)[?*]", True, True, True),
        # With `?` it is one label alone.
        (r"\^\(\[\^\.\][*+]\\\.\)\*", True, True, True),
        (r"(?:\^?\.[*+])?\\\.", False, True, True),
        # Without an anchor it matches `notexample.com` too.
        (r"", True, True, False),
    )
)
#: Regular expressions that Python reads as POSIX does, and quickly: letters, dots, and few `.*`.
_REGEX_SIMPLE: Final = re.compile(r"\^?(?:[a-z0-9_-]|\\\.|\.[*+]?)*\$?")


def define(acls: dict[str, Acl], line: Directive, files: Files) -> None:
    """Add one ``acl`` line. What it says is unknown where it cannot be understood.

    Raises MigrationError where the line has no name or no type.
    """
    if len(line.words) < 2:
        raise MigrationError(f"{line.file}:{line.line}: `{line}` has no name or no type")
    name, kind = line.words[0].lower(), line.words[1]
    if name == "manager" and kind == "proto":
        return  # as Squid does since 3.2
    acl = acls.setdefault(name, Acl(name, kind, line.line, file=line.file))
    acl.line = acl.line or line.line
    acl.file = acl.file or line.file
    if acl.kind != kind:
        _unknown(acl, line, f"the name has the type `{shown(acl.kind)}` already")
        return
    if line.uncertain:
        _unknown(acl, line, "it stands behind a condition that depends on the running Squid")
        return
    words = list(line.words[2:])
    if kind in ("any-of", "all-of"):
        literals = [Literal.read(word) for word in words]
        acl.lines += [tuple(literals)] if kind == "all-of" else [(one,) for one in literals]
        return
    if kind not in _READERS and kind not in _REGEX_READERS:
        acl.unknown = True
        if kind not in UNKNOWN_TYPES:
            acl.notes.append(line.note(f"acls of the type `{shown(kind)}` are not known here"))
        return
    ignoring_case = False
    for value in _values(acl, line, words, files):
        if kind in _REGEX_READERS and value in _CASE:
            ignoring_case = value == "-i"
        elif value[0] in "-+":
            acl.unknown = True
            _say(acl, line, value, "it may be an option, which is not known here")
        elif kind in _REGEX_READERS:
            why = _REGEX_READERS[kind](acl, value, ignoring_case=ignoring_case)
            if why is not None:
                _say(acl, line, value, why)
        else:
            _READERS[kind](acl, line, value)


def _values(acl: Acl, line: Directive, words: list[str], files: Files) -> list[str]:
    """The values of one line: after its options, and from its files."""
    found: list[str] = []
    no_lookup = False
    while words and words[0][0] in "-+":
        option = words.pop(0)
        if option == "--":
            break
        if option == "-n":
            no_lookup = True
        elif option in _CASE and acl.kind in _REGEX_READERS:
            found.append(option)
        else:
            # It may change what all that follows means.
            _unknown(acl, line, f"the option `{shown(option)}` is not known here")
            return []
    acl.no_lookup = acl.no_lookup or no_lookup
    for position, word in enumerate(words):
        if word[0] not in "\"'":
            found.append(word)
            continue
        name = files.path(re.split("[\"']", word[1:])[0])
        try:
            found += values_of_file(files.read(name))
        except (OSError, ValueError, MigrationError) as error:
            _unknown(acl, line, f"the file {shown(name)} cannot be read: {reason_of(error)}")
        if words[position + 1 :]:
            _unknown(
                acl, line, "Squid 5 ignores what follows a file on the line, and Squid 7 does not"
            )
        break
    return found


def _unknown(acl: Acl, line: Directive, why: str) -> None:
    acl.unknown = True
    acl.notes.append(line.note(why))


def _say(acl: Acl, line: Directive, value: str, why: str) -> None:
    if len(acl.notes) < _MAX_NAMED:
        acl.notes.append(line.note(why, f"value `{shown(value)}` of acl `{shown(acl.name)}`"))
    else:
        acl.unnamed += 1


# Addresses ------------------------------------------------------------------------------------------------------


def _read_address(acl: Acl, line: Directive, value: str) -> None:
    if value == "all" or value in _EVERY_TEXT:
        acl.ranges += EVERY_ADDRESS
    elif value in ("ipv4", "ipv6"):
        acl.ranges += EVERY_IPV4 if value == "ipv4" else EVERY_IPV6
    elif (found := _range(value)) is not None:
        acl.ranges += found
        if not found:
            acl.unknown = True
            _say(acl, line, value, "the range ends before it starts")
    else:
        _read_network(acl, line, value)


def _range(value: str) -> Ranges | None:
    low, dash, high = value.partition("-")
    try:
        first, last = ip_address(low), ip_address(high)
    except ValueError:
        return None
    if not dash or first.version != last.version or int(last) == 0:
        return None
    return of_addresses(first, last)


def _read_network(acl: Acl, line: Directive, value: str) -> None:
    address, slash, mask = value.partition("/")
    try:
        single: IPAddress = ip_address(address)
        if "." in mask and _prefix_of_mask(mask) is None:
            raise ValueError
        network = ip_network(f"{address}/{mask}" if slash else address, strict=False)
    except ValueError:
        acl.unknown = True
        _say(
            acl,
            line,
            value,
            "it is no address, network or range in its usual form; names are not looked up",
        )
        return
    if isinstance(network, IPv6Network) and network.overlaps(_MAPPED):
        # To Squid an IPv4 address is one of ::ffff:0:0/96.
        acl.doubtful += EVERY_IPV4
        if lies_within(network, _MAPPED):
            _say(acl, line, value, "it is IPv4 inside IPv6; write the IPv4 network")
            return
    if network.network_address != single:
        acl.doubtful.append(of_network(network))
        _say(acl, line, value, f"it has bits set behind its prefix; write {network}")
    else:
        acl.ranges.append(of_network(network))


def _prefix_of_mask(mask: str) -> int | None:
    """The length of a netmask; None for one that has holes, or for a mask of the host's bits."""
    number = int(IPv4Address(mask))
    length = number.bit_count()
    return length if number == ((1 << length) - 1) << (32 - length) else None


# Hosts ----------------------------------------------------------------------------------------------------------


def _read_domain(acl: Acl, line: Directive, value: str) -> None:
    name = value.lower()
    if "${" in name or name == ".":
        acl.unknown = True
        _say(acl, line, value, "what it means depends on the running Squid")
        return
    with_all_below = name.startswith(".")
    name = name.removeprefix(".")
    try:
        address = ip_address(name)
    except ValueError:
        pass
    else:
        canonical = address.version == 4 and not with_all_below
        (acl.ranges if canonical else acl.doubtful).append(of_network(ip_network(address)))
        return
    try:
        # A trailing dot is no slip that can be mended: Squid takes it off the request, and not off the value.
        host = None if name.endswith(".") or not name.isascii() else canonical_host(name)
    except HostError:
        host = None
    if host is None:
        _say(
            acl,
            line,
            value,
            "no host name is spelled so, and Squid takes it literally: it matches nothing",
        )
    elif host.address is not None:
        acl.doubtful.append(of_network(ip_network(host.address)))
        _say(acl, line, value, "it is an address in an unusual spelling")
    else:
        acl.names.add(name, exact=True, below=with_all_below)


def _read_regex(acl: Acl, value: str, *, ignoring_case: bool) -> str | None:
    # Squid has made the host lower-case before.
    pattern = value.lower() if ignoring_case else value
    for form, exact, below, whole in _REGEX_FORMS:
        match = form.fullmatch(pattern)
        if match is None:
            continue
        name = match["name"].replace("\\.", ".")
        try:
            if canonical_host(name).address is not None:
                break
        except HostError:
            break
        acl.names.add(name, exact=exact, below=below)
        if whole:
            return None
        break
    branches = pattern.split("|")
    if all(
        _REGEX_SIMPLE.fullmatch(one) and len(re.findall(r"\.[*+]", one)) <= 2 for one in branches
    ):
        acl.regexes.append(re.compile(pattern))
    else:
        acl.unknown = True
    return "rules have no regular expressions; it is none that stands for a host or a domain"


# Ports and methods ----------------------------------------------------------------------------------------------


def _read_port(acl: Acl, line: Directive, value: str) -> None:
    match = _PORT_RANGE.fullmatch(value)
    low = high = 0
    if match is not None:
        low, high = int(match[1]), int(match[2] or match[1])
    if match is None or not low <= high <= 65535:
        acl.unknown = True
        _say(acl, line, value, "it is no port or range of ports")
    elif high:
        acl.ranges.append((max(low, 1), high))


def _read_method(acl: Acl, _line: Directive, value: str) -> None:
    name = value.upper()
    # Squid takes its own methods in lower case too, and other ones by the letter.
    sure = YES if value == name else MAYBE
    if name == "CONNECT":
        acl.connect = max(acl.connect, sure)
    elif METHOD.fullmatch(name):
        acl.methods[name] = max(acl.methods.get(name, sure), sure)
        if sure != YES:
            acl.methods[None] = MAYBE
    else:
        acl.methods[None] = MAYBE


def _read_scheme(acl: Acl, _line: Directive, value: str) -> None:
    scheme = value.lower()
    if scheme == "http":
        acl.plain = YES  # nothing else is forwarded in clear here
        acl.connect = max(acl.connect, MAYBE)
    elif scheme not in _SCHEMES_NOT_HERE:
        acl.connect = max(acl.connect, MAYBE)
        if scheme != "https":
            acl.plain = max(acl.plain, MAYBE)


_READERS: Final = {
    "src": _read_address,
    "dst": _read_address,
    "dstdomain": _read_domain,
    "port": _read_port,
    "method": _read_method,
    "proto": _read_scheme,
}

#: Types whose options may stand among their values.
_REGEX_READERS: Final = {
    "dstdom_regex": _read_regex,
    "urlpath_regex": read_path,
    "url_regex": read_url,
}
