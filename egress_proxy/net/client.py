"""The client's side of a connection: heads come in, answers go out."""

from __future__ import annotations

import itertools
import os
import socket
import struct
from enum import Enum
from time import monotonic
from typing import TYPE_CHECKING

from egress_proxy.core import reasons
from egress_proxy.core.errors import HeadError
from egress_proxy.core.http1 import END_OF_HEAD, HeadLimits, check_partial
from egress_proxy.core.identity import Identity
from egress_proxy.net.client_key import client_key
from egress_proxy.net.flow import half_close
from egress_proxy.net.poller import (
    CLIENT_READABLE,
    CLIENT_WRITABLE,
    MORE_BEHIND,
    OF_CLIENT,
    READABLE,
    Interrupted,
    Strand,
)

if TYPE_CHECKING:
    from egress_proxy.config.model import Timeouts

#: Most heads fit, and most clients send no more before they have an answer.
READ_SIZE = 16 * 1024
#: Seconds and bytes for which a refused client may go on sending, so that a reset does not destroy its answer.
_LINGER_SECONDS = 2.0
_LINGER_BYTES = 16 * 1024 * 1024
#: Edges that tell of something to read.
_TO_READ = READABLE | MORE_BEHIND
#: Reads after which the others have their turn.
_FAIR_SHARE = 8


class Next(Enum):
    """What becomes of the client's connection after a request."""

    REQUEST = "another request may come"
    CLOSE = "it is closed at once"
    LINGER = "it is closed when the client has had time to read its answer"
    NOTHING = "a tunnel has it now"


class Heads:
    """Clients that have not sent a whole request head, and for which the proxy waits."""

    __slots__ = ("_by_client", "most", "waiting")

    def __init__(self) -> None:
        self.most = 0
        self.waiting = 0
        self._by_client: dict[str, int] = {}

    def begin(self, client: str) -> None:
        """Count one more. Raises HeadError where there are too many; a quarter of all may be one client's."""
        of_client = self._by_client.get(client, 0)
        if of_client >= max(self.most // 4, 1):
            raise HeadError(reasons.CLIENT_CONNECTIONS, "in the middle of a request")
        if self.waiting >= self.most:
            raise HeadError(reasons.OVERLOADED, "of clients in the middle of a request")
        self.waiting += 1
        self._by_client[client] = of_client + 1

    def end(self, client: str) -> None:
        self.waiting -= 1
        left = self._by_client[client] - 1
        if left:
            self._by_client[client] = left
        else:
            del self._by_client[client]


class Client:
    """One client connection, and what has been read from it and not used yet."""

    __slots__ = (
        *(
            "_heads",
            "_output_watched",
            "buffer",
            "edges",
            "fd",
            "fresh",
            "identity",
            "key",
            "started",
            "strand",
            "watched",
        ),
    )

    def __init__(self, strand: Strand, fd: int, address: str, heads: Heads) -> None:
        self.strand = strand
        self.fd = fd
        self.key = client_key(address)
        """Whom its connections are counted with."""
        self.identity = Identity(address)
        """Who it is as far as its connection tells. What a request tells holds for that request alone."""
        self.buffer = b""
        self.fresh = True
        """Whether it has not sent a whole head yet."""
        self.started = monotonic()
        """When the current request began, or its head was complete."""
        self.edges = READABLE
        """What the poller has told of and nobody has dealt with: there may be more to read; and, for good, its end."""
        self.watched = False
        self._output_watched = False
        self._heads = heads

    def watch(self) -> None:
        """Have the poller tell when there is something to read. Short conversations end before there is a need."""
        if not self.watched:
            self.watched = True
            # Watching tells what is there already.
            self.edges = 0
            self.strand.poller.watch(self.fd, self._on_edge, output=False)

    def watch_output(self) -> None:
        """Have the poller tell when it can be written, too."""
        if not self._output_watched:
            self._output_watched = True
            self.watch()
            self.strand.poller.watch_output(self.fd)

    def _on_edge(self, mask: int) -> None:
        self.edges |= mask
        self.strand.wake(mask << OF_CLIENT)

    async def read_head(
        self, limits: HeadLimits, timeouts: Timeouts, *, draining: bool
    ) -> bytes | None:
        """The next request head, with its empty line; None when the client has none.

        Raises HeadError.
        """
        begun = bool(self.buffer)
        deadline = monotonic() + (timeouts.head if begun or self.fresh else timeouts.keep_alive)
        while (end := self.buffer.find(END_OF_HEAD)) < 0:
            if begun:
                check_partial(self.buffer, limits)
            try:
                # Where the poller has told of nothing since the last byte, there is nothing.
                data = os.read(self.fd, READ_SIZE) if self.edges & _TO_READ else None
            except BlockingIOError:
                data = None
            except OSError:
                return None
            if self.watched and (data is None or len(data) < READ_SIZE):
                self.edges &= MORE_BEHIND
            if data is None:
                if not begun and draining:
                    return None
                if not await self._wait_for_head(deadline, begun=begun):
                    return None
                continue
            if not data:
                if begun:
                    raise HeadError(
                        reasons.INCOMPLETE_REQUEST, "the connection ended inside the head"
                    )
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

    async def _wait_for_head(self, deadline: float, *, begun: bool) -> bool:
        """Wait for more of a head; False when there will be none. Raises HeadError."""
        heads = self._heads
        counted = begun or self.fresh
        if counted:
            heads.begin(self.key)
        try:
            self.watch()
            self.strand.idle = not begun
            await self.strand.until(CLIENT_READABLE, deadline)
        except TimeoutError:
            if begun or self.fresh:
                raise HeadError(reasons.HEAD_TIMEOUT, "the head did not arrive in time") from None
            return False
        except Interrupted:
            if begun:
                raise
            return False
        finally:
            if counted:
                heads.end(self.key)
            self.strand.idle = False
        return True

    def read(self) -> bytes | None:
        """What there is to read: nothing at the end, None while there is nothing yet. Raises ConnectionError."""
        try:
            return os.read(self.fd, READ_SIZE)
        except BlockingIOError:
            return None
        except OSError as error:
            raise ConnectionError(*error.args) from None

    def write(self, data: bytes) -> bytes:
        """Write what the socket takes at once; the rest. Raises ConnectionError."""
        try:
            return data[os.write(self.fd, data) :]
        except BlockingIOError:
            return data
        except OSError as error:
            # No route any more, say: whatever it is, the client cannot be reached.
            raise ConnectionError(*error.args) from None

    async def send(self, data: bytes, seconds: float) -> None:
        """Write all of it. Raises ConnectionError; TimeoutError when it takes longer than so many seconds."""
        if data := self.write(data):
            self.watch_output()
            deadline = monotonic() + seconds
            while data := self.write(data):
                await self.strand.until(CLIENT_WRITABLE, deadline)

    def break_off(self) -> None:
        """Have the end of the connection be a reset, so that half an answer is not taken for a whole one."""
        sock = socket.SocketType(socket.AF_INET, socket.SOCK_STREAM, 0, self.fd)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        finally:
            sock.detach()

    async def linger(self) -> None:
        """End our side and read what the client still sends, for a bounded time, so that no reset destroys the answer.

        Raises OSError, TimeoutError, Interrupted.
        """
        half_close(self.fd)
        deadline = monotonic() + _LINGER_SECONDS
        dropped = 0
        if not self.watched:
            # Watching tells what is there already.
            self.watch()
            await self.strand.until(CLIENT_READABLE, deadline)
        for turn in itertools.count(1):
            if dropped >= _LINGER_BYTES:
                return
            if turn % _FAIR_SHARE == 0:
                await self.strand.turn(deadline)
            try:
                data = os.read(self.fd, 64 * 1024)
            except BlockingIOError:
                await self.strand.until(CLIENT_READABLE, deadline)
                continue
            if not data:
                return
            dropped += len(data)
