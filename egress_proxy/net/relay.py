"""The relay of a tunnel: bytes from one socket to the other, in both directions, never looked at.

Small flows go through one shared buffer. Above 128 KiB a pipe is borrowed and `splice(2)` moves the
bytes inside the kernel; where the system gives only small pipes, the buffer goes on serving.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
from collections.abc import Callable
from typing import Protocol

from egress_proxy.net.poller import GONE, Interrupted, Poller

_CHUNK = 64 * 1024
#: Bytes after which a direction is worth a pipe.
_SPLICE_FROM = 128 * 1024
_PIPE_SIZE = 256 * 1024
#: A pipe that the system shrank below this is slower than the buffer.
_PIPE_MINIMUM = 64 * 1024
MAX_PIPES = 64
#: Chunks of one direction per event, so that a busy tunnel does not starve the others.
_FAIR_SHARE = range(8)
_SPLICE_FLAGS = os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE

_READ_EDGES = select.EPOLLIN | select.EPOLLPRI | GONE
_WRITE_EDGES = select.EPOLLOUT | select.EPOLLERR | select.EPOLLHUP

# One buffer for all: what was read is written or copied away before anybody else reads.
_buffer = bytearray(_CHUNK)
_view = memoryview(_buffer)
_vector = [_buffer]

Pipe = tuple[int, int]


def half_close(fd: int) -> None:
    """Tell the peer that no more will come. Raises OSError."""
    sock = socket.SocketType(socket.AF_INET, socket.SOCK_STREAM, 0, fd)
    try:
        sock.shutdown(socket.SHUT_WR)
    finally:
        sock.detach()


class PipePool:
    """Pipes that flows borrow while they splice. Only empty pipes come back."""

    def __init__(self) -> None:
        self._free: list[Pipe] = []
        self._made = 0
        self._refused = False

    def borrow(self) -> Pipe | None:
        """A pipe with both ends non-blocking, or None when there is none to be had."""
        if self._free:
            return self._free.pop()
        if self._refused or self._made >= MAX_PIPES:
            return None
        try:
            pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        # An unprivileged user has 64 MiB of pipes on a node, shared by all its pods.
        with contextlib.suppress(OSError):
            fcntl.fcntl(pipe[1], fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
        if fcntl.fcntl(pipe[1], fcntl.F_GETPIPE_SZ) < _PIPE_MINIMUM:
            self._refused = True
            _close_pipe(pipe)
            return None
        self._made += 1
        return pipe

    def give_back(self, pipe: Pipe) -> None:
        self._free.append(pipe)

    def discard(self, pipe: Pipe) -> None:
        """Close a pipe that still holds bytes."""
        self._made -= 1
        _close_pipe(pipe)

    def shut(self) -> None:
        for pipe in self._free:
            _close_pipe(pipe)
        self._free.clear()


def _close_pipe(pipe: Pipe) -> None:
    os.close(pipe[0])
    os.close(pipe[1])


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
        self._up = up = _Flow(self, client, origin.fileno())
        self._down = _Flow(self, up.sink, client)
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


class _SideError(Exception):
    """The connection to one side is broken."""

    def __init__(self, fd: int) -> None:
        self.fd = fd


class _Flow:
    """One direction of a tunnel."""

    __slots__ = (
        *("_in_pipe", "_pipe", "_queued", "_told", "_tunnel", "_urgent"),
        *(
            "back",
            "blocked",
            "closing",
            "done",
            "inspect",
            "residue",
            "sink",
            "source",
            "total",
        ),
    )

    def __init__(self, tunnel: Tunnel, source: int, sink: int) -> None:
        self._tunnel = tunnel
        self.source = source
        self.sink = sink
        self.back: _Flow = self
        """The other direction."""
        self.residue = b""
        """What was read and not written yet."""
        self.inspect: Callable[[bytes], bytes] | None = None
        """Says what of that which was read goes on, while somebody has to."""
        self.total = 0
        """Bytes that the sink has taken."""
        self._pipe: Pipe | None = None
        self._in_pipe = 0
        self.blocked = False
        """Whether the sink takes nothing now."""
        self.closing = False
        """Whether the source may have announced its end: a short read is then not all there is."""
        self._urgent = False
        self._queued = False
        # Whether the poller tells when the sink can be written again.
        self._told = False
        self.done = False
        """Whether the sink has been told the source's end, or the tunnel is over."""

    def on_edge(self, mask: int) -> None:
        """The source, which is the sink of the way back, has changed."""
        back = self.back
        if mask & GONE:
            self.closing = True
            if mask & select.EPOLLERR and (self.done or self.blocked):
                # A reset that no read would find.
                self._lost(self.source)
                return
        if mask & select.EPOLLPRI:
            # A read ends before urgent data and splice(2) does not pass it: no short read means anything now.
            self.closing = self._urgent = True
        if mask & _READ_EDGES and not self.blocked:
            self.move()
        if mask & _WRITE_EDGES and back.blocked:
            back.move()

    def move(self) -> None:
        """Move bytes until the source is drained or the sink is blocked."""
        if self.done:
            return
        tunnel = self._tunnel
        deadline = tunnel.poller.now + tunnel.idle_time
        tunnel.deadline = min(tunnel.end, deadline)
        try:
            if (self.blocked or self.residue) and not self._flush():
                return
            seen = self._urgent or self.inspect is not None
            ended = self._splice() if self.total >= _SPLICE_FROM and not seen else self._copy()
        except _SideError as lost:
            self._lost(lost.fd)
            return
        except Interrupted as stop:
            tunnel.finish(stop)
            return
        if ended:
            self.done = True
            if self.back.done:
                tunnel.finish(None)
            else:
                self._half_close()

    def send(self) -> None:
        """Write the residue, behind which there is nothing to read yet."""
        try:
            self._flush()
        except _SideError as lost:
            self._lost(lost.fd)

    def stop(self) -> None:
        """Let go of the pipe and of the rest of the tunnel."""
        if self._pipe is not None:
            (self._tunnel.pipes.discard if self._in_pipe else self._tunnel.pipes.give_back)(
                self._pipe
            )
            self._pipe = None
        self.done, self.blocked = True, False

    def _lost(self, fd: int) -> None:
        """The connection to one side is broken; no harm where that had ended properly before."""
        if not (self if fd == self.source else self.back).done:
            self._tunnel.broken = fd
        self._tunnel.finish(None)

    def _half_close(self) -> None:
        origin = self._tunnel.origin
        try:
            if self.sink == origin.fileno():
                origin.shutdown(socket.SHUT_WR)
            else:
                half_close(self.sink)
        except OSError:
            self._lost(self.sink)

    def _flush(self) -> bool:
        """Write what an earlier turn left over; True when nothing is left."""
        self.blocked = False
        while self.residue:
            try:
                written = os.write(self.sink, self.residue)
            except BlockingIOError:
                return self._wait_for_sink()
            except OSError:
                raise _SideError(self.sink) from None
            self.total += written
            self.residue = self.residue[written:]
        return not self._in_pipe or self._empty_pipe()

    def _copy(self) -> bool:
        """Through the buffer; True at the end of the source."""
        for _ in _FAIR_SHARE:
            try:
                count = os.readv(self.source, _vector)
            except BlockingIOError:
                self.closing = False
                return False
            except OSError:
                raise _SideError(self.source) from None
            if not count:
                return True
            if self.inspect is not None:
                self.residue = self.inspect(_view[:count].tobytes())
                # What was held back may have found the other side broken, which ends the tunnel.
                if self.done or not self._flush():
                    return False
                if count < _CHUNK and not self.closing:
                    return False
                continue
            try:
                written = os.write(self.sink, _view[:count])
            except BlockingIOError:
                written = 0
            except OSError:
                raise _SideError(self.sink) from None
            self.total += written
            if written < count:
                self.residue = bytes(_view[written:count])
                # Only EAGAIN promises an edge, so the sink is tried until it says that.
                if not self._flush():
                    return False
            elif count < _CHUNK and not self.closing:
                return False
        self._later()
        return False

    def _splice(self) -> bool:
        """Inside the kernel; True at the end of the source."""
        pipe = self._pipe or self._tunnel.pipes.borrow()
        if pipe is None:
            return self._copy()
        self._pipe = pipe
        for _ in _FAIR_SHARE:
            try:
                # The pipe is empty, so EAGAIN speaks of the source.
                self._in_pipe = os.splice(self.source, pipe[1], _PIPE_SIZE, flags=_SPLICE_FLAGS)
            except BlockingIOError:
                self._return_pipe(pipe)
                return False
            except OSError:
                raise _SideError(self.source) from None
            if not self._in_pipe:
                self._return_pipe(pipe)
                return True
            if not self._empty_pipe():
                return False
        self._later()
        return False

    def _empty_pipe(self) -> bool:
        """Write what is in the pipe; True when nothing is left."""
        pipe = self._pipe
        while pipe is not None and self._in_pipe:
            try:
                count = os.splice(pipe[0], self.sink, self._in_pipe, flags=_SPLICE_FLAGS)
            except BlockingIOError:
                return self._wait_for_sink()
            except OSError:
                raise _SideError(self.sink) from None
            self._in_pipe -= count
            self.total += count
        return True

    def _wait_for_sink(self) -> bool:
        """Note that the sink takes nothing now; always False."""
        self.blocked = True
        if not self._told:
            self._told = True
            self._tunnel.poller.watch_output(self.sink)
        return False

    def _return_pipe(self, pipe: Pipe) -> None:
        self._tunnel.pipes.give_back(pipe)
        self._pipe = None

    def _later(self) -> None:
        if not self._queued:
            self._queued = True
            self._tunnel.poller.again(self._next_turn)

    def _next_turn(self) -> None:
        self._queued = False
        if not self.blocked:
            self.move()
