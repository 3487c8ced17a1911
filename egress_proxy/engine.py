"""The part that carries traffic: takes connections and answers them, by one configuration after the other.

There is one in each process that serves. Who owns it (:mod:`egress_proxy.app` where that is the only process,
:mod:`egress_proxy.supervise.child` where there are several) brings the configurations, the signals and the admin port.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import itertools
import os
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from egress_proxy.config.model import Config, SharedState, SocketAddress
from egress_proxy.core import reasons
from egress_proxy.core.errors import EgressProxyError
from egress_proxy.core.reason import Reason
from egress_proxy.limits.limiter import Limiter
from egress_proxy.limits.opening import open_store, ready, status_of
from egress_proxy.limits.persistent import StateError
from egress_proxy.limits.share import WorkerLimiter, own_state
from egress_proxy.limits.store import Near, Store
from egress_proxy.net.dialer import warn_of_missing_sources
from egress_proxy.net.listener import Listener
from egress_proxy.net.poller import Interrupted, Poller
from egress_proxy.net.resolver import Resolver
from egress_proxy.net.revocation import revoke
from egress_proxy.net.worker import Worker
from egress_proxy.observe.audit import AuditLog
from egress_proxy.observe.events import log
from egress_proxy.observe.metrics import Metrics
from egress_proxy.observe.turns import Turns

T = TypeVar("T")

#: Seconds between looks at deadlines.
_SWEEP: Final = 0.1
#: Sweeps between looks at the hosts file.
_HOSTS_FILE: Final = 10
#: Seconds for which the end waits for whoever reads the audit log.
_FLUSH_TIMEOUT: Final = 2.0
_WHY_NOT: Final = {
    errno.EADDRINUSE: "the port is in use by another process",
    errno.EACCES: "permission denied (ports below 1024 need a privilege)",
    errno.EADDRNOTAVAIL: "this machine has no such address",
}


class StartError(EgressProxyError):
    """The proxy cannot start; the message says what is in the way."""


def cannot_listen(address: SocketAddress, error: OSError) -> StartError:
    """What is in the way of listening there."""
    number = error.errno or 0
    why = _WHY_NOT.get(number) or os.strerror(number)
    return StartError(f"cannot listen on {address}: {why}")


@dataclass(frozen=True, slots=True)
class Role:
    """Which of several processes this is. One alone is the first of one."""

    number: int = 1
    """Counts from 1."""
    workers: int = 1
    """How many serve together."""
    reuse_port: bool = False
    """Whether other processes listen on the proxy's port too."""
    turns: Turns | None = None
    """To be taken with those that write to the same log."""


class Engine:
    """Serves connections until told to stop."""

    def __init__(self, config: Config, generation: int = 1, role: Role | None = None) -> None:
        """Make the parts. Raises StartError. To be called in a running event loop."""
        self.config = config
        self.generation = generation
        self.role = role = role or Role()
        loop = asyncio.get_running_loop()
        self._audit = AuditLog(config.audit, turns=role.turns)
        self.metrics = Metrics(lambda: self._audit.dropped)
        self._scrapes = ThreadPoolExecutor(1, thread_name_prefix="scrape")
        self._kill = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._poller = Poller(loop)
        self.limiter = self._open_limiter()
        self.metrics.shared_store = status_of(self.limiter.store)
        self._worker = Worker(
            *(self._poller, Resolver(config.dns, loop), self._audit, self.metrics, self.limiter),
            config,
        )
        self._worker.generation = generation
        self._listener: Listener | None = None

    def listen(self, address: SocketAddress) -> SocketAddress:
        """Take the proxy's port, and say which it is. Raises StartError."""
        try:
            self._listener = Listener(
                self._worker, address, reuse_port=self.role.reuse_port, own=self.role.workers
            )
        except OSError as error:
            raise cannot_listen(address, error) from None
        return self._listener.address

    async def start(self, *own: SocketAddress) -> None:
        """Serve from now on. ``own`` is where the whole proxy listens: nobody is connected there."""
        assert self._listener is not None  # noqa: S101 - listen() comes first
        self._worker.listens_on(*own)
        self.spawn(self._sweep())
        # What lives as long as the process is never garbage, and connections leave no cycles.
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 50)
        await ready(self.limiter.store)
        self._listener.start()

    def tell_limits(self) -> None:
        """Tell the log of what the configuration asks for and this machine does not have."""
        _warn_of_descriptors(self._worker)
        warn_of_missing_sources(self.config.dial)

    def adopt(self, config: Config, generation: int) -> None:
        """Decide by this configuration from the next request head on, and end what it does not allow any more."""
        self._worker.adopt(config, generation)
        self.config, self.generation = config, generation
        self.spawn(revoke(self._worker))

    async def resolve(self, name: str) -> tuple[str, ...] | Reason:
        """The addresses behind a name, or why there are none."""
        answer = await self._worker.resolver.find(name)
        return answer if isinstance(answer, Reason) else answer.addresses

    async def hand_over(self) -> None:
        """Leave new connections to others that listen on the port, and wait until none is on its way to us."""
        if self._listener is not None and self.role.reuse_port:
            wait = self._listener.hand_over()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._kill.wait(), wait)

    def stop_accepting(self) -> None:
        """Close the port, once whoever was let in by the system is served. What comes on connections gets 503."""
        if self._listener is not None:
            self._listener.close()
        self._worker.draining = True

    async def drain(self) -> None:
        """Let what runs come to its end, for as long as the configuration says."""
        connections = self._poller.connections
        for connection in list(connections):
            if connection.idle:
                connection.interrupt(Interrupted(reasons.DRAINING))
        end = time.monotonic() + self.config.drain_timeout
        while connections and time.monotonic() < end and not self._kill.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._kill.wait(), 0.05)
        for connection in list(connections):
            connection.interrupt(Interrupted(reasons.DRAIN_TIMEOUT))

    async def scrape(self, collect: Callable[[], T]) -> T:
        """Collect metrics beside the traffic, one scrape at a time.

        Counting 20,000 open descriptors takes the kernel 70 ms, in which the event loop goes on.
        """
        return await asyncio.get_running_loop().run_in_executor(self._scrapes, collect)

    def kill(self) -> None:
        """Have ``drain`` end at once."""
        self._kill.set()

    async def close(self) -> None:
        """End everything, and write down what is not written yet."""
        if self._listener is not None:
            self._listener.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._worker.resolver.close()
        self._worker.credentials.close()
        await self.limiter.close()
        self._scrapes.shutdown(wait=False, cancel_futures=True)
        self._poller.shut()
        self._worker.pipes.shut()
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self._audit.close, _FLUSH_TIMEOUT)

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run it beside everything else; it ends with the engine at the latest."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _sweep(self) -> None:
        """Look after deadlines and the hosts file, until cancelled."""
        worker = self._worker
        for turn in itertools.count(1):
            before = time.monotonic()
            await asyncio.sleep(_SWEEP)
            now = time.monotonic()
            self.metrics.loop_lagged(now - before - _SWEEP, now)
            try:
                worker.poller.sweep()
                if turn % _HOSTS_FILE == 0:
                    worker.resolver.look_at_hosts_file()
            except Exception:  # noqa: BLE001 - without deadlines, nothing would ever end
                log.error("defect", exc_info=True)

    def _open_limiter(self) -> Limiter:
        """Raises StartError."""
        state, role = self.config.state, self.role
        if role.workers > 1:
            state = own_state(state, role.number)
        try:
            store = open_store(state, self._on_near, self._on_store_trouble)
        except StateError as error:
            raise StartError(str(error)) from None
        return self._limiter_of(store)

    def _limiter_of(self, store: Store) -> Limiter:
        exceeded = self.metrics.limit_exceeded
        if self.role.workers > 1:
            shared = isinstance(self.config.state, SharedState)
            return WorkerLimiter(store, exceeded, self.role.workers, shared=shared)
        return Limiter(store, exceeded)

    def _on_near(self, near: Near) -> None:
        self.metrics.limit_near(near.kind, near.policy)
        log.warning(
            "limit_near",
            kind=near.kind,
            policy=near.policy,
            tenant=near.tenant,
            used=near.used,
            limit=near.limit,
            resets_at=datetime.fromtimestamp(near.resets_at, UTC).isoformat(timespec="seconds"),
        )

    def _on_store_trouble(self, why: str | None) -> None:
        if why is None:
            log.info("state_recovered", note="the counters of limits are kept again")
        else:
            note = "meanwhile limits go by this process's memory, or by on_store_failure"
            log.error("state_failed", error=why, note=note)


def _warn_of_descriptors(worker: Worker) -> None:
    if worker.max_connections < worker.config.limits.connections:
        log.warning(
            "connections_limited",
            limit=worker.max_connections,
            configured=worker.config.limits.connections,
            note="the limit of open files (ulimit -n) carries no more",
        )
