"""Header and trailer fields (RFC 9110 §5, §6.5; RFC 9112 §5): their syntax, what they say about framing and the
connection, and which of them go on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum
from functools import lru_cache
from typing import Final

from egress_proxy.core import reasons
from egress_proxy.core.errors import HeadError

#: token (RFC 9110 §5.6.2)
TOKEN_BYTE = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
TOKEN = TOKEN_BYTE + rb"+"
#: quoted-string (RFC 9110 §5.6.4)
QUOTED = rb'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*+"'
# field-line (RFC 9112 §5): no white space before the colon; the value's surrounding white space is not part of it.
# `*+` gives nothing back: else a long run of spaces would be tried in all ways to cut it in two.
FIELD_LINE = re.compile(
    rb"("
    + TOKEN
    + rb"):[ \t]*+((?:[\x21-\x7e\x80-\xff](?:[\t \x21-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?)[ \t]*\r\n"
)
_CONTENT_LENGTH = re.compile(rb"[0-9]{1,18}")
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?!\n)")

Field = tuple[bytes, bytes, bytes]
"""A header field: its name in lower case, its name as it came, its value without surrounding white space."""

Known = dict[bytes, list[bytes]]
"""The values of the fields that the proxy itself obeys, by their names in lower case."""

#: Fields that are about one connection and are never forwarded (RFC 9110 §7.6.1, and what clients send to proxies).
HOP_BY_HOP = frozenset(
    (
        *(b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade"),
        b"http2-settings",
    )
)
# RFC 9110 §7.6.1 forbids options that name fields meant for all recipients; ours to check, since clients send them.
_FOR_ALL = frozenset(
    (
        *(b"host", b"content-length", b"content-type", b"authorization", b"cache-control"),
        *(b"via", b"max-forwards", b"idempotency-key", b"x-tenant-id"),
    )
)
#: Fields from which some frameworks take another method or path than the request line says. Where rules depend on
#: either, they are not sent on.
OVERRIDING_FIELDS: Final = frozenset(
    (
        *(b"x-http-method", b"x-http-method-override", b"x-method-override", b"x-original-url"),
        b"x-rewrite-url",
    )
)

# RFC 9110 §6.5.1: what a trailer can never be about. Somewhere behind us it might be merged into the headers, and then
# say where the message ends, whom it is for, who sends it, or how to read it.
_NO_TRAILER = frozenset(
    (
        *(b"content-length", b"transfer-encoding"),
        *(b"host", b"connection", b"proxy-connection", b"keep-alive", b"upgrade", b"expect"),
        *(b"te", b"trailer", b"max-forwards", b"range", b"if-match", b"if-none-match", b"if-range"),
        *(b"if-modified-since", b"if-unmodified-since"),
        *(b"authorization", b"proxy-authorization", b"cookie", b"set-cookie", b"www-authenticate"),
        *(b"proxy-authenticate", b"content-type", b"content-encoding", b"content-range"),
        *(b"idempotency-key", b"x-tenant-id"),
    )
)
# Not to be believed there either, but harmless where it is not passed on.
_DROPPED_TRAILERS = frozenset(
    (
        *(b"via", b"forwarded", b"x-real-ip", b"cache-control", b"pragma", b"age", b"date"),
        *(b"expires", b"location", b"retry-after", b"vary", b"warning", b"http2-settings"),
        *OVERRIDING_FIELDS,
    )
)
_DROPPED_TRAILER_PREFIXES = (b"proxy-", b"x-egress-", b"x-forwarded-", b"x-envoy-")


#: Bytes of a list of options up to which it is remembered.
_USUAL_OPTIONS: Final = 64


class Framing(Enum):
    """How the end of a message body is known (RFC 9112 §6.3)."""

    NONE = "none"
    LENGTH = "length"
    CHUNKED = "chunked"
    UNTIL_CLOSE = "until close"


def parse_trailer(line: bytes) -> bytes | None:
    """A trailer line with its CRLF, as it may be sent on; nothing where it is to be dropped; None where it is malformed
    or a trailer of that name is forbidden.
    """
    match = FIELD_LINE.fullmatch(line)
    if match is None:
        return None
    lower = match[1].lower()
    # Many servers take an underscore for a hyphen.
    lower = lower.replace(b"_", b"-")
    if lower in _NO_TRAILER:
        return None
    if lower in _DROPPED_TRAILERS or lower.startswith(_DROPPED_TRAILER_PREFIXES):
        return b""
    return b"%b: %b\r\n" % match.group(1, 2)


def body_framing(known: Known, minor: int) -> tuple[Framing, int]:
    """How the end of a body is known as far as the fields say, and its bytes where that is by a length.

    Raises HeadError.
    """
    codings, lengths = known.get(b"transfer-encoding"), known.get(b"content-length")
    if codings is not None:
        # RFC 9112 §6.1: both at once, or Transfer-Encoding in HTTP/1.0, is how requests are smuggled.
        if (
            lengths is not None
            or minor == 0
            or len(codings) > 1
            or codings[0].lower() != b"chunked"
        ):
            raise HeadError(
                reasons.BAD_TRANSFER_ENCODING,
                "Transfer-Encoding is not `chunked` alone, or stands beside Content-Length, or in HTTP/1.0",
            )
        return Framing.CHUNKED, 0
    if lengths is None:
        return Framing.NONE, 0
    if len(lengths) > 1 or not is_length(lengths[0]):
        raise HeadError(reasons.BAD_CONTENT_LENGTH, "Content-Length is not one decimal number")
    return Framing.LENGTH, int(lengths[0])


def is_length(value: bytes) -> bool:
    """Whether it is a number that nobody reads in another way, and that overflows nobody's 64 bits."""
    return _CONTENT_LENGTH.fullmatch(value) is not None


def options(values: Sequence[bytes]) -> frozenset[bytes]:
    """The members of a list of tokens, such as Connection's (RFC 9110 §7.6.1), in lower case."""
    if len(values) == 1 and len(values[0]) <= _USUAL_OPTIONS:
        return _members(values[0])
    return frozenset[bytes]().union(*map(_members.__wrapped__, values))


# Nearly always `keep-alive` or `close`.
@lru_cache(maxsize=256)
def _members(value: bytes) -> frozenset[bytes]:
    return frozenset([option.strip() for option in value.lower().split(b",")])


def upgrade_to(known: Known) -> bytes | None:
    """The one protocol that Upgrade names, as it stands there, if Connection names Upgrade (RFC 9110 §7.8)."""
    protocols = known.get(b"upgrade")
    if protocols is None or len(protocols) > 1:
        return None
    return protocols[0] if b"upgrade" in options(known.get(b"connection", ())) else None


def passing(
    fields: list[Field], removed: frozenset[bytes], prefixes: tuple[bytes, ...]
) -> list[Field]:
    """The fields whose names are neither removed, nor begin with a prefix, nor are named by Connection."""
    said = [value for lower, _, value in fields if lower == b"connection"]
    if said and not (named := options(said)) <= removed:
        removed |= named - _FOR_ALL
    # Many servers take an underscore for a hyphen.
    return [
        field
        for field in fields
        for name in (field[0].replace(b"_", b"-"),)
        if name not in removed and not name.startswith(prefixes)
    ]


def has_control(line: bytes) -> bool:
    """Whether a line, which may end with CR, holds a control byte or a CR elsewhere."""
    return _CONTROL.search(line, 0, len(line) - 1) is not None


def bad_field(data: bytes, position: int) -> HeadError:
    """What is wrong with the line at a position, which is no field line."""
    line = data[position:].partition(b"\n")[0]
    if not line.endswith(b"\r"):
        return HeadError(reasons.BARE_LF, "a header line ends with LF alone")
    if line[:1] in {b" ", b"\t"}:
        return HeadError(reasons.OBS_FOLD, "a header is folded over two lines")
    if has_control(line):
        return HeadError(reasons.CONTROL_BYTE, "a header line holds a control byte")
    return HeadError(reasons.MALFORMED_HEADER, "a header line is not NAME: VALUE")
