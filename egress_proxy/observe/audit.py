"""The audit log: one JSON line a request, on its way to stdout.

What a line says is :mod:`egress_proxy.core.record`; docs/reference/audit-log.md explains it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import structlog

from egress_proxy.config.model import Audit
from egress_proxy.core.reason import Code, Event
from egress_proxy.core.record import Record
from egress_proxy.observe.events import log
from egress_proxy.observe.lines import Clock, encode, hide_denied
from egress_proxy.observe.turns import Turns
from egress_proxy.observe.writer import LineWriter

STDOUT: Final = 1

_LEVELS: Final[dict[str, str]] = {
    Event.ALLOWED: "info",
    Event.CLOSED: "info",
    Event.DENIED: "warning",
    Event.WOULD_DENY: "warning",
    Event.FAILED: "warning",
}
# Plain strings: looking a member up in its Enum is a Python call in 3.11.
_DENIED: Final = Event.DENIED.value
_DEFECT: Final = Code.INVARIANT_VIOLATION.value


class AuditLog:
    """Takes records and never blocks: see :class:`~egress_proxy.observe.writer.LineWriter`.

    Where other processes write to the same descriptor, ``turns`` are taken with them.
    """

    def __init__(
        self,
        settings: Audit,
        fd: int = STDOUT,
        *,
        turns: Turns | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._writer = LineWriter(
            fd,
            settings.queue_lines,
            settings.flush_interval,
            turns=turns,
            on_failure=_report_failure,
        )
        # Bound once: structlog otherwise assembles a logger for each line, which costs more than
        # the rest of the line.
        self._log: _RecordLogger = structlog.wrap_logger(
            _Lines(self._writer),
            processors=[_stamp(clock or Clock()), _render],
            wrapper_class=_RecordLogger,
        ).bind()

    @property
    def dropped(self) -> int:
        """Lines that were dropped so far."""
        return self._writer.dropped

    def write(self, record: Record) -> None:
        """Stamp the record with time and level and queue its line."""
        self._log.write(record)

    def close(self, timeout: float) -> bool:
        """Write what waits, for at most so many seconds. Returns whether no line was left."""
        return self._writer.close(timeout)


class _Lines:
    """What structlog calls a logger: takes what the last processor returns."""

    __slots__ = ("write",)

    def __init__(self, writer: LineWriter) -> None:
        self.write = writer.append


class _RecordLogger(structlog.BoundLoggerBase):
    """A logger whose event is a whole record, instead of a text with keywords in a dictionary."""

    def write(self, record: Record) -> None:
        value: Any = record
        for processor in self._processors:
            value = processor(self._logger, "write", value)
        self._logger.write(value)


# Processors hand the record on instead of structlog's dictionary, hence Any.
def _stamp(clock: Clock) -> Callable[[Any, str, Any], Any]:
    timestamp = clock.timestamp

    def stamp(_logger: Any, _method: str, record: Any) -> Any:
        record.timestamp = timestamp()
        # A record without an event is a defect too, and its line is still worth having.
        defect = record.code == _DEFECT
        record.level = "error" if defect else _LEVELS.get(record.event, "error")
        return record

    return stamp


def _render(_logger: Any, _method: str, record: Any) -> bytes:
    line = encode(record)
    return line if record.event == _DENIED else hide_denied(line)


def _report_failure(error: OSError) -> None:
    log.error("audit_log_failed", error=error.strerror)
