"""Request heads: what is taken, what is refused and why, and what is sent on.

The tables are meant to be read. A hostile row names the clause it breaks (RFC 9112 unless it says
otherwise) or the proxy that was broken by it, and the reason that the client is told.
"""

# ruff: noqa: E501 - a row of the tables is one line, however long its bytes are.

from __future__ import annotations

import contextlib
import time
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from egress_proxy.core.errors import HeadError
from egress_proxy.core.http1 import (
    Field,
    Framing,
    HeadLimits,
    ProxyRequest,
    check_partial,
    forwardable,
    origin_request,
    parse_head,
    parse_request,
)

LIMITS = HeadLimits(size=4096, fields=20)
PIECES = [b"a", b" ", b"\t", b":", b"\xff", b"\r", b"\n", b"\r\n", b"\0", b"Y: z", b"\r\nY: z"]
CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def head(*lines: bytes) -> bytes:
    return b"\r\n".join(lines) + b"\r\n\r\n"


def get(*fields: bytes) -> bytes:
    return head(b"GET http://h/ HTTP/1.1", b"Host: h", *fields)


def post(*fields: bytes) -> bytes:
    return head(b"POST http://h/ HTTP/1.1", b"Host: h", *fields)


def connect(target: bytes) -> bytes:
    return b"CONNECT " + target + b" HTTP/1.1\r\nHost: h\r\n\r\n"


def ask(target: bytes, host: bytes = b"h") -> bytes:
    return b"GET " + target + b" HTTP/1.1\r\nHost: " + host + b"\r\n\r\n"


def refusal(data: bytes, limits: HeadLimits = LIMITS) -> HeadError:
    with pytest.raises(HeadError) as caught:
        parse_request(data, limits)
    return caught.value


class Good(NamedTuple):
    """A request that is taken, and how it is read."""

    story: str
    data: bytes
    destination: str
    path: bytes = b""
    framing: Framing = Framing.NONE
    length: int = 0
    keep_alive: bool = True
    expects_continue: bool = False


# fmt: off
CONNECTS = [
    Good("curl", head(b"CONNECT example.com:443 HTTP/1.1", b"Host: example.com:443", b"User-Agent: curl/8", b"Proxy-Connection: Keep-Alive"), "example.com:443"),
    Good("Host without port: Apache HttpClient, the JDK", head(b"CONNECT example.com:443 HTTP/1.1", b"Host: example.com"), "example.com:443"),
    Good("HTTP/1.0 without Host: Python's http.client to 3.11", head(b"CONNECT example.com:443 HTTP/1.0"), "example.com:443"),
    Good("HTTP/1.0 with Host", head(b"CONNECT example.com:443 HTTP/1.0", b"Host: example.com:443"), "example.com:443"),
    Good("another port", head(b"CONNECT example.com:1 HTTP/1.1", b"Host: example.com:1"), "example.com:1"),
    Good("the last port", head(b"CONNECT example.com:65535 HTTP/1.1", b"Host: example.com"), "example.com:65535"),
    Good("upper case, which is the same host (RFC 3986 §3.2.2)", head(b"CONNECT EXAMPLE.com:443 HTTP/1.1", b"Host: example.COM"), "example.com:443"),
    Good("a trailing dot, which pods write to dodge ndots:5", head(b"CONNECT example.com.:443 HTTP/1.1", b"Host: example.com"), "example.com:443"),
    Good("the dot in Host alone", head(b"CONNECT example.com:443 HTTP/1.1", b"Host: example.com.:443"), "example.com:443"),
    Good("IPv4", head(b"CONNECT 192.0.2.1:443 HTTP/1.1", b"Host: 192.0.2.1:443"), "192.0.2.1:443"),
    Good("IPv4 as a resolver would take it: canonical for all who come after", head(b"CONNECT 0x7f.1:443 HTTP/1.1", b"Host: 127.0.0.1:443"), "127.0.0.1:443"),
    Good("IPv6", head(b"CONNECT [2001:DB8:0::1]:443 HTTP/1.1", b"Host: [2001:db8::1]:443"), "[2001:db8::1]:443"),
    Good("IPv6, Host without port", head(b"CONNECT [2001:db8::1]:443 HTTP/1.1", b"Host: [2001:db8::1]"), "[2001:db8::1]:443"),
    Good("IPv4 mapped into IPv6 is IPv4", head(b"CONNECT [::ffff:192.0.2.1]:443 HTTP/1.1", b"Host: [::ffff:192.0.2.1]:443"), "192.0.2.1:443"),
    Good("a zone id says nothing to anybody else", head(b"CONNECT [fe80::1%25eth0]:443 HTTP/1.1", b"Host: [fe80::1]:443"), "[fe80::1]:443"),
    Good("Content-Length: 0, which says that there is no body", head(b"CONNECT h:443 HTTP/1.1", b"Host: h", b"Content-Length: 0"), "h:443", framing=Framing.LENGTH),
    Good("an A-label", head(b"CONNECT xn--bcher-kva.example:443 HTTP/1.1", b"Host: xn--bcher-kva.example"), "xn--bcher-kva.example:443"),
    Good("a service name", head(b"CONNECT _srv.example.com:443 HTTP/1.1", b"Host: _srv.example.com"), "_srv.example.com:443"),
    Good("a header value that is empty, and one with bytes beyond ASCII (RFC 9110 §5.5)", head(b"CONNECT h:443 HTTP/1.1", b"Host: h", b"X:", b"Y: caf\xc3\xa9"), "h:443"),
]

FORWARDS = [
    Good("curl", head(b"GET http://example.com/a?b=c HTTP/1.1", b"Host: example.com", b"Accept: */*"), "example.com:80", b"/a?b=c"),
    Good("no path", head(b"GET http://h HTTP/1.1", b"Host: h"), "h:80", b"/"),
    Good("no path but a query", head(b"GET http://h?q HTTP/1.1", b"Host: h"), "h:80", b"/?q"),
    Good("a query that holds a URL", head(b"GET http://h/?u=http://g/?x HTTP/1.1", b"Host: h"), "h:80", b"/?u=http://g/?x"),
    Good("no path but a query that holds a URL", head(b"GET http://h?u=http://g/@x HTTP/1.1", b"Host: h"), "h:80", b"/?u=http://g/@x"),
    Good("the scheme in upper case (RFC 3986 §3.1)", head(b"GET HTTP://h/ HTTP/1.1", b"Host: h"), "h:80", b"/"),
    Good("a port", head(b"GET http://h:8080/ HTTP/1.1", b"Host: h:8080"), "h:8080", b"/"),
    Good("a port, and Host without: no disagreement", head(b"GET http://h:8080/ HTTP/1.1", b"Host: h"), "h:8080", b"/"),
    Good("the default port in Host alone", head(b"GET http://h/ HTTP/1.1", b"Host: h:80"), "h:80", b"/"),
    Good("a path is not touched: what it means is the origin's business", head(b"GET http://h/../%2e//a;b HTTP/1.1", b"Host: h"), "h:80", b"/../%2e//a;b"),
    Good("a path of two slashes", head(b"GET http://h//g/ HTTP/1.1", b"Host: h"), "h:80", b"//g/"),
    Good("an @ in the path is no user information", head(b"GET http://h/@g HTTP/1.1", b"Host: h"), "h:80", b"/@g"),
    Good("IPv6", head(b"GET http://[2001:db8::1]:8080/ HTTP/1.1", b"Host: [2001:db8::1]:8080"), "[2001:db8::1]:8080", b"/"),
    Good("OPTIONS about the whole server (§3.2.4)", head(b"OPTIONS http://h HTTP/1.1", b"Host: h"), "h:80", b"*"),
    Good("OPTIONS about the root", head(b"OPTIONS http://h/ HTTP/1.1", b"Host: h"), "h:80", b"/"),
    Good("OPTIONS with a query is about a path", head(b"OPTIONS http://h?q HTTP/1.1", b"Host: h"), "h:80", b"/?q"),
    Good("an unknown method", head(b"M-SEARCH http://h/ HTTP/1.1", b"Host: h"), "h:80", b"/"),
    Good("a method is case-sensitive (RFC 9110 §9.1): `connect` is one nobody knows", head(b"connect http://h/ HTTP/1.1", b"Host: h"), "h:80", b"/"),
    Good("1.1 keeps alive", get(), "h:80", b"/"),
    Good("1.1 with close", get(b"Connection: Close"), "h:80", b"/", keep_alive=False),
    Good("close among others", get(b"Connection: x, close ,y"), "h:80", b"/", keep_alive=False),
    Good("close beats keep-alive (§9.3)", get(b"Connection: keep-alive", b"Connection: close"), "h:80", b"/", keep_alive=False),
    Good("what old clients send to proxies", get(b"Proxy-Connection: close"), "h:80", b"/", keep_alive=False),
    Good("1.0 closes", head(b"GET http://h/ HTTP/1.0"), "h:80", b"/", keep_alive=False),
    Good("1.0 with keep-alive", head(b"GET http://h/ HTTP/1.0", b"Host: h", b"Connection: Keep-Alive"), "h:80", b"/"),
    Good("1.0 with Proxy-Connection", head(b"GET http://h/ HTTP/1.0", b"Proxy-Connection: keep-alive"), "h:80", b"/"),
    Good("a body of known length", post(b"Content-Length: 5"), "h:80", b"/", Framing.LENGTH, 5),
    Good("zeros in front", post(b"Content-Length: 0005"), "h:80", b"/", Framing.LENGTH, 5),
    Good("an empty body", post(b"Content-Length: 0"), "h:80", b"/", Framing.LENGTH, 0),
    Good("the longest length taken", post(b"Content-Length: 999999999999999999"), "h:80", b"/", Framing.LENGTH, 10**18 - 1),
    Good("GET with a body", get(b"Content-Length: 5"), "h:80", b"/", Framing.LENGTH, 5),
    Good("1.0 with a body", head(b"POST http://h/ HTTP/1.0", b"Content-Length: 5"), "h:80", b"/", Framing.LENGTH, 5, keep_alive=False),
    Good("chunked", post(b"Transfer-Encoding: chunked"), "h:80", b"/", Framing.CHUNKED),
    Good("coding names know no case (§7)", post(b"transfer-encoding:\tCHUNKED "), "h:80", b"/", Framing.CHUNKED),
    Good("Expect (RFC 9110 §10.1.1)", post(b"Content-Length: 5", b"Expect: 100-Continue"), "h:80", b"/", Framing.LENGTH, 5, expects_continue=True),
    Good("Expect with chunks", post(b"Transfer-Encoding: chunked", b"Expect: 100-continue"), "h:80", b"/", Framing.CHUNKED, expects_continue=True),
    Good("Expect without body expects nothing", get(b"Expect: 100-continue"), "h:80", b"/"),
    Good("Expect in 1.0 is ignored (RFC 9110 §10.1.1)", head(b"POST http://h/ HTTP/1.0", b"Content-Length: 5", b"Expect: 100-continue"), "h:80", b"/", Framing.LENGTH, 5, keep_alive=False),
]


class Hostile(NamedTuple):
    """Bytes that are refused."""

    story: str
    data: bytes
    reason: str


REQUEST_LINES = [
    Hostile("HTTP/0.9", b"GET /\r\n\r\n", "malformed_request_line"),
    Hostile("HTTP/0.9 with a URL", b"GET http://h/\r\n\r\n", "malformed_request_line"),
    Hostile("nothing", b"\r\n\r\n", "malformed_request_line"),
    Hostile("an empty line first: §2.2 lets a server skip it, and no client of today sends it", b"\r\n" + get(), "malformed_request_line"),
    Hostile("a space first", b" " + get(), "malformed_request_line"),
    Hostile("no method", b" http://h/ HTTP/1.1\r\n\r\n", "malformed_request_line"),
    Hostile("no target", b"GET HTTP/1.1\r\nHost: h\r\n\r\n", "malformed_request_line"),
    Hostile("an empty target", b"GET  HTTP/1.1\r\nHost: h\r\n\r\n", "malformed_request_line"),
    Hostile("two spaces before the target (§3: some split at any white space)", b"GET  http://h/ HTTP/1.1\r\nHost: h\r\n\r\n", "malformed_request_line"),
    Hostile("two spaces before the version", b"GET http://h/  HTTP/1.1\r\nHost: h\r\n\r\n", "malformed_request_line"),
    Hostile("a tab for a space", b"GET\thttp://h/ HTTP/1.1\r\nHost: h\r\n\r\n", "malformed_request_line"),
    Hostile("a space at the end", b"GET http://h/ HTTP/1.1 \r\nHost: h\r\n\r\n", "malformed_request_line"),
    Hostile("a space in the target: two readers, two targets (§3.2)", b"GET http://h/ http://g/ HTTP/1.1\r\nHost: h\r\n\r\n", "malformed_request_line"),
    Hostile("a method that is no token", b"G(T http://h/ HTTP/1.1\r\nHost: h\r\n\r\n", "malformed_request_line"),
    Hostile("a byte beyond ASCII in the target", b"GET http://h/\xe9 HTTP/1.1\r\nHost: h\r\n\r\n", "malformed_request_line"),
    Hostile("a fragment, which is never sent (RFC 9110 §4.2.5)", ask(b"http://h/#f"), "malformed_request_line"),
    Hostile("a fragment instead of a path", ask(b"http://h#@g/"), "malformed_request_line"),
    Hostile("a fragment in the query", ask(b"http://h/?q#f"), "malformed_request_line"),
    Hostile("lower-case http (§2.3 is case-sensitive)", b"GET http://h/ http/1.1\r\nHost: h\r\n\r\n", "malformed_request_line"),
    Hostile("no version number", b"GET http://h/ HTTP/\r\nHost: h\r\n\r\n", "malformed_request_line"),
    Hostile("a version of two digits", b"GET http://h/ HTTP/1.10\r\nHost: h\r\n\r\n", "malformed_request_line"),
    Hostile("a version with a space", b"GET http://h/ HTTP/1. 1\r\nHost: h\r\n\r\n", "malformed_request_line"),
    Hostile("a TLS ClientHello: `https://` set as the proxy's own scheme", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", "malformed_request_line"),
    Hostile("SOCKS5", b"\x05\x01\x00\r\n\r\n", "control_byte"),
    Hostile("the PROXY protocol", b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n" + get(), "malformed_request_line"),
    Hostile("HTTP/2 with prior knowledge (RFC 9113 §3.4)", b"PRI * HTTP/2.0\r\n\r\n", "version_not_supported"),
    Hostile("HTTP/1.2", b"GET http://h/ HTTP/1.2\r\nHost: h\r\n\r\n", "version_not_supported"),
    Hostile("HTTP/0.9 written out", b"GET http://h/ HTTP/0.9\r\nHost: h\r\n\r\n", "version_not_supported"),
    Hostile("HTTP/3.1", b"GET http://h/ HTTP/3.1\r\nHost: h\r\n\r\n", "version_not_supported"),
    Hostile("an answer", b"HTTP/1.1 200 OK\r\n\r\n", "malformed_request_line"),
    Hostile("a whole line of LF", b"GET http://h/ HTTP/1.1\nHost: h\n\n", "bare_lf"),
    Hostile("LF after the request line (§2.2 lets a server take it; then framing is a matter of taste)", b"GET http://h/ HTTP/1.1\nHost: h\r\n\r\n", "bare_lf"),
    Hostile("NUL in the host: passed a suffix check, cut by the resolver (sandbox-runtime, OpenShell #1498)", ask(b"http://evil\0.google.com/"), "control_byte"),
    Hostile("NUL in CONNECT", connect(b"evil\0.google.com:443"), "control_byte"),
    Hostile("CR in the target", ask(b"http://h/\rX"), "control_byte"),
    Hostile("CR at the end of the target", ask(b"http://h/\r"), "control_byte"),
    Hostile("two CR before LF", b"GET http://h/ HTTP/1.1\r\r\nHost: h\r\n\r\n", "control_byte"),
    Hostile("DEL in the target", ask(b"http://h/\x7f"), "control_byte"),
    Hostile("vertical tab for a space: white space to some (§3)", b"GET\x0bhttp://h/ HTTP/1.1\r\nHost: h\r\n\r\n", "control_byte"),
]

TARGETS = [
    Hostile("origin-form: a request meant for a server", ask(b"/"), "not_a_proxy_request"),
    Hostile("asterisk-form", b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n", "not_a_proxy_request"),
    Hostile("authority-form without CONNECT (§3.2.3)", ask(b"h:80"), "not_a_proxy_request"),
    Hostile("one slash", ask(b"http:/h/"), "not_a_proxy_request"),
    Hostile("no slash", ask(b"http:h"), "not_a_proxy_request"),
    Hostile("no scheme", ask(b"//h/"), "not_a_proxy_request"),
    Hostile("backslashes, which WHATWG reads as slashes", ask(b"http:\\\\h/"), "not_a_proxy_request"),
    Hostile("lower-case connect is another method", b"connect h:443 HTTP/1.1\r\nHost: h\r\n\r\n", "not_a_proxy_request"),
    Hostile("https in clear: the proxy would have to speak TLS for the client", ask(b"https://h/"), "scheme_not_supported"),
    Hostile("ftp", ask(b"ftp://h/"), "scheme_not_supported"),
    Hostile("ws", ask(b"ws://h/"), "scheme_not_supported"),
    Hostile("a scheme that begins with http", ask(b"httpx://h/"), "scheme_not_supported"),
    Hostile("a URL inside of a scheme", ask(b"view-source+http://h/"), "scheme_not_supported"),
    Hostile("no host (RFC 9110 §4.2.1)", ask(b"http:///p"), "bad_authority"),
    Hostile("a port and no host", ask(b"http://:80/"), "bad_authority"),
    Hostile("user information (RFC 9110 §4.2.4): http://trusted@evil/", ask(b"http://trusted.net@h/"), "bad_authority"),
    Hostile("user and password", ask(b"http://u:p@h/"), "bad_authority"),
    Hostile("a backslash before @: two readers, two hosts", ask(b"http://trusted.net\\@h/"), "bad_authority"),
    Hostile("an empty port", ask(b"http://h:/"), "bad_authority"),
    Hostile("port 0", ask(b"http://h:0/"), "bad_authority"),
    Hostile("IPv6 without brackets", ask(b"http://2001:db8::1/"), "bad_authority"),
    Hostile("percent-encoding in the host: %2e is a dot to some", ask(b"http://h%2eg/"), "bad_host"),
    Hostile("a percent-encoded NUL", ask(b"http://evil%00.google.com/"), "bad_host"),
    Hostile("an empty label", ask(b"http://a..b/", b"a..b"), "bad_host"),
    Hostile("two dots at the end", ask(b"http://a../"), "bad_host"),
    Hostile("a dot in front", ask(b"http://.a/"), "bad_host"),
    Hostile("a dot alone", ask(b"http://./"), "bad_host"),
    Hostile("a comma: two hosts to a careless splitter", ask(b"http://a,b/"), "bad_host"),
    Hostile("a wildcard is a pattern, not a host", ask(b"http://*.h/"), "bad_host"),
    Hostile("a label of 64", ask(b"http://" + b"a" * 64 + b"/"), "bad_host"),
    Hostile("ends in a number but is no address", ask(b"http://1.2.3.4.5/"), "bad_host"),
    Hostile("an octet of 256", ask(b"http://1.2.3.256/"), "bad_host"),
    Hostile("brackets twice (smokescreen #163)", connect(b"[[::1]]:443"), "bad_authority"),
    Hostile("a name in brackets (smokescreen #163)", connect(b"[example.com]:443"), "bad_authority"),
    Hostile("a name of hexadecimal letters in brackets", connect(b"[fade.cafe]:443"), "bad_host"),
    Hostile("IPv4 in brackets", connect(b"[127.0.0.1]:443"), "bad_host"),
    Hostile("brackets that do not close", connect(b"[::1:443"), "bad_authority"),
    Hostile("brackets that do not open", connect(b"::1]:443"), "bad_authority"),
    Hostile("something behind the brackets", connect(b"[::1]h:443"), "bad_authority"),
    Hostile("something before the brackets", connect(b"h[::1]:443"), "bad_authority"),
    Hostile("nothing in the brackets", connect(b"[]:443"), "bad_authority"),
    Hostile("a zone id with a slash", connect(b"[fe80::1%/]:443"), "bad_authority"),
    Hostile("an empty zone id", connect(b"[fe80::1%]:443"), "bad_authority"),
    Hostile("CONNECT without port (§3.2.3)", connect(b"h"), "bad_authority"),
    Hostile("CONNECT without port, IPv6", connect(b"[::1]"), "bad_authority"),
    Hostile("CONNECT without host", connect(b":443"), "bad_authority"),
    Hostile("CONNECT to a port alone", connect(b"443"), "bad_authority"),
    Hostile("an empty port", connect(b"h:"), "bad_authority"),
    Hostile("a sign", connect(b"h:+443"), "bad_authority"),
    Hostile("another sign", connect(b"h:-443"), "bad_authority"),
    Hostile("a zero in front", connect(b"h:0443"), "bad_authority"),
    Hostile("port 0", connect(b"h:0"), "bad_authority"),
    Hostile("port 65536, which is 0 in 16 bits", connect(b"h:65536"), "bad_authority"),
    Hostile("port 65979, which is 443 in 16 bits", connect(b"h:65979"), "bad_authority"),
    Hostile("port 4294967739, which is 443 in 32 bits", connect(b"h:4294967739"), "bad_authority"),
    Hostile("a space before the port", connect(b"h: 443"), "malformed_request_line"),
    Hostile("hexadecimal", connect(b"h:0x1bb"), "bad_authority"),
    Hostile("an underscore, which Python's int() takes", connect(b"h:4_43"), "bad_authority"),
    Hostile("digits that are not ASCII, which Python's int() takes", connect("h:４４３".encode()), "malformed_request_line"),
    Hostile("a service name", connect(b"h:https"), "bad_authority"),
    Hostile("two ports", connect(b"h:443:80"), "bad_authority"),
    Hostile("IPv6 without brackets", connect(b"2001:db8::1:443"), "bad_authority"),
    Hostile("user information", connect(b"u@h:443"), "bad_authority"),
    Hostile("user and password", connect(b"u:p@h:443"), "bad_authority"),
    Hostile("a path", connect(b"h:443/"), "bad_authority"),
    Hostile("a path before the port", connect(b"h/:443"), "bad_authority"),
    Hostile("a query", connect(b"h:443?x"), "bad_authority"),
    Hostile("a fragment", connect(b"h:443#x"), "bad_authority"),
    Hostile("a fragment in the host: `evil#.trusted`", connect(b"evil#.h:443"), "bad_authority"),
    Hostile("a URL", connect(b"http://h:443"), "bad_authority"),
    Hostile("a backslash", connect(b"h\\g:443"), "bad_authority"),
    Hostile("asterisk", connect(b"*"), "bad_host"),
    Hostile("asterisk with port", connect(b"*:443"), "bad_host"),
]

HOSTS = [
    Hostile("none (§3.2)", head(b"GET http://h/ HTTP/1.1"), "missing_host"),
    Hostile("none in CONNECT", head(b"CONNECT h:443 HTTP/1.1"), "missing_host"),
    Hostile("two (§3.2)", get(b"Host: h"), "duplicate_host"),
    Hostile("two, in 1.0", head(b"GET http://h/ HTTP/1.0", b"Host: h", b"Host: h"), "duplicate_host"),
    Hostile("two that differ, each read by another proxy", get(b"Host: g"), "duplicate_host"),
    Hostile("two in different case", get(b"hOST: h"), "duplicate_host"),
    Hostile("another host: the filter reads one, the origin the other (§3.2.2)", ask(b"http://h/", b"g"), "host_mismatch"),
    Hostile("another host, in CONNECT", head(b"CONNECT h:443 HTTP/1.1", b"Host: g:443"), "host_mismatch"),
    Hostile("another host, in 1.0", head(b"GET http://h/ HTTP/1.0", b"Host: g"), "host_mismatch"),
    Hostile("a subdomain", ask(b"http://h/", b"a.h"), "host_mismatch"),
    Hostile("another port", ask(b"http://h/", b"h:8080"), "host_mismatch"),
    Hostile("another port, in CONNECT", head(b"CONNECT h:443 HTTP/1.1", b"Host: h:80"), "host_mismatch"),
    Hostile("an IPv6 address with another port", ask(b"http://[::1]/", b"[::1]:8080"), "host_mismatch"),
    Hostile("empty", ask(b"http://h/", b""), "host_mismatch"),
    Hostile("two in one", ask(b"http://h/", b"h, g"), "host_mismatch"),
    Hostile("with a space", ask(b"http://h/", b"h g"), "host_mismatch"),
    Hostile("with user information", ask(b"http://h/", b"u@h"), "host_mismatch"),
    Hostile("a URL", ask(b"http://h/", b"http://h/"), "host_mismatch"),
    Hostile("an empty port", ask(b"http://h/", b"h:"), "host_mismatch"),
    Hostile("a port that is junk", ask(b"http://h/", b"h:080"), "host_mismatch"),
    Hostile("bytes beyond ASCII", ask(b"http://h/", "h\u3002".encode()), "host_mismatch"),
]

FIELDS = [
    Hostile("white space before the colon (§5.1): `Transfer-Encoding : chunked`", post(b"Transfer-Encoding : chunked"), "malformed_header"),
    Hostile("a tab before the colon", post(b"Content-Length\t: 5"), "malformed_header"),
    Hostile("no colon", get(b"X"), "malformed_header"),
    Hostile("no name", get(b": x"), "malformed_header"),
    Hostile("a name with a space", get(b"X Y: z"), "malformed_header"),
    Hostile("a name with a bracket", get(b"X(Y): z"), "malformed_header"),
    Hostile("a name beyond ASCII", get("Ⅹ: y".encode()), "malformed_header"),
    Hostile("a name in quotes", get(b'"X": y'), "malformed_header"),
    Hostile("a second head behind the first", get() + get(), "malformed_header"),
    Hostile("an empty line that is not empty", b"GET http://h/ HTTP/1.1\r\nHost: h\r\n \r\n\r\n", "obs_fold"),
    Hostile("no empty line", b"GET http://h/ HTTP/1.1\r\nHost: h\r\n", "malformed_header"),
    Hostile("cut inside of the request line's CRLF", b"GET http://h/ HTTP/1.1\r", "malformed_request_line"),
    Hostile("cut after the request line", b"GET http://h/ HTTP/1.1\r\n", "malformed_header"),
    Hostile("obs-fold (§5.2): one header or two", get(b"X: a", b" b"), "obs_fold"),
    Hostile("obs-fold with a tab", get(b"X: a", b"\tb"), "obs_fold"),
    Hostile("obs-fold that hides Transfer-Encoding", post(b"X: a", b" Transfer-Encoding: chunked", b"Content-Length: 5"), "obs_fold"),
    Hostile("white space before the first header (§2.2)", b"GET http://h/ HTTP/1.1\r\n Host: h\r\n\r\n", "obs_fold"),
    Hostile("LF inside: a header to some (§2.2)", get(b"X: a\nTransfer-Encoding: chunked"), "bare_lf"),
    Hostile("LF before CRLF", get(b"X: a\n"), "bare_lf"),
    Hostile("LF ends the head for some", b"GET http://h/ HTTP/1.1\r\nHost: h\n\nGET http://g/ HTTP/1.1\r\n\r\n", "bare_lf"),
    Hostile("bare CR: a line's end to some (§2.2)", get(b"X: a\rTransfer-Encoding: chunked"), "control_byte"),
    Hostile("bare CR at the value's end", get(b"X: a\r"), "control_byte"),
    Hostile("bare CR in the name", get(b"X\r: a"), "control_byte"),
    Hostile("NUL in a value (RFC 9110 §5.5)", get(b"X: a\0b"), "control_byte"),
    Hostile("NUL in a name", get(b"X\0: a"), "control_byte"),
    Hostile("escape, which a terminal obeys when a log is read", get(b"X: \x1b[2J"), "control_byte"),
    Hostile("vertical tab around a coding: white space to some (Squid GHSA-j83v-w3p4-5cqh, HAProxy)", post(b"Transfer-Encoding: \x0bchunked"), "control_byte"),
    Hostile("DEL", get(b"X: \x7f"), "control_byte"),
]

FRAMING = [
    Hostile("both (§6.1): request smuggling, CL.TE", post(b"Content-Length: 5", b"Transfer-Encoding: chunked"), "bad_transfer_encoding"),
    Hostile("both, the other way round: TE.CL", post(b"Transfer-Encoding: chunked", b"Content-Length: 5"), "bad_transfer_encoding"),
    Hostile("both, and a length of 0", post(b"Transfer-Encoding: chunked", b"Content-Length: 0"), "bad_transfer_encoding"),
    Hostile("both, and a length that is junk", post(b"Transfer-Encoding: chunked", b"Content-Length: x"), "bad_transfer_encoding"),
    Hostile("twice: TE.TE", post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"), "bad_transfer_encoding"),
    Hostile("chunked and identity", post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity"), "bad_transfer_encoding"),
    Hostile("identity (gone since RFC 7230)", post(b"Transfer-Encoding: identity"), "bad_transfer_encoding"),
    Hostile("another coding", post(b"Transfer-Encoding: gzip"), "bad_transfer_encoding"),
    Hostile("another coding below", post(b"Transfer-Encoding: gzip, chunked"), "bad_transfer_encoding"),
    Hostile("chunked not last (§6.1)", post(b"Transfer-Encoding: chunked, gzip"), "bad_transfer_encoding"),
    Hostile("chunked twice in one", post(b"Transfer-Encoding: chunked, chunked"), "bad_transfer_encoding"),
    Hostile("begins with chunked", post(b"Transfer-Encoding: chunkedx"), "bad_transfer_encoding"),
    Hostile("ends with chunked", post(b"Transfer-Encoding: xchunked"), "bad_transfer_encoding"),
    Hostile("in quotes", post(b'Transfer-Encoding: "chunked"'), "bad_transfer_encoding"),
    Hostile("a parameter", post(b"Transfer-Encoding: chunked;x"), "bad_transfer_encoding"),
    Hostile("a comma before", post(b"Transfer-Encoding: ,chunked"), "bad_transfer_encoding"),
    Hostile("empty", post(b"Transfer-Encoding:"), "bad_transfer_encoding"),
    Hostile("in 1.0 (§6.1)", head(b"POST http://h/ HTTP/1.0", b"Transfer-Encoding: chunked"), "bad_transfer_encoding"),
    Hostile("two lengths (§6.3)", post(b"Content-Length: 5", b"Content-Length: 6"), "bad_content_length"),
    Hostile("two lengths, the same: §6.3 lets a server take it, and another may not", post(b"Content-Length: 5", b"Content-Length: 5"), "bad_content_length"),
    Hostile("two in one", post(b"Content-Length: 5, 5"), "bad_content_length"),
    Hostile("a sign", post(b"Content-Length: +5"), "bad_content_length"),
    Hostile("another sign", post(b"Content-Length: -5"), "bad_content_length"),
    Hostile("a space inside", post(b"Content-Length: 5 5"), "bad_content_length"),
    Hostile("hexadecimal", post(b"Content-Length: 0x5"), "bad_content_length"),
    Hostile("a fraction", post(b"Content-Length: 5.0"), "bad_content_length"),
    Hostile("an exponent", post(b"Content-Length: 5e1"), "bad_content_length"),
    Hostile("an underscore, which Python's int() takes", post(b"Content-Length: 5_0"), "bad_content_length"),
    Hostile("digits that are not ASCII", post("Content-Length: ５".encode()), "bad_content_length"),
    Hostile("empty", post(b"Content-Length:"), "bad_content_length"),
    Hostile("more than 64 bits: 5 to whoever overflows", post(b"Content-Length: 18446744073709551621"), "bad_content_length"),
    Hostile("nineteen digits", post(b"Content-Length: 1000000000000000000"), "bad_content_length"),
    Hostile("CONNECT with a body (RFC 9110 §9.3.6): the bytes are the tunnel's", head(b"CONNECT h:443 HTTP/1.1", b"Host: h", b"Content-Length: 5"), "bad_content_length"),
    Hostile("CONNECT with chunks", head(b"CONNECT h:443 HTTP/1.1", b"Host: h", b"Transfer-Encoding: chunked"), "bad_content_length"),
    Hostile("another expectation (RFC 9110 §10.1.1)", post(b"Content-Length: 5", b"Expect: 200-ok"), "bad_expect"),
    Hostile("more than one", post(b"Content-Length: 5", b"Expect: 100-continue, x"), "bad_expect"),
    Hostile("twice", post(b"Content-Length: 5", b"Expect: 100-continue", b"Expect: 100-continue"), "bad_expect"),
    Hostile("an empty one", post(b"Content-Length: 5", b"Expect:"), "bad_expect"),
]
# fmt: on

HOSTILE = [
    pytest.param(row, id=f"{table}: {row.story}")
    for table, rows in [
        ("request line", REQUEST_LINES),
        ("target", TARGETS),
        ("Host", HOSTS),
        ("field", FIELDS),
        ("framing", FRAMING),
    ]
    for row in rows
]
GOOD = CONNECTS + FORWARDS


@pytest.mark.parametrize("row", HOSTILE)
def test_refused(row: Hostile) -> None:
    error = refusal(row.data)
    assert error.reason.name == row.reason
    assert error.detail
    assert str(error) == error.detail


@pytest.mark.parametrize("row", GOOD, ids=lambda row: row.story)
def test_taken(row: Good) -> None:
    request = parse_request(row.data, LIMITS)
    assert request.method == row.data.split(b" ")[0].decode()
    assert str(request.destination) == row.destination
    assert request.path == row.path
    assert (request.framing, request.length) == (row.framing, row.length)
    assert request.expects_continue is row.expects_continue
    assert request.minor == int(row.data.partition(b" HTTP/1.")[2][:1])
    assert request.is_connect is (row in CONNECTS)
    # What follows a CONNECT is the tunnel's, so the connection is never one for another request.
    assert request.keep_alive is (row.keep_alive and not request.is_connect)


def test_every_reason_of_a_head_has_a_row() -> None:
    told = {row.reason for rows in (REQUEST_LINES, TARGETS, HOSTS, FIELDS, FRAMING) for row in rows}
    assert told | {"head_too_large", "too_many_headers"} == {
        "bad_authority",
        "bad_content_length",
        "bad_expect",
        "bad_host",
        "bad_transfer_encoding",
        "bare_lf",
        "control_byte",
        "duplicate_host",
        "head_too_large",
        "host_mismatch",
        "malformed_header",
        "malformed_request_line",
        "missing_host",
        "not_a_proxy_request",
        "obs_fold",
        "scheme_not_supported",
        "too_many_headers",
        "version_not_supported",
    }


@pytest.mark.parametrize(
    "data",
    [
        connect(b"s3cret:p@h:443"),
        connect(b"s3cret"),
        connect(b"s3cret..h:443"),
        connect(b"h:s3cret"),
        connect(b"[::s3cret]:443"),
        ask(b"http://s3cret\0/"),
        ask(b"s3cret"),
        ask(b"s3cret://h/"),
        ask(b"http://h/", b"s3cret"),
        get(b"s3cret"),
        get(b"X: s3cret\0"),
        get(b"X: a", b" s3cret"),
        get(b"X: s3cret\n"),
        post(b"Content-Length: s3cret"),
        post(b"Transfer-Encoding: s3cret"),
        post(b"Expect: s3cret"),
        b"s3cret\r\n\r\n",
    ],
)
def test_a_refusal_never_quotes_the_client(data: bytes) -> None:
    """Squid put credentials into its error page (CVE-2025-62168)."""
    assert "s3cret" not in refusal(data).detail


def test_fields_are_kept_as_they_came() -> None:
    data = head(
        b"GET http://h/ HTTP/1.1",
        b"hOsT:h",
        b"X-A:  1, 2\t",
        b"x-a: \xff",
        b"E:",
        b"S: \t ",
        b"!#$%&'*+-.^_`|~: t",
    )
    assert parse_head(data, LIMITS).fields == [
        (b"host", b"hOsT", b"h"),
        (b"x-a", b"X-A", b"1, 2"),
        (b"x-a", b"x-a", b"\xff"),
        (b"e", b"E", b""),
        (b"s", b"S", b""),
        (b"!#$%&'*+-.^_`|~", b"!#$%&'*+-.^_`|~", b"t"),
    ]
    assert parse_head(data, LIMITS).values(b"x-a") == [b"1, 2", b"\xff"]
    assert parse_head(data, LIMITS).values(b"y") == []


def test_parse_head_takes_any_target() -> None:
    """The admin API reads its requests with it."""
    parsed = parse_head(head(b"GET /v1/policy HTTP/1.1"), LIMITS)
    assert (parsed.method, parsed.target, parsed.minor, parsed.fields) == (
        "GET",
        b"/v1/policy",
        1,
        [],
    )


def test_the_size_limit_is_exact() -> None:
    def sized(size: int) -> bytes:
        return get(b"X: " + b"x" * (size - len(get(b"X: "))))

    assert len(sized(LIMITS.size)) == LIMITS.size
    parse_request(sized(LIMITS.size), LIMITS)
    check_partial(sized(LIMITS.size), LIMITS)
    assert refusal(sized(LIMITS.size + 1)).reason.name == "head_too_large"
    with pytest.raises(HeadError) as caught:
        check_partial(sized(LIMITS.size + 1), LIMITS)
    assert caught.value.reason.name == "head_too_large"


def test_the_field_limit_is_exact() -> None:
    fields = [b"X: y"] * (LIMITS.fields - 1)
    assert len(parse_request(get(*fields), LIMITS).fields) == LIMITS.fields
    assert refusal(get(*fields, b"X: y")).reason.name == "too_many_headers"


def test_no_field_is_within_a_limit_of_none() -> None:
    parse_head(head(b"GET / HTTP/1.1"), HeadLimits(100, 0))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GET http://h/ HTTP/1.1\nHost", "bare_lf"),
        (b"GET http://h/ HTTP/1.1\r\nX\n", "bare_lf"),
        (b"G\n", "bare_lf"),
        (b"\x16\x03\x01", "malformed_request_line"),
        (b"\x16", "malformed_request_line"),
        (b"\x05\x01\x00", "malformed_request_line"),
        (b"\n", "malformed_request_line"),
        (b" ", "malformed_request_line"),
        (b"\r\n", "malformed_request_line"),
    ],
)
def test_what_can_never_be_a_head_is_refused_early(data: bytes, reason: str) -> None:
    """Else a TLS or SOCKS client would wait until the head timeout for its answer."""
    for form in (data, bytearray(data)):
        with pytest.raises(HeadError) as caught:
            check_partial(form, LIMITS)
        assert caught.value.reason.name == reason


def test_the_beginning_of_a_good_head_is_never_refused() -> None:
    for row in GOOD:
        for end in range(len(row.data) + 1):
            check_partial(row.data[:end], LIMITS)


def test_what_is_refused_early_is_refused_whole() -> None:
    for row in HOSTILE:
        (hostile,) = row.values
        assert isinstance(hostile, Hostile)
        try:
            for end in range(len(hostile.data) + 1):
                check_partial(hostile.data[:end], LIMITS)
        except HeadError:
            refusal(hostile.data)


@pytest.mark.parametrize("row", GOOD, ids=lambda row: row.story)
def test_a_control_byte_is_refused_wherever_it_stands(row: Good) -> None:
    controls = [bytes([byte]) for byte in (*range(9), *range(10, 32), 127)]
    for position in range(len(row.data) - 1):
        for control in controls:
            data = row.data[:position] + control + row.data[position:]
            with pytest.raises(HeadError):
                parse_request(data, HeadLimits(4096, 20))


@pytest.mark.parametrize("row", GOOD, ids=lambda row: row.story)
def test_a_head_that_is_cut_short_is_refused(row: Good) -> None:
    for end in range(len(row.data)):
        refusal(row.data[:end])


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(get(b"X:" + b" " * 60_000 + b"\0"), id="spaces before nothing"),
        pytest.param(get(b"X: a" + b" " * 60_000 + b"\0"), id="spaces behind a value"),
        pytest.param(get(b"X: " + b"a " * 30_000 + b"\0"), id="words"),
        pytest.param(get(b"X: " + b"a" * 60_000 + b"\0"), id="a word"),
        pytest.param(get(b"x" * 60_000), id="a name"),
        pytest.param(get(b"X: " + b"\t" * 60_000 + b"\n"), id="tabs"),
        pytest.param(b"G" * 60_000 + b"\r\n\r\n", id="a method"),
        pytest.param(ask(b"http://" + b"a" * 60_000), id="a host"),
        pytest.param(ask(b"http://" + b"a." * 30_000), id="labels"),
        pytest.param(ask(b"http://" + b"1." * 30_000), id="numbers"),
        pytest.param(ask(b"http://h/" + b"?" * 60_000 + b"#"), id="a query"),
        pytest.param(connect(b":" * 60_000), id="colons"),
        pytest.param(connect(b"[" * 60_000), id="brackets"),
        pytest.param(connect(b"h:" + b"9" * 60_000), id="a port"),
        pytest.param(post(b"Content-Length: " + b"9" * 60_000), id="a length"),
    ],
)
def test_no_head_costs_more_than_its_length(data: bytes) -> None:
    """A pattern that is tried in all ways to cut a run of spaces takes seconds for such a head, and stalls every tunnel."""
    limits = HeadLimits(100_000, 100)
    start = time.process_time()
    refusal(data, limits)
    assert time.process_time() - start < 0.5


def test_a_head_that_comes_byte_by_byte_is_checked_cheaply() -> None:
    data = get(*[b"X: " + b"y" * 300] * 100)
    start = time.process_time()
    for end in range(0, len(data), 8):
        check_partial(data[:end], HeadLimits(100_000, 200))
    assert time.process_time() - start < 0.6


@CALM
@given(st.binary(max_size=200) | st.binary(max_size=60).map(lambda data: b"GET http://" + data))
def test_nothing_but_a_head_error_is_ever_raised(data: bytes) -> None:
    for whole in (data, data + b"\r\n\r\n", data + b"/ HTTP/1.1\r\nHost: h\r\n\r\n"):
        for call in (parse_request, parse_head, check_partial):
            with contextlib.suppress(HeadError):
                call(whole, LIMITS)


# What is sent on.


def sent(*lines: bytes) -> list[bytes]:
    """The lines of the head that the origin gets."""
    data = origin_request(parse_request(head(*lines), LIMITS))
    assert data.endswith(b"\r\n\r\n")
    return data[:-4].split(b"\r\n")


VIA = b"Via: 1.1 egress-proxy"
CLOSE = b"Connection: close"


# fmt: off
TO_THE_ORIGIN = [
    pytest.param(
        [b"GET http://Example.com/a?b HTTP/1.1", b"Host: EXAMPLE.com:80", b"accept: */*"],
        [b"GET /a?b HTTP/1.1", b"Host: example.com", b"accept: */*", VIA, CLOSE],
        id="origin-form, Host rebuilt from the target, the default port left out (RFC 9112 3.2.2)",
    ),
    pytest.param(
        [b"GET http://h:8080 HTTP/1.1", b"Host: h"],
        [b"GET / HTTP/1.1", b"Host: h:8080", VIA, CLOSE],
        id="another port stands in Host",
    ),
    pytest.param(
        [b"GET http://[2001:DB8::80]/ HTTP/1.1", b"Host: [2001:db8::80]"],
        [b"GET / HTTP/1.1", b"Host: [2001:db8::80]", VIA, CLOSE],
        id="IPv6 in brackets, an 80 that is no port",
    ),
    pytest.param(
        [b"GET http://[2001:db8::1]:8080/ HTTP/1.1", b"Host: [2001:db8::1]"],
        [b"GET / HTTP/1.1", b"Host: [2001:db8::1]:8080", VIA, CLOSE],
        id="IPv6 with a port",
    ),
    pytest.param(
        [b"GET http://127.1/ HTTP/1.1", b"Host: 0x7f000001"],
        [b"GET / HTTP/1.1", b"Host: 127.0.0.1", VIA, CLOSE],
        id="the canonical address",
    ),
    pytest.param(
        [b"OPTIONS http://h HTTP/1.1", b"Host: h"],
        [b"OPTIONS * HTTP/1.1", b"Host: h", VIA, CLOSE],
        id="OPTIONS about the whole server",
    ),
    pytest.param(
        [b"GET http://h/ HTTP/1.0"],
        [b"GET / HTTP/1.1", b"Host: h", b"Via: 1.0 egress-proxy", CLOSE],
        id="a 1.0 client: our own version towards the origin, theirs in Via (RFC 9110 7.6.3)",
    ),
    pytest.param(
        [b"GET http://h/ HTTP/1.1", b"Host: h", b"Connection: keep-alive, X-One ,x-tWo,,", b"Connection: three",
         b"Keep-Alive: timeout=5", b"TE: trailers", b"Trailer: x", b"Upgrade: h2c", b"HTTP2-Settings: x",
         b"X-ONE: 1", b"x-two: 2", b"Three: 3", b"X-Four: 4"],
        [b"GET / HTTP/1.1", b"Host: h", b"X-Four: 4", VIA, CLOSE],
        id="hop-by-hop fields, and those that Connection names, end here (RFC 9110 7.6.1)",
    ),
    pytest.param(
        [b"GET http://h/ HTTP/1.1", b"Host: h", b"Proxy-Authorization: Basic c2VjcmV0", b"Proxy-Connection: keep-alive",
         b"PROXY-X: 1", b"X-Proxy: 2", b"Authorization: Bearer x"],
        [b"GET / HTTP/1.1", b"Host: h", b"X-Proxy: 2", b"Authorization: Bearer x", VIA, CLOSE],
        id="credentials for the proxy do not reach the origin",
    ),
    pytest.param(
        [b"GET http://h/ HTTP/1.1", b"Host: h", b"Connection: host, authorization, cache-control, content-type",
         b"Authorization: x", b"Cache-Control: y", b"Content-Type: z"],
        [b"GET / HTTP/1.1", b"Host: h", b"Authorization: x", b"Cache-Control: y", b"Content-Type: z", VIA, CLOSE],
        id="Connection cannot take away what is meant for all (RFC 9110 7.6.1)",
    ),
    pytest.param(
        [b"POST http://h/ HTTP/1.1", b"Host: h", b"Content-Length: 007", b"X: y"],
        [b"POST / HTTP/1.1", b"Host: h", b"X: y", b"Content-Length: 7", VIA, CLOSE],
        id="the length in our own digits",
    ),
    pytest.param(
        [b"POST http://h/ HTTP/1.1", b"Host: h", b"Connection: content-length", b"Content-Length: 7"],
        [b"POST / HTTP/1.1", b"Host: h", b"Content-Length: 7", VIA, CLOSE],
        id="Connection cannot take the framing away (hop-by-hop abuse)",
    ),
    pytest.param(
        [b"POST http://h/ HTTP/1.1", b"Host: h", b"transfer-encoding: Chunked", b"Connection: transfer-encoding"],
        [b"POST / HTTP/1.1", b"Host: h", b"Transfer-Encoding: chunked", VIA, CLOSE],
        id="chunked in our own words",
    ),
    pytest.param(
        [b"POST http://h/ HTTP/1.1", b"Host: h", b"Content-Length: 0"],
        [b"POST / HTTP/1.1", b"Host: h", b"Content-Length: 0", VIA, CLOSE],
        id="a length of 0 is said",
    ),
    pytest.param(
        [b"POST http://h/ HTTP/1.1", b"Host: h", b"Content-Length: 5", b"Expect: 100-continue"],
        [b"POST / HTTP/1.1", b"Host: h", b"Expect: 100-continue", b"Content-Length: 5", VIA, CLOSE],
        id="an expectation goes on",
    ),
    pytest.param(
        [b"POST http://h/ HTTP/1.0", b"Content-Length: 5", b"Expect: 100-continue"],
        [b"POST / HTTP/1.1", b"Host: h", b"Content-Length: 5", b"Via: 1.0 egress-proxy", CLOSE],
        id="but not that of a 1.0 client, which knows no 100 (RFC 9110 10.1.1)",
    ),
    pytest.param(
        [b"GET http://h/ HTTP/1.1", b"Host: h", b"Expect: 100-continue"],
        [b"GET / HTTP/1.1", b"Host: h", VIA, CLOSE],
        id="nor one without a body",
    ),
    pytest.param(
        [b"GET http://h/ HTTP/1.1", b"Host: h", b"B: 1", b"A:2", b"b:  3 ", b"Via: 1.1 other", b"E:"],
        [b"GET / HTTP/1.1", b"Host: h", b"B: 1", b"A: 2", b"b: 3", b"Via: 1.1 other", b"E: ", VIA, CLOSE],
        id="order, case and repetition of the rest stay (RFC 9110 5.3)",
    ),
]
# fmt: on


@pytest.mark.parametrize(("came", "goes"), TO_THE_ORIGIN)
def test_the_head_for_the_origin(came: list[bytes], goes: list[bytes]) -> None:
    assert sent(*came) == goes


def test_what_else_is_to_be_removed_is() -> None:
    fields: list[Field] = [(b"x", b"X", b"1"), (b"y", b"Y", b"2"), (b"host", b"Host", b"h")]
    assert list(forwardable(fields)) == fields
    assert list(forwardable(fields, b"y", b"host")) == fields[:1]
    assert list(forwardable(iter(fields), b"x")) == fields[1:]


@pytest.mark.parametrize("row", FORWARDS, ids=lambda row: row.story)
def test_what_is_sent_on_is_read_alike_by_the_next_proxy(row: Good) -> None:
    """The head for the origin is a good head, and says the same destination, path and framing."""
    first = parse_request(row.data, LIMITS)
    second = parse_head(origin_request(first), LIMITS)
    assert (second.method, second.target, second.minor) == (first.method, first.path, 1)
    path = b"" if first.path == b"*" else first.path
    again = parse_request(
        b"%s http://%s%s HTTP/1.1\r\n" % (second.method.encode(), second.values(b"host")[0], path)
        + origin_request(first).partition(b"\r\n")[2],
        LIMITS,
    )
    assert again.destination == first.destination
    assert (again.framing, again.length) == (first.framing, first.length)
    assert again.expects_continue == first.expects_continue
    assert not again.keep_alive


@CALM
@given(st.lists(st.sampled_from(PIECES), max_size=8).map(b"".join))
def test_no_value_can_become_a_line(value: bytes) -> None:
    """Whatever a field holds, the origin sees exactly the lines that were taken."""
    try:
        request = parse_request(get(b"X: " + value), LIMITS)
    except HeadError:
        return
    assert isinstance(request, ProxyRequest)
    taken = [b"%s: %s" % (name, text) for lower, name, text in request.fields if lower != b"host"]
    lines = origin_request(request)[:-4].split(b"\r\n")
    assert lines == [b"GET / HTTP/1.1", b"Host: h", *taken, VIA, CLOSE]
    assert b"\n" not in b"".join(lines)
    assert b"\r" not in b"".join(lines)
    assert b"\0" not in b"".join(lines)
