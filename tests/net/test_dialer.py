"""Connecting: order, stagger, deadlines, and what is left of those that lose."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import time
from typing import Any

import pytest

from egress_proxy.config.model import Dial, Family
from egress_proxy.core import reasons
from egress_proxy.net import dialer
from egress_proxy.net.dialer import Dialled, _interleaved
from egress_proxy.net.poller import READABLE, WRITABLE, Interrupted
from tests.net.dialling import (
    OK,
    OTHER,
    REFUSED,
    SILENT,
    SILENT_TOO,
    SIX,
    SLACK,
    Dialling,
    Ports,
    failing,
    reached,
    sockets,
    vetted,
)

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop", "asyncio"])

#: Nobody waits for it in a test.
NEVER = 10.0


def watched_alone(running: Dialling, dialled: Dialled) -> None:
    """Nothing of the attempt is left but the connection."""
    assert dialled.socket is not None
    assert running.watched == {dialled.socket.fileno()}
    assert running.dialer._beside == 0


# One address ------------------------------------------------------------------------------------


async def test_one_address(running: Dialling, port: Ports, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no timer is made for it."""
    port.listen(OK)
    timers: list[object] = []
    with monkeypatch.context() as patch:
        patch.setattr(running.poller, "loop", _Loop(running.poller.loop, timers))
        dialled = await running.dial(OK, port=port.number)
    assert reached(dialled) == OK
    assert (dialled.attempts, dialled.failed) == (1, ())
    assert timers == []
    watched_alone(running, dialled)
    assert dialled.socket is not None
    assert not dialled.socket.getblocking()
    assert dialled.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


class _Loop:
    """An event loop that is told to make no timer."""

    def __init__(self, loop: asyncio.AbstractEventLoop, timers: list[object]) -> None:
        self._loop = loop
        self._timers = timers

    def call_later(self, *arguments: Any) -> Any:
        self._timers.append(arguments)
        return self._loop.call_later(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)


async def test_one_address_over_ipv6(running: Dialling, port: Ports) -> None:
    port.listen(SIX)
    assert reached(await running.dial(SIX, port=port.number)) == SIX


async def test_nobody_listens(running: Dialling, port: Ports) -> None:
    dialled = await running.dial(REFUSED, port=port.number)
    assert dialled == Dialled(reasons.CONNECTION_REFUSED, ip=REFUSED)


async def test_no_answer_in_time(running: Dialling, port: Ports) -> None:
    port.silence(SILENT)
    start = time.monotonic()
    dialled = await running.dial(SILENT, port=port.number, connect_attempt=0.1)
    assert 0.1 <= time.monotonic() - start < 0.1 + SLACK
    assert dialled == Dialled(reasons.CONNECTION_TIMEOUT, ip=SILENT)


async def test_no_address(running: Dialling) -> None:
    dialled = await running.dial(port=443)
    assert dialled == Dialled(reasons.CONNECTION_FAILED, attempts=0)


async def test_the_edges_and_the_handler_are_left_to_the_strand(
    running: Dialling, port: Ports
) -> None:
    port.listen(OK)
    strand, future = running.begin(OK, port=port.number)
    dialled = await future
    assert strand.edges & WRITABLE
    assert dialled.socket is not None
    assert running.poller._handlers[dialled.socket.fileno()] == strand.wake
    connection, _ = port.listeners[OK].accept()
    woken = asyncio.get_running_loop().create_future()

    async def wait() -> None:
        await strand.until(READABLE, time.monotonic() + 5)
        woken.set_result(strand.edges)

    with connection:
        strand.start(wait())
        connection.sendall(b"220 ready\r\n")
        assert await asyncio.wait_for(woken, 5) & READABLE


async def test_edges_of_the_client_are_not_the_connections(running: Dialling, port: Ports) -> None:
    """Nor are they the timer."""
    port.silence(SILENT)
    port.listen(OK)
    here, there = socket.socketpair()
    with here, there:
        here.setblocking(False)
        settings = Dial(stagger=NEVER)
        strand, future = running.begin(SILENT, OK, port=port.number, settings=settings)
        running.poller.watch(here.fileno(), strand.wake)
        there.sendall(b"more")
        await asyncio.sleep(0.1)
        assert not future.done()
        strand.interrupt(Interrupted(reasons.DRAIN_TIMEOUT))
        assert isinstance(future.exception(), Interrupted)
        running.poller.close(here.detach())


async def test_no_timer_wakes_the_strand_afterwards(running: Dialling, port: Ports) -> None:
    port.listen(OK)
    settings = Dial(stagger=0.05)
    strand, future = running.begin(OK, OTHER, port=port.number, settings=settings)
    assert reached(await future) == OK
    woken: list[int] = []

    async def wait() -> None:
        with contextlib.suppress(Interrupted):
            await strand.parked(time.monotonic() + 5)
            woken.append(strand.edges)

    strand.start(wait())
    await asyncio.sleep(0.15)
    strand.interrupt(Interrupted(reasons.DRAIN_TIMEOUT))
    assert woken == []


# Several ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("addresses", "prefer", "order"),
    [
        ("4a 4b", "ipv6", "4a 4b"),
        ("6a 6b", "ipv4", "6a 6b"),
        ("4a 6a", "ipv6", "6a 4a"),
        ("6a 4a", "ipv6", "6a 4a"),
        ("6a 4a", "ipv4", "4a 6a"),
        ("4a 4b 4c 6a 6b", "ipv6", "6a 4a 6b 4b 4c"),
        ("6a 6b 6c 4a", "ipv6", "6a 4a 6b 6c"),
        ("6a 6b 6c 4a", "ipv4", "4a 6a 6b 6c"),
        ("4b 6b 4a 6a", "ipv6", "6b 4b 6a 4a"),
    ],
)
async def test_the_families_take_turns(addresses: str, prefer: str, order: str) -> None:
    """RFC 8305 §4; within a family the order is the name server's."""
    names = {f"4{letter}": f"127.0.0.{number}" for number, letter in enumerate("abc", 2)}
    real = {
        name: vetted(names[name])[0] if name in names else _six(name) for name in addresses.split()
    }
    found = _interleaved(tuple(real[name] for name in addresses.split()), Family(prefer))
    assert [next(name for name in real if real[name] is each) for each in found] == order.split()


def _six(name: str) -> Any:
    """Loopback has one IPv6 address, so these are public."""
    from egress_proxy.core.addresses import vet

    return vet((f"2606:4700::{name}",), 443).passed[0]


@pytest.mark.parametrize(("prefer", "first"), [(Family.IPV6, SIX), (Family.IPV4, OK)])
async def test_the_preferred_family_is_dialled_first(
    running: Dialling, port: Ports, prefer: Family, first: str
) -> None:
    port.listen(OK, SIX)
    settings = Dial(prefer=prefer, stagger=NEVER)
    dialled = await running.dial(OK, SIX, port=port.number, settings=settings)
    assert reached(dialled) == first
    assert dialled.attempts == 1
    assert not port.reached(({OK, SIX} - {first}).pop())
    watched_alone(running, dialled)


async def test_a_silent_address_delays_by_the_stagger_alone(running: Dialling, port: Ports) -> None:
    port.silence(SIX)
    port.listen(OK)
    before = sockets()
    start = time.monotonic()
    dialled = await running.dial(SIX, OK, port=port.number, settings=Dial(stagger=0.1))
    # uvloop's timers count whole milliseconds.
    assert 0.095 <= time.monotonic() - start < 0.1 + SLACK
    assert reached(dialled) == OK
    assert (dialled.attempts, dialled.failed) == (2, ())
    watched_alone(running, dialled)
    assert sockets() == before + 1


async def test_a_refusal_is_not_waited_out(running: Dialling, port: Ports) -> None:
    """RFC 8305 §5."""
    port.listen(OK)
    start = time.monotonic()
    settings = Dial(stagger=NEVER)
    dialled = await running.dial(REFUSED, SIX, OK, port=port.number, settings=settings)
    assert time.monotonic() - start < SLACK
    assert reached(dialled) == OK
    assert dialled.attempts == 3
    assert dialled.failed == (f"{SIX} connection_refused", f"{REFUSED} connection_refused")
    watched_alone(running, dialled)


async def test_a_failure_at_once_is_not_waited_out_either(
    running: Dialling, port: Ports, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While another one races: the system says no in connect() itself, as where there is no route."""
    port.silence(SILENT)
    port.listen(OK)
    failing(monkeypatch, {REFUSED: errno.ENETUNREACH})
    start = time.monotonic()
    settings = Dial(stagger=NEVER)
    strand, future = running.begin(SILENT, REFUSED, OK, port=port.number, settings=settings)
    strand.go_on(0)  # as the timer does
    dialled = await future
    assert time.monotonic() - start < SLACK
    assert reached(dialled) == OK
    assert dialled.failed == (f"{REFUSED} destination_unreachable",)


async def test_the_stagger_begins_anew_with_each_attempt(running: Dialling, port: Ports) -> None:
    port.silence(SILENT, SILENT_TOO)
    port.listen(OK)
    start = time.monotonic()
    settings = Dial(stagger=0.2)
    addresses = SILENT, REFUSED, SILENT_TOO, OK
    dialled = await running.dial(*addresses, port=port.number, settings=settings)
    # The second follows the first by a stagger, the third the second at once, the fourth the third by a stagger.
    assert 0.39 <= time.monotonic() - start < 0.4 + SLACK
    assert reached(dialled) == OK
    assert dialled.attempts == 4
    watched_alone(running, dialled)


async def test_the_first_to_stand_is_taken_though_others_stand_too(
    running: Dialling, port: Ports
) -> None:
    """Both connect before the poller looks."""
    port.listen(OK, OTHER)
    settings = Dial(stagger=0.01)
    _, future = running.begin(OK, OTHER, port=port.number, settings=settings)
    time.sleep(0.05)  # the loop stands still; the timer comes first when it goes on
    dialled = await future
    assert reached(dialled) in {OK, OTHER}
    watched_alone(running, dialled)


async def test_all_refuse(running: Dialling, port: Ports) -> None:
    dialled = await running.dial(SIX, REFUSED, OK, port=port.number)
    failed = tuple(f"{ip} connection_refused" for ip in (SIX, REFUSED, OK))
    assert dialled == Dialled(reasons.CONNECTION_REFUSED, None, OK, 3, failed)


async def test_each_has_its_deadline(running: Dialling, port: Ports) -> None:
    port.silence(SILENT, SILENT_TOO, SIX)
    start = time.monotonic()
    settings = Dial(stagger=0.05)
    addresses = SIX, SILENT, SILENT_TOO
    dialled = await running.dial(
        *addresses, port=port.number, settings=settings, connect_attempt=0.2
    )
    assert 0.29 <= time.monotonic() - start < 0.3 + SLACK
    failed = tuple(f"{ip} connection_timeout" for ip in addresses)
    assert dialled == Dialled(reasons.CONNECTION_TIMEOUT, None, SILENT_TOO, 3, failed)


async def test_an_attempt_that_ends_in_time_out_makes_way(running: Dialling, port: Ports) -> None:
    """The stagger may be longer than an attempt."""
    port.silence(SILENT)
    port.listen(OK)
    settings = Dial(stagger=NEVER)
    dialled = await running.dial(
        SILENT, OK, port=port.number, settings=settings, connect_attempt=0.1
    )
    assert reached(dialled) == OK
    assert dialled.failed == (f"{SILENT} connection_timeout",)


async def test_all_together_have_a_deadline(running: Dialling, port: Ports) -> None:
    port.silence(SILENT, SILENT_TOO)
    port.listen(OK)
    start = time.monotonic()
    settings = Dial(stagger=0.1)
    dialled = await running.dial(
        SILENT, SILENT_TOO, OK, port=port.number, settings=settings, connect=0.15
    )
    assert 0.15 <= time.monotonic() - start < 0.15 + SLACK
    assert dialled.reason is reasons.CONNECTION_TIMEOUT
    assert dialled.attempts <= 2
    assert not port.reached(OK)
    assert running.watched == set()


async def test_nothing_begins_after_the_end(
    running: Dialling, port: Ports, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the loop was late, the next one's turn comes when the time of all is over already."""
    port.silence(SILENT)
    port.listen(OK)
    strand, future = running.begin(SILENT, OK, port=port.number, settings=Dial(stagger=NEVER))
    now = time.monotonic()
    monkeypatch.setattr(dialer, "monotonic", lambda: now + 60)
    strand.go_on(0)
    assert len(running.watched) == 1
    strand.interrupt(Interrupted(reasons.DRAIN_TIMEOUT))
    assert isinstance(future.exception(), Interrupted)
    assert not port.reached(OK)


async def test_not_more_than_so_many_are_tried(running: Dialling, port: Ports) -> None:
    port.listen(OK)
    settings = Dial(max_attempts=2)
    dialled = await running.dial(SIX, REFUSED, OK, port=port.number, settings=settings)
    assert dialled.reason is reasons.CONNECTION_REFUSED
    assert dialled.attempts == 2
    assert not port.reached(OK)


async def test_a_record_names_the_first_few(running: Dialling, port: Ports) -> None:
    addresses = [f"127.0.1.{number}" for number in range(1, 13)]
    dialled = await running.dial(*addresses, port=port.number)
    assert dialled.attempts == 12
    failed = tuple(f"{ip} connection_refused" for ip in addresses[:8])
    assert dialled.failed == failed
    port.listen(OK)
    settings = Dial(failure_memory=0)
    dialled = await running.dial(*addresses, OK, port=port.number, settings=settings)
    assert reached(dialled) == OK
    assert len(dialled.failed) == 8


@pytest.mark.parametrize(
    ("errors", "reason", "ip"),
    [
        ({OK: "ENETUNREACH", OTHER: "EHOSTUNREACH"}, "destination_unreachable", OTHER),
        ({OK: "ENETUNREACH"}, "connection_refused", OTHER),
        ({OTHER: "ENETUNREACH"}, "connection_refused", OK),
        ({OK: "EACCES", OTHER: "EAFNOSUPPORT"}, "connection_failed", OK),
    ],
)
async def test_what_is_told_where_all_fail(
    running: Dialling,
    port: Ports,
    monkeypatch: pytest.MonkeyPatch,
    errors: dict[str, str],
    reason: str,
    ip: str,
) -> None:
    """A family without a route says less than an address that refused; address and reason go together."""
    failing(monkeypatch, {ip: getattr(errno, name) for ip, name in errors.items()})
    dialled = await running.dial(OK, OTHER, port=port.number)
    assert dialled.reason is not None
    assert (dialled.reason.name, dialled.ip) == (reason, ip)
    assert f"{ip} {reason}" in dialled.failed
