"""What the limiter asks of whoever keeps the counters: in this process, or shared by many.

:class:`egress_proxy.limits.limiter.Limiter` is what the rest of the program talks to. It asks a :class:`Store` once for
each request, and the :class:`Account` objects that the store hands out for every few bytes of a tunnel. An account
never asks anybody and never waits: a shared store leases slices of a budget to it beforehand.

All methods are called in the event loop's thread.
"""

from __future__ import annotations

from asyncio import Future
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import msgspec

from egress_proxy.core.limits import Kind, Limits

if TYPE_CHECKING:
    from egress_proxy.core.tenant import Charge
    from egress_proxy.limits.bucket import Bucket

#: The part of a budget or of an hour's new hosts from which on a tenant is warned about.
NEAR = 0.8


@dataclass(frozen=True, slots=True)
class Exceeded:
    """A limit that lets a request through no more. Nothing of the request was counted, by this limit or by another."""

    kind: Kind
    policy: str
    tenant: str
    retry_after: float
    """Seconds until the same request would be let through, if the tenant sends nothing else meanwhile. Of
    ``tunnel_limit`` a guess: nobody knows when a tunnel ends."""
    detail: str
    """One clause of our own words that names the limit, such as ``at most 50 a second``."""


class Near(NamedTuple):
    """A soft limit that was reached: told once for each window, tenant and kind."""

    kind: Kind
    policy: str
    tenant: str
    used: int
    limit: int
    resets_at: float
    """Seconds since the epoch."""


class Account(Protocol):
    """What one tenant of one policy has used. There is one object for each, for as long as anybody holds it."""

    policy: str
    tenant: str
    limits: Limits
    """As the configuration in force says; a reload replaces it."""
    up: Bucket | None
    """The tenant's bandwidth to origins; None where it is not limited."""
    down: Bucket | None

    def spend(self, up: int, down: int) -> Kind | None:
        """Count bytes that have passed. Returns ``byte_budget`` once a budget has nothing left.

        Only the budgets: bandwidth is taken from the buckets by whoever holds the account.
        """


class Store(Protocol):
    """Keeps the counters of all tenants.

    A store gets two clocks and a ``Callable[[Near], None]`` when it is made, and calls the latter once for each window,
    tenant and kind when ``NEAR`` of a budget (or of an hour's new hosts) is used.
    """

    def adopt(self, limits: Mapping[str, Limits]) -> None:
        """Hold these limits from now on, by the names of their policies.

        What the tenants of a policy that stays have used stays used. A charge whose policy is not among them (a
        request that was decided before a reload) is held to the limits of its own ``policy.limits``.
        """

    def admit(
        self, charges: tuple[Charge, ...], host: str, *, tunnel: bool
    ) -> tuple[Account, ...] | Exceeded | Future[tuple[Account, ...] | Exceeded]:
        """Count one request for all the charges, or for none: the first limit in their order refuses.

        Returns one account for each charge, held until ``release``; a future alone where somebody else must be asked.
        Never raises, and a future never ends with an exception: a store that cannot be reached decides by what the
        configuration says for that. ``host`` is canonical.
        """

    def release(self, accounts: tuple[Account, ...], *, tunnel: bool) -> None:
        """Give back what ``admit`` returned, once, when the request or the tunnel is over."""

    async def states(self) -> list[AccountState]:
        """What each tenant that is known has used, by policy and tenant."""

    async def close(self) -> None:
        """Write down what is not written yet, and let go of files and connections."""


class Used(msgspec.Struct, frozen=True, omit_defaults=True):
    """How much of one limit is used."""

    limit: str
    """The limit's key in the configuration."""
    used: int
    of: int
    resets_at: float | None = None
    """Seconds since the epoch; None where the limit has no window."""


class AccountState(msgspec.Struct, frozen=True):
    """What one tenant of one policy has used, for people."""

    policy: str
    tenant: str
    requests: int
    """Under way, tunnels among them (of a shared store: of this replica)."""
    tunnels: int
    """Open now (of a shared store: of all replicas)."""
    limits: tuple[Used, ...]
