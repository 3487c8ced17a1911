"""The names that rules mention, as a tree that cuts all names into finitely many regions.

For each mentioned name there are two regions: the name itself, and every name below it that no longer mentioned name
covers. The root stands for all other names. Rules that name hosts and suffixes of hosts alone decide alike about all
names of a region.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

#: The number of a mentioned name in the tree, and whether it is the names below it that are meant.
Region = tuple[int, bool]


@dataclass(slots=True)
class NameSet:
    """Names: some exactly, and all below others."""

    # Dicts, because they keep the order in which names were added.
    exact: dict[str, None] = field(default_factory=dict)
    below: dict[str, None] = field(default_factory=dict)
    """Every name below these, at any depth; the empty text stands for all names."""

    def add(self, name: str, *, exact: bool, below: bool) -> None:
        if exact:
            self.exact[name] = None
        if below:
            self.below[name] = None

    def covers(self, name: str, *, below: bool) -> bool:
        """Whether the name belongs to the set, or every name below it that is not mentioned by itself."""
        if below:
            return name in self.below or self._has_above(name)
        return name in self.exact or self._has_above(name)

    def _has_above(self, name: str) -> bool:
        if not self.below:
            return False
        return any(parent in self.below for parent in parents(name))

    def mentioned(self) -> Iterator[str]:
        yield from self.exact
        yield from self.below


def parents(name: str) -> Iterator[str]:
    """Each domain that the name lies below, the nearest first; the last is the empty text."""
    while name:
        name = name.partition(".")[2]
        yield name


@dataclass(frozen=True, slots=True)
class HostTree:
    """Mentioned names, the parents before their children; the first is the root."""

    names: tuple[str, ...]
    parent: tuple[int, ...]
    """The number of the nearest mentioned name above; 0 for the root itself."""
    number: dict[str, int]
    rank: dict[str, int]
    """When a name was first mentioned."""


def host_tree(mentioned: Iterable[str]) -> HostTree:
    rank: dict[str, int] = {"": 0}
    for name in mentioned:
        rank.setdefault(name, len(rank))
    names = sorted(rank, key=lambda name: (name.count(".") if name else -1, rank[name]))
    number = {name: position for position, name in enumerate(names)}
    parent = [
        next((number[above] for above in parents(name) if above in number), 0) for name in names
    ]
    return HostTree(tuple(names), tuple(parent), number, rank)
