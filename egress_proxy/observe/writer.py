"""Lines on their way out: gathered in memory, written in batches by a thread.

Why a thread: stdout may be a pipe whose reader has stopped; a write to it then blocks, and must not
block the event loop. O_NONBLOCK would be set for everybody who shares the open file, the shell that
started us included.
"""

from __future__ import annotations

import errno
import os
import select
from collections import deque
from collections.abc import Callable
from threading import Condition, Lock, Thread

from egress_proxy.observe.lines import DENIED
from egress_proxy.observe.turns import Turns

#: Bytes that make a batch go out before its time: what a pipe holds by default (pipe(7)).
BATCH_BYTES = 65536
# Lines of denials that one overflow saved are kept in batches of about this many.
_SAVED_LINES = 256
# The descriptor is gone, and no later write can succeed.
_FINAL = frozenset({errno.EPIPE, errno.EBADF})


class LineWriter:
    """A bounded queue of lines before a file descriptor.

    ``append`` never waits for the descriptor. When ``queue_lines`` wait, lines are dropped and
    counted in ``dropped``; lines that hold ``DENIED`` are the last to go. The thread starts with
    the first line and sleeps while none waits.

    ``flush_interval`` is how many seconds a line waits for company at most. Where other processes write
    to the same file, ``turns`` are taken with them.
    """

    def __init__(
        self,
        fd: int,
        queue_lines: int,
        flush_interval: float,
        *,
        turns: Turns | None = None,
        on_failure: Callable[[OSError], None] | None = None,
    ) -> None:
        self.dropped = 0
        self._fd = fd
        self._limit = queue_lines
        self._urgent = queue_lines // 2
        self._interval = flush_interval
        self._turns = turns
        self._on_failure = on_failure
        # Everything below belongs to whoever holds the lock, and nobody holds it during I/O.
        self._lock = Lock()
        self._changed = Condition(self._lock)
        self._thread: Thread | None = None
        self._closing = False
        self._broken = False
        # From the oldest line to the newest: denials that overflows left, full batches, and the
        # batch that gathers.
        self._saved: deque[list[bytes]] = deque()
        self._full: deque[list[bytes]] = deque()
        self._gathering: list[bytes] = []
        self._gathering_bytes = 0
        self._waiting = 0
        self._expendable = 0
        # The writing thread's own: whether a failed write has left half a line behind.
        self._torn = False

    @property
    def waiting(self) -> int:
        """How many lines wait; those that are being written are not counted."""
        return self._waiting

    def append(self, line: bytes) -> None:
        """Queue one line, given without its end."""
        expendable = DENIED not in line
        with self._lock:
            if self._closing or self._broken:
                self.dropped += 1
                return
            if self._waiting >= self._limit and (expendable or not self._make_room()):
                self.dropped += 1
                return
            self._gathering.append(line)
            self._gathering_bytes += len(line) + 1
            self._waiting += 1
            self._expendable += expendable
            if self._gathering_bytes >= BATCH_BYTES:
                self._seal()
                self._changed.notify()
            elif self._waiting == 1:
                self._wake()
            elif self._waiting == self._urgent:
                # A short queue is full long before its time.
                self._changed.notify()

    def close(self, timeout: float) -> bool:
        """Write what waits, for at most so many seconds; what is left then is dropped and counted.

        Returns whether everything went out.
        """
        with self._lock:
            self._closing = True
            self._changed.notify()
            thread = self._thread
        if thread is not None:
            thread.join(timeout)
        with self._lock:
            lost = self._waiting
            self._drop_waiting()
        return lost == 0 and (thread is None or not thread.is_alive())

    def _wake(self) -> None:
        if self._thread is None:
            # A daemon: a write to a pipe that nobody reads never ends, and the process must.
            self._thread = Thread(target=self._run, name=f"lines to fd {self._fd}", daemon=True)
            self._thread.start()
        self._changed.notify()

    def _seal(self) -> None:
        self._full.append(self._gathering)
        self._gathering, self._gathering_bytes = [], 0

    def _make_room(self) -> bool:
        """Drop the oldest lines that are not denials, a batch at a time so that it costs little."""
        if not self._expendable:
            return False
        dropped = 0
        while not dropped:
            if not self._full:
                self._seal()
            batch = self._full.popleft()
            denials = [line for line in batch if DENIED in line]
            dropped = len(batch) - len(denials)
            if self._saved and len(self._saved[-1]) < _SAVED_LINES:
                self._saved[-1] += denials
            elif denials:
                self._saved.append(denials)
        self._waiting -= dropped
        self._expendable -= dropped
        self.dropped += dropped
        return True

    def _drop_waiting(self) -> None:
        self.dropped += self._waiting
        self._saved.clear()
        self._full.clear()
        self._gathering, self._gathering_bytes = [], 0
        self._waiting = self._expendable = 0

    # From here on in the writing thread.

    def _run(self) -> None:
        failing = False
        while batch := self._next_batch():
            try:
                self._write(batch)
                failing = False
            except OSError as error:
                if not failing and self._on_failure is not None:
                    self._on_failure(error)
                failing = True
                if error.errno in _FINAL:
                    break
        with self._lock:
            self._broken = True
            self._drop_waiting()

    def _next_batch(self) -> list[bytes]:
        """The oldest lines, once it is their time; none when the writer closes and none is left."""
        with self._lock:
            while not self._waiting and not self._closing:
                self._changed.wait()
            if not (self._saved or self._full or self._closing or self._waiting >= self._urgent):
                self._changed.wait(self._interval)
            if self._saved:
                batch = self._saved.popleft()
            elif self._full:
                batch = self._full.popleft()
            else:
                batch, self._gathering, self._gathering_bytes = self._gathering, [], 0
            self._waiting -= len(batch)
            self._expendable -= sum(DENIED not in line for line in batch)
            return batch

    def _write(self, batch: list[bytes]) -> None:
        data = b"\n".join(batch) + b"\n"
        try:
            if self._turns is None:
                self._write_all(data)
            else:
                with self._turns.taken(self._fd) as cut_off:
                    self._torn = cut_off
                    self._write_all(data)
        except OSError:
            with self._lock:
                self.dropped += len(batch)
            raise

    def _write_all(self, data: bytes) -> None:
        view = memoryview(b"\n" + data if self._torn else data)
        while view:
            try:
                count = os.write(self._fd, view)
            except BlockingIOError:
                # Somebody who shares the open file has set O_NONBLOCK.
                poll = select.poll()
                poll.register(self._fd, select.POLLOUT)
                poll.poll()
                continue
            view = view[count:]
            self._torn = bool(view)
