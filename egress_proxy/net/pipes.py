"""Pipes that tunnels borrow to move bytes inside the kernel (splice(2))."""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import Final

MAX_PIPES: Final = 64
PIPE_SIZE: Final = 256 * 1024
#: A pipe that the system shrank below this is slower than the buffer.
_PIPE_MINIMUM: Final = 64 * 1024

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
        if self._refused or self._made >= MAX_PIPES:
            return None
        try:
            pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        # An unprivileged user has 64 MiB of pipes on a node, shared by all its pods.
        with contextlib.suppress(OSError):
            fcntl.fcntl(pipe[1], fcntl.F_SETPIPE_SZ, PIPE_SIZE)
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
