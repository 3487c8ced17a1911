"""Absolute-form HTTP: one request to its origin and the answer back, bodies streamed in both directions at once."""

from __future__ import annotations

import contextlib
import os
import select
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

from egress_proxy.core import reasons
from egress_proxy.core.errors import HeadError
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
from egress_proxy.net.body import Body, SinkError, SourceError
from egress_proxy.net.parent import of_parent
from egress_proxy.net.poller import (
    CLIENT_READABLE,
    CLIENT_WRITABLE,
    OF_CLIENT,
    READABLE,
    WRITABLE,
)

if TYPE_CHECKING:
    from egress_proxy.config.model import Timeouts
    from egress_proxy.core.reason import Reason
    from egress_proxy.limits.limiter import Admission
    from egress_proxy.net.client import Client

#: Most heads fit; a smaller piece than a body's, because what lies behind a head is copied with each.
_HEAD_CHUNK = 16 * 1024
#: Bodies that are there as soon as so many bytes are.
_OF_KNOWN_LENGTH = (Framing.LENGTH, Framing.NONE)
# Plain names: looking a member up in its Enum is a Python call in 3.11.
_NO_BODY, _UNTIL_CLOSE = Framing.NONE, Framing.UNTIL_CLOSE
#: What ends the wait for an answer: that, or a reset, which nobody would notice who neither reads from the client nor
#: writes to it.
_ANSWERED = READABLE | select.EPOLLERR << OF_CLIENT
_ANYTHING = READABLE | WRITABLE | CLIENT_READABLE | CLIENT_WRITABLE


class ExchangeError(Exception):
    """The exchange cannot go on; ``reason`` says why."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.name)
        self.reason = reason


class Exchange:
    """One request and its answer, on two watched connections.

    Nearly always the request is a head and nothing else, and the answer comes in one piece. Each is then written as it
    is; a :class:`Body` is set up for what takes longer.
    """

    __slots__ = (
        *("_admission", "_answer", "_client", "_counted", "_down", "_download", "_early", "_end"),
        *(
            "_head",
            "_origin",
            "_request",
            "_silent",
            "_strand",
            "_to_parent",
            "_up",
            "_upload",
            "_uploading",
        ),
        *("keep_alive", "received", "rest", "reusable", "sent", "status", "switching", "unheard"),
    )

    def __init__(
        self,
        client: Client,
        origin: int,
        request: ProxyRequest,
        head: bytes,
        early: bytes,
        admission: Admission | None,
        *,
        to_parent: bool,
        silent: bool,
    ) -> None:
        """Head is what goes to the origin before the request's body; early, what the client sent behind its own.

        With to_parent it is a parent proxy that is taken for the origin here. ``silent`` says that the origin has not
        said anything yet, nor ended: all that it says is told by an edge.
        """
        self._strand = client.strand
        self._client = client
        self._origin = origin
        self._request = request
        self._head = head
        self._early = early
        self._to_parent = to_parent
        self._silent = silent
        self._admission = None if admission is None or not admission.metered else admission
        self._counted = (0, 0)
        self._upload: Body | None = None
        self._download: Body | None = None
        self._up = self._down = 0
        """Bytes that went to the origin and to the client, but for those of the bodies above."""
        self._answer = b""
        self._uploading = True
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
        """The origin's 101 and what it has sent behind that; from here on the connections carry another protocol."""
        self.sent = 0
        """Bytes of the request's body that the origin has taken."""
        self.received = 0
        """Bytes of the answer's body that the client has taken."""
        self._end = 0.0

    async def run(
        self, limits: HeadLimits, timeouts: Timeouts, *, keep_alive: bool
    ) -> Reason | None:
        """Carry it through; the reason why it failed, or None.

        Raises Interrupted.
        """
        self._end = monotonic() + timeouts.lifetime
        try:
            self._begin()
            response = await self._answer_to(limits, timeouts)
            if response.status == 101:
                head = client_response(response, Framing.NONE, keep_alive=True)
                self.switching, self.received = head + self._answer, len(self._answer)
                self._down += len(self.switching)
                self._count()
            else:
                await self._hand_back(response, timeouts, keep_alive=keep_alive)
        except ExchangeError as failure:
            before_answer = self._to_parent and self.status is None
            return of_parent(failure.reason) if before_answer else failure.reason
        finally:
            if self._admission is not None:
                # However it has ended, what has passed is paid for.
                with contextlib.suppress(ExchangeError):
                    self._count()
        self.rest = self._early if self._upload is None else self._upload.rest
        return None

    def _begin(self) -> None:
        """Send the head, and set up what comes behind it. Raises ExchangeError."""
        request, head = self._request, self._head
        written = 0
        if request.framing is _NO_BODY:
            try:
                written = os.write(self._origin, head)
            except BlockingIOError:
                pass
            except OSError:
                # It wants nothing of it, and may have said why.
                self._uploading = False
                return
            if written == len(head):
                self._up = written
                return
        try:
            self._upload = Body(
                self._client.fd,
                self._origin,
                head,
                self._early,
                request.framing,
                request.length,
                written=written,
            )
        except SourceError as error:
            raise ExchangeError(error.reason or reasons.CLIENT_ABORTED) from None
        self._limit(self._upload, Direction.UP)

    async def _answer_to(self, limits: HeadLimits, timeouts: Timeouts) -> ResponseHead:
        """Send the request until the final answer's head has come."""
        upload = self._upload
        deadline = monotonic() + (timeouts.response if upload is None else timeouts.idle)
        response: ResponseHead | None = None
        # An answer takes its time: to look for it now would be a call for nothing.
        early = upload is None and self._uploading and self._silent
        try:
            while True:
                if upload is not None and self._push(upload):
                    deadline = monotonic() + (timeouts.response if upload.done else timeouts.idle)
                if not early:
                    response = self._next_head(limits)
                if response is None:
                    early = False
                    if upload is None:
                        # A reset may have come before, while the origin was looked for.
                        if not self._client.edges & select.EPOLLERR:
                            await self._strand.until(_ANSWERED, min(deadline, self._end))
                        if self._client.edges & select.EPOLLERR:
                            raise ExchangeError(reasons.CLIENT_ABORTED)
                    else:
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
            origins = upload is None or upload.done or upload.blocked
            reason = reasons.ORIGIN_TIMEOUT if origins else reasons.IDLE_TIMEOUT
            raise self._out_of_time(reason) from None

    async def _hand_back(
        self, response: ResponseHead, timeouts: Timeouts, *, keep_alive: bool
    ) -> None:
        """Pass the answer on to its end, and the rest of the request meanwhile."""
        upload, answer = self._upload, self._answer
        framing = response.framing
        if self._request.minor == 0 and framing is Framing.CHUNKED:
            framing = _UNTIL_CLOSE
        # What is left of the request's body when the answer is complete would be taken for the
        # next request.
        self.keep_alive = (
            keep_alive and framing is not _UNTIL_CLOSE and (upload is None or upload.ended)
        )
        head = client_response(response, framing, keep_alive=self.keep_alive)
        written = 0
        if upload is None and len(answer) >= response.length and framing in _OF_KNOWN_LENGTH:
            self.status = response.status
            whole = head + answer[: response.length]
            try:
                written = len(whole) - len(self._client.write(whole))
            except ConnectionError:
                raise ExchangeError(reasons.CLIENT_ABORTED) from None
            if written == len(whole):
                self._down += written
                self.received = response.length
                self._count()
                # Bytes behind the answer belong to nothing that was asked.
                self.reusable = response.keep_alive and len(answer) == response.length
                return
        self._client.watch_output()
        download: Body | None = None
        try:
            download = Body(
                self._origin,
                self._client.fd,
                head,
                answer,
                response.framing,
                response.length,
                until_close=framing is _UNTIL_CLOSE,
                written=written,
            )
            self.status = response.status
            self._download = download
            self._limit(download, Direction.DOWN)
            deadline = monotonic() + timeouts.idle
            while True:
                moved = upload is not None and self._push(upload, answered=True)
                moved |= download.pump()
                self.received = download.total
                self._count()
                if download.done:
                    self.reusable = (
                        response.keep_alive
                        and (upload is None or upload.done)
                        and not download.rest
                    )
                    return
                if moved:
                    deadline = monotonic() + timeouts.idle
                rests = (download.rests, 0.0 if upload is None else upload.rests)
                await self._wait(
                    deadline,
                    more=download.more or (upload is not None and upload.more),
                    rests=min(filter(None, rests), default=0.0),
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

    def _push(self, upload: Body, *, answered: bool = False) -> bool:
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

    def _limit(self, body: Body, direction: Direction) -> None:
        """Have a body keep to its tenant's bandwidth."""
        if self._admission is not None and self._admission.paced:
            body.pace = partial(self._admission.pace, direction)

    def _count(self) -> None:
        """Tell what has passed since the last time. Raises ExchangeError when that was the last of a budget."""
        if self._admission is None:
            return
        # Heads count: who pays for bodies alone could say all in headers.
        up = self._up + (0 if self._upload is None else self._upload.written)
        down = self._down + (0 if self._download is None else self._download.written)
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
                await self._strand.until(_ANYTHING, deadline)
            finally:
                timer.cancel()
        else:
            await self._strand.until(_ANYTHING, deadline)
        if self._client.edges & select.EPOLLERR:
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
            return parse_response(head, self._request.method, limits, upgrade=self._request.upgrade)
        except HeadError as error:
            raise ExchangeError(error.reason) from None

    async def _send(self, data: bytes, deadline: float) -> None:
        """Write an interim answer. Raises ExchangeError, TimeoutError."""
        self._down += len(data)
        try:
            while data := self._client.write(data):
                self._client.watch_output()
                await self._strand.until(CLIENT_WRITABLE, deadline)
        except ConnectionError:
            raise ExchangeError(reasons.CLIENT_ABORTED) from None
