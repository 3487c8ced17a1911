"""Rates: never more than rate and burst allow, never less, and whoever is told when to come back is let in then."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from egress_proxy.core.answer import whole_seconds
from egress_proxy.core.limits import Limits
from egress_proxy.limits import gcra
from tests.limits.clocks import Clock, Limited, limited, policy

RATES = st.floats(0.01, 10_000)
BURSTS = st.integers(1, 50)
#: Seconds between requests: bursts, and rests of every length.
GAPS = st.lists(
    st.just(0.0) | st.floats(0, 0.01) | st.floats(0, 5) | st.floats(0, 10_000), max_size=80
)


@given(RATES, BURSTS, GAPS)
def test_in_no_stretch_of_time_do_more_pass_than_rate_and_burst_allow(
    rate: float, burst: int, gaps: list[float]
) -> None:
    each = policy(limits=Limits(rate, burst))
    made = limited(each)
    passed: list[float] = []
    for gap in gaps:
        made.clock.sleep(gap)
        if made.passes(each):
            passed.append(made.clock.now)
    for first in range(len(passed)):
        for last in range(first, len(passed)):
            most = rate * (passed[last] - passed[first]) + burst
            # What floats lose: a millionth of a request.
            assert last - first + 1 <= most + 1e-6 * (1 + rate)


@given(RATES, BURSTS, GAPS)
def test_whoever_is_refused_passes_when_told_and_not_before(
    rate: float, burst: int, gaps: list[float]
) -> None:
    each = policy(limits=Limits(rate, burst))
    made = limited(each)
    for gap in gaps:
        made.clock.sleep(gap)
        while made.passes(each):
            pass
        wait = made.refused(each).retry_after
        assert wait > 0
        if wait > 0.001:
            made.clock.sleep(wait * 0.99)
            wait = made.refused(each).retry_after
        made.clock.sleep(wait)
        assert made.passes(each)


@given(st.floats(0.01, 2), BURSTS)
def test_the_whole_second_of_the_header_is_the_first_that_succeeds(rate: float, burst: int) -> None:
    """Slow enough that a second makes a difference: one earlier is refused, and that one is not."""
    each = policy(limits=Limits(rate, burst))
    made = limited(each)
    for _ in range(burst):
        assert made.passes(each)
    seconds = whole_seconds(made.refused(each).retry_after)
    if seconds > 1:
        made.clock.sleep(seconds - 1)
        assert not made.passes(each)
        made.clock.sleep(1)
    else:
        made.clock.sleep(seconds)
    assert made.passes(each)


@given(RATES, BURSTS)
def test_after_a_rest_the_whole_burst_passes_and_no_more(rate: float, burst: int) -> None:
    each = policy(limits=Limits(rate, burst))
    made = limited(each)
    for _ in range(2):
        assert [made.passes(each) for _ in range(burst + 3)] == [True] * burst + [False] * 3
        made.clock.sleep(burst / rate * 1.001 + 1e-6)


def test_without_a_burst_one_second_s_worth_passes_at_once() -> None:
    for rate, burst in ((2.5, 3), (0.5, 1), (10, 10)):
        each = policy(limits=Limits(rate))
        made = limited(each)
        assert sum(made.passes(each) for _ in range(50)) == burst


def test_refusals_cost_nothing() -> None:
    each = policy(limits=Limits(1, 1))
    made = limited(each)
    assert made.passes(each)
    waits = {round(made.refused(each).retry_after, 6) for _ in range(1000)}
    assert waits == {1.0}


def test_tenants_have_each_their_own() -> None:
    each, other = policy(limits=Limits(1, 1)), policy("other", Limits(1, 1))
    made = limited(each, other)
    assert made.passes(each, tenant="a")
    assert made.passes(each, tenant="b")
    assert made.passes(other, tenant="a")
    assert not made.passes(each, tenant="a")
    assert made.exceeded == [("request_rate", "everyone")]


def test_the_clock_that_people_set_has_no_part_in_it() -> None:
    each = policy(limits=Limits(1, 1))
    made = limited(each)
    made.passes(each)
    made.clock.epoch += 86_400
    assert not made.passes(each)
    made.clock.epoch -= 10 * 86_400
    made.clock.now += 1
    assert made.passes(each)


def test_the_arithmetic() -> None:
    assert gcra.tolerance(5, 0.25) == 1.0
    assert gcra.wait(10.0, 9.0, 1.0) == 0.0
    assert gcra.wait(10.0, 8.0, 1.0) == 1.0
    assert gcra.counted(10.0, 9.0, 0.5) == 10.5
    assert gcra.counted(10.0, 12.0, 0.5) == 12.5


@given(st.floats(0.1, 100), st.floats(0.1, 100), BURSTS, BURSTS, st.integers(0, 60))
def test_a_reload_never_gives_more_than_the_new_limits(
    before: float, after: float, burst: int, burst_after: int, asked: int
) -> None:
    one, two = policy(limits=Limits(before, burst)), policy(limits=Limits(after, burst_after))
    made = Limited(Clock())
    made.adopt(one)
    used = sum(made.passes(one) for _ in range(asked))
    made.adopt(two)
    # At once, what was used is still used, however little of it there is now.
    more = sum(made.passes(two) for _ in range(100))
    assert more <= max(0, burst_after - used)


@given(RATES, BURSTS, GAPS)
def test_people_are_told_how_much_of_the_burst_is_left(
    rate: float, burst: int, gaps: list[float]
) -> None:
    """As many requests pass at once as the state says, and the whole burst when it says so."""
    each = policy(limits=Limits(rate, burst))
    made = limited(each)
    made.passes(each)
    for gap in gaps:
        made.clock.sleep(gap)
        made.passes(each)
    account = made.store.account("everyone", "t", Limits(rate, burst))
    (state,) = account.state(made.clock.wall()).limits
    assert (state.limit, state.of) == ("requests_per_second", burst)
    if state.resets_at is None:
        assert state.used == 0
    left = burst - state.used
    assert [made.passes(each) for _ in range(left + 1)] == [True] * left + [False]
    (state,) = account.state(made.clock.wall()).limits
    assert state.used == burst
    assert state.resets_at is not None
    made.clock.sleep(state.resets_at - made.clock.wall() + 1e-3)
    assert account.state(made.clock.wall()).limits[0].used == 0
