"""Lines wait, go out in order, or are dropped and counted; whoever hands them over never waits."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from egress_proxy.observe.turns import Turns
from egress_proxy.observe.writer import BATCH_BYTES, LineWriter
from tests.observe.line_pipe import Pipe

PLENTY = 100_000


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread does."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.fixture(autouse=True)
def no_thread_is_left(pipe: Pipe) -> Iterator[None]:
    """A writer's thread ends with its writer, or when the pipe that holds it breaks."""
    before = threading.active_count()
    yield
    pipe.close_read_end()
    until(lambda: threading.active_count() == before)


def stuck(full_pipe: Pipe, queue_lines: int) -> LineWriter:
    """A writer whose thread hangs in a write of one line, so that what follows waits in the queue."""
    writer = LineWriter(full_pipe.write_end, queue_lines, flush_interval=0.0)
    writer.append(b"first")
    until(lambda: writer.waiting == 0)
    return writer


def lines_of(pipe: Pipe, writer: LineWriter) -> list[bytes]:
    """What the pipe gets, after what filled it."""
    reader: list[bytes] = []
    thread = threading.Thread(target=lambda: reader.append(pipe_content(pipe.read_end)))
    thread.start()
    assert writer.close(10)
    pipe.close_write_end()
    thread.join()
    return reader[0].lstrip(b"x").splitlines()


def pipe_content(read_end: int) -> bytes:
    parts = []
    while part := os.read(read_end, 65536):
        parts.append(part)
    return b"".join(parts)


def test_lines_come_out_in_their_order(pipe: Pipe) -> None:
    writer = LineWriter(pipe.write_end, PLENTY, flush_interval=0.001)
    lines = [b"%d" % number for number in range(50_000)]
    for line in lines:
        writer.append(line)
    assert lines_of(pipe, writer) == lines
    assert writer.dropped == 0


def test_a_lone_line_goes_out_after_the_interval(pipe: Pipe) -> None:
    writer = LineWriter(pipe.write_end, PLENTY, flush_interval=0.05)
    start = time.monotonic()
    writer.append(b"one")
    writer.append(b"two")
    assert os.read(pipe.read_end, 100) == b"one\ntwo\n"
    assert 0.04 < time.monotonic() - start < 5
    assert writer.close(10)


def test_a_full_batch_does_not_wait_for_the_interval(pipe: Pipe) -> None:
    writer = LineWriter(pipe.write_end, PLENTY, flush_interval=60)
    for _ in range(BATCH_BYTES // 1000 + 1):
        writer.append(b"a" * 999)
    start = time.monotonic()
    assert len(os.read(pipe.read_end, 1000)) == 1000
    assert time.monotonic() - start < 5
    assert len(lines_of(pipe, writer)) == BATCH_BYTES // 1000


def test_a_short_queue_does_not_wait_for_the_interval(pipe: Pipe) -> None:
    writer = LineWriter(pipe.write_end, 10, flush_interval=60)
    for _ in range(5):
        writer.append(b"line")
    start = time.monotonic()
    assert os.read(pipe.read_end, 100).startswith(b"line\n")
    assert time.monotonic() - start < 5
    assert writer.close(10)
    assert writer.dropped == 0


def test_there_is_no_thread_before_the_first_line(pipe: Pipe) -> None:
    before = threading.active_count()
    writer = LineWriter(pipe.write_end, PLENTY, flush_interval=0)
    assert threading.active_count() == before
    assert writer.close(0)


def test_a_stalled_reader_stops_nobody(full_pipe: Pipe) -> None:
    writer = stuck(full_pipe, queue_lines=1000)
    slowest = 0.0
    for _ in range(20_000):
        start = time.perf_counter()
        writer.append(b"a" * 300)
        slowest = max(slowest, time.perf_counter() - start)
    assert slowest < 1
    assert writer.waiting == 1000
    assert writer.dropped == 19_000


def test_denials_are_the_last_to_go(full_pipe: Pipe) -> None:
    writer = stuck(full_pipe, queue_lines=1000)
    for number in range(3000):
        writer.append(b"DENIED %d" % number if number % 10 == 0 else b"ALLOWED %d" % number)
    assert writer.waiting <= 1000
    lines = lines_of(full_pipe, writer)
    assert lines[0] == b"first"
    denials = [line for line in lines if b"DENIED" in line]
    assert denials == [b"DENIED %d" % number for number in range(0, 3000, 10)]
    numbers = [int(line.split()[1]) for line in lines[1:]]
    assert numbers == sorted(numbers)
    assert len(lines) - 1 + writer.dropped == 3000


def test_when_only_denials_wait_the_newest_is_dropped(full_pipe: Pipe) -> None:
    writer = stuck(full_pipe, queue_lines=100)
    for number in range(150):
        writer.append(b"DENIED %d" % number)
        writer.append(b"ALLOWED %d" % number)
    assert lines_of(full_pipe, writer)[1:] == [b"DENIED %d" % number for number in range(100)]
    assert writer.dropped == 200


def test_a_long_stall_among_denials_keeps_memory_bounded(full_pipe: Pipe) -> None:
    writer = stuck(full_pipe, queue_lines=500)
    for number in range(100_000):
        writer.append(b"DENIED" if number % 2000 == 0 else b"a" * 400)
    batches = [*writer._saved, *writer._full, writer._gathering]
    assert sum(map(len, batches)) == writer.waiting <= 500
    assert len(batches) < 10


def test_closing_is_bounded_in_time_and_counts_what_is_lost(full_pipe: Pipe) -> None:
    writer = stuck(full_pipe, queue_lines=1000)
    for _ in range(5):
        writer.append(b"lost")
    start = time.monotonic()
    assert not writer.close(0.1)
    assert time.monotonic() - start < 5
    assert writer.dropped == 5
    writer.append(b"late")
    assert writer.dropped == 6


def test_a_reader_that_went_away_is_no_accident(pipe: Pipe) -> None:
    failures: list[OSError] = []
    writer = LineWriter(pipe.write_end, PLENTY, 0.0, on_failure=failures.append)
    pipe.close_read_end()
    writer.append(b"lost")
    until(lambda: writer.dropped == 1)
    until(lambda: bool(failures))
    for _ in range(10):
        writer.append(b"lost too")
    assert writer.dropped == 11
    assert [failure.errno for failure in failures] == [errno.EPIPE]
    writer.close(10)


def test_a_closed_descriptor_is_no_accident() -> None:
    closed = os.dup(1)
    os.close(closed)
    writer = LineWriter(closed, PLENTY, 0.0)
    writer.append(b"lost")
    until(lambda: writer.dropped == 1)
    writer.close(10)


def test_a_full_disk_may_have_room_again(pipe: Pipe) -> None:
    failures: list[OSError] = []
    disk = os.open("/dev/full", os.O_WRONLY)
    writer = LineWriter(disk, PLENTY, 0.0, on_failure=failures.append)
    for number in range(3):
        writer.append(b"lost")
        until(lambda number=number: writer.dropped == number + 1)  # type: ignore[misc]
    os.dup2(pipe.write_end, disk)
    writer.append(b"kept")
    assert os.read(pipe.read_end, 100) == b"kept\n"
    assert writer.close(10)
    os.close(disk)
    assert [failure.errno for failure in failures] == [errno.ENOSPC]


def test_half_a_line_gets_its_end(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a write that was cut short by an error, the next line is a line of its own."""
    answers: list[int | OSError] = [
        3,
        OSError(errno.ENOSPC, "no room"),
        OSError(errno.ENOSPC, "no room"),
    ]

    def write(fd: int, data: memoryview) -> int:
        answer = answers.pop(0) if answers else len(data)
        if isinstance(answer, OSError):
            raise answer
        return real_write(fd, data[:answer])

    real_write = os.write
    monkeypatch.setattr(os, "write", write)
    writer = LineWriter(pipe.write_end, PLENTY, 0.0)
    for number, line in enumerate([b"broken", b"lost"], start=1):
        writer.append(line)
        until(lambda number=number: writer.dropped == number)  # type: ignore[misc]
    writer.append(b"whole")
    assert writer.close(10)
    assert os.read(pipe.read_end, 100) == b"bro\nwhole\n"


def test_a_descriptor_that_somebody_made_non_blocking_is_waited_for(pipe: Pipe) -> None:
    os.set_blocking(pipe.write_end, False)
    writer = LineWriter(pipe.write_end, PLENTY, 0.0)
    lines = [b"%05d" % number * 20 for number in range(20_000)]
    for line in lines:
        writer.append(line)
    time.sleep(0.05)
    assert lines_of(pipe, writer) == lines


def test_the_descriptor_is_left_as_it_was(pipe: Pipe) -> None:
    writer = LineWriter(pipe.write_end, PLENTY, 0.0)
    writer.append(b"line")
    assert writer.close(10)
    assert os.get_blocking(pipe.write_end)


#: Writes so many lines of a length as a process of its own, to its stdout, and is slow about it.
_WRITE_LINES = """
import os, sys
from egress_proxy.observe import writer
from egress_proxy.observe.turns import Turns
whole = os.write
writer.os.write = lambda fd, data: whole(fd, data[:1000])  # as a pipe that is nearly full
lines = writer.LineWriter(1, 10**6, 0.0, turns=Turns(int(sys.argv[1])))
for number in range(300):
    lines.append(sys.argv[2].encode() * (number * 40))
assert lines.close(60)
"""


def test_lines_of_several_processes_do_not_mix() -> None:
    """However long a client has made them: beyond PIPE_BUF the system keeps no write together (pipe(7))."""
    turns = Turns.make()
    read_end, write_end = os.pipe()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _WRITE_LINES, str(turns.fd), letter],
            stdout=write_end,
            pass_fds=[turns.fd],
        )
        for letter in "abc"
    ]
    os.close(write_end)
    try:
        with os.fdopen(read_end, "rb") as out:
            lines = out.read().split(b"\n")
        assert [process.wait(60) for process in processes] == [0, 0, 0]
    finally:
        for process in processes:
            process.kill()
            process.wait()
        os.close(turns.fd)
    for letter in (b"a", b"b", b"c"):
        assert [len(line) for line in lines if line[:1] == letter] == list(range(40, 12_000, 40))
    assert all(len(set(line)) <= 1 for line in lines)


def test_what_a_process_left_behind_half_written_stays_a_line_of_its_own(pipe: Pipe) -> None:
    turns = Turns.make()
    try:
        if not (child := os.fork()):
            with turns.taken(pipe.write_end):
                os.write(pipe.write_end, b"half a li")
                os._exit(0)
        os.waitpid(child, 0)
        writer = LineWriter(pipe.write_end, PLENTY, 0.0, turns=turns)
        writer.append(b"one")
        writer.append(b"two")
        assert lines_of(pipe, writer) == [b"half a li", b"one", b"two"]
    finally:
        os.close(turns.fd)
