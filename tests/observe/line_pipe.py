"""A pipe to write lines to, as stdout is one."""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass


@dataclass
class Pipe:
    """A pipe whose write end blocks, as stdout's does. Each end is closed once, here or by the test."""

    read_end: int
    write_end: int

    def fill(self) -> int:
        """Put in as much as it holds, so that the next write blocks. Returns how much that was."""
        return os.write(self.write_end, b"x" * fcntl.fcntl(self.write_end, fcntl.F_GETPIPE_SZ))

    def read_all(self) -> bytes:
        """Close the write end and read to the end."""
        self.close_write_end()
        parts = []
        while part := os.read(self.read_end, 65536):
            parts.append(part)
        return b"".join(parts)

    def close_read_end(self) -> None:
        if self.read_end >= 0:
            os.close(self.read_end)
            self.read_end = -1

    def close_write_end(self) -> None:
        if self.write_end >= 0:
            os.close(self.write_end)
            self.write_end = -1
