"""What is sent on of a head that was understood: framing, routing and the connection's fields are our own words.

What else was in the head passes in its order and spelling, unless it was for one connection or for a proxy alone
(RFC 9110 §7.6).
"""

from __future__ import annotations

from functools import lru_cache

from egress_proxy.core.fields import HOP_BY_HOP, Framing, is_length, passing
from egress_proxy.core.hops import (
    ABOUT_CLIENTS,
    ABOUT_CLIENTS_PREFIXES,
    ForwardedFor,
    forwarded_lines,
    proxy_status_lines,
    without_open_ends,
)
from egress_proxy.core.messages import ProxyRequest, ResponseHead
from egress_proxy.core.names import Authority
from egress_proxy.core.sections import as_lines

# What is written anew for an origin, or not at all.
_REBUILT = HOP_BY_HOP | {b"host", b"content-length"}
_REBUILT_AND_PRIVATE = _REBUILT | ABOUT_CLIENTS
_PREFIXES = (b"proxy-",)
_PREFIXES_AND_PRIVATE = _PREFIXES + ABOUT_CLIENTS_PREFIXES
# And for a client. An origin does not speak in our name.
_REMOVED_FOR_CLIENTS = HOP_BY_HOP | {b"content-length", b"proxy-status"}
_REMOVED_BESIDE_LENGTH = _REMOVED_FOR_CLIENTS - {b"content-length"}
# Plain names: looking a member up in its Enum is a Python call in 3.11.
_NO_BODY, _LENGTH, _CHUNKED = Framing.NONE, Framing.LENGTH, Framing.CHUNKED
_REMOVE = ForwardedFor.REMOVE
_PREFIXES_FOR_CLIENTS = (b"proxy-", b"x-egress-")


def has_passed(request: ProxyRequest, pseudonym: bytes) -> bool:
    """Whether the request has come through the proxy of this name before (RFC 9110 §7.6.3)."""
    return any(
        words[1:2] == [pseudonym]
        for value in request.section.known.get(b"via", ())
        for words in map(bytes.split, value.split(b","))
    )


def origin_request(
    request: ProxyRequest,
    pseudonym: bytes = b"egress-proxy",
    *,
    keep_alive: bool = False,
    upgrade: bytes | None = None,
    forwarded_for: ForwardedFor = ForwardedFor.REMOVE,
    client: str | None = None,
) -> bytes:
    """The head to send to the origin: origin-form, Host rebuilt from the target.

    ``pseudonym`` is how the proxy calls itself in Via. With ``keep_alive`` the connection is meant to carry further
    requests; with ``upgrade``, the origin is asked to switch to that protocol. ``client`` is the address to tell where
    ``forwarded_for`` says so.
    """
    connection = _connection(upgrade, keep_alive=keep_alive)
    return _forwarded(request, request.path, pseudonym, b"", connection, forwarded_for, client)


def parent_request(
    request: ProxyRequest,
    pseudonym: bytes,
    credentials: bytes | None = None,
    *,
    keep_alive: bool = False,
    upgrade: bytes | None = None,
    forwarded_for: ForwardedFor = ForwardedFor.REMOVE,
    client: str | None = None,
) -> bytes:
    """The head to send to a parent proxy: CONNECT, or the same as to an origin, but in absolute-form.

    ``credentials`` are those that the parent asks for, as they stand in Proxy-Authorization. The rest is as for an
    origin; CONNECT knows nothing of it.
    """
    shown = b""
    # RFC 9110 §9.3.8: what receives TRACE answers with what it was sent, so that the client would see them.
    if credentials is not None and request.method.upper() != "TRACE":
        shown = b"Proxy-Authorization: %b\r\n" % credentials
    if request.is_connect:
        target = str(request.destination).encode("ascii")
        # Nothing of the client's but through whom it came: loops of several proxies are found by that.
        via = as_lines([field for field in request.fields if field[0] == b"via"])
        return b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n%bVia: 1.%d %b\r\n%b\r\n" % (
            *(target, target, via, request.minor, pseudonym, shown),
        )
    target = absolute_form(request)
    connection = _connection(upgrade, keep_alive=keep_alive)
    return _forwarded(request, target, pseudonym, shown, connection, forwarded_for, client)


def absolute_form(request: ProxyRequest) -> bytes:
    """The target of a request that is no CONNECT, as a proxy is sent it."""
    # RFC 9112 §3.2.4: the last proxy makes an asterisk of a URL without path.
    path = b"" if request.path == b"*" else request.path
    return b"http://%b%b" % (host_field(request.destination), path)


@lru_cache(maxsize=2048)
def host_field(destination: Authority) -> bytes:
    """The value of Host (RFC 9110 §7.2)."""
    return str(destination).removesuffix(":80").encode("ascii")


def _connection(upgrade: bytes | None, *, keep_alive: bool) -> bytes:
    if upgrade is not None:
        return b"Connection: Upgrade\r\nUpgrade: %b\r\n" % upgrade
    # RFC 9112 §9.3: a connection of which nothing is said persists.
    return b"" if keep_alive else b"Connection: close\r\n"


def _forwarded(
    request: ProxyRequest,
    target: bytes,
    pseudonym: bytes,
    ours: bytes,
    connection: bytes,
    forwarded_for: ForwardedFor,
    client: str | None,
) -> bytes:
    """A request's head on its way; ``ours`` and ``connection`` are lines of our own."""
    removed, prefixes = _removed_for_origins(
        private=forwarded_for is _REMOVE,
        # RFC 9110 §10.1.1: to be ignored in HTTP/1.0, and meant for requests with a body.
        expects=request.expects_continue,
        counts=request.max_forwards is not None,
    )
    if forwarded_for is not _REMOVE and forwarded_for is ForwardedFor.ADD and client is not None:
        kept = as_lines(without_open_ends(passing(request.fields, removed, prefixes)))
        kept += forwarded_lines(client)
    else:
        kept = request.section.lines(removed, prefixes)
    told = ours
    if request.max_forwards is not None:
        told += b"Max-Forwards: %d\r\n" % max(request.max_forwards - 1, 0)
    framing = b""
    if request.framing is _LENGTH:
        framing = b"Content-Length: %d\r\n" % request.length
    elif request.framing is _CHUNKED:
        framing = b"Transfer-Encoding: chunked\r\n"
    return b"%b %b HTTP/1.1\r\nHost: %b\r\n%b%b%bVia: 1.%d %b\r\n%b\r\n" % (
        request.method.encode("ascii"),
        target,
        host_field(request.destination),
        told,
        kept,
        framing,
        request.minor,
        pseudonym,
        connection,
    )


@lru_cache
def _removed_for_origins(
    *, private: bool, expects: bool, counts: bool
) -> tuple[frozenset[bytes], tuple[bytes, ...]]:
    """The names of fields that are not sent on as they came, and how further ones begin."""
    removed = _REBUILT_AND_PRIVATE if private else _REBUILT
    if not expects:
        removed |= {b"expect"}
    if counts:
        removed |= {b"max-forwards"}
    return removed, _PREFIXES_AND_PRIVATE if private else _PREFIXES


def client_response(response: ResponseHead, framing: Framing, *, keep_alive: bool) -> bytes:
    """The head to send to the client for an origin's answer, with the framing that the proxy will use towards it."""
    status, known = response.status, response.section.known
    kept = response.section.lines(_removed_for_clients(response, framing), _PREFIXES_FOR_CLIENTS)
    told = b""
    if b"proxy-status" in known:
        told = proxy_status_lines(response.section.fields, status)
    connection = b""
    if status >= 200:
        if framing is _LENGTH:
            told += b"Content-Length: %d\r\n" % response.length
        elif framing is _CHUNKED:
            told += b"Transfer-Encoding: chunked\r\n"
        connection = b"Connection: keep-alive\r\n" if keep_alive else b"Connection: close\r\n"
    elif status == 101:
        # There is one, or it would not have been taken.
        connection = _connection(known[b"upgrade"][0], keep_alive=True)
    line = response.status_line
    # RFC 9110 §7.6.3: the version is that of the message which was received.
    return b"HTTP/1.1%b\r\n%b%bVia: 1.%b egress-proxy\r\n%b\r\n" % (
        line[8:],
        kept,
        told,
        line[7:8],
        connection,
    )


def _removed_for_clients(response: ResponseHead, framing: Framing) -> frozenset[bytes]:
    # An answer without body (HEAD, 304) may carry the length that a GET would have had: that one passes, if it is one.
    # In 1xx and 204 there is none (RFC 9110 §8.6).
    if framing is _NO_BODY and response.status >= 200 and response.status != 204:
        lengths = response.section.known.get(b"content-length", ())
        if len(lengths) == 1 and is_length(lengths[0]):
            return _REMOVED_BESIDE_LENGTH
    return _REMOVED_FOR_CLIENTS
