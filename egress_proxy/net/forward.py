"""Absolute-form HTTP: one request to its origin and the answer back, bodies streamed in both directions at once."""

from __future__ import annotations

import os
import select
from time import monotonic
from typing import TYPE_CHECKING

from egress_proxy.core import reason as reasons
from egress_proxy.core.body import LAST_CHUNK, ChunkedDecoder, encode_chunk
from egress_proxy.core.errors import BodyError, HeadError
from egress_proxy.core.http1 import (
    END_OF_HEAD,
    Framing,
    HeadLimits,
    ProxyRequest,
    ResponseHead,
    client_response,
    parse_response,
)
from egress_proxy.net.parent import of_parent
from egress_proxy.net.poller import READABLE, WRITABLE, Strand

if TYPE_CHECKING:
    from egress_proxy.config.model import Timeouts
    from egress_proxy.core.reason import Reason

_CHUNK = 64 * 1024
#: Most heads fit; a smaller piece, because what lies behind a head is copied with each.
_HEAD_CHUNK = 16 * 1024
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


class ExchangeError(Exception):
    """The exchange cannot go on; ``reason`` says why."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.name)
        self.reason = reason


class _Body:
    """One message body on its way from a source to a sink, with the head that goes before it."""

    __slots__ = (
        *("_content", "_decoder", "_framing", "_head", "_out", "_remaining", "_sink", "_source"),
        *("_until_close", "_written", "ended", "more", "rest"),
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
        until_close: bool,
    ) -> None:
        """Early are bytes behind the source's head.

        With until_close the sink is told the end by closing, not by chunks. Raises SourceError.
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
        self.rest = b""
        """What the source sent behind the body."""
        if self.ended:
            self.rest = early
        elif early:
            self._take(early)

    @property
    def total(self) -> int:
        """Bytes of the body that the sink has taken; of a chunked one, those of its content."""
        if self._decoder is not None:
            return self._content
        return max(self._written - self._head, 0)

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
        self.more = False
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
            try:
                data = os.read(self._source, _CHUNK)
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
                    self._out += LAST_CHUNK


class Exchange:
    """One request and its answer, on two watched connections."""

    def __init__(
        self,
        strand: Strand,
        client: int,
        origin: int,
        request: ProxyRequest,
        head: bytes,
        early: bytes,
        *,
        to_parent: bool = False,
    ) -> None:
        """Head is what goes to the origin before the request's body; early, what the client sent behind its own.

        With to_parent it is a parent proxy that is taken for the origin here.
        """
        self._strand = strand
        self._client = client
        self._origin = origin
        self._request = request
        self._head = head
        self._early = early
        self._to_parent = to_parent
        self._answer = b""
        self._uploading = True
        self._client_lost = False
        self.status: int | None = None
        """Status of the origin's answer, once its head is on its way to the client."""
        self.keep_alive = False
        """Whether the client's connection can carry another request."""
        self.rest = b""
        """What the client sent behind this request."""
        self.sent = 0
        self.received = 0

    async def run(
        self, limits: HeadLimits, timeouts: Timeouts, *, keep_alive: bool
    ) -> Reason | None:
        """Carry it through; the reason why it failed, or None.

        Raises Interrupted.
        """
        request, poller = self._request, self._strand.poller
        poller.hand_over(self._client, self._on_client)
        try:
            try:
                upload = _Body(
                    *(self._client, self._origin, self._head, self._early),
                    *(request.framing, request.length),
                    until_close=False,
                )
            except SourceError as error:
                raise ExchangeError(error.reason or reasons.CLIENT_ABORTED) from None
            response = await self._answer_to(upload, limits, timeouts)
            await self._hand_back(response, upload, timeouts, keep_alive=keep_alive)
        except ExchangeError as failure:
            before_answer = self._to_parent and self.status is None
            return of_parent(failure.reason) if before_answer else failure.reason
        finally:
            poller.hand_over(self._client, self._strand.wake)
        self.rest = upload.rest
        return None

    def _on_client(self, mask: int) -> None:
        # A reset, which nobody would notice who neither reads from the client nor writes to it.
        if mask & select.EPOLLERR:
            self._client_lost = True
        self._strand.wake(mask)

    async def _answer_to(
        self, upload: _Body, limits: HeadLimits, timeouts: Timeouts
    ) -> ResponseHead:
        """Send the request until the final answer's head has come."""
        deadline = monotonic() + timeouts.idle
        try:
            while True:
                if self._push(upload):
                    deadline = monotonic() + (timeouts.response if upload.done else timeouts.idle)
                response = self._next_head(limits)
                if response is None:
                    await self._wait(deadline, more=upload.more)
                elif response.status >= 200:
                    if response.status == 407 and self._to_parent:
                        # It asks us. The client would show it what it shows us.
                        raise ExchangeError(reasons.PARENT_CREDENTIALS)
                    return response
                else:
                    # RFC 9110 §15.2: HTTP/1.0 knows no interim answers.
                    if self._request.minor:
                        interim = client_response(response, Framing.NONE, keep_alive=True)
                        await self._send(interim, deadline)
                    await self._strand.turn(deadline)
        except TimeoutError:
            origins = upload.done or upload.blocked
            reason = reasons.ORIGIN_TIMEOUT if origins else reasons.IDLE_TIMEOUT
            raise ExchangeError(reason) from None

    async def _hand_back(
        self, response: ResponseHead, upload: _Body, timeouts: Timeouts, *, keep_alive: bool
    ) -> None:
        """Pass the answer on to its end, and the rest of the request meanwhile."""
        framing = response.framing
        if framing is Framing.CHUNKED and self._request.minor == 0:
            framing = Framing.UNTIL_CLOSE
        # What is left of the request's body when the answer is complete would be taken for the
        # next request.
        self.keep_alive = keep_alive and framing is not Framing.UNTIL_CLOSE and upload.ended
        head = client_response(response, framing, keep_alive=self.keep_alive)
        download: _Body | None = None
        try:
            download = _Body(
                *(self._origin, self._client, head, self._answer),
                *(response.framing, response.length),
                until_close=framing is Framing.UNTIL_CLOSE,
            )
            self.status = response.status
            deadline = monotonic() + timeouts.idle
            while True:
                moved = self._push(upload, answered=True)
                moved |= download.pump()
                if download.done:
                    return
                if moved:
                    deadline = monotonic() + timeouts.idle
                await self._wait(deadline, more=download.more or upload.more)
        except SourceError as error:
            malformed = error.reason is not None
            raise ExchangeError(
                reasons.ORIGIN_MALFORMED if malformed else reasons.ORIGIN_TRUNCATED
            ) from None
        except SinkError:
            raise ExchangeError(reasons.CLIENT_ABORTED) from None
        except TimeoutError:
            raise ExchangeError(reasons.IDLE_TIMEOUT) from None
        finally:
            self.received = 0 if download is None else download.total

    def _push(self, upload: _Body, *, answered: bool = False) -> bool:
        """Move some of the request; whether any moved. Raises ExchangeError."""
        if upload.done or not self._uploading:
            return False
        try:
            return upload.pump()
        except SinkError:
            # The origin wants no more of it, and may have said why.
            self._uploading = upload.more = False
            return False
        except SourceError as error:
            if not (answered and error.ended):
                raise ExchangeError(error.reason or reasons.CLIENT_ABORTED) from None
            # The client has seen an answer coming and saves itself the rest.
            self._uploading = upload.more = False
            return False
        finally:
            self.sent = upload.total

    async def _wait(self, deadline: float, *, more: bool) -> None:
        """Wait until something can be moved. Raises TimeoutError, ExchangeError."""
        if more:
            await self._strand.turn(deadline)
        else:
            await self._strand.until(READABLE | WRITABLE, deadline)
        if self._client_lost:
            raise ExchangeError(reasons.CLIENT_ABORTED)

    def _next_head(self, limits: HeadLimits) -> ResponseHead | None:
        """The next response head, or None while it is not there. Raises ExchangeError."""
        while (end := self._answer.find(END_OF_HEAD)) < 0:
            if len(self._answer) > limits.size:
                raise ExchangeError(reasons.ORIGIN_MALFORMED)
            try:
                data = os.read(self._origin, _HEAD_CHUNK)
            except BlockingIOError:
                return None
            except OSError:
                raise ExchangeError(reasons.ORIGIN_RESET) from None
            if not data:
                raise ExchangeError(
                    reasons.ORIGIN_MALFORMED if self._answer else reasons.ORIGIN_CLOSED
                )
            self._answer += data
        head, self._answer = self._answer[: end + 4], self._answer[end + 4 :]
        try:
            return parse_response(head, self._request.method, limits)
        except HeadError as error:
            raise ExchangeError(error.reason) from None

    async def _send(self, data: bytes, deadline: float) -> None:
        """Write an interim answer. Raises ExchangeError, TimeoutError."""
        while data:
            try:
                data = data[os.write(self._client, data) :]
            except BlockingIOError:
                await self._strand.until(WRITABLE, deadline)
            except OSError:
                raise ExchangeError(reasons.CLIENT_ABORTED) from None
