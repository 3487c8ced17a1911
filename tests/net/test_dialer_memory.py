"""Addresses that failed, or were too slow, are tried after the others for a while."""

from __future__ import annotations

import errno
import time
from types import SimpleNamespace

import pytest

from egress_proxy.config.model import Dial
from egress_proxy.core import reasons
from egress_proxy.net import dialer as module
from tests.net.dialling import (
    OK,
    OTHER,
    REFUSED,
    SILENT,
    SILENT_TOO,
    SIX,
    Dialling,
    Ports,
    failing,
    reached,
    vetted,
)

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop", "asyncio"])

PATIENT = Dial(stagger=10.0)
BRIEF = Dial(stagger=0.05)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What is added to the dialler's clock."""
    ahead = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(module, "monotonic", lambda: time.monotonic() + ahead.seconds)
    return ahead


def order(running: Dialling, *addresses: str, port: int, settings: Dial = PATIENT) -> list[str]:
    """In which these addresses would be dialled now."""
    found = running.dialer._order(
        vetted(*addresses, port=port), settings, module.__dict__["monotonic"]()
    )
    return [address.ip for address in found]


async def test_what_refused_is_tried_after_the_others(running: Dialling, port: Ports) -> None:
    port.listen(OK)
    for attempts in (2, 1):
        dialled = await running.dial(REFUSED, OK, port=port.number, settings=PATIENT)
        assert reached(dialled) == OK
        assert dialled.attempts == attempts


async def test_what_did_not_answer_in_time_is_tried_after_the_others(
    running: Dialling, port: Ports
) -> None:
    port.silence(SILENT)
    port.listen(OK)
    for attempts in (2, 1):
        dialled = await running.dial(
            SILENT, OK, port=port.number, settings=PATIENT, connect_attempt=0.1
        )
        assert reached(dialled) == OK
        assert dialled.attempts == attempts


async def test_what_another_has_overtaken_is_tried_after_the_others(
    running: Dialling, port: Ports
) -> None:
    """A family that leads nowhere costs the stagger once in a while, not with each request."""
    port.silence(SIX)
    port.listen(OK)
    for attempts in (2, 1):
        dialled = await running.dial(OK, SIX, port=port.number, settings=BRIEF)
        assert reached(dialled) == OK
        assert dialled.attempts == attempts


async def test_what_was_closed_before_its_time_is_not_remembered(
    running: Dialling, port: Ports
) -> None:
    """It had no stagger of its own, so nobody knows what it would have done."""
    port.silence(SILENT, SILENT_TOO)
    port.listen(OK)
    # The first fails just after the second has begun, and makes way for the third.
    dialled = await running.dial(
        *(SILENT, SILENT_TOO, OK),
        port=port.number,
        settings=Dial(stagger=0.3),
        connect_attempt=0.31,
    )
    assert reached(dialled) == OK
    assert dialled.attempts == 3
    assert set(running.dialer._deferred) == {(SILENT, port.number)}


async def test_who_is_remembered_is_dialled_where_there_is_nobody_else(
    running: Dialling, port: Ports
) -> None:
    assert (await running.dial(OK, port=port.number)).reason is reasons.CONNECTION_REFUSED
    assert (await running.dial(OK, OTHER, port=port.number)).attempts == 2
    port.listen(OK)
    assert reached(await running.dial(OK, OTHER, port=port.number)) == OK


async def test_those_remembered_keep_their_order(running: Dialling, port: Ports) -> None:
    await running.dial(REFUSED, OTHER, port=port.number)
    assert order(running, OTHER, OK, REFUSED, port=port.number) == [OK, OTHER, REFUSED]
    assert order(running, OTHER, REFUSED, SIX, port=port.number) == [SIX, OTHER, REFUSED]


async def test_it_is_remembered_for_its_port_alone(running: Dialling, port: Ports) -> None:
    await running.dial(REFUSED, port=port.number)
    assert order(running, REFUSED, OK, port=port.number) == [OK, REFUSED]
    assert order(running, REFUSED, OK, port=port.number + 1) == [REFUSED, OK]


async def test_it_is_forgotten_after_its_time(
    running: Dialling, port: Ports, clock: SimpleNamespace
) -> None:
    await running.dial(REFUSED, port=port.number, settings=Dial(failure_memory=10))
    clock.seconds = 9
    assert order(running, REFUSED, OK, port=port.number) == [OK, REFUSED]
    clock.seconds = 11
    assert order(running, REFUSED, OK, port=port.number) == [REFUSED, OK]
    assert running.dialer._deferred == {}


async def test_a_later_failure_prolongs_it(
    running: Dialling, port: Ports, clock: SimpleNamespace
) -> None:
    for seconds in (0, 9):
        clock.seconds = seconds
        await running.dial(REFUSED, port=port.number, settings=Dial(failure_memory=10))
    clock.seconds = 18
    assert order(running, REFUSED, OK, port=port.number) == [OK, REFUSED]


async def test_a_success_forgets_it(running: Dialling, port: Ports) -> None:
    await running.dial(OK, port=port.number)
    assert order(running, OK, OTHER, port=port.number) == [OTHER, OK]
    port.listen(OK)
    assert reached(await running.dial(OK, port=port.number)) == OK
    assert order(running, OK, OTHER, port=port.number) == [OK, OTHER]


async def test_who_comes_late_and_first_is_not_remembered(running: Dialling, port: Ports) -> None:
    """It has had its time alone, and nobody has overtaken it."""
    port.silence(SILENT)
    port.listen(OK)
    _, future = running.begin(OK, SILENT, port=port.number, settings=Dial(stagger=0.01))
    time.sleep(0.05)  # the loop stands still, so that the timer comes before the connection
    assert reached(await future) == OK
    assert running.dialer._deferred == {}


async def test_nothing_is_remembered_for_no_time(running: Dialling, port: Ports) -> None:
    port.silence(SIX)
    port.listen(OK)
    forgetful = Dial(stagger=0.02, failure_memory=0)
    for _ in range(2):
        dialled = await running.dial(REFUSED, SIX, OK, port=port.number, settings=forgetful)
        assert dialled.attempts == 3
    assert running.dialer._deferred == {}


async def test_a_reload_can_switch_it_off(running: Dialling, port: Ports) -> None:
    await running.dial(REFUSED, port=port.number)
    off = Dial(failure_memory=0)
    assert order(running, REFUSED, OK, port=port.number, settings=off) == [REFUSED, OK]


@pytest.mark.parametrize("name", ["EMFILE", "ENFILE", "ENOBUFS", "ENOMEM", "EADDRNOTAVAIL"])
async def test_what_this_machine_lacks_is_not_held_against_an_address(
    running: Dialling, port: Ports, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    failing(monkeypatch, {OK: getattr(errno, name)})
    dialled = await running.dial(OK, port=port.number)
    assert dialled.reason is reasons.CONNECTION_FAILED
    assert running.dialer._deferred == {}


async def test_the_oldest_goes_where_there_are_too_many(
    running: Dialling, port: Ports, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients choose destinations."""
    monkeypatch.setattr(module, "_MEMORY_SIZE", 3)
    for number in (1, 2, 3, 2, 4):
        await running.dial(f"127.0.1.{number}", port=port.number)
    kept = [ip for ip, _ in running.dialer._deferred]
    assert kept == ["127.0.1.3", "127.0.1.2", "127.0.1.4"]
