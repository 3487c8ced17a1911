"""A tunnel that has to wait for its bandwidth ends when its sides do, and not when more bytes might pass."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from egress_proxy.net.pipes import PipePool
from egress_proxy.net.poller import Poller
from egress_proxy.net.relay import Tunnel

#: Longer than any test.
AGES = 3600.0
RESET = struct.pack("ii", 1, 0)


class Paced:
    """Lets so many bytes pass, and then none for ages."""

    metered = paced = True

    def __init__(self, allowed: int) -> None:
        self.allowed = allowed
        self.spent = 0

    def pace(self, _direction: Any, wanted: int) -> tuple[int, float]:
        left = min(wanted, self.allowed - self.spent)
        return (left, 0.0) if left > 0 else (0, AGES)

    def spend(self, up: int, down: int) -> None:
        self.spent += up + down


class Relaying:
    """A tunnel between two connections, whose far ends are the test's."""

    def __init__(self, client: socket.socket, origin: socket.socket, allowed: int) -> None:
        loop = asyncio.get_running_loop()
        self.poller = Poller(loop)
        self.client, self._ours = client, self._accepted(client)
        self.origin, theirs = origin, self._accepted(origin)
        self._theirs = theirs
        self.ended: asyncio.Future[Exception | None] = loop.create_future()
        self.admission = Paced(allowed)
        admission: Any = self.admission
        self.tunnel = Tunnel(
            *(self.poller, PipePool(), self._ours.fileno(), theirs),
            idle_time=AGES,
            lifetime=AGES,
            on_end=lambda _, error: self.ended.set_result(error),
            admission=admission,
        )
        self.poller.watch(theirs.fileno(), lambda _: None)
        self.tunnel.start(b"", watched=False, client_readable=True, origin_readable=True)

    @staticmethod
    def _accepted(far: socket.socket) -> socket.socket:
        with socket.create_server(("127.0.0.1", 0)) as server:
            far.connect(server.getsockname())
            near, _ = server.accept()
        near.setblocking(False)
        return near

    async def received(self, far: socket.socket, count: int) -> bytes:
        far.setblocking(False)
        data = b""
        async with asyncio.timeout(10):
            while len(data) < count:
                data += await asyncio.get_running_loop().sock_recv(far, count)
        return data

    def close(self) -> None:
        for near in (self._ours, self._theirs):
            self.poller.close(near.detach())
        self.poller.shut()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.socket() as client, socket.socket() as origin:
        yield client, origin


async def test_an_end_does_not_wait_for_bandwidth(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    client, origin = pair
    relaying = Relaying(client, origin, 5)
    client.sendall(b"hello")
    assert await relaying.received(origin, 5) == b"hello"
    client.close()
    origin.close()
    assert await asyncio.wait_for(relaying.ended, 10) is None
    assert relaying.admission.spent == 5
    relaying.close()


async def test_a_reset_does_not_wait_either(pair: tuple[socket.socket, socket.socket]) -> None:
    client, origin = pair
    relaying = Relaying(client, origin, 5)
    client.sendall(b"hello")
    assert await relaying.received(origin, 5) == b"hello"
    origin.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    origin.close()
    assert await asyncio.wait_for(relaying.ended, 10) is None
    assert relaying.tunnel.broken == relaying.tunnel.origin.fileno()
    relaying.close()


async def test_bytes_before_the_end_do(pair: tuple[socket.socket, socket.socket]) -> None:
    """Or the end would be told before what was said."""
    client, origin = pair
    relaying = Relaying(client, origin, 5)
    client.sendall(b"hello, world")
    assert await relaying.received(origin, 5) == b"hello"
    client.shutdown(socket.SHUT_WR)
    origin.close()
    await asyncio.sleep(0.1)
    assert relaying.admission.spent == 5
    relaying.tunnel.finish(None)
    relaying.close()
