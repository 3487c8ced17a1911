"""Counters in memory, and what of them must outlive the process in an SQLite file.

Days and hours are written down: what a tenant has used of its day, and which hosts it has begun to talk to. Rates, open
tunnels and bandwidth are not, for they come to rest within seconds. Changes are gathered for ``FLUSH_INTERVAL`` and
written in a thread of its own, so that a slow disk stops nobody; a process that is killed loses what was counted since
then, and what was being written.

A file that cannot be used at the start is an error, because budgets would be there anew; one that cannot be written
any more later is told, and what waits is written once it can be again.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Final, NamedTuple

from egress_proxy.core.errors import EgressProxyError
from egress_proxy.core.limits import Limits
from egress_proxy.limits.hosts import HOUR
from egress_proxy.limits.local import MAX_TENANTS, LocalAccount, LocalStore
from egress_proxy.limits.store import Near

#: Seconds for which changes are gathered.
FLUSH_INTERVAL: Final = 1.0
#: Seconds between attempts to write, while the file cannot be written.
_RETRY_INTERVAL: Final = 10.0
#: Seconds to wait at the start for a process that ends to let go of the file.
_LOCK_TIMEOUT: Final = 5.0

#: The file is ours, and of this form (SQLite's header has a place for both).
_APPLICATION: Final = 0x45677250
_VERSION: Final = 1
_TABLES: Final = (
    """CREATE TABLE days (
        policy TEXT NOT NULL, tenant TEXT NOT NULL, start REAL NOT NULL, finish REAL NOT NULL,
        requests INTEGER NOT NULL, up INTEGER NOT NULL, down INTEGER NOT NULL,
        PRIMARY KEY (policy, tenant)
    ) WITHOUT ROWID""",
    """CREATE TABLE hosts (
        policy TEXT NOT NULL, tenant TEXT NOT NULL, host TEXT NOT NULL, since REAL NOT NULL,
        PRIMARY KEY (policy, tenant, host)
    ) WITHOUT ROWID""",
)


class StateError(EgressProxyError):
    """The file of counters cannot be used; the message says why, and what to do."""


class _Day(NamedTuple):
    """A row of ``days``."""

    policy: str
    tenant: str
    start: float
    end: float
    requests: int
    up: int
    down: int


class _Host(NamedTuple):
    """A row of ``hosts``."""

    policy: str
    tenant: str
    host: str
    since: float


class PersistentStore(LocalStore):
    """Counters of all tenants of one process, some of which the next process takes over.

    ``on_trouble`` is told once when the file cannot be written any more (with why), and once when it can be again (with
    None). Raises StateError where the file cannot be used.
    """

    def __init__(
        self,
        path: str,
        on_near: Callable[[Near], None],
        on_trouble: Callable[[str | None], None],
        *,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        lock_timeout: float = _LOCK_TIMEOUT,
    ) -> None:
        super().__init__(on_near, monotonic=monotonic, wall=wall)
        self.on_change = self._remember
        self._on_trouble = on_trouble
        self._file = _File(path, lock_timeout)
        #: What the file said, by policy, until an account takes it over.
        self._days: dict[str, dict[str, _Day]] = {}
        self._hosts: dict[tuple[str, str], list[_Host]] = {}
        for day in self._file.days(wall()):
            self._days.setdefault(day.policy, {})[day.tenant] = day
        for host in self._file.hosts(wall() - HOUR):
            self._hosts.setdefault((host.policy, host.tenant), []).append(host)
        self._changed: list[LocalAccount] = []
        self._timer: asyncio.TimerHandle | None = None
        self._writing: asyncio.Future[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="state")
        self._trouble = False
        self._closed = False

    def account(self, policy: str, tenant: str, limits: Limits) -> LocalAccount:
        """The tenant's account, made if there is none, with what an earlier process has counted."""
        account = super().account(policy, tenant, limits)
        days = self._days.get(policy)
        day = days.pop(account.tenant, None) if days else None
        if day is not None and day.end > self.wall():
            account.restore((day.start, day.end), (day.requests, day.up, day.down))
        for host in self._hosts.pop((policy, account.tenant), ()) if self._hosts else ():
            account.hosts.note(host.host, host.since)
        return account

    def adopt(self, limits: Mapping[str, Limits]) -> None:
        """Hold these limits from now on, by the names of their policies."""
        super().adopt(limits)
        # Made at once, so that whoever asks sees them. Those beyond the bound share an account already.
        known = {(policy, tenant) for policy, days in self._days.items() for tenant in days}
        for policy, tenant in sorted(known | self._hosts.keys()):
            if policy in limits:
                self.account(policy, tenant, limits[policy])

    async def close(self) -> None:
        """Write down what is not written yet, and let go of the file."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._writing is not None:
            await asyncio.wait([self._writing])
        if self._changed:
            self._write()
            assert self._writing is not None  # noqa: S101 - it was just begun
            await asyncio.wait([self._writing])
        await asyncio.get_running_loop().run_in_executor(self._thread, self._file.close)
        self._thread.shutdown(wait=False)

    def _remember(self, account: LocalAccount) -> None:
        self._changed.append(account)
        if self._timer is None and self._writing is None and not self._closed:
            self._wait(FLUSH_INTERVAL)

    def _wait(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._write)

    def _write(self) -> None:
        """Hand what has changed to the thread."""
        self._timer = None
        accounts, self._changed = self._changed, []
        days = [
            _Day(
                *(each.policy, each.tenant, each.start, each.end),
                *(each.requests, each.bytes_up, each.bytes_down),
            )
            for each in accounts
            if each.end
        ]
        hosts = [
            _Host(each.policy, each.tenant, host, since)
            for each in accounts
            for host, since in each.hosts.rows(each.unsaved_hosts)
        ]
        for each in accounts:
            each.unsaved = False
            each.unsaved_hosts = set()
        loop = asyncio.get_running_loop()
        forget = self.wall()
        self._writing = loop.run_in_executor(self._thread, self._file.write, days, hosts, forget)
        self._writing.add_done_callback(lambda done: self._written(done, accounts, hosts))

    def _written(
        self, done: asyncio.Future[None], accounts: list[LocalAccount], hosts: list[_Host]
    ) -> None:
        self._writing = None
        error = done.exception()
        if error is not None:
            for account in accounts:
                if not account.unsaved:
                    account.unsaved = True
                    self._changed.append(account)
            unsaved = {(each.policy, each.tenant): each.unsaved_hosts for each in accounts}
            for row in hosts:
                unsaved[row.policy, row.tenant].add(row.host)
        if self._trouble != (error is not None):
            self._trouble = error is not None
            self._on_trouble(None if error is None else str(error))
        if self._changed and not self._closed:
            self._wait(_RETRY_INTERVAL if self._trouble else FLUSH_INTERVAL)


class _File:
    """The file itself. Opened in the thread that starts the proxy, used in the writer's."""

    def __init__(self, path: str, lock_timeout: float) -> None:
        self._purged = 0.0
        shown = path if path.isprintable() else path.encode("unicode_escape").decode("ascii")
        try:
            # Nobody else's business: it names hosts. SQLite gives its own files beside it the same mode.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            if not Path(path).is_file():
                raise StateError(f"state: {shown} is not a file")
            self._database = sqlite3.connect(
                path, timeout=lock_timeout, isolation_level=None, check_same_thread=False
            )
        except OSError as error:
            why = os.strerror(error.errno or 0)
            raise StateError(
                f"state: {shown}: {why}; write a file in a directory that the proxy may write to"
            ) from None
        try:
            self._prepare(shown)
        except sqlite3.Error as error:
            self._database.close()
            raise StateError(f"state: {shown}: {_why(error)}") from None
        except StateError:
            self._database.close()
            raise

    def _prepare(self, shown: str) -> None:
        run = self._database.execute
        # Two processes would overwrite each other's counts; the lock is held as long as the file is open.
        run("PRAGMA locking_mode = EXCLUSIVE")
        run("PRAGMA journal_mode = WAL")
        # What was committed outlives the process. A machine that loses power may lose the last seconds, and no more.
        run("PRAGMA synchronous = NORMAL")
        run("BEGIN IMMEDIATE")
        application, version, tables = (
            run(question).fetchone()[0]
            for question in (
                "PRAGMA application_id",
                "PRAGMA user_version",
                "SELECT count(*) FROM sqlite_schema",
            )
        )
        if not application and not tables:
            for table in _TABLES:
                run(table)
            run(f"PRAGMA application_id = {_APPLICATION}")
            run(f"PRAGMA user_version = {_VERSION}")
        elif application != _APPLICATION or version != _VERSION:
            raise StateError(
                f"state: {shown} is a database of another program or version; write another path"
            )
        run("COMMIT")
        if run("PRAGMA quick_check(1)").fetchone()[0] != "ok":
            raise sqlite3.DatabaseError

    def days(self, after: float) -> list[_Day]:
        """The rows of days that are not over, of each policy as many as there may be accounts."""
        rows = self._database.execute(
            "SELECT policy, tenant, start, finish, requests, up, down FROM (SELECT *, row_number() OVER"
            " (PARTITION BY policy ORDER BY tenant) AS place FROM days WHERE finish > ?) WHERE place <= ?",
            (after, MAX_TENANTS + 1),
        )
        return [_Day(*row) for row in rows]

    def hosts(self, after: float) -> list[_Host]:
        """The rows of hosts that are still known, the oldest first."""
        rows = self._database.execute(
            "SELECT policy, tenant, host, since FROM hosts WHERE since > ? ORDER BY since", (after,)
        )
        return [_Host(*row) for row in rows]

    def write(self, days: list[_Day], hosts: list[_Host], now: float) -> None:
        """Write all of it or nothing. Raises StateError."""
        try:
            with closing(self._database.cursor()) as cursor:
                cursor.execute("BEGIN IMMEDIATE")
                try:
                    cursor.executemany(
                        "INSERT OR REPLACE INTO days VALUES (?, ?, ?, ?, ?, ?, ?)", days
                    )
                    cursor.executemany("INSERT OR REPLACE INTO hosts VALUES (?, ?, ?, ?)", hosts)
                    if not self._purged <= now < self._purged + HOUR:
                        cursor.execute("DELETE FROM days WHERE finish <= ?", (now,))
                        cursor.execute("DELETE FROM hosts WHERE since <= ?", (now - HOUR,))
                        self._purged = now
                    cursor.execute("COMMIT")
                except BaseException:
                    if self._database.in_transaction:
                        cursor.execute("ROLLBACK")
                    raise
        except sqlite3.Error as error:
            raise StateError(_why(error)) from None

    def close(self) -> None:
        self._database.close()


#: By SQLite's primary result codes.
_WHY: Final = {
    sqlite3.SQLITE_BUSY: "another process uses it; let each process have a file of its own",
    sqlite3.SQLITE_LOCKED: "another process uses it; let each process have a file of its own",
    sqlite3.SQLITE_CORRUPT: "it is damaged; move it away, and budgets begin anew",
    sqlite3.SQLITE_NOTADB: "it is no database; move it away, or write another path",
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_READONLY: "it cannot be written; let the proxy write to it and to its directory",
    sqlite3.SQLITE_PERM: "it cannot be written; let the proxy write to it and to its directory",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened; let the proxy write to it and to its directory",
    sqlite3.SQLITE_IOERR: "it cannot be read or written; look after the disk",
}


def _why(error: sqlite3.Error) -> str:
    """What is wrong with the file, in words of our own: SQLite's may quote what stands in it."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)
    return _WHY.get(code & 0xFF, f"SQLite cannot use it ({code})")
