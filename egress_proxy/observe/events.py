"""What happens to the proxy itself, in JSON lines on stderr: start, reload, drain, defects.

They are told apart from audit lines by where they go, and never hold the text ``DENIED``.
"""

from __future__ import annotations

import atexit
import logging
import os
from typing import Any, Final, Protocol

import structlog

from egress_proxy.observe.lines import Clock, encode, hide_denied
from egress_proxy.observe.turns import Turns
from egress_proxy.observe.writer import LineWriter

STDERR: Final = 2
# Events are rare. More of them than this wait only while nobody reads stderr.
_QUEUE_LINES: Final = 1000
# Seconds that the end of the process waits for whoever reads stderr.
_EXIT_TIMEOUT: Final = 1.0


class Log(Protocol):
    """A logger of events. Fields are values for JSON; ``exc_info=True`` adds the traceback."""

    def info(self, event: str, /, **fields: Any) -> None: ...
    def warning(self, event: str, /, **fields: Any) -> None: ...
    def error(self, event: str, /, **fields: Any) -> None: ...


class _Stderr:
    """The end of structlog's chain. A line is queued; a thread writes it at once."""

    def __init__(self) -> None:
        self.writer = _writer(STDERR)
        self.always: dict[str, Any] = {}
        """Fields of every line."""

    def info(self, line: bytes) -> None:
        self.writer.append(line)

    warning = error = info


def _writer(fd: int, turns: Turns | None = None) -> LineWriter:
    return LineWriter(fd, _QUEUE_LINES, flush_interval=0.0, turns=turns)


_clock = Clock()
_stderr = _Stderr()


def _render(_logger: Any, level: str, event_dict: Any) -> bytes:
    head = {"timestamp": _clock.timestamp(), "level": level, "event": event_dict.pop("event")}
    return hide_denied(encode(head | _stderr.always | event_dict))


log: Log = structlog.wrap_logger(
    _stderr,
    processors=[structlog.processors.format_exc_info, _render],
    wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
).bind()


class _FromLogging(logging.Handler):
    """What libraries tell through the standard library, asyncio's lost exceptions above all."""

    def emit(self, record: logging.LogRecord) -> None:
        tell = log.error if record.levelno >= logging.ERROR else log.warning
        tell(
            "library_message",
            logger=record.name,
            message=record.getMessage(),
            exc_info=record.exc_info,
        )


def configure(fd: int = STDERR, *, turns: Turns | None = None, worker: int | None = None) -> None:
    """Send events to this descriptor from now on, and what libraries log with them.

    Where other processes write there too, ``turns`` are taken with them; ``worker`` says which of them this is.
    """
    close()
    _stderr.writer = _writer(fd, turns)
    _stderr.always = {} if worker is None else {"worker": worker}
    logging.basicConfig(level=logging.WARNING, handlers=[_FromLogging()], force=True)


def close(timeout: float = _EXIT_TIMEOUT) -> bool:
    """Write what waits, for at most so many seconds. Returns whether no line was left."""
    return _stderr.writer.close(timeout)


def _after_fork() -> None:
    # The thread and whatever it held stayed with the parent.
    _stderr.writer = _writer(STDERR)


atexit.register(close)
os.register_at_fork(after_in_child=_after_fork)
