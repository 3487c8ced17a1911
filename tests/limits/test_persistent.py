"""Budgets outlive the process: by its end, by its death, and by whatever happens to the file."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from egress_proxy.core import reasons
from egress_proxy.core.limits import Limits
from egress_proxy.core.policy import CompiledPolicy
from egress_proxy.core.tenant import Charge
from egress_proxy.limits import local, persistent
from egress_proxy.limits.limiter import Admission, Limiter, Refusal
from egress_proxy.limits.persistent import PersistentStore, StateError
from egress_proxy.limits.store import Near
from tests.limits.clocks import DAY, HALF, HOUR, NOON, Clock, policy

LIMITS = Limits(requests_per_day=10, bytes_per_day=1000, new_hosts_per_hour=3)


class Process:
    """What one process has of it."""

    def __init__(self, path: Path, clock: Clock, *limits: Limits) -> None:
        self.near: list[Near] = []
        self.trouble: list[str | None] = []
        self.store = PersistentStore(
            str(path),
            self.near.append,
            self.trouble.append,
            monotonic=clock.monotonic,
            wall=clock.wall,
            lock_timeout=0.05,
        )
        self.limiter = Limiter(self.store, lambda *_: None, monotonic=clock.monotonic)
        self.policies = [policy(f"p{number}", each) for number, each in enumerate(limits)]
        self.limiter.adopt(CompiledPolicy(self.policies))

    def ask(self, host: str = "a.test", tenant: str = "t") -> Admission | Refusal:
        charges = tuple(Charge(each, tenant) for each in self.policies)
        answer = self.limiter.admit(charges, host, tunnel=False)
        assert isinstance(answer, Admission | Refusal)
        if isinstance(answer, Admission):
            answer.release()
        return answer


@asynccontextmanager
async def process(path: Path, clock: Clock, *limits: Limits) -> AsyncIterator[Process]:
    made = Process(path, clock, *(limits or (LIMITS,)))
    try:
        yield made
    finally:
        await made.limiter.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


@pytest.fixture
def clock() -> Clock:
    return Clock()


# Restart ----------------------------------------------------------------------------------------------------------


async def test_a_restart_gives_nothing_back(path: Path, clock: Clock) -> None:
    async with process(path, clock) as first:
        for host in ("a.test", "b.test", "a.test"):
            assert isinstance(first.ask(host), Admission)
        tunnel = first.limiter.admit((Charge(first.policies[0], "t"),), "a.test", tunnel=True)
        assert isinstance(tunnel, Admission)
        tunnel.spend(100, 50)
        clock.sleep(600)
        first.ask("c.test")
    clock.now = 5.0  # another machine's
    async with process(path, clock) as second:
        (state,) = await second.limiter.states()
        assert [(used.limit, used.used) for used in state.limits] == [
            ("requests_per_day", 5),
            ("bytes_per_day", 150),
            ("new_hosts_per_hour", 3),
        ]
        assert isinstance(second.ask("c.test"), Admission)
        refused = second.ask("d.test")
        assert isinstance(refused, Refusal)
        assert refused.reason is reasons.NEW_HOSTS_LIMIT
        assert refused.retry_after == HOUR - 600
        for _ in range(4):
            second.ask("c.test")
        refused = second.ask("c.test")
        assert isinstance(refused, Refusal)
        assert refused.reason is reasons.REQUEST_BUDGET
        assert refused.retry_after == HALF - 600
        # Of ten, eight were used: told once, by this process.
        assert [near.used for near in second.near if near.kind == "request_budget"] == [8]
    async with process(path, clock) as third:
        assert isinstance(third.ask("c.test"), Refusal)
        assert not third.near
        clock.sleep(HALF - 600)
        assert isinstance(third.ask("c.test"), Admission)
    # The day is over: what it had is of no interest any more.
    async with process(path, clock) as fourth:
        (state,) = await fourth.limiter.states()
        assert state.limits[0].used == 1


async def test_a_day_that_is_over_is_not_taken_over(path: Path, clock: Clock) -> None:
    async with process(path, clock) as first:
        first.ask()
    clock.sleep(DAY)
    async with process(path, clock) as second:
        assert await second.limiter.states() == []
        assert second.store._days == {}


async def test_each_policy_and_tenant_has_its_own_row(path: Path, clock: Clock) -> None:
    async with process(path, clock, LIMITS, Limits(requests_per_day=5)) as first:
        first.ask(tenant="a")
        first.ask(tenant="a")
        first.ask(tenant="b")
    # Of a policy that is away for a while, what is used stays in the file.
    async with process(path, clock, LIMITS):
        pass
    async with process(path, clock, LIMITS, Limits(requests_per_day=5)) as second:
        assert [
            (each.policy, each.tenant, each.limits[0].used)
            for each in await second.limiter.states()
        ] == [("p0", "a", 2), ("p0", "b", 1), ("p1", "a", 2), ("p1", "b", 1)]


async def test_a_policy_that_comes_with_a_reload_finds_its_row(path: Path, clock: Clock) -> None:
    async with process(path, clock, LIMITS, LIMITS) as first:
        first.ask()
    async with process(path, clock, LIMITS) as second:
        second.limiter.adopt(CompiledPolicy([policy("p0", LIMITS), policy("p1", LIMITS)]))
        assert [each.policy for each in await second.limiter.states()] == ["p0", "p1"]


async def test_the_table_is_no_larger_after_a_restart(
    path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "MAX_TENANTS", 5)
    monkeypatch.setattr(persistent, "MAX_TENANTS", 5)
    async with process(path, clock) as first:
        for number in range(20):
            first.ask(tenant=f"t{number}")
    async with process(path, clock) as second:
        assert len(second.store._accounts["p0"]) == 6
        refused = second.ask(tenant="t19")
        # The one that the others share has used all of its ten.
        assert isinstance(refused, Refusal)


# The writer -------------------------------------------------------------------------------------------------------


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what the store does tells nobody
            await asyncio.sleep(0.005)


async def until_written(made: Process) -> None:
    await until(lambda: not made.store._changed and made.store._writing is None)


def rows(path: Path) -> list[tuple[str, int]]:
    """What the file says, while nobody has it open."""
    with closing(sqlite3.connect(path)) as database:
        return sorted(database.execute("SELECT tenant, requests FROM days"))


async def test_nothing_is_written_before_its_time_and_all_of_it_then(
    path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(persistent, "FLUSH_INTERVAL", 0.02)
    async with process(path, clock) as made:
        batches: list[int] = []
        write = made.store._file.write

        def counted(days: list[Any], hosts: list[Any], now: float) -> None:
            batches.append(len(days))
            write(days, hosts, now)

        monkeypatch.setattr(made.store._file, "write", counted)
        for _ in range(5):
            for tenant in ("a", "b"):
                made.ask(tenant=tenant)
        await until_written(made)
        made.ask(tenant="a")
        await until_written(made)
    # Ten requests of two tenants are two rows.
    assert batches == [2, 1]
    assert rows(path) == [("a", 6), ("b", 5)]


async def test_a_refused_request_writes_nothing(path: Path, clock: Clock) -> None:
    async with process(path, clock, Limits(requests_per_day=1)) as made:
        made.ask()
        made.store._write()
        await until_written(made)
        for _ in range(3):
            assert isinstance(made.ask(), Refusal)
        assert made.store._changed == []
        assert made.store._timer is None


async def test_a_disk_that_fails_is_told_once_and_nothing_is_lost(
    path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(persistent, "FLUSH_INTERVAL", 0.01)
    monkeypatch.setattr(persistent, "_RETRY_INTERVAL", 0.01)
    async with process(path, clock) as made:
        made.ask("a.test")
        await until_written(made)
        made.store._file._database.execute("PRAGMA query_only = ON")
        made.ask("b.test")
        await until(lambda: bool(made.trouble))
        # The proxy goes on with its memory.
        made.ask("c.test")
        assert isinstance(made.ask("d.test"), Refusal)
        await asyncio.sleep(0.05)
        (why,) = made.trouble
        assert why is not None
        assert "it cannot be written" in why
        made.store._file._database.execute("PRAGMA query_only = OFF")
        await until_written(made)
        assert made.trouble == [why, None]
    async with process(path, clock) as second:
        (state,) = await second.limiter.states()
        assert [used.used for used in state.limits] == [3, 0, 3]


async def test_what_is_over_is_removed_from_the_file(path: Path, clock: Clock) -> None:
    async with process(path, clock) as made:
        made.ask(tenant="old")
        made.store._write()
        await until_written(made)
        clock.sleep(DAY)
        made.ask(tenant="new")
    assert [tenant for tenant, _ in rows(path)] == ["new"]
    with closing(sqlite3.connect(path)) as database:
        assert list(database.execute("SELECT tenant, since FROM hosts")) == [("new", NOON + DAY)]


# Death ------------------------------------------------------------------------------------------------------------

_VICTIM = """
import asyncio, sys
from egress_proxy.core.limits import Limits
from egress_proxy.core.policy import CompiledPolicy, Place, Policy
from egress_proxy.core.tenant import Charge
from egress_proxy.limits import persistent
from egress_proxy.limits.limiter import Limiter

async def main():
    persistent.FLUSH_INTERVAL = 0.05
    store = persistent.PersistentStore(sys.argv[1], print, print)
    limiter = Limiter(store, print)
    policy = Policy("p0", (), None, Place("f", 1, 1), limits=Limits(requests_per_day=10**9))
    limiter.adopt(CompiledPolicy([policy]))
    count = 0
    while True:
        for _ in range(100):
            limiter.admit((Charge(policy, "t"),), "a.test", tunnel=False).release()
        count += 100
        print(count, flush=True)
        await asyncio.sleep(0.001)

asyncio.run(main())
"""


async def test_a_killed_process_loses_no_more_than_it_had_not_written(path: Path) -> None:
    """Nothing of what was counted an interval and a write before the end, whatever the machine is busy with."""
    victim = subprocess.Popen(
        [sys.executable, "-c", _VICTIM, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert victim.stdout is not None
    try:
        counts = [int(victim.stdout.readline())]
        # Written for the first time, and some times more.
        while len(counts) < 400:
            counts.append(int(victim.stdout.readline()))
    finally:
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        victim.stdout.close()
    clock = Clock()
    clock.epoch = time.time()
    async with process(path, clock, Limits(requests_per_day=10**9)) as after:
        (state,) = await after.limiter.states()
    used = state.limits[0].used
    # At least 0.4 s of sleep went by, of which all but the last 0.05 s and a write are in the file.
    assert used >= counts[20]


# The file ---------------------------------------------------------------------------------------------------------


def open_one(path: Path) -> str:
    """Why it cannot be opened."""
    with pytest.raises(StateError) as caught:
        Process(path, Clock())
    return str(caught.value)


async def test_the_file_is_nobody_else_s_business(path: Path, clock: Clock) -> None:
    before = os.umask(0)
    try:
        async with process(path, clock) as made:
            made.ask()
            modes = {each.name: each.stat().st_mode & 0o777 for each in path.parent.iterdir()}
    finally:
        os.umask(before)
    assert set(modes.values()) == {0o600}


async def test_two_processes_cannot_have_one_file(path: Path, clock: Clock) -> None:
    async with process(path, clock):
        assert "another process uses it" in open_one(path)
    async with process(path, clock):
        pass


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"this is no database, but a text that somebody has put here\n" * 50, "it is no database"),
        (b"SQLite format 3\0" + b"\xff" * 5000, "it is no database|it is damaged"),
    ],
)
def test_a_file_that_is_something_else_is_left_alone(path: Path, content: bytes, why: str) -> None:
    path.write_bytes(content)
    assert re.search(why, open_one(path))
    assert path.read_bytes() == content


async def test_a_damaged_file_is_no_reason_to_begin_anew(path: Path, clock: Clock) -> None:
    """Or whoever can damage it has all budgets again."""
    async with process(path, clock) as made:
        for number in range(300):
            made.ask(tenant=f"tenant-{number}")
    data = bytearray(path.read_bytes())
    data[4096:] = os.urandom(len(data) - 4096)
    path.write_bytes(data)
    assert "it is damaged" in open_one(path)


def test_another_program_s_database_is_left_alone(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE theirs (x)")
        database.commit()
    assert "another program or version" in open_one(path)
    with closing(sqlite3.connect(path)) as database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_schema")]
    assert tables == ["theirs"]


async def test_a_later_version_s_file_is_left_alone(path: Path, clock: Clock) -> None:
    async with process(path, clock):
        pass
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 2")
    assert "another program or version" in open_one(path)


def test_places_where_no_file_can_be(tmp_path: Path) -> None:
    assert "No such file or directory" in open_one(tmp_path / "none" / "state.db")
    assert "Is a directory" in open_one(tmp_path)
    strange = tmp_path / "a\x1b[31m" / "state.db"
    assert "\x1b" not in open_one(strange)
    if os.geteuid():
        (tmp_path / "closed").mkdir(mode=0o500)
        assert "Permission denied" in open_one(tmp_path / "closed" / "state.db")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    assert "is not a file" in open_one(fifo)
