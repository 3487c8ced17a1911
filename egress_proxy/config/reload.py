"""Reloading: the configuration in force, and how another one takes its place.

A new configuration is swapped in whole or not at all; whatever is wrong with it, the old one stays in force. The file
is polled rather than watched for events, because that sees every way in which files are replaced (written in place,
renamed over, a Kubernetes volume's symlink turned to another directory) on every file system.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from egress_proxy.config.errors import ConfigError, Problem, Severity, file_error, whole_file
from egress_proxy.config.load import Loaded, parse, read
from egress_proxy.config.model import Config

#: Seconds between two looks at the file. A change is read when two looks in a row have seen the same file.
POLL_INTERVAL: Final = 0.5

#: Sections that sockets, caches and queues were made from. The rest takes effect at once.
NEEDS_RESTART: Final = ("listen", "dns", "audit")

#: Times that a file is read again because it changed while it was read.
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
        self._lock = asyncio.Lock()
        #: What was last reported as broken, so that it is reported once.
        self._reported: str | None = None

    async def reload(self) -> ReloadResult:
        """Read the file again, whether it seems changed or not. An error is reported although it was before."""
        async with self._lock:
            self._reported = None
            return await self._reload()

    async def watch(self) -> None:
        """Follow the file until cancelled. Nothing that the file does, and no defect of ours, ends it."""
        acted_on: _Signature | None = None
        before: _Signature | None = None
        while True:
            try:
                now = await asyncio.to_thread(_signature, self._path)
                # Not before it stands still: half of a policy may be a policy too, without its last deny rules.
                if now == before and now != acted_on:
                    async with self._lock:
                        await self._reload()
                    acted_on = now
                before = now
            except Exception as error:  # noqa: BLE001 - of a callback; the watch must go on
                acted_on = before
                _tell_loop("the configuration's watcher met an error", error)
            await asyncio.sleep(self._poll_interval)

    async def _reload(self) -> ReloadResult:
        # Off the loop: reading may wait for a disk, and parsing a large file takes seconds.
        try:
            digest, loaded = await asyncio.to_thread(
                _read_and_parse, self._path, self.config.digest
            )
        except _BrokenError as broken:
            return self._failed(broken.error, broken.digest)
        if loaded is None:
            self._reported = None
            return ReloadResult(ReloadOutcome.UNCHANGED, self.generation)
        return self._swap(loaded, digest)

    def _swap(self, loaded: Loaded, digest: str) -> ReloadResult:
        config, waiting = _keep_what_needs_restart(self.config, loaded)
        try:
            self._on_swap(config, self.generation + 1)
        except Exception as error:  # noqa: BLE001 - whoever failed to take it goes on with the old one
            return self._failed(_defect(self._path, error), digest)
        self.config = config
        self.generation += 1
        self._reported = None
        warnings = waiting + loaded.warnings
        if warnings and self._on_warnings is not None:
            self._on_warnings(warnings)
        return ReloadResult(ReloadOutcome.SWAPPED, self.generation, warnings)

    def _failed(self, error: ConfigError, digest: str) -> ReloadResult:
        if self._reported != digest:
            self._reported = digest
            self._on_error(error)
        return ReloadResult(ReloadOutcome.FAILED, self.generation, error=error)


def _keep_what_needs_restart(old: Config, loaded: Loaded) -> tuple[Config, tuple[Problem, ...]]:
    """The configuration that can take effect, and a warning for each section that cannot."""
    new = loaded.config
    changed = [name for name in NEEDS_RESTART if getattr(old, name) != getattr(new, name)]
    warnings = tuple(
        Problem(
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

#: What tells one state of a file from another: of the file that symlinks lead to, or why there is none.
_Signature = tuple[object, ...]


def _signature(path: str) -> _Signature:
    try:
        found = os.stat(path)  # noqa: PTH116 - raises the same, and is called for ever
    except (OSError, ValueError) as error:
        return (type(error), str(error))
    # ctime_ns as well: it alone tells of changed permissions, and of a changed text whose mtime was set back.
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


class _BrokenError(Exception):
    """A configuration that cannot be used, with what tells it from others."""

    def __init__(self, error: ConfigError, digest: str) -> None:
        super().__init__(error, digest)
        self.error = error
        self.digest = digest


def _read_and_parse(path: str, in_force: str) -> tuple[str, Loaded | None]:
    """The file's digest, and its configuration unless it is the one in force.

    Raises _BrokenError.
    """
    digest = ""
    try:
        data = _read_whole(path)
        digest = hashlib.sha256(data).hexdigest()
        return digest, None if digest == in_force else parse(data, path)
    except ConfigError as error:
        raise _BrokenError(error, digest or str(error)) from None
    except Exception as error:
        # A defect of ours, and no reason to stop serving the old configuration.
        raise _BrokenError(_defect(path, error), digest or repr(error)) from error


def _read_whole(path: str) -> bytes:
    """Read a file as it was at one moment, as far as can be seen.

    Raises ConfigError.
    """
    for _ in range(_MAX_TRIES):
        before = _signature(path)
        data = read(path)
        if _signature(path) == before:
            return data
    raise file_error(
        path, "the file changes while it is read", "write it elsewhere and rename it over this one"
    )


def _defect(path: str, error: Exception) -> ConfigError:
    what = f"the configuration could not be loaded because of a defect of the program: {type(error).__name__}"
    found = file_error(path, what, "report it with this file")
    found.__cause__ = error
    return found


def _tell_loop(message: str, error: Exception) -> None:
    asyncio.get_running_loop().call_exception_handler({"message": message, "exception": error})
