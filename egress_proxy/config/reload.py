"""Reloading: the configuration in force, and how another one takes its place.

A new configuration is swapped in whole or not at all; whatever is wrong with it, the old one stays in force. The files
are polled rather than watched for events, because that sees every way in which files are replaced (written in place,
renamed over, a Kubernetes volume's symlink turned to another directory) on every file system.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from egress_proxy.config.errors import Code, ConfigError, Problem, Severity, file_error, whole_file
from egress_proxy.config.load import Loaded, load
from egress_proxy.config.model import Config
from egress_proxy.config.sources import Sources, signature
from egress_proxy.core.policy import HostSet

#: Seconds between two looks at the file. A change is read when two looks in a row have seen the same file.
POLL_INTERVAL: Final = 0.5

#: Sections that sockets, caches and queues were made from. The rest takes effect at once.
NEEDS_RESTART: Final = ("listen", "dns", "audit", "state")

#: Rules that are freed at a stretch.
_LET_GO: Final = 1000

#: Times that the files are read again because they changed while they were read.
_MAX_TRIES: Final = 5


class ReloadOutcome(StrEnum):
    SWAPPED = "swapped"
    """The file's configuration is in force now."""
    UNCHANGED = "unchanged"
    """The file's configuration was in force already."""
    FAILED = "failed"
    """The file's configuration cannot be used; the old one stays in force."""


@dataclass(frozen=True, slots=True)
class ReloadResult:
    """What came of reading the file again."""

    outcome: ReloadOutcome
    generation: int
    """Of the configuration that is in force now."""
    warnings: tuple[Problem, ...] = ()
    """Of the new configuration, with a line for each section that waits for a restart."""
    error: ConfigError | None = None
    """Where it failed."""


class Reloader:
    """Owns the answer to which configuration is in force.

    ``on_swap`` gets each new configuration with its generation. ``on_error`` gets each broken one, once, however often
    it is looked at. Both are called in the event loop's thread.
    """

    def __init__(
        self,
        path: str,
        config: Config,
        on_swap: Callable[[Config, int], None],
        on_error: Callable[[ConfigError], None],
        *,
        on_warnings: Callable[[tuple[Problem, ...]], None] | None = None,
        poll_interval: float = POLL_INTERVAL,
        sources: Callable[[], Sources] = Sources,
    ) -> None:
        self.config = config
        """The configuration in force."""
        self.generation = 1
        """Counts the configurations that were in force since the start."""
        self._path = path
        self._on_swap = on_swap
        self._on_error = on_error
        self._on_warnings = on_warnings
        self._poll_interval = poll_interval
        self._new_sources = sources
        self._lock = asyncio.Lock()
        self._freeing: asyncio.Future[None] | None = None
        #: What was last reported as broken, so that it is reported once.
        self._reported: str | None = None
        #: The files to follow: those of the configuration that was read last, whether it could be used or not.
        self._sources = config.sources

    async def reload(self) -> ReloadResult:
        """Read the file again, whether it seems changed or not. An error is reported although it was before."""
        async with self._lock:
            self._reported = None
            return await self._reload()

    async def watch(self) -> None:
        """Follow the files until cancelled. Nothing that they do, and no defect of ours, ends it."""
        acted_on = before = self._sources.state
        while True:
            try:
                now = await asyncio.to_thread(signature, self._sources.paths)
                # Not before it stands still: half of a policy may be a policy too, without its last deny rules.
                if now == before and now != acted_on:
                    async with self._lock:
                        await self._reload()
                    # There may be other files now.
                    acted_on = now = self._sources.state
                before = now
            except Exception as error:  # noqa: BLE001 - of a callback; the watch must go on
                acted_on = before
                _tell_loop("the configuration's watcher met an error", error)
            await asyncio.sleep(self._poll_interval)

    async def _reload(self) -> ReloadResult:
        # Off the loop: reading may wait for a disk, and parsing a large file takes seconds.
        outcome, self._sources = await asyncio.to_thread(_load_whole, self._path, self._new_sources)
        if isinstance(outcome, ConfigError):
            return self._failed(outcome)
        same = outcome.config.digest == self.config.digest
        # Secrets are no part of the digest.
        if same and outcome.config.parent_credentials == self.config.parent_credentials:
            self._reported = None
            return ReloadResult(ReloadOutcome.UNCHANGED, self.generation)
        return self._swap(outcome)

    def _swap(self, loaded: Loaded) -> ReloadResult:
        config, waiting = _keep_what_needs_restart(self.config, loaded)
        try:
            self._on_swap(config, self.generation + 1)
        except Exception as error:  # noqa: BLE001 - whoever failed to take it goes on with the old one
            return self._failed(_defect(self._path, error))
        old, self.config = self.config, config
        self.generation += 1
        self._freeing = asyncio.get_running_loop().run_in_executor(None, let_go, [old])
        self._reported = None
        warnings = waiting + loaded.warnings
        if warnings and self._on_warnings is not None:
            self._on_warnings(warnings)
        return ReloadResult(ReloadOutcome.SWAPPED, self.generation, warnings)

    def _failed(self, error: ConfigError) -> ReloadResult:
        seen = f"{self._sources.digest} {error}"
        if self._reported != seen:
            self._reported = seen
            self._on_error(error)
        return ReloadResult(ReloadOutcome.FAILED, self.generation, error=error)


def _keep_what_needs_restart(old: Config, loaded: Loaded) -> tuple[Config, tuple[Problem, ...]]:
    """The configuration that can take effect, and a warning for each section that cannot."""
    new = loaded.config
    changed = [name for name in NEEDS_RESTART if getattr(old, name) != getattr(new, name)]
    warnings = tuple(
        Problem(
            Code.NEEDS_RESTART,
            loaded.places.get(name, whole_file(new.source)),
            f"`{name}` has changed, which takes effect at the next start alone",
            "restart the proxy",
            Severity.WARNING,
        )
        for name in changed
    )
    if not changed:
        return new, ()
    kept = {name: getattr(old, name) for name in changed}
    return replace(new, **kept), warnings


# In a thread ------------------------------------------------------------------------------------------------------


def _load_whole(
    path: str, new_sources: Callable[[], Sources]
) -> tuple[Loaded | ConfigError, Sources]:
    """Load the configuration as its files were at one moment, as far as can be seen."""
    sources = new_sources()
    for _ in range(_MAX_TRIES):
        sources = new_sources()
        outcome: Loaded | ConfigError
        try:
            outcome = load(path, sources)
        except ConfigError as error:
            outcome = error
        except Exception as error:  # noqa: BLE001 - a defect of ours, and no reason to stop serving the old one
            outcome = _defect(path, error)
        if not sources.changed:
            return outcome, sources
    what = "the file changes while it is read"
    return file_error(path, what, "write it elsewhere and rename it over this one"), sources


def let_go(held: list[Config]) -> None:
    """Free the one configuration that a list holds, which nobody else uses any more, a little at a time.

    Freeing 100,000 rules at once takes 15 ms, in which no other thread runs.
    """
    rules = [rule for policy in held[0].policy.policies for rule in policy.rules]
    sets = {rule.target for rule in rules if isinstance(rule.target, HostSet)}
    parts: list[object] = [*rules, *(place for each in sets for place in each.patterns.values())]
    del rules, sets
    # What is left of it then is our list alone.
    held.clear()
    while parts:
        del parts[-_LET_GO:]
        time.sleep(0.001)


def _defect(path: str, error: Exception) -> ConfigError:
    what = f"the configuration could not be loaded because of a defect of the program: {type(error).__name__}"
    found = file_error(path, what, "report it with this file", Code.DEFECT)
    found.__cause__ = error
    return found


def _tell_loop(message: str, error: Exception) -> None:
    asyncio.get_running_loop().call_exception_handler({"message": message, "exception": error})
