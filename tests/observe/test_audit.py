"""The audit log as its readers meet it: fields, levels, and ``grep DENIED``."""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from egress_proxy.config.model import Audit
from egress_proxy.core import reasons
from egress_proxy.core.reason import Event, Reason
from egress_proxy.core.record import Record
from egress_proxy.observe.audit import AuditLog
from tests.observe.line_pipe import Pipe

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "audit-log.md"

WILD_TEXT = st.one_of(
    st.text(),
    st.binary().map(lambda data: data.decode("utf-8", "surrogateescape")),
    st.binary().map(lambda data: data.decode("latin-1")),
    st.sampled_from(["DENIED", "x\\DENIED", '"event":"DENIED"', "\n", "\r\nDENIED\r\n", "\u2028"]),
)


def written(*records: Record) -> bytes:
    """What the log writes for these records."""
    pipe = Pipe(*os.pipe())
    try:
        log = AuditLog(Audit(), pipe.write_end)
        for record in records:
            log.write(record)
        assert log.close(10)
        assert log.dropped == 0
        return pipe.read_all()
    finally:
        pipe.close_read_end()


def line(record: Record) -> dict[str, Any]:
    data = written(record)
    assert data.endswith(b"\n")
    assert data.count(b"\n") == 1
    parsed: dict[str, Any] = json.loads(data)
    return parsed


def test_a_line_says_what_the_record_says_in_its_order() -> None:
    record = Record(
        request_id="r",
        client="10.0.0.1",
        method="CONNECT",
        host="example.com",
        port=443,
        dns_ms=0.25,
    )
    record.conclude(Event.DENIED, reasons.HOST_NOT_ALLOWED)
    said = line(record)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", said.pop("timestamp"))
    assert list(said.items()) == [
        ("level", "warning"),
        ("event", "DENIED"),
        ("request_id", "r"),
        ("client", "10.0.0.1"),
        ("method", "CONNECT"),
        ("host", "example.com"),
        ("port", 443),
        ("code", "POLICY_BLOCKED"),
        ("reason", "host_not_allowed"),
        ("dns_ms", 0.25),
    ]


@pytest.mark.parametrize(
    ("event", "reason", "level"),
    [
        (Event.ALLOWED, None, "info"),
        (Event.CLOSED, reasons.IDLE_TIMEOUT, "info"),
        (Event.DENIED, reasons.DENY_RULE, "warning"),
        (Event.WOULD_DENY, reasons.DENY_RULE, "warning"),
        (Event.FAILED, reasons.DNS_TIMEOUT, "warning"),
        (Event.FAILED, reasons.INTERNAL_ERROR, "error"),
    ],
)
def test_each_event_has_its_level(event: Event, reason: Reason | None, level: str) -> None:
    record = Record()
    record.conclude(event, reason)
    said = line(record)
    assert (said["event"], said["level"]) == (event, level)


@given(host=WILD_TEXT, path=WILD_TEXT, event=st.sampled_from(Event))
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a thread and a pipe each
def test_whatever_a_client_sends_is_one_line_of_its_own_event(
    host: str, path: str, event: Event
) -> None:
    data = written(Record(event=event, host=host, path=path))
    assert data.count(b"\n") == 1
    assert data.isascii()
    said = json.loads(data)
    assert (said["host"], said["path"], said["event"]) == (host, path, event)
    assert (b"DENIED" in data) == (event is Event.DENIED)


def test_grep_denied_is_exact() -> None:
    records = [Record(event=event, path=f"/{other}") for event in Event for other in Event]
    lines = written(*records).splitlines()
    grepped = [json.loads(text)["event"] for text in lines if b"DENIED" in text]
    assert grepped == ["DENIED"] * len(Event)


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_stalled_stdout_does_not_stall_the_loop(
    full_pipe: Pipe, loop_factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    log = AuditLog(Audit(queue_lines=100, flush_interval=0.001), full_pipe.write_end)

    async def requests() -> float:
        slowest = 0.0
        for _ in range(500):
            start = time.perf_counter()
            for _ in range(10):
                log.write(Record(event=Event.ALLOWED, host="example.com"))
            log.write(Record(event=Event.DENIED, host="example.org"))
            await asyncio.sleep(0)
            slowest = max(slowest, time.perf_counter() - start)
        return slowest

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        assert runner.run(requests()) < 1
    assert 0 < 5500 - log.dropped <= 100 + 11 * 500
    start = time.monotonic()
    assert not log.close(0.05)
    assert time.monotonic() - start < 5
    full_pipe.close_read_end()
    assert log._writer._thread is not None
    log._writer._thread.join()


def test_a_broken_stdout_is_told_on_stderr_once(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, dict[str, Any]]] = []

    class Log:
        def error(self, event: str, **fields: Any) -> None:
            told.append((event, fields))

    monkeypatch.setattr("egress_proxy.observe.audit.log", Log())
    log = AuditLog(Audit(flush_interval=0.0), pipe.write_end)
    pipe.close_read_end()
    for _ in range(3):
        log.write(Record(event=Event.ALLOWED))
        time.sleep(0.02)
    log.close(10)
    assert log.dropped == 3
    assert told == [("audit_log_failed", {"error": "Broken pipe"})]


def test_the_page_explains_every_field_in_its_order() -> None:
    explained = re.findall(r"^\| `([a-z_]+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert explained == list(Record.__struct_fields__)
