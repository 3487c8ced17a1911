"""The client's side of a connection: heads come in, answers go out."""

from __future__ import annotations

import os
import socket
from time import monotonic
from typing import TYPE_CHECKING

from egress_proxy.core import reason as reasons
from egress_proxy.core.errors import HeadError
from egress_proxy.core.http1 import END_OF_HEAD, HeadLimits, check_partial
from egress_proxy.net.poller import READABLE, WRITABLE, Interrupted, Strand

if TYPE_CHECKING:
    from egress_proxy.config.model import Timeouts

#: Most heads fit, and most clients send no more before they have an answer.
_READ = 16 * 1024
#: Seconds and bytes for which a refused client may go on sending, so that a reset does not destroy its answer.
_LINGER_SECONDS = 2.0
_LINGER_BYTES = 16 * 1024 * 1024


class Client:
    """One client connection, and what has been read from it and not used yet."""

    __slots__ = ("address", "buffer", "fd", "fresh", "started", "strand", "watched")

    def __init__(self, strand: Strand, fd: int, address: str) -> None:
        self.strand = strand
        self.fd = fd
        self.address = address
        self.buffer = b""
        self.fresh = True
        """Whether it has not sent a whole head yet."""
        self.started = monotonic()
        """When the current request began, or its head was complete."""
        self.watched = False

    def watch(self) -> None:
        """Have the poller tell about it from now on. Short conversations end before there is a need."""
        if not self.watched:
            self.watched = True
            self.strand.poller.watch(self.fd, self.strand.wake)

    async def read_head(self, limits: HeadLimits, timeouts: Timeouts, *, draining: bool) -> bytes | None:
        """The next request head, with its empty line; None when the client has none.

        Raises HeadError.
        """
        begun = bool(self.buffer)
        deadline = monotonic() + (timeouts.head if begun or self.fresh else timeouts.keep_alive)
        while (end := self.buffer.find(END_OF_HEAD)) < 0:
            if begun:
                check_partial(self.buffer, limits)
            try:
                data = os.read(self.fd, _READ)
            except BlockingIOError:
                if not begun and draining:
                    return None
                if not await self._wait_for_head(begun, deadline):
                    return None
                continue
            except OSError:
                return None
            if not data:
                if begun:
                    raise HeadError(reasons.INCOMPLETE_REQUEST, "the connection ended inside the head")
                return None
            if not begun:
                begun = True
                self.started = monotonic()
                deadline = self.started + timeouts.head
            self.buffer += data
        head, self.buffer = self.buffer[: end + 4], self.buffer[end + 4 :]
        self.fresh = False
        self.started = monotonic()
        return head

    async def _wait_for_head(self, begun: bool, deadline: float) -> bool:
        """Wait for more of a head; False when there will be none. Raises HeadError."""
        self.watch()
        self.strand.idle = not begun
        try:
            await self.strand.until(READABLE, deadline)
        except TimeoutError:
            if begun or self.fresh:
                raise HeadError(reasons.HEAD_TIMEOUT, "the head did not arrive in time") from None
            return False
        except Interrupted:
            if begun:
                raise
            return False
        finally:
            self.strand.idle = False
        return True

    async def send(self, data: bytes, seconds: float) -> None:
        """Write all of it. Raises OSError; TimeoutError when it takes longer than so many seconds."""
        while True:
            try:
                written = os.write(self.fd, data)
            except BlockingIOError:
                self.watch()
                await self.strand.until(WRITABLE, monotonic() + seconds)
                continue
            if written == len(data):
                return
            data = data[written:]

    async def linger(self) -> None:
        """End our side and read what the client still sends, for a bounded time, so that no reset destroys the answer.

        Raises OSError, TimeoutError, Interrupted.
        """
        sock = socket.SocketType(socket.AF_INET, socket.SOCK_STREAM, 0, self.fd)
        try:
            sock.shutdown(socket.SHUT_WR)
        finally:
            sock.detach()
        deadline = monotonic() + _LINGER_SECONDS
        dropped = 0
        if not self.watched:
            # Watching tells what is there already.
            self.watch()
            await self.strand.until(READABLE, deadline)
        while dropped < _LINGER_BYTES:
            try:
                data = os.read(self.fd, 64 * 1024)
            except BlockingIOError:
                await self.strand.until(READABLE, deadline)
                continue
            if not data:
                return
            dropped += len(data)
