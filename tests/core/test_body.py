"""Chunked bodies: what is taken, what is refused, and that the pieces in which bytes arrive change nothing.

The rows are in ``data/http/bodies.md``, which is meant to be read.
"""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egress_proxy.core.body import (
    LAST_CHUNK,
    MAX_EXCESS,
    MAX_SIZE_LINE,
    MAX_TRAILERS,
    ChunkedDecoder,
    encode_chunk,
    last_chunk,
)
from egress_proxy.core.errors import BodyError, HeadError
from tests.core.http_tables import Row, rows, section
from tests.support.calm import CALM

END = b"0\r\n\r\n"

GOOD = section("bodies.md", "Taken")
BAD = section("bodies.md", "Refused")


def decode(pieces: list[bytes]) -> tuple[bytes, bool, bytes]:
    """The content, whether it is complete, and what came after it."""
    decoder = ChunkedDecoder()
    content = b"".join(b"".join(decoder.feed(piece)) for piece in pieces)
    return content, decoder.done, decoder.rest


def outcome(pieces: list[bytes]) -> tuple[bytes, bool, bytes] | str:
    try:
        return decode(pieces)
    except BodyError as error:
        return f"{error.reason.name}: {error.detail}"


@pytest.mark.parametrize("row", GOOD, ids=str)
def test_taken(row: Row) -> None:
    body, content = row.data("Body"), row.data("Content")
    assert decode([body]) == (content, True, b"")
    assert decode([body + b"GET / HTTP/1.1\r\n"]) == (content, True, b"GET / HTTP/1.1\r\n")
    decoder = ChunkedDecoder()
    decoder.feed(body)
    assert decoder.trailers == row.data("Trailers")


def test_the_table_says_each_thing_once_and_why() -> None:
    bodies = [row["Body"] for row in rows("bodies.md")]
    assert len(set(bodies)) == len(bodies) > 90
    for row in rows("bodies.md"):
        assert re.fullmatch(r"RFC [0-9]{4} §[0-9]+(\.[0-9]+)*", row["Clause"]), row


@pytest.mark.parametrize("row", GOOD, ids=str)
def test_not_done_before_the_last_byte(row: Row) -> None:
    body = row.data("Body")
    decoder = ChunkedDecoder()
    for byte in body[:-1]:
        decoder.feed(bytes([byte]))
        assert not decoder.done
    assert decoder.feed(body[-1:]) == []
    assert decoder.done


@pytest.mark.parametrize("row", BAD, ids=str)
def test_refused(row: Row) -> None:
    with pytest.raises(BodyError) as caught:
        decode([row.data("Body")])
    assert caught.value.reason.name == "bad_chunk"
    assert isinstance(caught.value, HeadError)


@pytest.mark.parametrize("row", BAD, ids=str)
def test_refused_byte_by_byte(row: Row) -> None:
    body = row.data("Body")
    whole = outcome([body])
    assert isinstance(whole, str)
    assert outcome([body[position : position + 1] for position in range(len(body))]) == whole


def test_a_refusal_never_quotes_the_body() -> None:
    for body in (b"s3cret\r\n", b"1;s3cret\0\r\n", b"1\r\nas3cret\r\n", b"0\r\ns3cret\r\n\r\n"):
        with pytest.raises(BodyError) as caught:
            decode([body])
        assert "s3cret" not in caught.value.detail


@pytest.mark.parametrize("row", GOOD + BAD, ids=str)
def test_any_two_cuts_change_nothing(row: Row) -> None:
    body = row.data("Body")[:60] + b"GET /"
    whole = outcome([body])
    for first in range(len(body) + 1):
        for second in range(first, len(body) + 1):
            assert outcome([body[:first], body[first:second], body[second:]]) == whole


PIECES = [b"0", b"1", b"5", b"a", b"\r\n", b"\r", b"\n", b";", b" ", b":", b"\0", b"X: y", b"hello"]
PIECES += [b"0\r\n\r\n", b"5\r\nhello\r\n"]


@CALM
@given(
    st.lists(st.sampled_from(PIECES), max_size=25).map(b"".join),
    st.lists(st.integers(0, 100), max_size=10),
)
def test_no_split_changes_anything(body: bytes, cuts: list[int]) -> None:
    cuts = sorted(min(cut, len(body)) for cut in cuts)
    pieces = [body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    assert outcome(pieces) == outcome([body])


@CALM
@given(st.binary(max_size=60), st.lists(st.integers(0, 60), max_size=6))
def test_no_split_of_any_bytes_changes_anything(body: bytes, cuts: list[int]) -> None:
    cuts = sorted(min(cut, len(body)) for cut in cuts)
    pieces = [body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    assert outcome(pieces) == outcome([body])


@CALM
@given(st.lists(st.binary(min_size=1, max_size=50), max_size=6), st.data())
def test_what_was_encoded_is_decoded(contents: list[bytes], data: st.DataObject) -> None:
    body = b"".join(map(encode_chunk, contents)) + LAST_CHUNK
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=6)))
    pieces = [body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    assert decode(pieces) == (b"".join(contents), True, b"")


def test_the_content_before_a_mistake_is_a_beginning_of_what_was_sent() -> None:
    """How much of it comes out depends on the pieces; nothing that is not in it ever does."""
    body = b"5\r\nhello\r\n5\r\nworld\r\nx\r\n"
    for cut in range(len(body)):
        decoder = ChunkedDecoder()
        content = b"".join(decoder.feed(body[:cut]))
        assert b"helloworld".startswith(content)
        with pytest.raises(BodyError):
            decoder.feed(body[cut:])


def test_content_is_handed_on_as_it_comes() -> None:
    decoder = ChunkedDecoder()
    assert decoder.feed(b"a\r\nhel") == [b"hel"]
    assert decoder.feed(b"lo") == [b"lo"]
    assert decoder.feed(b"world\r\n3\r\n...\r") == [b"world", b"..."]
    assert decoder.feed(b"") == []
    assert not decoder.done


def test_the_rest_adds_up() -> None:
    decoder = ChunkedDecoder()
    decoder.feed(b"0\r\n\r\nGET")
    assert decoder.feed(b" /") == []
    assert decoder.rest == b"GET /"


def test_the_limits_are_exact() -> None:
    size_line = b"0;" + b"a" * (MAX_SIZE_LINE - 4) + b"\r\n"
    assert len(size_line) == MAX_SIZE_LINE
    assert decode([size_line + b"\r\n"]) == (b"", True, b"")
    assert isinstance(outcome([b"0" + size_line + b"\r\n"]), str)
    trailer = b"X: " + b"y" * (MAX_TRAILERS - 5) + b"\r\n"
    assert len(trailer) == MAX_TRAILERS
    assert decode([b"0\r\n" + trailer + b"\r\n"]) == (b"", True, b"")
    assert isinstance(outcome([b"0\r\nX" + trailer + b"\r\n"]), str)
    half = b"X: " + b"y" * (MAX_TRAILERS // 2 - 5) + b"\r\n"
    assert decode([b"0\r\n" + half * 2 + b"\r\n"]) == (b"", True, b"")
    assert isinstance(outcome([b"0\r\n" + half * 2 + b"X:\r\n\r\n"]), str)
    # The largest size there is: a petabyte that never comes.
    decoder = ChunkedDecoder()
    assert decoder.feed(b"fffffffffffffff\r\nabc") == [b"abc"]
    assert not decoder.done


def test_framing_is_bounded_by_what_it_frames() -> None:
    """Go's net/http let a body of a megabyte cost a gigabyte of extensions (CVE-2023-39326)."""
    line = b"1;" + b"a" * 1013
    chunk = line + b"\r\nx\r\n"
    # Each is 1000 bytes more than is fair.
    times = MAX_EXCESS // (len(line) + 2 - 16 - 2)
    assert decode([chunk * times + END]) == (b"x" * times, True, b"")
    assert isinstance(outcome([chunk * (times + 1) + END]), str)
    # Content excuses framing.
    fair = b"200;" + b"a" * 1000 + b"\r\n" + b"x" * 512 + b"\r\n"
    assert decode([fair * 100 + END])[1]


def test_trailers_go_on_behind_the_last_chunk() -> None:
    assert last_chunk(b"") == LAST_CHUNK
    decoder = ChunkedDecoder()
    decoder.feed(b"0\r\nDigest:x\r\n")
    decoder.feed(b"Via: y\r\n\r\n")
    again = last_chunk(decoder.trailers)
    assert again == b"0\r\nDigest: x\r\n\r\n"
    assert decode([again]) == (b"", True, b"")


def test_a_large_body_costs_what_it_weighs() -> None:
    """Many chunks in one piece, and one chunk in many pieces."""
    start = time.process_time()
    assert len(decode([b"1\r\nx\r\n" * 50_000 + END])[0]) == 50_000
    assert len(decode([b"186a0\r\n", *[b"x"] * 100_000, b"\r\n" + END])[0]) == 100_000
    assert time.process_time() - start < 2


def test_a_chunk_is_written_in_hexadecimal() -> None:
    assert encode_chunk(b"x" * 26) == b"1a\r\n" + b"x" * 26 + b"\r\n"
    assert LAST_CHUNK == b"0\r\n\r\n"


@pytest.mark.parametrize(
    "name",
    [
        *(
            b"X-HTTP-Method-Override",
            b"X_HTTP_Method_Override",
            b"X-Original-URL",
            b"X-Rewrite-URL",
        ),
        *(b"X_Forwarded_For", b"X_Egress_Error"),
    ],
)
def test_a_trailer_that_a_server_might_obey_is_dropped(name: bytes) -> None:
    decoder = ChunkedDecoder()
    decoder.feed(b"0\r\n" + name + b": evil\r\nX-Checksum: 1\r\n\r\n")
    assert decoder.done
    assert decoder.trailers == b"X-Checksum: 1\r\n"


@pytest.mark.parametrize("name", [b"X_Tenant_ID", b"Content_Length", b"Idempotency_Key"])
def test_a_forbidden_trailer_with_underscores(name: bytes) -> None:
    with pytest.raises(BodyError):
        ChunkedDecoder().feed(b"0\r\n" + name + b": 1\r\n\r\n")
