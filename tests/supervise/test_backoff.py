"""How long a worker that has ended stays away."""

from __future__ import annotations

from egress_proxy.supervise.backoff import FIRST, LONG_LIFE, LONGEST, Backoff


def test_twice_as_long_each_time_up_to_a_bound() -> None:
    backoff = Backoff()
    waits = [backoff.after(0.5) for _ in range(20)]
    assert waits[:4] == [FIRST, 2 * FIRST, 4 * FIRST, 8 * FIRST]
    assert waits[-1] == LONGEST
    assert waits == sorted(waits)


def test_a_long_life_begins_it_anew() -> None:
    backoff = Backoff()
    for _ in range(20):
        backoff.after(LONG_LIFE - 1)
    assert backoff.after(LONG_LIFE - 1) == LONGEST
    assert backoff.after(LONG_LIFE) == FIRST
    assert backoff.after(0.5) == 2 * FIRST
