"""Once in a while: midnight, another time zone, a flood of hosts, odd names and numbers, half an answer."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from egress_proxy.core.limits import Kind, Limits
from egress_proxy.core.tenant import Charge
from egress_proxy.limits import hosts as limits_hosts
from egress_proxy.limits import shared_account
from egress_proxy.limits.shared_account import digest
from egress_proxy.limits.store import Exceeded
from tests.limits.clocks import DAY
from tests.limits.sharing import (
    MIB,
    TELL,
    policy,
    replicas,
    told,
    until,
)
from tests.support.redis_server import RedisServer, needs_server

pytestmark = needs_server


# Hosts ----------------------------------------------------------------------------------------------------------------


async def test_a_host_that_was_begun_with_anew_while_the_store_was_away_is_known_there(
    server: RedisServer,
) -> None:
    async with replicas(server.settings(), Limits(new_hosts_per_hour=3), 1) as (one,):
        await one.admitted("old.test")
        with server.client() as client:
            (key,) = client.scan_iter("*:hosts:*")
            now = one.store.wall()
            client.zadd(key, {digest("old.test"): now - 3700})
            one.account().untold_hosts["old.test"] = now
            await told(one)
            assert client.zscore(key, digest("old.test")) == pytest.approx(now)


async def test_hosts_are_forgotten_here_when_their_hour_is_over(server: RedisServer) -> None:
    """In whatever order the replica has come to know of them."""
    async with replicas(server.settings(), Limits(new_hosts_per_hour=5), 1) as (one,):
        await one.admitted("first.test")
        account = one.account()
        with server.client() as client:
            (key,) = client.scan_iter("*:hosts:*")
            now = one.store.wall()
            client.zadd(key, {digest("second.test"): now - 3599.0})
        await one.admitted("second.test")
        assert list(account.hosts) == ["first.test", "second.test"]
        account.hosts.forget(now + 2)
        assert list(account.hosts) == ["first.test"]
        account.hosts.forget(now + 3601)
        assert not account.hosts
        assert one.store.pool_of("agents").count == 0


async def test_many_hosts_are_told_in_parts(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that comes back is not kept busy for longer than a request may wait."""
    monkeypatch.setattr(shared_account, "HOSTS_AT_ONCE", 10)
    async with replicas(server.settings(), Limits(new_hosts_per_hour=100), 1) as (one,):
        account = one.account()
        for number in range(35):
            account.hosts.note(f"{number}.test", one.store.wall())
        account.tell_all()
        told_of: list[int] = []
        link = one.store._link
        assert link is not None
        prepare = link.prepare

        def noting(which: Any, keys: Any, arguments: Any, on_reply: Any) -> Any:
            if TELL in which.text:
                told_of.append(arguments[9])
            return prepare(which, keys, arguments, on_reply)

        monkeypatch.setattr(link, "prepare", noting)
        account.has_news()
        with server.client() as client:
            key = account.keys[3]
            async with asyncio.timeout(10):
                while client.zcard(key) < 35:  # noqa: ASYNC110 - of the store
                    await asyncio.sleep(0.01)
        assert told_of == [10, 10, 10, 5]


async def test_a_flood_of_tenants_and_hosts_fills_no_store(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attack: new tenants, each with as many hosts as it may have, until the store's memory is full."""
    monkeypatch.setattr(limits_hosts, "MAX_HOSTS", 20)
    other = policy(Limits(new_hosts_per_hour=10), "other")
    async with replicas(server.settings(), Limits(new_hosts_per_hour=10)) as (one, two):
        mine = await one.admitted("mine.test")
        for number in range(60):
            tenant = f"t{number}"
            for replica in (one, two):
                answer = await replica.ask(f"{tenant}.test", tenant)
                if not isinstance(answer, Exceeded):
                    replica.release(answer)
                    continue
                assert answer.kind is Kind.NEW_HOSTS
                assert "of all tenants together" in answer.detail
                assert 3600 <= answer.retry_after <= 4200
        with server.client() as client:
            known = sum(client.zcard(key) for key in client.scan_iter("*:hosts:*"))
        assert known == 20
        for replica in (one, two):
            assert replica.store.pool_of("agents").count <= 20
        # What is known stays open; other policies have a bound of their own.
        await two.admitted("mine.test")
        one.release(mine)
        one.policies = (other,)
        await one.admitted("mine.test")


# Accounts -------------------------------------------------------------------------------------------------------------


async def test_an_account_that_is_asked_about_is_not_let_go(server: RedisServer) -> None:
    async with replicas(server.settings(), Limits(tunnels=5), 1) as (one,):
        charges = [(Charge(one.policy, f"t{number}"),) for number in range(4)]
        answers = [one.store.admit(each, "a.test", tunnel=True) for each in charges]
        for number, answer in enumerate(answers):
            assert isinstance(answer, asyncio.Future)
            assert (await answer) == (one.account(f"t{number}"),)
        await told(one)
        with server.client() as client:
            for key in client.scan_iter("*:tunnels:*"):
                assert client.hvals(key) == ["1"]


async def test_another_time_zone_is_another_day_for_all(server: RedisServer) -> None:
    """For a replica that knew the tenant before the reload, and for one that did not."""
    async with replicas(server.settings(), Limits(requests_per_day=4)) as (one, two):
        for _ in range(2):
            await one.admitted()
        there = Limits(requests_per_day=4, time_zone="Asia/Kathmandu")
        for each in (one, two):
            each.policy = policy(there)
            each.policies = (each.policy,)
            each.store.adopt({"agents": there})
        await told(one)
        for each in (one, two):
            await each.admitted()
        for each in (one, two):
            assert (await each.refused()).kind is Kind.REQUEST_BUDGET


async def test_an_answer_about_yesterday_is_not_today_s(server: RedisServer) -> None:
    limits = Limits(requests_per_day=100, bytes_per_day=100 * MIB)
    async with replicas(server.settings(), limits, 1) as (one,):
        for _ in range(5):
            await one.admitted()
        account = one.account()
        answer = one.store.admit((Charge(one.policy, "acme"),), "a.test", tunnel=False)
        # Midnight comes before the answer.
        one.store.teller.ahead += DAY
        account.must_ask("a.test", one.store.wall(), tunnel=False)
        assert isinstance(answer, asyncio.Future)
        await answer
        assert (account.own_requests, account.requests) == (0, 0)
        assert account.slices[0].spent == 0


async def test_an_answer_that_ends_half_way_counts_nothing(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    other = policy(Limits(requests_per_day=9), "other")
    async with replicas(server.settings(), Limits(tunnels=9), 1, other) as (one,):
        link = one.store._link
        assert link is not None
        call: Any = link.call

        def cut(*arguments: Any) -> None:
            *rest, on_reply = arguments
            call(*rest, lambda reply: on_reply(reply and reply[: reply.rindex(b" -")]))

        with monkeypatch.context() as patch:
            patch.setattr(link, "call", cut)
            accounts = await one.admitted(tunnel=True)
        assert [account.held for account in accounts] == [1, 1]  # type: ignore[attr-defined]
        one.release(accounts, tunnel=True)
        assert (one.account().held, one.account().own_tunnels) == (0, 0)


async def test_accounts_that_hold_nothing_over_midnight_are_let_go(server: RedisServer) -> None:
    async with replicas(server.settings(lease=0.3), Limits(bytes_per_day=100 * MIB), 1) as (one,):
        (account,) = await one.admitted()
        account.spend(1, 1)
        assert list(one.store.teller._holding) == [account]
        one.release((account,))
        for each in one.account().slices:
            each.begin_day()
        await until(lambda: not one.store.teller._holding)


async def test_a_larger_budget_is_asked_for(server: RedisServer) -> None:
    """By a tunnel that had found the smaller one used up."""
    few, many = Limits(bytes_per_day=MIB), Limits(bytes_per_day=1000 * MIB)
    async with replicas(server.settings(), few, 1) as (one,):
        (account,) = await one.admitted(tunnel=True)
        assert account.spend(MIB, 0) is Kind.BYTE_BUDGET
        await told(one)
        one.store.adopt({"agents": many})
        assert account.spend(1, 0) is None
        (mine,) = one.account().slices
        await until(lambda: mine.held - mine.spent > MIB)


# Numbers --------------------------------------------------------------------------------------------------------------


async def test_the_largest_numbers_are_counted(server: RedisServer) -> None:
    """The largest that a configuration takes: more than a double has digits for, which is what scripts count with."""
    budget = 1_000_000 * 2**40
    limits = Limits(
        requests_per_second=0.001,
        burst=1_000_000,
        tunnels=1_000_000,
        requests_per_day=10**12,
        bytes_per_day=budget,
        new_hosts_per_hour=10_000,
    )
    async with replicas(server.settings(), limits) as (one, two):
        (account,) = await one.admitted(tunnel=True)
        (other,) = await two.admitted(tunnel=True)
        assert account.spend(2**60 - 1, 2**53 + 1) in {None, Kind.BYTE_BUDGET}
        await told(one)
        await told(two)
        (mine,), (theirs,) = one.account().slices, two.account().slices
        assert mine.spent == pytest.approx(2**60 + 2**53)
        assert theirs.used == pytest.approx(mine.held, rel=0.02)
        assert other.spend(2**58, 0) is Kind.BYTE_BUDGET
        assert one.store.failures == two.store.failures == 0


async def test_names_with_all_that_they_may_have(server: RedisServer) -> None:
    """No two tenants meet in one key, whatever their names are, and none gets out of the prefix."""
    odd = ["a", "a.", "-", "_", "..", "A", "1e+15", "requests", "t" * 64, "acme-1", "acme_1"]
    odd_policy = policy(Limits(requests_per_day=1, tunnels=1), "-._p")
    async with replicas(server.settings(prefix="x.y-z_1"), Limits(), 1) as (one,):
        one.policies = (odd_policy,)
        for tenant in odd:
            assert not isinstance(await one.ask(tenant=tenant), Exceeded)
            assert isinstance(await one.ask(tenant=tenant), Exceeded)
        with server.client() as client:
            assert all(key.startswith("{x.y-z_1}:") for key in client.scan_iter())
            assert len(list(client.scan_iter("*:day:*"))) == len(odd)
