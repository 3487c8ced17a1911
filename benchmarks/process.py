"""A process tree that is measured: pinned to one core, its CPU time and memory, and its end."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

TICK = 1 / os.sysconf("SC_CLK_TCK")
PATIENCE = 5  # seconds a process may take to end
QUIET = 0.0005  # seconds of CPU per look below which a process has come to rest


class Tree:
    """A process and all its descendants."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def cpu_seconds(self) -> float:
        """User and system time since the start, of dead threads and reaped children too.

        The process's own CPU clock counts nanoseconds. Ticks of 10 ms, which are all that
        /proc/PID/stat has, are good enough for children that have come and gone.
        """
        total = 0.0
        for pid, stat in self._members():
            with suppress(OSError):  # gone just now: its parent has its time at the next look
                total += time.clock_gettime((~pid << 3) | 2)  # as clock_getcpuclockid(3) has it
            total += (int(stat[13]) + int(stat[14])) * TICK  # cutime, cstime
        return total

    def memory_kib(self) -> int:
        """Proportional set size: what processes share is counted once."""
        total = 0
        for pid, _ in self._members():
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            total += next(int(line.split()[1]) for line in rollup.splitlines() if "Pss:" in line)
        return total

    def pids(self) -> list[int]:
        return [pid for pid, _ in self._members()]

    def settle(self, *, look: float = 0.05, at_most: float = 3.0) -> None:
        """Waits until what was asked for is done, the closing of connections included."""
        deadline = time.monotonic() + at_most
        before = self.cpu_seconds()
        while time.monotonic() < deadline:
            time.sleep(look)
            now = self.cpu_seconds()
            if now - before < QUIET:
                return
            before = now

    def _members(self) -> Iterator[tuple[int, list[str]]]:
        """Process ids with the fields of /proc/PID/stat that follow the name."""
        stats: dict[int, list[str]] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                try:
                    stats[int(entry.name)] = (entry / "stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue  # gone meanwhile
        tree = {self.pid}
        grown = True
        while grown:
            found = {pid for pid, stat in stats.items() if int(stat[1]) in tree}
            grown = not found <= tree
            tree |= found
        yield from ((pid, stats[pid]) for pid in sorted(tree & stats.keys()))


@contextmanager
def running(
    command: Sequence[str],
    core: int,
    *,
    stdin: int = subprocess.DEVNULL,
    stdout: int | IO[bytes] | None = None,
    stderr: int | IO[bytes] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """A command on one core, in a group of its own that does not outlive this block."""
    pinned = ["setpriv", "--pdeathsig", "KILL", "taskset", "--cpu-list", str(core), *command]
    process = subprocess.Popen(
        pinned, stdin=stdin, stdout=stdout, stderr=stderr, start_new_session=True
    )
    try:
        yield process
    finally:
        process.terminate()  # politely first, so that a log is written to its end
        with suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)
        with suppress(ProcessLookupError):  # nobody is left
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe:
                pipe.close()
