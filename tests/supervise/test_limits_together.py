"""What `/v1/limits` tells of several workers."""

from __future__ import annotations

from dataclasses import replace

from egress_proxy.config.load import parse
from egress_proxy.config.model import Config, SharedState
from egress_proxy.limits.store import AccountState, Used
from egress_proxy.supervise.limits import states_together

TEXT = b"""\
version: 1
policies:
  - name: agents
    allow: [example.com]
    limits:
      tunnels: 5
      requests_per_second: 10
      burst: 9
      requests_per_day: 1000
      bytes_per_day: {up: 1GiB, both: 2GiB}
"""
CONFIG = parse(TEXT, "policy.yaml").config


def state(
    tenant: str, requests: int, tunnels: int, *limits: Used, policy: str = "agents"
) -> AccountState:
    return AccountState(policy, tenant, requests, tunnels, limits)


def together(*parts: list[AccountState], config: Config = CONFIG) -> list[AccountState]:
    return states_together(parts, config)


def test_parts_are_added_and_limits_are_whole() -> None:
    one = [
        state(
            *("a", 2, 1),
            *(Used("tunnels", 1, 3), Used("requests_per_day", 10, 500, 90.0)),
            *(Used("bytes_per_day.up", 7, 2**29, 90.0), Used("bytes_per_day", 8, 2**30, 90.0)),
        )
    ]
    other = [
        state("a", 3, 2, Used("tunnels", 2, 3), Used("requests_per_day", 5, 500, 91.0)),
        state("b", 1, 0, Used("tunnels", 0, 3)),
    ]
    assert together(one, other) == [
        state(
            *("a", 5, 3),
            *(Used("tunnels", 3, 5), Used("requests_per_day", 15, 1000, 91.0)),
            *(Used("bytes_per_day.up", 7, 2**30, 90.0), Used("bytes_per_day", 8, 2**31, 90.0)),
        ),
        # Known to one worker alone: its limit is the policy's all the same.
        state("b", 1, 0, Used("tunnels", 0, 5)),
    ]


def test_of_a_rate_the_burst_is_told() -> None:
    rate = "requests_per_second"
    parts = ([state("a", 0, 0, Used(rate, used, 5))] for used in (2, 4))
    assert together(*parts) == [state("a", 0, 0, Used(rate, 6, 9))]


def test_a_policy_that_is_gone_tells_what_workers_know() -> None:
    one, other = ([state("a", 1, 0, Used("tunnels", count, 3), policy="gone")] for count in (1, 2))
    assert together(one, other) == [state("a", 2, 0, Used("tunnels", 3, 6), policy="gone")]


def test_a_shared_store_has_told_each_worker_all() -> None:
    config = replace(CONFIG, state=SharedState("redis.test"))
    older = [state("a", 2, 4, Used("tunnels", 4, 5))]
    newer = [state("a", 1, 5, Used("tunnels", 5, 5))]
    assert together(older, newer, config=config) == [state("a", 3, 5, Used("tunnels", 5, 5))]


def test_nothing_is_known() -> None:
    assert together([], []) == []
