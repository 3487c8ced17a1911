"""A dialler on a real poller, and loopback ports that answer, refuse, or never say anything."""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
from collections.abc import AsyncIterator, Iterator
from ipaddress import ip_network
from typing import Any

import pytest

from egress_proxy.config.model import Dial, Timeouts
from egress_proxy.core.addresses import Grant, VettedAddress, vet
from egress_proxy.net.dialer import Dialer, Dialled
from egress_proxy.net.poller import Poller, Strand
from tests.support.namespaces import NETWORKS
from tests.support.tools import descriptors

#: Loopback, and the networks of namespaces.
_LIFTED = Grant(allow=tuple(map(ip_network, ("127.0.0.0/8", "::1/128", *NETWORKS))))
#: Seconds between looks at deadlines: shorter than the proxy's, to keep tests quick.
SWEEP = 0.01
#: Seconds that the machine may be late, when other tests keep it busy.
SLACK = 2.0
#: Addresses, and what tests mostly have them do.
OK, OTHER, REFUSED, SILENT, SILENT_TOO = (f"127.0.0.{number}" for number in range(2, 7))
SIX = "::1"


def vetted(*addresses: str, port: int = 443) -> tuple[VettedAddress, ...]:
    """These addresses, all of which a test may dial."""
    passed = vet(addresses, port, _LIFTED).passed
    assert len(passed) == len(addresses)
    return passed


class Dialling:
    """A dialler, its poller, and the strands that wait for it."""

    def __init__(self, poller: Poller) -> None:
        self.poller = poller
        self.dialer = Dialer(poller)
        self.connected: list[Dialled] = []

    def begin(
        self,
        *addresses: str,
        port: int,
        settings: Dial | None = None,
        connect: float = 5.0,
        connect_attempt: float = 5.0,
    ) -> tuple[Strand, asyncio.Future[Dialled]]:
        """Dial; the strand that does it, and what it will come to. An exception comes out of the future."""
        strand = Strand(self.poller)
        future: asyncio.Future[Dialled] = self.poller.loop.create_future()
        timeouts = Timeouts(connect=connect, connect_attempt=connect_attempt)
        told = settings or Dial(stagger=0.05)

        async def run() -> None:
            try:
                dialled = await self.dialer.dial(
                    strand, vetted(*addresses, port=port), told, timeouts
                )
            except BaseException as error:  # noqa: BLE001 - the test's to judge
                future.set_exception(error)
            else:
                if dialled.socket is not None:
                    self.connected.append(dialled)
                future.set_result(dialled)

        strand.start(run())
        return strand, future

    async def dial(
        self,
        *addresses: str,
        port: int,
        settings: Dial | None = None,
        connect: float = 5.0,
        connect_attempt: float = 5.0,
    ) -> Dialled:
        _, future = self.begin(
            *addresses,
            port=port,
            settings=settings,
            connect=connect,
            connect_attempt=connect_attempt,
        )
        async with asyncio.timeout(10):
            return await future

    @property
    def watched(self) -> set[int]:
        """The descriptors that the poller knows."""
        return set(self.poller._handlers)

    def hang_up(self) -> None:
        """Close what was connected."""
        for dialled in self.connected:
            assert dialled.socket is not None
            self.poller.close(dialled.socket.detach())
        self.connected.clear()


@contextlib.asynccontextmanager
async def dialling() -> AsyncIterator[Dialling]:
    poller = Poller(asyncio.get_running_loop())

    async def sweep() -> None:
        while True:
            await asyncio.sleep(SWEEP)
            poller.sweep()

    sweeper = asyncio.ensure_future(sweep())
    running = Dialling(poller)
    try:
        yield running
    finally:
        running.hang_up()
        sweeper.cancel()
        await asyncio.gather(sweeper, return_exceptions=True)
        left = running.watched
        poller.shut()
        assert not left, f"still watched: {left}"


def reached(dialled: Dialled) -> str:
    """The address that a connection leads to; fails when there is none."""
    assert dialled.reason is None
    assert dialled.socket is not None
    assert dialled.ip is not None
    assert dialled.socket.getpeername()[0] == dialled.ip
    return dialled.ip


def sockets() -> int:
    """Open sockets of this process."""
    return sum(target.startswith("socket:") for target in descriptors().values())


def failing(monkeypatch: pytest.MonkeyPatch, errors: dict[str, int]) -> None:
    """Have connect() fail at once for these addresses, as where there is no route."""

    class Failing(socket.SocketType):
        def connect_ex(self, address: Any) -> int:
            return errors.get(address[0]) or super().connect_ex(address)

    monkeypatch.setattr(socket, "SocketType", Failing)


def family(ip: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in ip else socket.AF_INET


class Ports:
    """One port number on several loopback addresses."""

    def __init__(self, number: int = 0) -> None:
        """Somebody's port, or one that nobody has yet."""
        self._open: list[socket.socket] = []
        self._held: dict[str, socket.socket] = {}
        self._port = number
        self.listeners: dict[str, socket.socket] = {}

    @property
    def number(self) -> int:
        """The port, which nobody listens on but where a test says so."""
        while not self._port:
            self._reserve()
        return self._port

    def _reserve(self) -> None:
        """Bind a port on every address, without listening: nobody else is given it, and it refuses."""
        with contextlib.ExitStack() as undo:
            for ip in ("127.0.0.250", OK, OTHER, REFUSED, SILENT, SILENT_TOO, SIX):
                held = undo.enter_context(socket.socket(family(ip)))
                held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    held.bind((ip, self._port))
                except OSError:
                    self._held.clear()
                    self._port = 0
                    return
                self._held[ip] = held
                self._port = held.getsockname()[1]
            undo.pop_all()
        self._open += self._held.values()

    def _bind(self, ip: str) -> socket.socket:
        if ip in self._held:
            return self._held.pop(ip)
        bound = socket.socket(family(ip))
        self._open.append(bound)
        # Connections of earlier tests may linger.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((ip, self._port))
        return bound

    def listen(self, *ips: str) -> None:
        for ip in ips:
            assert self.number
            listener = self._bind(ip)
            listener.listen(64)
            self.listeners[ip] = listener

    def silence(self, *ips: str) -> None:
        """Have the system drop whatever asks to connect: the queue for accept() has one place, which is taken."""
        for ip in ips:
            assert self.number
            listener = self._bind(ip)
            listener.listen(0)
            filler = socket.socket(family(ip))
            self._open.append(filler)
            filler.settimeout(5)
            filler.connect(listener.getsockname())

    def peer(self, ip: str) -> str:
        """Where the next connection to this address comes from."""
        self.listeners[ip].settimeout(5)
        connection, (host, *_) = self.listeners[ip].accept()
        connection.close()
        return str(host)

    def reached(self, ip: str) -> bool:
        """Whether anybody has connected to it."""
        return bool(select.select([self.listeners[ip]], [], [], 0)[0])

    def close(self) -> None:
        for one in self._open:
            one.close()


@contextlib.contextmanager
def ports() -> Iterator[Ports]:
    made = Ports()
    try:
        yield made
    finally:
        made.close()
