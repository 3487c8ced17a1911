"""The relay of a tunnel: bytes from one socket to the other, in both directions, never looked at.

Small flows go through one shared buffer. Above 128 KiB a pipe is borrowed and `splice(2)` moves the bytes inside the kernel;
where the system gives only small pipes, the buffer goes on serving.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket

from egress_proxy.net.poller import GONE, Poller, Strand

_CHUNK = 64 * 1024
#: Bytes after which a direction is worth a pipe.
_SPLICE_FROM = 128 * 1024
_PIPE_SIZE = 256 * 1024
#: A pipe that the system shrank below this is slower than the buffer.
_PIPE_MINIMUM = 64 * 1024
_MAX_PIPES = 64
#: Chunks of one direction per event, so that a busy tunnel does not starve the others.
_FAIR_SHARE = 8
_FLAGS = os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE

# One buffer for all: a read is written or copied away before anybody else reads.
_buffer = bytearray(_CHUNK)
_view = memoryview(_buffer)
_vector = [_buffer]

Pipe = tuple[int, int]


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
        if self._refused or self._made >= _MAX_PIPES:
            return None
        try:
            pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.fcntl(pipe[1], fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
        except OSError:
            # An unprivileged user has 64 MiB of pipes on a node, shared by all its pods.
            pass
        if fcntl.fcntl(pipe[1], fcntl.F_GETPIPE_SZ) < _PIPE_MINIMUM:
            self._refused = True
            os.close(pipe[0])
            os.close(pipe[1])
            return None
        self._made += 1
        return pipe

    def give_back(self, pipe: Pipe) -> None:
        self._free.append(pipe)

    def discard(self, pipe: Pipe) -> None:
        """Close a pipe that still holds bytes."""
        self._made -= 1
        os.close(pipe[0])
        os.close(pipe[1])

    def shut(self) -> None:
        for pipe in self._free:
            os.close(pipe[0])
            os.close(pipe[1])
        self._free.clear()


class _Flow:
    """One direction."""

    __slots__ = ("blocked", "closing", "done", "in_pipe", "pipe", "residue", "sink", "source", "total")

    def __init__(self, source: int, sink: int) -> None:
        self.source = source
        self.sink = sink
        self.residue = b""
        self.pipe: Pipe | None = None
        self.in_pipe = 0
        self.total = 0
        """Bytes that the sink has taken."""
        self.blocked = False
        self.closing = False
        """Whether the source has announced its end, so that a short read is not the end of what there is."""
        self.done = False


class Tunnel:
    """Both directions of a tunnel, told by the poller about its two sockets."""

    __slots__ = ("_again", "_down", "_idle", "_pipes", "_poller", "_strand", "_up", "broken", "client", "end", "origin")

    def __init__(self, strand: Strand, pipes: PipePool, client: int, origin: int, idle: float, end: float) -> None:
        self._strand = strand
        self._poller: Poller = strand.poller
        self._pipes = pipes
        self.client = client
        self.origin = origin
        self._idle = idle
        self.end = end
        self._up = _Flow(client, origin)
        self._down = _Flow(origin, client)
        self._again = False
        self.broken: int | None = None
        """The descriptor whose side reset the connection."""

    @property
    def sent(self) -> int:
        """Bytes that the origin was given."""
        return self._up.total

    @property
    def received(self) -> int:
        """Bytes that the client was given."""
        return self._down.total

    async def run(self, early: bytes) -> None:
        """Relay until both sides have ended. early is what the client sent behind its request's head.

        Raises TimeoutError when no byte passed for the idle time, or at the end of the life time.
        """
        self._up.residue = early
        self._poller.hand_over(self.client, self._on_client)
        self._poller.hand_over(self.origin, self._on_origin)
        try:
            self._touch()
            if self._turn():
                await self._strand.parked(self._strand.deadline)
        finally:
            for flow in (self._up, self._down):
                if flow.pipe is not None:
                    (self._pipes.discard if flow.in_pipe else self._pipes.give_back)(flow.pipe)
                    flow.pipe = None

    def _touch(self) -> None:
        deadline = self._poller.now + self._idle
        self._strand.deadline = deadline if deadline < self.end else self.end

    def _on_client(self, mask: int) -> None:
        self._on_event(self._up, self._down, mask)

    def _on_origin(self, mask: int) -> None:
        self._on_event(self._down, self._up, mask)

    def _on_event(self, reading: _Flow, writing: _Flow, mask: int) -> None:
        before = reading.total + writing.total
        alive = True
        if mask & GONE:
            reading.closing = True
        if mask & (select.EPOLLIN | GONE) and not reading.blocked:
            alive = self._pump(reading)
        if alive and mask & (select.EPOLLOUT | select.EPOLLERR | select.EPOLLHUP) and writing.blocked:
            alive = self._pump(writing)
        if reading.total + writing.total != before:
            self._touch()
        if not alive:
            self._strand.resume()

    def _turn(self) -> bool:
        """Both directions once more; False when the tunnel has ended."""
        self._again = False
        return self._pump(self._up) and self._pump(self._down)

    def _next_turn(self) -> None:
        if self._again:
            self._touch()
            if not self._turn():
                self._strand.resume()

    def _pump(self, flow: _Flow) -> bool:
        """Move bytes until the source is drained or the sink is blocked; False when the tunnel has ended."""
        if flow.done:
            return True
        try:
            ended = self._flush(flow) and (
                self._splice(flow) if flow.total >= _SPLICE_FROM else self._copy(flow)
            )
        except ConnectionError as error:
            self.broken = flow.sink if isinstance(error, BrokenPipeError) else self._who_reset(flow)
            return False
        except OSError:
            self.broken = flow.source
            return False
        if not ended:
            return True
        flow.done = True
        if self._up.done and self._down.done:
            return False
        try:
            sink = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, flow.sink)
            try:
                sink.shutdown(socket.SHUT_WR)
            finally:
                sink.detach()
        except OSError:
            return False
        return True

    @staticmethod
    def _who_reset(flow: _Flow) -> int:
        return flow.sink if flow.blocked else flow.source

    def _flush(self, flow: _Flow) -> bool:
        """Write what an earlier turn left over; True when nothing is left."""
        flow.blocked = False
        while flow.residue:
            try:
                written = os.write(flow.sink, flow.residue)
            except BlockingIOError:
                flow.blocked = True
                return False
            flow.total += written
            flow.residue = flow.residue[written:]
        return not flow.in_pipe or self._empty_pipe(flow)

    def _copy(self, flow: _Flow) -> bool:
        """Through the buffer; True at the end of the source."""
        for _ in range(_FAIR_SHARE):
            try:
                count = os.readv(flow.source, _vector)
            except BlockingIOError:
                return False
            if count == 0:
                return True
            try:
                written = os.write(flow.sink, _view[:count])
            except BlockingIOError:
                written = 0
            flow.total += written
            if written < count:
                flow.residue = bytes(_view[written:count])
                flow.blocked = True
                # The sink may have become writable in between: the edge would be lost.
                if not self._flush(flow):
                    return False
            elif count < _CHUNK and not flow.closing:
                return False
        self._later()
        return False

    def _splice(self, flow: _Flow) -> bool:
        """Inside the kernel; True at the end of the source."""
        if flow.pipe is None:
            flow.pipe = self._pipes.borrow()
            if flow.pipe is None:
                return self._copy(flow)
        for _ in range(_FAIR_SHARE):
            try:
                flow.in_pipe = os.splice(flow.source, flow.pipe[1], _PIPE_SIZE, flags=_FLAGS)
            except BlockingIOError:
                self._return_pipe(flow)
                return False
            if flow.in_pipe == 0:
                self._return_pipe(flow)
                return True
            if not self._empty_pipe(flow):
                return False
        self._later()
        return False

    def _empty_pipe(self, flow: _Flow) -> bool:
        assert flow.pipe is not None  # noqa: S101 - in_pipe is only set together with a pipe
        while flow.in_pipe:
            try:
                count = os.splice(flow.pipe[0], flow.sink, flow.in_pipe, flags=_FLAGS)
            except BlockingIOError:
                flow.blocked = True
                return False
            flow.in_pipe -= count
            flow.total += count
        return True

    def _return_pipe(self, flow: _Flow) -> None:
        if flow.pipe is not None:
            self._pipes.give_back(flow.pipe)
            flow.pipe = None

    def _later(self) -> None:
        if not self._again:
            self._again = True
            self._poller.again(self._next_turn)
