"""What goes to a parent proxy, and how its answer to CONNECT is read."""

from __future__ import annotations

import pytest

from egress_proxy.core.errors import HeadError
from egress_proxy.core.http1 import (
    Framing,
    HeadLimits,
    ProxyRequest,
    origin_request,
    parent_request,
    parse_request,
    parse_response,
)

LIMITS = HeadLimits(32 * 1024, 100)
NAME = b"egress-proxy-1"


def request(*lines: str) -> ProxyRequest:
    return parse_request("".join(f"{line}\r\n" for line in (*lines, "")).encode(), LIMITS)


def test_connect_carries_nothing_of_the_client_s_but_through_whom_it_came() -> None:
    asked = request(
        "CONNECT A.example:443 HTTP/1.1",
        "Host: a.example:443",
        "User-Agent: curl/8",
        "Proxy-Authorization: Basic Y2xpZW50OnNlY3JldA==",
        "Proxy-Connection: keep-alive",
        "Via: 1.1 first, 1.0 second",
        "X-Secret: token",
        "via: 1.1 third",
    )
    assert parent_request(asked, NAME) == (
        b"CONNECT a.example:443 HTTP/1.1\r\n"
        b"Host: a.example:443\r\n"
        b"Via: 1.1 first, 1.0 second\r\n"
        b"via: 1.1 third\r\n"
        b"Via: 1.1 egress-proxy-1\r\n"
        b"\r\n"
    )


def test_connect_with_credentials_of_ours() -> None:
    asked = request("CONNECT [2001:DB8::1]:443 HTTP/1.0")
    assert parent_request(asked, NAME, b"Basic b3VyOnM=") == (
        b"CONNECT [2001:db8::1]:443 HTTP/1.1\r\n"
        b"Host: [2001:db8::1]:443\r\n"
        b"Via: 1.0 egress-proxy-1\r\n"
        b"Proxy-Authorization: Basic b3VyOnM=\r\n"
        b"\r\n"
    )


def test_absolute_form_differs_from_origin_form_in_its_target_and_our_credentials() -> None:
    asked = request(
        "POST http://A.example:8080/p?q=1 HTTP/1.1",
        "Host: a.example:8080",
        "Content-Length: 3",
        "Proxy-Authorization: Basic Y2xpZW50OnNlY3JldA==",
        "Proxy-Authenticate: x",
        "Connection: X-Hop",
        "X-Hop: 1",
        "X-Kept: 2",
    )
    head = parent_request(asked, NAME, b"Basic b3VyOnM=")
    assert head == (
        b"POST http://a.example:8080/p?q=1 HTTP/1.1\r\n"
        b"Host: a.example:8080\r\n"
        b"Proxy-Authorization: Basic b3VyOnM=\r\n"
        b"X-Kept: 2\r\n"
        b"Content-Length: 3\r\n"
        b"Via: 1.1 egress-proxy-1\r\n"
        b"Connection: close\r\n"
        b"\r\n"
    )
    to_origin = origin_request(asked, NAME)
    assert to_origin == head.replace(b"http://a.example:8080/p", b"/p").replace(
        b"Proxy-Authorization: Basic b3VyOnM=\r\n", b""
    )


@pytest.mark.parametrize("method", ["TRACE", "Trace"])
def test_what_echoes_a_request_gets_no_credentials(method: str) -> None:
    """With Max-Forwards, a client can have the parent itself answer."""
    asked = request(f"{method} http://a.example/ HTTP/1.1", "Host: a.example", "Max-Forwards: 0")
    assert b"Authorization" not in parent_request(asked, NAME, b"Basic b3VyOnM=")
    for other in ("GET", "OPTIONS", "TRACER"):
        asked = request(f"{other} http://a.example/ HTTP/1.1", "Host: a.example")
        assert b"Authorization" in parent_request(asked, NAME, b"Basic b3VyOnM=")


@pytest.mark.parametrize(
    ("line", "target"),
    [
        ("GET http://a.example/ HTTP/1.1", b"http://a.example/"),
        ("GET http://a.example:80 HTTP/1.1", b"http://a.example/"),
        ("GET http://a.example?q HTTP/1.1", b"http://a.example/?q"),
        ("GET http://127.1:8080/x HTTP/1.1", b"http://127.0.0.1:8080/x"),
        ("GET http://[::FFFF:7F00:1]/ HTTP/1.1", b"http://127.0.0.1/"),
        ("GET http://[2001:DB8::1]:81/ HTTP/1.1", b"http://[2001:db8::1]:81/"),
        # RFC 9112 §3.2.4: the asterisk is for the last proxy to write.
        ("OPTIONS http://a.example:8080 HTTP/1.1", b"http://a.example:8080"),
        ("OPTIONS http://a.example/ HTTP/1.1", b"http://a.example/"),
    ],
)
def test_the_target_is_what_was_decided_about(line: str, target: bytes) -> None:
    host = line.split()[1].removeprefix("http://").partition("/")[0].partition("?")[0]
    head = parent_request(request(line, f"Host: {host}"), NAME)
    assert head.split(b" ")[1] == target


@pytest.mark.parametrize("field", ["Content-Length: 5", "Transfer-Encoding: gzip", "X: y"])
def test_a_tunnel_has_no_body_whatever_its_answer_says(field: str) -> None:
    """RFC 9110 §9.3.6: a client must ignore both fields there."""
    head = f"HTTP/1.1 200 OK\r\n{field}\r\n\r\n".encode()
    answer = parse_response(head, "CONNECT", LIMITS)
    assert (answer.framing, answer.length) == (Framing.NONE, 0)


def test_a_refusal_has_a_body() -> None:
    answer = parse_response(b"HTTP/1.1 403 No\r\nContent-Length: 5\r\n\r\n", "CONNECT", LIMITS)
    assert (answer.framing, answer.length) == (Framing.LENGTH, 5)
    with pytest.raises(HeadError):
        parse_response(b"HTTP/1.1 403 No\r\nTransfer-Encoding: gzip\r\n\r\n", "CONNECT", LIMITS)


def test_other_methods_are_read_as_before() -> None:
    answer = parse_response(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "GET", LIMITS)
    assert (answer.framing, answer.length) == (Framing.LENGTH, 5)
