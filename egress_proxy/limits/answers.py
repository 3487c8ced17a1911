"""What the store's scripts answer, as values. All of an answer is read before anything is done about any of it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any, Final, NamedTuple

from egress_proxy.core.limits import Kind

#: The scripts' names of limits: those of ``Kind``, and the bound of all tenants' hosts.
_KINDS: Final = {kind.value: kind for kind in Kind}
_ALL_HOSTS: Final = "all_hosts"


class Lease(NamedTuple):
    """One budget of bytes."""

    mine: int
    """What this replica has spent, as the store has it now."""
    leased: int
    """What it may spend beyond that."""
    total: int
    """What all replicas have spent or hold."""


class Counted(NamedTuple):
    """``admit`` has counted one charge. What was not asked for is None."""

    arrival: float | None
    tunnels: int | None
    requests: int | None
    """Of all replicas."""
    mine: int | None
    """Of these, this replica's."""
    hosts: int | None
    """How many are known."""
    since: float | None
    """Since when this one is."""
    leases: tuple[Lease, ...]


class Admitted(NamedTuple):
    """``admit`` has counted all charges."""

    wall: float
    """The store's clock."""
    charges: tuple[Counted, ...]


class Refused(NamedTuple):
    """``admit`` has counted nothing."""

    wall: float
    charge: int
    """Which one was over its limit; the first is 0."""
    kind: Kind
    all_hosts: bool
    """Whether it is not the tenant, but all of the policy together that know too many hosts."""
    wait: float


class Told(NamedTuple):
    """``tell`` has noted it. What was not told is None."""

    wall: float
    arrival: float
    tunnels: int | None
    requests: int | None
    mine: int | None
    hosts: int | None
    leases: tuple[Lease, ...]


def admitted(reply: Any, budgets: tuple[int, ...]) -> Admitted | Refused:
    """What ``admit`` answers, of so many budgets of each charge. Raises ValueError, TypeError, KeyError."""
    words = _words(reply)
    counted, *_ = islice(words, 1)
    if counted == "1":
        (wall,) = islice(words, 1)
        return Admitted(float(wall), tuple(_counted(words, each) for each in budgets))
    wall, number, kind, wait = islice(words, 4)
    everybody = kind == _ALL_HOSTS
    found = Kind.NEW_HOSTS if everybody else _KINDS[kind]
    return Refused(float(wall), int(number) - 1, found, everybody, float(wait))


def told(reply: Any, budgets: int) -> Told:
    """What ``tell`` answers, of so many budgets. Raises ValueError, TypeError."""
    words = _words(reply)
    wall, arrival, tunnels, requests, mine, hosts = islice(words, 6)
    return Told(
        *(float(wall), float(arrival)),
        *(_whole(tunnels), _whole(requests), _whole(mine), _whole(hosts)),
        _leases(words, budgets),
    )


def beaten(reply: Any) -> tuple[bool, float]:
    """What ``beat`` answers: whether the replica was known to live, and the store's clock. Raises ValueError."""
    known, wall = _words(reply)
    return known == "1", float(wall)


def _counted(words: Iterator[str], budgets: int) -> Counted:
    arrival, tunnels, requests, mine, hosts, since = islice(words, 6)
    return Counted(
        *(_number(arrival), _whole(tunnels), _whole(requests), _whole(mine), _whole(hosts)),
        _number(since),
        _leases(words, budgets),
    )


def _leases(words: Iterator[str], budgets: int) -> tuple[Lease, ...]:
    return tuple(Lease(*(int(float(word)) for word in islice(words, 3))) for _ in range(budgets))


def _number(word: str) -> float | None:
    return None if word == "-" else float(word)


def _whole(word: str) -> int | None:
    # A count is a double there, which is written with an exponent where it is very large.
    return None if word == "-" else int(float(word))


def _words(reply: Any) -> Iterator[str]:
    """An answer's words. Raises TypeError, UnicodeDecodeError: the store is not ours, or a defect."""
    return iter(bytes(reply).decode("ascii").split())
