"""What all replicas together have used of a tenant's limits, as one of them knows it.

A :class:`JointAccount` is a local account whose numbers are those of all replicas, as the store last told them. So the
same arithmetic goes on by itself when the store is away. Beside them stands what this replica alone has counted.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from egress_proxy.core.limits import Kind, Limits
from egress_proxy.limits import gcra
from egress_proxy.limits.answers import Refused
from egress_proxy.limits.hosts import HOUR
from egress_proxy.limits.leases import Slice
from egress_proxy.limits.local import (
    _NEAR_BYTES,
    _TUNNEL_GUESS,
    TOO_MANY_HOSTS,
    LocalAccount,
)
from egress_proxy.limits.store import NEAR, AccountState, Exceeded

if TYPE_CHECKING:
    from egress_proxy.limits.shared import SharedStore

#: Bytes that may pass beyond a slice until the next one comes, where nothing may be counted without the store.
_OVERDRAFT: Final = 2**22
#: Seconds for which a budget that has nothing left is believed to have nothing left.
_SPENT: Final = 1.0


class JointAccount(LocalAccount):
    """What one tenant of one policy has used, at all replicas together and at this one."""

    __slots__ = (
        *(
            "active",
            "asked",
            "asked_at",
            "asking",
            "debt",
            "dirty",
            "hosts_used",
            "keys",
            "own_requests",
            "own_tunnels",
        ),
        *("no_bytes_until", "requests_known", "slices", "untold_hosts", "waiting"),
    )

    _store: SharedStore

    def __init__(self, store: SharedStore, policy: str, tenant: str, limits: Limits) -> None:
        self.own_tunnels = 0
        """Open at this replica; all of them are in ``tunnels``."""
        self.own_requests = 0
        """Of the day, at this replica; of all they are in ``requests``."""
        self.requests_known = False
        """Whether that is all, or there may be more in the store."""
        self.slices: tuple[Slice, ...] = ()
        self.debt = 0.0
        """Seconds by which requests that the store does not know of move the arrival time."""
        self.untold_hosts: dict[str, float] = {}
        """Hosts that the store does not know of, and since when they are known."""
        self.hosts_used = 0
        """How many are known at all replicas, as the store last told."""
        self.dirty = False
        """Whether there is something to tell."""
        self.active = True
        """Whether bytes have passed since the last beat."""
        self.asked = 0
        """Requests about which a question is on its way: they will be counted here."""
        self.asking = False
        """Whether a question about slices is on its way. Of two at once, the second would not know the first's."""
        self.asked_at = -math.inf
        """When slices were last asked for, on the monotonic clock."""
        self.no_bytes_until = -math.inf
        """Until when a budget is believed to have nothing left, as the store has said, on the monotonic clock."""
        self.keys: tuple[str, ...] = ()
        self.waiting: list[asyncio.Future[None]] = []
        """Who waits for the next answer to ``tell``."""
        super().__init__(store, policy, tenant, limits)

    def change(self, limits: Limits) -> None:
        """Hold other limits from now on. What is used stays used, though another time zone has other days."""
        before = self.keys
        super().change(limits)
        self._name_keys()
        if self.keys != before and self.has_counted():
            self.has_news()

    def limit(self, limits: Limits) -> None:
        """Hold these limits from now on. What is used stays used."""
        super().limit(limits)
        before = {each.name: each for each in self.slices}
        slices: list[Slice] = []
        for key, name, limit in (
            ("bytes_per_day.up", "up", limits.bytes_up_per_day),
            ("bytes_per_day.down", "down", limits.bytes_down_per_day),
            ("bytes_per_day", "both", limits.bytes_per_day),
        ):
            if limit is not None:
                each = before.get(name) or Slice(key, name, limit)
                each.resize(limit)
                slices.append(each)
        self.slices = tuple(slices)
        self.no_bytes_until = -math.inf
        self._name_keys()

    def has_news(self) -> None:
        """There is something that the store does not know. To be told it, before long."""
        raise NotImplementedError

    def wants_more(self) -> None:
        """A slice comes to its end. To be asked for more of it, at once."""
        raise NotImplementedError

    # One request -------------------------------------------------------------------------------------------------

    def must_ask(self, host: str, wall: float, *, tunnel: bool) -> bool:
        """Whether the request needs the store, or can be counted by what this replica holds."""
        limits = self.limits
        if self._interval or (tunnel and limits.tunnels is not None):
            return True
        if limits.has_window:
            self._turn_page(wall)
            if limits.requests_per_day is not None or self.needs_slice:
                return True
        if limits.new_hosts_per_hour is not None:
            since = self.hosts.get(host)
            return since is None or since + HOUR <= wall
        return False

    @property
    def needs_slice(self) -> bool:
        """Whether a budget of bytes has nothing here that may be spent."""
        return any(each.rest <= 0 for each in self.slices)

    @property
    def is_shared(self) -> bool:
        """Whether any of its limits is the store's business."""
        limits = self.limits
        return bool(
            self._interval
            or limits.has_window
            or limits.tunnels is not None
            or limits.new_hosts_per_hour is not None
        )

    def surely_refused(self, now: float, wall: float, *, tunnel: bool) -> Exceeded | None:
        """Why the store would refuse as well, as far as that is known: what only grows has grown enough."""
        limits = self.limits
        if self._interval:
            wait = gcra.wait(self._arrival, now, self._early)
            if wait:
                return self.exceeded(Kind.REQUEST_RATE, wait, wall)
        if tunnel and limits.tunnels is not None and self.own_tunnels >= limits.tunnels:
            return self.exceeded(Kind.TUNNELS, 0, wall)
        if limits.has_window:
            self._turn_page(wall)
            most = limits.requests_per_day
            if most is not None and self.requests >= most:
                return self.exceeded(Kind.REQUEST_BUDGET, 0, wall)
            spent = now - self.asked_at < _SPENT and self._spent() is not None
            if spent or now < self.no_bytes_until:
                return self.exceeded(Kind.BYTE_BUDGET, 0, wall)
        return None

    def refused(self, now: float, found: Refused) -> None:
        """The store has refused a request that was asked about at ``now``. So it would the next, for a moment."""
        if found.kind is Kind.REQUEST_BUDGET:
            # Others have used it up, which nobody gives back.
            self.requests = max(self.requests, self.limits.requests_per_day or 0)
        elif found.kind is Kind.BYTE_BUDGET:
            self.no_bytes_until = now + _SPENT

    def exceeded(
        self, kind: Kind, wait: float, wall: float, *, all_hosts: bool = False
    ) -> Exceeded:
        """In the words of a local account."""
        limits, detail = self.limits, ""
        match kind:
            case Kind.REQUEST_RATE:
                detail = f"at most {limits.requests_per_second:g} a second"
                if limits.burst_or_default > 1:
                    detail += f", and {limits.burst_or_default} at once"
            case Kind.TUNNELS:
                wait, detail = _TUNNEL_GUESS, f"at most {limits.tunnels} at once"
            case Kind.REQUEST_BUDGET:
                wait, detail = self.end - wall, f"at most {limits.requests_per_day} a day"
            case Kind.BYTE_BUDGET:
                wait, detail = self.end - wall, self._spent() or "of bytes a day, nothing is left"
            case Kind.NEW_HOSTS:
                most = limits.new_hosts_per_hour
                detail = TOO_MANY_HOSTS if all_hosts else f"at most {most} an hour"
            case Kind.STORE_UNAVAILABLE:
                detail = "it keeps the limits of this policy"
        return self._exceeded(kind, wait, detail)

    def count_alone(self, host: str, now: float, wall: float, *, tunnel: bool) -> None:
        """Count a request that nothing refuses, without the store, which is told later."""
        new = host not in self.hosts
        self.count(host, now, wall, tunnel=tunnel)
        limits = self.limits
        self.own_tunnels += tunnel
        if limits.requests_per_day is not None:
            self.own_requests += 1
        if self._interval:
            self.debt = min(self.debt + self._interval, self._early + self._interval)
        if new and host in self.hosts:
            self.untold_hosts[host] = wall
        if (
            self._interval
            or limits.requests_per_day is not None
            or self.untold_hosts
            or (tunnel and limits.tunnels is not None)
        ):
            self.has_news()

    def _hosts_told(self, used: int, wall: float) -> None:
        self.hosts_used = used
        most = self.limits.new_hosts_per_hour
        if most is not None and used >= most * NEAR and wall - self._near_hosts_at >= HOUR:
            self._near_hosts_at = wall
            self._tell_near(Kind.NEW_HOSTS, used, most, wall + HOUR)

    def spend(self, up: int, down: int) -> Kind | None:
        """Count bytes that have passed. Returns ``byte_budget`` once a budget has nothing left."""
        if not self.slices:
            return None
        self._turn_page(self._store.wall())
        self.active = True
        spent: Kind | None = None
        more = False
        for each in self.slices:
            each.spent += up + down if each.name == "both" else up if each.name == "up" else down
            used = each.used
            if used >= each.limit:
                spent = Kind.BYTE_BUDGET
            if used >= each.limit * NEAR and not self._near & _NEAR_BYTES:
                self._near |= _NEAR_BYTES
                self._tell_near(Kind.BYTE_BUDGET, used, each.limit, self.end)
            if each.spent >= each.want:
                more = True
        if more and (up or down) and not self.asking:
            self.wants_more()
        if spent is None and self._store.closes:
            # While the next slice is on its way, a fast tunnel goes on, but not far.
            up_to = 1 if self._store.up else 0
            if any(
                each.spent >= each.held + up_to * max(each.most, _OVERDRAFT) for each in self.slices
            ):
                return Kind.STORE_UNAVAILABLE
        return spent

    def release(self, *, tunnel: bool) -> None:
        """A request that was counted is over."""
        super().release(tunnel=tunnel)
        if tunnel:
            self.own_tunnels -= 1
            if self.limits.tunnels is not None:
                self.has_news()

    @property
    def holds(self) -> bool:
        """Whether there is a slice of which something is left."""
        return any(each.rest > 0 for each in self.slices)

    def has_counted(self) -> bool:
        """Whether a store that has forgotten everything is to be told something."""
        return bool(
            self.own_tunnels
            or self.own_requests
            or self.debt
            or self.hosts
            or any(each.spent or each.held for each in self.slices)
        )

    @property
    def expires(self) -> int:
        """When the day's key may go: milliseconds since the epoch. Late news of the day still finds it."""
        return int((self.end + HOUR) * 1000)

    def state(self, wall: float) -> AccountState:
        """What is used, for people."""
        state = super().state(wall)
        return replace(
            state,
            limits=tuple(
                replace(each, used=max(each.used, self.hosts_used))
                if each.limit == "new_hosts_per_hour"
                else each
                for each in state.limits
            ),
        )

    def is_new(self, now: float, wall: float) -> bool:  # noqa: ARG002 - it needs no clock
        """Whether it can be let go: whatever it has counted, the store knows."""
        return (
            not self.held
            and not self.asked
            and not self.dirty
            and all(each.rest == 0 for each in self.slices)
        )

    def _turn_page(self, wall: float) -> None:
        if self.start <= wall < self.end:
            return
        over = wall >= self.end
        super()._turn_page(wall)
        if over:
            self.no_bytes_until = -math.inf
            self.own_requests = 0
            self.requests_known = False
            for each in self.slices:
                each.begin_day()
        self._name_keys()

    def _name_keys(self) -> None:
        self.keys = self._store.keys_of(self.policy, self.tenant, int(self.start))

    def _byte_budgets(self) -> Iterator[tuple[str, int, int]]:
        for each in self.slices:
            yield each.key, each.used, each.limit
