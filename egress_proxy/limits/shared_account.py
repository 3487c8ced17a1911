"""What one replica tells the store about a tenant, and what it makes of the answers.

It tells the whole of what it has counted and not the difference, so that nothing is counted twice, whatever was lost on
the way. What the store may have from before, of an account that was let go, is learned before anything is told.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from egress_proxy.limits.answers import Counted, Lease, Told
from egress_proxy.limits.joint import JointAccount
from egress_proxy.limits.leases import Slice

#: Hosts that are told of at a stretch: what the store has done in about a millisecond.
HOSTS_AT_ONCE: Final = 1000


@dataclass(frozen=True, slots=True)
class Asked:
    """What the store was told when it was asked, for when its answer comes."""

    day: float
    budgets: int
    """How many its answer speaks of."""
    requests: int = 0
    tunnels: int = 0
    debt: float = 0.0
    hosts: dict[str, float] = field(default_factory=dict)
    slices: tuple[tuple[Slice, int], ...] = ()
    """Those whose slices are asked for, and what was said to be spent of each; empty where they are only looked at."""
    learns: bool = False
    """Whether it is asked what the store has from before, so that there will be more to tell."""


class SharedAccount(JointAccount):
    """What one tenant of one policy has used, at all replicas together and at this one."""

    __slots__ = ()

    def has_news(self) -> None:
        """There is something that the store does not know. It is told before long."""
        self._store.teller.later(self)

    def wants_more(self) -> None:
        """A slice comes to its end. More of it is asked for at once."""
        self._store.teller.at_once([self])

    # A request that the store is asked about ---------------------------------------------------------------------

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
        unsaid = any(each.spent and not each.known for each in wanted)
        if self.asking or unsaid:
            for each in wanted:
                arguments += each.look_arguments()
            if unsaid:
                self.wants_more()
            return arguments, Asked(self.start, len(wanted))
        for each in wanted:
            arguments += each.admit_arguments()
        slices = tuple((each, each.spent) for each in wanted)
        self._ask(now, slices)
        return arguments, Asked(self.start, len(wanted), slices=slices)

    def count_asked(
        self, host: str, now: float, wall: float, counted: Counted, asked: Asked, *, tunnel: bool
    ) -> None:
        """Count a request that the store has counted, at ``wall`` by its clock. ``now`` is when it was asked."""
        if counted.tunnels is not None:
            self.tunnels = counted.tunnels - 1
        if counted.requests is not None and counted.mine is not None:
            self._requests_counted(counted.requests, counted.mine, asked)
        self.count(host, now, wall, tunnel=tunnel)
        self.own_tunnels += tunnel
        if counted.arrival is not None:
            self._arrival = now + counted.arrival - wall
        if counted.hosts is not None and counted.since is not None:
            self.hosts.forget(wall)
            if self.hosts.pool.overfull:
                # It costs a question each time, and the store knows it.
                self.hosts.drop(host)
            elif self.hosts.get(host) != counted.since:
                self.hosts.note(host, counted.since)
            self._hosts_told(counted.hosts, wall)
        self.leased(asked, counted.leases)

    def _requests_counted(self, total: int, mine: int, asked: Asked) -> None:
        """The store has counted one more, which is not among ``requests`` yet, but will be."""
        if asked.day != self.start:
            # On the day before: what it says is not about this one.
            self.requests -= 1
            return
        # A store whose successor missed the last of what it was told knows of less than was counted here.
        own = max(self.own_requests + 1, mine) if self.requests_known else self.own_requests + mine
        self.own_requests, self.requests_known = own, True
        self.requests = total - mine + own - 1
        if own != mine:
            self.has_news()

    # What it has counted -----------------------------------------------------------------------------------------

    def rest(self) -> bool:
        """Between two beats: give back what nobody has spent anything of. Returns whether there is some."""
        idle, self.active = not self.active, False
        return idle and self.holds

    def _ask(self, now: float, slices: tuple[tuple[Slice, int], ...]) -> None:
        if slices:
            self.asking, self.asked_at = True, now

    def tell_arguments(
        self, now: float, wall: float, *, keep: bool
    ) -> tuple[list[str | int], Asked]:
        """For the script ``tell``, behind the replica's name; and what its answer needs."""
        limits = self.limits
        if limits.has_window:
            self._turn_page(wall)
        # What came long ago moves the arrival time no more.
        self.debt = min(self.debt, max(self._arrival - now, 0.0)) if self._interval else 0.0
        hosts = dict(islice(self.untold_hosts.items(), HOSTS_AT_ONCE))
        for host in hosts:
            del self.untold_hosts[host]
        counts = limits.requests_per_day is not None
        asked = Asked(
            self.start,
            len(self.slices),
            self.own_requests if self.requests_known else 0,
            self.own_tunnels,
            self.debt,
            hosts,
            tuple((each, each.spent if each.known else 0) for each in self.slices),
            (counts and not self.requests_known) or not all(each.known for each in self.slices),
        )
        self._ask(now, asked.slices)
        arguments: list[str | int] = [
            "-" if limits.tunnels is None else self.own_tunnels,
            repr(self.debt),
            repr(self._early + self._interval),
            int(self.requests_known),
            asked.requests if counts else "-",
            self.expires,
            "-" if limits.new_hosts_per_hour is None else len(hosts),
            len(self.slices),
        ]
        for each in self.slices:
            arguments += each.tell_arguments(keep=keep)
        if limits.new_hosts_per_hour is not None:
            for host, since in hosts.items():
                arguments += [digest(host), repr(since)]
        return arguments, asked

    def told(self, asked: Asked, now: float, answer: Told) -> bool:
        """The answer to ``tell``, which was asked at ``now``. Returns whether there is more to tell."""
        self.debt = max(self.debt - asked.debt, 0.0)
        if self._interval:
            self._arrival = now + answer.arrival - answer.wall + self.debt
        if answer.tunnels is not None:
            self.tunnels = answer.tunnels - asked.tunnels + self.own_tunnels
        if answer.hosts is not None:
            self._hosts_told(answer.hosts, answer.wall)
        if answer.requests is not None and answer.mine is not None and asked.day == self.start:
            self.own_requests += answer.mine - asked.requests
            self.requests_known = True
            self.requests = answer.requests - answer.mine + self.own_requests
        self.leased(asked, answer.leases)
        return asked.learns or bool(self.untold_hosts)

    def untold(self, asked: Asked) -> None:
        """No answer came to ``tell``."""
        self.untold_hosts = asked.hosts | self.untold_hosts

    def tell_all(self) -> None:
        """Have everything told again: the store may have forgotten it."""
        self.untold_hosts = dict(self.hosts)

    def leased(self, asked: Asked, leases: tuple[Lease, ...]) -> None:
        """What the store says about the budgets of bytes, if it was asked for more of them."""
        if asked.slices and asked.day == self.start:
            for (each, value), lease in zip(asked.slices, leases, strict=True):
                each.told(value, lease)


def digest(host: str) -> str:
    """A host's name in the store: short, whatever its length, and not to be read there. No two collide."""
    return hashlib.blake2b(host.encode(), digest_size=16).hexdigest()
