"""Ours against two parsers that others wrote: llhttp (through httptools, the parser of Node.js) and h11.

Smuggling needs two readers that differ. So whatever ours takes, both others take as well, with the same method, target,
fields and body; where they differ among themselves, ours refuses. Every exception is named in this file.
"""

# ruff: noqa: E501 - a row of the tables is one line, however long its bytes are.

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import h11
import httptools
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from egress_proxy.core.body import ChunkedDecoder
from egress_proxy.core.errors import BodyError, HeadError
from egress_proxy.core.http1 import (
    Framing,
    ProxyRequest,
    ResponseHead,
    client_response,
    origin_request,
    parse_head,
    parse_request,
    parse_response,
)
from tests.core.http_tables import LIMITS, Row, rows

CALM = settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])

# llhttp knows these methods and no others; about the rest it cannot say anything.
LLHTTP_METHODS = frozenset(
    [
        "ACL",
        "BIND",
        "CHECKOUT",
        "CONNECT",
        "COPY",
        "DELETE",
        "GET",
        "HEAD",
        "LINK",
        "LOCK",
        "M-SEARCH",
        "MERGE",
        "MKACTIVITY",
        "MKCALENDAR",
        "MKCOL",
        "MOVE",
        "NOTIFY",
        "OPTIONS",
        "PATCH",
        "POST",
        "PROPFIND",
        "PROPPATCH",
        "PURGE",
        "PUT",
        "QUERY",
        "REBIND",
        "REPORT",
        "SEARCH",
        "SUBSCRIBE",
        "TRACE",
        "UNBIND",
        "UNLINK",
        "UNLOCK",
        "UNSUBSCRIBE",
    ]
)


# RFC 9110 §5.5: a tab behind a value is no part of it. llhttp takes it for part of the coding's name: it refuses such a
# request, and reads such an answer until the connection closes. Ours follows the RFC and sends no such tab on.
TAB_BEHIND_CODING = re.compile(rb"\r\nTransfer-Encoding:[^\r]*\t *\r\n", re.IGNORECASE)


@dataclass
class Reading:
    """What a parser understood."""

    start: tuple[bytes, ...] = ()
    """Method, target, version; or status, reason, version."""
    fields: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""
    trailers: list[tuple[bytes, bytes]] = field(default_factory=list)
    complete: bool = False
    """Whether the whole message is there."""
    tunnel: bool = False
    """Whether what follows is no HTTP."""
    error: str = ""

    def same_fields(self) -> list[tuple[bytes, bytes]]:
        # h11 lower-cases the value of Transfer-Encoding, the one value that any of them changes.
        return [
            (name, value.lower() if name.lower() == b"transfer-encoding" else value)
            for name, value in self.fields
        ]


class _Callbacks:
    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self.text = b""
        self.in_trailers = False

    def on_url(self, url: bytes) -> None:
        self.text += url

    def on_status(self, status: bytes) -> None:
        self.text += status

    def on_header(self, name: bytes, value: bytes) -> None:
        # llhttp leaves white space at the end of a value to its caller (RFC 9110 §5.5: not part of it).
        fields = self.reading.trailers if self.in_trailers else self.reading.fields
        fields.append((name, value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        self.in_trailers = True

    def on_body(self, body: bytes) -> None:
        self.reading.body += body

    def on_message_complete(self) -> None:
        self.reading.complete = True


def by_llhttp(data: bytes, *, response: bool = False) -> Reading:
    reading = Reading()
    callbacks = _Callbacks(reading)
    kind = httptools.HttpResponseParser if response else httptools.HttpRequestParser
    parser = kind(callbacks)
    try:
        parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        reading.tunnel = True
    except httptools.HttpParserError as error:
        reading.error = repr(error)
        return reading
    version = parser.get_http_version().encode()
    if isinstance(parser, httptools.HttpRequestParser):
        reading.start = (parser.get_method(), callbacks.text, version)
    else:
        reading.start = (b"%d" % parser.get_status_code(), callbacks.text, version)
    return reading


def by_h11(data: bytes, *, response: bool = False, method: bytes = b"GET") -> Reading:
    reading = Reading()
    connection = h11.Connection(h11.CLIENT if response else h11.SERVER)
    if response:
        connection.send(h11.Request(method=method, target=b"/", headers=[(b"host", b"h")]))
        connection.send(h11.EndOfMessage())
    try:
        connection.receive_data(data)
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Request):
                reading.start = (event.method, event.target, event.http_version)
                reading.fields = list(event.headers.raw_items())
            elif isinstance(event, h11.Response | h11.InformationalResponse):
                reading.start = (b"%d" % event.status_code, bytes(event.reason), event.http_version)
                reading.fields = list(event.headers.raw_items())
                reading.complete = isinstance(event, h11.InformationalResponse)
            elif isinstance(event, h11.Data):
                reading.body += event.data
            elif isinstance(event, h11.EndOfMessage):
                reading.complete = True
                reading.trailers = list(event.headers.raw_items())
            else:
                reading.tunnel = event is h11.PAUSED and not reading.complete
                return reading
    except h11.RemoteProtocolError as error:
        reading.error = repr(error)
        return reading


def body_for(framing: Framing, length: int) -> tuple[bytes, bytes, bool]:
    """Bytes to follow a head, the content in them, and whether the message is complete with them."""
    if framing is Framing.CHUNKED:
        return b"3\r\nabc\r\n0\r\n\r\n", b"abc", True
    if framing is Framing.LENGTH:
        return b"x" * min(length, 50), b"x" * min(length, 50), length <= 50
    if framing is Framing.UNTIL_CLOSE:
        return b"xyz", b"xyz", False
    return b"", b"", True


def reading_of(head: ProxyRequest | ResponseHead, data: bytes) -> Reading:
    """Ours, as the others would say it."""
    if isinstance(head, ProxyRequest):
        version = b"1.%d" % head.minor
        start = (head.method.encode(), parse_head(data, LIMITS).target, version)
    else:
        start = (b"%d" % head.status, head.status_line[13:], head.status_line[5:8])
    return Reading(start, [(name, value) for _, name, value in head.fields])


def compare_request(data: bytes) -> bool:
    """Whether ours takes the head; if so, the others agree."""
    try:
        request = parse_request(data, LIMITS)
    except HeadError:
        return False
    ours = reading_of(request, data)
    sent, content, complete = body_for(request.framing, request.length)
    readings = {"h11": by_h11(data + sent)}
    if request.method in LLHTTP_METHODS and not TAB_BEHIND_CODING.search(data):
        readings["llhttp"] = by_llhttp(data + sent)
    for name, theirs in readings.items():
        assert theirs.error == "", (name, theirs, data)
        assert theirs.start == ours.start, (name, data)
        assert theirs.same_fields() == ours.same_fields(), (name, data)
        # RFC 9110 §7.8: the proxy ignores Upgrade, so what follows is a body to us, and for llhttp another protocol.
        if not (name == "llhttp" and theirs.tunnel and not request.is_connect):
            assert (theirs.body, theirs.complete) == (content, complete), (name, data)
    # What goes on to the origin is read alike too.
    if not request.is_connect:
        again = by_h11(origin_request(request) + sent)
        assert (again.error, again.body, again.complete) == ("", content, complete), data
        assert again.start == (ours.start[0], request.path, b"1.1")
        if request.method in LLHTTP_METHODS:
            again = by_llhttp(origin_request(request) + sent)
            assert (again.error, again.body, again.complete) == ("", content, complete), data
            assert again.start == (ours.start[0], request.path, b"1.1")
    return True


def compare_response(data: bytes) -> bool:
    """Whether ours takes the head of an answer to GET; if so, the others agree."""
    try:
        response = parse_response(data, "GET", LIMITS)
    except HeadError:
        return False
    ours = reading_of(response, data)
    sent, content, complete = body_for(response.framing, response.length)
    # What goes on to the client is read alike.
    told = client_response(response, response.framing, keep_alive=True)
    for read in (by_h11, by_llhttp):
        theirs = read(told + sent, response=True)
        assert (theirs.error, theirs.body, theirs.complete) == ("", content, complete), data
        assert theirs.start == (*ours.start[:2], b"1.1"), data
    names = {lower for lower, _, _ in response.fields}
    if response.framing is Framing.NONE and names & {b"content-length", b"transfer-encoding"}:
        # RFC 9112 §6.3 rule 1: an answer without body ends with its head, whatever stands there. h11 reads it all.
        return True
    readings = {"h11": by_h11(data + sent, response=True)}
    if not TAB_BEHIND_CODING.search(data):
        readings["llhttp"] = by_llhttp(data + sent, response=True)
    for name, theirs in readings.items():
        assert theirs.error == "", (name, theirs, data)
        assert theirs.start == ours.start, (name, data)
        assert theirs.same_fields() == ours.same_fields(), (name, data)
        assert theirs.body == content, (name, data)
        assert theirs.complete is complete, (name, data)
    return True


REQUESTS = [
    b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com\r\nProxy-Authorization: Basic eA==\r\n\r\n",
    b"CONNECT [2001:db8::1]:443 HTTP/1.0\r\n\r\n",
    b"CONNECT 1.2.3.4:1 HTTP/1.1\r\nhost:1.2.3.4:1\r\nContent-Length: 0\r\n\r\n",
    b"GET http://h/a?b=c HTTP/1.1\r\nHost: h\r\nX:\r\nAccept: a, b\t\r\n\r\n",
    b"GET http://h HTTP/1.0\r\nConnection: keep-alive\r\nX:  \xff \r\n\r\n",
    b"POST http://h:80/ HTTP/1.1\r\nHost: h\r\nContent-Length: 17\r\nExpect: 100-continue\r\n\r\n",
    b"POST http://h/ HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTE: x\r\n\r\n",
    b"OPTIONS http://[::1] HTTP/1.1\r\nHost: [::1]\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
    b"M-SEARCH http://h/ HTTP/1.1\r\nContent-Length: 3\r\nHost: h\r\nConnection: close\r\n\r\n",
]

RESPONSES = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 17\r\nSet-Cookie: a; b\r\nset-cookie:c\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX:\r\nConnection: keep-alive\r\n\r\n",
    b"HTTP/1.0 404 Not Found\r\nContent-Type: text/html \r\n\r\n",
    b"HTTP/1.1 500 \r\nX: \xff\xfe\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\nDate: x\r\n\r\n",
    b"HTTP/1.1 304 x\r\nContent-Length: 9\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n",
]

# What parsers have been known to read differently: separators, white space, controls, signs, quotes, letters of other sets.
BYTES = [
    bytes([byte])
    for byte in b"\0\t\n\x0b\x0c\r\x1b !\"#%'(),-./059:;<=>?@AXaex[\\]^_`{|}~\x7f\x80\x85\xa0\xff"
]


def mutations(data: bytes) -> Iterator[bytes]:
    """One byte replaced, put in, left out or doubled, at every place."""
    for position in range(len(data)):
        before, byte, after = data[:position], data[position : position + 1], data[position + 1 :]
        yield before + after
        yield before + byte + byte + after
        for other in BYTES:
            yield before + other + after
            yield before + other + byte + after
    lines = data.split(b"\r\n")[:-2]
    for line in lines[1:]:
        for place in range(1, len(lines) + 1):
            yield b"\r\n".join([*lines[:place], line, *lines[place:], b"", b""])


@pytest.mark.parametrize("seed", REQUESTS)
def test_mutated_requests(seed: bytes) -> None:
    assert compare_request(seed)
    taken = [compare_request(data) for data in mutations(seed)]
    # Both must have happened, or the test would say nothing.
    assert 100 < sum(taken) < len(taken) - 100


@pytest.mark.parametrize("seed", RESPONSES)
def test_mutated_responses(seed: bytes) -> None:
    assert compare_response(seed)
    taken = [compare_response(data) for data in mutations(seed)]
    assert 100 < sum(taken) < len(taken) - 100


@pytest.mark.parametrize("row", rows("requests.md"), ids=str)
def test_requests_of_the_table(row: Row) -> None:
    assert compare_request(row.message) is not row.section.startswith("Refused")


@pytest.mark.parametrize("row", rows("responses.md"), ids=str)
def test_answers_of_the_table(row: Row) -> None:
    taken = compare_response(row.message)
    if row.section.startswith("Refused"):
        assert not taken
    elif row.cells.get("Method", "GET") == "GET" and b" 101 " not in row.message:
        assert taken


@pytest.mark.parametrize("row", rows("bodies.md"), ids=str)
def test_bodies_of_the_table(row: Row) -> None:
    assert compare_body(row.data("Body"), [row.data("Body")]) is (row.section == "Taken")


def test_where_the_others_differ_ours_refuses() -> None:
    """Heads about which the other two do not agree, or where a message ends: what smuggling is made of."""
    split = 0
    for row in rows("requests.md"):
        data = row.message
        if data.partition(b" ")[0].decode("latin-1") not in LLHTTP_METHODS:
            continue
        h11s, llhttps = by_h11(data), by_llhttp(data)
        agree = bool(h11s.error) == bool(llhttps.error) and h11s.complete == llhttps.complete
        # llhttp leaves what is behind an Upgrade field to its caller, who may ignore it (RFC 9110 §7.8), as ours does.
        if not agree and not llhttps.tunnel and not TAB_BEHIND_CODING.search(data):
            split += 1
            with pytest.raises(HeadError):
                parse_request(data, LIMITS)
    assert split > 40


class Slots:
    """Draws the parts of a message: the usual ones, but odd ones in at most two places."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.odd = draw(st.sets(st.integers(0, 15), max_size=2))
        self.number = -1
        self.regular = True
        """Whether no odd part was drawn."""

    def __call__(self, usual: list[bytes], odd: list[bytes]) -> bytes:
        self.number += 1
        self.regular &= self.number not in self.odd
        return self.draw(st.sampled_from(odd if self.number in self.odd else usual))

    def end(self) -> bytes:
        return self(
            [b"\r\n"], [b"\n", b"\r", b"\r\r\n", b"\r\n ", b" \r\n", b"\t\r\n", b"\r\n\r\n", b""]
        )

    def fields(self) -> bytes:
        lines = [
            self(
                [b"X: ", b"Accept:", b"Content-Length: ", b"Transfer-Encoding:", b"Connection: \t", b"content-length:"],
                [b"Host: ", b"X : ", b" X: ", b":", b"X", b"X\0:", b"Upgrade:", b"Expect: ", b"Transfer_Encoding: ", b"TE: ", b"X\xff:",
                 b"Transfer-Encoding\t:", b"Content-Length: ,", b"X: y\rTransfer-Encoding: "],
            )
            for _ in range(self.draw(st.integers(0, 2)))
        ]  # fmt: skip
        return b"".join(line + self.value(line) + self.end() for line in lines)

    def value(self, name: bytes) -> bytes:
        usual = [b"x", b"", b"a\tb", b"\xff"]
        if name.lower().startswith(b"content"):
            usual = [b"0", b"5", b"05"]
        elif name.startswith(b"Transfer"):
            usual = [b"chunked", b"Chunked"]
        elif name.startswith(b"Connection"):
            usual = [b"close", b"keep-alive", b"upgrade, x"]
        return self(
            usual,
            [b"", b"+5", b"5,5", b"5 5", b"5\x0b", b"gzip, chunked", b"\x0bchunked", b"chunked,", b"identity", b"100-continue", b"a\0",
             b'"x"', b"99999999999999999999", b"x\r\n y", b"x\rY: z", b"x\nY: z"],
        )  # fmt: skip


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    slot = Slots(draw)
    method = draw(st.sampled_from([b"GET", b"POST", b"CONNECT", b"OPTIONS", b"QUERY", b"X|Y"]))
    connect = method == b"CONNECT"
    authority = slot(
        [b"h:443", b"[::1]:443", b"1.2.3.4:80", b"A.b.:1"] if connect else [b"h", b"h:80", b"[::1]", b"[::1]:8080", b"127.1"],
        [b"h:", b"h:0", b"u@h:443", b"h:+443", b"h:0443", b"[::1]]:443", b"a b:443", b"h%00:443", b"\xe9:443", b"h\\g:443", b":443",
         b"h,g:443"],
    )  # fmt: skip
    target = authority
    if not connect:
        target = (
            slot([b"http://", b"HTTP://"], [b"https://", b"http:/", b"", b"//", b"http:\\\\"])
            + authority
        )
        target += slot(
            [b"/", b"", b"/a?b", b"?q", b'/"<>{}|^`'],
            [b"#f", b"/#", b"/ x", b"/\x7f", b"\\", b"*", b"/\0"],
        )
    version = slot(
        [b"HTTP/1.1", b"HTTP/1.0"],
        [b"HTTP/1.2", b"HTTP/2.0", b"http/1.1", b"HTTP/1.", b"HTTP/01.1", b""],
    )
    line = (
        method
        + slot([b" "], [b"  ", b"\t", b"", b"\x0c"])
        + target
        + slot([b" "], [b"  ", b"\t", b"\xa0"])
        + version
    )
    host = slot(
        [b"Host: " + authority + b"\r\n"],
        [b"", b"Host: g\r\n", b"Host: \r\n", b"host:" + authority + b"\r\n"],
    )
    return line + slot.end() + host + slot.fields() + slot.end()


@st.composite
def responses(draw: st.DrawFn) -> bytes:
    slot = Slots(draw)
    line = slot(
        [b"HTTP/1.1 ", b"HTTP/1.0 "],
        [b"HTTP/1.1", b"HTTP/1.1  ", b"HTTP/2 ", b"\r\nHTTP/1.1 ", b"http/1.1 "],
    )
    line += slot(
        [b"200", b"204", b"304", b"404", b"103"],
        [b"099", b"600", b"20", b"2000", b"+20", b"101", b"2\x00"],
    )
    line += slot([b" OK", b" ", b"", b" \xff", b" a  b "], [b"\tOK", b" a\0", b"OK", b" \r"])
    return line + slot.end() + slot.fields() + slot.end()


@CALM
@given(requests())
def test_composed_requests(data: bytes) -> None:
    compare_request(data)


@CALM
@given(responses())
def test_composed_responses(data: bytes) -> None:
    compare_response(data)


# Chunked bodies.

CHUNKED_HEAD = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"


def decode(pieces: list[bytes]) -> tuple[bytes, bool, bytes] | None:
    """Ours: the content, whether it is complete, and what came after it; None where the body is refused."""
    decoder = ChunkedDecoder()
    try:
        content = b"".join(b"".join(decoder.feed(piece)) for piece in pieces)
    except BodyError:
        return None
    return content, decoder.done, decoder.rest


def compare_body(body: bytes, pieces: list[bytes]) -> bool:
    """Whether ours decodes the body to its end; if so, the others find the same content and the same end."""
    result = decode(pieces)
    if result is None or not result[1]:
        return False
    content, _, rest = result
    framed = body[: len(body) - len(rest)]
    decoder = ChunkedDecoder()
    decoder.feed(body)
    for read in (by_h11, by_llhttp):
        theirs = read(CHUNKED_HEAD + framed)
        assert (theirs.error, theirs.body, theirs.complete) == ("", content, True), body
        assert not read(CHUNKED_HEAD + framed[:-1]).complete
        # What goes on of the trailers is among those that they see, in the same order.
        seen = [b"%b: %b" % trailer for trailer in theirs.trailers]
        going = iter(seen)
        assert all(line in going for line in decoder.trailers.split(b"\r\n")[:-1]), body
    return True


BODIES = [
    b"0\r\n\r\n",
    b"5\r\nhello\r\n0\r\n\r\n",
    b"00a\r\nhello worl\r\n1\r\nd\r\n000\r\n\r\n",
    b'A;x=y;q="a b"\r\n0123456789\r\n0;z\r\nX: y\r\nZ:\r\n\r\n',
    b"2\r\n\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
    b"7\r\n0\r\n\r\n5\r\r\n0\r\nT: 1\r\n\r\n",
]


@pytest.mark.parametrize("seed", BODIES)
def test_mutated_bodies(seed: bytes) -> None:
    assert compare_body(seed, [seed])
    taken = [compare_body(data, [data]) for data in mutations(seed)]
    assert 5 < sum(taken) < len(taken) - 5


@st.composite
def bodies(draw: st.DrawFn) -> tuple[bytes, bytes | None]:
    """A body, well-formed but in two places at most; its content if it is well-formed."""
    slot = Slots(draw)
    body = content = b""

    def extension() -> bytes:
        return slot(
            [b"", b";a", b";a=b", b';a="b c"', b';a;b="\\"\xff"'],
            [
                b" ;a",
                b";\xff",
                b';a="b',
                b"; a",
                b";a=b=c",
                b";",
                b"; a = b",
                b" ",
                b";\0",
                b";a\r",
                b"\t",
                b"x",
                b";a\n",
            ],
        )

    for piece in draw(st.lists(st.binary(min_size=1, max_size=40), max_size=4)):
        size = slot(
            [b"%x", b"%X", b"0%x", b"00000%x"],
            [b"0x%x", b"+%x", b" %x", b"1%x", b"0000000000000000%x"],
        ) % len(piece)
        body += size + extension() + slot.end() + piece + slot.end()
        content += piece
    body += slot([b"0", b"00", b"0000"], [b"", b"-0", b"0x0"]) + extension() + slot.end()
    for _ in range(draw(st.integers(0, 2))):
        body += slot(
            [b"X: y\r\n", b"Z:\r\n", b"Via:  z \t\r\n"],
            [
                b"Host: g\r\n",
                b"content-length: 5\r\n",
                b" y\r\n",
                b"X\r\n",
                b"X: \0\r\n",
                b"X : y\r\n",
                b"X: y\n",
            ],
        )
    body += slot.end()
    return body, content if slot.regular else None


@st.composite
def split(draw: st.DrawFn, data: bytes) -> list[bytes]:
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=8)))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


@CALM
@given(st.data())
def test_composed_bodies_at_any_split(data: st.DataObject) -> None:
    body, content = data.draw(bodies())
    after = data.draw(st.sampled_from([b"", b"GET /"]))
    pieces = data.draw(split(body + after))
    taken = compare_body(body + after, pieces)
    if content is not None:
        assert taken
        assert decode(pieces) == (content, True, after)


@pytest.mark.parametrize(
    "body",
    [
        b"5\r\nhello\r\n0\r\n\r\n",
        b"5;a=b\r\nhello\r\n0\r\n\r\n",
        b"5\r\nhello\r\n0\r\nX: y\r\n\r\n",
        b"05\r\nhello\r\n0000\r\n\r\n",
    ],
)
def test_well_formed_bodies_are_taken_at_every_cut(body: bytes) -> None:
    for first in range(len(body) + 1):
        for second in range(first, len(body) + 1):
            pieces = [body[:first], body[first:second], body[second:]]
            assert compare_body(body, pieces)
