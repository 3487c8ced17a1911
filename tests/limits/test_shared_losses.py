"""Answers, connections and memories that are lost: nothing is counted twice, and nothing forgotten that was counted."""

from __future__ import annotations

import asyncio
import operator
from functools import partial
from random import Random

import pytest

from egress_proxy.core.limits import Limits
from egress_proxy.core.tenant import Charge
from egress_proxy.limits.link import Script
from egress_proxy.limits.store import Account, Exceeded
from tests.limits.sharing import (
    ADMIT,
    MIB,
    TELL,
    Replica,
    losing,
    replicas,
    stored,
    told,
    until,
)
from tests.support.redis_server import RedisServer, needs_server

pytestmark = needs_server


# Answers that are lost ------------------------------------------------------------------------------------------------


async def test_telling_again_what_was_heard_already_counts_nothing_twice(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An account that the store knew before the replica did, or may have known."""
    async with replicas(server.settings(), Limits(requests_per_day=100, bytes_per_day=MIB), 1) as (
        one,
    ):
        account = one.account()
        account.must_ask("a.test", one.store.wall(), tunnel=False)
        account.own_requests = account.requests = 5
        account.spend(1000, 0)
        with monkeypatch.context() as patch:
            times = losing(patch, one, TELL)
            waits = asyncio.ensure_future(one.store.states())
            await until(lambda: times() >= 4)
            # As soon as one comes through.
        await waits
        await told(one)
        assert stored(server, "day")["requests"] == "5"
        assert account.own_requests == 5
        assert account.slices[0].spent == 1000


async def test_a_slice_that_is_given_back_is_not_spent_any_more(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the answer to that is lost: the store has it, and may have leased it to somebody else."""
    async with replicas(server.settings(), Limits(bytes_per_day=1000 * MIB), 1) as (one,):
        (account,) = await one.admitted()
        account.spend(MIB, 0)
        await told(one)
        (mine,) = one.account().slices
        assert mine.held - mine.spent > MIB
        losing(monkeypatch, one, TELL)
        one.account().active = False
        waits = asyncio.ensure_future(one.store.states())
        await until(lambda: stored(server, "day").get("both") == str(MIB))
        assert mine.held <= mine.spent
        waits.cancel()
        monkeypatch.undo()


async def test_what_a_lost_answer_had_counted_is_counted_once(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with replicas(server.settings(), Limits(requests_per_day=100, tunnels=9), 1) as (one,):
        await one.admitted(tunnel=True)
        await told(one)
        with monkeypatch.context() as patch:
            losing(patch, one, ADMIT)
            for _ in range(3):
                await one.admitted(tunnel=True)
        await told(one)
        assert stored(server, "day")["requests"] == "4"
        assert list(stored(server, "tunnels").values()) == ["4"]


# Stores that have lost something --------------------------------------------------------------------------------------


async def test_a_successor_that_missed_the_last_of_it_is_told(server: RedisServer) -> None:
    """Copies are made later than answers are given. It still knows that the replica lives."""
    limits = Limits(requests_per_day=100, bytes_per_day=100 * MIB, new_hosts_per_hour=9, tunnels=9)
    async with replicas(server.settings(lease=0.3), limits, 1) as (one,):
        for number in range(5):
            await one.admitted(f"{number}.test", tunnel=True)
        one.account().spend(MIB, 0)
        await told(one)
        with server.client() as client:
            keys = [*client.scan_iter("*:day:*"), *client.scan_iter("*:hosts:*")]
            assert client.delete(*keys, *client.scan_iter("*:tunnels:*")) == 3
            # As at a failover.
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await until(lambda: one.changes)
        await until(lambda: one.store.up)
        await told(one)
        assert stored(server, "day")["requests"] == "5"
        assert int(stored(server, "day")["both"]) >= MIB
        assert list(stored(server, "tunnels").values()) == ["5"]
        with server.client() as client:
            (key,) = client.scan_iter("*:hosts:*")
            assert client.zcard(key) == 5


async def test_a_store_that_counts_less_than_was_counted_is_told_so(server: RedisServer) -> None:
    """Even where no connection ended: a proxy before the store may keep ours."""
    async with replicas(server.settings(), Limits(requests_per_day=6), 1) as (one,):
        for _ in range(4):
            await one.admitted()
        with server.client() as client:
            client.delete(*client.scan_iter("*:day:*"))
        await one.admitted()
        assert one.account().own_requests == 5
        await until(lambda: stored(server, "day")["requests"] == "5")


async def test_a_clock_that_is_behind_holds_nobody_up_for_longer_than_a_burst(
    server: RedisServer,
) -> None:
    async with replicas(server.settings(), Limits(requests_per_second=10, burst=2), 1) as (one,):
        await one.admitted()
        with server.client() as client:
            (key,) = client.scan_iter("*:rate:*")
            client.set(key, repr(one.store.wall() + 3600))
        await told(one)
        refused = await one.ask()
        assert not isinstance(refused, Exceeded) or refused.retry_after <= 0.2


async def test_scripts_that_are_forgotten_run_in_their_order(server: RedisServer) -> None:
    """What is told was true before the request that goes out with it."""
    async with replicas(server.settings(), Limits(tunnels=9, requests_per_day=99), 1) as (one,):
        for _ in range(2):
            await one.admitted(tunnel=True)
        await told(one)
        with server.client() as client:
            client.script_flush()
            # Somebody else's replica has come to ask already, and told nothing yet.
            client.script_load(Script("common", "admit").text)
        # Both go out together.
        one.account().has_news()
        answer = one.store.admit((Charge(one.policy, "acme"),), "a.test", tunnel=True)
        assert isinstance(answer, asyncio.Future)
        await answer
        await until(lambda: not one.account().dirty)
        assert list(stored(server, "tunnels").values()) == ["3"]
        assert stored(server, "day")["requests"] == "3"


# All of it ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_happens_all_that_was_let_through_is_counted_in_the_end(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Lost answers, lost connections, lost data and forgotten scripts, among requests and tunnels of two replicas."""
    chance = Random(seed)
    limits = Limits(
        requests_per_day=10_000, tunnels=1000, bytes_per_day=1000 * MIB, new_hosts_per_hour=900
    )
    async with replicas(server.settings(lease=0.3), limits) as both, asyncio.timeout(30):
        open_: dict[Replica, list[tuple[Account, ...]]] = {each: [] for each in both}
        passed, moved = dict.fromkeys(both, 0), 0
        names: set[str] = set()
        with server.client() as client:
            for _ in range(250):
                each = chance.choice(both)
                match chance.randrange(40):
                    case 0:
                        client.flushall()
                    case 1:
                        client.script_flush()
                    case 2:
                        client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
                    case 3 | 4 if each.store._link is not None:
                        with monkeypatch.context() as patch:
                            losing(patch, each, chance.choice([TELL, ADMIT]))
                            names.add(host := f"{chance.randrange(500)}.test")
                            open_[each].append(await each.admitted(host, tunnel=True))
                            passed[each] += 1
                    case number if number < 12 and open_[each]:
                        each.release(
                            open_[each].pop(chance.randrange(len(open_[each]))), tunnel=True
                        )
                    case _:
                        names.add(host := f"{chance.randrange(500)}.test")
                        open_[each].append(accounts := await each.admitted(host, tunnel=True))
                        passed[each] += 1
                        accounts[0].spend(count := chance.randrange(MIB), 0)
                        moved += count
                await asyncio.sleep(0)
        for each in both:
            await until(partial(getattr, each.store, "up"))
            each.store.teller.at_once([each.account()])
        await until(lambda: not any(each.account().dirty for each in both))
        # Beats tell what a lost connection may have carried.
        for each in both:
            doubtful = each.store.teller._doubtful
            await until(partial(operator.not_, doubtful))
            await told(each)
        for each in both:
            mine = each.store.replica
            assert stored(server, "tunnels").get(mine, "0") == str(len(open_[each]))
            # A request whose answer was lost may be counted twice where the store had lost its memory, never less.
            assert int(stored(server, "day")[f"requests|{mine}"]) >= passed[each]
        day = stored(server, "day")
        assert int(day["requests"]) == sum(
            int(count) for name, count in day.items() if name.startswith("requests|")
        )
        assert int(day["requests"]) <= sum(passed.values()) + 20
        assert moved <= int(day["both"]) <= moved + 2 * 11 * MIB + MIB
        with server.client() as client:
            (key,) = client.scan_iter("*:hosts:*")
            assert client.zcard(key) == len(names)
