"""Chunked message bodies (RFC 9112 §7.1): framing bytes to content, strictly, whatever the pieces they arrive in.

Content is handed on in new chunks of our own. Chunk extensions end here (RFC 9112 §7.1.1). Trailers never become
headers: those that may stand there are given out behind the last chunk, to be passed on in the same place.
"""

from __future__ import annotations

import re
from enum import Enum

from egress_proxy.core import reasons
from egress_proxy.core.errors import BodyError
from egress_proxy.core.fields import QUOTED, TOKEN, parse_trailer

# chunk-size and chunk-ext (RFC 9112 §7.1, §7.1.1), without the white space that §7.1.1 has for old senders: parsers
# differ about it. 15 digits hold a petabyte and cannot overflow anybody's 64 bits.
_SIZE_LINE = re.compile(
    rb"([0-9A-Fa-f]{1,15})(?:;" + TOKEN + rb"(?:=(?:" + TOKEN + rb"|" + QUOTED + rb"))?)*+"
)

#: Bytes of one chunk-size line with its extensions.
MAX_SIZE_LINE = 1024
#: Bytes of all trailers together.
MAX_TRAILERS = 8192
#: Bytes of framing that a body may have beyond what :data:`_FAIR_FRAMING` and its content excuse.
MAX_EXCESS = 16 * 1024
# Bytes of framing that each chunk may have. Chunks of one byte with long extensions would make a body cost a thousand
# times its content.
_FAIR_FRAMING = 16

LAST_CHUNK = b"0\r\n\r\n"


class _State(Enum):
    SIZE = "size"
    DATA = "data"
    DATA_END = "data end"
    TRAILER = "trailer"
    DONE = "done"


class ChunkedDecoder:
    """Takes framing bytes as they come and gives the content back."""

    __slots__ = ("_excess", "_line", "_remaining", "_state", "_trailers", "rest", "trailers")

    def __init__(self) -> None:
        self._state = _State.SIZE
        self._line = b""
        self._remaining = 0
        self._trailers = 0
        self._excess = 0
        self.rest = b""
        """What came after the end of the body: the beginning of the next message."""
        self.trailers = b""
        """Trailer lines that may be sent on, for :func:`last_chunk`; all of them once the body is done."""

    @property
    def done(self) -> bool:
        """Whether the last chunk and its trailers have been seen."""
        return self._state is _State.DONE

    def feed(self, data: bytes) -> list[bytes]:
        """The content in these framing bytes, in pieces that are not copied together.

        Raises BodyError with the reason bad_chunk.
        """
        pieces: list[bytes] = []
        position = 0
        while position < len(data):
            if self._state is _State.DATA:
                piece = data[position : position + self._remaining]
                pieces.append(piece)
                position += len(piece)
                self._remaining -= len(piece)
                if self._remaining == 0:
                    self._state = _State.DATA_END
                continue
            if self._state is _State.DONE:
                self.rest += data[position:]
                break
            line, position = self._read_line(data, position)
            if line is not None:
                self._take_line(line)
        return pieces

    def _read_line(self, data: bytes, position: int) -> tuple[bytes | None, int]:
        """The next line without CRLF, once it is whole."""
        limit = MAX_TRAILERS if self._state is _State.TRAILER else MAX_SIZE_LINE
        end = data.find(b"\n", position, position + limit + 2)
        self._line += (
            data[position : end + 1] if end >= 0 else data[position : position + limit + 2]
        )
        if len(self._line) > limit:
            raise BodyError(reasons.BAD_CHUNK, "a line of the chunked framing is too long")
        if end < 0:
            return None, len(data)
        if not self._line.endswith(b"\r\n"):
            raise BodyError(reasons.BAD_CHUNK, "a line of the chunked framing ends with LF alone")
        line, self._line = self._line[:-2], b""
        return line, end + 1

    def _take_line(self, line: bytes) -> None:
        if self._state is _State.SIZE:
            match = _SIZE_LINE.fullmatch(line)
            if match is None:
                raise BodyError(reasons.BAD_CHUNK, "a chunk size is not a hexadecimal number")
            self._remaining = int(match[1], 16)
            self._excess += len(line) - _FAIR_FRAMING - 2 * self._remaining
            if self._excess < 0:
                self._excess = 0
            elif self._excess > MAX_EXCESS:
                raise BodyError(reasons.BAD_CHUNK, "the chunked framing is larger than its content")
            self._state = _State.DATA if self._remaining else _State.TRAILER
        elif self._state is _State.DATA_END:
            if line:
                raise BodyError(reasons.BAD_CHUNK, "a chunk does not end where its size says")
            self._state = _State.SIZE
        elif not line:
            self._state = _State.DONE
        else:
            self._trailers += len(line) + 2
            trailer = parse_trailer(line + b"\r\n")
            if self._trailers > MAX_TRAILERS or trailer is None:
                raise BodyError(
                    reasons.BAD_CHUNK, "the trailers are malformed, too large, or no trailers"
                )
            self.trailers += trailer


def encode_chunk(piece: bytes) -> bytes:
    """One chunk that carries a piece, which is not empty."""
    return b"%x\r\n%s\r\n" % (len(piece), piece)


def last_chunk(trailers: bytes) -> bytes:
    """The last chunk, with the trailer lines that go behind it."""
    return b"0\r\n%b\r\n" % trailers
