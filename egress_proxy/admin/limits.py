"""What each tenant has used, as ``/v1/limits`` answers."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import msgspec

from egress_proxy.limits.store import AccountState


class Limit(msgspec.Struct, frozen=True):
    """How much of one limit is used."""

    limit: str
    used: int
    of: int
    resets_at: datetime | None = None


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


def as_answer(states: list[AccountState]) -> Answer:
    """The states of all tenants, with times as RFC 3339 has them."""
    return Answer(
        [
            Tenant(
                *(state.policy, state.tenant, state.requests, state.tunnels),
                [
                    Limit(
                        *(each.limit, each.used, each.of),
                        None
                        if each.resets_at is None
                        # Up to the second at which it is over.
                        else datetime.fromtimestamp(math.ceil(each.resets_at), UTC),
                    )
                    for each in state.limits
                ],
            )
            for state in states
        ]
    )
