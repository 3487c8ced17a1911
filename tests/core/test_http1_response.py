"""An origin's answers: how they are read, where their bodies end, and what the client gets.

The rows are in ``data/http/responses.md``, which is meant to be read.
"""

from __future__ import annotations

import contextlib
import re
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egress_proxy.core.errors import HeadError
from egress_proxy.core.http1 import Framing, ResponseHead, client_response, parse_response
from tests.core.http_tables import LIMITS, Row, framing_of, rows, section
from tests.support.calm import CALM

TABLE = "responses.md"
PIECES = [b"a", b" ", b"\t", b":", b"\xff", b"\r", b"\n", b"\r\n", b"\0", b"Y: z", b"\r\nY: z"]


def head(*lines: bytes) -> bytes:
    return b"\r\n".join(lines) + b"\r\n\r\n"


def ok(*fields: bytes) -> bytes:
    return head(b"HTTP/1.1 200 OK", *fields)


def parse(data: bytes, method: str = "GET") -> ResponseHead:
    return parse_response(data, method, LIMITS)


class Answer(NamedTuple):
    """An answer that is taken, and how its body ends."""

    story: str
    method: str
    data: bytes
    framing: Framing
    length: int
    kept: bool


GOOD = [
    Answer(
        *(row["What"], row["Method"], row.data("Answer"), *framing_of(row["Body"])),
        row["Connection"] == "kept",
    )
    for row in section(TABLE, "Answers")
    if "Body" in row.cells
]
BAD = section(TABLE, "Refused")


@pytest.mark.parametrize("row", GOOD, ids=lambda row: row.story)
def test_taken(row: Answer) -> None:
    response = parse(row.data, row.method)
    assert (response.framing, response.length) == (row.framing, row.length)
    assert response.status == int(row.data[9:12])
    assert response.status_line == row.data.split(b"\r\n")[0]
    assert response.keep_alive is row.kept


@pytest.mark.parametrize("row", BAD, ids=str)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_refused(row: Row, method: str) -> None:
    with pytest.raises(HeadError) as caught:
        parse(row.data("Answer"), method)
    assert caught.value.reason.name == "origin_malformed"
    assert caught.value.detail.startswith("the origin's answer is malformed: ")


def test_the_table_says_each_thing_once_and_why() -> None:
    assert len(rows(TABLE)) > 140
    seen = [tuple(row.cells.values())[2:] for row in rows(TABLE)]
    assert len(set(seen)) == len(seen)
    for row in rows(TABLE):
        assert re.fullmatch(r"RFC [0-9]{4} §[0-9]+(\.[0-9]+)*", row["Clause"]), row


@pytest.mark.parametrize("row", section(TABLE, "Answers to a handshake"), ids=str)
def test_an_answer_to_a_handshake(row: Row) -> None:
    data = row.data("Answer")
    if row["Outcome"] == "refused":
        with pytest.raises(HeadError) as caught:
            parse_response(data, "GET", LIMITS, upgrade=b"websocket")
        assert caught.value.reason.name == "origin_malformed"
        return
    response = parse_response(data, "GET", LIMITS, upgrade=b"websocket")
    switched = response.status == 101
    assert row["Outcome"] == ("switched" if switched else "answered")
    if switched:
        assert (response.framing, response.keep_alive) == (Framing.NONE, False)
        with pytest.raises(HeadError):
            parse(data)


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


def told(response: ResponseHead, framing: Framing, *, keep_alive: bool) -> list[bytes]:
    """The lines of the head that the client gets."""
    head = client_response(response, framing, keep_alive=keep_alive)
    assert head.endswith(b"\r\n\r\n")
    return head[:-4].split(b"\r\n")


@pytest.mark.parametrize("row", section(TABLE, "Passed on"), ids=str)
def test_the_head_for_the_client(row: Row) -> None:
    framing, _, kept = row.cells.get("As", "none, closed").partition(", ")
    upgrade = b"websocket" if row.section.endswith("handshake") else None
    response = parse_response(
        row.data("Came") + b"\r\n\r\n", row.cells.get("Method", "GET"), LIMITS, upgrade=upgrade
    )
    lines = told(response, Framing(framing), keep_alive=kept == "kept")
    assert lines == row.data("Goes").split(b"\r\n")


@pytest.mark.parametrize("keep_alive", [True, False])
@pytest.mark.parametrize("row", GOOD, ids=lambda row: row.story)
def test_the_client_reads_the_framing_that_was_meant(row: Answer, keep_alive: bool) -> None:
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
        lines = told(parse(data), Framing.CHUNKED, keep_alive=True)
    except HeadError:
        return
    taken = [b"%s: %s" % (name, text) for _, name, text in parse(data).fields]
    ours = [b"Transfer-Encoding: chunked", b"Via: 1.1 egress-proxy", b"Connection: keep-alive"]
    assert lines == [b"HTTP/1.1 200 OK", *taken, *ours]
    assert b"\n" not in b"".join(lines)
    assert b"\r" not in b"".join(lines)
