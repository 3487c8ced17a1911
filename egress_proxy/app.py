"""The composition root: makes the parts, runs them, and ends them in order."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import itertools
import os
import resource
import signal
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Any, Literal

import uvloop

from egress_proxy.admin.server import AdminServer
from egress_proxy.config.errors import ConfigError, Problem
from egress_proxy.config.load import Loaded
from egress_proxy.config.model import Config, Listen, SocketAddress
from egress_proxy.config.reload import Reloader
from egress_proxy.core import reason as reasons
from egress_proxy.core.errors import EgressProxyError
from egress_proxy.core.reason import Reason
from egress_proxy.limits.limiter import Limiter
from egress_proxy.limits.opening import open_store, ready, status_of
from egress_proxy.limits.persistent import StateError
from egress_proxy.limits.store import Near, Store
from egress_proxy.net.dialer import warn_of_missing_sources
from egress_proxy.net.listener import Listener
from egress_proxy.net.poller import Interrupted, Poller
from egress_proxy.net.resolver import Resolver
from egress_proxy.net.revocation import revoke
from egress_proxy.net.worker import Worker
from egress_proxy.observe import events
from egress_proxy.observe.audit import AuditLog
from egress_proxy.observe.events import log
from egress_proxy.observe.metrics import Metrics

#: Seconds between looks at deadlines.
_SWEEP = 0.1
#: Sweeps between looks at the hosts file.
_HOSTS_FILE = 10
#: Seconds for which the end waits for whoever reads the audit log.
_FLUSH_TIMEOUT = 2.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_WHY_NOT = {
    errno.EADDRINUSE: "the port is in use by another process",
    errno.EACCES: "permission denied (ports below 1024 need a privilege)",
    errno.EADDRNOTAVAIL: "this machine has no such address",
}


class StartError(EgressProxyError):
    """The proxy cannot start; the message says what is in the way."""


def run(
    loaded: Loaded, *, packaged_default: bool, loop: Literal["uvloop", "asyncio"] = "uvloop"
) -> None:
    """Run the proxy until a signal ends it. Raises StartError."""
    config = loaded.config
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    events.configure()
    try:
        if packaged_default:
            log.info(
                "packaged_default",
                note=f"the packaged default policy is in force, on {config.listen.proxy} only",
            )
        for warning in loaded.warnings:
            log.warning("config_warning", problem=str(warning))
        (uvloop.run if loop == "uvloop" else asyncio.run)(App(config).run())
    finally:
        # Python resets handlers of its own at the very end, and what comes then would kill the
        # process on its way out.
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        events.close()


class App:
    """The running proxy, as the admin port sees it."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.generation = 1
        self.loaded_at = time.time()
        self.ready = False
        self.draining = False
        self._audit = AuditLog(config.audit)
        self.metrics = Metrics(lambda: self._audit.dropped)
        self._stop = asyncio.Event()
        self._kill = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._reloader = Reloader(
            config.source, config, self._swap, self._broken, on_warnings=self._warn
        )
        self._worker: Worker | None = None

    async def reload(self) -> None:
        """Load the configuration again. Raises ConfigError."""
        result = await self._reloader.reload()
        if result.error is not None:
            raise result.error

    async def resolve(self, name: str) -> tuple[str, ...] | Reason:
        """The addresses behind a name, or why there are none."""
        assert self._worker is not None  # noqa: S101 - asked for by the admin port, which run() opens
        answer = await self._worker.resolver.find(name)
        return answer if isinstance(answer, Reason) else answer.addresses

    async def run(self) -> None:
        """Serve until told to stop, drain, and flush. Raises StartError."""
        loop = asyncio.get_running_loop()
        poller = Poller(loop)
        self.limiter = Limiter(self._open_store(), self.metrics.limit_exceeded)
        self.metrics.shared_store = status_of(self.limiter.store)
        worker = self._worker = Worker(
            *(poller, Resolver(self.config.dns, loop), self._audit, self.metrics, self.limiter),
            self.config,
        )
        self.metrics.policy_loaded(
            self.generation, self.config.digest, self.config.policy.rule_count, self.loaded_at
        )
        admin = AdminServer(self, self.limiter.states)
        try:
            listener = await _listen(worker, admin, self.config.listen)
            admin_address = SocketAddress(self.config.listen.admin.host, admin.port)
            worker.listens_on(listener.address, admin_address)
            for number in _SIGNALS:
                callback = self._on_hangup if number == signal.SIGHUP else self._on_stop
                _on_signal(loop, number, callback)
            self._start(self._reloader.watch())
            self._start(self._sweep(worker))
            # What lives as long as the process is never garbage, and connections leave no cycles.
            gc.collect()
            gc.freeze()
            gc.set_threshold(50_000, 20, 50)
            await ready(self.limiter.store)
            listener.start()
            self.ready = True
            log.info("listening", proxy=str(listener.address), admin=str(admin_address))
            _warn_of_descriptors(worker)
            warn_of_missing_sources(self.config.dial)
            await self._stop.wait()
            self.draining = worker.draining = True
            log.info("draining", connections=self.metrics.connections_active)
            listener.close()
            await self._drain(worker)
        finally:
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await admin.close()
            await worker.resolver.close()
            worker.credentials.close()
            await self.limiter.close()
            poller.shut()
            worker.pipes.shut()
            await loop.run_in_executor(None, self._audit.close, _FLUSH_TIMEOUT)
        log.info("stopped")

    async def _drain(self, worker: Worker) -> None:
        """Let what runs come to its end, for as long as the configuration says."""
        connections = worker.poller.connections
        for connection in list(connections):
            if connection.idle:
                connection.interrupt(Interrupted(reasons.DRAINING))
        end = time.monotonic() + self.config.drain_timeout
        while connections and time.monotonic() < end and not self._kill.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._kill.wait(), 0.05)
        for connection in list(connections):
            connection.interrupt(Interrupted(reasons.DRAIN_TIMEOUT))

    async def _sweep(self, worker: Worker) -> None:
        """Look after deadlines and the hosts file, until cancelled."""
        for turn in itertools.count(1):
            before = time.monotonic()
            await asyncio.sleep(_SWEEP)
            self.metrics.loop_lag_seconds = max(0.0, time.monotonic() - before - _SWEEP)
            try:
                worker.poller.sweep()
                if turn % _HOSTS_FILE == 0:
                    worker.resolver.look_at_hosts_file()
            except Exception:  # noqa: BLE001 - without deadlines, nothing would ever end
                log.error("defect", exc_info=True)

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _on_stop(self) -> None:
        if self._stop.is_set():
            self._kill.set()
        self._stop.set()

    def _on_hangup(self) -> None:
        if not self._stop.is_set():
            self._start(self._reload())

    async def _reload(self) -> None:
        await self._reloader.reload()

    def _swap(self, config: Config, generation: int) -> None:
        self.config, self.generation, self.loaded_at = config, generation, time.time()
        if self._worker is not None:
            self._worker.adopt(config, generation)
            self._start(revoke(self._worker))
            _warn_of_descriptors(self._worker)
            warn_of_missing_sources(config.dial)
        self.metrics.policy_loaded(
            generation, config.digest, config.policy.rule_count, self.loaded_at
        )
        log.info("policy_reloaded", generation=generation, rules=config.policy.rule_count)

    def _open_store(self) -> Store:
        """Raises StartError."""
        try:
            return open_store(self.config.state, self._on_near, self._on_store_trouble)
        except StateError as error:
            raise StartError(str(error)) from None

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

    def _broken(self, error: ConfigError) -> None:
        self.metrics.reload_failed()
        log.error("reload_failed", problems=[str(problem) for problem in error.problems[:20]])

    def _warn(self, warnings: tuple[Problem, ...]) -> None:
        for warning in warnings:
            log.warning("config_warning", problem=str(warning))


def _warn_of_descriptors(worker: Worker) -> None:
    if worker.max_connections < worker.config.limits.connections:
        log.warning(
            "connections_limited",
            limit=worker.max_connections,
            configured=worker.config.limits.connections,
            note="the limit of open files (ulimit -n) carries no more",
        )


def _on_signal(
    loop: asyncio.AbstractEventLoop, number: signal.Signals, callback: Callable[[], None]
) -> None:
    """Call back in the loop; after its end, ignore the signal.

    The loop's own handlers end with it, and the default ones kill the process.
    """

    def handle(_number: int, _frame: object) -> None:
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(callback)

    signal.signal(number, handle)


async def _listen(worker: Worker, admin: AdminServer, listen: Listen) -> Listener:
    """Open both ports. Raises StartError."""
    address = listen.proxy
    try:
        listener = Listener(worker, address)
        address = listen.admin
        try:
            await admin.start()
        except OSError:
            listener.close()
            raise
    except OSError as error:
        number = error.errno or 0
        why = _WHY_NOT.get(number) or os.strerror(number)
        raise StartError(f"cannot listen on {address}: {why}") from None
    return listener
