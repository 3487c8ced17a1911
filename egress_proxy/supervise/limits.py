"""What tenants have used at all workers together, for ``/v1/limits``."""

from __future__ import annotations

from collections.abc import Iterable

from egress_proxy.config.model import Config, SharedState
from egress_proxy.core.limits import Limits
from egress_proxy.limits.store import AccountState, Used


def states_together(parts: Iterable[list[AccountState]], config: Config) -> list[AccountState]:
    """The states of all workers as one proxy's, by policy and tenant.

    Workers that count for themselves have each a part of what is used, of a part of the limit. With a shared store each
    knows what is used at all.
    """
    found: dict[tuple[str, str], list[AccountState]] = {}
    for part in parts:
        for state in part:
            found.setdefault((state.policy, state.tenant), []).append(state)
    shared = isinstance(config.state, SharedState)
    limits = {each.name: each.limits for each in config.policy.policies}
    return [
        _known_to_all(states) if shared else _summed(states, limits.get(policy))
        for (policy, _), states in sorted(found.items())
    ]


def _known_to_all(states: list[AccountState]) -> AccountState:
    latest = max(states, key=lambda state: [each.used for each in state.limits])
    requests = sum(state.requests for state in states)
    tunnels = max(state.tunnels for state in states)
    return AccountState(latest.policy, latest.tenant, requests, tunnels, latest.limits)


def _summed(states: list[AccountState], limits: Limits | None) -> AccountState:
    used: dict[str, list[Used]] = {}
    for state in states:
        for each in state.limits:
            used.setdefault(each.limit, []).append(each)
    return AccountState(
        states[0].policy,
        states[0].tenant,
        sum(state.requests for state in states),
        sum(state.tunnels for state in states),
        tuple(_sum(name, each, limits) for name, each in used.items()),
    )


def _sum(name: str, parts: list[Used], limits: Limits | None) -> Used:
    # As the configuration has it; a worker that has not seen the tenant tells nothing of its part.
    whole = None if limits is None else _whole(limits, name)
    ends = [part.resets_at for part in parts if part.resets_at is not None]
    return Used(
        name,
        sum(part.used for part in parts),
        sum(part.of for part in parts) if whole is None else whole,
        max(ends) if ends else None,
    )


def _whole(limits: Limits, name: str) -> int | None:
    """The limit of this name: ``bytes_per_day.up`` is ``bytes_up_per_day``, and of a rate the burst is told."""
    if name == "requests_per_second":
        return limits.burst_or_default
    key, _, way = name.partition(".")
    whole: int | None = getattr(limits, key.replace("_per_day", f"_{way}_per_day") if way else key)
    return whole
