"""Connections to origins that wait for another request: whose they are, how many, how long, and how they end."""

from __future__ import annotations

import asyncio
import gc
import os
import select
import socket
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from egress_proxy.core import reasons
from egress_proxy.net.poller import Interrupted, Poller
from egress_proxy.net.pool import Key, OriginPool, _Idle
from egress_proxy.observe.metrics import Metrics
from tests.net.dialling import OK, OTHER, vetted
from tests.support.serving import reset

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop", "asyncio"])


def key(user: str | None = None, *policies: int, host: str = "origin.test", port: int = 80) -> Key:
    return frozenset(policies), user, host, port


KEY = key()


def ignore(_mask: int) -> None:
    pass


class Pool:
    """A pool on a real poller, and the origins' ends of its connections."""

    def __init__(self, poller: Poller) -> None:
        self.poller = poller
        self.metrics = Metrics()
        self.pool = OriginPool(poller, self.metrics)
        self.peers: list[socket.socket] = []
        self.taken: list[socket.SocketType] = []
        self.adopt()

    def adopt(self, most: int = 10, per_origin: int = 10, seconds: float = 60.0) -> None:
        config: Any = SimpleNamespace(
            limits=SimpleNamespace(idle_per_origin=per_origin),
            timeouts=SimpleNamespace(origin_keep_alive=seconds),
        )
        self.pool.adopt(config, most)

    def connected(self) -> tuple[socket.SocketType, socket.socket]:
        """A watched connection over TCP as the dialler makes it, and the origin's end."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            ours = socket.SocketType(socket.AF_INET, socket.SOCK_STREAM)
            ours.connect(listener.getsockname())
            ours.setblocking(False)
            theirs, _ = listener.accept()
        self.peers.append(theirs)
        self.poller.watch(ours.fileno(), ignore)
        return ours, theirs

    def give(self, of: Key = KEY, ip: str = OK) -> tuple[int, socket.socket]:
        """Keep a new connection; its descriptor, and the origin's end."""
        ours, theirs = self.connected()
        fd = ours.fileno()
        self.pool.give(of, ours, ip)
        return fd, theirs

    def take(self, of: Key = KEY, *ips: str) -> int | None:
        """The descriptor of the connection that is handed out."""
        found = self.pool.take(of, vetted(*(ips or (OK,)), port=80))
        if found is None:
            return None
        sock, ip = found
        self.poller.hand_over(sock.fileno(), ignore)
        self.taken.append(sock)
        assert ip in (ips or (OK,))
        return sock.fileno()

    @property
    def idle(self) -> int:
        """How many wait, in whatever way one counts."""
        waiting = sum(map(len, self.pool._idle.values()))
        assert waiting == self.metrics.origins_idle == len(self.poller.connections)
        assert all(self.pool._idle.values())
        return waiting

    def finish(self) -> None:
        self.pool.clear()
        for sock in self.taken:
            self.poller.close(sock.detach())
        for peer in self.peers:
            peer.close()


@pytest.fixture
async def pool() -> AsyncIterator[Pool]:
    poller = Poller(asyncio.get_running_loop())
    made = Pool(poller)
    try:
        yield made
    finally:
        made.finish()
        left = set(poller._handlers)
        poller.shut()
    assert not left, f"still watched: {left}"


async def until(condition: Callable[[], object]) -> None:
    """The loop runs until it is so."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - it is the system's doing, and nobody's event
            await asyncio.sleep(0)


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def ended(peer: socket.socket) -> bool:
    """Whether the proxy's end was closed."""
    peer.settimeout(5)
    return peer.recv(1) == b""


# Which ----------------------------------------------------------------------------------------------------------------


async def test_the_one_that_was_used_last_is_taken_first(pool: Pool) -> None:
    given = [pool.give()[0] for _ in range(3)]
    assert [pool.take(), pool.take(), pool.take(), pool.take()] == [*reversed(given), None]
    assert pool.idle == 0


@pytest.mark.parametrize(
    "other",
    [
        key("batch"),
        key(None, 1),
        key(host="other.test"),
        key(port=8080),
    ],
)
async def test_nobody_gets_what_is_somebody_elses(pool: Pool, other: Key) -> None:
    fd, _ = pool.give()
    assert pool.take(other) is None
    assert pool.take() == fd


async def test_an_address_that_no_longer_passes(pool: Pool) -> None:
    """Closed, not left for the day on which it passes again."""
    fd, peer = pool.give(ip=OTHER)
    good, _ = pool.give(ip=OK)
    other, other_peer = pool.give(ip=OTHER)
    assert pool.take(KEY, OK) == good
    assert ended(other_peer)
    assert pool.idle == 1
    assert pool.take(KEY, OK) is None
    assert ended(peer)
    assert pool.idle == 0
    assert not is_open(fd)
    assert not is_open(other)


async def test_one_of_several_addresses_will_do(pool: Pool) -> None:
    fd, _ = pool.give(ip=OTHER)
    assert pool.take(KEY, OK, OTHER) == fd


# How many -------------------------------------------------------------------------------------------------------------


async def test_there_is_a_bound_for_each_origin(pool: Pool) -> None:
    pool.adopt(per_origin=2)
    given = [pool.give() for _ in range(3)]
    assert pool.idle == 2
    assert ended(given[2][1])
    assert pool.take() == given[1][0]
    # There is room again, and others have theirs.
    pool.give()
    pool.give(key("batch"))
    assert pool.idle == 3


async def test_there_is_a_bound_for_all(pool: Pool) -> None:
    pool.adopt(most=3)
    peers = [pool.give(key(host=f"{number}.test"))[1] for number in range(5)]
    assert pool.idle == 3
    assert all(map(ended, peers[3:]))
    assert pool.take(key(host="0.test")) is not None
    pool.give(key(host="9.test"))
    assert pool.idle == 3


@pytest.mark.parametrize("bounds", [{"most": 0}, {"per_origin": 0}])
async def test_nothing_is_kept_where_none_may_be(pool: Pool, bounds: dict[str, int]) -> None:
    assert pool.pool.keeps
    pool.adopt(**bounds)
    assert not pool.pool.keeps
    _, peer = pool.give()
    assert ended(peer)
    assert pool.idle == 0


async def test_another_configuration_closes_all(pool: Pool) -> None:
    peers = [pool.give(key(host=f"{number % 2}.test"))[1] for number in range(4)]
    pool.adopt()
    assert pool.idle == 0
    assert all(map(ended, peers))


# How they end ---------------------------------------------------------------------------------------------------------


def speaks(peer: socket.socket) -> None:
    peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")


def ends(peer: socket.socket) -> None:
    peer.shutdown(socket.SHUT_WR)


def says_urgently(peer: socket.socket) -> None:
    peer.send(b"!", socket.MSG_OOB)


@pytest.mark.parametrize("does", [speaks, ends, reset, says_urgently])
async def test_what_an_idle_origin_does_ends_it_at_once(
    pool: Pool, does: Callable[[socket.socket], None]
) -> None:
    fd, peer = pool.give()
    other, _ = pool.give()
    does(peer)
    await until(lambda: pool.idle == 1)
    await until(lambda: not is_open(fd))
    assert [pool.take(), pool.take()] == [other, None]


@pytest.mark.parametrize("does", [speaks, ends, reset])
async def test_what_came_before_anybody_listened(
    pool: Pool, does: Callable[[socket.socket], None]
) -> None:
    """Its edge went to whoever had the connection then, and won't come again."""
    good, _ = pool.give()
    sock, peer = pool.connected()
    does(peer)
    seen: list[int] = []
    pool.poller.hand_over(sock.fileno(), seen.append)
    await until(lambda: seen and seen[-1] & 1)
    fd = sock.fileno()
    pool.pool.give(KEY, sock, OK)
    for _ in range(3):
        await asyncio.sleep(0)
    assert pool.take() == good
    assert not is_open(fd)
    assert pool.idle == 0


async def test_to_be_writable_is_no_end(pool: Pool) -> None:
    """A watched connection is told so once, right after the last request, and whenever an acknowledgement comes."""
    fd, _ = pool.give()
    told: list[int] = []
    (waiting,) = pool.pool._idle[KEY]

    def tell(mask: int) -> None:
        told.append(mask)
        waiting.on_edge(mask)

    pool.poller.hand_over(fd, tell)
    pool.poller.watch_output(fd)
    await until(lambda: told)
    assert pool.take() == fd


async def test_an_edge_that_is_over(pool: Pool) -> None:
    """One batch may tell about an answer that was read, whole, earlier in the same batch."""
    fd, _ = pool.give()
    (waiting,) = pool.pool._idle[KEY]
    waiting.on_edge(select.EPOLLIN | select.EPOLLOUT)
    assert pool.take() == fd


async def test_it_waits_so_long_and_no_longer(pool: Pool) -> None:
    pool.adopt(seconds=60.0)
    _, peer = pool.give()
    (waiting,) = pool.poller.connections
    assert waiting.deadline == pytest.approx(pool.poller.now + 60.0)
    pool.poller.sweep()
    assert pool.idle == 1
    waiting.deadline = pool.poller.now - 1
    pool.poller.sweep()
    assert pool.idle == 0
    assert ended(peer)


async def test_draining_ends_them(pool: Pool) -> None:
    peers = [pool.give()[1] for _ in range(2)]
    for connection in list(pool.poller.connections):
        assert connection.idle
        assert connection.permit is None
        connection.interrupt(Interrupted(reasons.DRAINING))
    assert pool.idle == 0
    assert all(map(ended, peers))


@pytest.mark.parametrize("others", [0, 1])
async def test_the_end_of_one_that_was_taken_meanwhile(pool: Pool, others: int) -> None:
    """A sweep wakes a client whose next request takes a connection that the same sweep is about to end."""
    for _ in range(others):
        pool.give()
    fd, _ = pool.give()
    (waiting,) = [one for one in pool.pool._idle[KEY] if one.socket.fileno() == fd]
    assert pool.take() == fd
    waiting.interrupt(TimeoutError())
    assert is_open(fd)
    assert pool.idle == others
    # Nor when it waits again, as another one.
    pool.pool.give(KEY, pool.taken.pop(), OK)
    waiting.interrupt(TimeoutError())
    assert pool.take() == fd


async def test_a_number_that_is_used_again_within_one_batch(pool: Pool) -> None:
    """Events about connections that were closed earlier in the batch are nobody's, whoever has their numbers next."""
    opened: list[int] = []

    def close_and_open(_mask: int) -> None:
        # The end of both is among the events still to come; a look at them says so already.
        assert pool.take() is None
        sock, _ = pool.connected()
        opened.append(sock.fileno())
        pool.pool.give(KEY, sock, OK)

    trigger, pull = socket.socketpair()
    with trigger, pull:
        pool.poller.watch(trigger.fileno(), close_and_open, output=False)
        given = [pool.give() for _ in range(2)]
        pull.send(b"x")
        for _, peer in given:
            ends(peer)
        await until(lambda: opened)
        await asyncio.sleep(0)
        pool.poller.unlisten(trigger.fileno())
    assert not {fd for fd, _ in given} & set(opened)
    assert not any(is_open(fd) for fd, _ in given)
    assert pool.take() == opened[0]


async def test_nothing_is_left_of_them(pool: Pool) -> None:
    """No cycle: with thousands a second, the collector would have to run for them."""
    gc.collect()
    gc.disable()
    try:
        for does in (speaks, ends, reset):
            _, peer = pool.give()
            does(peer)
            await until(lambda: pool.idle == 0)
        pool.give()
        assert pool.take() is not None
        pool.give()
        pool.pool.clear()
        assert pool.pool._idle == {}
        assert [one for one in gc.get_objects() if type(one) is _Idle] == []
    finally:
        gc.enable()


async def test_a_flood_of_resets_is_survived(pool: Pool) -> None:
    pool.adopt(most=200, per_origin=200)
    peers = [pool.give()[1] for _ in range(100)]
    for peer in peers[::2]:
        reset(peer)
    assert sum(pool.take() is not None for _ in peers) == 50
    assert pool.idle == 0
