"""What ordered rules decide, and what is written of it without order: the values that importers exchange with
:mod:`egress_proxy.migrate.order_free`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from egress_proxy.migrate.hosts import HostTree, Region
from egress_proxy.migrate.ways import Ways

Clients = frozenset[int]
_Key = TypeVar("_Key")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What ordered rules decide about one kind of client and one region of hosts: rule numbers with ports and ways.

    Those of ``allowed`` and ``denied`` do not overlap. What is in neither is denied too, by no rule in particular.
    """

    allowed: dict[int, int]
    denied: dict[int, int]
    closing: dict[int, int]
    """Rules that deny the host all the same where one of its addresses lies in their networks."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One rule of ours: a name or a wildcard, or else the networks of some groups of addresses."""

    pattern: str
    """Empty for networks."""
    groups: frozenset[int]
    ports: int


@dataclass(frozen=True, slots=True)
class Draft:
    """A policy before its clients, ports and networks are written out."""

    rule: int
    clients: Clients
    allow: tuple[Entry, ...]
    deny: tuple[Entry, ...]


class Kept(Enum):
    """What is lost of an allowed destination."""

    NOTHING = "nothing"
    """It cannot stay allowed: something else is denied with it."""
    PLAIN = "plain"
    """CONNECT, which no rule opens without plain requests that must stay closed, and others that stay allowed."""
    CONNECT = "connect"
    """Plain requests, which no rule keeps open beside what is denied of CONNECT, or of other plain requests."""


@dataclass(frozen=True, slots=True)
class Loss:
    """An allowed destination that order-free rules cannot keep."""

    rule: int
    """The rule that allowed it."""
    by: int | None
    """The rule that now denies it; None for one that is not known."""
    what: str
    """A pattern, or empty for names in general."""
    kept: Kept = Kept.NOTHING


@dataclass(frozen=True, slots=True)
class Ordered:
    """A list of rules whose first match decides, over finitely many kinds of clients and hosts."""

    tree: HostTree
    clients: int
    groups: int
    """How many kinds of literal addresses there are."""
    name_verdict: Callable[[int, Region], Verdict]
    """By client and region of names."""
    group_verdict: Callable[[int, int], Verdict]
    """By client and group of addresses."""
    closes: Callable[[int], frozenset[int]]
    """The groups of addresses that a closing rule denies."""
    own_policy: Callable[[int], bool]
    """Whether what a rule denies belongs into a policy of its own, or beside what it is an exception from."""
    natural: Callable[[int], Clients]
    """The clients that a rule names."""
    client_cost: Callable[[Clients], int]
    """How many subjects say these clients: 0 for all of them."""
    network_cost: Callable[[frozenset[int]], int]
    ways: Ways
    firm: int = 0
    """CONNECT on the ports where it is worth more than plain requests."""
    closing_rules: tuple[int, ...] = ()


def union(masks: Mapping[_Key, int]) -> int:
    found = 0
    for mask in masks.values():
        found |= mask
    return found
