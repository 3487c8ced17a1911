"""HTTP/1.1 as the admin port speaks it: requests one after another, each bounded in size and time.

Heads and chunked bodies are read by the same code that the proxy trusts (:mod:`egress_proxy.core`).
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final

from egress_proxy.core import reasons
from egress_proxy.core.answer import refusal
from egress_proxy.core.body import ChunkedDecoder
from egress_proxy.core.errors import HeadError
from egress_proxy.core.http1 import (
    END_OF_HEAD,
    Framing,
    Head,
    HeadLimits,
    check_partial,
    keeps_alive,
    parse_head,
    request_framing,
)
from egress_proxy.core.reason import Reason

#: Bytes of a body. A target to explain has a few hundred.
MAX_BODY: Final = 65536
#: Seconds for a request to arrive, and for its response to be taken. Clients are near.
REQUEST_TIMEOUT: Final = 10.0
#: Seconds between two requests of a connection: longer than the usual interval between scrapes.
KEEP_ALIVE_TIMEOUT: Final = 75.0
#: Seconds that a connection gets for its last bytes, in either direction.
LINGER_TIMEOUT: Final = 1.0

# Heads of clients here are small; looking for the end of a dripping one costs its square.
_LIMITS: Final = HeadLimits(size=16384, fields=100)
_CHUNK: Final = 65536


@dataclass(frozen=True, slots=True)
class Request:
    """A request whose body has been read."""

    head: Head
    body: bytes
    keep_alive: bool

    @property
    def path(self) -> str:
        """The target without its query; the parser lets visible ASCII pass alone."""
        return self.head.target.partition(b"?")[0].decode("ascii")


@dataclass(frozen=True, slots=True)
class Response:
    """An answer that is no refusal."""

    body: bytes
    content_type: str = "application/json"
    status: HTTPStatus = HTTPStatus.OK
    fields: bytes = b""
    """Further header lines, each with its CRLF."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer with the body that every refusal of this project has."""

    reason: Reason
    detail: str | None = None
    fields: bytes = b""
    """Further header lines, each with its CRLF."""
    request_id: str = field(default_factory=lambda: secrets.token_hex(8))


class Connection:
    """One client of the admin port."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._unread = b""
        self._patience = REQUEST_TIMEOUT

    async def receive(self) -> Request | None:
        """The next request; None where the client wants no more or says nothing.

        Raises HeadError where it cannot be understood or does not arrive in time.
        """
        try:
            async with asyncio.timeout(self._patience):
                self._unread = self._unread or await self._reader.read(_CHUNK)
        except TimeoutError:
            return None
        self._patience = KEEP_ALIVE_TIMEOUT
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT):
                head = await self._head()
                if head is None:
                    return None
                body = await self._body(head)
        except TimeoutError:
            raise HeadError(reasons.HEAD_TIMEOUT, "the request took too long") from None
        return None if body is None else Request(head, body, keeps_alive(head))

    async def send(self, answer: Response | Refusal, *, method: str, keep_alive: bool) -> None:
        """Answer a request of this method. Raises TimeoutError where the client does not take it."""
        if isinstance(answer, Refusal):
            data = refusal(
                answer.reason,
                detail=answer.detail,
                request_id=answer.request_id,
                keep_alive=keep_alive,
                method=method,
                fields=answer.fields,
            )
        else:
            head = (
                f"HTTP/1.1 {answer.status.value} {answer.status.phrase}\r\n"
                f"Content-Type: {answer.content_type}\r\n"
                f"Content-Length: {len(answer.body)}\r\n"
                "Cache-Control: no-store\r\n"
                f"Connection: {'keep-alive' if keep_alive else 'close'}\r\n"
            )
            body = b"" if method == "HEAD" else answer.body
            data = b"%b%b\r\n%b" % (head.encode("ascii"), answer.fields, body)
        self._writer.write(data)
        async with asyncio.timeout(REQUEST_TIMEOUT):
            await self._writer.drain()

    async def linger(self) -> None:
        """Read and forget for a moment what a refused client still sends.

        Closing over unread bytes resets the connection, and the answer is lost (RFC 9112 §9.6).
        """
        self._writer.write_eof()
        left = 16 * MAX_BODY
        try:
            async with asyncio.timeout(LINGER_TIMEOUT):
                while left > 0 and (data := await self._reader.read(_CHUNK)):
                    left -= len(data)
        except TimeoutError:
            pass

    async def close(self) -> None:
        """Close, and wait a moment for the client to take what was sent."""
        self._writer.close()
        try:
            async with asyncio.timeout(LINGER_TIMEOUT):
                await self._writer.wait_closed()
        except OSError:
            self._writer.transport.abort()

    async def _head(self) -> Head | None:
        data = self._unread
        while (end := data.find(END_OF_HEAD)) < 0:
            check_partial(data, _LIMITS)
            more = await self._reader.read(_CHUNK)
            if not more:
                return None
            data += more
        end += len(END_OF_HEAD)
        self._unread = data[end:]
        return parse_head(data[:end], _LIMITS)

    async def _body(self, head: Head) -> bytes | None:
        framing, length = request_framing(head)
        if framing is Framing.NONE:
            return b""
        if length > MAX_BODY:
            raise HeadError(reasons.BODY_TOO_LARGE, f"more than {MAX_BODY} bytes")
        expectations = [value.lower() for value in head.values(b"expect")]
        if expectations == [b"100-continue"] and not self._unread:
            self._writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return await (self._counted(length) if framing is Framing.LENGTH else self._chunked())

    async def _counted(self, length: int) -> bytes | None:
        data = self._unread
        while len(data) < length:
            more = await self._reader.read(_CHUNK)
            if not more:
                return None
            data += more
        self._unread = data[length:]
        return data[:length]

    async def _chunked(self) -> bytes | None:
        decoder = ChunkedDecoder()
        body = b""
        data = self._unread
        while True:
            body += b"".join(decoder.feed(data))
            if len(body) > MAX_BODY:
                raise HeadError(reasons.BODY_TOO_LARGE, f"more than {MAX_BODY} bytes")
            if decoder.done:
                self._unread = decoder.rest
                return body
            data = await self._reader.read(_CHUNK)
            if not data:
                return None
