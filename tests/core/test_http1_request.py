"""Request heads: what is taken, what is refused and why, and what is sent on.

The rows are in ``data/http/requests.md``, which is meant to be read.
"""

from __future__ import annotations

import contextlib
import re
import time
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from egress_proxy.core.errors import HeadError
from egress_proxy.core.hops import ForwardedFor
from egress_proxy.core.http1 import (
    Framing,
    HeadLimits,
    ProxyRequest,
    check_partial,
    origin_request,
    parse_head,
    parse_request,
)
from tests.core.http_tables import LIMITS, Row, framing_of, rows, section, to_bytes

TABLE = "requests.md"
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

    @staticmethod
    def of(row: Row) -> Good:
        destination, _, path = row["Read as"].partition(" ")
        framing, length = framing_of(row["Body"])
        return Good(
            *(row["What"], row.data("Request"), destination.strip("`"), path.strip("`").encode()),
            *(framing, length),
            keep_alive=row.cells.get("Connection", "kept") == "kept",
            expects_continue=row["Body"].endswith("expects 100"),
        )


class Hostile(NamedTuple):
    """Bytes that are refused."""

    story: str
    data: bytes
    reason: str


CONNECTS = [Good.of(row) for row in section(TABLE, "Tunnels")]
FORWARDS = [Good.of(row) for row in section(TABLE, "Requests to forward")]
GOOD = CONNECTS + FORWARDS
HOSTILE = [
    pytest.param(Hostile(row["What"], row.data("Request"), row["Reason"]), id=str(row))
    for row in section(TABLE, "Refused")
]


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


def test_the_table_says_each_thing_once_and_why() -> None:
    assert len(rows(TABLE)) > 340
    seen = [(row.section, row.cells.get("Request") or row["Came"]) for row in rows(TABLE)]
    assert len(set(seen)) == len(seen)
    for row in rows(TABLE):
        assert re.fullmatch(r"RFC [0-9]{4} §[0-9]+(\.[0-9]+)*", row["Clause"]), row


def test_how_the_table_is_read() -> None:
    assert to_bytes(r"a\r\n\t\x00\\x{3}(X: y\n){2}(z){") == b"a\r\n\t\0\\xxxX: y\nX: y\n(z){"


def test_every_reason_of_a_head_has_a_row() -> None:
    told = {row["Reason"] for row in section(TABLE, "Refused")}
    assert told == {
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
    """A pattern that is tried in all ways to cut a run of spaces takes seconds for such a head, and stalls all."""
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


VIA = b"Via: 1.1 egress-proxy"
CLOSE = b"Connection: close"


@pytest.mark.parametrize("row", section(TABLE, "Sent on"), ids=str)
def test_the_head_for_the_origin(row: Row) -> None:
    request = parse_request(row.data("Came") + b"\r\n\r\n", LIMITS)
    mode = re.search("`forwarded_for: ([a-z]+)`", row.section)
    head = origin_request(
        request,
        keep_alive=row.section.endswith("to be kept"),
        upgrade=request.upgrade if row.section.endswith("to switch") else None,
        forwarded_for=ForwardedFor(mode[1]) if mode else ForwardedFor.REMOVE,
        client="192.0.2.10",
    )
    assert head.split(b"\r\n") == [*row.data("Goes").split(b"\r\n"), b"", b""]


@pytest.mark.parametrize("row", section(TABLE, "Asked to switch"), ids=str)
def test_what_the_origin_is_asked_to_switch_to(row: Row) -> None:
    request = parse_request(row.data("Request"), LIMITS)
    assert request.upgrade == (row.data("Upgrade") or None)
    # Whoever does not want it to be passed on says nothing.
    assert b"pgrade" not in origin_request(request)


@pytest.mark.parametrize(
    ("client", "node", "older"),
    [
        ("192.0.2.10", b"192.0.2.10", b"192.0.2.10"),
        ("2001:db8::1", b'"[2001:db8::1]"', b"2001:db8::1"),
        ("fe80::1%eth0", b'"[fe80::1]"', b"fe80::1"),
    ],
)
def test_how_an_address_is_told(client: str, node: bytes, older: bytes) -> None:
    """RFC 7239 §6: an IPv6 address stands in brackets and quotation marks; a zone means nothing elsewhere."""
    head = origin_request(
        parse_request(get(), LIMITS), forwarded_for=ForwardedFor.ADD, client=client
    )
    assert b"\r\nForwarded: for=%b\r\nX-Forwarded-For: %b\r\n" % (node, older) in head


def test_no_client_is_told_that_is_not_known() -> None:
    head = origin_request(parse_request(get(), LIMITS), forwarded_for=ForwardedFor.ADD)
    assert head == origin_request(parse_request(get(), LIMITS))


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
