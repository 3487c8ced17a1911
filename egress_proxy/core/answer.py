"""What a refused client gets: a whole HTTP/1.1 response that says why and what to do next.

The proxy and the admin port both answer with it. Everything in it is our own words, except the host
and the request id, which are canonical values and are written as JSON.
"""

from __future__ import annotations

from functools import lru_cache
from http import HTTPStatus
from math import ceil
from typing import Final

import msgspec

from egress_proxy.core.reason import Reason
from egress_proxy.core.reasons import REASONS

#: The page that explains every reason, in this project's repository.
REASONS_PAGE: Final = "docs/reference/reasons.md"

# RFC 9110 §11.6.1, §11.7.1: each of these answers must name how to authenticate.
_CHALLENGES: Final = {
    401: 'WWW-Authenticate: Bearer realm="egress-proxy"',
    407: 'Proxy-Authenticate: Basic realm="egress-proxy"',
}
# Characters of the details in Proxy-Status. The body says everything.
_MAX_DETAILS: Final = 200

_json = msgspec.json.Encoder().encode


def refusal(
    reason: Reason,
    *,
    detail: str | None = None,
    host: str | None = None,
    port: int | None = None,
    request_id: str,
    keep_alive: bool,
    method: str,
    fields: bytes = b"",
    retry_after: float | None = None,
) -> bytes:
    """The response, head and body; to HEAD without its body (RFC 9110 §9.3.2).

    ``detail`` is one clause of our own words that says more than the reason does. ``host`` is
    canonical, or None where none was understood. ``fields`` are further header lines, each with its
    CRLF. ``retry_after`` is when a retry will succeed, in seconds, where that is known better than
    the reason knows it; the answer rounds it up.
    """
    if retry_after is not None:
        fields = b"Retry-After: %d\r\n%b" % (whole_seconds(retry_after), fields)
    connection = "keep-alive" if keep_alive else "close"
    head, start, middle, end = _constant_parts(
        reason.name, detail, connection, retry_after is not None
    )
    body = b'%b%b,"port":%b%b%b%b' % (
        start,
        _json(host),
        _json(port),
        middle,
        _json(request_id),
        end,
    )
    return b"%bContent-Length: %d\r\n%b\r\n%b" % (
        head,
        len(body),
        fields,
        b"" if method == "HEAD" else body,
    )


def whole_seconds(retry_after: float) -> int:
    """A time to wait as Retry-After says it (RFC 9110 §10.2.3): rounded up, so that whoever obeys is not refused again.

    What floats add to a whole number makes no second more.
    """
    return max(1, ceil(retry_after - 1e-6))


# Bounded, because details may name limits and places of the configuration, which can change.
@lru_cache(maxsize=1024)
def _constant_parts(
    name: str,
    detail: str | None,
    connection: str,
    says_when: bool,  # noqa: FBT001 - a key of the cache
) -> tuple[bytes, bytes, bytes, bytes]:
    """What one request shares with the next: the head, and the body around what it asked for.

    ``says_when`` is whether the request's own part has a Retry-After.
    """
    reason = REASONS[name]
    message = reason.message if detail is None else f"{reason.message[:-1]}: {detail}."
    details = _sf_string(f"{reason.name}: {message}"[:_MAX_DETAILS])
    rcode = "" if reason.rcode is None else f"; rcode={_sf_string(reason.rcode)}"
    lines = [
        f"HTTP/1.1 {reason.status} {HTTPStatus(reason.status).phrase}",
        "Content-Type: application/json",
        f"Proxy-Status: egress-proxy; error={reason.proxy_status}{rcode}; details={details}",
        f"X-Egress-Error: {reason.code}",
        "Cache-Control: no-store",
        f"Connection: {connection}",
    ]
    if reason.retry_after is not None and not says_when:
        lines.append(f"Retry-After: {reason.retry_after}")
    if reason.status in _CHALLENGES:
        lines.append(_CHALLENGES[reason.status])
    first = {"code": reason.code, "reason": reason.name, "message": message}
    last = {"docs": f"{REASONS_PAGE}#{reason.name}", "advice": reason.advice}
    return (
        "".join(f"{line}\r\n" for line in lines).encode("ascii"),
        # Without their inner braces the parts join to {"error": {...}}.
        b'{"error":%b,"host":' % _json(first)[:-1],
        b',"retry":%b,"request_id":' % _json(reason.retry_after is not None or says_when),
        b",%b}" % _json(last)[1:],
    )


def _sf_string(text: str) -> str:
    """A String of a structured field (RFC 9651 §3.3.3), which holds printable ASCII alone."""
    printable = "".join(char if " " <= char <= "~" else "?" for char in text)
    return '"' + printable.replace("\\", "\\\\").replace('"', '\\"') + '"'
