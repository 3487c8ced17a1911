"""Connections to origins that wait for another request.

They are kept apart by whom they served: requests of clients to whom other policies apply, or of other users, never meet
on one connection, so that what an origin misunderstands about the end of a message stays among those who could have
sent it themselves. Nothing is kept beyond a reload.
"""

from __future__ import annotations

import select
import socket
from typing import TYPE_CHECKING

from egress_proxy.core.addresses import VettedAddress
from egress_proxy.net.poller import READABLE, Poller

if TYPE_CHECKING:
    from egress_proxy.config.model import Config
    from egress_proxy.observe.metrics import Metrics

#: What a connection shows on which something has come.
_NOT_SILENT = select.POLLIN | select.POLLPRI | select.POLLRDHUP

#: Whose it is, and where it leads: the policies and the user, the host and the port.
Key = tuple[frozenset[int], str | None, str, int]


class OriginPool:
    """The idle connections of one process, within bounds."""

    def __init__(self, poller: Poller, metrics: Metrics) -> None:
        self._poller = poller
        self._metrics = metrics
        self._idle: dict[Key, list[_Idle]] = {}
        self._most = self._most_per_destination = 0
        self._seconds = 0.0
        self._look = select.poll()

    def adopt(self, config: Config, most: int) -> None:
        """Begin anew with what a configuration says, and keep no more than so many."""
        self.clear()
        self._most = most
        self._most_per_destination = config.limits.idle_per_origin
        self._seconds = config.timeouts.origin_keep_alive

    @property
    def keeps(self) -> bool:
        """Whether it keeps any."""
        return self._most > 0 and self._most_per_destination > 0

    def take(
        self, key: Key, addresses: tuple[VettedAddress, ...]
    ) -> tuple[socket.SocketType, str] | None:
        """A connection to one of the addresses, and which; the one that was used last.

        It's watched, and its edges are lost until somebody else takes them.
        """
        waiting = self._idle.get(key)
        while waiting:
            idle = waiting[-1]
            for address in addresses:
                if address.ip == idle.ip:
                    break
            else:
                # What the name leads to, or what the gate passes, has changed.
                idle.close()
                continue
            self.remove(idle)
            # Its end, or a word out of turn, may have come before anybody listened.
            if self.is_silent(idle.socket):
                return idle.socket, idle.ip
            self._poller.close(idle.socket.detach())
        return None

    def give(self, key: Key, sock: socket.SocketType, ip: str) -> None:
        """Keep a watched connection on which no byte is under way. Where there is no room, it is closed."""
        waiting = self._idle.setdefault(key, [])
        if len(waiting) >= self._most_per_destination or self._metrics.origins_idle >= self._most:
            if not waiting:
                del self._idle[key]
            self._poller.close(sock.detach())
            return
        idle = _Idle(self, key, sock, ip, self._poller.now + self._seconds)
        waiting.append(idle)
        self._metrics.origins_idle += 1
        self._poller.hand_over(sock.fileno(), idle.on_edge)
        self._poller.connections.add(idle)

    def clear(self) -> None:
        """Close all of them."""
        for waiting in list(self._idle.values()):
            for idle in list(waiting):
                idle.close()

    def is_silent(self, sock: socket.SocketType) -> bool:
        """Whether the peer has said nothing and not ended its side."""
        # To look into the buffer (MSG_PEEK) would raise BlockingIOError nearly each time, and cost twice as much.
        self._look.register(sock, _NOT_SILENT)
        spoken = self._look.poll(0)
        self._look.unregister(sock)
        return not spoken

    def holds(self, idle: _Idle) -> bool:
        """Whether it still waits here."""
        return idle in self._poller.connections

    def remove(self, idle: _Idle) -> None:
        waiting = self._idle[idle.key]
        if waiting[-1] is idle:
            waiting.pop()
        else:
            waiting.remove(idle)
        if not waiting:
            del self._idle[idle.key]
        self._metrics.origins_idle -= 1
        self._poller.connections.discard(idle)

    def close(self, idle: _Idle) -> None:
        self.remove(idle)
        self._poller.close(idle.socket.detach())


class _Idle:
    """One connection that waits. The poller ends it at its deadline, and when the process drains."""

    __slots__ = ("_pool", "deadline", "ip", "key", "socket")

    idle = True
    permit: object = None

    def __init__(
        self, pool: OriginPool, key: Key, sock: socket.SocketType, ip: str, deadline: float
    ) -> None:
        self._pool = pool
        self.key = key
        self.socket = sock
        self.ip = ip
        self.deadline = deadline

    def on_edge(self, mask: int) -> None:
        # An edge of the last answer may still be under way, in the batch in which that answer was read.
        if mask & select.EPOLLPRI or (mask & READABLE and not self._pool.is_silent(self.socket)):
            self.close()

    def interrupt(self, _error: Exception) -> None:
        # Whoever interrupts several may have had an earlier one take this one, or close it.
        if self._pool.holds(self):
            self.close()

    def close(self) -> None:
        self._pool.close(self)
