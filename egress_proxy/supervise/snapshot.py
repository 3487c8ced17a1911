"""The files of a configuration as one process has read them, for others to read the same.

Every worker compiles the configuration itself, by the code that has checked it. What it reads are the bytes that the
supervisor has checked, whatever stands in the files by then: so all workers hold one configuration, and one that is
started again does, too, while a broken file waits for somebody to mend it.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

import msgspec

from egress_proxy.config.errors import file_error
from egress_proxy.config.model import Audit, Config, Dns, FileState, MemoryState, SharedState
from egress_proxy.config.sources import Sources


class Snapshot(msgspec.Struct):
    """What was read."""

    files: dict[str, bytes] = {}
    directories: dict[str, bool] = {}
    """Whether a path is a directory."""
    listings: dict[str, tuple[list[str], list[str]]] = {}


class Kept(msgspec.Struct, frozen=True):
    """The sections that take effect at the start alone (``config/reload.py: NEEDS_RESTART``), as they were then.

    A worker that is started again has those of the others, whatever the files say by now.
    """

    dns: Dns
    audit: Audit
    # No tag tells these two apart, and in memory there is nothing to say.
    file: FileState | None = None
    shared: SharedState | None = None

    @classmethod
    def of(cls, config: Config) -> Kept:
        """Those that are in force."""
        state = config.state
        return cls(
            config.dns,
            config.audit,
            state if isinstance(state, FileState) else None,
            state if isinstance(state, SharedState) else None,
        )

    def in_place(self, config: Config) -> Config:
        """The configuration with these in the place of its own."""
        state = self.file or self.shared or MemoryState()
        return replace(config, dns=self.dns, audit=self.audit, state=state)


class Recording(Sources):
    """Reads files, and keeps what it has read."""

    def __init__(self) -> None:
        super().__init__()
        self.snapshot = Snapshot()

    def read(self, path: str, *, secret: bool = False) -> bytes:
        data = super().read(path, secret=secret)
        self.snapshot.files[path] = data
        return data

    def is_directory(self, path: str) -> bool:
        found = self.snapshot.directories[path] = super().is_directory(path)
        return found

    def files_in(self, directory: str) -> tuple[list[str], list[str]]:
        found = self.snapshot.listings[directory] = super().files_in(directory)
        return found


class Recorded(Sources):
    """Reads what was kept, and no file."""

    def __init__(self, snapshot: Snapshot) -> None:
        super().__init__()
        self._snapshot = snapshot

    def read(self, path: str, *, secret: bool = False) -> bytes:
        data = self._snapshot.files.get(path)
        if data is None:
            raise file_error(path, "the supervisor did not read this file", "report this defect")
        if not secret:
            self._digests.append(hashlib.sha256(data).hexdigest())
        return data

    def is_directory(self, path: str) -> bool:
        return self._snapshot.directories.get(path, False)

    def files_in(self, directory: str) -> tuple[list[str], list[str]]:
        return self._snapshot.listings.get(directory, ([], []))
