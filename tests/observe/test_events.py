"""Events: JSON lines on stderr that say what happened, and stop nobody."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from egress_proxy.observe import events
from egress_proxy.observe.events import log
from tests.observe.line_pipe import Pipe


@pytest.fixture
def to_pipe(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipe]:
    """Events go to a pipe; pytest's own handlers are kept out of reach."""
    monkeypatch.setattr(logging.root, "handlers", [])
    level = logging.root.level
    events.configure(pipe.write_end)
    yield pipe
    pipe.close_read_end()
    events.close()
    events._stderr.writer = events._writer(events.STDERR)
    logging.root.setLevel(level)


def told(pipe: Pipe) -> list[dict[str, Any]]:
    assert events.close()
    return [json.loads(line) for line in pipe.read_all().splitlines()]


def test_an_event_has_time_level_name_and_fields(to_pipe: Pipe) -> None:
    log.info("started", port=3128)
    log.warning("reload_failed", problems=["file:1:2: what"])
    log.error("stopped")
    lines = told(to_pipe)
    for line in lines:
        assert line.pop("timestamp").endswith("Z")
    assert [list(line.items()) for line in lines] == [
        [("level", "info"), ("event", "started"), ("port", 3128)],
        [("level", "warning"), ("event", "reload_failed"), ("problems", ["file:1:2: what"])],
        [("level", "error"), ("event", "stopped")],
    ]


def test_a_defect_comes_with_its_traceback_in_one_line(to_pipe: Pipe) -> None:
    try:
        raise ValueError("DENIED\nby \x1b[31mmistake")
    except ValueError:
        log.error("internal_error", request_id="r", exc_info=True)
    assert events.close()
    data = to_pipe.read_all()
    assert data.count(b"\n") == 1
    assert b"DENIED" not in data
    assert b"\x1b" not in data
    exception = json.loads(data)["exception"]
    assert exception.startswith("Traceback")
    assert exception.endswith("ValueError: DENIED\nby \x1b[31mmistake")


def test_what_libraries_log_is_an_event_too(to_pipe: Pipe) -> None:
    logging.getLogger("asyncio").debug("not told")
    logging.getLogger("asyncio").warning("a %s thing", "slow")
    try:
        raise OSError("lost")
    except OSError:
        logging.getLogger("asyncio").exception("Task exception was never retrieved")
    slow, lost = told(to_pipe)
    assert (slow["event"], slow["level"], slow["logger"]) == (
        "library_message",
        "warning",
        "asyncio",
    )
    assert slow["message"] == "a slow thing"
    assert "exception" not in slow
    assert lost["level"] == "error"
    assert lost["exception"].endswith("OSError: lost")


def test_a_stalled_stderr_stops_nobody(to_pipe: Pipe) -> None:
    to_pipe.fill()
    start = time.monotonic()
    for _ in range(5000):
        log.info("event")
    assert time.monotonic() - start < 5


PROGRAM = """
import os
from egress_proxy.observe import events
events.configure()
events.log.info("parent")
child = os.fork()
if child == 0:
    events.log.info("child")
    assert events.close()
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
events.log.info("last words")
"""


def test_events_outlive_a_fork_and_the_end_of_the_process() -> None:
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ})
    names = [json.loads(line)["event"] for line in done.stderr.splitlines()]
    assert sorted(names) == ["child", "last words", "parent"]
    assert done.stdout == ""
