"""One direction of a tunnel: bytes from one socket to the other.

Small flows go through one shared buffer. Above 128 KiB a pipe is borrowed and `splice(2)` moves the
bytes inside the kernel; where the system gives only small pipes, the buffer goes on serving.
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from egress_proxy.net.pipes import PIPE_SIZE, Pipe
from egress_proxy.net.poller import GONE, Interrupted

if TYPE_CHECKING:
    from egress_proxy.net.relay import Tunnel

Buffer = bytearray | memoryview

CHUNK = 64 * 1024
#: Bytes after which a direction is worth a pipe.
_SPLICE_FROM = 128 * 1024
#: Chunks of one direction per event, so that a busy tunnel does not starve the others.
_FAIR_SHARE = range(8)
_SPLICE_FLAGS = os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE

_READ_EDGES = select.EPOLLIN | select.EPOLLPRI | GONE
_WRITE_EDGES = select.EPOLLOUT | select.EPOLLERR | select.EPOLLHUP

# One buffer for all: what was read is written or copied away before anybody else reads.
_buffer = bytearray(CHUNK)
_view = memoryview(_buffer)
_vector: list[Buffer] = [_buffer]


def share_of_buffer(size: int) -> list[Buffer]:
    """As much of the buffer, to read into."""
    return [_view[:size]]


def half_close(fd: int) -> None:
    """Tell the peer that no more will come. Raises OSError."""
    sock = socket.SocketType(socket.AF_INET, socket.SOCK_STREAM, 0, fd)
    try:
        sock.shutdown(socket.SHUT_WR)
    finally:
        sock.detach()


class SideError(Exception):
    """The connection to one side is broken."""

    def __init__(self, fd: int) -> None:
        self.fd = fd


class Flow:
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
        self.back: Flow = self
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
        except SideError as lost:
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
        except SideError as lost:
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
                raise SideError(self.sink) from None
            self.total += written
            self.residue = self.residue[written:]
        return not self._in_pipe or self._empty_pipe()

    def _copy(self) -> bool:
        """Through the buffer; True at the end of the source."""
        return self._copy_by(_vector, CHUNK, _FAIR_SHARE)

    def _copy_by(self, vector: list[Buffer], size: int, turns: range) -> bool:
        """So many bytes at a time, which the vector has room for, and so many times."""
        for _ in turns:
            try:
                count = os.readv(self.source, vector)
            except BlockingIOError:
                self.closing = False
                return False
            except OSError:
                raise SideError(self.source) from None
            if not count:
                return True
            if self.inspect is not None:
                self.residue = self.inspect(_view[:count].tobytes())
                # What was held back may have found the other side broken, which ends the tunnel.
                if self.done or not self._flush():
                    return False
                if count < size and not self.closing:
                    return False
                continue
            try:
                written = os.write(self.sink, _view[:count])
            except BlockingIOError:
                written = 0
            except OSError:
                raise SideError(self.sink) from None
            self.total += written
            if written < count:
                self.residue = bytes(_view[written:count])
                # Only EAGAIN promises an edge, so the sink is tried until it says that.
                if not self._flush():
                    return False
            elif count < size and not self.closing:
                return False
        self._later()
        return False

    def _splice(self) -> bool:
        """Inside the kernel; True at the end of the source."""
        return self._splice_by(PIPE_SIZE, _FAIR_SHARE)

    def _splice_by(self, size: int, turns: range) -> bool:
        """So many bytes at a time, and so many times."""
        pipe = self._pipe or self._tunnel.pipes.borrow()
        if pipe is None:
            return self._copy()
        self._pipe = pipe
        for _ in turns:
            try:
                # The pipe is empty, so EAGAIN speaks of the source.
                self._in_pipe = os.splice(self.source, pipe[1], size, flags=_SPLICE_FLAGS)
            except BlockingIOError:
                self._return_pipe(pipe)
                return False
            except OSError:
                raise SideError(self.source) from None
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
                raise SideError(self.sink) from None
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
