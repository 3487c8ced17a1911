"""One process that does everything: makes the parts, runs them, and ends them in order.

:mod:`egress_proxy.supervise` does the same for several.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import resource
import signal
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Final, Literal

import uvloop

from egress_proxy.admin.server import AdminServer, PolicyOfWorker
from egress_proxy.config.errors import ConfigError, Problem
from egress_proxy.config.load import Loaded
from egress_proxy.config.model import Config, SocketAddress
from egress_proxy.config.reload import Reloader
from egress_proxy.core.reason import Reason
from egress_proxy.engine import Engine, Role, StartError, cannot_listen
from egress_proxy.observe import events
from egress_proxy.observe.events import log

__all__ = ["App", "StartError", "run"]

LoopName = Literal["uvloop", "asyncio"]

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def run(
    loaded: Loaded,
    *,
    packaged_default: bool,
    loop: LoopName = "uvloop",
    reuse_port: bool = False,
) -> None:
    """Run the proxy until a signal ends it. Raises StartError."""
    raise_descriptor_limit()
    events.configure()
    with told(loaded, packaged_default=packaged_default):
        app = App(loaded.config, Role(reuse_port=reuse_port))
        run_loop(app.run(), loop)


def raise_descriptor_limit() -> None:
    """Let this process, and those that it starts, open as many files as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def run_loop(main: Coroutine[Any, Any, None], loop: LoopName) -> None:
    """Run to the end in an event loop of this kind."""
    (uvloop.run if loop == "uvloop" else asyncio.run)(main)


@contextlib.contextmanager
def told(loaded: Loaded, *, packaged_default: bool) -> Iterator[None]:
    """Tell the log what is doubtful about a configuration; in the end, have it write everything."""
    try:
        if packaged_default:
            log.info(
                "packaged_default",
                note=f"the packaged default policy is in force, on {loaded.config.listen.proxy} only",
            )
        tell_warnings(loaded.warnings)
        yield
    finally:
        # Python resets handlers of its own at the very end, and what comes then would kill the
        # process on its way out.
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        events.close()


class App:
    """The running proxy, as the admin port sees it."""

    def __init__(self, config: Config, role: Role | None = None) -> None:
        self.config = config
        self.generation = 1
        self.loaded_at = time.time()
        self.ready = False
        self.draining = False
        self.workers: tuple[PolicyOfWorker, ...] = ()
        self._role = role or Role()
        self._engine: Engine | None = None
        self._stop = asyncio.Event()
        self._reloader = Reloader(
            config.source, config, self._swap, self._broken, on_warnings=tell_warnings
        )

    async def reload(self) -> None:
        """Load the configuration again. Raises ConfigError."""
        result = await self._reloader.reload()
        if result.error is not None:
            raise result.error

    async def resolve(self, name: str) -> tuple[str, ...] | Reason:
        """The addresses behind a name, or why there are none."""
        return await self._running.resolve(name)

    async def exposition(self) -> bytes:
        """All metrics in the text format."""
        return await self._running.scrape(self._running.metrics.exposition)

    async def run(self) -> None:
        """Serve until told to stop, drain, and flush. Raises StartError."""
        loop = asyncio.get_running_loop()
        engine = self._engine = Engine(self.config, self.generation, self._role)
        engine.metrics.policy_loaded(
            self.generation, self.config.digest, self.config.policy.rule_count, self.loaded_at
        )
        admin = AdminServer(self, engine.limiter.states)
        try:
            with hinting(reuse_port=self._role.reuse_port):
                address = engine.listen(self.config.listen.proxy)
            admin_address = await start_admin(admin, self.config, reuse_port=self._role.reuse_port)
            for number in SIGNALS:
                callback = self._on_hangup if number == signal.SIGHUP else self._on_stop
                on_signal(loop, number, callback)
            engine.spawn(self._reloader.watch())
            await engine.start(address, admin_address)
            self.ready = True
            log.info("listening", proxy=str(address), admin=str(admin_address))
            engine.tell_limits()
            await self._stop.wait()
            self.draining = True
            log.info("draining", connections=engine.metrics.connections_active)
            if self._role.reuse_port:
                # Whoever takes over answers here, too.
                await admin.close()
            await engine.hand_over()
            engine.stop_accepting()
            await engine.drain()
        finally:
            await admin.close()
            await engine.close()
        log.info("stopped")

    @property
    def _running(self) -> Engine:
        assert self._engine is not None  # noqa: S101 - asked for by the admin port, which run() opens
        return self._engine

    def _on_stop(self) -> None:
        if self._stop.is_set():
            self._running.kill()
        self._stop.set()

    def _on_hangup(self) -> None:
        if not self._stop.is_set():
            self._running.spawn(self._reload())

    async def _reload(self) -> None:
        await self._reloader.reload()

    def _swap(self, config: Config, generation: int) -> None:
        self.config, self.generation, self.loaded_at = config, generation, time.time()
        if self._engine is not None:
            self._engine.adopt(config, generation)
            self._engine.tell_limits()
            self._engine.metrics.policy_loaded(
                generation, config.digest, config.policy.rule_count, self.loaded_at
            )
        log.info("policy_reloaded", generation=generation, rules=config.policy.rule_count)

    def _broken(self, error: ConfigError) -> None:
        if self._engine is not None:
            self._engine.metrics.reload_failed()
        tell_broken(error)


def tell_broken(error: ConfigError) -> None:
    """Tell the log of a configuration that could not be loaded."""
    log.error("reload_failed", problems=[str(problem) for problem in error.problems[:20]])


def tell_warnings(warnings: tuple[Problem, ...]) -> None:
    """Tell the log what is doubtful about a configuration."""
    for warning in warnings:
        log.warning("config_warning", problem=str(warning))


def on_signal(
    loop: asyncio.AbstractEventLoop, number: signal.Signals, callback: Callable[[], None]
) -> None:
    """Call back in the loop; after its end, ignore the signal.

    The loop's own handlers end with it, and the default ones kill the process.
    """

    def handle(_number: int, _frame: object) -> None:
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(callback)

    signal.signal(number, handle)


async def start_admin(
    admin: AdminServer, config: Config, *, reuse_port: bool = False
) -> SocketAddress:
    """Open the admin port, and say which it is. Raises StartError."""
    address = config.listen.admin
    try:
        await admin.start(reuse_port=reuse_port)
    except OSError as error:
        with hinting(reuse_port=reuse_port):
            raise cannot_listen(address, error) from None
    return SocketAddress(address.host, admin.port)


@contextlib.contextmanager
def hinting(*, reuse_port: bool) -> Iterator[None]:
    """Where a port is to be shared and cannot be, have the StartError say what that comes from."""
    try:
        yield
    except StartError as error:
        cause = error.__context__
        if reuse_port and isinstance(cause, OSError) and cause.errno == errno.EADDRINUSE:
            raise StartError(
                f"{error}; a proxy to take over from must run as the same user,"
                " and must have been started with --reuse-port itself"
            ) from None
        raise
