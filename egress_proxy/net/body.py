"""One message body of absolute-form HTTP on its way from a source to a sink, a piece at a time."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from egress_proxy.core.body import ChunkedDecoder, encode_chunk, last_chunk
from egress_proxy.core.errors import BodyError
from egress_proxy.core.http1 import Framing

if TYPE_CHECKING:
    from egress_proxy.core.reason import Reason

Pace = Callable[[int], tuple[int, float]]
"""As :meth:`egress_proxy.limits.limiter.Admission.pace`, of one direction."""

_CHUNK = 64 * 1024
#: Chunks of one body after which the other connections have their turn.
_FAIR_SHARE = range(8)


class SourceError(Exception):
    """The side that sends a body did not send it whole.

    It went away, or ended its side (``ended``), or sent what cannot be understood (``reason``).
    """

    def __init__(self, reason: Reason | None = None, *, ended: bool = False) -> None:
        super().__init__()
        self.reason = reason
        self.ended = ended


class SinkError(Exception):
    """The side that takes a body went away."""


class Body:
    """One message body on its way from a source to a sink, with the head that goes before it."""

    __slots__ = (
        *("_content", "_decoder", "_framing", "_head", "_out", "_remaining", "_sink", "_source"),
        *("_until_close", "_written", "ended", "more", "pace", "rest", "rests"),
    )

    def __init__(
        self,
        source: int,
        sink: int,
        head: bytes,
        early: bytes,
        framing: Framing,
        length: int,
        *,
        until_close: bool = False,
        written: int = 0,
    ) -> None:
        """Early are bytes behind the source's head.

        With until_close the sink is told the end by closing, not by chunks. It may have taken the first bytes, so many,
        already. Raises SourceError.
        """
        self._source = source
        self._sink = sink
        self._head = len(head)
        self._out = head
        self._written = 0
        self._framing = framing
        self._remaining = length
        self._until_close = until_close
        self._decoder = ChunkedDecoder() if framing is Framing.CHUNKED else None
        self._content = 0
        self.ended = framing is Framing.NONE or (framing is Framing.LENGTH and length == 0)
        """Whether all has come from the source."""
        self.more = False
        """Whether the source had more when the body gave up its turn."""
        self.pace: Pace | None = None
        """Says how many bytes may be moved now, where that is limited."""
        self.rests = 0.0
        """Seconds until more may be."""
        self.rest = b""
        """What the source sent behind the body."""
        if self.ended:
            self.rest = early
        elif early:
            self._take(early)
        if written:
            self._written, self._out = written, self._out[written:]

    @property
    def total(self) -> int:
        """Bytes of the body that the sink has taken; of a chunked one, those of its content."""
        if self._decoder is not None:
            return self._content
        return max(self._written - self._head, 0)

    @property
    def written(self) -> int:
        """Bytes that the sink has taken, head and framing among them."""
        return self._written

    @property
    def done(self) -> bool:
        """Whether all has been given to the sink."""
        return self.ended and not self._out

    @property
    def blocked(self) -> bool:
        """Whether the sink takes nothing now."""
        return bool(self._out)

    def pump(self) -> bool:
        """Move bytes until the source is drained, the sink is blocked, the body is done, or its turn is over.

        Returns whether any moved. Raises SourceError, SinkError.
        """
        before = self._written
        self.more, self.rests = False, 0.0
        for _ in _FAIR_SHARE:
            while self._out:
                try:
                    written = os.write(self._sink, self._out)
                except BlockingIOError:
                    return self._written != before
                except OSError:
                    raise SinkError from None
                self._written += written
                self._out = self._out[written:]
            if self.ended:
                return self._written != before
            size = _CHUNK
            if self.pace is not None:
                size, self.rests = self.pace(_CHUNK)
                if not size or self._written != before:
                    # What has passed is counted before more may.
                    self.more = bool(size)
                    return self._written != before
            try:
                data = os.read(self._source, size)
            except BlockingIOError:
                return self._written != before
            except OSError:
                raise SourceError from None
            if data:
                self._take(data)
            elif self._framing is Framing.UNTIL_CLOSE:
                self.ended = True
            else:
                raise SourceError(ended=True)
        self.more = True
        return True

    def _take(self, data: bytes) -> None:
        if self._framing is Framing.LENGTH:
            piece = data[: self._remaining]
            self.rest = data[self._remaining :]
            self._remaining -= len(piece)
            self._out += piece
            self.ended = self._remaining == 0
        elif self._decoder is None:
            self._out += data
        else:
            try:
                pieces = self._decoder.feed(data)
            except BodyError as error:
                raise SourceError(error.reason) from None
            self._content += sum(map(len, pieces))
            self._out += b"".join(pieces if self._until_close else map(encode_chunk, pieces))
            if self._decoder.done:
                self.ended = True
                self.rest = self._decoder.rest
                if not self._until_close:
                    self._out += last_chunk(self._decoder.trailers)
