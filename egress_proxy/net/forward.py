"""Absolute-form HTTP: one request to its origin and the answer back, bodies streamed in both directions at once."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from egress_proxy.core import reason as reasons
from egress_proxy.core.body import LAST_CHUNK, ChunkedDecoder, encode_chunk
from egress_proxy.core.errors import HeadError
from egress_proxy.core.http1 import (
    END_OF_HEAD,
    Framing,
    HeadLimits,
    ProxyRequest,
    client_response,
    origin_request,
    parse_response,
)
from egress_proxy.net.poller import READABLE, WRITABLE, Strand

if TYPE_CHECKING:
    from egress_proxy.config.model import Timeouts
    from egress_proxy.core.reason import Reason

_CHUNK = 64 * 1024


class SourceError(Exception):
    """The side that sends a body went away or sent what cannot be understood."""

    def __init__(self, reason: Reason | None) -> None:
        super().__init__()
        self.reason = reason


class SinkError(Exception):
    """The side that takes a body went away."""


class _Body:
    """One message body on its way, with what goes before it."""

    __slots__ = ("_decoder", "_framing", "_out", "_remaining", "_rechunk", "_sink", "_source", "ended", "rest", "total")

    def __init__(self, source: int, sink: int, head: bytes, early: bytes, framing: Framing, length: int, rechunk: bool):
        self._source = source
        self._sink = sink
        self._out = head
        self._framing = framing
        self._remaining = length
        self._rechunk = rechunk
        self._decoder = ChunkedDecoder() if framing is Framing.CHUNKED else None
        self.ended = framing is Framing.NONE or (framing is Framing.LENGTH and length == 0)
        self.rest = b""
        """What the source sent behind the body."""
        self.total = -len(head)
        if self.ended:
            self.rest = early
        elif early:
            self._take(early)

    @property
    def done(self) -> bool:
        """Whether all has been given to the sink."""
        return self.ended and not self._out

    @property
    def blocked(self) -> bool:
        return bool(self._out)

    def pump(self) -> None:
        """Move bytes until the source is drained, the sink is blocked, or the body is done.

        Raises SourceError, SinkError.
        """
        while True:
            while self._out:
                try:
                    written = os.write(self._sink, self._out)
                except BlockingIOError:
                    return
                except OSError:
                    raise SinkError from None
                self.total += written
                self._out = self._out[written:]
            if self.ended:
                return
            try:
                data = os.read(self._source, _CHUNK)
            except BlockingIOError:
                return
            except OSError:
                raise SourceError(None) from None
            if data:
                self._take(data)
            elif self._framing is Framing.UNTIL_CLOSE:
                self.ended = True
            else:
                raise SourceError(None)

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
            except HeadError as error:
                raise SourceError(error.reason) from None
            self._out += b"".join(map(encode_chunk, pieces) if self._rechunk else pieces)
            if self._decoder.done:
                self.ended = True
                self.rest = self._decoder.rest
                if self._rechunk:
                    self._out += LAST_CHUNK


class Exchange:
    """One request and its answer."""

    def __init__(self, strand: Strand, client: int, origin: int, request: ProxyRequest, early: bytes) -> None:
        self._strand = strand
        self._client = client
        self._origin = origin
        self._request = request
        self._early = early
        self.status: int | None = None
        """Status of the origin's answer once its head has been passed on."""
        self.keep_alive = False
        self.rest = b""
        """What the client sent behind this request."""
        self.sent = 0
        self.received = 0

    async def run(self, limits: HeadLimits, timeouts: Timeouts, keep_alive: bool) -> Reason | None:
        """Carry it through; the reason why it failed, or None. Raises TimeoutError when a body has been idle for too long."""
        request = self._request
        poller = self._strand.poller
        buffer = b""
        download: _Body | None = None
        try:
            upload = _Body(
                self._client, self._origin, origin_request(request), self._early, request.framing, request.length, True
            )
        except SourceError as error:
            return error.reason or reasons.CLIENT_ABORTED
        uploading = True
        deadline = poller.loop.time() + timeouts.response
        while True:
            progress = upload.total
            if uploading:
                try:
                    upload.pump()
                    uploading = not upload.done
                except SinkError:
                    uploading = False
                except SourceError as error:
                    return error.reason or reasons.CLIENT_ABORTED
            self.sent = max(upload.total, 0)
            if upload.total != progress and download is None:
                deadline = poller.loop.time() + timeouts.response
            if download is None:
                eof = False
                while END_OF_HEAD not in buffer and len(buffer) <= limits.size:
                    try:
                        data = os.read(self._origin, _CHUNK)
                    except BlockingIOError:
                        break
                    except OSError:
                        return reasons.ORIGIN_RESET
                    if not data:
                        eof = True
                        break
                    buffer += data
                end = buffer.find(END_OF_HEAD)
                if end < 0:
                    if len(buffer) > limits.size:
                        return reasons.ORIGIN_MALFORMED
                    if eof:
                        return reasons.ORIGIN_MALFORMED if buffer else reasons.ORIGIN_CLOSED
                else:
                    try:
                        response = parse_response(buffer[: end + 4], request.method, limits)
                    except HeadError as error:
                        return error.reason
                    buffer = buffer[end + 4 :]
                    if response.status < 200:
                        if request.minor == 1:
                            await self._send(client_response(response, Framing.NONE, True), deadline)
                        continue
                    framing = response.framing
                    if framing is Framing.CHUNKED and request.minor == 0:
                        framing = Framing.UNTIL_CLOSE
                    self.keep_alive = keep_alive and framing is not Framing.UNTIL_CLOSE and upload.ended
                    head = client_response(response, framing, self.keep_alive)
                    self.status = response.status
                    try:
                        download = _Body(
                            self._origin,
                            self._client,
                            head,
                            buffer,
                            response.framing,
                            response.length,
                            framing is Framing.CHUNKED,
                        )
                    except SourceError:
                        return reasons.ORIGIN_TRUNCATED
                    deadline = poller.loop.time() + timeouts.idle
            if download is not None:
                before = download.total
                try:
                    download.pump()
                except SourceError:
                    return reasons.ORIGIN_TRUNCATED
                except SinkError:
                    return reasons.CLIENT_ABORTED
                finally:
                    self.received = max(download.total, 0)
                if download.done:
                    self.rest = upload.rest
                    return None
                if download.total != before or upload.total != progress:
                    deadline = poller.now + timeouts.idle
            await self._strand.until(READABLE | WRITABLE, deadline)

    async def _send(self, data: bytes, deadline: float) -> None:
        while data:
            try:
                data = data[os.write(self._client, data) :]
            except BlockingIOError:
                await self._strand.until(WRITABLE, deadline)
            except OSError:
                return
