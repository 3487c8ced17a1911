"""For how long answers are kept, and how many of them: time is an argument."""

from __future__ import annotations

import sys
import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egress_proxy.config.model import Dns
from egress_proxy.core import reasons
from egress_proxy.core.reason import Reason
from egress_proxy.net.dns_cache import Cache, Kept, failure_lifetime, lifetime

# Lifetimes --------------------------------------------------------------------------------------

DNS = Dns(min_ttl=2.0, max_ttl=100.0, negative_ttl=5.0)


@pytest.mark.parametrize(
    ("ttl", "expected"),
    [(0, 2.0), (1, 2.0), (2, 2.0), (3, 3.0), (100, 100.0), (101, 100.0), (2**31 - 1, 100.0)],
)
def test_an_answer_lives_for_its_ttl_within_bounds(ttl: int, expected: float) -> None:
    assert lifetime(DNS, ttl) == expected


@pytest.mark.parametrize(
    ("min_ttl", "negative_ttl", "ttl", "expected"),
    [(2.0, 5.0, 50, 5.0), (2.0, 5.0, 3, 3.0), (2.0, 0.0, 50, 2.0), (0.0, 0.0, 50, 0.0)],
)
def test_what_the_servers_failed_to_complete_is_asked_for_again_soon(
    min_ttl: float, negative_ttl: float, ttl: int, expected: float
) -> None:
    settings = Dns(min_ttl=min_ttl, negative_ttl=negative_ttl)
    assert lifetime(settings, ttl, incomplete=True) == expected


@pytest.mark.parametrize(
    ("reason", "seconds", "expected"),
    [
        (reasons.DNS_NXDOMAIN, None, 5.0),
        (reasons.DNS_NXDOMAIN, 3, 3.0),
        (reasons.DNS_NXDOMAIN, 0, 2.0),
        (reasons.DNS_NXDOMAIN, 3600, 5.0),
        (reasons.DNS_NO_ADDRESS, 3, 3.0),
        (reasons.DNS_NO_ADDRESS, None, 5.0),
        (reasons.DNS_NO_ADDRESS, 2**31, 5.0),
        (reasons.DNS_FAILURE, None, 5.0),
        (reasons.DNS_FAILURE, 3, 5.0),
        (reasons.DNS_REFUSED, None, 5.0),
        (reasons.DNS_TIMEOUT, None, 1.0),
    ],
)
def test_a_failure_is_remembered(reason: Reason, seconds: int | None, expected: float) -> None:
    assert failure_lifetime(DNS, reason, seconds) == expected
    assert failure_lifetime(Dns(negative_ttl=0.0), reason, seconds) == 0
    short = Dns(min_ttl=60.0, negative_ttl=0.5)
    assert failure_lifetime(short, reason, seconds) == 0.5  # never longer, whatever min_ttl is


# One answer -------------------------------------------------------------------------------------


def test_each_use_gets_the_next_answer() -> None:
    kept = Kept(("a", "b", "c"), 0.0, 10.0)
    assert [kept.next() for _ in range(7)] == ["a", "b", "c", "a", "b", "c", "a"]


def test_what_is_not_renewed_ends_at_once() -> None:
    kept = Kept(("a",), 100.0, 10.0)
    assert kept.refresh_at == kept.expires == kept.stale_until == 110.0
    assert kept.quiet_until <= 100.0


@pytest.mark.parametrize(
    ("life", "stale", "refresh_at", "stale_until"),
    [
        (10.0, 0.0, 109.0, 110.0),
        (10.0, 60.0, 109.0, 170.0),
        (1.0, 0.0, 100.9, 101.0),
        (0.5, 0.0, 100.5, 100.5),
        (0.0, 60.0, 100.0, 160.0),
    ],
)
def test_what_is_renewed(life: float, stale: float, refresh_at: float, stale_until: float) -> None:
    kept = Kept(("a",), 100.0, life)
    kept.renew(100.0, life, stale)
    assert kept.expires == 100.0 + life
    assert (kept.refresh_at, kept.stale_until) == pytest.approx((refresh_at, stale_until))
    assert kept.refresh_at <= kept.expires


# Many -------------------------------------------------------------------------------------------


def keep(cache: Cache[str], *names: str) -> None:
    for name in names:
        cache.put(name, Kept((name,), 0.0, 10.0))


def known(cache: Cache[str], names: str) -> str:
    return "".join(name for name in names if name in cache._kept)


def test_the_name_that_was_used_longest_ago_makes_room() -> None:
    cache: Cache[str] = Cache(3)
    keep(cache, "a", "b", "c")
    assert cache.get("a") is not None
    keep(cache, "d")
    assert known(cache, "abcd") == "acd"
    keep(cache, "c")  # asked for again: used now
    keep(cache, "e", "f")
    assert known(cache, "abcdef") == "cef"
    assert cache.get("a") is None


def test_a_newer_answer_takes_the_older_one_s_place_and_nobody_else_s() -> None:
    cache: Cache[str] = Cache(2)
    keep(cache, "a", "b", "a", "a", "b")
    assert known(cache, "ab") == "ab"
    newer = Kept(("newer",), 0.0, 1.0)
    cache.put("a", newer)
    assert cache.get("a") is newer


@given(
    st.integers(1, 5),
    st.lists(st.tuples(st.sampled_from(["get", "put"]), st.sampled_from("abcdefgh"))),
)
def test_it_is_a_list_in_order_of_use(entries: int, steps: list[tuple[str, str]]) -> None:
    cache: Cache[str] = Cache(entries)
    model: list[str] = []
    for step, name in steps:
        if step == "put":
            keep(cache, name)
            model = [*(one for one in model if one != name), name][-entries:]
        else:
            assert (cache.get(name) is not None) == (name in model)
            if name in model:
                model.append(model.pop(model.index(name)))
        assert list(cache._kept) == model
        assert len(cache) <= entries


def test_no_name_costs_more_than_another_when_clients_choose_them() -> None:
    """Random names of a wildcard: no walk through what has been thrown out, and no growth."""
    cache: Cache[str] = Cache(1000)
    keep(cache, *(f"{number}.test" for number in range(1000)))
    before = sys.getsizeof(cache._kept)
    start = time.process_time()
    keep(cache, *(f"{number}.evil.test" for number in range(30_000)))
    assert time.process_time() - start < 2
    assert len(cache) == 1000
    assert sys.getsizeof(cache._kept) <= 4 * before


def test_use_is_spread_evenly() -> None:
    kept = Kept(tuple("abcd"), 0.0, 1.0)
    assert set(Counter(kept.next() for _ in range(400)).values()) == {100}
