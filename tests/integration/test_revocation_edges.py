"""Taking permissions back when something is wrong: it goes on, and closes what it cannot decide."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from egress_proxy.config.model import OnRevoke
from egress_proxy.core import reasons
from egress_proxy.core.identity import Identity
from egress_proxy.core.names import parse_authority
from egress_proxy.net import revocation
from egress_proxy.net.poller import Interrupted
from egress_proxy.net.revocation import Permit, revoke

PERMIT = Permit(
    Identity("10.0.0.1"),
    parse_authority(b"a.test:443", None),
    "192.0.2.1",
    verified=True,
    stamp=None,
)


class Connection:
    """One that notes how it was ended."""

    def __init__(self, permit: object = PERMIT, *, breaks: bool = False) -> None:
        self.permit = permit
        self.ended: list[Exception] = []
        self._breaks = breaks

    def interrupt(self, error: Exception) -> None:
        self.ended.append(error)
        if self._breaks:
            raise ZeroDivisionError


def worker_with(*connections: Connection, on_revoke: OnRevoke = OnRevoke.CLOSE) -> Any:
    return SimpleNamespace(
        config=SimpleNamespace(on_revoke=on_revoke),
        generation=2,
        poller=SimpleNamespace(connections=set(connections)),
    )


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    events: list[str] = []
    log = SimpleNamespace(
        error=lambda event, **_: events.append(event), info=lambda event, **_: events.append(event)
    )
    monkeypatch.setattr(revocation, "log", log)
    return events


async def test_what_cannot_be_decided_is_closed(
    monkeypatch: pytest.MonkeyPatch, logged: list[str]
) -> None:
    def defective(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(revocation, "_refusal", defective)
    connections = [Connection() for _ in range(3)]
    await revoke(worker_with(*connections))
    for connection in connections:
        (error,) = connection.ended
        assert isinstance(error, Interrupted)
        assert error.reason.name == "policy_revoked"
    assert logged == ["defect"] * 3 + ["revoked"]


async def test_one_that_breaks_does_not_save_the_others(
    monkeypatch: pytest.MonkeyPatch, logged: list[str]
) -> None:
    monkeypatch.setattr(revocation, "_refusal", lambda *_: reasons.HOST_NOT_ALLOWED)
    connections = [Connection(breaks=True) for _ in range(3)]
    await revoke(worker_with(*connections))
    assert all(connection.ended for connection in connections)
    assert logged.count("defect") == 3


async def test_who_carries_nothing_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, logged: list[str]
) -> None:
    monkeypatch.setattr(revocation, "_refusal", lambda *_: reasons.HOST_NOT_ALLOWED)
    idle, busy = Connection(None), Connection()
    await revoke(worker_with(idle, busy, on_revoke=OnRevoke.KEEP))
    assert not busy.ended
    await revoke(worker_with(idle, busy))
    assert not idle.ended
    assert busy.ended


async def test_a_newer_configuration_ends_the_walk(
    monkeypatch: pytest.MonkeyPatch, logged: list[str]
) -> None:
    """It has a walk of its own."""
    connections = [Connection() for _ in range(5)]
    worker = worker_with(*connections)

    def refused(*_: object) -> Any:
        worker.config = SimpleNamespace(on_revoke=OnRevoke.CLOSE)
        return reasons.HOST_NOT_ALLOWED

    monkeypatch.setattr(revocation, "_refusal", refused)
    monkeypatch.setattr(revocation, "_FAIR_SHARE", -1.0)
    await revoke(worker)
    # The first look's answer was already obsolete before another one was asked for.
    assert sum(bool(connection.ended) for connection in connections) <= 1
