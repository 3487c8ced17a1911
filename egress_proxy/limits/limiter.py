"""What the rest of the program asks about limits: may this request go on, and may these bytes pass."""

from __future__ import annotations

import time
from asyncio import Future
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from egress_proxy.core import reasons
from egress_proxy.core.limits import Direction, Kind
from egress_proxy.core.policy import CompiledPolicy, Mode
from egress_proxy.core.reason import Reason
from egress_proxy.core.tenant import Charge
from egress_proxy.limits.bucket import Bucket
from egress_proxy.limits.store import Account, AccountState, Exceeded, Store

_REASONS: Final = {
    Kind.REQUEST_RATE: reasons.REQUEST_RATE,
    Kind.TUNNELS: reasons.TUNNEL_LIMIT,
    Kind.NEW_HOSTS: reasons.NEW_HOSTS_LIMIT,
    Kind.REQUEST_BUDGET: reasons.REQUEST_BUDGET,
    Kind.BYTE_BUDGET: reasons.BYTE_BUDGET,
    Kind.STORE_UNAVAILABLE: reasons.STORE_UNAVAILABLE,
}


#: Seconds after which a flow looks again whether those before it in the line are still there.
_LONGEST_WAIT: Final = 0.5


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request goes no further. None of its charges was counted."""

    reason: Reason
    retry_after: float
    """Seconds until the same request would be let through, if its tenant sends nothing else meanwhile."""
    detail: str
    """One clause of our own words that names the limit."""
    policy: str
    tenant: str


class Admission:
    """A request or a tunnel that was let through, from ``admit`` until it is released.

    ``metered`` and ``paced`` never change: who finds them False need not call ``spend`` and ``pace``. Where it is
    paced, ``spend`` follows at once whatever has passed, for ``pace`` only looks.
    """

    __slots__ = (
        *("_accounts", "_buckets", "_limiter", "_own", "_tunnel", "_turns"),
        *("metered", "paced", "tenant"),
    )

    def __init__(self, limiter: Limiter, accounts: tuple[Account, ...], *, tunnel: bool) -> None:
        self._limiter = limiter
        self._accounts = accounts
        self._tunnel = tunnel
        self.metered = False
        """Whether bytes have to be told to ``spend``."""
        self.paced = False
        """Whether bytes have to wait for ``pace``."""
        if not limiter.enforces:
            # In audit mode bytes are counted, and nothing waits for anything.
            self.metered = any(account.limits.counts_bytes for account in accounts)
            return
        slowest: int | None = None
        for account in accounts:
            limits = account.limits
            if limits.counts_bytes:
                self.metered = True
            if limits.paces:
                self.metered = self.paced = True
                own = limits.tunnel_bandwidth
                if own is not None and (slowest is None or own < slowest):
                    slowest = own
        if self.paced:
            now = limiter.monotonic()
            self._own = None if slowest is None else (Bucket(slowest, now), Bucket(slowest, now))
            #: When the turn of each bucket's line comes, by bucket; of those in which it waits.
            self._turns: dict[Bucket, float] = {}

    def spend(self, up: int, down: int) -> Reason | None:
        """Count bytes that have passed since the last call, to the origin and to the client.

        Returns why the connection is to be closed, once a budget has nothing left. What has passed by then has passed:
        a budget is overdrawn by no more than passes between two calls.
        """
        over: Kind | None = None
        for account in self._accounts:
            over = account.spend(up, down) or over
        if self.paced:
            now = self._limiter.monotonic()
            if up:
                for bucket in self._of(Direction.UP):
                    bucket.take(up, now)
            if down:
                for bucket in self._of(Direction.DOWN):
                    bucket.take(down, now)
        if over is None or not self._limiter.enforces:
            return None
        if self._accounts:
            self._limiter.spent(self._accounts)
        return reasons.STORE_LOST if over is Kind.STORE_UNAVAILABLE else reasons.BYTE_BUDGET_SPENT

    def pace(self, direction: Direction, wanted: int) -> tuple[int, float]:
        """How many of so many bytes may be moved now, and 0.0; or 0, and seconds after which to ask again.

        ``direction`` is ``UP`` or ``DOWN``. Takes nothing; ``spend`` does.
        """
        if not self.paced:
            return wanted, 0.0
        now = self._limiter.monotonic()
        turns = self._turns
        until = 0.0
        for bucket in self._of(direction):
            allowed, turn = bucket.look(wanted, now, turns.get(bucket, 0.0))
            if turn:
                turns[bucket] = turn
                until = max(until, turn)
            else:
                wanted = min(wanted, allowed)
        if until:
            return 0, min(until - now, _LONGEST_WAIT)
        if turns:
            for bucket in self._of(direction):
                turns.pop(bucket, None)
        return wanted, 0.0

    def release(self) -> None:
        """The request or the tunnel is over. Called again, it does nothing."""
        accounts, self._accounts = self._accounts, ()
        if accounts:
            self._limiter.store.release(accounts, tunnel=self._tunnel)

    def _of(self, direction: Direction) -> list[Bucket]:
        """The buckets that bytes of one direction go through. A reload may bring and take the tenant's."""
        down = direction is Direction.DOWN
        found = [
            bucket
            for account in self._accounts
            if (bucket := account.down if down else account.up) is not None
        ]
        if self._own is not None:
            found.append(self._own[down])
        return found


class Limiter:
    """All limits of the policies in force.

    ``on_exceeded`` is told of each request that was refused and each tunnel that was cut: which limit, of which policy.
    """

    __slots__ = ("active", "enforces", "monotonic", "on_exceeded", "store")

    def __init__(
        self,
        store: Store,
        on_exceeded: Callable[[Kind, str], None],
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store = store
        self.on_exceeded = on_exceeded
        self.monotonic = monotonic
        self.active = False
        """Whether any policy in force has limits. Asked first, for each request."""
        self.enforces = True
        """Whether what is over is cut: not in audit mode."""

    def adopt(self, policy: CompiledPolicy) -> None:
        """Hold these policies' limits from now on. Of those that stay, by name, what was used stays used."""
        limits = {each.name: each.limits for each in policy.policies if each.limits is not None}
        self.store.adopt(limits)
        self.active = bool(limits)
        self.enforces = policy.mode is not Mode.AUDIT

    def admit(
        self, charges: tuple[Charge, ...], host: str, *, tunnel: bool
    ) -> Admission | Refusal | Future[Admission | Refusal]:
        """Let one request through for all that it is charged to, or refuse it for the first that has no more.

        ``host`` is the destination's, canonical. A future comes from a shared store alone; who does not wait for it to
        its end gives it to ``abandon``.
        """
        answer = self.store.admit(charges, host, tunnel=tunnel)
        if isinstance(answer, tuple):
            return Admission(self, answer, tunnel=tunnel)
        if isinstance(answer, Exceeded):
            return self._refusal(answer)
        return self._later(answer, tunnel=tunnel)

    def abandon(self, answer: Future[Admission | Refusal]) -> None:
        """Release what ``admit`` will let through, or has, for somebody who is gone."""
        answer.add_done_callback(_release)

    def spent(self, accounts: Iterable[Account]) -> None:
        """Count a tunnel that is cut because a budget of one of these has nothing left."""
        for account in accounts:
            if (kind := account.spend(0, 0)) is not None:
                self.on_exceeded(kind, account.policy)
                return

    async def states(self) -> list[AccountState]:
        """What each tenant that is known has used, by policy and tenant."""
        return await self.store.states()

    async def close(self) -> None:
        """Write down what is not written yet."""
        await self.store.close()

    def _refusal(self, exceeded: Exceeded) -> Refusal:
        self.on_exceeded(exceeded.kind, exceeded.policy)
        return Refusal(
            _REASONS[exceeded.kind],
            exceeded.retry_after,
            exceeded.detail,
            exceeded.policy,
            exceeded.tenant,
        )

    def _later(
        self, answer: Future[tuple[Account, ...] | Exceeded], *, tunnel: bool
    ) -> Future[Admission | Refusal]:
        later: Future[Admission | Refusal] = answer.get_loop().create_future()

        def arrived(answer: Future[tuple[Account, ...] | Exceeded]) -> None:
            found = answer.result()
            if isinstance(found, Exceeded):
                result: Admission | Refusal = self._refusal(found)
            else:
                result = Admission(self, found, tunnel=tunnel)
            if later.cancelled():
                if isinstance(result, Admission):
                    result.release()
            else:
                later.set_result(result)

        answer.add_done_callback(arrived)
        return later


def _release(answer: Future[Admission | Refusal]) -> None:
    if not answer.cancelled() and isinstance(found := answer.result(), Admission):
        found.release()
