"""Chunked message bodies (RFC 9112 §7.1): framing bytes to content, strictly, whatever the pieces they arrive in.

Content is handed on in new chunks of our own; chunk extensions and trailers end here (RFC 9112 §7.1.1, §7.1.2), so no
framing that we did not write reaches the other side.
"""

from __future__ import annotations

import re
from enum import Enum

from egress_proxy.core import reason as reasons
from egress_proxy.core.errors import BodyError

# chunk-size with optional extensions; 15 digits hold a petabyte and cannot overflow anybody's 64 bits.
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t \x21-\x7e\x80-\xff]*)?")
_TRAILER_LINE = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t \x21-\x7e\x80-\xff]*")

#: Bytes of one chunk-size line with its extensions.
MAX_SIZE_LINE = 1024
#: Bytes of all trailers together, which are read only to be dropped.
MAX_TRAILERS = 8192

LAST_CHUNK = b"0\r\n\r\n"


class _State(Enum):
    SIZE = "size"
    DATA = "data"
    DATA_END = "data end"
    TRAILER = "trailer"
    DONE = "done"


class ChunkedDecoder:
    """Takes framing bytes as they come and gives the content back."""

    __slots__ = ("_line", "_remaining", "_state", "_trailers", "rest")

    def __init__(self) -> None:
        self._state = _State.SIZE
        self._line = b""
        self._remaining = 0
        self._trailers = 0
        self.rest = b""
        """What came after the end of the body: the beginning of the next message."""

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
            self._state = _State.DATA if self._remaining else _State.TRAILER
        elif self._state is _State.DATA_END:
            if line:
                raise BodyError(reasons.BAD_CHUNK, "a chunk does not end where its size says")
            self._state = _State.SIZE
        elif not line:
            self._state = _State.DONE
        else:
            self._trailers += len(line) + 2
            if self._trailers > MAX_TRAILERS or _TRAILER_LINE.fullmatch(line) is None:
                raise BodyError(reasons.BAD_CHUNK, "the trailers are malformed or too large")


def encode_chunk(piece: bytes) -> bytes:
    """One chunk that carries a piece, which is not empty."""
    return b"%x\r\n%s\r\n" % (len(piece), piece)
