"""The hosts that a tenant knows, and those of all tenants of a policy: bounded, whatever clients make up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egress_proxy.core import reasons
from egress_proxy.core.limits import Limits
from egress_proxy.limits import hosts as module
from egress_proxy.limits import local
from egress_proxy.limits.hosts import HOUR, HostPool, Hosts
from egress_proxy.limits.limiter import Refusal
from tests.limits.clocks import Limited, limited, policy

MOST = 100


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_HOSTS", MOST)


def known(made: Limited, name: str = "everyone") -> int:
    """How many there are in truth; as many as are counted."""
    accounts = made.store._accounts[name]
    count = sum(len(account.hosts) for account in accounts.values())
    shared = len(accounts[local.OVERFLOW].hosts) if local.OVERFLOW in accounts else 0
    assert made.store.pool_of(name).count == count - shared
    return count


def test_a_flood_of_tenants_and_hosts_takes_no_more_than_its_share() -> None:
    """The attack: tenants that a client makes up, each of which begins to talk to as many hosts as it may."""
    each = policy(limits=Limits(new_hosts_per_hour=10), trust_tenant_header=True)
    other = policy("other", Limits(new_hosts_per_hour=10))
    made = limited(each, other)
    assert made.passes(each, tenant="mine", host="mine.test")
    made.clock.sleep(60)
    passed = sum(
        made.passes(each, tenant=f"t{tenant}", host=f"h{host}.t{tenant}.test")
        for tenant in range(200)
        for host in range(10)
    )
    # Those who come late share one account, which may know as many as any other.
    assert passed + 1 == known(made) == MOST + 10
    assert len(made.store._accounts["everyone"]) <= MOST // 10 + 2
    # Who was there before goes on with what it knows, and is told when there will be room for more.
    assert made.passes(each, tenant="mine", host="mine.test")
    refused = made.refused(each, tenant="mine", host="new.test")
    assert refused.reason is reasons.NEW_HOSTS_LIMIT
    assert refused.retry_after == HOUR - 60
    assert "of all tenants together" in refused.detail
    # Another policy has a bound of its own.
    assert made.passes(other, tenant="mine", host="new.test")
    made.clock.sleep(refused.retry_after - 1)
    assert not made.passes(each, tenant="mine", host="new.test")
    made.clock.sleep(1)
    assert made.passes(each, tenant="mine", host="new.test")
    assert not made.passes(each, tenant="mine", host="newer.test")
    # An hour later there is room for as many again.
    made.clock.sleep(HOUR)
    asked = [(f"t{number // 10}", f"{number}.test") for number in range(MOST)]
    assert all(made.passes(each, tenant=tenant, host=host) for tenant, host in asked)


def test_a_flood_of_tenants_gives_nobody_another_hour() -> None:
    each = policy(limits=Limits(new_hosts_per_hour=2), trust_tenant_header=True)
    made = limited(each)
    assert [made.passes(each, tenant="mine", host=f"{n}.test") for n in range(3)] == [1, 1, 0]
    for number in range(500):
        made.passes(each, tenant=f"t{number}", host=f"{number}.test")
    assert not made.passes(each, tenant="mine", host="3.test")
    assert made.passes(each, tenant="mine", host="1.test")


def test_a_full_table_is_looked_through_once_a_second_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    each = policy(limits=Limits(new_hosts_per_hour=10))
    made = limited(each)
    for number in range(MOST):
        assert made.passes(each, tenant=f"t{number // 10}", host=f"{number}.test")
        made.clock.sleep(0.001)
    looks = 0
    forget = Hosts.forget

    def counting(hosts: Hosts, wall: float) -> None:
        nonlocal looks
        looks += 1
        forget(hosts, wall)

    monkeypatch.setattr(Hosts, "forget", counting)
    for number in range(50):
        assert isinstance(made.ask(each, tenant="t1", host=f"new{number}.test"), Refusal) or number
    assert looks < 50 + 2 * 10 + 5


def test_a_policy_that_goes_takes_its_hosts_along() -> None:
    one, other = (policy(name, Limits(new_hosts_per_hour=100)) for name in ("one", "other"))
    made = limited(one, other)
    for number in range(MOST):
        made.passes(one, host=f"{number}.test")
    made.adopt(other)
    made.adopt(one, other)
    assert made.passes(one, host="new.test")
    assert known(made, "one") == 1


_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["note", "late", "forget", "drop", "clear"]),
        st.integers(0, 3),
        st.sampled_from("abcdef"),
        st.floats(0, 2000),
    ),
    max_size=60,
)


@given(_STEPS)
def test_what_is_known_is_what_a_plain_list_says(
    steps: list[tuple[str, int, str, float]],
) -> None:
    """And the pool has counted it, and knows whose is the oldest."""
    pool = HostPool()
    tables = [Hosts(pool) for _ in range(4)]
    plain: list[dict[str, float]] = [{} for _ in range(4)]
    now = 100_000.0
    for step, place, host, seconds in steps:
        table, model = tables[place], plain[place]
        now += seconds
        if step in {"note", "late"}:
            since = now if step == "note" else now - seconds
            table.note(host, since)
            model[host] = since
        elif step == "forget":
            table.forget(now)
            for each in [each for each, since in model.items() if since + HOUR <= now]:
                del model[each]
        elif step == "drop":
            table.drop(host)
            model.pop(host, None)
        else:
            table.forget_all()
            model.clear()
        assert [dict(each) for each in tables] == plain
        assert pool.count == sum(map(len, plain))
        assert sorted(pool._members) == sorted(id(each) for each in tables if each)
        if table:
            assert table.oldest <= min(table.values())
