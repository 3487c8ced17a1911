"""Heads that were seen before: the answer is the parser's, within bounds, and nobody's secrets are kept for it."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import pytest

from egress_proxy.core import http1, sections
from egress_proxy.core.errors import HeadError
from egress_proxy.core.http1 import (
    Framing,
    HeadLimits,
    ProxyRequest,
    ResponseHead,
    client_response,
    origin_request,
    parse_request,
    parse_response,
)
from tests.core.http_tables import LIMITS, rows

GET = b"GET http://a.test/x HTTP/1.1\r\nHost: a.test\r\n%b\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n%b\r\n"


@pytest.fixture(autouse=True)
def _nothing_seen() -> Iterator[None]:
    forget()
    yield
    forget()


def forget() -> None:
    for memo in (http1._requests, http1._responses, sections._remembered):
        memo.clear()


def kept() -> bytes:
    """All bytes that are remembered, and what they were remembered by."""
    return repr((http1._requests, http1._responses, sections._remembered)).encode()


def told(head: ProxyRequest | ResponseHead) -> object:
    """All that a head says, and what is sent on for it."""
    fields = {name: getattr(head, name) for name in head.__struct_fields__ if name != "section"}
    onward = b""
    if isinstance(head, ResponseHead):
        onward = client_response(head, head.framing, keep_alive=True)
    elif not head.is_connect:
        onward = origin_request(head)
    return fields, head.section.fields, head.section.known, onward


def requested(data: bytes, limits: HeadLimits = LIMITS) -> object:
    try:
        return told(parse_request(data, limits))
    except HeadError as error:
        return error.reason, error.detail


def answered(data: bytes, method: str, limits: HeadLimits = LIMITS) -> object:
    try:
        return told(parse_response(data, method, limits, upgrade=b"websocket"))
    except HeadError as error:
        return error.reason, error.detail


@pytest.mark.parametrize("row", rows("requests.md"), ids=str)
def test_a_request_means_the_same_again(row: object) -> None:
    data = row.message  # type: ignore[attr-defined]
    first = requested(data)
    assert requested(data) == first
    # And where its fields came with another target before.
    forget()
    _, line, section = data.partition(b"\r\n")
    requested(b"GET http://other.test/ HTTP/1.1" + line + section)
    requested(b"CONNECT a.test:443 HTTP/1.0" + line + section)
    assert requested(data) == first


@pytest.mark.parametrize("row", rows("responses.md"), ids=str)
def test_an_answer_means_the_same_again(row: object) -> None:
    data = row.message  # type: ignore[attr-defined]
    methods = ("GET", "HEAD", "CONNECT", "POST")
    first = {}
    for method in methods:
        forget()
        first[method] = answered(data, method)
    forget()
    for method in (*methods, *reversed(methods)):
        assert answered(data, method) == first[method]


def test_what_was_seen_is_not_parsed_again() -> None:
    data = GET % b"A: b\r\n"
    assert parse_request(data, LIMITS) is parse_request(data, LIMITS)
    other = parse_request(data.replace(b"/x", b"/y"), LIMITS)
    assert other.section is parse_request(data, LIMITS).section
    assert parse_response(OK % b"", "GET", LIMITS) is parse_response(OK % b"", "POST", LIMITS)


def test_the_answer_to_head_is_another_one() -> None:
    data = OK % b""
    assert parse_response(data, "GET", LIMITS).framing is Framing.LENGTH
    assert parse_response(data, "HEAD", LIMITS).framing is Framing.NONE


def test_a_switch_is_judged_by_what_was_asked_for_each_time() -> None:
    data = b"HTTP/1.1 101 S\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
    assert parse_response(data, "GET", LIMITS, upgrade=b"websocket").status == 101
    with pytest.raises(HeadError):
        parse_response(data, "GET", LIMITS)


@pytest.mark.parametrize(
    "limits", [HeadLimits(size=60, fields=20), HeadLimits(size=4096, fields=1)]
)
def test_smaller_limits_hold_for_what_was_seen_under_larger_ones(limits: HeadLimits) -> None:
    request, answer = GET % b"A: 0123456789\r\n", OK % b"A: 01234567890123456789\r\n"
    parse_request(request, LIMITS)
    parse_response(answer, "GET", LIMITS)
    for _ in range(2):
        with pytest.raises(HeadError):
            parse_request(request, limits)
        with pytest.raises(HeadError):
            parse_request(request.replace(b"/x", b"/y"), limits)
        with pytest.raises(HeadError):
            parse_response(answer, "GET", limits)


@pytest.mark.parametrize("name", [b"Authorization", b"aUTHORIZATION", b"Cookie", b"Set-Cookie"])
def test_secrets_are_not_kept(name: bytes) -> None:
    field = name + b": hunter2\r\n"
    parse_request(GET % field, LIMITS)
    parse_request(b"CONNECT a.test:443 HTTP/1.1\r\nHost: a.test\r\n%b\r\n" % field, LIMITS)
    parse_response(OK % field, "GET", LIMITS)
    assert b"hunter2" not in kept()
    parse_request(GET % b"X: hunter2\r\n", LIMITS)
    assert b"hunter2" in kept()


def test_what_is_kept_is_bounded() -> None:
    for number in range(3 * sections._MOST):
        parse_request(GET % (b"X: %d\r\n" % number), LIMITS)
        parse_response(OK % (b"X: %d\r\n" % number), "GET", LIMITS)
        parse_request(
            b"CONNECT a%d.test:443 HTTP/1.1\r\nHost: a%d.test\r\n\r\n" % (number, number), LIMITS
        )
    for memo in (http1._requests, http1._responses, sections._remembered):
        assert 0 < len(memo) <= sections._MOST
    forget()
    for large in (
        b"X: %b\r\n" % (b"y" * sections.REPEATED_SIZE),
        # Small on the wire, and not in memory.
        b"a:\r\n" * (sections.REPEATED_FIELDS + 1),
    ):
        parse_request(GET % large, HeadLimits(4096, 100))
        parse_response(OK % large, "GET", HeadLimits(4096, 100))
    assert kept() == repr(({}, {}, {})).encode()


def test_heads_of_many_fields_take_no_more_memory_than_they_may() -> None:
    """The attack: heads that are small on the wire and large when parsed, each another one."""
    limits = HeadLimits(4096, 100)
    tracemalloc.start()
    try:
        for number in range(2 * sections._MOST):
            fields = b"ab:cd\r\n" * (sections.REPEATED_FIELDS - 3) + b"x:%d\r\n" % number
            parse_request(GET % fields, limits)
            parse_response(OK % fields, "GET", limits)
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Two kinds of heads and their sections.
    assert size < 3 * 8 * 1024 * 1024
