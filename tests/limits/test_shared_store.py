"""Replicas that share a store hold one limit together, as exactly as one of them alone would."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from egress_proxy.core.limits import Kind, Limits
from egress_proxy.core.tenant import Charge
from egress_proxy.limits.store import Exceeded
from tests.limits.sharing import MIB, Replica, policy, replicas, until
from tests.support.redis_server import RedisServer, needs_server

pytestmark = needs_server


async def soon_admitted(replica: Replica) -> None:
    """Open a tunnel, once another that is closed has been told of."""
    async with asyncio.timeout(10):
        while isinstance(await replica.ask(tunnel=True), Exceeded):  # noqa: ASYNC110 - of the store
            await asyncio.sleep(0.01)


def everything(server: RedisServer) -> dict[str, Any]:
    """Each key, and when it expires."""
    with server.client() as client:
        return {key: client.ttl(key) for key in client.scan_iter()}


async def test_a_rate_is_held_together(server: RedisServer) -> None:
    async with replicas(server.settings(), Limits(requests_per_second=300, burst=30)) as both:
        begun = time.monotonic()
        end = begun + 0.8

        async def load(replica: Replica) -> int:
            count = 0
            while time.monotonic() < end:
                answer = await replica.ask()
                if isinstance(answer, Exceeded):
                    assert answer.kind is Kind.REQUEST_RATE
                    await asyncio.sleep(0.001)
                else:
                    count += 1
            return count

        admitted = sum(await asyncio.gather(*(load(each) for each in both for _ in range(3))))
        most = 300 * (time.monotonic() - begun) + 30
    assert admitted <= most + 1
    # A slow machine asks less often.
    assert admitted >= 30


async def test_a_burst_is_held_together_to_the_last_request(server: RedisServer) -> None:
    async with replicas(server.settings(), Limits(requests_per_second=0.001, burst=300)) as both:
        answers = await asyncio.gather(*(each.ask() for each in both for _ in range(250)))
        assert sum(not isinstance(each, Exceeded) for each in answers) == 300


async def test_the_wait_is_honest(server: RedisServer) -> None:
    async with replicas(server.settings(), Limits(requests_per_second=10, burst=1)) as (one, two):
        await one.admitted()
        refused = await two.refused()
        assert 0 < refused.retry_after <= 0.1
        await asyncio.sleep(refused.retry_after)
        await two.admitted()


@pytest.mark.asyncio(loop_factories=["uvloop", "asyncio"])
async def test_requests_of_the_day_are_counted_exactly(server: RedisServer) -> None:
    async with replicas(server.settings(), Limits(requests_per_day=200)) as both:
        answers = await asyncio.gather(*(each.ask() for each in both for _ in range(150)))
        refused = [each for each in answers if isinstance(each, Exceeded)]
        assert len(answers) - len(refused) == 200
        assert {each.kind for each in refused} == {Kind.REQUEST_BUDGET}
        # Each replica that sees it says once that four fifths are used.
        assert {len(each.near) for each in both} <= {0, 1}
        assert sum(len(each.near) for each in both) >= 1


async def test_tunnels_are_counted_together_and_given_back(server: RedisServer) -> None:
    async with replicas(server.settings(), Limits(tunnels=10)) as (one, two):
        answers = await asyncio.gather(
            *(each.ask(tunnel=True) for each in (one, two) for _ in range(8))
        )
        held = [each for each in answers if not isinstance(each, Exceeded)]
        assert len(held) == 10
        assert (await two.refused(tunnel=True)).kind is Kind.TUNNELS
        # What is no tunnel is not held back.
        await two.admitted()
        one.release(next(each for each in held if each[0] is one.account()), tunnel=True)
        await soon_admitted(two)


async def test_bytes_of_the_day_are_held_within_two_per_cent(server: RedisServer) -> None:
    budget = 64 * MIB
    async with replicas(server.settings(), Limits(bytes_per_day=budget), 3) as all_:

        async def load(replica: Replica) -> int:
            passed = 0
            (account,) = await replica.admitted(tunnel=True)
            while account.spend(8192, 24576) is None:
                passed += 32768
                await asyncio.sleep(0.001)
            return passed + 32768

        passed = sum(await asyncio.gather(*(load(each) for each in all_)))
        assert budget * 0.98 <= passed <= budget * 1.02
        for each in all_:
            refused = await each.refused(tunnel=True)
            assert (refused.kind, refused.retry_after > 0) == (Kind.BYTE_BUDGET, True)
        assert all(len(each.near) == 1 for each in all_)


async def test_each_direction_has_a_budget_of_its_own(server: RedisServer) -> None:
    limits = Limits(bytes_up_per_day=10 * MIB, bytes_down_per_day=100 * MIB, bytes_per_day=60 * MIB)
    async with replicas(server.settings(), limits) as (one, two):
        (account,) = await one.admitted()
        (other,) = await two.admitted()
        assert account.spend(0, 50 * MIB) is None
        assert other.spend(5 * MIB, 0) is None
        await two.store.states()
        states = {each.limit: each.used for each in (await one.store.states())[0].limits}
        assert states["bytes_per_day.down"] >= 50 * MIB
        assert states["bytes_per_day.up"] >= 5 * MIB
        assert states["bytes_per_day"] >= 55 * MIB
        assert account.spend(6 * MIB, 0) is Kind.BYTE_BUDGET


async def test_what_is_not_spent_is_given_back(server: RedisServer) -> None:
    """A replica holds a hundredth of the budget, and returns it when nobody uses it, and at its end."""
    budget = 1000 * MIB
    async with replicas(server.settings(lease=0.3), Limits(bytes_per_day=budget)) as (one, two):
        held = await one.admitted()
        held[0].spend(MIB, 0)
        (mine,) = one.account().slices
        await until(lambda: mine.known)
        assert mine.held - mine.spent > 8 * MIB
        # Between two beats nothing passed.
        await until(lambda: mine.held == mine.spent)
        await two.admitted()
        (theirs,) = two.account().slices
        await until(lambda: theirs.others == MIB)
        assert theirs.held == budget // 100
        await two.store.close()
        with server.client() as client:
            (key,) = client.scan_iter("*:day:*")
            assert int(client.hget(key, "both") or 0) == MIB


async def test_new_hosts_of_an_hour_are_counted_exactly(server: RedisServer) -> None:
    async with replicas(server.settings(), Limits(new_hosts_per_hour=5)) as (one, two):
        for number in range(3):
            await one.admitted(f"{number}.example.com")
            await two.admitted(f"{number}.example.com")
        await two.admitted("3.example.com")
        await two.admitted("4.example.com")
        refused = await one.refused("secret-host.example.com")
        assert refused.kind is Kind.NEW_HOSTS
        assert 3590 < refused.retry_after <= 3600
        await one.admitted("4.example.com")
        assert {each.used for each in (await one.store.states())[0].limits} == {5}
        with server.client() as client:
            (key,) = client.scan_iter("*:hosts:*")
            names = client.zrange(key, 0, -1)
        # As many as there are, and none that could be read.
        assert len(names) == 5
        assert not any("example" in name for name in names)


async def test_a_host_that_is_known_here_costs_no_question(server: RedisServer) -> None:
    async with replicas(server.settings(), Limits(new_hosts_per_hour=5), 1) as (one,):
        await one.admitted()
        charges = (Charge(one.policy, "acme"),)
        assert isinstance(one.store.admit(charges, "example.com", tunnel=False), tuple)
        other = one.store.admit(charges, "other.example.com", tunnel=False)
        assert isinstance(other, asyncio.Future)
        await other


async def test_what_is_surely_refused_costs_no_question(server: RedisServer) -> None:
    """A noisy tenant must not be able to keep the store busy."""
    async with replicas(server.settings(), Limits(requests_per_second=0.01, burst=1), 1) as (one,):
        await one.admitted()
        charges = (Charge(one.policy, "acme"),)
        assert isinstance(one.store.admit(charges, "example.com", tunnel=False), Exceeded)


@pytest.mark.parametrize(
    ("limits", "kind"),
    [
        (Limits(bytes_per_day=1), Kind.BYTE_BUDGET),
        (Limits(requests_per_day=1), Kind.REQUEST_BUDGET),
    ],
)
async def test_what_the_store_has_refused_is_not_asked_for_again_at_once(
    server: RedisServer, limits: Limits, kind: Kind
) -> None:
    """The attack: a tenant goes on asking at one replica for what is used up at another."""
    async with replicas(server.settings(), limits) as (one, two):
        (account,) = await one.admitted()
        account.spend(1, 0)
        await one.store.states()
        first = await two.refused("0.test")
        charges = (Charge(two.policy, "acme"),)
        for number in range(1, 5):
            answer = two.store.admit(charges, f"{number}.test", tunnel=False)
            assert isinstance(answer, Exceeded)
            assert answer.kind is first.kind is kind
            assert answer.detail == first.detail
            # To midnight, by the store's clock and by ours.
            assert abs(first.retry_after - answer.retry_after) < 5
        # A reload may have brought more.
        two.account().change(Limits(bytes_per_day=9, requests_per_day=9))
        assert isinstance(two.store.admit(charges, "new.test", tunnel=False), asyncio.Future)
        await asyncio.sleep(0)


async def test_all_charges_are_counted_or_none(server: RedisServer) -> None:
    narrow = policy(Limits(requests_per_day=1), "narrow")
    # So slow that the burst does not grow again meanwhile.
    wide = Limits(0.001, 9, requests_per_day=100, tunnels=5, new_hosts_per_hour=9)
    async with replicas(server.settings(), wide, 2, narrow) as (one, two):
        await one.admitted(tunnel=True)
        refused = await two.refused("other.example.com", tunnel=True)
        assert (refused.policy, refused.kind) == ("narrow", Kind.REQUEST_BUDGET)
        states = {each.policy: each for each in await one.store.states()}
        used = {each.limit: each.used for each in states["agents"].limits}
        assert used == {
            "requests_per_second": 1,
            "tunnels": 1,
            "requests_per_day": 1,
            "new_hosts_per_hour": 1,
        }


async def test_tenants_have_counters_of_their_own(server: RedisServer) -> None:
    async with replicas(server.settings(), Limits(requests_per_day=1)) as (one, two):
        for tenant in ("acme", "umbrella"):
            assert not isinstance(await one.ask(tenant=tenant), Exceeded)
            assert isinstance(await two.ask(tenant=tenant), Exceeded)


async def test_every_key_has_the_prefix_and_expires(server: RedisServer) -> None:
    limits = Limits(
        requests_per_second=100,
        tunnels=10,
        requests_per_day=100,
        bytes_per_day=MIB,
        new_hosts_per_hour=10,
    )
    async with replicas(server.settings(prefix="eu-1"), limits, 1) as (one,):
        (account,) = await one.admitted(tunnel=True)
        account.spend(1000, 1000)
        one.release((account,), tunnel=True)
        await one.admitted(tunnel=True)
        await one.store.states()
        keys = everything(server)
    kinds = {"replicas", "rate", "tunnels", "day", "hosts", "started"}
    assert {key.split(":")[1] for key in keys} == kinds
    assert all(key.startswith("{eu-1}:") for key in keys)
    # -1 is never, -2 is gone already (a rate's key lives for a second or so).
    assert -1 not in keys.values()


async def test_two_prefixes_share_nothing(server: RedisServer) -> None:
    limits = Limits(requests_per_day=1)
    async with (
        replicas(server.settings(), limits, 1) as (one,),
        replicas(server.settings(prefix="other"), limits, 1) as (other,),
    ):
        await one.admitted()
        await other.admitted()


async def test_a_store_that_has_forgotten_the_scripts_is_taught_again(server: RedisServer) -> None:
    async with replicas(server.settings(), Limits(requests_per_day=5), 1) as (one,):
        await one.admitted()
        with server.client() as client:
            client.script_flush()
        await asyncio.gather(one.admitted(), one.admitted())
        assert one.store.failures == 0
        with server.client() as client:
            (key,) = client.scan_iter("*:day:*")
            assert client.hget(key, "requests") == "3"


async def test_what_nobody_waited_for_is_given_back(server: RedisServer) -> None:
    async with replicas(server.settings(), Limits(tunnels=1), 1) as (one,):
        answer = one.store.admit((Charge(one.policy, "acme"),), "example.com", tunnel=True)
        assert isinstance(answer, asyncio.Future)
        answer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await answer
        await soon_admitted(one)
        assert one.account().own_tunnels == 1


async def test_an_account_that_was_let_go_goes_on_where_it_was(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients may choose how many tenants there are. None of them gains anything by making room."""
    monkeypatch.setattr("egress_proxy.limits.local.MAX_TENANTS", 3)
    limits = Limits(requests_per_day=3, bytes_per_day=100 * MIB)
    async with replicas(server.settings(), limits, 1) as (one,):
        first = one.account()
        accounts = await one.admitted()
        accounts[0].spend(MIB, MIB)
        one.release(accounts)
        await one.store.states()
        for each in first.slices:
            each.held = each.spent  # as if it was given back; the store is told by the next beat
        for number in range(8):
            answer = await one.ask(tenant=f"t{number}")
            assert not isinstance(answer, Exceeded)
            one.release(answer)
            for each in one.account(f"t{number}").slices:
                each.held = each.spent
        assert one.account() is not first
        await one.admitted()
        again = one.account()
        assert again.own_requests == 2
        assert again.slices[0].spent >= 2 * MIB


async def test_limits_change_and_what_was_used_stays_used(server: RedisServer) -> None:
    async with replicas(server.settings(), Limits(requests_per_day=2, bytes_per_day=MIB)) as both:
        one, two = both
        await one.admitted()
        (account,) = await one.admitted()
        account.spend(MIB // 2, 0)
        assert (await two.refused()).kind is Kind.REQUEST_BUDGET
        larger = Limits(requests_per_day=3, bytes_per_day=2 * MIB)
        for each in both:
            each.policy = policy(larger)
            each.policies = (each.policy,)
            each.store.adopt({"agents": larger})
        await two.admitted()
        assert (await two.refused()).kind is Kind.REQUEST_BUDGET
        used = {each.limit: each.used for each in (await one.store.states())[0].limits}
        assert used["requests_per_day"] == 3
        assert used["bytes_per_day"] >= MIB // 2


def test_redis_is_not_loaded_unless_it_is_asked_for(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys, egress_proxy.app, egress_proxy.cli, egress_proxy.config.load\n"
        "sys.exit('redis' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
