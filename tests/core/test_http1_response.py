"""An origin's answers: how they are read, where their bodies end, and what the client gets."""

# ruff: noqa: E501 - a row of the tables is one line, however long its bytes are.

from __future__ import annotations

import contextlib
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from egress_proxy.core.errors import HeadError
from egress_proxy.core.http1 import (
    Framing,
    HeadLimits,
    ResponseHead,
    client_response,
    parse_response,
)

LIMITS = HeadLimits(size=4096, fields=20)
PIECES = [b"a", b" ", b"\t", b":", b"\xff", b"\r", b"\n", b"\r\n", b"\0", b"Y: z", b"\r\nY: z"]
CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

NONE, LENGTH, CHUNKED, UNTIL_CLOSE = (
    Framing.NONE,
    Framing.LENGTH,
    Framing.CHUNKED,
    Framing.UNTIL_CLOSE,
)


def head(*lines: bytes) -> bytes:
    return b"\r\n".join(lines) + b"\r\n\r\n"


def ok(*fields: bytes) -> bytes:
    return head(b"HTTP/1.1 200 OK", *fields)


def parse(data: bytes, method: str = "GET") -> ResponseHead:
    return parse_response(data, method, LIMITS)


class Row(NamedTuple):
    """An answer that is taken, and how its body ends."""

    story: str
    data: bytes
    framing: Framing
    length: int = 0
    method: str = "GET"


# fmt: off
# RFC 9112 §6.3, rule by rule.
GOOD = [
    Row("1: HEAD has no body, whatever the fields say", ok(b"Content-Length: 5"), NONE, method="HEAD"),
    Row("1: HEAD, chunked as GET would have been", ok(b"Transfer-Encoding: chunked"), NONE, method="HEAD"),
    Row("1: HEAD, and framing that conflicts about nothing", ok(b"Transfer-Encoding: chunked", b"Content-Length: 5"), NONE, method="HEAD"),
    Row("1: a method is case-sensitive: `head` is not HEAD", ok(b"Content-Length: 5"), LENGTH, 5, method="head"),
    Row("1: 100", head(b"HTTP/1.1 100 Continue"), NONE),
    Row("1: 103", head(b"HTTP/1.1 103 Early Hints", b"Link: x"), NONE),
    Row("1: 1xx with a length", head(b"HTTP/1.1 199 x", b"Content-Length: 5"), NONE),
    Row("1: 204", head(b"HTTP/1.1 204 No Content"), NONE),
    Row("1: 204 with a length", head(b"HTTP/1.1 204 No Content", b"Content-Length: 5"), NONE),
    Row("1: 204 that says it is chunked", head(b"HTTP/1.1 204 No Content", b"Transfer-Encoding: chunked"), NONE),
    Row("1: 304 with the length that 200 would have had", head(b"HTTP/1.1 304 Not Modified", b"Content-Length: 5"), NONE),
    Row("1: 205 is not among them", head(b"HTTP/1.1 205 Reset Content", b"Content-Length: 0"), LENGTH, 0),
    Row("4: chunked", ok(b"Transfer-Encoding: chunked"), CHUNKED),
    Row("4: chunked in other letters", ok(b"transfer-encoding:Chunked"), CHUNKED),
    Row("6: a length", ok(b"Content-Length: 5"), LENGTH, 5),
    Row("6: a length of 0", ok(b"Content-Length: 0"), LENGTH, 0),
    Row("6: 1.0 with a length", head(b"HTTP/1.0 200 OK", b"Content-Length: 5"), LENGTH, 5),
    Row("6: an error with a length", head(b"HTTP/1.1 500 x", b"Content-Length: 5"), LENGTH, 5),
    Row("8: nothing said: until the connection closes", ok(), UNTIL_CLOSE),
    Row("8: 1.0", head(b"HTTP/1.0 200 OK"), UNTIL_CLOSE),
    Row("8: even with keep-alive", ok(b"Connection: keep-alive"), UNTIL_CLOSE),
    Row("8: POST", ok(), UNTIL_CLOSE, method="POST"),
    Row("8: 404", head(b"HTTP/1.1 404 Not Found"), UNTIL_CLOSE),
    # Status lines (§4).
    Row("no reason phrase", head(b"HTTP/1.1 200 ", b"Content-Length: 0"), LENGTH),
    Row("no reason phrase and no space before it", head(b"HTTP/1.1 200", b"Content-Length: 0"), LENGTH),
    Row("a reason phrase beyond ASCII", head(b"HTTP/1.1 200 \xc3\x9cbung\t!", b"Content-Length: 0"), LENGTH),
    Row("an unknown status", head(b"HTTP/1.1 599 x", b"Content-Length: 0"), LENGTH),
]

BAD = [
    ("nothing", b"\r\n\r\n"),
    ("HTTP/0.9", b"<html>\r\n\r\n"),
    ("HTTP/2", b"HTTP/2 200\r\n\r\n"),
    ("HTTP/2.0", head(b"HTTP/2.0 200 OK")),
    ("HTTP/1.2", head(b"HTTP/1.2 200 OK")),
    ("HTTP/0.9 written out", head(b"HTTP/0.9 200 OK")),
    ("lower case", head(b"http/1.1 200 OK")),
    ("ICY, as old audio servers say", head(b"ICY 200 OK")),
    ("a space first", head(b" HTTP/1.1 200 OK")),
    ("two spaces", head(b"HTTP/1.1  200 OK")),
    ("a tab", head(b"HTTP/1.1\t200 OK")),
    ("a status of two digits", head(b"HTTP/1.1 20 OK")),
    ("a status of four digits", head(b"HTTP/1.1 2000 OK")),
    ("a status with a sign", head(b"HTTP/1.1 +20 OK")),
    ("a status that is no number", head(b"HTTP/1.1 2xx OK")),
    ("status 099", head(b"HTTP/1.1 099 x")),
    ("status 000", head(b"HTTP/1.1 000 x")),
    ("status 600 (RFC 9110 §15)", head(b"HTTP/1.1 600 x")),
    ("no status", head(b"HTTP/1.1 OK")),
    ("101: nobody asked to switch protocols (RFC 9110 §15.2.2)", head(b"HTTP/1.1 101 Switching Protocols", b"Upgrade: h2c", b"Connection: upgrade")),
    ("a control byte in the reason phrase", head(b"HTTP/1.1 200 O\0K")),
    ("CR in the reason phrase", head(b"HTTP/1.1 200 O\rK")),
    ("a line that ends with LF", b"HTTP/1.1 200 OK\nContent-Length: 0\r\n\r\n"),
    ("a field that ends with LF", b"HTTP/1.1 200 OK\r\nContent-Length: 0\nX: y\r\n\r\n"),
    ("LF alone throughout", b"HTTP/1.1 200 OK\nContent-Length: 0\n\n"),
    ("NUL in a field", ok(b"X: \0")),
    ("bare CR in a field: response splitting", ok(b"X: a\rSet-Cookie: b")),
    ("obs-fold: a proxy must not pass it on (§5.2)", ok(b"X: a", b" b")),
    ("white space before the colon: to be removed or refused (§5.1)", ok(b"Content-Length : 5")),
    ("no colon", ok(b"X")),
    ("no empty line", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n"),
    ("a second head behind the first", ok() + ok()),
    ("3: both Transfer-Encoding and Content-Length: smuggling", ok(b"Transfer-Encoding: chunked", b"Content-Length: 5")),
    ("3: the other way round", ok(b"Content-Length: 5", b"Transfer-Encoding: chunked")),
    ("4: another coding", ok(b"Transfer-Encoding: gzip")),
    ("4: another coding below", ok(b"Transfer-Encoding: gzip, chunked")),
    ("4: chunked not last", ok(b"Transfer-Encoding: chunked, gzip")),
    ("4: chunked twice", ok(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked")),
    ("4: chunked in 1.0 (§6.1)", head(b"HTTP/1.0 200 OK", b"Transfer-Encoding: chunked")),
    ("5: two lengths", ok(b"Content-Length: 5", b"Content-Length: 6")),
    ("5: two lengths, the same", ok(b"Content-Length: 5", b"Content-Length: 5")),
    ("5: two in one", ok(b"Content-Length: 5, 5")),
    ("5: a sign", ok(b"Content-Length: +5")),
    ("5: a negative length", ok(b"Content-Length: -1")),
    ("5: empty", ok(b"Content-Length:")),
    ("5: hexadecimal", ok(b"Content-Length: 0x5")),
    ("5: more than 64 bits", ok(b"Content-Length: 18446744073709551621")),
    ("too many fields", ok(*[b"X: y"] * 21)),
    ("too large", ok(b"X: " + b"y" * 4096)),
]
# fmt: on


@pytest.mark.parametrize("row", GOOD, ids=lambda row: row.story)
def test_taken(row: Row) -> None:
    response = parse(row.data, row.method)
    assert (response.framing, response.length) == (row.framing, row.length)
    assert response.status == int(row.data[9:12])
    assert response.status_line == row.data.split(b"\r\n")[0]


@pytest.mark.parametrize("data", [pytest.param(data, id=story) for story, data in BAD])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_refused(data: bytes, method: str) -> None:
    with pytest.raises(HeadError) as caught:
        parse(data, method)
    assert caught.value.reason.name == "origin_malformed"
    assert caught.value.detail.startswith("the origin's answer is malformed: ")


def test_the_fields_are_kept_as_they_came() -> None:
    response = parse(ok(b"Set-Cookie: a", b"set-cookie:b ", b"X:"))
    assert response.fields == [
        (b"set-cookie", b"Set-Cookie", b"a"),
        (b"set-cookie", b"set-cookie", b"b"),
        (b"x", b"X", b""),
    ]


def test_the_limits_are_exact() -> None:
    parse(ok(*[b"X: y"] * 20))
    size = len(ok(b"X: "))
    assert len(parse(ok(b"X: " + b"y" * (LIMITS.size - size))).fields) == 1
    with pytest.raises(HeadError):
        parse(ok(b"X: " + b"y" * (LIMITS.size - size + 1)))


def test_a_refusal_never_quotes_the_origin() -> None:
    for data in (ok(b"s3cret"), head(b"s3cret"), ok(b"Content-Length: s3cret"), ok(b"X: s3cret\0")):
        with pytest.raises(HeadError) as caught:
            parse(data)
        assert "s3cret" not in caught.value.detail


def test_a_head_that_is_cut_short_is_refused() -> None:
    for row in GOOD:
        for end in range(len(row.data)):
            with pytest.raises(HeadError):
                parse(row.data[:end], row.method)


@CALM
@given(st.binary(max_size=200), st.sampled_from(["GET", "HEAD"]))
def test_nothing_but_a_head_error_is_ever_raised(data: bytes, method: str) -> None:
    for whole in (data, b"HTTP/1.1 2" + data + b"\r\n\r\n", ok(data)):
        with contextlib.suppress(HeadError):
            parse(whole, method)


# What the client gets.


def answer(data: bytes, framing: Framing, keep_alive: bool, method: str = "GET") -> list[bytes]:
    """The lines of the head that the client gets."""
    told = client_response(parse(data, method), framing, keep_alive=keep_alive)
    assert told.endswith(b"\r\n\r\n")
    return told[:-4].split(b"\r\n")


VIA = b"Via: 1.1 egress-proxy"
OK = b"HTTP/1.1 200 OK"
KEEP, CLOSE = b"Connection: keep-alive", b"Connection: close"


# fmt: off
TO_THE_CLIENT = [
    pytest.param(
        [OK, b"Content-Length: 005", b"X: y"], "GET", LENGTH, True,
        [OK, b"X: y", b"Content-Length: 5", VIA, KEEP],
        id="a length, in our own digits",
    ),
    pytest.param(
        [OK, b"Content-Length: 0"], "GET", LENGTH, False,
        [OK, b"Content-Length: 0", VIA, CLOSE],
        id="a length of 0",
    ),
    pytest.param(
        [OK, b"transfer-encoding: Chunked", b"X: y"], "GET", CHUNKED, True,
        [OK, b"X: y", b"Transfer-Encoding: chunked", VIA, KEEP],
        id="chunked, in our own words",
    ),
    pytest.param(
        [OK, b"Transfer-Encoding: chunked"], "GET", UNTIL_CLOSE, False,
        [OK, VIA, CLOSE],
        id="chunked towards a 1.0 client: until close",
    ),
    pytest.param(
        [OK, b"X: y"], "GET", UNTIL_CLOSE, False,
        [OK, b"X: y", VIA, CLOSE],
        id="until close",
    ),
    pytest.param(
        [OK], "GET", CHUNKED, True,
        [OK, b"Transfer-Encoding: chunked", VIA, KEEP],
        id="until close becomes chunked, so that a cut is seen",
    ),
    pytest.param(
        [b"HTTP/1.0 200 OK", b"Content-Length: 5"], "GET", LENGTH, True,
        [OK, b"Content-Length: 5", VIA, KEEP],
        id="the version is ours (RFC 9110 2.5)",
    ),
    pytest.param(
        [b"HTTP/1.0 404"], "GET", UNTIL_CLOSE, False,
        [b"HTTP/1.1 404", VIA, CLOSE],
        id="the status line otherwise as it came",
    ),
    pytest.param(
        [OK, b"Content-Length: 5", b"X: y"], "HEAD", NONE, True,
        [OK, b"Content-Length: 5", b"X: y", VIA, KEEP],
        id="HEAD keeps the length that GET would have had",
    ),
    pytest.param(
        [OK, b"Transfer-Encoding: chunked"], "HEAD", NONE, True,
        [OK, VIA, KEEP],
        id="HEAD does not keep the coding, which is hop-by-hop",
    ),
    pytest.param(
        [OK, b"Content-Length: 5", b"Content-Length: 6"], "HEAD", NONE, True,
        [OK, VIA, KEEP],
        id="HEAD with two lengths has none: the client must not choose",
    ),
    pytest.param(
        [OK, b"Content-Length: +5"], "HEAD", NONE, True,
        [OK, VIA, KEEP],
        id="HEAD with a length that is none",
    ),
    pytest.param(
        [b"HTTP/1.1 304 Not Modified", b"Content-Length: 5", b"ETag: x"], "GET", NONE, True,
        [b"HTTP/1.1 304 Not Modified", b"Content-Length: 5", b"ETag: x", VIA, KEEP],
        id="304 as well",
    ),
    pytest.param(
        [b"HTTP/1.1 204 No Content", b"Content-Length: 5"], "GET", NONE, True,
        [b"HTTP/1.1 204 No Content", VIA, KEEP],
        id="204 has no length (RFC 9110 8.6): a client that waited for one would eat the next answer",
    ),
    pytest.param(
        [b"HTTP/1.1 204 No Content", b"Transfer-Encoding: chunked"], "GET", NONE, False,
        [b"HTTP/1.1 204 No Content", VIA, CLOSE],
        id="nor a coding (RFC 9112 6.1)",
    ),
    pytest.param(
        [b"HTTP/1.1 100 Continue"], "POST", NONE, True,
        [b"HTTP/1.1 100 Continue"],
        id="an interim answer is nothing but itself",
    ),
    pytest.param(
        [b"HTTP/1.1 103 Early Hints", b"Link: x", b"Content-Length: 5", b"Connection: close"], "GET", NONE, False,
        [b"HTTP/1.1 103 Early Hints", b"Link: x"],
        id="an interim answer says nothing about framing or the connection",
    ),
    pytest.param(
        [OK, b"Connection: close, X-One", b"Keep-Alive: timeout=5", b"x-one: 1", b"X-Two: 2", b"Upgrade: h2c",
         b"Trailer: x", b"Proxy-Authenticate: Basic", b"Proxy-Connection: close", b"Content-Length: 5"], "GET", LENGTH, True,
        [OK, b"X-Two: 2", b"Content-Length: 5", VIA, KEEP],
        id="hop-by-hop fields end here (RFC 9110 7.6.1)",
    ),
    pytest.param(
        [OK, b"Set-Cookie: a", b"Set-Cookie: b", b"Via: 1.1 other", b"Content-Length: 5"], "GET", LENGTH, True,
        [OK, b"Set-Cookie: a", b"Set-Cookie: b", b"Via: 1.1 other", b"Content-Length: 5", VIA, KEEP],
        id="repeated fields stay, in their order",
    ),
]
# fmt: on


@pytest.mark.parametrize(("came", "method", "framing", "keep_alive", "goes"), TO_THE_CLIENT)
def test_the_head_for_the_client(
    came: list[bytes], method: str, framing: Framing, keep_alive: bool, goes: list[bytes]
) -> None:
    assert answer(head(*came), framing, keep_alive, method) == goes


@pytest.mark.parametrize("keep_alive", [True, False])
@pytest.mark.parametrize("row", GOOD, ids=lambda row: row.story)
def test_the_client_reads_the_framing_that_was_meant(row: Row, keep_alive: bool) -> None:
    response = parse(row.data, row.method)
    again = parse(client_response(response, response.framing, keep_alive=keep_alive), row.method)
    assert (again.status, again.framing, again.length) == (
        response.status,
        response.framing,
        response.length,
    )
    options = [value for name, _, value in again.fields if name == b"connection"]
    if response.status >= 200:
        assert options == [b"keep-alive" if keep_alive else b"close"]
    else:
        assert options == []


@CALM
@given(st.lists(st.sampled_from(PIECES), max_size=8).map(b"".join))
def test_no_value_can_become_a_line(value: bytes) -> None:
    data = ok(b"X: " + value)
    try:
        lines = answer(data, CHUNKED, True)
    except HeadError:
        return
    taken = [b"%s: %s" % (name, text) for _, name, text in parse(data).fields]
    assert lines == [OK, *taken, b"Transfer-Encoding: chunked", VIA, KEEP]
    assert b"\n" not in b"".join(lines)
    assert b"\r" not in b"".join(lines)
