"""Which hosts a tenant has begun to talk to within the last hour.

Where clients may name their tenant, they choose how many tenants there are, and which hosts each of them talks to. So
there is a bound for one tenant, which the configuration sets, and one for all tenants of a policy together, which is
there for the memory's sake. Nothing that is still known is forgotten to make room, for then it would be free again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

#: Seconds for which a host is known.
HOUR: Final = 3600.0
#: Hosts that all tenants of one policy may have begun with within an hour: some 200 bytes each, 400 with the longest
#: names.
MAX_HOSTS: Final = 200_000
#: Seconds between two looks through all of them at least.
_LOOK: Final = 1.0


class HostPool:
    """What all tenants of one policy have together."""

    __slots__ = ("_full_until", "_members", "count")

    def __init__(self) -> None:
        self.count = 0
        """Hosts that are known."""
        self._members: dict[int, Hosts] = {}
        self._full_until = 0.0

    def join(self, hosts: Hosts) -> None:
        """It knows of one, of which there was none."""
        self._members[id(hosts)] = hosts

    def leave(self, hosts: Hosts) -> None:
        """It knows of none any more."""
        self._members.pop(id(hosts), None)

    @property
    def overfull(self) -> bool:
        """Whether more are known than there is room for."""
        return self.count > MAX_HOSTS

    def full_until(self, wall: float) -> float:
        """When there may be room for one more: 0.0 where there is now."""
        if self.count < MAX_HOSTS:
            return 0.0
        if wall < self._full_until <= wall + HOUR:
            return self._full_until
        for hosts in list(self._members.values()):
            hosts.forget(wall)
        if self.count < MAX_HOSTS:
            return 0.0
        oldest = min(hosts.oldest for hosts in self._members.values())
        self._full_until = max(oldest + HOUR, wall + _LOOK)
        return self._full_until


class Hosts(OrderedDict[str, float]):
    """Since when each host is known, in seconds since the epoch; the oldest first. To be changed by its methods."""

    __slots__ = ("_in_order", "oldest", "pool")

    def __init__(self, pool: HostPool) -> None:
        super().__init__()
        self.pool = pool
        """What it shares with others."""
        self._in_order = True
        self.oldest = 0.0
        """Since when the one that is forgotten first is known, where there is one."""

    def note(self, host: str, since: float) -> None:
        """A host is known since then."""
        if not self:
            self.pool.join(self)
            self.oldest = since
        if host in self:
            # It is as new as it says, and not as old as its place.
            del self[host]
        else:
            self.pool.count += 1
        if self and since < self[next(reversed(self))]:
            self._in_order = False
        self[host] = since
        self.oldest = min(self.oldest, since)

    def forget(self, wall: float) -> None:
        """Forget those whose hour is over."""
        if not self or wall - HOUR < self.oldest <= wall:
            return
        self._sort()
        before = len(self)
        while self:
            host = next(iter(self))
            since = self[host]
            if since > wall:
                # The clock was set back. They stay for an hour of the new time, not until the old one is there again.
                for each in self:
                    self[each] = wall
                break
            if since + HOUR > wall:
                break
            del self[host]
        self.pool.count -= before - len(self)
        self._began()

    def drop(self, host: str) -> None:
        """Forget one that somebody else knows as well."""
        if self.pop(host, None) is not None:
            self.pool.count -= 1
            self._began()

    def forget_all(self) -> None:
        """They are somebody else's to know."""
        self.pool.count -= len(self)
        self.clear()
        self._began()

    def wait(self, most: int, wall: float) -> float:
        """Seconds until there is room for one more, of so many. There is none now."""
        self._sort()
        # A smaller limit than before: so many more have to be forgotten first.
        surplus = len(self) - most
        since = next(at for place, at in enumerate(self.values()) if place == surplus)
        return since + HOUR - wall

    def rows(self, among: Iterable[str]) -> list[tuple[str, float]]:
        """Those of these that are known, and since when."""
        return [(host, self[host]) for host in among if host in self]

    def _sort(self) -> None:
        """What other replicas know for longer came later."""
        if not self._in_order:
            self._in_order = True
            for host in sorted(self, key=self.__getitem__):
                self.move_to_end(host)

    def _began(self) -> None:
        if self:
            self.oldest = self[next(iter(self))]
        else:
            self.pool.leave(self)
