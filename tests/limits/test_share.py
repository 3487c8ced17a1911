"""One worker's part of what a policy grants."""

from __future__ import annotations

from typing import Any

import pytest

from egress_proxy.config.load import parse
from egress_proxy.config.model import FileState, MemoryState, SharedState
from egress_proxy.core.limits import Limits
from egress_proxy.limits.local import LocalStore
from egress_proxy.limits.share import WorkerLimiter, own_part, own_state, share_of

WHOLE = Limits(
    requests_per_second=50.0,
    burst=100,
    tunnels=7,
    requests_per_day=1000,
    bytes_up_per_day=2**30,
    bytes_down_per_day=2**31,
    bytes_per_day=3 * 2**30,
    time_zone="Europe/Berlin",
    bandwidth=10_000,
    tunnel_bandwidth=8000,
    new_hosts_per_hour=10,
)


def test_what_can_be_divided_is() -> None:
    assert share_of(WHOLE, 2) == Limits(
        requests_per_second=25.0,
        burst=50,
        tunnels=4,
        requests_per_day=500,
        bytes_up_per_day=2**29,
        bytes_down_per_day=2**30,
        bytes_per_day=3 * 2**29,
        time_zone="Europe/Berlin",
        bandwidth=5000,
        tunnel_bandwidth=8000,
        new_hosts_per_hour=5,
    )


def test_one_worker_has_all_of_it() -> None:
    assert share_of(WHOLE, 1) == WHOLE


def test_no_limit_stays_none() -> None:
    assert share_of(Limits(), 4) == Limits()


@pytest.mark.parametrize("field", ["burst", "tunnels", "requests_per_day", "new_hosts_per_hour"])
@pytest.mark.parametrize("whole", [1, 2, 3, 4, 5, 999])
@pytest.mark.parametrize("workers", [2, 3, 4])
def test_together_they_have_all_and_hardly_more(field: str, whole: int, workers: int) -> None:
    limits: Any = {field: whole, "requests_per_second": 1.0}
    part = getattr(share_of(Limits(**limits), workers), field)
    assert part >= 1
    assert whole <= part * workers < whole + workers


def test_the_burst_of_a_rate_below_one() -> None:
    """Half a request per second is no burst, and nothing would ever go through."""
    part = share_of(Limits(requests_per_second=1.0), 4)
    assert (part.requests_per_second, part.burst) == (0.25, 1)


def test_the_limiter_holds_its_part() -> None:
    text = (
        b"version: 1\npolicies:\n"
        b"  - {name: one, allow: [a.test], limits: {tunnels: 8}}\n"
        b"  - {name: two, allow: [b.test]}\n"
    )
    held: list[Any] = []

    class Store(LocalStore):
        def adopt(self, limits: Any) -> None:
            held.append(limits)

    limiter = WorkerLimiter(Store(lambda _: None), lambda *_: None, 4)
    limiter.adopt(parse(text, "policy.yaml").config.policy)
    assert held == [{"one": Limits(tunnels=2)}]
    assert limiter.active
    assert limiter.enforces


def test_of_a_shared_store_only_what_it_does_not_count() -> None:
    text = (
        b"version: 1\npolicies:\n"
        b"  - {name: one, allow: [a.test], limits: {tunnels: 8, bandwidth: 8KiB}}\n"
    )
    held: list[Any] = []

    class Store(LocalStore):
        def adopt(self, limits: Any) -> None:
            held.append(limits)

    limiter = WorkerLimiter(Store(lambda _: None), lambda *_: None, 4, shared=True)
    limiter.adopt(parse(text, "policy.yaml").config.policy)
    assert held == [{"one": Limits(tunnels=8, bandwidth=2048)}]


def test_the_parts_of_what_is_open_at_once() -> None:
    config = parse(b"version: 1\npolicies: [{name: one, allow: [a.test]}]\n", "a.yaml").config
    part, whole = own_part(config, 4), config.limits
    assert part.limits.connections == whole.connections / 4
    assert part.limits.connections_per_client == whole.connections_per_client / 4
    assert part.limits.head_bytes == whole.head_bytes
    assert part.policy is config.policy


def test_a_file_has_one_owner() -> None:
    assert own_state(FileState("/var/lib/x.db"), 3) == FileState("/var/lib/x.db.3")
    assert own_state(MemoryState(), 3) == MemoryState()
    shared = SharedState("redis.test")
    assert own_state(shared, 3) is shared
