"""What the supervisor asks of a worker, over a socket that only these two have.

A message is its length in four bytes and MessagePack. Both ends are one release of one program: a worker is started
from where the supervisor was.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
from typing import Any, Final, TypeVar

import msgspec

from egress_proxy.core.errors import EgressProxyError
from egress_proxy.supervise.snapshot import Kept, Snapshot

#: Bytes of the length before each message.
_LENGTH: Final = 4

#: The number of a reply to no question: what a worker has counted, at its end.
LAST: Final = 0

S = TypeVar("S")


class WorkerGone(EgressProxyError):  # noqa: N818 - it says what has happened
    """The worker has ended, or did not answer in time."""


class WorkerFailed(EgressProxyError):  # noqa: N818 - it says what has happened
    """The worker answered that it cannot do what it was asked for; the message says why."""


class Start(msgspec.Struct, frozen=True):
    """How to begin: asked first, once. Answered when the worker takes connections."""

    number: int
    workers: int
    proxy: tuple[str, int]
    """Where to listen."""
    admin: tuple[str, int]
    """Where the supervisor listens."""
    source: str
    snapshot: Snapshot
    kept: Kept
    generation: int


class Adopt(msgspec.Struct, frozen=True):
    """A configuration to decide by from now on."""

    source: str
    snapshot: Snapshot
    kept: Kept
    generation: int


class Resolved(msgspec.Struct, frozen=True):
    """What is known of a name: its addresses, or the name of the reason why there are none."""

    addresses: tuple[str, ...] = ()
    reason: str | None = None


class Call(msgspec.Struct, frozen=True):
    """A question, by the name of its kind."""

    id: int
    what: str
    value: msgspec.Raw = msgspec.Raw(msgspec.msgpack.encode(None))


class Reply(msgspec.Struct, frozen=True):
    """The answer to the question of this number, or why there is none."""

    id: int
    value: msgspec.Raw = msgspec.Raw(msgspec.msgpack.encode(None))
    error: str | None = None


class Wire:
    """Messages over a socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def over(cls, end: socket.socket) -> Wire:
        """Take over one end of a socket pair."""
        return cls(*await asyncio.open_unix_connection(sock=end))

    def send(self, message: Call | Reply) -> None:
        data = msgspec.msgpack.encode(message)
        self._writer.write(len(data).to_bytes(_LENGTH, "big") + data)

    async def receive(self, kind: type[S]) -> S | None:
        """The next message; None when the other end is gone."""
        try:
            length = int.from_bytes(await self._reader.readexactly(_LENGTH), "big")
            data = await self._reader.readexactly(length)
        except (OSError, asyncio.IncompleteReadError):
            return None
        return msgspec.msgpack.decode(data, type=kind)

    async def close(self) -> None:
        """Close it, after what was sent has gone out if the other end reads."""
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


class Asking:
    """The supervisor's end."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Reply]] = {}
        self._gone = False
        self.last: msgspec.Raw | None = None
        """What the worker has said at its end, without having been asked."""
        self.heard = 0
        """How often it has answered anything, in time or not."""

    async def listen(self) -> None:
        """Take answers until the worker is gone."""
        try:
            while (reply := await self._wire.receive(Reply)) is not None:
                self.heard += 1
                if reply.id == LAST:
                    self.last = reply.value
                waiting = self._waiting.pop(reply.id, None)
                if waiting is not None and not waiting.done():
                    waiting.set_result(reply)
        finally:
            self._gone = True
            for waiting in self._waiting.values():
                waiting.cancel()
            await self._wire.close()

    def tell(self, what: str) -> None:
        """Ask, and wait for no answer."""
        if not self._gone:
            self._wire.send(Call(next(self._ids), what))

    async def ask(
        self, what: str, kind: type[S], value: Any = None, *, timeout: float | None = None
    ) -> S:
        """Raises WorkerGone or WorkerFailed."""
        if self._gone:
            raise WorkerGone(what)
        number = next(self._ids)
        waiting = self._waiting[number] = asyncio.get_running_loop().create_future()
        self._wire.send(Call(number, what, msgspec.Raw(msgspec.msgpack.encode(value))))
        try:
            async with asyncio.timeout(timeout):
                reply = await waiting
        except TimeoutError:
            raise WorkerGone(what) from None
        except asyncio.CancelledError:
            if self._gone:
                raise WorkerGone(what) from None
            raise
        finally:
            self._waiting.pop(number, None)
        if reply.error is not None:
            raise WorkerFailed(reply.error)
        return msgspec.msgpack.decode(reply.value, type=kind)
