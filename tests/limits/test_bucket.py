"""Bandwidth: never more than rate and burst allow, all of it used, and every flow gets its share."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from egress_proxy.core.limits import Direction, Limits
from egress_proxy.core.policy import Mode
from egress_proxy.limits.bucket import Bucket
from egress_proxy.limits.limiter import Admission
from tests.limits.clocks import Limited, limited, policy

CHUNK = 65536
KIB = 1024


def move(made: Limited, flow: Admission, wanted: int = CHUNK) -> int:
    """Move as many bytes to the client as may be moved now."""
    allowed, wait = flow.pace(Direction.DOWN, wanted)
    assert (allowed == 0) == (wait > 0)
    if allowed:
        assert flow.spend(0, allowed) is None
    return allowed


@given(
    st.integers(KIB, 100 * KIB * KIB),
    st.lists(
        st.tuples(
            st.floats(0, 0.001) | st.floats(0, 2),
            st.integers(1, 4 * CHUNK),
            st.integers(0, 4),
        ),
        max_size=120,
    ),
)
def test_in_no_stretch_of_time_does_more_pass_than_the_rate_and_one_burst(
    rate: int, steps: list[tuple[float, int, int]]
) -> None:
    each = policy(limits=Limits(bandwidth=rate))
    made = limited(each)
    flows = [made.admitted(each) for _ in range(5)]
    passed: list[tuple[float, int]] = []
    for gap, wanted, number in steps:
        made.clock.sleep(gap)
        passed.append((made.clock.now, move(made, flows[number], wanted)))
    burst = max(rate / 4, 4096)
    for first in range(len(passed)):
        total = 0
        for now, count in passed[first:]:
            total += count
            assert total <= rate * (now - passed[first][0]) + burst + 1


def simulate(
    made: Limited, flows: list[Admission], seconds: float, tick: float, wanted: int = CHUNK
) -> list[int]:
    """Bytes of each flow that always has more to send, and looks again at the tick after it was told to."""
    moved = [0] * len(flows)
    again = [0.0] * len(flows)
    end = made.clock.now + seconds
    while made.clock.now < end:
        for number, flow in enumerate(flows):
            while again[number] <= made.clock.now:
                allowed, wait = flow.pace(Direction.DOWN, wanted)
                if not allowed:
                    again[number] = made.clock.now + wait
                    break
                flow.spend(0, allowed)
                moved[number] += allowed
        made.clock.sleep(tick)
    return moved


def test_the_whole_rate_is_used_whether_clocks_are_fine_or_coarse() -> None:
    for rate in (64 * KIB, 1024 * KIB, 64 * 1024 * KIB):
        for count in (1, 3, 20):
            for tick in (0.005, 0.1):
                each = policy(limits=Limits(bandwidth=rate))
                made = limited(each)
                moved = simulate(made, [made.admitted(each) for _ in range(count)], 10.0, tick)
                assert 0.9 * rate * 10 <= sum(moved) <= rate * 10.3 + CHUNK


def test_nobody_starves() -> None:
    """Always asked in the same order, the first would get everything if it was not for the line."""
    each = policy(limits=Limits(bandwidth=1024 * KIB))
    for wanted in (CHUNK, 4 * CHUNK):
        made = limited(each)
        moved = simulate(made, [made.admitted(each) for _ in range(50)], 60.0, 0.1, wanted)
        assert min(moved) > 0.7 * max(moved)


def test_a_flow_that_goes_away_while_it_waits_keeps_nobody_from_the_rest() -> None:
    each = policy(limits=Limits(bandwidth=1024 * KIB))
    made = limited(each)
    flows = [made.admitted(each) for _ in range(100)]
    simulate(made, flows, 1.0, 0.1)
    for flow in flows[1:]:
        flow.release()
    moved = simulate(made, flows[:1], 10.0, 0.1)
    assert moved[0] > 0.7 * 10 * 1024 * KIB


def test_each_tunnel_has_a_rate_of_its_own_within_the_tenant_s() -> None:
    each = policy(limits=Limits(bandwidth=1024 * KIB, tunnel_bandwidth=100 * KIB))
    made = limited(each)
    few = simulate(made, [made.admitted(each) for _ in range(2)], 10.0, 0.05)
    assert all(900 * KIB <= moved <= 1030 * KIB for moved in few)
    made = limited(each)
    many = simulate(made, [made.admitted(each) for _ in range(40)], 10.0, 0.05)
    assert 9 * 1024 * KIB <= sum(many) <= 10.3 * 1024 * KIB


def test_both_directions_have_it_each() -> None:
    each = policy(limits=Limits(bandwidth=64 * KIB))
    made = limited(each)
    flow = made.admitted(each)
    assert flow.pace(Direction.DOWN, CHUNK) == (16 * KIB, 0.0)
    flow.spend(0, 16 * KIB)
    assert flow.pace(Direction.DOWN, CHUNK)[0] == 0
    assert flow.pace(Direction.UP, CHUNK) == (16 * KIB, 0.0)


def test_of_several_policies_the_slowest_holds() -> None:
    slow, fast = policy("a", Limits(bandwidth=8 * KIB)), policy("b", Limits(bandwidth=1024 * KIB))
    made = limited(slow, fast)
    moved = simulate(made, [made.admitted(slow, fast)], 20.0, 0.05)
    assert 0.9 * 160 * KIB <= moved[0] <= 170 * KIB
    own = policy("c", Limits(tunnel_bandwidth=8 * KIB)), policy("d", Limits(tunnel_bandwidth=KIB))
    made = limited(*own)
    assert simulate(made, [made.admitted(*own)], 20.0, 0.05)[0] <= 25 * KIB


def test_what_passes_although_it_may_not_is_waited_for() -> None:
    bucket = Bucket(1000, 0.0)
    bucket.take(10_000, 0.0)
    allowed, turn = bucket.look(100, 0.0, 0.0)
    assert allowed == 0
    assert turn == (10_000 - bucket.capacity + 100) / 1000
    assert bucket.look(100, turn - 0.01, turn) == (0, turn)
    assert bucket.look(100, turn, turn) == (100, 0.0)


def test_a_reload_changes_the_rate_at_once_and_may_take_it_away() -> None:
    slow, fast, none = (
        policy(limits=each)
        for each in (Limits(bandwidth=KIB), Limits(bandwidth=1024 * KIB), Limits(tunnels=5))
    )
    made = limited(slow)
    flow = made.admitted(slow)
    move(made, flow)
    assert move(made, flow) == 0
    made.adopt(fast)
    made.clock.sleep(5.0)
    assert move(made, flow) == CHUNK
    made.adopt(slow)
    made.clock.sleep(0.01)
    moved = sum(move(made, flow) for _ in range(10))
    assert moved <= 4096 + KIB
    made.adopt(none)
    assert move(made, flow, 10 * CHUNK) == 10 * CHUNK


def test_in_audit_mode_nothing_waits() -> None:

    each = policy(limits=Limits(bandwidth=KIB))
    made = limited(each, mode=Mode.AUDIT)
    flow = made.admitted(each)
    assert not flow.paced
    assert flow.pace(Direction.UP, 10**9) == (10**9, 0.0)
