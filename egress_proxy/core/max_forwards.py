"""Requests that end at this proxy because they have passed as many as they may (RFC 9110 §7.6.2)."""

from __future__ import annotations

from typing import Final

from egress_proxy.core.messages import ProxyRequest
from egress_proxy.core.onward import absolute_form

#: Every method that is forwarded and that clients ask about; others are forwarded as well (RFC 9110 §10.2.1).
_ALLOW: Final = b"Allow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS, TRACE, CONNECT\r\n"

# RFC 9110 §9.3.8: nothing sensitive is shown. What may be in a field that nobody here knows, nobody knows.
_SHOWN: Final = frozenset(
    (
        *(b"host", b"via", b"max-forwards", b"user-agent", b"accept", b"accept-encoding"),
        *(b"accept-language", b"cache-control", b"connection"),
    )
)


def ends_here(request: ProxyRequest) -> bool:
    """Whether the request is TRACE or OPTIONS and goes no further."""
    return request.max_forwards == 0


def final_answer(request: ProxyRequest, *, keep_alive: bool) -> bytes:
    """The whole answer to a request that ends here: to TRACE what came, to OPTIONS what this proxy can do."""
    connection = b"keep-alive" if keep_alive else b"close"
    if request.method == "TRACE":
        kind, body = b"Content-Type: message/http\r\n", _seen(request)
    else:
        kind, body = _ALLOW, b""
    return (
        b"HTTP/1.1 200 OK\r\n%bContent-Length: %d\r\nCache-Control: no-store\r\nConnection: %b\r\n\r\n%b"
        % (*(kind, len(body), connection, body),)
    )


def _seen(request: ProxyRequest) -> bytes:
    """The request's head as far as it may be shown."""
    lines = [b"%b: %b\r\n" % field[1:] for field in request.fields if field[0] in _SHOWN]
    return b"TRACE %b HTTP/1.%d\r\n%b\r\n" % (
        *(absolute_form(request), request.minor, b"".join(lines)),
    )
