"""Chunked bodies: what is taken, what is refused, and that the pieces in which bytes arrive change nothing."""

from __future__ import annotations

import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from egress_proxy.core.body import (
    LAST_CHUNK,
    MAX_SIZE_LINE,
    MAX_TRAILERS,
    ChunkedDecoder,
    encode_chunk,
)
from egress_proxy.core.errors import BodyError, HeadError

CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

END = b"0\r\n\r\n"

# What is said, and the content in it.
GOOD = {
    "empty": (b"0\r\n\r\n", b""),
    "one chunk": (b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
    "two chunks": (b"5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n", b"hello!"),
    "hexadecimal in both cases": (
        b"a\r\n0123456789\r\nB\r\n0123456789a\r\n0\r\n\r\n",
        b"01234567890123456789a",
    ),
    "zeros in front": (b"000000000000005\r\nhello\r\n000000000000000\r\n\r\n", b"hello"),
    "CRLF in the content": (b"4\r\n\r\n\r\n\r\n0\r\n\r\n", b"\r\n\r\n"),
    "framing in the content": (b"5\r\n0\r\n\r\n\r\n0\r\n\r\n", b"0\r\n\r\n"),
    "any byte in the content": (
        b"100\r\n" + bytes(range(256)) + b"\r\n0\r\n\r\n",
        bytes(range(256)),
    ),
    "an extension": (b'5;a=b;c="d e"\r\nhello\r\n0;f\r\n\r\n', b"hello"),
    "an extension after white space (BWS)": (b"5 \t;a\r\nhello\r\n0\r\n\r\n", b"hello"),
    "trailers": (b"5\r\nhello\r\n0\r\nX: y\r\nDigest:z\r\nE:\r\n\r\n", b"hello"),
    "trailers that would change the framing, were they not dropped": (
        b"0\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"",
    ),
}

# The story, and the bytes. Each is refused once enough of it is there.
BAD = {
    "no size": b"\r\n\r\n",
    "a size that is no number": b"x\r\nhello\r\n" + END,
    "a prefix (int() takes it)": b"0x5\r\nhello\r\n" + END,
    "a sign (int() takes it)": b"+5\r\nhello\r\n" + END,
    "a negative size": b"-5\r\nhello\r\n" + END,
    "an underscore (int() takes it)": b"0_5\r\nhello\r\n" + END,
    "a space before the size": b" 5\r\nhello\r\n" + END,
    "a space behind the size": b"5 \r\nhello\r\n" + END,
    "a size of sixteen digits": b"0000000000000005\r\nhello\r\n" + END,
    "a size that is 5 in 64 bits": b"10000000000000005\r\nhello\r\n" + END,
    "a size and more": b"5 5\r\nhello\r\n" + END,
    "digits of another script": "５\r\nhello\r\n".encode() + END,
    "an extension without semicolon": b"5a=b,c\r\nhello\r\n" + END,
    "a control byte in an extension": b"5;a=\0\r\nhello\r\n" + END,
    "bare CR in an extension: a line's end to some (Squid GHSA-j83v-w3p4-5cqh)": b"5;a\rb\r\nhello\r\n"
    + END,
    "bare CR behind the size": b"5\r\r\nhello\r\n" + END,
    "bare LF behind the size (RFC 9112 §2.2 is not about bodies)": b"5\nhello\r\n" + END,
    "bare LF behind an extension: TERM.EXT smuggling": b"5;a\nhello\r\n" + END,
    "bare LF behind the content": b"5\r\nhello\n" + END,
    "nothing behind the content": b"5\r\nhello" + END,
    "a size that is too small": b"4\r\nhello\r\n" + END,
    "a size that is too large": b"6\r\nhello\r\n" + END,
    "two CRLF behind the content": b"5\r\nhello\r\n\r\n" + END,
    "two bytes instead of CRLF: some skip them unread": b"5\r\nhelloXX" + END,
    "bare LF behind the last chunk": b"0\n\r\n",
    "bare LF at the end": b"0\r\n\n",
    "a trailer that is none": b"0\r\nX\r\n\r\n",
    "a trailer with white space before the colon": b"0\r\nX : y\r\n\r\n",
    "a trailer without name": b"0\r\n: y\r\n\r\n",
    "a trailer with a control byte": b"0\r\nX: \0\r\n\r\n",
    "a trailer with bare CR": b"0\r\nX: a\rb\r\n\r\n",
    "a trailer that ends with LF": b"0\r\nX: y\n\r\n",
    "a folded trailer": b"0\r\nX: y\r\n z\r\n\r\n",
    "a request where trailers should be": b"0\r\nGET / HTTP/1.1\r\n\r\n",
    "a size line too long": b"5;" + b"a" * MAX_SIZE_LINE + b"\r\nhello\r\n" + END,
    "a size line without end": b"5;" + b"a" * (MAX_SIZE_LINE + 100),
    "a size of zeros without end": b"0" * (MAX_SIZE_LINE + 100),
    "no line's end behind the content": b"5\r\nhello" + b"a" * (MAX_SIZE_LINE + 100),
    "a trailer too long": b"0\r\nX: " + b"y" * MAX_TRAILERS + b"\r\n\r\n",
    "a trailer without end": b"0\r\nX: " + b"y" * (MAX_TRAILERS + 100),
    "too many trailers": b"0\r\n" + b"X: y\r\n" * (MAX_TRAILERS // 6 + 1) + b"\r\n",
}


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


@pytest.mark.parametrize(("body", "content"), GOOD.values(), ids=GOOD)
def test_taken(body: bytes, content: bytes) -> None:
    assert decode([body]) == (content, True, b"")
    assert decode([body + b"GET / HTTP/1.1\r\n"]) == (content, True, b"GET / HTTP/1.1\r\n")


@pytest.mark.parametrize(("body", "content"), GOOD.values(), ids=GOOD)
def test_not_done_before_the_last_byte(body: bytes, content: bytes) -> None:
    decoder = ChunkedDecoder()
    for byte in body[:-1]:
        decoder.feed(bytes([byte]))
        assert not decoder.done
    assert decoder.feed(body[-1:]) == []
    assert decoder.done


@pytest.mark.parametrize("body", BAD.values(), ids=BAD)
def test_refused(body: bytes) -> None:
    with pytest.raises(BodyError) as caught:
        decode([body])
    assert caught.value.reason.name == "bad_chunk"
    assert isinstance(caught.value, HeadError)


@pytest.mark.parametrize("body", BAD.values(), ids=BAD)
def test_refused_byte_by_byte(body: bytes) -> None:
    whole = outcome([body])
    assert isinstance(whole, str)
    assert outcome([body[position : position + 1] for position in range(len(body))]) == whole


def test_a_refusal_never_quotes_the_body() -> None:
    for body in (b"s3cret\r\n", b"1;s3cret\0\r\n", b"1\r\nas3cret\r\n", b"0\r\ns3cret\r\n\r\n"):
        with pytest.raises(BodyError) as caught:
            decode([body])
        assert "s3cret" not in caught.value.detail


@pytest.mark.parametrize(
    "body", [body for body, _ in GOOD.values()] + [body[:60] for body in BAD.values()]
)
def test_any_two_cuts_change_nothing(body: bytes) -> None:
    body = body[:60] + b"GET /"
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


def test_a_large_body_costs_what_it_weighs() -> None:
    """Many chunks in one piece, and one chunk in many pieces."""
    start = time.process_time()
    assert len(decode([b"1\r\nx\r\n" * 50_000 + END])[0]) == 50_000
    assert len(decode([b"186a0\r\n", *[b"x"] * 100_000, b"\r\n" + END])[0]) == 100_000
    assert time.process_time() - start < 2


def test_a_chunk_is_written_in_hexadecimal() -> None:
    assert encode_chunk(b"x" * 26) == b"1a\r\n" + b"x" * 26 + b"\r\n"
    assert LAST_CHUNK == b"0\r\n\r\n"
