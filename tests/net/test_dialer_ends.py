"""Races of many at once, and their end: nothing is left, whatever fails or breaks in."""

from __future__ import annotations

import asyncio
import errno
import select
import socket
from collections.abc import Callable
from typing import Any

import pytest

from egress_proxy.config.model import Dial
from egress_proxy.core import reasons
from egress_proxy.net.poller import Interrupted
from tests.net.dialling import (
    OK,
    REFUSED,
    SILENT,
    SILENT_TOO,
    SIX,
    Dialling,
    Ports,
    reached,
    sockets,
)

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop", "asyncio"])


# Many at once -----------------------------------------------------------------------------------


async def test_attempts_beside_a_first_one_are_bounded(running: Dialling, port: Ports) -> None:
    """Clients are counted, and what names lead to is not: a name with many dead addresses takes no descriptors away."""
    running.dialer.most_beside = 3
    port.silence(SILENT, SILENT_TOO, SIX)
    port.listen(OK)
    before = sockets()
    begun = [
        running.begin(
            *(SIX, SILENT, SILENT_TOO),
            port=port.number,
            settings=Dial(stagger=0.02),
            connect_attempt=0.3,
        )[1]
        for _ in range(4)
    ]
    most = 0
    while not all(future.done() for future in begun):
        most = max(most, sockets() - before)
        await asyncio.sleep(0.005)
    assert most == 4 + 3
    assert {future.result().reason for future in begun} == {reasons.CONNECTION_TIMEOUT}
    assert {future.result().attempts for future in begun} == {3}
    assert running.dialer._beside == 0


async def test_without_room_beside_one_follows_the_other(running: Dialling, port: Ports) -> None:
    running.dialer.most_beside = 0
    port.silence(SILENT)
    port.listen(OK)
    settings = Dial(stagger=0.02)
    dialled = await running.dial(
        SILENT, REFUSED, OK, port=port.number, settings=settings, connect_attempt=0.2
    )
    assert reached(dialled) == OK
    assert dialled.failed == (f"{SILENT} connection_timeout", f"{REFUSED} connection_refused")


async def test_room_that_comes_back_is_used(running: Dialling, port: Ports) -> None:
    running.dialer.most_beside = 0
    port.silence(SILENT)
    port.listen(OK)
    _, future = running.begin(SILENT, OK, port=port.number, settings=Dial(stagger=0.02))
    await asyncio.sleep(0.1)
    assert not future.done()
    running.dialer.most_beside = 1
    assert reached(await asyncio.wait_for(future, 2)) == OK


# Its end, whatever comes ------------------------------------------------------------------------


async def test_interrupted_in_the_middle_of_a_race(running: Dialling, port: Ports) -> None:
    """Draining, or a permission that is taken back: nothing is left, and nothing begins afterwards."""
    port.silence(SIX, SILENT)
    port.listen(OK)
    before = sockets()
    strand, future = running.begin(SIX, SILENT, OK, port=port.number, settings=Dial(stagger=0.1))
    await asyncio.sleep(0.15)
    assert sockets() == before + 2
    strand.interrupt(Interrupted(reasons.DRAIN_TIMEOUT))
    assert isinstance(future.exception(), Interrupted)
    assert sockets() == before
    assert running.watched == set()
    assert running.poller.connections == set()
    await asyncio.sleep(0.15)
    assert not port.reached(OK)
    assert running.dialer._beside == 0


@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), MemoryError()], ids=repr)
@pytest.mark.parametrize(
    ("call", "last"),
    [
        ("__init__", OK),
        ("setsockopt", OK),
        ("bind", OK),
        ("connect_ex", OK),
        ("fileno", OK),
        ("register", OK),
        ("getsockopt", REFUSED),
        ("getsockname", OK),
    ],
)
async def test_no_call_that_fails_leaves_anything_open(
    running: Dialling,
    port: Ports,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    error: BaseException,
    last: str,
) -> None:
    """In a race with a silent one, which is closed with it."""
    port.silence(SILENT)
    port.listen(OK)
    before, broken = sockets(), []
    settings = Dial(stagger=0.05, source_addresses=("127.0.0.1",))
    strand, future = running.begin(SILENT, last, port=port.number, settings=settings)
    assert sockets() == before + 1

    def fail(*_: object) -> None:
        broken.append(call)
        raise error

    with monkeypatch.context() as patch:
        if call == "register":
            patch.setattr(running.poller, "_epoll", _Epoll(running.poller._epoll, fail))
        else:
            type_ = type("Broken", (socket.SocketType,), {call: fail})
            patch.setattr(socket, "SocketType", type_)
        await asyncio.wait({future}, timeout=0.2)
        if not future.done():
            # The second attempt has failed, and the first goes on.
            assert sockets() == before + 1
            strand.interrupt(Interrupted(reasons.DRAIN_TIMEOUT))
    assert broken == [call]
    assert future.exception() is error or isinstance(future.exception(), Interrupted)
    assert sockets() == before
    assert running.watched == set()
    assert running.dialer._beside == 0
    assert running.poller.connections == set()


class _Epoll:
    """An epoll that has no room for another descriptor."""

    def __init__(self, epoll: select.epoll, register: Callable[..., None]) -> None:
        self._epoll = epoll
        self.register = register

    def __getattr__(self, name: str) -> Any:
        return getattr(self._epoll, name)
