"""Questions to a worker, and what becomes of them when it is late, unwilling or gone."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

import msgspec
import pytest

from egress_proxy.supervise.channel import (
    LAST,
    Asking,
    Call,
    Reply,
    Wire,
    WorkerFailed,
    WorkerGone,
)


def packed(value: object) -> msgspec.Raw:
    return msgspec.Raw(msgspec.msgpack.encode(value))


def converse(talk: Callable[[Asking, Wire], Awaitable[None]]) -> None:
    """Run a conversation; the other end is the test's to play."""

    async def main() -> None:
        ours, theirs = socket.socketpair()
        asking, worker = Asking(await Wire.over(ours)), await Wire.over(theirs)
        listening = asyncio.ensure_future(asking.listen())
        try:
            await talk(asking, worker)
        finally:
            await worker.close()
            await asyncio.wait_for(listening, 5)

    asyncio.run(main())


async def heard(worker: Wire) -> Call:
    call = await asyncio.wait_for(worker.receive(Call), 5)
    assert call is not None
    return call


def test_answers_find_their_questions_in_any_order() -> None:
    async def talk(asking: Asking, worker: Wire) -> None:
        asked = [asyncio.ensure_future(asking.ask("double", int, number)) for number in range(1, 4)]
        calls = [await heard(worker) for _ in asked]
        for call in reversed(calls):
            assert call.what == "double"
            worker.send(Reply(call.id, packed(2 * msgspec.msgpack.decode(call.value, type=int))))
        assert await asyncio.gather(*asked) == [2, 4, 6]

    converse(talk)


def test_a_message_of_any_size() -> None:
    """A configuration has up to 64 MiB."""

    async def talk(asking: Asking, worker: Wire) -> None:
        large = b"x" * 3_000_000
        asked = asyncio.ensure_future(asking.ask("length", int, large))
        call = await heard(worker)
        worker.send(Reply(call.id, packed(len(msgspec.msgpack.decode(call.value, type=bytes)))))
        assert await asked == len(large)

    converse(talk)


def test_a_worker_that_cannot() -> None:
    async def talk(asking: Asking, worker: Wire) -> None:
        asked = asyncio.ensure_future(asking.ask("start", int))
        worker.send(Reply((await heard(worker)).id, error="the disk is full"))
        with pytest.raises(WorkerFailed, match="the disk is full"):
            await asked

    converse(talk)


def test_a_worker_that_is_late() -> None:
    async def talk(asking: Asking, worker: Wire) -> None:
        with pytest.raises(WorkerGone):
            await asking.ask("scrape", int, timeout=0.01)
        # The late answer is nobody's, and does no harm.
        worker.send(Reply((await heard(worker)).id, packed(1)))
        asked = asyncio.ensure_future(asking.ask("scrape", int, timeout=5))
        worker.send(Reply((await heard(worker)).id, packed(2)))
        assert await asked == 2

    converse(talk)


def test_a_worker_that_goes() -> None:
    async def talk(asking: Asking, worker: Wire) -> None:
        asked = asyncio.ensure_future(asking.ask("drain", int))
        await heard(worker)
        worker.send(Reply(LAST, packed("counted")))
        await worker.close()
        with pytest.raises(WorkerGone):
            await asked
        with pytest.raises(WorkerGone):
            await asking.ask("scrape", int)
        assert asking.last == packed("counted")

    converse(talk)


def test_whoever_asks_may_give_up() -> None:
    async def talk(asking: Asking, worker: Wire) -> None:
        asked = asyncio.ensure_future(asking.ask("drain", int))
        await heard(worker)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked

    converse(talk)
