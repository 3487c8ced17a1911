"""The process that looks after workers: starts them, tells them what to decide by, speaks for them, and ends them.

It carries no traffic. It holds the proxy's port without listening there, so that every worker gets the same one, and
it alone serves the admin port, reads the configuration's files and minds signals.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import Coroutine, Sequence
from typing import Any, Final

from egress_proxy.admin.server import AdminServer, PolicyOfWorker
from egress_proxy.app import (
    SIGNALS,
    LoopName,
    on_signal,
    raise_descriptor_limit,
    run_loop,
    start_admin,
    tell_broken,
    tell_warnings,
    told,
)
from egress_proxy.config.errors import ConfigError
from egress_proxy.config.load import Loaded
from egress_proxy.config.model import Config, SocketAddress
from egress_proxy.config.reload import Reloader
from egress_proxy.core import reasons
from egress_proxy.core.reason import Reason
from egress_proxy.core.reasons import REASONS
from egress_proxy.engine import StartError
from egress_proxy.limits.store import AccountState
from egress_proxy.observe import events
from egress_proxy.observe.events import log
from egress_proxy.observe.merge import Families, exposition, families, merged, what_stays
from egress_proxy.observe.metrics import Metrics, WorkersCount
from egress_proxy.observe.turns import Turns
from egress_proxy.supervise.backoff import Backoff
from egress_proxy.supervise.channel import Adopt, Start, WorkerFailed, WorkerGone
from egress_proxy.supervise.limits import states_together
from egress_proxy.supervise.member import Member
from egress_proxy.supervise.port import reserve
from egress_proxy.supervise.snapshot import Kept, Recording, Snapshot

#: Seconds after which the next worker takes a new configuration although the one before has not done so yet: it
#: may hang, and the others would go on to allow what is forbidden now.
PATIENCE: Final = 10.0


def run(
    loaded: Loaded,
    workers: int,
    *,
    packaged_default: bool,
    loop: LoopName = "uvloop",
    reuse_port: bool = False,
) -> None:
    """Run the proxy in so many workers until a signal ends it. Raises StartError.

    The configuration must have been read through :class:`Recording`.
    """
    raise_descriptor_limit()
    turns = Turns.make()
    events.configure(turns=turns)
    with told(loaded, packaged_default=packaged_default):
        run_loop(Supervisor(loaded.config, workers, loop, turns, reuse_port=reuse_port).run(), loop)


class Supervisor:
    """The running proxy, as the admin port sees it."""

    def __init__(
        self,
        config: Config,
        workers: int,
        loop: LoopName,
        turns: Turns,
        *,
        reuse_port: bool = False,
    ) -> None:
        self.config = config
        self.generation = 1
        self.loaded_at = time.time()
        self.draining = False
        self._count = workers
        self._loop_name = loop
        self._turns = turns
        self._reuse_port = reuse_port
        self._serving: dict[int, Member] = {}
        self._began = False
        #: What workers that have ended had counted.
        self._past: Families = ()
        self._metrics = Metrics()
        self._metrics.workers = self._workers_count = WorkersCount(workers)
        self._stop = asyncio.Event()
        self._stopping = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._spreading = asyncio.Lock()
        #: Those that are about to take a configuration. None is given two at a time: the older could win.
        self._taking: dict[Member, asyncio.Task[None]] = {}
        self._reloader = Reloader(
            *(config.source, config, self._swap, self._broken),
            on_warnings=tell_warnings,
            sources=Recording,
        )

    # What the admin port asks.

    @property
    def ready(self) -> bool:
        """Whether all workers have begun once, and one at least takes connections now."""
        return self._began and bool(self._serving)

    @property
    def workers(self) -> Sequence[PolicyOfWorker]:
        """What each worker decides by."""
        return [
            PolicyOfWorker(number, member.pid, member.generation, member.digest)
            for number, member in sorted(self._serving.items())
        ]

    async def reload(self) -> None:
        """Load the configuration again, and have every worker take it. Raises ConfigError."""
        result = await self._reloader.reload()
        if result.error is not None:
            raise result.error
        await self._spread()

    async def resolve(self, name: str) -> tuple[str, ...] | Reason:
        """The addresses behind a name, or why there are none."""
        for member in list(self._serving.values()):
            found = await member.resolve(name)
            if found is not None:
                if found.reason is None:
                    return found.addresses
                return REASONS.get(found.reason, reasons.INTERNAL_ERROR)
        return reasons.STARTING

    async def limits(self) -> list[AccountState]:
        """What the tenants have used."""
        members = list(self._serving.values())
        parts = await asyncio.gather(*(member.limits() for member in members))
        return states_together(parts, self.config)

    async def exposition(self) -> bytes:
        """All metrics in the text format."""
        members = list(self._serving.values())
        await asyncio.gather(*(member.scrape() for member in members))
        # Those that have ended meanwhile are part of the past by now.
        parts = [self._past, *(member.counted for member in self._serving.values())]
        whole = families(self._metrics.registry)
        return await asyncio.to_thread(lambda: exposition(merged(whole, parts)))

    # Its life.

    async def run(self) -> None:
        """Serve until told to stop, drain, and flush. Raises StartError."""
        loop = asyncio.get_running_loop()
        self._metrics.policy_loaded(
            self.generation, self.config.digest, self.config.policy.rule_count, self.loaded_at
        )
        admin = AdminServer(self, self.limits)
        with reserve(self.config.listen.proxy, shared=self._reuse_port) as (held, address):
            try:
                own = await start_admin(admin, self.config, reuse_port=self._reuse_port)
                for number in SIGNALS:
                    callback = self._on_hangup if number == signal.SIGHUP else self._on_stop
                    on_signal(loop, number, callback)
                if not await self._begin(address, own):
                    return
                self._spawn(self._reloader.watch())
                log.info("listening", proxy=str(address), admin=str(own), workers=self._count)
                await self._stop.wait()
                await self._end(admin, held)
            finally:
                await self._cancel()
                for member in list(self._serving.values()):
                    member.kill()
                await admin.close()
        log.info("stopped")

    async def _begin(self, address: SocketAddress, own: SocketAddress) -> bool:
        """Start all workers, and go on when every one takes connections. Raises StartError.

        False where it was told to stop before.
        """
        loop = asyncio.get_running_loop()
        begun: list[asyncio.Future[None]] = [loop.create_future() for _ in range(self._count)]
        for number, first in enumerate(begun, 1):
            self._spawn(self._keep(number, address, own, first))
        all_begun = asyncio.ensure_future(asyncio.gather(*begun))
        stop = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait((all_begun, stop), return_when=asyncio.FIRST_COMPLETED)
            if not all_begun.done():
                return False
            await all_begun
        finally:
            for waiting in (stop, all_begun):
                waiting.cancel()
            await asyncio.gather(stop, all_begun, *begun, return_exceptions=True)
        self._began = True
        return True

    async def _keep(
        self, number: int, address: SocketAddress, own: SocketAddress, first: asyncio.Future[None]
    ) -> None:
        """Have one worker, again and again until cancelled. ``first`` is told when the first takes connections."""
        backoff = Backoff()
        while True:
            began = time.monotonic()
            how = await self._one_life(number, address, own, first)
            if first.done() and first.exception() is not None:
                # It has said what is in the way of a start at all.
                return
            life = time.monotonic() - began
            wait = backoff.after(life)
            self._workers_count.ended += 1
            log.error("worker_ended", worker=number, how=how, lived=round(life, 3), again_in=wait)
            await asyncio.sleep(wait)

    async def _one_life(
        self, number: int, address: SocketAddress, own: SocketAddress, first: asyncio.Future[None]
    ) -> str:
        """Start a worker and wait for its end; says how it came."""
        try:
            member = await Member.begin(number, self._count, self._loop_name, self._turns)
        except OSError as error:
            return error.strerror or type(error).__name__
        failure: str | None = None
        watching: asyncio.Task[None] | None = None
        try:
            try:
                await member.start(
                    Start(
                        *(number, self._count, (address.host, address.port), (own.host, own.port)),
                        *(self.config.source, self._snapshot, Kept.of(self.config)),
                        self.generation,
                    ),
                    self.config.digest,
                )
            except WorkerFailed as error:
                failure = str(error)
                if not first.done():
                    first.set_exception(StartError(failure))
            except WorkerGone:
                # Or it does not come to an end of its start.
                member.kill()
            else:
                await self._serve_with(member, first)
                watching = self._task(self._watch(member))
            ended = await member.ended()
            return ended if failure is None else failure
        except asyncio.CancelledError:
            if not self._stopping or number not in self._serving:
                member.kill()
                await member.ended()
            raise
        finally:
            if watching is not None:
                watching.cancel()
            if not self._stopping and self._serving.pop(number, None) is not None:
                self._past = what_stays(self._past, member.counted)
            self._workers_count.serving = len(self._serving)

    async def _serve_with(self, member: Member, first: asyncio.Future[None]) -> None:
        self._serving[member.number] = member
        self._workers_count.serving = len(self._serving)
        if first.done():
            log.info("worker_started", worker=member.number, pid=member.pid)
        else:
            first.set_result(None)
        if member.generation != self.generation:
            # Something was loaded while it started.
            self._spawn(self._spread())

    async def _watch(self, member: Member) -> None:
        """End a worker that hangs: the system goes on dealing connections to it, which nobody would answer."""
        await member.silent()
        log.error("worker_silent", worker=member.number, pid=member.pid)
        member.kill()

    async def _end(self, admin: AdminServer, held: socket.socket) -> None:
        """Drain all workers, in their order."""
        self.draining = self._stopping = True
        await self._cancel()
        members = [member for _, member in sorted(self._serving.items())]
        if self._reuse_port:
            # To hand over takes a while.
            open_now = await asyncio.gather(*(member.connections() for member in members))
            log.info("draining", connections=sum(open_now))
            # Whoever takes over answers here, too.
            await admin.close()
            await asyncio.gather(*(member.hand_over() for member in members))
        held.close()
        # One after the other: each leaves new connections to those that still listen.
        connections = [await member.stop_accepting() for member in members]
        self._workers_count.serving = 0
        if not self._reuse_port:
            log.info("draining", connections=sum(connections))
        timeout = self.config.drain_timeout
        await asyncio.gather(*(member.drain(timeout) for member in members))
        await asyncio.gather(*(member.end() for member in members))
        self._serving.clear()

    async def _cancel(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        _ = self._task(coroutine)

    def _task(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run it beside, until this proxy ends at the latest."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # Configurations.

    @property
    def _snapshot(self) -> Snapshot:
        sources = self.config.sources
        assert isinstance(sources, Recording)  # noqa: S101 - run() and the reloader read through one
        return sources.snapshot

    def _swap(self, config: Config, generation: int) -> None:
        self.config, self.generation, self.loaded_at = config, generation, time.time()
        self._metrics.policy_loaded(
            generation, config.digest, config.policy.rule_count, self.loaded_at
        )
        self._spawn(self._spread())

    async def _spread(self) -> None:
        """Have every worker take the configuration in force, one at a time: compiling it takes a processor.

        None waits for long for the one before it.
        """
        async with self._spreading:
            told: set[int] = set()
            while True:
                behind = [
                    member
                    for member in self._serving.values()
                    if member.generation != self.generation and member not in self._taking
                ]
                waited_for = list(self._taking.values())
                if behind:
                    task = self._task(self._hand_to(behind[0], told))
                    self._taking[behind[0]] = task
                    waited_for = [task]
                elif not waited_for:
                    break
                done, _ = await asyncio.wait(
                    waited_for, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    task.result()
            if told:
                log.info(
                    "policy_reloaded", generation=max(told), rules=self.config.policy.rule_count
                )

    async def _hand_to(self, member: Member, told: set[int]) -> None:
        """Have one worker take the configuration in force, or end it. ``told`` collects what was taken."""
        config, generation = self.config, self.generation
        order = Adopt(config.source, self._snapshot, Kept.of(config), generation)
        try:
            await member.adopt(order, config.digest)
        except (WorkerGone, WorkerFailed) as error:
            # It must not go on with what is no longer allowed. The next one takes the new configuration.
            log.error("worker_reload_failed", worker=member.number, error=str(error))
            member.kill()
            await member.ended()
            member.generation = generation
        else:
            told.add(generation)
        finally:
            del self._taking[member]

    def _broken(self, error: ConfigError) -> None:
        self._metrics.reload_failed()
        tell_broken(error)

    # Signals.

    def _on_stop(self) -> None:
        if self._stop.is_set():
            for member in self._serving.values():
                self._spawn(member.cut())
        self._stop.set()

    def _on_hangup(self) -> None:
        if not self._stop.is_set():
            self._spawn(self._reload())

    async def _reload(self) -> None:
        await self._reloader.reload()
