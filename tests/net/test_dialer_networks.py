"""What loopback cannot show: few ports, other sources, no route, a long wire, a connection to itself."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from egress_proxy.config.model import Dial
from egress_proxy.core import reasons
from egress_proxy.net.dialer import is_local
from tests.net.dialling import SLACK, Dialling, dialling, reached
from tests.support.namespaces import (
    BLACK_HOLE,
    BLACK_HOLE_6,
    HERE,
    HERE_6,
    HERE_TOO,
    NO_ROUTE_6,
    SLOW_6,
    THERE,
    THERE_6,
    THERE_TOO,
    UNREACHABLE_6,
    Network,
    long_wire,
    need_namespaces,
    network,
)
from tests.support.tools import descriptors

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop", "asyncio"])

PORT = 4433


@pytest.fixture(autouse=True)
def net() -> Iterator[Network]:
    """The test is on one of two machines."""
    need_namespaces()
    with network() as made, made.here.entered():
        yield made


@pytest.fixture
async def running(net: Network) -> AsyncIterator[Dialling]:
    async with dialling() as made:
        yield made


@pytest.fixture
def there(net: Network) -> Iterator[socket.socket]:
    """A server on the other machine, on all of its addresses."""
    with net.there.entered():
        listener = socket.create_server(("::", PORT), family=socket.AF_INET6, dualstack_ipv6=True)
    with listener:
        listener.settimeout(5)
        yield listener


def come_from(there: socket.socket) -> str:
    connection, (host, *_) = there.accept()
    connection.close()
    return str(host).removeprefix("::ffff:")


async def test_no_route(running: Dialling, there: socket.socket) -> None:
    """The system says so at once: no stagger."""
    dialled = await running.dial(THERE, NO_ROUTE_6, port=PORT, settings=Dial(stagger=10))
    assert reached(dialled) == THERE
    assert dialled.failed == (f"{NO_ROUTE_6} destination_unreachable",)
    alone = await running.dial(NO_ROUTE_6, port=PORT)
    assert alone.reason is reasons.DESTINATION_UNREACHABLE


async def test_packets_that_are_dropped(running: Dialling, there: socket.socket) -> None:
    start = time.monotonic()
    for attempts in (2, 1):
        dialled = await running.dial(BLACK_HOLE_6, THERE, port=PORT, settings=Dial(stagger=0.1))
        assert reached(dialled) == THERE
        assert dialled.attempts == attempts
    assert 0.095 <= time.monotonic() - start < 0.1 + SLACK


async def test_the_second_of_one_family(running: Dialling, there: socket.socket) -> None:
    dialled = await running.dial(BLACK_HOLE, THERE_TOO, port=PORT, settings=Dial(stagger=0.1))
    assert reached(dialled) == THERE_TOO


async def test_ipv6_wins_where_it_is_not_too_slow(
    running: Dialling, there: socket.socket, net: Network
) -> None:
    with long_wire(net, 0.05):
        dialled = await running.dial(THERE, SLOW_6, port=PORT, settings=Dial(stagger=2))
        assert reached(dialled) == SLOW_6
        assert dialled.attempts == 1
        running.hang_up()


async def test_ipv6_is_overtaken_where_it_is(
    running: Dialling, there: socket.socket, net: Network
) -> None:
    with long_wire(net, 0.2):
        for attempts in (2, 1):
            dialled = await running.dial(THERE, SLOW_6, port=PORT, settings=Dial(stagger=0.05))
            assert reached(dialled) == THERE
            assert dialled.attempts == attempts
        running.hang_up()


async def test_a_slow_one_still_wins_a_race_against_dead_ones(
    running: Dialling, there: socket.socket, net: Network
) -> None:
    """It goes on while the others are tried."""
    with long_wire(net, 0.1):
        dialled = await running.dial(BLACK_HOLE, SLOW_6, port=PORT, settings=Dial(stagger=0.05))
        assert reached(dialled) == SLOW_6
        assert dialled.attempts == 2
        running.hang_up()


async def test_a_router_that_knows_no_way(
    running: Dialling, there: socket.socket, net: Network
) -> None:
    """What it says is not waited out."""
    start = time.monotonic()
    with long_wire(net, 0.05):
        settings = Dial(stagger=10)
        dialled = await running.dial(THERE, UNREACHABLE_6, port=PORT, settings=settings)
        assert reached(dialled) == THERE
    assert 0.1 <= time.monotonic() - start < 0.1 + SLACK
    assert dialled.failed == (f"{UNREACHABLE_6} destination_unreachable",)


async def test_where_connections_come_from(running: Dialling, there: socket.socket) -> None:
    for source in (HERE_TOO, HERE):
        told = Dial(source_addresses=(source,))
        assert reached(await running.dial(THERE, port=PORT, settings=told)) == THERE
        assert come_from(there) == source


async def test_one_port_serves_for_many_destinations(
    running: Dialling, there: socket.socket, net: Network
) -> None:
    """A source address whose port was chosen by bind() would have it for one connection."""
    net.here.sysctl("ipv4/ip_local_port_range", "40000 40000")
    for ip in (THERE, THERE_TOO, THERE_6):
        told = Dial(source_addresses=(HERE, "2001:db8::1"))
        assert reached(await running.dial(ip, port=PORT, settings=told)) == ip


async def test_without_a_port_it_is_not_the_addresss_fault(
    running: Dialling, there: socket.socket, net: Network
) -> None:
    net.here.sysctl("ipv4/ip_local_port_range", "40000 40000")
    assert reached(await running.dial(THERE, port=PORT)) == THERE
    assert (await running.dial(THERE, port=PORT)).reason is reasons.CONNECTION_FAILED
    assert running.dialer._deferred == {}


@pytest.mark.parametrize("ip", [HERE, "127.0.0.1", "::1"])
async def test_a_connection_to_itself(running: Dialling, net: Network, ip: str) -> None:
    """TCP can (RFC 9293 §3.5), where the system chooses the destination's port for the source. Nobody listens."""
    net.here.sysctl("ipv4/ip_local_port_range", "40000 40000")
    with socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET) as plain:
        plain.connect((ip, 40000))
        assert plain.getsockname() == plain.getpeername()
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # no TIME_WAIT
    dialled = await running.dial(ip, port=40000)
    assert dialled.reason is reasons.CONNECTION_REFUSED
    assert dialled.ip == ip


async def test_after_a_connection_to_itself_the_next_is_tried(
    running: Dialling, net: Network
) -> None:
    with net.there.entered():
        listener = socket.create_server((THERE, 40000))
    with listener:
        net.here.sysctl("ipv4/ip_local_port_range", "40000 40000")
        dialled = await running.dial(HERE, THERE, port=40000)
        assert reached(dialled) == THERE
        assert dialled.failed == (f"{HERE} connection_refused",)


async def test_nobody_reaches_a_port_that_the_system_takes_for_itself_by_chance(
    running: Dialling, net: Network
) -> None:
    """The same port at the other end is no connection to itself."""
    with net.there.entered():
        listener = socket.create_server((THERE, 40000))
    with listener:
        net.here.sysctl("ipv4/ip_local_port_range", "40000 40000")
        dialled = await running.dial(THERE, port=40000)
        assert reached(dialled) == THERE
        assert dialled.socket is not None
        assert dialled.socket.getsockname()[1] == 40000


async def test_a_peer_that_is_gone_before_it_was_looked_at(
    running: Dialling, net: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    with net.there.entered():
        listener = socket.create_server((THERE, 40000))

    class Gone(socket.SocketType):
        def getpeername(self) -> None:
            raise OSError(errno.ENOTCONN, "gone")

    with listener:
        net.here.sysctl("ipv4/ip_local_port_range", "40000 40000")
        monkeypatch.setattr(socket, "SocketType", Gone)
        dialled = await running.dial(THERE, port=40000)
    assert dialled.reason is reasons.CONNECTION_FAILED
    assert running.watched == set()


@pytest.mark.parametrize("anything", ["0", "1"])
async def test_what_this_machine_has(net: Network, anything: str) -> None:
    """Even where sockets can be bound to what it does not have, as with addresses that wander between machines."""
    for version in ("ipv4", "ipv6"):
        net.here.sysctl(f"{version}/ip_nonlocal_bind", anything)
    for ip in (HERE, HERE_TOO, HERE_6, "127.0.0.1", "127.0.0.99", "::1", "0.0.0.0", "::"):
        assert is_local(ip), ip
    for ip in (THERE, THERE_6, BLACK_HOLE, NO_ROUTE_6, "203.0.113.1"):
        assert not is_local(ip), ip


async def test_what_is_routed_to_this_machine(net: Network) -> None:
    """A whole network may be (ip-route(8), local)."""
    net.here.ip("route add local 203.0.113.0/24 dev lo")
    assert is_local("203.0.113.7")


async def test_where_the_system_does_not_tell_its_routes(
    net: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a container's filter of system calls may have it."""
    monkeypatch.setattr(socket, "NETLINK_ROUTE", -1)
    assert is_local(HERE)
    assert is_local("::1")
    assert not is_local(THERE)
    assert not is_local(THERE_6)


async def test_of_a_network_nothing_is_left(net: Network) -> None:
    """However the test ends."""
    own = Path("/proc/thread-self/ns/net")
    before = descriptors(), own.readlink()

    def fail() -> None:
        with network() as other, other.here.entered(), long_wire(other, 0.05):
            assert own.readlink() != before[1]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert (descriptors(), own.readlink()) == before
