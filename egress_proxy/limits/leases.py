"""A budget of bytes that replicas share, as one of them sees it: what it has spent, and the slice that it may spend.

A slice is leased from the store ahead of time, so that no tunnel waits for it, and what is left of it is given back.
"""

from __future__ import annotations

import math
from typing import Final

from egress_proxy.limits.answers import Lease

#: A slice is a hundredth of its budget at most: what a replica that dies may take with it.
_PART: Final = 100
#: Bytes of a slice at least, while there is as much: a tunnel moves so many at once.
_LEAST: Final = 65_536


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
        """The budget is another one. What is spent stays spent."""
        self.limit = limit
        self.most = max(limit // _PART, 1)
        self.least = min(_LEAST, self.most)
        # There may be something to ask for again.
        self.want = min(self.want, self.held)

    def begin_day(self) -> None:
        """Nothing is spent of it, and nothing held."""
        self.spent = self.held = self.others = 0
        self.want, self.known = 0, False

    @property
    def used(self) -> int:
        """By all replicas."""
        return self.others + self.spent

    @property
    def rest(self) -> int:
        """What may be spent without asking; nothing, or less, where more has to be asked for first."""
        return self.held - self.spent

    def admit_arguments(self) -> tuple[str | int, ...]:
        """For ``admit``: to ask for as much as it may hold."""
        return (self.name, self.limit, int(self.known), self.spent, self.most, self.least)

    def look_arguments(self) -> tuple[str | int, ...]:
        """For ``admit``: to look at the budget and change nothing."""
        return (self.name, self.limit, 0, 0, 0, 0)

    def tell_arguments(self, *, keep: bool) -> tuple[str | int, ...]:
        """For ``tell``: to say what is spent; with ``keep``, the rest of the slice is filled up, else given back.

        What the store has from before is learned first, and nothing told: whatever is told is the whole then, and
        harmless if its answer is lost and it is told again.
        """
        if not self.known:
            return self.look_arguments()
        if keep:
            return self.admit_arguments()
        # From now on: the answer may be lost, and somebody else have it.
        self.held = min(self.held, self.spent)
        return (self.name, self.limit, 1, self.spent, 0, 0)

    def told(self, value: int, lease: Lease) -> None:
        """The store's answer to ``value``, which was what had been spent when it was asked."""
        self.spent += lease.mine - value
        self.known = True
        self.held = lease.mine + lease.leased
        self.others = lease.total - self.held
        # Of a budget that has nothing left, no tunnel asks for more.
        dry = not lease.leased and lease.total >= self.limit
        self.want = math.inf if dry else self.held - lease.leased // 2
