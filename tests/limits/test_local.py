"""Tunnels, budgets, new hosts: what is counted, when it is there again, and what nobody can do about it."""

from __future__ import annotations

import asyncio
import sys
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egress_proxy.core import reasons
from egress_proxy.core.answer import whole_seconds
from egress_proxy.core.limits import Direction, Kind, Limits
from egress_proxy.core.policy import Mode
from egress_proxy.core.tenant import TENANT, Charge
from egress_proxy.limits import local
from egress_proxy.limits.limiter import Admission, Refusal
from tests.limits.clocks import DAY, HALF, HOUR, NOON, limited, policy, reason_of

# Tunnels ----------------------------------------------------------------------------------------------------------


def test_tunnels_are_counted_while_they_are_open() -> None:
    each = policy(limits=Limits(tunnels=2))
    made = limited(each)
    one, two = (made.admitted(each, tunnel=True) for _ in range(2))
    refused = made.ask(each, tunnel=True)
    assert reason_of(refused) is reasons.TUNNEL_LIMIT
    # A request that is no tunnel is not concerned.
    assert made.passes(each)
    one.release()
    three = made.admitted(each, tunnel=True)
    assert reason_of(made.ask(each, tunnel=True)) is reasons.TUNNEL_LIMIT
    two.release()
    three.release()
    assert made.store.account("everyone", "t", Limits()).tunnels == 0


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=60))
def test_releasing_twice_changes_nothing(steps: list[tuple[bool, int]]) -> None:
    each = policy(limits=Limits(tunnels=5))
    made = limited(each)
    held: list[Admission] = []
    over: set[int] = set()
    for opens, number in steps:
        if opens:
            answer = made.ask(each, tunnel=True)
            is_open = len(held) - len(over)
            assert isinstance(answer, Admission) == (is_open < 5)
            if isinstance(answer, Admission):
                held.append(answer)
        elif number < len(held):
            held[number].release()
            over.add(number)
    assert made.store.account("everyone", "t", Limits()).tunnels == len(held) - len(over)


async def test_releases_of_many_tasks() -> None:
    """Tunnels that end in any order, in tasks of their own, some of them twice."""
    each = policy(limits=Limits(tunnels=100))
    made = limited(each)

    async def tunnel(number: int) -> bool:
        answer = made.ask(each, tunnel=True)
        await asyncio.sleep(0.001 * (number % 7))
        if isinstance(answer, Refusal):
            return False
        answer.release()
        await asyncio.sleep(0)
        answer.release()
        return True

    passed = await asyncio.gather(*(tunnel(number) for number in range(300)))
    assert sum(passed) == 100
    account = made.store.account("everyone", "t", Limits())
    assert (account.tunnels, account.held) == (0, 0)


# Budgets of a day -------------------------------------------------------------------------------------------------


def test_requests_of_a_day() -> None:
    each = policy(limits=Limits(requests_per_day=3))
    made = limited(each)
    assert [made.passes(each) for _ in range(5)] == [True] * 3 + [False] * 2
    refused = made.refused(each)
    assert refused.reason is reasons.REQUEST_BUDGET
    assert refused.retry_after == HALF
    assert refused.detail == "at most 3 a day"
    made.clock.sleep(HALF - 1)
    assert not made.passes(each)
    made.clock.sleep(1)
    assert [made.passes(each) for _ in range(4)] == [True] * 3 + [False]
    assert made.exceeded == [("request_budget", "everyone")] * 5


@given(st.floats(0, 3 * DAY), st.sampled_from(["UTC", "Asia/Kathmandu", "America/St_Johns"]))
def test_a_budget_is_there_again_when_it_was_said(moment: float, zone: str) -> None:
    each = policy(limits=Limits(requests_per_day=1, time_zone=zone))
    made = limited(each)
    made.clock.sleep(moment)
    assert made.passes(each)
    seconds = whole_seconds(made.refused(each).retry_after)
    made.clock.sleep(seconds - 1)
    if seconds > 1:
        assert not made.passes(each)
    made.clock.sleep(1)
    assert made.passes(each)


@pytest.mark.parametrize(
    ("limits", "up", "down", "detail"),
    [
        (Limits(bytes_up_per_day=1000), 1000, 0, "at most 1000 bytes a day, up"),
        (Limits(bytes_down_per_day=1000), 0, 1000, "at most 1000 bytes a day, down"),
        (Limits(bytes_per_day=1000), 400, 600, "at most 1000 bytes a day"),
    ],
)
def test_bytes_of_a_day(limits: Limits, up: int, down: int, detail: str) -> None:
    each = policy(limits=limits)
    made = limited(each)
    tunnel = made.admitted(each, tunnel=True)
    assert tunnel.metered
    assert not tunnel.paced
    # The other direction is not concerned.
    if not up or not down:
        assert tunnel.spend(10**6 if not up else 0, 10**6 if not down else 0) is None
    assert tunnel.spend(up // 2, down // 2) is None
    assert tunnel.spend(up - up // 2, down - down // 2) is reasons.BYTE_BUDGET_SPENT
    refused = made.refused(each)
    assert refused.reason is reasons.BYTE_BUDGET
    assert refused.retry_after == HALF
    assert refused.detail == detail
    made.clock.sleep(HALF)
    assert made.passes(each)
    assert tunnel.spend(1, 1) is None
    assert made.exceeded == [("byte_budget", "everyone")] * 2


def test_without_a_byte_budget_nothing_need_be_told() -> None:
    each = policy(limits=Limits(requests_per_second=5, tunnels=5, requests_per_day=5))
    admission = limited(each).admitted(each)
    assert not admission.metered
    assert not admission.paced
    assert admission.spend(10**12, 10**12) is None


def test_a_clock_that_is_set_back_gives_nothing_back() -> None:
    each = policy(limits=Limits(requests_per_day=1, new_hosts_per_hour=1))
    made = limited(each)
    assert made.passes(each)
    for days in (1, 300):
        made.clock.epoch -= days * DAY
        refused = made.refused(each)
        # And nobody waits until the time is there again from which it was set back.
        assert refused.retry_after <= DAY
    made.clock.sleep(DAY)
    assert made.passes(each)
    made.clock.epoch -= 30 * DAY
    other = policy(limits=Limits(new_hosts_per_hour=1))
    made.adopt(other)
    assert made.refused(other, host="b.test").retry_after == HOUR


# New hosts --------------------------------------------------------------------------------------------------------


def test_new_hosts_of_an_hour() -> None:
    each = policy(limits=Limits(new_hosts_per_hour=2))
    made = limited(each)
    assert made.passes(each, host="a.test")
    made.clock.sleep(600)
    assert made.passes(each, host="b.test")
    refused = made.refused(each, host="c.test")
    assert refused.reason is reasons.NEW_HOSTS_LIMIT
    assert refused.retry_after == HOUR - 600
    assert refused.detail == "at most 2 an hour"
    # Those that are known stay open.
    assert made.passes(each, host="a.test")
    made.clock.sleep(HOUR - 600 - 1)
    assert not made.passes(each, host="c.test")
    made.clock.sleep(1)
    assert made.passes(each, host="c.test")
    assert not made.passes(each, host="a.test")


@given(
    st.integers(1, 4),
    st.lists(
        st.tuples(st.floats(0, 100) | st.floats(0, 5000), st.sampled_from("abcdefgh")), max_size=80
    ),
)
def test_in_no_hour_are_more_hosts_begun_with(most: int, asked: list[tuple[float, str]]) -> None:
    each = policy(limits=Limits(new_hosts_per_hour=most))
    made = limited(each)
    begun: dict[str, float] = {}
    starts: list[float] = []
    for gap, host in asked:
        made.clock.sleep(gap)
        now = made.clock.epoch
        known = host in begun and begun[host] + HOUR > now
        answer = made.ask(each, host=host)
        if known:
            assert isinstance(answer, Admission)
        elif isinstance(answer, Admission):
            begun[host] = now
            starts.append(now)
        else:
            assert 0 < answer.retry_after <= HOUR
    for first, last in zip(starts, starts[most:], strict=False):
        assert last - first >= HOUR - 1e-3


def test_a_smaller_limit_says_when_the_next_host_may_come() -> None:
    many, few = (policy(limits=Limits(new_hosts_per_hour=most)) for most in (10, 2))
    made = limited(many)
    for number in range(5):
        assert made.passes(many, host=f"h{number}.test")
        made.clock.sleep(60)
    made.adopt(few)
    wait = made.refused(few, host="new.test").retry_after
    made.clock.sleep(wait - 1)
    assert not made.passes(few, host="new.test")
    made.clock.sleep(1)
    assert made.passes(few, host="new.test")


# Several policies -------------------------------------------------------------------------------------------------

LIMITS = st.builds(
    Limits,
    requests_per_second=st.none() | st.sampled_from([0.5, 3.0]),
    tunnels=st.none() | st.integers(1, 4),
    requests_per_day=st.none() | st.integers(1, 12),
    bytes_per_day=st.none() | st.integers(1, 5000),
    new_hosts_per_hour=st.none() | st.integers(1, 3),
)
STEPS = st.lists(
    st.tuples(
        st.floats(0, 3) | st.floats(0, 4000),
        st.sets(st.integers(0, 2), min_size=1),
        st.sampled_from(["a", "b", "c", "d"]),
        st.booleans(),
        st.integers(0, 800),
        st.booleans(),
    ),
    max_size=60,
)


@given(st.lists(LIMITS, min_size=3, max_size=3), STEPS)
def test_all_limits_hold_and_a_refusal_charges_nobody(
    limits: list[Limits], steps: list[tuple[float, set[int], str, bool, int, bool]]
) -> None:
    """Beside it, each policy has a limiter of its own, which is asked when all others let the request through."""
    policies = [policy(f"p{number}", each) for number, each in enumerate(limits)]
    together = limited(*policies)
    alone = [limited(each) for each in policies]
    held: list[tuple[Admission, list[Admission]]] = []
    for gap, chosen, host, tunnel, size, over in steps:
        for made in (together, *alone):
            made.clock.sleep(gap)
        named = [policies[number] for number in sorted(chosen)]
        answer = together.ask(*named, host=host, tunnel=tunnel)
        wouldbe = [
            alone[number]
            .store.account(f"p{number}", "t", limits[number])
            .refusal(host, alone[number].clock.now, alone[number].clock.epoch, tunnel=tunnel)
            for number in sorted(chosen)
        ]
        first = next((each for each in wouldbe if each is not None), None)
        if first is not None:
            assert isinstance(answer, Refusal)
            assert (answer.policy, answer.detail) == (first.policy, first.detail)
            assert answer.retry_after == first.retry_after
            continue
        assert isinstance(answer, Admission)
        each_s = [
            alone[number].admitted_at(policies[number], host, tunnel=tunnel)
            for number in sorted(chosen)
        ]
        spent = [each.spend(size, size) for each in each_s]
        assert answer.spend(size, size) is next((each for each in spent if each), None)
        held.append((answer, each_s))
        if over:
            one, several = held.pop(0)
            for each in (one, *several):
                each.release()


# Soft limits ------------------------------------------------------------------------------------------------------


def test_four_fifths_are_told_once_a_day() -> None:
    each = policy(limits=Limits(requests_per_day=10, bytes_per_day=1000))
    made = limited(each)
    for _ in range(2):
        made.near.clear()
        for _ in range(7):
            made.passes(each)
        assert not made.near
        for _ in range(5):
            made.passes(each)
        (near,) = made.near
        assert near[:5] == (Kind.REQUEST_BUDGET, "everyone", "t", 8, 10)
        assert 0 < near.resets_at - made.clock.epoch <= DAY
        made.clock.sleep(near.resets_at - made.clock.epoch)
        tunnel = made.admitted(each)
        tunnel.spend(700, 99)
        assert len(made.near) == 1
        tunnel.spend(1, 0)
        tunnel.spend(50, 0)
        assert [each.kind for each in made.near[1:]] == [Kind.BYTE_BUDGET]
        made.passes(each, tenant="other")
        assert len(made.near) == 2
        made.clock.sleep(DAY)


def test_four_fifths_of_an_hour_s_hosts_are_told_once_an_hour() -> None:
    each = policy(limits=Limits(new_hosts_per_hour=5))
    made = limited(each)
    for number in range(4):
        made.passes(each, host=f"h{number}.test")
        made.clock.sleep(60)
    assert [near[:5] for near in made.near] == [(Kind.NEW_HOSTS, "everyone", "t", 4, 5)]
    made.passes(each, host="h4.test")
    made.clock.sleep(HOUR - 240)
    made.passes(each, host="h5.test")
    assert len(made.near) == 1
    made.clock.sleep(240)
    for number in range(6, 8):
        made.passes(each, host=f"h{number}.test")
    assert len(made.near) == 1
    made.passes(each, host="h8.test")
    assert len(made.near) == 2


# Audit mode -------------------------------------------------------------------------------------------------------


def test_in_audit_mode_what_is_over_is_told_and_nothing_is_cut() -> None:
    each = policy(limits=Limits(bytes_per_day=100, requests_per_day=1))
    made = limited(each, mode=Mode.AUDIT)
    tunnel = made.admitted(each, tunnel=True)
    assert tunnel.spend(1000, 1000) is None
    assert made.refused(each).reason is reasons.REQUEST_BUDGET
    made.adopt(each)
    assert tunnel.spend(1, 1) is reasons.BYTE_BUDGET_SPENT


# Reload -----------------------------------------------------------------------------------------------------------


def test_a_reload_keeps_what_is_used_and_changes_the_numbers_at_once() -> None:
    few, many = (policy(limits=Limits(requests_per_day=most, tunnels=most)) for most in (3, 6))
    made = limited(few)
    tunnels = [made.admitted(few, tunnel=True) for _ in range(3)]
    assert not made.passes(few)
    made.adopt(many)
    assert sum(made.passes(many) for _ in range(9)) == 3
    made.adopt(few)
    tunnels[0].release()
    assert reason_of(made.ask(few, tunnel=True)) is reasons.REQUEST_BUDGET
    # What was decided by the old configuration is held to the new one's numbers.
    made.clock.sleep(HALF)
    assert sum(made.passes(many) for _ in range(9)) == 3


def test_a_policy_that_goes_takes_its_counters_along() -> None:
    one, other = policy("one", Limits(tunnels=1)), policy("other", Limits(tunnels=1))
    made = limited(one, other)
    tunnel = made.admitted(one, tunnel=True)
    made.adopt(other)
    assert made.limiter.active
    assert list(made.store._accounts) == []
    tunnel.release()
    made.adopt()
    assert not made.limiter.active
    # A request that was decided before it went is held to what it says itself.
    assert isinstance(made.ask(one, tunnel=True), Admission)
    assert reason_of(made.ask(one, tunnel=True)) is reasons.TUNNEL_LIMIT


def test_another_time_zone_counts_on() -> None:
    here = policy(limits=Limits(requests_per_day=1))
    there = policy(limits=Limits(requests_per_day=1, time_zone="Asia/Kathmandu"))
    made = limited(here)
    made.passes(here)
    made.adopt(there)
    refused = made.refused(there)
    # 12:00 in UTC is 17:45 there.
    assert refused.retry_after == 6.25 * HOUR
    made.clock.sleep(6.25 * HOUR)
    assert made.passes(there)


def test_a_day_that_ended_before_the_reload_is_over() -> None:
    few, many = (policy(limits=Limits(requests_per_day=most)) for most in (1, 2))
    made = limited(few)
    made.passes(few)
    made.clock.sleep(DAY)
    made.adopt(many)
    assert [made.passes(many) for _ in range(3)] == [True, True, False]


# The table --------------------------------------------------------------------------------------------------------


def test_an_account_that_is_as_good_as_new_goes() -> None:
    each = policy(limits=Limits(requests_per_second=10, bandwidth=10_000))
    made = limited(each)
    for number in range(5000):
        admission = made.admitted(each, tenant=f"t{number}")
        admission.spend(100, 100)
        admission.release()
        made.clock.sleep(0.1)
    assert len(made.store._accounts["everyone"]) < 10


@pytest.mark.parametrize(
    "limits",
    [
        Limits(requests_per_second=0.001, burst=2),
        Limits(tunnels=2),
        Limits(requests_per_day=2),
        Limits(bytes_per_day=2000),
        Limits(new_hosts_per_hour=1),
        Limits(bandwidth=1024),
    ],
    ids=lambda limits: next(
        name for name in limits.__slots__ if getattr(limits, name) not in (None, "UTC")
    ),
)
def test_no_flood_of_tenants_gives_anything_back(
    limits: Limits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attack: use everything, then name tenants until the table has forgotten what was used."""
    monkeypatch.setattr(local, "MAX_TENANTS", 50)
    each = policy(limits=limits)
    made = limited(each)
    mine = [made.admitted(each, tunnel=True)]
    mine[0].spend(1000, 999)
    more = made.ask(each, tunnel=True)
    if isinstance(more, Admission):
        mine.append(more)
        more.spend(1, 100_000)
    if limits.tunnels is None:
        # What is under way would keep the account by itself.
        for each_of_mine in mine:
            each_of_mine.release()
    before = made.store.account("everyone", "t", limits)
    for number in range(500):
        answer = made.ask(each, tenant=f"t{number}", host=f"h{number}.test", tunnel=True)
        if isinstance(answer, Admission):
            answer.spend(1, 1)
            answer.release()
    assert len(made.store._accounts["everyone"]) <= 51
    after = made.store.account("everyone", "t", limits)
    assert after is before
    again = made.ask(each, host="new.test", tunnel=True)
    if limits.bandwidth is None:
        assert isinstance(again, Refusal)
    else:
        assert isinstance(again, Admission)
        assert again.pace(Direction.DOWN, 1)[0] == 0


def test_those_beyond_the_table_share_one_account(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "MAX_TENANTS", 3)
    each = policy(limits=Limits(requests_per_day=2))
    made = limited(each)
    passed = [made.passes(each, tenant=f"t{number}") for number in range(10)]
    # Three have their own; of the seven others, two requests pass.
    assert passed == [True] * 5 + [False] * 5
    assert made.passes(each, tenant="t0")
    # The name that the shared account has cannot be asked for.
    assert TENANT.fullmatch(local.OVERFLOW) is None
    made.clock.sleep(HALF)
    assert made.passes(each, tenant="t9")


def test_an_account_that_is_held_stays() -> None:
    each = policy(limits=Limits(bytes_per_day=1000))
    made = limited(each)
    held = made.admitted(each, tenant="held")
    for number in range(1000):
        made.passes(each, tenant=f"t{number}")
    held.spend(600, 0)
    assert made.admitted(each, tenant="held").spend(400, 0) is reasons.BYTE_BUDGET_SPENT


def test_the_cost_of_a_request_does_not_grow_with_the_tenants() -> None:
    """Counted in lines of Python, which no busy machine changes."""
    each = policy(limits=Limits(50, 100, 200, 10**6, None, None, 10**9, new_hosts_per_hour=100))
    made = limited(each)

    def lines(tenant: str) -> int:
        count = 0

        def trace(frame: Any, *_: Any) -> Any:
            nonlocal count
            # And not what others do meanwhile, such as the garbage collector's callbacks.
            if "egress_proxy" not in frame.f_code.co_filename:
                return None
            count += 1
            return trace

        charges = (Charge(each, tenant),)
        sys.settrace(trace)
        try:
            answer = made.limiter.admit(charges, "a.test", tunnel=False)
        finally:
            sys.settrace(None)
        assert isinstance(answer, Admission)
        answer.release()
        return count

    made.passes(each, tenant="first")
    before = lines("first")
    for number in range(1000):
        made.passes(each, tenant=f"t{number}")
    assert lines("first") == before
    assert lines("t500") == before
    # One that is new costs the same, too, however many there are.
    new = {lines(f"new{number}") for number in range(50)}
    assert max(new) < 5 * before


# State ------------------------------------------------------------------------------------------------------------


async def test_the_state_of_all() -> None:
    one = policy("b", Limits(requests_per_second=100, tunnels=9, bytes_per_day=1000))
    two = policy("a", Limits(requests_per_day=5, new_hosts_per_hour=4, bytes_up_per_day=2000))
    idle = policy("idle", Limits(tunnels=1))
    made = limited(one, two, idle)
    tunnel = made.admitted(one, two, tenant="z", tunnel=True)
    tunnel.spend(10, 20)
    made.passes(two, tenant="y")
    made.passes(idle)
    states = await made.limiter.states()
    assert [(each.policy, each.tenant, each.requests, each.tunnels) for each in states] == [
        ("a", "y", 0, 0),
        ("a", "z", 1, 1),
        ("b", "z", 1, 1),
    ]
    midnight = NOON + HALF
    assert [
        tuple(getattr(used, name) for name in used.__struct_fields__) for used in states[1].limits
    ] == [
        ("requests_per_day", 1, 5, midnight),
        ("bytes_per_day.up", 10, 2000, midnight),
        ("new_hosts_per_hour", 1, 4, NOON + HOUR),
    ]
    assert [(used.limit, used.used, used.resets_at) for used in states[2].limits] == [
        ("requests_per_second", 1, NOON + 0.01),
        ("tunnels", 1, None),
        ("bytes_per_day", 30, midnight),
    ]


async def test_the_state_of_very_many_leaves_others_their_turn() -> None:
    each = policy(limits=Limits(requests_per_day=5))
    made = limited(each)
    for number in range(2000):
        made.passes(each, tenant=f"t{number:04}")
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.get_running_loop().create_task(others())
    states = await made.limiter.states()
    task.cancel()
    assert len(states) == 2000
    assert all(one.tenant < two.tenant for one, two in pairwise(states))
    assert turns > 2
