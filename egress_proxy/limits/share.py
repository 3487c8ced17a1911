"""What one of several processes lets through, where each counts for itself.

The workers of one proxy share nothing unless ``state`` is a shared store. So that together they let through what is
configured and no more, each holds its part of it: rates, budgets and bandwidth divided by their number. What counts
things and cannot be divided so is rounded up, to 1 at least.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import ceil

from egress_proxy.config.model import Config, FileState, State
from egress_proxy.core.limits import Kind, Limits
from egress_proxy.core.policy import CompiledPolicy, Mode
from egress_proxy.limits.limiter import Limiter
from egress_proxy.limits.store import Store


def share_of(limits: Limits, workers: int) -> Limits:
    """One worker's part of a policy's limits; ``tunnel_bandwidth`` is for each tunnel, and stays whole."""

    def part(whole: int | None) -> int | None:
        return None if whole is None else ceil(whole / workers)

    rate = limits.requests_per_second
    return replace(
        limits,
        requests_per_second=None if rate is None else rate / workers,
        # By default the burst is the rate's, which may be below one request a second now.
        burst=None if rate is None else part(limits.burst_or_default),
        tunnels=part(limits.tunnels),
        requests_per_day=part(limits.requests_per_day),
        bytes_up_per_day=part(limits.bytes_up_per_day),
        bytes_down_per_day=part(limits.bytes_down_per_day),
        bytes_per_day=part(limits.bytes_per_day),
        bandwidth=part(limits.bandwidth),
        new_hosts_per_hour=part(limits.new_hosts_per_hour),
    )


def own_part(config: Config, workers: int) -> Config:
    """The configuration as one worker holds it: its part of what the proxy may hold open at once."""
    whole = config.limits
    part = replace(
        whole,
        connections=ceil(whole.connections / workers),
        connections_per_client=ceil(whole.connections_per_client / workers),
        tunnels=ceil(whole.tunnels / workers),
        heads=ceil(whole.heads / workers),
        idle_origins=ceil(whole.idle_origins / workers),
        idle_per_origin=ceil(whole.idle_per_origin / workers),
    )
    return replace(config, limits=part)


def own_state(state: State, number: int) -> State:
    """Where one worker keeps its counters: a file has one owner."""
    return FileState(f"{state.path}.{number}") if isinstance(state, FileState) else state


class WorkerLimiter(Limiter):
    """Holds one worker's part of the limits of the policies in force.

    With a ``shared`` store that is what the store does not count: bandwidth.
    """

    __slots__ = ("_shared", "_workers")

    def __init__(
        self,
        store: Store,
        on_exceeded: Callable[[Kind, str], None],
        workers: int,
        *,
        shared: bool = False,
    ) -> None:
        super().__init__(store, on_exceeded)
        self._workers = workers
        self._shared = shared

    def adopt(self, policy: CompiledPolicy) -> None:
        limits = {each.name: each.limits for each in policy.policies if each.limits is not None}
        self.store.adopt({name: self._part(each) for name, each in limits.items()})
        self.active = bool(limits)
        self.enforces = policy.mode is not Mode.AUDIT

    def _part(self, limits: Limits) -> Limits:
        part = share_of(limits, self._workers)
        return replace(limits, bandwidth=part.bandwidth) if self._shared else part
