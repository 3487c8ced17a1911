"""Which rule names all that another one names. Rules are looked up by what they name, never compared each with each."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from functools import cached_property
from typing import Final, TypeVar

from egress_proxy.config.rules import merge_ports
from egress_proxy.core.networks import IPNetwork, NetworkIndex, lies_within
from egress_proxy.core.policy import (
    EVERY_PORT,
    Action,
    HostPattern,
    HostSet,
    PortRanges,
    Rule,
    Target,
)
from egress_proxy.core.special_use import Surroundings, special_around

#: Rules of one target that are told apart. Further ones are not compared.
_MAX_ALIKE: Final = 20

#: Rules of one target. A single one stands by itself, for a million hosts have one rule each.
_Alike = Rule | list[Rule]
_Key = TypeVar("_Key")

#: The names above a host that have wildcards, the nearest first.
Above = Sequence[str]


class SetView:
    """What a set names, worked out once however many rules use it."""

    def __init__(self, hosts: HostSet) -> None:
        self.hosts = hosts
        self._contains: dict[HostSet, bool] = {}

    @cached_property
    def below(self) -> frozenset[str]:
        """Its wildcards, as the names that they stand below; ``*`` as the empty text."""
        return frozenset(text[2:] for text in self.hosts.patterns if text[0] == "*")

    @cached_property
    def common(self) -> str:
        """The lowest name that all of its hosts lie below."""
        common: str | None = None
        for text in self.hosts.patterns:
            parent = text.partition(".")[2]
            if common is None:
                common = parent
            while common and parent != common and not parent.endswith(f".{common}"):
                common = common.partition(".")[2]
            if not common:
                break
        return common or ""

    def contains(self, other: HostSet) -> bool:
        """Whether the other set has some of this set's hosts and nothing else."""
        found = self._contains.get(other)
        if found is None:
            found = bool(other.patterns) and other.patterns.keys() < self.hosts.patterns.keys()
            self._contains[other] = found
        return found


class SetViews:
    """The views of all sets."""

    def __init__(self) -> None:
        self._views: dict[HostSet, SetView] = {}

    def __getitem__(self, hosts: HostSet) -> SetView:
        view = self._views.get(hosts)
        if view is None:
            view = self._views[hosts] = SetView(hosts)
        return view


class Coverage:
    """Rules by what they name."""

    def __init__(self, rules: Iterable[Rule], views: SetViews, surroundings: Surroundings) -> None:
        self._views = views
        self._surroundings = surroundings
        self._exact: dict[str, _Alike] = {}
        self._below: dict[str, _Alike] = {}
        self._sets: dict[HostSet, _Alike] = {}
        self._networks: dict[IPNetwork, _Alike] = {}
        self._network_index: NetworkIndex[IPNetwork] = NetworkIndex()
        for rule in rules:
            target = rule.target
            if isinstance(target, HostPattern):
                _add(self._below if target.wildcard else self._exact, target.name, rule)
            elif isinstance(target, HostSet):
                _add(self._sets, target, rule)
            else:
                if target not in self._networks:
                    self._network_index.add(target, target)
                _add(self._networks, target, rule)
        self.is_empty = not (self._exact or self._below or self._sets or self._networks)

    @cached_property
    def wildcards(self) -> frozenset[str]:
        """The names below which its wildcards are, those of its sets too."""
        return frozenset(self._below).union(*(self._views[hosts].below for hosts in self._sets))

    def closing(self, rule: Rule, above: Above) -> Rule | None:
        """A deny rule because of which the rule never matters.

        ``above`` are the names above the rule's host that have wildcards, here or elsewhere.
        """
        if not above and not self._may_name(rule):
            return None
        found: list[Rule] = []
        for denial in self.naming(rule.target, above):
            if not asks_no_more(denial, rule):
                continue
            if within(rule.ports, denial.ports):
                return denial
            found.append(denial)
        # Several of them close the rule's ports together.
        if len(found) > 1 and within(rule.ports, merge_ports(_ports(found))):
            return found[0]
        return None

    def repeating(self, rule: Rule, above: Above, *, sweeping: bool = True) -> Rule | None:
        """Another rule that says all that the rule says, so that without the rule nothing changes.

        With ``sweeping`` false, not one that sweeps in very much: it is the one to remove.
        """
        if not above and not self._may_name(rule):
            return None
        target = rule.target
        for other in self.naming(target, above):
            if (
                other is not rule
                and self._says_as_much(other, rule)
                and not self._stands_in(other, rule)
                and (sweeping or other.target == target or not _sweeps(other.target))
            ):
                return other
        return None

    def _may_name(self, rule: Rule) -> bool:
        """Whether another rule than itself may name the rule's host, without wildcards. Next to never does one."""
        target = rule.target
        if not isinstance(target, HostPattern):
            return True
        found = (self._below if target.wildcard else self._exact).get(target.name)
        if found is not None and found is not rule:
            return True
        if not self._sets:
            return False
        text = str(target) if target.wildcard else target.name
        return any(text in hosts.patterns for hosts in self._sets)

    def _stands_in(self, other: Rule, rule: Rule) -> bool:
        """Whether the other rule's host is an entry of the rule's set: then that rule is the one too many."""
        return (
            isinstance(rule.target, HostSet)
            and str(other.target) in rule.target.patterns
            and self._says_as_much(rule, other)
        )

    def _says_as_much(self, wider: Rule, rule: Rule) -> bool:
        """Whether all that a rule says about its own target is said about it by a rule that names it too.

        What several rules lift for a request comes together: see :func:`egress_proxy.core.decide.decide`.
        """
        return (
            within(rule.ports, wider.ports)
            and asks_no_more(wider, rule)
            and (rule.tls or not wider.tls)
            and set(rule.allow_private) <= set(wider.allow_private)
            and _routes_as_much(wider, rule)
            and _opens_as_much(wider.target, rule, self._surroundings)
        )

    def naming(self, target: Target, above: Above) -> Iterator[Rule]:
        """The rules that name all that the target names, those of the target itself first."""
        if isinstance(target, HostPattern):
            index = self._below if target.wildcard else self._exact
            yield from _each(index.get(target.name))
            for name in above:
                yield from _each(self._below.get(name))
            for hosts, rules in self._sets.items():
                if str(target) in hosts.patterns or not self._views[hosts].below.isdisjoint(above):
                    yield from _each(rules)
        elif isinstance(target, HostSet):
            for hosts, rules in self._sets.items():
                if hosts is target or self._views[hosts].contains(target):
                    yield from _each(rules)
            if self._below and target.patterns:
                common = self._views[target].common
                yield from _each(self._below.get(common))
                for name in names_above(common, [self._below.keys()]):
                    yield from _each(self._below.get(name))
        else:
            for network in self._network_index.holding(target.network_address):
                if network.prefixlen <= target.prefixlen:
                    yield from _each(self._networks[network])


def names_above(name: str, wildcards: Sequence[AbstractSet[str]]) -> Above:
    """Those of the wildcards' names that a name lies below, the nearest first; the empty one is above all."""
    found: list[str] = []
    dot = name.find(".")
    while dot >= 0:
        above = name[dot + 1 :]
        for names in wildcards:
            if above in names:
                found.append(above)
                break
        dot = name.find(".", dot + 1)
    if name and any("" in names for names in wildcards):
        found.append("")
    return found


def _add(index: dict[_Key, _Alike], key: _Key, rule: Rule) -> None:
    there = index.setdefault(key, rule)
    if there is rule:
        return
    rules = there if isinstance(there, list) else [there]
    index[key] = rules
    # Of rules that say the same, the first is the one to keep.
    if len(rules) < _MAX_ALIKE and not any(says_the_same(other, rule) for other in rules):
        rules.append(rule)


def _each(found: _Alike | None) -> Iterable[Rule]:
    return () if found is None else found if isinstance(found, list) else (found,)


def _sweeps(target: Target) -> bool:
    """Whether it is ``*``, ``*.com``, ``0.0.0.0/0`` or the like."""
    if isinstance(target, HostSet):
        return "*" in target.patterns
    if isinstance(target, HostPattern):
        return target.wildcard and "." not in target.name
    return target.prefixlen == 0


def says_the_same(one: Rule, other: Rule) -> bool:
    """Whether two rules of one target differ in nothing but their places."""
    return (
        one.ports == other.ports
        and one.tls == other.tls
        and set(one.allow_private) == set(other.allow_private)
        and one.upstream == other.upstream
        and one.conditions == other.conditions
    )


def asks_no_more(wider: Rule, rule: Rule) -> bool:
    """Whether every request that meets a rule's conditions, tunnels included, meets those of the other one."""
    if wider.conditions is None:
        return True
    return rule.conditions is not None and wider.conditions.covers(rule.conditions)


def _routes_as_much(wider: Rule, rule: Rule) -> bool:
    # The most specific rule that names a route decides, so that a wider one does not stand for it.
    return rule.upstream is None or (
        wider.upstream == rule.upstream and wider.target == rule.target
    )


def _opens_as_much(wider: Target, rule: Rule, surroundings: Surroundings) -> bool:
    # A cidr rule opens the special-use network that it lies in, and a wider one opens nothing of it.
    target = rule.target
    if isinstance(target, HostPattern | HostSet) or isinstance(wider, HostPattern | HostSet):
        return True
    special = None if rule.action is Action.DENY else special_around(target, surroundings)
    return special is None or lies_within(wider, special.network)


def _ports(rules: list[Rule]) -> PortRanges:
    return tuple(ports for rule in rules for ports in rule.ports)


def within(ports: PortRanges, others: PortRanges) -> bool:
    """Whether the others hold all of the ports; both are sorted, and their ranges do not touch."""
    return others in (ports, EVERY_PORT) or all(_holds(others, each) for each in ports)


def _holds(ranges: PortRanges, ports: tuple[int, int]) -> bool:
    # The range that starts last at or before the first port.
    position = bisect_right(ranges, (ports[0], 65536)) - 1
    return position >= 0 and ranges[position][1] >= ports[1]
