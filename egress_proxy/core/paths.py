"""Paths of requests: one normal form for each, and the patterns by which rules name them (RFC 3986 §3.3, §6.2.2).

A path has many spellings, and what an origin makes of some of them nobody here can know: `%2f` is a slash to one server
and a letter to another. So a path either has a normal form, which is compared and sent on, or it is *unclear*, and then
no pattern of an allow rule matches it and every pattern of a deny rule does.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Final

import msgspec


class Unclear(StrEnum):
    """Why a path can be read in more than one way, in words for people. None of them quotes the path."""

    NO_PATH = "does not start with a slash"
    BYTE = "holds a byte that no URL holds"
    BACKSLASH = "holds a backslash, which some servers take for a slash"
    PARAMETER = "holds a semicolon, behind which some servers ignore the rest of a segment"
    BAD_ENCODING = "holds a percent sign without two hexadecimal digits"
    ENCODED_SLASH = "holds an encoded slash or backslash"
    ENCODED_PERCENT = "holds an encoded percent sign, which may be decoded twice"
    ENCODED_DELIMITER = "holds an encoded question mark, number sign or semicolon"
    ENCODED_CONTROL = "holds an encoded control character"
    NOT_UTF8 = "holds encoded bytes that are not UTF-8"
    EMPTY_SEGMENT = "holds two slashes in a row"
    ABOVE_ROOT = "climbs above the root with `..`"


#: unreserved / sub-delims / ":" / "@" (RFC 3986 §2.3, §3.3), without the semicolon.
_CHARACTER: Final = rb"[A-Za-z0-9\-._~!$&'()*+,=:@]"
#: What needs no second look, unless a segment starts with a dot. `*+` and `++` give nothing back: linear time.
_PLAIN: Final = re.compile(rb"(?:/" + _CHARACTER + rb"++)*+/?")
_UNRESERVED: Final = frozenset(
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"
)
_NO_URL_BYTE: Final = re.compile(rb"[^\x21-\x7e]")
_ENCODED: Final = re.compile(rb"%([0-9A-Fa-f]{2})?")
#: Visible ASCII that is no part of a path's grammar, and that clients send all the same.
_TO_ENCODE: Final = re.compile(rb"[\"<>\[\]^`{|}]")

_ENCODED_DELIMITERS: Final = {
    0x2F: Unclear.ENCODED_SLASH,
    0x5C: Unclear.ENCODED_SLASH,
    0x25: Unclear.ENCODED_PERCENT,
    0x3B: Unclear.ENCODED_DELIMITER,
    0x3F: Unclear.ENCODED_DELIMITER,
    0x23: Unclear.ENCODED_DELIMITER,
}


class _UnclearError(Exception):
    def __init__(self, why: Unclear) -> None:
        super().__init__(why)
        self.why = why


def normal_path(path: bytes) -> bytes | Unclear:
    """The normal form of a path, which stands without its query; or why it has none.

    Dot segments are resolved, what need not be encoded is decoded, what must be is encoded, and hexadecimal digits are
    upper case. The normal form of a normal form is itself. Takes time in proportion to the length.
    """
    if _PLAIN.fullmatch(path) is not None and path and b"/." not in path:
        return path
    try:
        return _normalised(path)
    except _UnclearError as error:
        return error.why


def _normalised(path: bytes) -> bytes:
    if not path.startswith(b"/"):
        raise _UnclearError(Unclear.NO_PATH)
    if _NO_URL_BYTE.search(path) is not None or b"?" in path or b"#" in path:
        raise _UnclearError(Unclear.BYTE)
    if b"\\" in path:
        raise _UnclearError(Unclear.BACKSLASH)
    if b";" in path:
        raise _UnclearError(Unclear.PARAMETER)
    path = _TO_ENCODE.sub(lambda found: b"%%%02X" % found[0][0], _ENCODED.sub(_recoded, path))
    try:
        # Overlong forms and surrogates are no UTF-8 to Python, whatever an origin makes of them (RFC 3629 §10).
        decoded(path)
    except UnicodeDecodeError:
        raise _UnclearError(Unclear.NOT_UTF8) from None
    segments = path.split(b"/")[1:]
    if b"" in segments[:-1]:
        raise _UnclearError(Unclear.EMPTY_SEGMENT)
    return b"/" + b"/".join(_without_dots(segments))


def _recoded(found: re.Match[bytes]) -> bytes:
    """A percent-encoded byte in its one form (RFC 3986 §6.2.2.1 and §6.2.2.2)."""
    if found[1] is None:
        raise _UnclearError(Unclear.BAD_ENCODING)
    byte = int(found[1], 16)
    if byte in _UNRESERVED:
        return b"%c" % byte
    if byte in _ENCODED_DELIMITERS:
        raise _UnclearError(_ENCODED_DELIMITERS[byte])
    if byte < 0x20 or byte == 0x7F:
        raise _UnclearError(Unclear.ENCODED_CONTROL)
    return b"%%%02X" % byte


def _without_dots(segments: list[bytes]) -> list[bytes]:
    """Resolve dot segments (RFC 3986 §5.2.4), but do not pass over those that lead above the root."""
    found: list[bytes] = []
    for segment in segments:
        if segment == b"..":
            if not found:
                raise _UnclearError(Unclear.ABOVE_ROOT)
            found.pop()
        elif segment != b".":
            found.append(segment)
    if segments[-1] in {b".", b".."}:
        # They stand for a directory, whose path ends in a slash.
        found.append(b"")
    return found


def decoded(path: bytes) -> str:
    """A path, or a part of one, with all that is encoded decoded. Raises UnicodeDecodeError."""
    if b"%" not in path:
        return path.decode("ascii")
    return _ENCODED.sub(lambda found: bytes.fromhex(found[1].decode("ascii")), path).decode("utf-8")


class Segments(msgspec.Struct, frozen=True):
    """A path in normal form, cut for being compared."""

    exact: tuple[bytes, ...]
    """Its segments; the last one is empty where the path ends in a slash."""
    folded: tuple[str, ...]
    """The same as careless servers read them: decoded, without case, and without a slash at the end."""


def segments_of(path: bytes) -> Segments:
    """Cut a path that is in normal form."""
    exact = tuple(path[1:].split(b"/"))
    folded = tuple(map(_folded, exact if exact[-1] else exact[:-1]))
    return Segments(exact, folded)


def _folded(segment: bytes) -> str:
    return decoded(segment).casefold()


class PathPattern(msgspec.Struct, frozen=True, gc=False):
    """``/a/b`` (this path), ``/a/*/b`` (`*` is one whole segment) or ``/a/`` (every path that begins so)."""

    text: str
    segments: tuple[bytes | None, ...]
    """None is ``*``."""
    folded: tuple[str | None, ...]
    below: bool
    """Whether it ends in a slash."""

    def __str__(self) -> str:
        return self.text

    def matches(self, path: Segments) -> bool:
        """Whether a path is one of these, letter by letter. A ``*`` is never an empty segment."""
        found, wanted = path.exact, self.segments
        if len(found) <= len(wanted) if self.below else len(found) != len(wanted):
            return False
        return all(
            segment if want is None else segment == want
            for want, segment in zip(wanted, found, strict=False)
        )

    def may_match(self, path: Segments) -> bool:
        """Whether some server may take a path for one of these.

        To some, case does not matter, nor what is encoded, nor a slash at the end.
        """
        found, wanted = path.folded, self.folded
        if len(found) < len(wanted) if self.below else len(found) != len(wanted):
            return False
        return all(
            want is None or segment == want for want, segment in zip(wanted, found, strict=False)
        )

    def covers(self, other: PathPattern) -> bool:
        """Whether every path that the other one matches is matched by this one."""
        mine, theirs = self.segments, other.segments
        if self.below:
            # `/a/` holds `/a/b`, and `/a/` itself, but not `/a`.
            if len(theirs) < len(mine) + (not other.below):
                return False
        elif other.below or len(theirs) != len(mine):
            return False
        return all(
            want is None or want == segment for want, segment in zip(mine, theirs, strict=False)
        )


def path_pattern(text: str) -> PathPattern:
    """The pattern that a text stands for.

    The text is ASCII in normal form, which is for the configuration to see to: every segment but ``*`` as
    :func:`normal_path` leaves it.
    """
    below = text.endswith("/")
    parts = text[1:].removesuffix("/").split("/") if text != "/" else []
    segments = tuple(None if part == "*" else part.encode("ascii") for part in parts)
    folded = tuple(None if segment is None else _folded(segment) for segment in segments)
    return PathPattern(text, segments, folded, below)
