"""What each tenant has used, as ``/v1/limits`` answers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

import msgspec

from egress_proxy.core.limits import Limits
from egress_proxy.core.policy import Policy
from egress_proxy.limits.store import AccountState


class Limit(msgspec.Struct, frozen=True):
    """How much of one limit is used."""

    limit: str
    used: int | None
    """None where the store does not tell."""
    of: int
    resets_at: datetime | None = None
    rate: float | None = None
    """Of ``requests_per_second``: the rate. What is used is of its burst, and time gives it back."""


class Tenant(msgspec.Struct, frozen=True):
    """What one tenant of one policy has used."""

    policy: str
    tenant: str
    requests: int
    tunnels: int
    limits: list[Limit]


class Answer(msgspec.Struct, frozen=True):
    """What ``/v1/limits`` answers."""

    tenants: list[Tenant]


#: The limit that has no counter of its own: a burst, and a time at which nothing of it is used.
_RATE: Final = "requests_per_second"


def as_answer(states: list[AccountState], policies: Iterable[Policy] = ()) -> Answer:
    """The states of all tenants, with times as RFC 3339 has them, and the rates that these policies have."""
    by_name = {policy.name: policy.limits for policy in policies if policy.limits is not None}
    return Answer([_tenant(state, by_name.get(state.policy)) for state in states])


def _tenant(state: AccountState, limits: Limits | None) -> Tenant:
    rate = None if limits is None else limits.requests_per_second
    found = [
        Limit(
            *(each.limit, each.used, each.of),
            # Up to the second at which it is over.
            None
            if each.resets_at is None
            else datetime.fromtimestamp(math.ceil(each.resets_at), UTC),
            rate if each.limit == _RATE else None,
        )
        for each in state.limits
    ]
    if limits is not None and rate is not None and all(each.limit != _RATE for each in found):
        found.insert(0, Limit(_RATE, None, limits.burst_or_default, rate=rate))
    return Tenant(state.policy, state.tenant, state.requests, state.tunnels, found)
