"""A worker: one process that serves, and does what its supervisor asks."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec

from egress_proxy.app import LoopName, on_signal, run_loop
from egress_proxy.config.load import load
from egress_proxy.config.model import Config, SocketAddress
from egress_proxy.config.reload import let_go
from egress_proxy.core.errors import EgressProxyError
from egress_proxy.core.reason import Reason
from egress_proxy.engine import Engine, Role
from egress_proxy.limits.share import own_part
from egress_proxy.observe import events
from egress_proxy.observe.events import log
from egress_proxy.observe.merge import families
from egress_proxy.observe.turns import Turns
from egress_proxy.supervise.channel import LAST, Adopt, Call, Reply, Resolved, Start, Wire
from egress_proxy.supervise.snapshot import Recorded

#: The exit status of a worker that could not begin.
CANNOT_START: Final = 2


def main(descriptor: int, turns: int, loop: LoopName) -> int:
    """Serve as the supervisor at the other end of a socket says, until it is gone. Returns the exit status.

    ``turns`` is the descriptor of those to be taken with the other workers (:class:`Turns`).
    """
    # A terminal sends these to all of its processes; the supervisor says what becomes of them.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    worker = Child(socket.socket(fileno=descriptor), Turns(turns))
    try:
        run_loop(worker.run(), loop)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        events.close()
    return worker.status


class Child:
    """One worker."""

    def __init__(self, end: socket.socket, turns: Turns) -> None:
        self.status = 0
        self._turns = turns
        self._end = end
        self._engine: Engine | None = None
        self._workers = 1
        self._stop = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._drained: asyncio.Task[None] | None = None
        self._freeing: asyncio.Future[None] | None = None
        self._answers: dict[str, Callable[[msgspec.Raw], Awaitable[Any]]] = {
            "start": self._start,
            "adopt": self._adopt,
            "ping": self._ping,
            "connections": self._connections,
            "scrape": self._scrape,
            "limits": self._limits,
            "resolve": self._resolve,
            "hand_over": self._hand_over,
            "stop_accepting": self._stop_accepting,
            "drain": self._drain,
            "kill": self._kill,
        }

    async def run(self) -> None:
        """Answer until told to end, or until nobody is there who asks."""
        on_signal(asyncio.get_running_loop(), signal.SIGTERM, self._on_stop)
        wire = await Wire.over(self._end)
        asked = asyncio.ensure_future(self._listen(wire))
        stop = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait((asked, stop), return_when=asyncio.FIRST_COMPLETED)
            if asked.done() and (asked.exception() is not None or not asked.result()):
                # Nobody could tell it of a new policy any more.
                log.error("supervisor_gone")
            if self._engine is not None and not self.status:
                await self._drain()
        finally:
            for task in (asked, stop, *self._tasks):
                task.cancel()
            await asyncio.gather(asked, stop, *self._tasks, return_exceptions=True)
            if self._engine is not None:
                await self._engine.close()
                counted = families(self._engine.metrics.registry)
                wire.send(Reply(LAST, msgspec.Raw(msgspec.msgpack.encode(counted))))
            await wire.close()

    async def _listen(self, wire: Wire) -> bool:
        """Take questions; whether it was told to end, and not left alone."""
        while (call := await wire.receive(Call)) is not None:
            if call.what == "end":
                return True
            # Each beside the others: a scrape must not wait for a drain.
            task = asyncio.ensure_future(self._answer(wire, call))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return False

    async def _answer(self, wire: Wire, call: Call) -> None:
        try:
            value = await self._answers[call.what](call.value)
        except EgressProxyError as error:
            # Of the configuration, or of what it takes to start.
            self._refuse(wire, call, str(error))
        except Exception as error:  # noqa: BLE001 - the supervisor decides what becomes of a worker that is broken
            log.error("defect", exc_info=True)
            self._refuse(wire, call, f"a defect of the program: {type(error).__name__}")
        else:
            wire.send(Reply(call.id, msgspec.Raw(msgspec.msgpack.encode(value))))

    def _refuse(self, wire: Wire, call: Call, why: str) -> None:
        wire.send(Reply(call.id, error=why))
        if call.what == "start":
            self.status = CANNOT_START
            self._stop.set()

    # What it is asked.

    async def _start(self, value: msgspec.Raw) -> None:
        start = msgspec.msgpack.decode(value, type=Start)
        events.configure(turns=self._turns, worker=start.number)
        self._workers = start.workers
        config = await self._load(start)
        role = Role(start.number, start.workers, reuse_port=True, turns=self._turns)
        engine = self._engine = Engine(config, start.generation, role)
        self._loaded(config, start.generation)
        address = engine.listen(SocketAddress(*start.proxy))
        await engine.start(address, SocketAddress(*start.admin))
        if start.number == 1:
            engine.tell_limits()

    async def _adopt(self, value: msgspec.Raw) -> None:
        order = msgspec.msgpack.decode(value, type=Adopt)
        config = await self._load(order)
        before = [self._running.config]
        self._running.adopt(config, order.generation)
        self._loaded(config, order.generation)
        self._freeing = asyncio.get_running_loop().run_in_executor(None, let_go, before)

    async def _ping(self, _value: msgspec.Raw) -> None:
        """That it is answered says enough: this is the loop that carries the traffic."""

    async def _connections(self, _value: msgspec.Raw) -> int:
        return self._running.metrics.connections_active

    async def _scrape(self, _value: msgspec.Raw) -> object:
        engine = self._running
        return await engine.scrape(lambda: families(engine.metrics.registry))

    async def _limits(self, _value: msgspec.Raw) -> object:
        return await self._running.limiter.states()

    async def _resolve(self, value: msgspec.Raw) -> Resolved:
        answer = await self._running.resolve(msgspec.msgpack.decode(value, type=str))
        return Resolved(reason=answer.name) if isinstance(answer, Reason) else Resolved(answer)

    async def _hand_over(self, _value: msgspec.Raw) -> None:
        await self._running.hand_over()

    async def _stop_accepting(self, _value: msgspec.Raw) -> int:
        self._running.stop_accepting()
        return self._running.metrics.connections_active

    async def _drain(self, _value: msgspec.Raw | None = None) -> None:
        # Asked for, or because of a signal, or because the supervisor is gone: once, for all who wait for it.
        if self._drained is None:
            self._running.stop_accepting()
            self._drained = asyncio.ensure_future(self._running.drain())
        await asyncio.shield(self._drained)

    async def _kill(self, _value: msgspec.Raw) -> None:
        self._running.kill()

    async def _load(self, order: Start | Adopt) -> Config:
        # Beside the traffic, as a reload of a single process.
        loaded = await asyncio.to_thread(load, order.source, Recorded(order.snapshot))
        return own_part(order.kept.in_place(loaded.config), self._workers)

    def _loaded(self, config: Config, generation: int) -> None:
        self._running.metrics.policy_loaded(
            generation, config.digest, config.policy.rule_count, time.time()
        )

    @property
    def _running(self) -> Engine:
        if self._engine is None:
            raise EgressProxyError("the worker has not begun")
        return self._engine

    def _on_stop(self) -> None:
        if self._stop.is_set() and self._engine is not None:
            self._engine.kill()
        self._stop.set()
