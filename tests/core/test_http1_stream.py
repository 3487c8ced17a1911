"""A connection's bytes as messages, one behind the other: no way to cut the stream changes what is read in it.

The reader here keeps to what the proxy does: it looks for the end of a head, refuses early what can become none, and
counts or decodes the body behind it.
"""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from egress_proxy.core.body import ChunkedDecoder
from egress_proxy.core.errors import HeadError
from egress_proxy.core.http1 import (
    END_OF_HEAD,
    Framing,
    ProxyRequest,
    ResponseHead,
    check_partial,
    parse_request,
    parse_response,
)
from tests.core.http_tables import LIMITS, rows, section
from tests.support.calm import CALM

Event = tuple[str, object]


class Reader:
    """Takes bytes as they come and tells what they say."""

    def __init__(self, *, answers: bool = False) -> None:
        self._answers = answers
        self._buffer = b""
        self._left = 0
        self._decoder: ChunkedDecoder | None = None
        self._to_the_end = False
        self.events: list[Event] = []
        self.refused = False

    def feed(self, data: bytes) -> None:
        try:
            while not self.refused and self._step(data):
                data = b""
        except HeadError:
            # How early is seen what is wrong depends on the pieces, and so may the reason.
            self.refused = True
            self.events.append(("refused", None))

    def _step(self, data: bytes) -> bool:
        """Whether there may be more to read in what has come."""
        self._buffer += data
        if self._to_the_end or self._left:
            piece = self._buffer if self._to_the_end else self._buffer[: self._left]
            self._content(piece)
            self._left = max(self._left - len(piece), 0)
            self._buffer = self._buffer[len(piece) :]
            return bool(self._buffer)
        if self._decoder is not None:
            decoder, taken, self._buffer = self._decoder, self._buffer, b""
            for piece in decoder.feed(taken):
                self._content(piece)
            if decoder.done:
                self.events.append(("trailers", decoder.trailers))
                self._decoder, self._buffer = None, decoder.rest
            return bool(self._buffer)
        end = self._buffer.find(END_OF_HEAD)
        if end < 0:
            if not self._answers and self._buffer:
                check_partial(self._buffer, LIMITS)
            return False
        text, self._buffer = self._buffer[: end + 4], self._buffer[end + 4 :]
        head: ProxyRequest | ResponseHead = (
            parse_response(text, "GET", LIMITS) if self._answers else parse_request(text, LIMITS)
        )
        self.events.append(("head", head))
        if isinstance(head, ProxyRequest) and head.is_connect:
            self._to_the_end = True
        elif head.framing is Framing.CHUNKED:
            self._decoder = ChunkedDecoder()
        else:
            self._left = head.length
            self._to_the_end = head.framing is Framing.UNTIL_CLOSE
        return True

    def _content(self, piece: bytes) -> None:
        if self.events[-1][0] == "content":
            before = self.events.pop()[1]
            assert isinstance(before, bytes)
            piece = before + piece
        if piece:
            self.events.append(("content", piece))


def read(pieces: Iterable[bytes], *, answers: bool = False) -> list[Event]:
    reader = Reader(answers=answers)
    for piece in pieces:
        reader.feed(piece)
    if reader.refused:
        # Of a body that is refused, what had been understood before goes on as it comes.
        while reader.events[-1][0] in {"refused", "content"}:
            reader.events.pop()
            if not reader.events:
                break
        reader.events.append(("refused", None))
    return reader.events


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    places = sorted(min(place, len(stream)) for place in places)
    return [
        stream[start:end] for start, end in zip([0, *places], [*places, len(stream)], strict=True)
    ]


CUTS = st.lists(st.integers(0, 400), max_size=12)

BODIES = [row.data("Body")[:120] for row in rows("bodies.md")]
POST = b"POST http://h/ HTTP/1.1\r\nHost: h\r\n"
REQUESTS = [
    *[row.data("Request")[:400] for row in rows("requests.md") if "Request" in row.cells],
    *[POST + b"Transfer-Encoding: chunked\r\n\r\n" + body for body in BODIES],
    *[POST + b"Content-Length: %d\r\n\r\n" % len(body) + body for body in BODIES],
]
ANSWERS = [
    *[row.data("Answer")[:400] for row in rows("responses.md") if "Answer" in row.cells],
    *[b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body for body in BODIES],
    *[b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body for body in BODIES],
]
GOOD = [
    row.data("Request")
    for row in section("requests.md", "Requests to forward")
    if row["Body"] == "none"
]


@CALM
@given(st.lists(st.sampled_from(REQUESTS), min_size=1, max_size=4).map(b"".join), CUTS)
def test_no_cut_changes_what_a_client_says(stream: bytes, places: list[int]) -> None:
    assert read(cut(stream, places)) == read([stream])


@CALM
@given(st.lists(st.sampled_from(ANSWERS), min_size=1, max_size=4).map(b"".join), CUTS)
def test_no_cut_changes_what_an_origin_says(stream: bytes, places: list[int]) -> None:
    assert read(cut(stream, places), answers=True) == read([stream], answers=True)


@CALM
@given(st.sampled_from(REQUESTS), st.binary(max_size=20), st.integers(0, 400), CUTS)
def test_no_cut_changes_what_a_broken_stream_says(
    stream: bytes, noise: bytes, place: int, places: list[int]
) -> None:
    stream = stream[:place] + noise + stream[place:]
    assert read(cut(stream, places)) == read([stream])


def test_every_message_byte_by_byte() -> None:
    for stream in REQUESTS:
        assert read(bytes([byte]) for byte in stream + b"GET") == read([stream + b"GET"])
    for stream in ANSWERS:
        pieces = [bytes([byte]) for byte in stream + b"HTTP/1.1"]
        assert read(pieces, answers=True) == read([stream + b"HTTP/1.1"], answers=True)


@CALM
@given(st.lists(st.tuples(st.sampled_from(GOOD), st.binary(max_size=30)), max_size=5), CUTS)
def test_pipelined_requests_are_read_one_by_one(
    sent: list[tuple[bytes, bytes]], places: list[int]
) -> None:
    """And no byte of one is in another."""
    stream, expected = b"", list[Event]()
    for head, content in sent:
        chunked = POST + b"Transfer-Encoding: chunked\r\n\r\n"
        stream += head + POST + b"Content-Length: %d\r\n\r\n%b" % (len(content), content)
        stream += chunked + (b"%x\r\n%b\r\n" % (len(content), content) if content else b"")
        stream += b"0\r\nX: y\r\n\r\n"
        said = [("content", content)] if content else []
        expected += [
            ("head", parse_request(head, LIMITS)),
            ("head", parse_request(POST + b"Content-Length: %d\r\n\r\n" % len(content), LIMITS)),
            *said,
            ("head", parse_request(chunked, LIMITS)),
            *said,
            ("trailers", b"X: y\r\n"),
        ]
    assert read(cut(stream, places)) == expected
