"""The arithmetic of rates is the same in the store as in this process: to the last bit."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from egress_proxy.limits import gcra
from egress_proxy.limits.link import Script
from tests.support.redis_server import RedisServer, needs_server

pytestmark = needs_server

_RUN = (
    Script("common").text
    + """
local arrival, interval, early, epsilon = 0, tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local answer = {}
for at = 4, #ARGV do
  local now = tonumber(ARGV[at])
  local wait = gcra_wait(arrival, now, early, epsilon)
  if wait == 0 then
    -- As it is kept: written out, and read again.
    arrival = tonumber(text(gcra_counted(arrival, now, interval)))
  end
  answer[#answer + 1] = text(wait) .. ' ' .. text(arrival)
end
return answer
"""
)


@pytest.fixture(scope="module")
def client(one_server: RedisServer) -> Iterator[redis.Redis]:
    with one_server.client() as client:
        client.ping()
        yield client


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rate=st.floats(0.001, 100_000),
    burst=st.integers(1, 10_000),
    begin=st.floats(0, 4e9),
    steps=st.lists(st.floats(0, 1) | st.sampled_from([0.0, 1e-7, 1e-3]), min_size=1, max_size=60),
)
def test_the_scripts_count_as_we_do(
    client: redis.Redis, rate: float, burst: int, begin: float, steps: list[float]
) -> None:
    interval = 1.0 / rate
    early = gcra.tolerance(burst, interval)
    now, times = begin, []
    for step in steps:
        now += step * interval * 2
        times.append(now)

    arrival, expected = 0.0, []
    for now in times:
        wait = gcra.wait(arrival, now, early)
        if not wait:
            arrival = gcra.counted(arrival, now, interval)
        expected.append((wait, arrival))

    arguments = [repr(number) for number in (interval, early, gcra._EPSILON, *times)]
    answer = client.eval(_RUN, 0, *arguments)
    assert [tuple(map(float, each.split())) for each in answer] == expected
