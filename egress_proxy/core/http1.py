"""HTTP/1 message heads: bytes to values and back (RFC 9112), strictly and in one pass.

Whatever two parsers might read differently is refused with the reason that names it; nothing is
repaired or guessed. The functions are pure: they see a whole head, and say nothing about where it
came from.
"""

from __future__ import annotations

import re

from egress_proxy.core import reasons
from egress_proxy.core.errors import HeadError, HostError
from egress_proxy.core.fields import (
    TOKEN,
    TOKEN_BYTE,
    Field,
    Framing,
    Known,
    body_framing,
    has_control,
    options,
    upgrade_to,
)
from egress_proxy.core.messages import (
    END_OF_HEAD,
    Head,
    HeadLimits,
    ProxyRequest,
    ResponseHead,
)
from egress_proxy.core.names import Authority, AuthorityError, parse_authority
from egress_proxy.core.onward import client_response, has_passed, origin_request, parent_request
from egress_proxy.core.sections import REPEATED_SIZE, parse_section, remember

__all__ = [
    "END_OF_HEAD",
    "Field",
    "Framing",
    "Head",
    "HeadLimits",
    "ProxyRequest",
    "ResponseHead",
    "check_partial",
    "client_response",
    "has_passed",
    "keeps_alive",
    "origin_request",
    "parent_request",
    "parse_head",
    "parse_request",
    "parse_response",
    "request_framing",
]

# request-line (RFC 9112 §3) with single spaces, as the grammar has it; the target holds visible ASCII alone.
_REQUEST_LINE = re.compile(rb"(" + TOKEN + rb") ([\x21-\x7e]+) HTTP/([0-9])\.([0-9])\r\n")
# status-line (RFC 9112 §4); the space before an empty reason phrase is missing in some answers, and
# nothing hangs on it.
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: [\t \x21-\x7e\x80-\xff]*)?\r\n")
_HTTP_URL = re.compile(rb"[hH][tT][tT][pP]://([^/?]*)(/?[^?]*(?:\?.*)?)")
_ANY_URL = re.compile(rb"[A-Za-z][A-Za-z0-9+.\-]*://")
_METHOD_BYTE = re.compile(TOKEN_BYTE)
_MAX_FORWARDS = re.compile(rb"[0-9]{1,9}")

#: Methods of requests that have no body, whatever they say (RFC 9110 §9.3.6, §9.3.8).
_WITHOUT_BODY = frozenset(("CONNECT", "TRACE"))
#: Fields that ask for more than the answer to a request without body.
_UNCOMMON = frozenset(
    (
        *(b"content-length", b"transfer-encoding", b"content_length", b"transfer_encoding"),
        *(b"expect", b"upgrade", b"max-forwards"),
    )
)
#: Methods of requests that may be counted on their way (RFC 9110 §7.6.2).
_COUNTED = frozenset(("OPTIONS", "TRACE"))

#: What was seen before, by its head.
_requests: dict[bytes, ProxyRequest] = {}
#: Methods to which the same head means another answer (RFC 9112 §6.3).
_OTHER_ANSWERS = frozenset(("CONNECT", "HEAD"))
#: Answers that were seen before, by their heads.
_responses: dict[tuple[bytes, str], ResponseHead] = {}

# Plain names: looking a member up in its Enum is a Python call in 3.11.
_NO_BODY = Framing.NONE

_TLS = "this is a TLS handshake; the proxy speaks plain HTTP"


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
    method, target, major, minor = line.groups()
    if major != b"1" or minor not in b"01":
        raise HeadError(
            reasons.VERSION_NOT_SUPPORTED, "the version is neither HTTP/1.0 nor HTTP/1.1"
        )
    section = parse_section(data, line.end(), limits.fields)
    return Head(method.decode("ascii"), target, int(minor), section)


def parse_request(data: bytes, limits: HeadLimits) -> ProxyRequest:
    """Parse a request head and read it as a request to a proxy.

    Raises HeadError.
    """
    # A client sends the same bytes for each tunnel to a destination, and each time that it asks for the same again.
    known = _requests.get(data)
    if (
        known is not None
        and len(data) <= limits.size
        and len(known.section.fields) <= limits.fields
    ):
        return known
    request = _parse_request(data, limits)
    if len(data) <= REPEATED_SIZE:
        remember(_requests, data, request, request.section)
    return request


def _parse_request(data: bytes, limits: HeadLimits) -> ProxyRequest:
    head = parse_head(data, limits)
    method, known = head.method, head.section.known
    connect = method == "CONNECT"
    if connect:
        destination, path = _authority(head.target, None), b""
    else:
        destination, path = _absolute_form(method, head.target)
    _check_host(head, destination)
    keep_alive = not connect and keeps_alive(head)
    if _UNCOMMON.isdisjoint(known):
        # No body, and nothing that is asked for beyond an answer.
        return ProxyRequest(
            method,
            destination,
            path,
            head.minor,
            keep_alive,
            _NO_BODY,
            0,
            False,
            head.section,
            connect,
        )
    if b"content_length" in known or b"transfer_encoding" in known:
        raise HeadError(
            reasons.MALFORMED_HEADER, "a name that some origins cannot tell from one about framing"
        )
    framing, length = body_framing(known, head.minor)
    if method in _WITHOUT_BODY and (length or framing is Framing.CHUNKED):
        # The bytes behind CONNECT belong to the tunnel, and an origin may not expect any behind TRACE.
        raise HeadError(reasons.BAD_CONTENT_LENGTH, f"a {method} request has no body")
    expects = known.get(b"expect")
    if expects is not None and (len(expects) > 1 or expects[0].lower() != b"100-continue"):
        raise HeadError(reasons.BAD_EXPECT, "an expectation other than 100-continue")
    return ProxyRequest(
        method,
        destination,
        path,
        head.minor,
        keep_alive,
        framing,
        length,
        expects is not None and head.minor == 1 and framing is not Framing.NONE,
        head.section,
        connect,
        _upgrade(head) if b"upgrade" in known and framing is Framing.NONE else None,
        _max_forwards(known) if method in _COUNTED else None,
    )


def parse_response(
    data: bytes, method: str, limits: HeadLimits, *, upgrade: bytes | None = None
) -> ResponseHead:
    """Parse an origin's response head, which ends with the empty line.

    ``method`` is the request's, and ``upgrade`` the protocol that the origin was asked to switch to. Raises HeadError,
    always with the reason origin_malformed.
    """
    key = data, method if method in _OTHER_ANSWERS else ""
    known = _responses.get(key)
    if (
        known is not None
        and len(data) <= limits.size
        and len(known.section.fields) <= limits.fields
    ):
        return known
    try:
        response = _parse_response(data, method, limits, upgrade)
    except HeadError as error:
        raise HeadError(
            reasons.ORIGIN_MALFORMED, f"the origin's answer is malformed: {error.detail}"
        ) from None
    # That a switch was asked for stands in the request.
    if len(data) <= REPEATED_SIZE and response.status != 101:
        remember(_responses, key, response, response.section)
    return response


def _parse_response(
    data: bytes, method: str, limits: HeadLimits, upgrade: bytes | None
) -> ResponseHead:
    if len(data) > limits.size:
        raise HeadError(reasons.HEAD_TOO_LARGE, f"the head is larger than {limits.size} bytes")
    line = _STATUS_LINE.match(data)
    if line is None:
        raise HeadError(reasons.ORIGIN_MALFORMED, "the status line is malformed")
    section = parse_section(data, line.end(), limits.fields)
    known = section.known
    minor, status = int(line[1]), int(line[2])
    if status == 101 and (upgrade is None or minor == 0 or not _switches(known, upgrade)):
        # RFC 9110 §15.2.2: only an answer to Upgrade, and it names the protocol. What would follow is no HTTP.
        raise HeadError(reasons.ORIGIN_MALFORMED, "it switches to a protocol that nobody asked for")
    # RFC 9112 §6.3, rules 1 and 2, then 3, 4, 6 and 8 in this order.
    tunnel = method == "CONNECT" and status < 300
    if tunnel or method == "HEAD" or status in {204, 304} or status < 200:
        framing, length = Framing.NONE, 0
        reusable = not tunnel and status != 101 and _ends_with_head(known, minor, status)
    else:
        framing, length = body_framing(known, minor)
        reusable = framing is not Framing.NONE
        if not reusable:
            framing = Framing.UNTIL_CLOSE
    keep_alive = reusable and _persists(known, minor)
    return ResponseHead(status, line[0][:-2], framing, length, section, keep_alive)


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
    values = head.section.known.get(b"host")
    if values is None:
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
    said = head.section.known.get(b"connection")
    # What old clients send to proxies.
    old = head.section.known.get(b"proxy-connection")
    return _stays_open(said if old is None else [*(said or ()), *old], head.minor)


def request_framing(head: Head) -> tuple[Framing, int]:
    """How the end of a request's body is known, and its bytes where that is by a length.

    Raises HeadError.
    """
    return body_framing(head.section.known, head.minor)


def _stays_open(said: list[bytes] | None, minor: int) -> bool:
    if said is None:
        return minor == 1
    asked = options(said)
    return b"close" not in asked and (minor == 1 or b"keep-alive" in asked)


def _persists(known: Known, minor: int) -> bool:
    """Whether an origin keeps its connection open. What it says to a proxy's client, it is believed when it closes."""
    if b"proxy-connection" in known and b"close" in options(known[b"proxy-connection"]):
        return False
    return _stays_open(known.get(b"connection"), minor)


def _upgrade(head: Head) -> bytes | None:
    """The protocol that a request asks to switch to, where that is WebSocket and nothing else (RFC 6455 §4.1).

    Another one (h2c, TLS) would be HTTP again, of which nobody here could read a word.
    """
    protocol = upgrade_to(head.section.known)
    if head.method != "GET" or head.minor == 0 or protocol is None:
        return None
    return protocol if protocol.lower() == b"websocket" else None


def _switches(known: Known, upgrade: bytes) -> bool:
    """Whether an answer 101 says that the origin switches to what it was asked for (RFC 9110 §7.8)."""
    protocol = upgrade_to(known)
    return protocol is not None and protocol.lower() == upgrade.lower()


def _max_forwards(known: Known) -> int | None:
    values = known.get(b"max-forwards")
    if values is None:
        return None
    if len(values) > 1 or _MAX_FORWARDS.fullmatch(values[0]) is None:
        raise HeadError(reasons.MALFORMED_HEADER, "Max-Forwards is not one decimal number")
    return int(values[0])


def _ends_with_head(known: Known, minor: int, status: int) -> bool:
    """Whether the origin cannot mean a body to follow an answer that has none (RFC 9112 §6.3 rule 1).

    In HEAD and 304 framing is about the answer that GET would have had; elsewhere there is to be none.
    """
    try:
        framing, length = body_framing(known, minor)
    except HeadError:
        return False
    if status < 200 or status == 204:
        return framing is not Framing.CHUNKED and length == 0
    return True


def _bad_request_line(data: bytes) -> HeadError:
    line = data.partition(b"\n")[0]
    if data.startswith(b"\x16\x03"):
        return HeadError(reasons.MALFORMED_REQUEST_LINE, _TLS)
    if not line.endswith(b"\r"):
        return HeadError(reasons.BARE_LF, "the request line ends with LF alone")
    if has_control(line):
        return HeadError(reasons.CONTROL_BYTE, "the request line holds a control byte")
    return HeadError(
        reasons.MALFORMED_REQUEST_LINE, "the request line is not METHOD SP target SP HTTP/1.1"
    )
