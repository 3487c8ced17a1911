"""Absolute-form HTTP: one request to its origin and the answer back, bodies streamed in both directions at once."""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

from egress_proxy.core import reason as reasons
from egress_proxy.core.body import ChunkedDecoder, encode_chunk, last_chunk
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
from egress_proxy.core.limits import Direction
from egress_proxy.net.parent import of_parent
from egress_proxy.net.poller import READABLE, WRITABLE, Strand

if TYPE_CHECKING:
    from egress_proxy.config.model import Timeouts
    from egress_proxy.core.reason import Reason
    from egress_proxy.limits.limiter import Admission

Pace = Callable[[int], tuple[int, float]]
"""As :meth:`egress_proxy.limits.limiter.Admission.pace`, of one direction."""

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
        upgrade: bytes | None = None,
        admission: Admission | None = None,
    ) -> None:
        """Head is what goes to the origin before the request's body; early, what the client sent behind its own.

        With to_parent it is a parent proxy that is taken for the origin here. ``upgrade`` is the protocol that the head
        asks the origin to switch to.
        """
        self._strand = strand
        self._client = client
        self._origin = origin
        self._request = request
        self._head = head
        self._early = early
        self._to_parent = to_parent
        self._upgrade = upgrade
        self._admission = None if admission is None or not admission.metered else admission
        self._counted = (0, 0)
        self._upload: _Body | None = None
        self._download: _Body | None = None
        self._interim = 0
        """Bytes that went to the client before the answer."""
        self._answer = b""
        self._uploading = True
        self._client_lost = False
        self.status: int | None = None
        """Status of the origin's answer, once its head is on its way to the client."""
        self.keep_alive = False
        """Whether the client's connection can carry another request."""
        self.rest = b""
        """What the client sent behind this request."""
        self.unheard = True
        """Whether the origin has not said a byte."""
        self.reusable = False
        """Whether the origin's connection can carry another request."""
        self.switching: bytes | None = None
        """What the client must be given before the rest is a tunnel: the head of the origin's 101, and what it sent
        behind."""
        self.sent = 0
        self.received = 0
        self._end = 0.0

    async def run(
        self, limits: HeadLimits, timeouts: Timeouts, *, keep_alive: bool
    ) -> Reason | None:
        """Carry it through; the reason why it failed, or None.

        Raises Interrupted.
        """
        request, poller = self._request, self._strand.poller
        self._end = poller.now + timeouts.lifetime
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
            self._upload = upload
            self._limit(upload, Direction.UP)
            response = await self._answer_to(upload, limits, timeouts)
            if response.status == 101:
                head = client_response(response, Framing.NONE, keep_alive=True)
                self.switching, self.received = head + self._answer, len(self._answer)
                self._interim += len(self.switching)
                self._count()
            else:
                await self._hand_back(response, upload, timeouts, keep_alive=keep_alive)
        except ExchangeError as failure:
            before_answer = self._to_parent and self.status is None
            return of_parent(failure.reason) if before_answer else failure.reason
        finally:
            poller.hand_over(self._client, self._strand.wake)
            # However it has ended, what has passed is paid for.
            with contextlib.suppress(ExchangeError):
                self._count()
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
                    self._count()
                    await self._wait(deadline, more=upload.more, rests=upload.rests)
                elif response.status >= 200 or response.status == 101:
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
            raise self._out_of_time(reason) from None

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
            self._download = download
            self._limit(download, Direction.DOWN)
            deadline = monotonic() + timeouts.idle
            while True:
                moved = self._push(upload, answered=True)
                moved |= download.pump()
                self.received = download.total
                self._count()
                if download.done:
                    # Bytes behind the answer belong to nothing that was asked.
                    self.reusable = response.keep_alive and upload.done and not download.rest
                    return
                if moved:
                    deadline = monotonic() + timeouts.idle
                await self._wait(
                    deadline,
                    more=download.more or upload.more,
                    rests=min(filter(None, (download.rests, upload.rests)), default=0.0),
                )
        except SourceError as error:
            malformed = error.reason is not None
            raise ExchangeError(
                reasons.ORIGIN_MALFORMED if malformed else reasons.ORIGIN_TRUNCATED
            ) from None
        except SinkError:
            raise ExchangeError(reasons.CLIENT_ABORTED) from None
        except TimeoutError:
            raise self._out_of_time(reasons.IDLE_TIMEOUT) from None
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

    def _limit(self, body: _Body, direction: Direction) -> None:
        """Have a body keep to its tenant's bandwidth."""
        if self._admission is not None and self._admission.paced:
            body.pace = partial(self._admission.pace, direction)

    def _count(self) -> None:
        """Tell what has passed since the last time. Raises ExchangeError when that was the last of a budget."""
        if self._admission is None:
            return
        # Heads count: who pays for bodies alone could say all in headers.
        up = 0 if self._upload is None else self._upload.written
        down = self._interim + (0 if self._download is None else self._download.written)
        counted_up, counted_down = self._counted
        self._counted = up, down
        if self._counted != (counted_up, counted_down):
            reason = self._admission.spend(up - counted_up, down - counted_down)
            if reason is not None:
                raise ExchangeError(reason)

    def _out_of_time(self, reason: Reason) -> ExchangeError:
        """This reason, or that the time of all is over: nobody holds a connection by a byte now and then."""
        over = self._strand.poller.now >= self._end
        return ExchangeError(reasons.LIFETIME_EXCEEDED if over else reason)

    async def _wait(self, deadline: float, *, more: bool, rests: float) -> None:
        """Wait until something can be moved, and after so many seconds at most. Raises TimeoutError, ExchangeError."""
        deadline = min(deadline, self._end)
        if more:
            await self._strand.turn(deadline)
        elif rests:
            timer = self._strand.poller.loop.call_later(rests, self._strand.wake, READABLE)
            try:
                await self._strand.until(READABLE | WRITABLE, deadline)
            finally:
                timer.cancel()
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
            self.unheard = False
            self._answer += data
        head, self._answer = self._answer[: end + 4], self._answer[end + 4 :]
        try:
            return parse_response(head, self._request.method, limits, upgrade=self._upgrade)
        except HeadError as error:
            raise ExchangeError(error.reason) from None

    async def _send(self, data: bytes, deadline: float) -> None:
        """Write an interim answer. Raises ExchangeError, TimeoutError."""
        self._interim += len(data)
        while data:
            try:
                data = data[os.write(self._client, data) :]
            except BlockingIOError:
                await self._strand.until(WRITABLE, deadline)
            except OSError:
                raise ExchangeError(reasons.CLIENT_ABORTED) from None
