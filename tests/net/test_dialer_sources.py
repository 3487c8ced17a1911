"""Where connections come from (``dial.source_addresses``)."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from egress_proxy.config.model import Dial
from egress_proxy.core import reasons
from egress_proxy.net import dialer as module
from egress_proxy.net.dialer import is_local, warn_of_missing_sources
from tests.net.dialling import OK, SIX, Dialling, Ports, reached, sockets

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop", "asyncio"])

#: TEST-NET-1: no machine has it.
ELSEWHERE = "192.0.2.10"
ELSEWHERE_TOO = "2001:db8::10"


def source(*addresses: str) -> Dial:
    return Dial(stagger=0.05, source_addresses=addresses)


async def test_a_connection_comes_from_the_address_of_its_family(
    running: Dialling, port: Ports
) -> None:
    port.listen(OK, SIX)
    both = source("127.0.0.77", "::1")
    assert reached(await running.dial(OK, port=port.number, settings=both)) == OK
    assert port.peer(OK) == "127.0.0.77"
    assert reached(await running.dial(SIX, port=port.number, settings=both)) == SIX
    assert port.peer(SIX) == "::1"


async def test_a_family_without_one_is_left_to_the_system(running: Dialling, port: Ports) -> None:
    port.listen(OK, SIX)
    assert reached(await running.dial(OK, port=port.number, settings=source("::1"))) == OK
    assert port.peer(OK) == "127.0.0.1"
    assert reached(await running.dial(SIX, port=port.number, settings=source("127.0.0.77"))) == SIX


@pytest.mark.parametrize(("to", "come_from"), [(OK, "127.0.0.77"), (SIX, "::1")])
async def test_the_port_is_chosen_for_each_destination(
    running: Dialling, port: Ports, to: str, come_from: str
) -> None:
    """ip(7), IP_BIND_ADDRESS_NO_PORT: else all destinations together would share 28,000 ports."""
    port.listen(to)
    dialled = await running.dial(to, port=port.number, settings=source(come_from))
    assert dialled.socket is not None
    assert dialled.socket.getsockopt(socket.IPPROTO_IP, module._BIND_ADDRESS_NO_PORT) == 1


@pytest.mark.parametrize(("to", "come_from"), [(OK, ELSEWHERE), (SIX, ELSEWHERE_TOO)])
async def test_an_address_that_this_machine_lacks(
    running: Dialling, port: Ports, to: str, come_from: str
) -> None:
    """Nothing goes out from another one instead."""
    port.listen(to)
    before = sockets()
    dialled = await running.dial(to, port=port.number, settings=source(come_from))
    assert dialled.reason is reasons.CONNECTION_FAILED
    assert not port.reached(to)
    assert sockets() == before
    assert running.dialer._deferred == {}


async def test_the_other_family_goes_on_without_it(running: Dialling, port: Ports) -> None:
    port.listen(OK, SIX)
    dialled = await running.dial(OK, SIX, port=port.number, settings=source(ELSEWHERE_TOO))
    assert reached(dialled) == OK
    assert dialled.failed == ("::1 connection_failed",)


async def test_the_operator_is_told_of_those_that_this_machine_lacks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[tuple[str, dict[str, Any]]] = []

    class Log:
        def warning(self, event: str, /, **fields: Any) -> None:
            said.append((event, fields))

    monkeypatch.setattr(module, "log", Log())
    warn_of_missing_sources(source("127.0.0.1", "::1"))
    assert said == []
    warn_of_missing_sources(source("127.0.0.1", ELSEWHERE_TOO))
    ((event, fields),) = said
    assert (event, fields["address"]) == ("source_address_missing", ELSEWHERE_TOO)


@pytest.mark.parametrize("ip", ["127.0.0.1", "127.9.8.7", "::1", "0.0.0.0", "::"])
async def test_what_this_machine_has(ip: str) -> None:
    assert is_local(ip)


@pytest.mark.parametrize("ip", [ELSEWHERE, ELSEWHERE_TOO, "fe80::1", "8.8.8.8"])
async def test_what_it_does_not_have(ip: str) -> None:
    assert not is_local(ip)
