"""Header sections (RFC 9110 §6.3): the fields of a head, parsed once for all heads in which they are the same.

The requests of a client differ in their targets, and seldom in anything else; the answers of an origin to one request
are the same for a second at least. So the bytes of a section are looked up before they are parsed.
"""

from __future__ import annotations

from typing import Final, TypeVar

from egress_proxy.core import reasons
from egress_proxy.core.errors import HeadError
from egress_proxy.core.fields import FIELD_LINE, Field, Known, bad_field, passing

K = TypeVar("K")
V = TypeVar("V")

#: What is nobody's business but the client's and the origin's is not kept for longer than it takes to pass it on.
_SECRET: Final = frozenset((b"authorization", b"cookie", b"set-cookie"))
#: The fields of a :data:`Known`.
_KNOWN: Final = _SECRET.union(
    (
        *(b"host", b"content-length", b"transfer-encoding", b"connection", b"proxy-connection"),
        *(b"expect", b"upgrade", b"max-forwards", b"via", b"proxy-status", b"proxy-authorization"),
        # What CGI and its heirs cannot tell from the names with a hyphen.
        *(b"content_length", b"transfer_encoding"),
    )
)

#: Bytes of a head, or of a section, and its fields, up to which it is remembered, and how many of each kind are. Who
#: sends may choose them, hence the bounds. Parsed, a field takes more than it takes on the wire: 8 MiB for each kind.
REPEATED_SIZE: Final = 768
REPEATED_FIELDS: Final = 24
_MOST: Final = 1024


class Section:
    """The fields of one head, whose syntax is right. Nobody changes what is in it: it may be that of many heads."""

    __slots__ = ("_lines", "fields", "known")

    def __init__(self, fields: list[Field], known: Known) -> None:
        self.fields = fields
        self.known = known
        self._lines: dict[tuple[frozenset[bytes], tuple[bytes, ...]], bytes] = {}

    __hash__ = None  # type: ignore[assignment]  # it holds lists

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Section) and self.fields == other.fields

    def values(self, name: bytes) -> list[bytes]:
        """The values of all fields of a name, which is given in lower case."""
        return [value for lower, _, value in self.fields if lower == name]

    def lines(self, removed: frozenset[bytes], prefixes: tuple[bytes, ...]) -> bytes:
        """The lines that are sent on, as :func:`~egress_proxy.core.fields.passing` chooses them.

        The arguments are among a few constants, for the answers are kept.
        """
        key = removed, prefixes
        lines = self._lines.get(key)
        if lines is None:
            lines = self._lines[key] = as_lines(passing(self.fields, removed, prefixes))
        return lines


_remembered: dict[bytes, Section] = {}


def parse_section(data: bytes, position: int, limit: int) -> Section:
    """The fields of a head from their first byte to its empty line, with which the data ends.

    Raises HeadError.
    """
    block = data[position:]
    section = _remembered.get(block)
    if section is None:
        section = _parse(data, position, limit)
        if len(block) <= REPEATED_SIZE:
            remember(_remembered, block, section, section)
    elif len(section.fields) > limit:
        raise _too_many(limit)
    return section


def remember(memo: dict[K, V], key: K, value: V, section: Section) -> None:
    """Keep what was made of a head with this section for its next time, unless it is large or has secrets in it."""
    if len(section.fields) <= REPEATED_FIELDS and _SECRET.isdisjoint(section.known):
        if len(memo) >= _MOST:
            memo.clear()
        memo[key] = value


def as_lines(fields: list[Field]) -> bytes:
    """Fields as they stand in a head."""
    return b"".join([b"%b: %b\r\n" % field[1:] for field in fields])


def _parse(data: bytes, position: int, limit: int) -> Section:
    fields: list[Field] = []
    known: Known = {}
    match = FIELD_LINE.match
    end = len(data) - 2
    while position < end:
        line = match(data, position)
        if line is None:
            raise bad_field(data, position)
        if len(fields) == limit:
            raise _too_many(limit)
        name, value = line.group(1, 2)
        lower = name.lower()
        fields.append((lower, name, value))
        if lower in _KNOWN:
            known.setdefault(lower, []).append(value)
        position = line.end()
    if position != end or data[end:] != b"\r\n":
        raise HeadError(reasons.MALFORMED_HEADER, "the head does not end with an empty line")
    return Section(fields, known)


def _too_many(limit: int) -> HeadError:
    return HeadError(reasons.TOO_MANY_HEADERS, f"more than {limit} header lines")
