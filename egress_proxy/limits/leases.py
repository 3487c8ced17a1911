"""What one replica has of a tenant's shared limits: what it has counted, and the slices of budgets that it may spend.

A :class:`SharedAccount` is a local account whose numbers are those of all replicas, as the store last told them. So the
same arithmetic goes on by itself when the store is away. Beside them stands what this replica alone has counted, which
is what it tells the store: as a whole, not as a difference, so that nothing is counted twice, whatever was lost on the
way.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from egress_proxy.core.limits import Kind, Limits
from egress_proxy.limits import gcra
from egress_proxy.limits.local import _NEAR_BYTES, _TUNNEL_GUESS, HOUR, LocalAccount
from egress_proxy.limits.store import NEAR, AccountState, Exceeded

if TYPE_CHECKING:
    from egress_proxy.limits.shared import SharedStore

#: A slice is a hundredth of its budget at most: what a replica that dies may take with it.
_PART: Final = 100
#: Bytes of a slice at least, while there is as much: a tunnel moves so many at once.
_LEAST: Final = 65_536
#: Bytes that may pass beyond a slice until the next one comes, where nothing may be counted without the store.
_OVERDRAFT: Final = 2**22
#: Seconds for which a budget that has nothing left is believed to have nothing left.
_SPENT: Final = 1.0


class Slice:
    """One budget of bytes: what this replica has spent of it, and what it may before it asks again."""

    __slots__ = (
        "held",
        "key",
        "known",
        "least",
        "limit",
        "most",
        "name",
        "others",
        "spent",
        "want",
    )

    def __init__(self, key: str, name: str, limit: int) -> None:
        self.key = key
        """Of the configuration."""
        self.name = name
        """In the store."""
        self.spent = 0
        """By this replica, within the day."""
        self.known = False
        """Whether that is all, or there may be more in the store: from before the account was let go."""
        self.held = 0
        """Up to where it may be spent."""
        self.want: float = 0
        """From where on more is asked for."""
        self.others = 0
        """What the other replicas have spent or hold."""
        self.resize(limit)

    def resize(self, limit: int) -> None:
        self.limit = limit
        self.most = max(limit // _PART, 1)
        self.least = min(_LEAST, self.most)

    @property
    def used(self) -> int:
        """By all replicas."""
        return self.others + self.spent

    def told(self, value: int, mine: int, leased: int, total: int) -> None:
        """The store's answer to ``value``, which was ``spent`` when it was asked."""
        self.spent += mine - value
        self.known = True
        self.held = mine + leased
        self.others = total - self.held
        # Of a budget that has nothing left, no tunnel asks for more.
        dry = not leased and total >= self.limit
        self.want = math.inf if dry else self.held - leased // 2

    def arguments(self, *, keep: bool) -> tuple[str | int, ...]:
        """For a script: with ``keep``, the rest of the slice is filled up, else given back."""
        most, least = (self.most, self.least) if keep else (0, 0)
        return (self.name, self.limit, int(self.known), self.spent, most, least)

    def look_arguments(self) -> tuple[str | int, ...]:
        """For a script that is to look at the budget and change nothing, while another is on its way that does."""
        return (self.name, self.limit, 0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Asked:
    """What the store was told when it was asked, for when its answer comes."""

    day: float
    requests: int
    debt: float
    hosts: dict[str, float]
    budgets: int
    """How many its answer speaks of."""
    slices: tuple[tuple[Slice, int], ...] = ()
    """Those whose slices are asked for, and what had been spent of each; empty where the budgets are only looked at."""


class SharedAccount(LocalAccount):
    """What one tenant of one policy has used, at all replicas together and at this one."""

    __slots__ = (
        *(
            "active",
            "asked_at",
            "asking",
            "debt",
            "dirty",
            "hosts_used",
            "keys",
            "own_requests",
            "own_tunnels",
        ),
        *("requests_known", "slices", "untold_hosts", "waiting"),
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
        self.asking = False
        """Whether a question about slices is on its way. Of two at once, the second would not know the first's."""
        self.asked_at = -math.inf
        """When slices were last asked for, on the monotonic clock."""
        self.keys: tuple[str, ...] = ()
        self.waiting: list[asyncio.Future[None]] = []
        """Who waits for the next answer to ``tell``."""
        super().__init__(store, policy, tenant, limits)

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
        self._name_keys()

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
        return any(each.held <= each.spent for each in self.slices)

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
            if now - self.asked_at < _SPENT and self._spent() is not None:
                return self.exceeded(Kind.BYTE_BUDGET, 0, wall)
        return None

    def exceeded(self, kind: Kind, wait: float, wall: float) -> Exceeded:
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
                detail = f"at most {limits.new_hosts_per_hour} an hour"
            case Kind.STORE_UNAVAILABLE:
                detail = "it keeps the limits of this policy"
        return self._exceeded(kind, wait, detail)

    def count(self, host: str, now: float, wall: float, *, tunnel: bool) -> None:
        """Count a request that nothing refuses, without the store, which is told later."""
        new = host not in self.hosts
        super().count(host, now, wall, tunnel=tunnel)
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
            self._store.tell_later(self)

    def count_asked(
        self, host: str, now: float, wall: float, answer: Iterator[str], *, tunnel: bool
    ) -> None:
        """Count a request that the store has counted, at ``wall`` by its clock. ``now`` is when it was asked."""
        arrival, tunnels, requests, mine, hosts, since = (next(answer) for _ in range(6))
        if tunnels != "-":
            self.tunnels = int(tunnels) - 1
        if requests != "-":
            self.requests = int(float(requests)) - 1
        super().count(host, now, wall, tunnel=tunnel)
        self.own_tunnels += tunnel
        if mine != "-":
            self.own_requests, self.requests_known = int(float(mine)), True
        if arrival != "-":
            self._arrival = now + float(arrival) - wall
        if hosts != "-":
            self._hosts_told(int(hosts), wall)
            self.hosts[host] = float(since)

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
            self._store.more_wanted(self)
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
                self._store.tell_later(self)

    # What the store is told and tells ----------------------------------------------------------------------------

    def rest(self) -> bool:
        """Between two beats: give back what nobody has spent anything of. Returns whether there is some."""
        idle, self.active = not self.active, False
        return idle and any(each.held > each.spent for each in self.slices)

    def has_counted(self) -> bool:
        """Whether a store that has forgotten everything is to be told something."""
        return bool(
            self.own_tunnels
            or self.own_requests
            or self.debt
            or self.hosts
            or any(each.spent or each.held for each in self.slices)
        )

    def admit_arguments(self, now: float) -> tuple[list[str | int], Asked]:
        """For the script ``admit``; and what its answer needs."""
        limits = self.limits
        wanted = self.slices if self.slices and self.needs_slice else ()
        arguments: list[str | int] = [
            repr(self._interval) if self._interval else "-",
            repr(self._early),
            "-" if limits.tunnels is None else limits.tunnels,
            "-" if limits.requests_per_day is None else limits.requests_per_day,
            self.expires,
            "-" if limits.new_hosts_per_hour is None else limits.new_hosts_per_hour,
            len(wanted),
        ]
        if wanted and self.asking:
            for each in wanted:
                arguments += each.look_arguments()
            return arguments, Asked(self.start, 0, 0.0, {}, len(wanted))
        for each in wanted:
            arguments += each.arguments(keep=True)
        return arguments, Asked(self.start, 0, 0.0, {}, len(wanted), self._ask(now, wanted))

    def _ask(self, now: float, slices: tuple[Slice, ...]) -> tuple[tuple[Slice, int], ...]:
        if slices:
            self.asking, self.asked_at = True, now
        return tuple((each, each.spent) for each in slices)

    def tell_arguments(
        self, now: float, wall: float, *, keep: bool
    ) -> tuple[list[str | int], Asked]:
        """For the script ``tell``, behind the replica's name and the tunnels; and what its answer needs."""
        limits = self.limits
        if limits.has_window:
            self._turn_page(wall)
        # What came long ago moves the arrival time no more.
        self.debt = min(self.debt, max(self._arrival - now, 0.0)) if self._interval else 0.0
        hosts, self.untold_hosts = self.untold_hosts, {}
        asked = Asked(
            *(self.start, self.own_requests, self.debt, hosts),
            len(self.slices),
            self._ask(now, self.slices),
        )
        arguments: list[str | int] = [repr(self.debt), repr(self._early + self._interval)]
        arguments.append(int(self.requests_known))
        arguments.append(self.own_requests if limits.requests_per_day is not None else "-")
        arguments += [self.expires, repr(HOUR), len(self.slices), len(hosts)]
        for each in self.slices:
            arguments += each.arguments(keep=keep)
        for host, since in hosts.items():
            arguments += [digest(host), repr(since)]
        return arguments, asked

    def told(self, asked: Asked, now: float, answer: list[str]) -> None:
        """The answer to ``tell``, which was asked at ``now``."""
        store_now, _, arrival, tunnels, total, mine, hosts, *leases = answer
        self.debt = max(self.debt - asked.debt, 0.0)
        if self._interval:
            self._arrival = now + float(arrival) - float(store_now) + self.debt
        if tunnels != "-":
            self.tunnels = int(tunnels)
        if hosts != "-":
            self._hosts_told(int(hosts), self._store.wall())
        if total != "-" and asked.day == self.start:
            self.own_requests += int(float(mine)) - asked.requests
            self.requests_known = True
            self.requests = int(float(total)) - int(float(mine)) + self.own_requests
        self.leased(asked, iter(leases))

    def untold(self, asked: Asked) -> None:
        """No answer came to ``tell``."""
        self.untold_hosts = asked.hosts | self.untold_hosts

    def leased(self, asked: Asked, answer: Iterator[str]) -> None:
        """What the store says about the budgets of bytes: three numbers for each that was asked for."""
        numbers = [int(float(next(answer))) for _ in range(3 * asked.budgets)]
        if asked.day == self.start:
            for place, (each, value) in enumerate(asked.slices):
                each.told(value, *numbers[3 * place : 3 * place + 3])

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
            and not self.dirty
            and all(each.held == each.spent for each in self.slices)
        )

    def _turn_page(self, wall: float) -> None:
        if self.start <= wall < self.end:
            return
        over = wall >= self.end
        super()._turn_page(wall)
        if over:
            self.own_requests = 0
            self.requests_known = False
            for each in self.slices:
                each.spent = each.held = each.want = each.others = 0
                each.known = False
        self._name_keys()

    def _name_keys(self) -> None:
        self.keys = self._store.keys_of(self.policy, self.tenant, int(self.start))

    def _byte_budgets(self) -> Iterator[tuple[str, int, int]]:
        for each in self.slices:
            yield each.key, each.used, each.limit


def digest(host: str) -> str:
    """A host's name in the store: short, whatever its length, and not to be read there. No two collide."""
    return hashlib.blake2b(host.encode(), digest_size=16).hexdigest()
