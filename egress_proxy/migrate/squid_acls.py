"""Squid's acls: what each says about a client, a host, a port and a method, in three values.

An acl that cannot be told here may match: it is ``MAYBE`` wherever it isn't known to match or not to. Allow rules count
what surely matches, and deny rules what may, so that the result is never wider.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Final

from egress_proxy.migrate.hosts import NameSet
from egress_proxy.migrate.ranges import EVERY_ADDRESS, holds, merged, of_network
from egress_proxy.migrate.writing import Note, shown

NO: Final = 0
MAYBE: Final = 1
YES: Final = 2

#: Acls of acls of acls: how deep they are followed.
_MAX_NESTED: Final = 16
#: Methods, and paths, that are told apart.
_MAX_TOLD_APART: Final = 16

#: What acls of these types ask that rules here do not.
UNKNOWN_TYPES: Final = {
    "time": "the time of day",
    "proxy_auth": "who logs in (write `credentials` and `subjects: [{user: …}]` by hand)",
    "proxy_auth_regex": "who logs in (write `credentials` and `subjects: [{user: …}]` by hand)",
    "ident": "the user that the client's machine names",
    "srcdomain": "the reverse name of the client",
    "srcdom_regex": "the reverse name of the client",
    "browser": "the User-Agent",
    "referer_regex": "the Referer",
    "req_header": "a request header",
    "req_mime_type": "the request's media type",
    "rep_header": "a response header",
    "rep_mime_type": "the response's media type",
    "maxconn": "the number of the client's connections (see `limits`)",
    "max_user_ip": "the number of a user's addresses",
    "external": "a helper program",
    "arp": "the client's hardware address",
    "eui64": "the client's hardware address",
    "random": "chance",
    "localip": "the address that the client connected to",
    "localport": "the port that the client connected to",
    "myip": "the address that the client connected to",
    "myport": "the port that the client connected to",
    "myportname": "the port that the client connected to",
    "src_as": "the client's autonomous system",
    "dst_as": "the host's autonomous system",
    "user_cert": "the client's certificate",
    "ca_cert": "the client's certificate",
    "ssl::server_name": "the name inside of TLS",
    "ssl::server_name_regex": "the name inside of TLS",
}


@dataclass(frozen=True, slots=True)
class Literal:
    """One word of a rule: an acl's name, perhaps behind ``!``."""

    name: str
    negated: bool

    @staticmethod
    def read(word: str) -> Literal:
        return Literal(word.removeprefix("!").lower(), word.startswith("!"))


@dataclass(slots=True)
class Acl:
    """All that the ``acl`` lines of one name say together."""

    name: str
    kind: str
    line: int = 0
    """Of the first of them; 0 for one that Squid knows by itself."""
    ranges: list[tuple[int, int]] = field(default_factory=list)
    """Addresses (``src``, ``dst``, and ``dstdomain`` with an address) or ports."""
    doubtful: list[tuple[int, int]] = field(default_factory=list)
    """Addresses that match in some versions of Squid."""
    names: NameSet = field(default_factory=NameSet)
    regexes: list[re.Pattern[str]] = field(default_factory=list)
    """Those that can be tried on a name, and that say nothing about all names below one."""
    connect: int = NO
    """Whether it matches CONNECT, whatever the host."""
    plain: int = NO
    """Whether it matches every plain request."""
    methods: dict[str | None, int] = field(default_factory=dict)
    """Whether it matches plain requests with a method; None stands for all methods that no acl names."""
    paths: dict[str, bool] = field(default_factory=dict)
    """Beginnings of paths that it matches, each with a slash at its end, and whether case does not matter."""
    urls: dict[str, dict[str, bool]] = field(default_factory=dict)
    """The same for each host that the values of a ``url_regex`` name, on port 80."""
    lines: list[tuple[Literal, ...]] = field(default_factory=list)
    """Of ``any-of`` and ``all-of``."""
    unknown: bool = False
    """Whether it may match where nothing says that it does."""
    no_lookup: bool = False
    notes: list[Note] = field(default_factory=list)
    unnamed: int = 0
    """Values that got no note of their own."""
    file: str = ""
    """Where its first line stands."""

    @property
    def incomplete(self) -> bool:
        """Whether some of what it asks is not known, beyond what the type itself leaves open."""
        return bool(
            self.unknown
            or self.doubtful
            or self.regexes
            or MAYBE in (self.connect, self.plain, *self.methods.values())
        )

    def about_client(self, address: int) -> int:
        return self._about_address(address)

    def about_address(self, address: int) -> int:
        """Whether it matches a request for a literal address."""
        found = self._about_address(address)
        if self.kind == "dst" or found == YES or (self.kind == "dstdomain" and self.no_lookup):
            return found
        return MAYBE  # Squid looks up the address's reverse name

    def _about_address(self, address: int) -> int:
        if holds(self.ranges, address):
            return YES
        return MAYBE if self.unknown or holds(self.doubtful, address) else NO

    def about_name(self, name: str, *, below: bool) -> int:
        """Whether it matches requests for the name, or for all below it that are not mentioned by themselves."""
        if self.kind == "dst":
            return NO if self.no_lookup else MAYBE
        if self.names.covers(name, below=below):
            return YES
        if not below and any(regex.search(name) for regex in self.regexes):
            return YES
        return MAYBE if self.unknown or (below and self.regexes) else NO

    def beginnings(self) -> Iterator[dict[str, bool]]:
        """Every set of beginnings of paths."""
        yield self.paths
        yield from self.urls.values()

    def sort(self) -> None:
        """Called once, when everything is read."""
        self.ranges = list(merged(self.ranges))
        self.doubtful = list(merged(self.doubtful))
        if self.unnamed:
            last = self.notes[-1]
            why = "they are left out or unknown for the same reasons"
            self.notes.append(
                Note(
                    last.file,
                    last.line,
                    f"{self.unnamed:,} more values of acl `{shown(self.name)}`",
                    why,
                )
            )


def built_in() -> dict[str, Acl]:
    """The acls that Squid has without being told."""
    localhost = [of_network(ip_network(text)) for text in ("127.0.0.1", "::1")]
    to_localhost = [
        of_network(ip_network(text)) for text in ("127.0.0.0/8", "0.0.0.0/32", "::1", "::")
    ]
    to_linklocal = [of_network(ip_network(text)) for text in ("169.254.0.0/16", "fe80::/10")]
    acls = (
        Acl("all", "src", ranges=list(EVERY_ADDRESS)),
        Acl("localhost", "src", ranges=localhost),
        Acl("to_localhost", "dst", ranges=to_localhost),
        Acl("to_linklocal", "dst", ranges=to_linklocal),
        Acl("connect", "method", connect=YES),
        # Squid's own pages, which a client of ours cannot ask for.
        Acl("manager", "url_regex"),
    )
    return {acl.name: acl for acl in acls}


def cut_nested(acls: dict[str, Acl]) -> None:
    """Make each acl that consists of itself, or of acls nested too deep, unknown: nothing follows it for ever."""
    left = {name: acl for name, acl in acls.items() if acl.lines}
    for _ in range(_MAX_NESTED):
        done = [
            name
            for name, acl in left.items()
            if not any(literal.name in left for line in acl.lines for literal in line)
        ]
        for name in done:
            del left[name]
    why = f"it is an acl of itself, or of acls nested deeper than {_MAX_NESTED}; it is not known"
    for acl in left.values():
        acl.unknown = True
        acl.lines = []
        acl.notes.append(Note(acl.file, acl.line, f"acl `{shown(acl.name)}`", why))


def cut_conditions(acls: Iterable[Acl]) -> tuple[list[str], list[str]]:
    """The methods and the beginnings of paths that acls tell apart; what is too much of either is not known.

    Nor are paths that are compared without case where others are compared with it: they would overlap.
    """
    methods: dict[str, None] = {}
    paths: dict[str, None] = {}
    listed = list(acls)
    with_case = any(False in found.values() for acl in listed for found in acl.beginnings())
    for acl in listed:
        for method in [name for name in acl.methods if name is not None]:
            if len(methods) < _MAX_TOLD_APART or method in methods:
                methods[method] = None
            else:
                del acl.methods[method]
                acl.methods[None] = MAYBE
                _note_cut(acl, f"more than {_MAX_TOLD_APART} methods are not told apart")
        for found in acl.beginnings():
            for path, ignoring_case in [*found.items()]:
                why = None
                if ignoring_case and with_case:
                    why = "paths without case (`-i`) beside others with it are not told apart"
                elif len(paths) >= _MAX_TOLD_APART and path not in paths:
                    why = f"more than {_MAX_TOLD_APART} paths are not told apart"
                if why is None:
                    paths[path] = None
                else:
                    del found[path]
                    acl.plain = max(acl.plain, MAYBE)
                    _note_cut(acl, why)
    return list(methods), list(paths)


def _note_cut(acl: Acl, why: str) -> None:
    note = Note(acl.file, acl.line, f"acl `{shown(acl.name)}`", why)
    if note not in acl.notes:
        acl.notes.append(note)


def why_unknown(acl: Acl) -> str:
    """What a note about a rule says of an acl that is not known in full."""
    asked = UNKNOWN_TYPES.get(acl.kind)
    where = f" (line {acl.line})" if acl.line else ""
    if asked is not None:
        return f"acl `{shown(acl.name)}`{where} asks for {asked}, which no rule here does"
    return f"acl `{shown(acl.name)}`{where} is not known in full"
