"""HTTP/1 message heads: bytes to values and back (RFC 9112), strictly and in one pass.

Whatever two parsers might read differently is refused with the reason that names it; nothing is
repaired or guessed. The functions are pure: they see a whole head, and say nothing about where it
came from.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import Enum
from functools import lru_cache

import msgspec

from egress_proxy.core import reason as reasons
from egress_proxy.core.errors import HeadError, HostError
from egress_proxy.core.names import Authority, AuthorityError, parse_authority

#: token (RFC 9110 §5.6.2)
_TOKEN_BYTE = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
_TOKEN = _TOKEN_BYTE + rb"+"
# request-line (RFC 9112 §3) with single spaces, as the grammar has it; the target holds visible ASCII alone.
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb") ([\x21-\x7e]+) HTTP/([0-9])\.([0-9])\r\n")
# status-line (RFC 9112 §4); the space before an empty reason phrase is missing in some answers, and
# nothing hangs on it.
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: [\t \x21-\x7e\x80-\xff]*)?\r\n")
# field-line (RFC 9112 §5): no white space before the colon; the value's surrounding white space is not part of it.
# `*+` gives nothing back: else a long run of spaces would be tried in all ways to cut it in two.
_FIELD_LINE = re.compile(
    rb"("
    + _TOKEN
    + rb"):[ \t]*+((?:[\x21-\x7e\x80-\xff](?:[\t \x21-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?)[ \t]*\r\n"
)
_HTTP_URL = re.compile(rb"[hH][tT][tT][pP]://([^/?]*)(/?[^?]*(?:\?.*)?)")
_ANY_URL = re.compile(rb"[A-Za-z][A-Za-z0-9+.\-]*://")
_CONTENT_LENGTH = re.compile(rb"[0-9]{1,18}")
_METHOD_BYTE = re.compile(_TOKEN_BYTE)
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?!\n)")

#: Bytes of a CONNECT request's head up to which its meaning is remembered.
_REPEATED_SIZE = 512

END_OF_HEAD = b"\r\n\r\n"

_TLS = "this is a TLS handshake; the proxy speaks plain HTTP"

#: Fields that are about one connection and are never forwarded (RFC 9110 §7.6.1, and what clients send to proxies).
HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
    )
)

Field = tuple[bytes, bytes, bytes]
"""A header field: its name in lower case, its name as it came, its value without surrounding white space."""


class HeadLimits(msgspec.Struct, frozen=True):
    """How large a head may be."""

    size: int
    """Bytes of the whole head, request line and last empty line included."""
    fields: int
    """Number of header lines."""


class Framing(Enum):
    """How the end of a message body is known (RFC 9112 §6.3)."""

    NONE = "none"
    LENGTH = "length"
    CHUNKED = "chunked"
    UNTIL_CLOSE = "until close"


class Head(msgspec.Struct, frozen=True):
    """A request head whose syntax is right; what it means is another question."""

    method: str
    target: bytes
    minor: int
    """The minor version: 0 or 1."""
    fields: list[Field]

    def values(self, name: bytes) -> list[bytes]:
        """The values of all fields of a name, which is given in lower case."""
        return [value for lower, _, value in self.fields if lower == name]


class ProxyRequest(msgspec.Struct, frozen=True):
    """A request to this proxy: CONNECT, or another method with an ``http://`` URL as target."""

    method: str
    destination: Authority
    path: bytes
    """Origin-form (RFC 9112 §3.2.1) to send on; empty for CONNECT."""
    minor: int
    keep_alive: bool
    """Whether the client wants the connection to stay open (RFC 9112 §9.3)."""
    framing: Framing
    length: int
    """Bytes of the body where framing is LENGTH, else 0."""
    expects_continue: bool
    fields: list[Field]

    @property
    def is_connect(self) -> bool:
        return self.method == "CONNECT"


class ResponseHead(msgspec.Struct, frozen=True):
    """An origin's answer, before its body."""

    status: int
    status_line: bytes
    """As it came, without CRLF."""
    framing: Framing
    length: int
    fields: list[Field]


def check_partial(data: bytes | bytearray, limits: HeadLimits) -> None:
    """Refuse early what can never become a good head, so that a bad client waits for its answer no longer than needed.

    Raises HeadError: head_too_large, bare_lf (such a head would never end), or malformed_request_line (it does not
    start with a method: TLS, SOCKS).
    """
    if len(data) > limits.size:
        raise HeadError(reasons.HEAD_TOO_LARGE, f"the head is larger than {limits.size} bytes")
    if data and _METHOD_BYTE.match(data) is None:
        detail = _TLS if data[0] == 0x16 else "the head does not start with a method"
        raise HeadError(reasons.MALFORMED_REQUEST_LINE, detail)
    # Counting is ten times faster than a search by pattern, and a head that comes byte by byte is counted once a byte.
    if data.count(b"\n") != data.count(b"\r\n"):
        raise HeadError(reasons.BARE_LF, "a line ends with LF alone")


def parse_head(data: bytes, limits: HeadLimits) -> Head:
    """Parse the syntax of a request head, which ends with the empty line.

    Raises HeadError.
    """
    if len(data) > limits.size:
        raise HeadError(reasons.HEAD_TOO_LARGE, f"the head is larger than {limits.size} bytes")
    line = _REQUEST_LINE.match(data)
    if line is None:
        raise _bad_request_line(data)
    if line[3] != b"1" or line[4] not in b"01":
        raise HeadError(
            reasons.VERSION_NOT_SUPPORTED, "the version is neither HTTP/1.0 nor HTTP/1.1"
        )
    return Head(
        line[1].decode("ascii"),
        line[2],
        int(line[4]),
        _parse_fields(data, line.end(), limits.fields),
    )


def parse_request(data: bytes, limits: HeadLimits) -> ProxyRequest:
    """Parse a request head and read it as a request to a proxy.

    Raises HeadError.
    """
    # A client sends the same few bytes for each tunnel to a destination: nothing in them differs from the last time.
    if len(data) <= _REPEATED_SIZE and data.startswith(b"CONNECT "):
        return _parse_repeated(data, limits)
    return _parse_request(data, limits)


def _parse_request(data: bytes, limits: HeadLimits) -> ProxyRequest:
    head = parse_head(data, limits)
    connect = head.method == "CONNECT"
    if connect:
        destination, path = _authority(head.target, None), b""
    else:
        destination, path = _absolute_form(head.method, head.target)
    _check_host(head, destination)
    framing, length = request_framing(head)
    if connect and framing is not Framing.NONE and not (framing is Framing.LENGTH and length == 0):
        # RFC 9110 §9.3.6: content in a CONNECT request has no meaning, and bytes after the head belong to the tunnel.
        raise HeadError(reasons.BAD_CONTENT_LENGTH, "a CONNECT request has no body")
    expects = head.values(b"expect")
    if expects and [value.lower() for value in expects] != [b"100-continue"]:
        raise HeadError(reasons.BAD_EXPECT, "an expectation other than 100-continue")
    return ProxyRequest(
        head.method,
        destination,
        path,
        head.minor,
        not connect and keeps_alive(head),
        framing,
        length,
        bool(expects) and head.minor == 1 and framing is not Framing.NONE,
        head.fields,
    )


# Bounded, because clients choose the keys: 2 MiB at most.
_parse_repeated = lru_cache(maxsize=2048)(_parse_request)


def parse_response(data: bytes, method: str, limits: HeadLimits) -> ResponseHead:
    """Parse an origin's response head, which ends with the empty line; method is the request's.

    Raises HeadError, always with the reason origin_malformed.
    """
    try:
        if len(data) > limits.size:
            raise HeadError(reasons.HEAD_TOO_LARGE, f"the head is larger than {limits.size} bytes")
        line = _STATUS_LINE.match(data)
        if line is None:
            raise HeadError(reasons.ORIGIN_MALFORMED, "the status line is malformed")
        fields = _parse_fields(data, line.end(), limits.fields)
        status = int(line[2])
        if status == 101:
            # RFC 9110 §15.2.2: only an answer to Upgrade, which is never sent on. What would follow is no HTTP.
            raise HeadError(
                reasons.ORIGIN_MALFORMED, "it switches protocols, which nobody asked for"
            )
        # RFC 9112 §6.3, rules 1 and 2, then 3, 4, 6 and 8 in this order.
        tunnel = method == "CONNECT" and status < 300
        if tunnel or method == "HEAD" or status in {204, 304} or status < 200:
            framing, length = Framing.NONE, 0
        else:
            framing, length = _framing(fields, int(line[1]))
            if framing is Framing.NONE:
                framing = Framing.UNTIL_CLOSE
    except HeadError as error:
        raise HeadError(
            reasons.ORIGIN_MALFORMED, f"the origin's answer is malformed: {error.detail}"
        ) from None
    return ResponseHead(status, line[0][:-2], framing, length, fields)


def forwardable(fields: Iterable[Field], *also_removed: bytes) -> Iterable[Field]:
    """The fields that may be sent on: none about the connection, none that Connection names, none meant for a proxy.

    Framing (Content-Length) and Host pass unless they stand in also_removed: the caller who rebuilds them removes them.
    """
    removed = HOP_BY_HOP.union(also_removed)
    fields = list(fields)
    named: set[bytes] = set()
    for lower, _, value in fields:
        if lower == b"connection":
            named.update(option.strip().lower() for option in value.split(b","))
    # RFC 9110 §7.6.1 forbids options that name fields meant for all recipients; ours to check, since clients send them.
    named -= {b"host", b"content-length", b"content-type", b"authorization", b"cache-control"}
    return [
        field
        for field in fields
        if field[0] not in removed and field[0] not in named and not field[0].startswith(b"proxy-")
    ]


def has_passed(request: ProxyRequest, pseudonym: bytes) -> bool:
    """Whether the request has come through the proxy of this name before (RFC 9110 §7.6.3)."""
    return any(
        words[1:2] == [pseudonym]
        for lower, _, value in request.fields
        if lower == b"via"
        for words in map(bytes.split, value.split(b","))
    )


def origin_request(request: ProxyRequest, pseudonym: bytes = b"egress-proxy") -> bytes:
    """The head to send to the origin: origin-form, Host rebuilt from the target, one request per connection.

    ``pseudonym`` is how the proxy calls itself in Via.
    """
    return _forwarded(request, request.path, pseudonym)


def parent_request(
    request: ProxyRequest, pseudonym: bytes, credentials: bytes | None = None
) -> bytes:
    """The head to send to a parent proxy: CONNECT, or the same as to an origin, but in absolute-form.

    ``credentials`` are those that the parent asks for, as they stand in Proxy-Authorization.
    """
    shown = b""
    # RFC 9110 §9.3.8: what receives TRACE answers with what it was sent, so that the client would see them.
    if credentials is not None and request.method.upper() != "TRACE":
        shown = b"Proxy-Authorization: %b\r\n" % credentials
    if request.is_connect:
        target = str(request.destination).encode("ascii")
        # Nothing of the client's but through whom it came: loops of several proxies are found by that.
        via = b"".join(b"%s: %s\r\n" % field[1:] for field in request.fields if field[0] == b"via")
        return b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n%bVia: 1.%d %b\r\n%b\r\n" % (
            *(target, target, via, request.minor, pseudonym, shown),
        )
    # RFC 9112 §3.2.4: the last proxy makes an asterisk of a URL without path.
    path = b"" if request.path == b"*" else request.path
    return _forwarded(request, b"http://%b%b" % (_host_field(request), path), pseudonym, shown)


def _host_field(request: ProxyRequest) -> bytes:
    return str(request.destination).removesuffix(":80").encode("ascii")


def _forwarded(
    request: ProxyRequest, target: bytes, pseudonym: bytes, further: bytes = b""
) -> bytes:
    """A request's head on its way: Host rebuilt from the target, one request per connection."""
    method, host = request.method.encode("ascii"), _host_field(request)
    lines = [b"%s %s HTTP/1.1\r\nHost: %s\r\n%b" % (method, target, host, further)]
    rebuilt = [b"host", b"content-length"]
    if not request.expects_continue:
        # RFC 9110 §10.1.1: to be ignored in HTTP/1.0, and meant for requests with a body.
        rebuilt.append(b"expect")
    lines += [b"%s: %s\r\n" % field[1:] for field in forwardable(request.fields, *rebuilt)]
    if request.framing is Framing.LENGTH:
        lines.append(b"Content-Length: %d\r\n" % request.length)
    elif request.framing is Framing.CHUNKED:
        lines.append(b"Transfer-Encoding: chunked\r\n")
    lines.append(b"Via: 1.%d %b\r\nConnection: close\r\n\r\n" % (request.minor, pseudonym))
    return b"".join(lines)


def client_response(response: ResponseHead, framing: Framing, *, keep_alive: bool) -> bytes:
    """The head to send to the client for an origin's answer, with the framing that the proxy will use towards it."""
    lines = [b"HTTP/1.1" + response.status_line[8:] + b"\r\n"]
    lines += [
        b"%s: %s\r\n" % field[1:]
        for field in forwardable(response.fields, *_rebuilt(response, framing))
    ]
    if response.status >= 200:
        if framing is Framing.LENGTH:
            lines.append(b"Content-Length: %d\r\n" % response.length)
        elif framing is Framing.CHUNKED:
            lines.append(b"Transfer-Encoding: chunked\r\n")
        lines.append(b"Via: 1.1 egress-proxy\r\n")
        lines.append(b"Connection: keep-alive\r\n" if keep_alive else b"Connection: close\r\n")
    lines.append(b"\r\n")
    return b"".join(lines)


def _rebuilt(response: ResponseHead, framing: Framing) -> tuple[bytes, ...]:
    # An answer without body (HEAD, 304) may carry the length that a GET would have had: that one passes, if it is one.
    # In 1xx and 204 there is none (RFC 9110 §8.6).
    if framing is Framing.NONE and response.status >= 200 and response.status != 204:
        lengths = [value for lower, _, value in response.fields if lower == b"content-length"]
        if len(lengths) == 1 and _CONTENT_LENGTH.fullmatch(lengths[0]) is not None:
            return ()
    return (b"content-length",)


def _parse_fields(data: bytes, position: int, limit: int) -> list[Field]:
    fields: list[Field] = []
    match = _FIELD_LINE.match
    end = len(data) - 2
    while position < end:
        line = match(data, position)
        if line is None:
            raise _bad_field(data, position)
        if len(fields) == limit:
            raise HeadError(reasons.TOO_MANY_HEADERS, f"more than {limit} header lines")
        name, value = line.group(1, 2)
        fields.append((name.lower(), name, value))
        position = line.end()
    if position != end or data[end:] != b"\r\n":
        raise HeadError(reasons.MALFORMED_HEADER, "the head does not end with an empty line")
    return fields


def _absolute_form(method: str, target: bytes) -> tuple[Authority, bytes]:
    match = _HTTP_URL.fullmatch(target)
    if match is None:
        if _ANY_URL.match(target) is not None:
            raise HeadError(reasons.SCHEME_NOT_SUPPORTED, "the target's scheme is not http")
        raise HeadError(reasons.NOT_A_PROXY_REQUEST, "the target is not an absolute http:// URL")
    if b"#" in target:
        raise HeadError(reasons.MALFORMED_REQUEST_LINE, "the target holds a fragment")
    path = match[2]
    if not path.startswith(b"/"):
        # RFC 9112 §3.2.4: OPTIONS without path asks about the server as a whole.
        path = b"*" if method == "OPTIONS" and not path else b"/" + path
    return _authority(match[1], 80), path


def _authority(text: bytes, default_port: int | None) -> Authority:
    try:
        return parse_authority(text, default_port)
    except AuthorityError as error:
        raise HeadError(reasons.BAD_AUTHORITY, str(error)) from None
    except HostError as error:
        raise HeadError(reasons.BAD_HOST, str(error)) from None


def _check_host(head: Head, destination: Authority) -> None:
    """Host must be there once (in 1.1) and agree with the target (RFC 9112 §3.2).

    Two names for one request are an attack.
    """
    values = head.values(b"host")
    if not values:
        if head.minor == 1:
            raise HeadError(reasons.MISSING_HOST, "the Host header is missing")
        return
    if len(values) > 1:
        raise HeadError(reasons.DUPLICATE_HOST, "the Host header stands more than once")
    # Real clients leave the port out in CONNECT, so a Host without port agrees with every port.
    try:
        named = parse_authority(values[0], destination.port)
    except HostError:
        raise HeadError(reasons.HOST_MISMATCH, "the Host header is not a host") from None
    if named != destination:
        raise HeadError(reasons.HOST_MISMATCH, "the Host header and the target disagree")


def keeps_alive(head: Head) -> bool:
    """Whether the client wants the connection to stay open (RFC 9112 §9.3)."""
    options: set[bytes] = set()
    for lower, _, value in head.fields:
        if lower in {b"connection", b"proxy-connection"}:
            options.update(option.strip().lower() for option in value.split(b","))
    if b"close" in options:
        return False
    return head.minor == 1 or b"keep-alive" in options


def request_framing(head: Head) -> tuple[Framing, int]:
    """How the end of a request's body is known, and its bytes where that is by a length.

    Raises HeadError.
    """
    return _framing(head.fields, head.minor)


def _framing(fields: list[Field], minor: int) -> tuple[Framing, int]:
    lengths: list[bytes] = []
    codings: list[bytes] = []
    for lower, _, value in fields:
        if lower == b"content-length":
            lengths.append(value)
        elif lower == b"transfer-encoding":
            codings.append(value)
    if codings:
        # RFC 9112 §6.1: both at once, or Transfer-Encoding in HTTP/1.0, is how requests are smuggled.
        if lengths or minor == 0 or [coding.lower() for coding in codings] != [b"chunked"]:
            raise HeadError(
                reasons.BAD_TRANSFER_ENCODING,
                "Transfer-Encoding is not `chunked` alone, or stands beside Content-Length, or in HTTP/1.0",
            )
        return Framing.CHUNKED, 0
    if not lengths:
        return Framing.NONE, 0
    if len(lengths) > 1 or _CONTENT_LENGTH.fullmatch(lengths[0]) is None:
        raise HeadError(reasons.BAD_CONTENT_LENGTH, "Content-Length is not one decimal number")
    return Framing.LENGTH, int(lengths[0])


def _bad_request_line(data: bytes) -> HeadError:
    line = data.partition(b"\n")[0]
    if data.startswith(b"\x16\x03"):
        return HeadError(reasons.MALFORMED_REQUEST_LINE, _TLS)
    if not line.endswith(b"\r"):
        return HeadError(reasons.BARE_LF, "the request line ends with LF alone")
    if _CONTROL.search(line, 0, len(line) - 1) is not None:
        return HeadError(reasons.CONTROL_BYTE, "the request line holds a control byte")
    return HeadError(
        reasons.MALFORMED_REQUEST_LINE, "the request line is not METHOD SP target SP HTTP/1.1"
    )


def _bad_field(data: bytes, position: int) -> HeadError:
    line = data[position:].partition(b"\n")[0]
    if not line.endswith(b"\r"):
        return HeadError(reasons.BARE_LF, "a header line ends with LF alone")
    if line[:1] in {b" ", b"\t"}:
        return HeadError(reasons.OBS_FOLD, "a header is folded over two lines")
    if _CONTROL.search(line, 0, len(line) - 1) is not None:
        return HeadError(reasons.CONTROL_BYTE, "a header line holds a control byte")
    return HeadError(reasons.MALFORMED_HEADER, "a header line is not NAME: VALUE")
