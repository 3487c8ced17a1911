"""Processes that write lines to the same file take turns, so that no line of one stands within another's.

A pipe keeps writes apart up to PIPE_BUF alone (pipe(7)), and how long a line is may be a client's to say.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator


class Turns:
    """A file in memory that all of them share, with a lock (fcntl(2)) and a mark for each descriptor they write to.

    The lock ends with the process that holds it. The mark says then that a line of that process may have been cut off.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def make(cls) -> Turns:
        """For processes that are yet to begin, to be handed on to them by its descriptor. Raises OSError."""
        return cls(os.memfd_create("egress-proxy-turns"))

    @contextlib.contextmanager
    def taken(self, fd: int) -> Iterator[bool]:
        """Write to a descriptor, whose number is the same for all: whether a line was cut off there before.

        Waits for the turn, as for a reader that does not read. Raises OSError.
        """
        fcntl.lockf(self.fd, fcntl.LOCK_EX, 1, fd)
        try:
            cut_off = os.pread(self.fd, 1, fd) == b"\1"
            os.pwrite(self.fd, b"\1", fd)
            yield cut_off
            os.pwrite(self.fd, b"\0", fd)
        finally:
            fcntl.lockf(self.fd, fcntl.LOCK_UN, 1, fd)
