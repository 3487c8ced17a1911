"""TRACE and OPTIONS that may pass no further proxy (RFC 9110 §7.6.2): answered here."""

from __future__ import annotations

import h11
import pytest

from egress_proxy.core.http1 import ProxyRequest, origin_request, parent_request, parse_request
from egress_proxy.core.max_forwards import ends_here, final_answer
from tests.core.http_tables import LIMITS


def request(*lines: str) -> ProxyRequest:
    return parse_request("".join(f"{line}\r\n" for line in (*lines, "")).encode(), LIMITS)


def trace(*fields: str) -> ProxyRequest:
    return request("TRACE http://H.example:80/a?b HTTP/1.1", "Host: h.example", *fields)


@pytest.mark.parametrize(
    ("method", "count", "here"),
    [
        ("TRACE", "0", True),
        ("OPTIONS", "0", True),
        ("OPTIONS", "000", True),
        ("TRACE", "1", False),
        ("GET", "0", False),
        ("trace", "0", False),
        ("POST", "0", False),
    ],
)
def test_which_end_here(method: str, count: str, here: bool) -> None:
    asked = request(f"{method} http://h/ HTTP/1.1", "Host: h", f"Max-Forwards: {count}")
    assert ends_here(asked) is here


def test_what_is_not_counted_goes_on() -> None:
    assert not ends_here(trace())
    assert b"Max-Forwards" not in origin_request(trace())


def test_a_count_never_falls_below_nothing() -> None:
    """Whoever asks for the head all the same."""
    for head in (origin_request, parent_request):
        assert b"\r\nMax-Forwards: 0\r\n" in head(trace("Max-Forwards: 0"), b"p")


def test_trace_shows_what_came() -> None:
    asked = trace("Max-Forwards: 0", "Via: 1.0 first", "user-agent:curl/8", "Accept: */*")
    body = (
        b"TRACE http://h.example/a?b HTTP/1.1\r\n"
        b"Host: h.example\r\n"
        b"Max-Forwards: 0\r\n"
        b"Via: 1.0 first\r\n"
        b"user-agent: curl/8\r\n"
        b"Accept: */*\r\n"
        b"\r\n"
    )
    assert final_answer(asked, keep_alive=True) == (
        b"HTTP/1.1 200 OK\r\n"
        b"Content-Type: message/http\r\n"
        b"Content-Length: %d\r\n"
        b"Cache-Control: no-store\r\n"
        b"Connection: keep-alive\r\n"
        b"\r\n"
        b"%b" % (len(body), body)
    )


@pytest.mark.parametrize(
    "field",
    [
        "Authorization: Basic czNjcmV0",
        "Proxy-Authorization: Basic czNjcmV0",
        "Cookie: a=czNjcmV0",
        "X-Api-Key: czNjcmV0",
        "X-Amz-Security-Token: czNjcmV0",
        "Forwarded: for=czNjcmV0",
        "X-Tenant-ID: czNjcmV0",
    ],
)
def test_trace_shows_nothing_that_may_be_secret(field: str) -> None:
    """RFC 9110 §9.3.8: else a script could read what it cannot set (cross-site tracing)."""
    assert b"czNjcmV0" not in final_answer(trace("Max-Forwards: 0", field), keep_alive=True)


def test_options_tells_what_this_proxy_does() -> None:
    asked = request("OPTIONS http://h HTTP/1.1", "Host: h", "Max-Forwards: 0")
    assert final_answer(asked, keep_alive=False) == (
        b"HTTP/1.1 200 OK\r\n"
        b"Allow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS, TRACE, CONNECT\r\n"
        b"Content-Length: 0\r\n"
        b"Cache-Control: no-store\r\n"
        b"Connection: close\r\n"
        b"\r\n"
    )


@pytest.mark.parametrize("method", ["TRACE", "OPTIONS"])
def test_another_reader_finds_the_answer_s_end(method: str) -> None:
    asked = request(f"{method} http://h/ HTTP/1.1", "Host: h", "Max-Forwards: 0", "Via: 1.1 a")
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target="/", headers=[("Host", "h")]))
    client.send(h11.EndOfMessage())
    client.receive_data(final_answer(asked, keep_alive=True))
    assert isinstance(client.next_event(), h11.Response)
    while not isinstance(event := client.next_event(), h11.EndOfMessage):
        assert isinstance(event, h11.Data)
    assert client.trailing_data == (b"", False)
