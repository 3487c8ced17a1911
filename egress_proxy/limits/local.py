"""Counters in this process's memory.

A tenant's account is made with its first request, and let go when it is as good as new: so nobody gains anything by
making the table overflow. Where clients may name their tenant, they choose how many there are; of those beyond
``MAX_TENANTS`` of a policy, or that come while its tenants know as many hosts as they may together, all are held to one
account together, until there is room.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from egress_proxy.core.limits import Kind, Limits
from egress_proxy.core.tenant import Charge
from egress_proxy.limits import gcra
from egress_proxy.limits.bucket import Bucket
from egress_proxy.limits.hosts import HOUR, HostPool, Hosts
from egress_proxy.limits.store import NEAR, Account, AccountState, Exceeded, Near, Used
from egress_proxy.limits.windows import day_of, zone

#: Accounts of one policy: 1 KiB each, hosts apart.
MAX_TENANTS: Final = 10_000
#: Whose account those beyond share. No tenant can have this name.
OVERFLOW: Final = "*"
#: Accounts that are looked at for each new one, the ones that were looked at longest ago first. With two, the table is
#: gone through before it has grown to twice what is in use.
_LOOKS: Final = 2

#: Said to whom there is no room for another host among those of all tenants.
TOO_MANY_HOSTS: Final = "of all tenants together, as many as are remembered"
#: Seconds after which a tenant that has as many tunnels as it may is told to try again: nobody knows.
_TUNNEL_GUESS: Final = 5.0

#: Accounts that are told about before others have their turn.
_STATES_AT_ONCE: Final = 500

_NEAR_REQUESTS: Final = 1
_NEAR_BYTES: Final = 2


class LocalAccount:
    """What one tenant of one policy has used."""

    __slots__ = (
        *("_arrival", "_count_bytes", "_early", "_interval", "_near", "_near_hosts_at", "_store"),
        *("bytes_down", "bytes_up", "down", "end", "held", "hosts", "limits", "policy"),
        *("requests", "start", "tenant", "tunnels", "unsaved", "unsaved_hosts", "up"),
    )

    def __init__(self, store: LocalStore, policy: str, tenant: str, limits: Limits) -> None:
        self._store = store
        self.policy = policy
        self.tenant = tenant
        self.held = 0
        """Requests under way, tunnels among them."""
        self.tunnels = 0
        """Open now."""
        self.requests = 0
        """Of the day, as are the bytes."""
        self.bytes_up = 0
        self.bytes_down = 0
        self.start = 0.0
        """Of the day, in seconds since the epoch."""
        self.end = 0.0
        # What those share who came late has a bound of its own.
        self.hosts = Hosts(HostPool() if tenant == OVERFLOW else store.pool_of(policy))
        """Those that it began to talk to within the last hour."""
        self.unsaved = False
        """Whether whoever keeps counters beyond the process knows that they have changed."""
        self.unsaved_hosts: set[str] = set()
        """Which hosts are new to them."""
        self.up: Bucket | None = None
        self.down: Bucket | None = None
        self._arrival = 0.0
        self._near = 0
        self._near_hosts_at = 0.0
        self.limit(limits)

    def change(self, limits: Limits) -> None:
        """Hold other limits from now on. What is used stays used."""
        now, wall = self._store.monotonic(), self._store.wall()
        if self.end:
            # By the old time zone first: whose day is over begins anew.
            self._turn_page(wall)
        owed = (self._arrival - now) / self._interval if self._interval else 0.0
        self.limit(limits)
        # So many requests take longer or less long now, and nobody owes more than a whole burst.
        self._arrival = now + min(max(owed, 0.0) * self._interval, self._early + self._interval)
        if limits.has_window and self.end:
            self.start, self.end = day_of(wall, zone(limits.time_zone))

    def limit(self, limits: Limits) -> None:
        """Work out what goes by the limits, at the beginning and at each change."""
        self.limits = limits
        now = self._store.monotonic()
        rate = limits.requests_per_second
        self._interval = 0.0 if rate is None else 1.0 / rate
        self._early = gcra.tolerance(limits.burst_or_default, self._interval)
        self._count_bytes = limits.counts_bytes
        if limits.bandwidth is None:
            self.up = self.down = None
        elif self.up is None or self.down is None:
            self.up, self.down = Bucket(limits.bandwidth, now), Bucket(limits.bandwidth, now)
        else:
            self.up.set_rate(limits.bandwidth, now)
            self.down.set_rate(limits.bandwidth, now)

    # One request -------------------------------------------------------------------------------------------------

    def refusal(self, host: str, now: float, wall: float, *, tunnel: bool) -> Exceeded | None:
        """Why the request cannot be let through. Counts nothing."""
        limits = self.limits
        if self._interval:
            wait = gcra.wait(self._arrival, now, self._early)
            if wait:
                detail = f"at most {limits.requests_per_second:g} a second"
                if limits.burst_or_default > 1:
                    detail += f", and {limits.burst_or_default} at once"
                return self._exceeded(Kind.REQUEST_RATE, wait, detail)
        if tunnel and limits.tunnels is not None and self.tunnels >= limits.tunnels:
            detail = f"at most {limits.tunnels} at once"
            return self._exceeded(Kind.TUNNELS, _TUNNEL_GUESS, detail)
        if limits.requests_per_day is not None or self._count_bytes:
            self._turn_page(wall)
            most = limits.requests_per_day
            if most is not None and self.requests >= most:
                return self._exceeded(Kind.REQUEST_BUDGET, self.end - wall, f"at most {most} a day")
            if self._count_bytes and (spent := self._spent()) is not None:
                return self._exceeded(Kind.BYTE_BUDGET, self.end - wall, spent)
        most = limits.new_hosts_per_hour
        if most is not None:
            hosts = self.hosts
            hosts.forget(wall)
            if host not in hosts:
                if len(hosts) >= most:
                    wait, detail = hosts.wait(most, wall), f"at most {most} an hour"
                    return self._exceeded(Kind.NEW_HOSTS, wait, detail)
                until = hosts.pool.full_until(wall)
                if until:
                    return self._exceeded(Kind.NEW_HOSTS, until - wall, TOO_MANY_HOSTS)
        return None

    def count(self, host: str, now: float, wall: float, *, tunnel: bool) -> None:
        """Count a request that nothing refuses, and hold the account for it."""
        limits = self.limits
        self.held += 1
        if tunnel:
            self.tunnels += 1
        if self._interval:
            self._arrival = gcra.counted(self._arrival, now, self._interval)
        most = limits.requests_per_day
        if most is not None:
            self.requests += 1
            if self.requests >= most * NEAR and not self._near & _NEAR_REQUESTS:
                self._near |= _NEAR_REQUESTS
                self._tell_near(Kind.REQUEST_BUDGET, self.requests, most, self.end)
            self._changed()
        most = limits.new_hosts_per_hour
        if most is not None and host not in self.hosts:
            self.hosts.note(host, wall)
            if self._store.on_change is not None:
                self.unsaved_hosts.add(host)
            known = len(self.hosts)
            if known >= most * NEAR and wall - self._near_hosts_at >= HOUR:
                self._near_hosts_at = wall
                self._tell_near(Kind.NEW_HOSTS, known, most, self.hosts.oldest + HOUR)
            self._changed()

    def spend(self, up: int, down: int) -> Kind | None:
        """Count bytes that have passed. Returns ``byte_budget`` once a budget has nothing left."""
        if not self._count_bytes:
            return None
        self._turn_page(self._store.wall())
        self.bytes_up += up
        self.bytes_down += down
        if up or down:
            self._changed()
        limits = self.limits
        spent: Kind | None = None
        for used, most in (
            (self.bytes_up, limits.bytes_up_per_day),
            (self.bytes_down, limits.bytes_down_per_day),
            (self.bytes_up + self.bytes_down, limits.bytes_per_day),
        ):
            if most is None:
                continue
            if used >= most:
                spent = Kind.BYTE_BUDGET
            if used >= most * NEAR and not self._near & _NEAR_BYTES:
                self._near |= _NEAR_BYTES
                self._tell_near(Kind.BYTE_BUDGET, used, most, self.end)
        return spent

    def release(self, *, tunnel: bool) -> None:
        """A request that was counted is over."""
        self.held -= 1
        if tunnel:
            self.tunnels -= 1

    # State -------------------------------------------------------------------------------------------------------

    def restore(self, day: tuple[float, float], counts: tuple[int, int, int]) -> None:
        """Take over what an earlier process counted: requests, bytes up, bytes down of this day."""
        self.start, self.end = day
        self.requests, self.bytes_up, self.bytes_down = counts
        # Whoever was warned then is not warned again.
        limits = self.limits
        if limits.requests_per_day is not None and counts[0] >= limits.requests_per_day * NEAR:
            self._near |= _NEAR_REQUESTS
        if any(used >= most * NEAR for _, used, most in self._byte_budgets()):
            self._near |= _NEAR_BYTES

    def is_new(self, now: float, wall: float) -> bool:
        """Whether nothing would be different if the account was made anew."""
        if self.held or self._arrival > now:
            return False
        if (self.requests or self.bytes_up or self.bytes_down) and wall < self.end:
            return False
        self.hosts.forget(wall)
        buckets = (self.up, self.down)
        return not self.hosts and all(bucket is None or bucket.full(now) for bucket in buckets)

    def state(self, wall: float) -> AccountState:
        """What is used, for people."""
        limits = self.limits
        self._turn_page(wall)
        self.hosts.forget(wall)
        used: list[Used] = []
        if self._interval:
            now = self._store.monotonic()
            taken = gcra.taken(self._arrival, now, self._interval)
            again_at = wall + self._arrival - now if taken else None
            used.append(Used("requests_per_second", taken, limits.burst_or_default, again_at))
        if limits.tunnels is not None:
            used.append(Used("tunnels", self.tunnels, limits.tunnels))
        if limits.requests_per_day is not None:
            used.append(Used("requests_per_day", self.requests, limits.requests_per_day, self.end))
        used += [Used(key, count, most, self.end) for key, count, most in self._byte_budgets()]
        if limits.new_hosts_per_hour is not None:
            resets_at = self.hosts.oldest + HOUR if self.hosts else None
            hosts = Used(
                "new_hosts_per_hour", len(self.hosts), limits.new_hosts_per_hour, resets_at
            )
            used.append(hosts)
        return AccountState(self.policy, self.tenant, self.held, self.tunnels, tuple(used))

    def _turn_page(self, wall: float) -> None:
        """Begin another day where this one is over."""
        if self.start <= wall < self.end:
            return
        if wall >= self.end:
            self.requests = self.bytes_up = self.bytes_down = self._near = 0
        # Else the clock was set back, by which nobody gets anything again.
        limits = self.limits
        if limits.has_window:
            self.start, self.end = day_of(wall, zone(limits.time_zone))

    def _byte_budgets(self) -> Iterator[tuple[str, int, int]]:
        """Each budget's key, what is used of it, and its size."""
        limits = self.limits
        for key, used, most in (
            ("bytes_per_day.up", self.bytes_up, limits.bytes_up_per_day),
            ("bytes_per_day.down", self.bytes_down, limits.bytes_down_per_day),
            ("bytes_per_day", self.bytes_up + self.bytes_down, limits.bytes_per_day),
        ):
            if most is not None:
                yield key, used, most

    def _spent(self) -> str | None:
        """Which byte budget has nothing left, in words."""
        for key, used, most in self._byte_budgets():
            if used >= most:
                way = key.partition(".")[2]
                return f"at most {most} bytes a day" + (f", {way}" if way else "")
        return None

    def _exceeded(self, kind: Kind, wait: float, detail: str) -> Exceeded:
        return Exceeded(kind, self.policy, self.tenant, wait, detail)

    def _tell_near(self, kind: Kind, used: int, most: int, resets_at: float) -> None:
        self._store.on_near(Near(kind, self.policy, self.tenant, used, most, resets_at))

    def _changed(self) -> None:
        if not self.unsaved and self._store.on_change is not None:
            self.unsaved = True
            self._store.on_change(self)


class LocalStore:
    """Counters of all tenants of one process."""

    def __init__(
        self,
        on_near: Callable[[Near], None],
        *,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.on_near = on_near
        self.monotonic = monotonic
        """Rates and bandwidth go by this clock, which nobody sets."""
        self.wall = wall
        """Days and hours go by this one: seconds since the epoch."""
        self.on_change: Callable[[LocalAccount], None] | None = None
        """Told once that an account's day or hosts have changed, until its ``unsaved`` is taken back."""
        self._limits: Mapping[str, Limits] = {}
        self._accounts: dict[str, OrderedDict[str, LocalAccount]] = {}
        self._pools: dict[str, HostPool] = {}

    def adopt(self, limits: Mapping[str, Limits]) -> None:
        """Hold these limits from now on, by the names of their policies."""
        # Each name is looked up before anything is changed: the system's database may be gone.
        for each in limits.values():
            zone(each.time_zone)
        self._limits = limits
        self._accounts = {name: all_ for name, all_ in self._accounts.items() if name in limits}
        self._pools = {name: pool for name, pool in self._pools.items() if name in limits}
        for name, accounts in self._accounts.items():
            for account in accounts.values():
                if account.limits != limits[name]:
                    account.change(limits[name])

    def admit(
        self, charges: tuple[Charge, ...], host: str, *, tunnel: bool
    ) -> tuple[Account, ...] | Exceeded:
        """Count one request for all the charges, or for none: the first limit in their order refuses."""
        now, wall = self.monotonic(), self.wall()
        found: list[LocalAccount] = []
        for policy, tenant in charges:
            accounts = self._accounts.get(policy.name)
            account = accounts.get(tenant) if accounts is not None else None
            if account is None:
                limits = self._limits.get(policy.name) or policy.limits or Limits()
                account = self.account(policy.name, tenant, limits)
            exceeded = account.refusal(host, now, wall, tunnel=tunnel)
            if exceeded is not None:
                return exceeded
            found.append(account)
        for account in found:
            account.count(host, now, wall, tunnel=tunnel)
        return tuple(found)

    def release(self, accounts: tuple[Account, ...], *, tunnel: bool) -> None:
        """Give back what ``admit`` returned, once."""
        for account in accounts:
            assert isinstance(account, LocalAccount)  # noqa: S101 - ``admit`` made it
            account.release(tunnel=tunnel)

    async def states(self) -> list[AccountState]:
        """What each tenant that is known has used, by policy and tenant."""
        now, wall = self.monotonic(), self.wall()
        known = [
            account
            for _, accounts in sorted(self._accounts.items())
            for _, account in sorted(accounts.items())
        ]
        found: list[AccountState] = []
        for number, account in enumerate(known, 1):
            if not account.is_new(now, wall):
                found.append(account.state(wall))
            if number % _STATES_AT_ONCE == 0:
                await asyncio.sleep(0)
        return found

    async def close(self) -> None:
        """Nothing is to be done."""

    def pool_of(self, policy: str) -> HostPool:
        """What all tenants of a policy know of hosts together."""
        found = self._pools.get(policy)
        if found is None:
            found = self._pools[policy] = HostPool()
        return found

    def account(self, policy: str, tenant: str, limits: Limits) -> LocalAccount:
        """The tenant's account, made if there is none; where there are too many, the one that the rest share."""
        accounts = self._accounts.setdefault(policy, OrderedDict())
        found = accounts.get(tenant)
        if found is not None:
            return found
        now, wall = self.monotonic(), self.wall()
        for _ in range(min(_LOOKS, len(accounts))):
            oldest, account = next(iter(accounts.items()))
            if account.is_new(now, wall):
                # What it knows of hosts, somebody else knows as well.
                account.hosts.forget_all()
                del accounts[oldest]
            else:
                accounts.move_to_end(oldest)
        if tenant != OVERFLOW and (
            len(accounts) - (OVERFLOW in accounts) >= MAX_TENANTS
            or self.pool_of(policy).full_until(wall)
        ):
            return self.account(policy, OVERFLOW, limits)
        account = accounts[tenant] = self._new_account(policy, tenant, limits)
        return account

    def _new_account(self, policy: str, tenant: str, limits: Limits) -> LocalAccount:
        return LocalAccount(self, policy, tenant, limits)
