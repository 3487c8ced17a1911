"""The relay of a tunnel: both directions, never looked at, once what they begin with has been."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Protocol

from egress_proxy.core.limits import Direction
from egress_proxy.limits.limiter import Admission
from egress_proxy.net.flow import Flow
from egress_proxy.net.metered import MeteredFlow
from egress_proxy.net.pipes import PipePool
from egress_proxy.net.poller import Poller


class Inspector(Protocol):
    """Looks at what both sides say, for as long as it is not over."""

    over: bool

    def from_client(self, data: bytes) -> bytes:
        """What of it may go on now, with what was held back before. May raise Interrupted, which ends the tunnel."""

    def from_server(self, data: bytes) -> bytes:
        """Look at it before it goes on. What of the client's was held back, once it is over."""


class Tunnel:
    """Both directions between a client and an origin, told by the poller about their sockets.

    When it ends, on_end is called once with the tunnel and with what ended it: None when its sides did, a TimeoutError
    when no byte passed for the idle time or the life time is over, or the exception that it was interrupted with. The
    descriptors are then still open.
    """

    __slots__ = (
        *("_down", "_inspector", "_on_end", "_up", "broken", "deadline", "end", "idle_time"),
        *("origin", "permit", "pipes", "poller"),
    )

    #: Draining waits for tunnels.
    idle = False

    def __init__(
        self,
        poller: Poller,
        pipes: PipePool,
        client: int,
        origin: socket.SocketType,
        *,
        idle_time: float,
        lifetime: float,
        on_end: Callable[[Tunnel, Exception | None], None],
        permit: object = None,
        inspector: Inspector | None = None,
        admission: Admission | None = None,
    ) -> None:
        self.poller = poller
        self.pipes = pipes
        self.idle_time = idle_time
        self.end = poller.now + lifetime
        self.deadline = 0.0
        self.origin = origin
        self.broken: int | None = None
        """The descriptor whose side reset the connection."""
        self.permit = permit
        self._on_end = on_end
        up: Flow
        if admission is None or not admission.metered:
            self._up = up = Flow(self, client, origin.fileno())
            self._down = Flow(self, up.sink, client)
        else:
            self._up = up = MeteredFlow(self, client, origin.fileno(), admission, Direction.UP)
            self._down = MeteredFlow(self, up.sink, client, admission, Direction.DOWN)
        up.back, self._down.back = self._down, up
        self._inspector = inspector
        if inspector is not None:
            up.inspect, self._down.inspect = self._inspect_client, self._inspect_server

    @property
    def sent(self) -> int:
        """Bytes that the origin was given."""
        return self._up.total

    @property
    def received(self) -> int:
        """Bytes that the client was given."""
        return self._down.total

    def start(
        self, early: bytes, *, watched: bool, client_readable: bool, origin_readable: bool
    ) -> None:
        """Begin to relay. early is what was read from the client already.

        The origin is watched; watched says whether the client is, too. The other two say from whom an edge may have
        come before that nobody followed, so that there may be something to read, or the end.
        """
        poller, up, down = self.poller, self._up, self._down
        poller.hand_over(down.source, down.on_edge)
        up.residue = early
        if watched:
            poller.hand_over(up.source, up.on_edge)
        else:
            poller.watch(up.source, up.on_edge, output=False)
        self.deadline = min(poller.now + self.idle_time, self.end)
        poller.connections.add(self)
        # An end that was announced before is not announced again.
        if client_readable:
            up.closing = True
            up.move()
        elif early:
            up.send()
        if origin_readable:
            down.closing = True
            down.move()

    def _inspect_client(self, data: bytes) -> bytes:
        assert self._inspector is not None  # noqa: S101 - or nobody would ask
        data = self._inspector.from_client(data)
        if self._inspector.over:
            self._trust()
        return data

    def _inspect_server(self, data: bytes) -> bytes:
        inspector = self._inspector
        assert inspector is not None  # noqa: S101 - or nobody would ask
        held = inspector.from_server(data)
        if inspector.over:
            self._trust()
            # Behind the client's end nothing can be sent any more; half a record means nothing to anybody.
            if held and not self._up.done:
                self._up.residue += held
                self._up.send()
        return data

    def _trust(self) -> None:
        """From now on nobody looks at anything."""
        self._inspector = self._up.inspect = self._down.inspect = None

    def interrupt(self, error: Exception) -> None:
        """End it."""
        self.finish(error)

    def finish(self, error: Exception | None) -> None:
        """Stop relaying and tell."""
        self.poller.connections.discard(self)
        for flow in (self._up, self._down):
            flow.stop()
        self._on_end(self, error)
        # No cycles are left, so the memory comes back without the garbage collector.
        if self._inspector is not None:
            self._trust()
        del self._up.back, self._down.back
        del self._up, self._down
