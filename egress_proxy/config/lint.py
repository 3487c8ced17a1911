"""Warnings about rules that load and probably do not say what their writer meant.

Every check looks rules up and none compares each with each, so that a file of a million rules is
still checked in seconds.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import Final

from egress_proxy.config.errors import Report
from egress_proxy.config.rules import merge_ports
from egress_proxy.core.addresses import SPECIAL_USE, IPNetwork, lies_within
from egress_proxy.core.policy import Action, HostPattern, Policy, PortRanges, Rule

#: Top-level domains that are not the internet's, so that one wildcard may well own all of them.
_OWN_DOMAINS: Final = frozenset(("home", "internal", "lan", "local", "localhost", "test"))


def lint(policies: tuple[Policy, ...], report: Report) -> None:
    """Add a warning for each rule that is written twice, can never matter, or opens very much."""
    # What a policy without subjects denies is denied to every client, whatever its other policies.
    for_all = _Denials(
        rule for policy in policies if policy.subjects is None for rule in policy.rules
    )
    for policy in policies:
        own = for_all if policy.subjects is None else _Denials(policy.rules)
        _find_duplicates(policy, report)
        for rule in policy.rules:
            if rule.action is Action.ALLOW:
                denial = own.covering(rule) or (own is not for_all and for_all.covering(rule))
                if denial:
                    what = f"`{rule.target}` is denied by the rule on line {denial.place.line}"
                    report.warning(rule.place, what, "remove one of the two rules")
                _warn_of_wide_allow(rule, report)
            elif not isinstance(rule.target, HostPattern) and rule.target.prefixlen == 0:
                what = f"`{rule.target}` denies every address, those behind allowed names too"
                report.warning(rule.place, what, "remove it: what no rule allows is denied anyway")


def _find_duplicates(policy: Policy, report: Report) -> None:
    first: dict[tuple[object, ...], Rule] = {}
    for rule in policy.rules:
        # Without its place, in which even a duplicate differs.
        key = (rule.action, rule.target, rule.ports, rule.allow_private)
        earlier = first.setdefault(key, rule)
        if earlier is not rule:
            what = f"`{rule.target}` stands twice, first on line {earlier.place.line}"
            report.warning(rule.place, what, "remove one of them")


def _warn_of_wide_allow(rule: Rule, report: Report) -> None:
    target = rule.target
    if not isinstance(target, HostPattern):
        if target.prefixlen == 0:
            what = f"`{target}` allows every public address"
            report.warning(rule.place, what, "write the networks that are needed")
    elif target.wildcard and not target.name:
        what = "`*` allows every host on the internet, so whatever can leave will leave"
        report.warning(rule.place, what, "write the hosts that are needed")
    elif target.wildcard and "." not in target.name and target.name not in _OWN_DOMAINS:
        what = f"`{target}` allows every name below a whole top-level domain"
        report.warning(rule.place, what, "write the domains that are needed")
    for network in rule.allow_private:
        if network.prefixlen == 0:
            what = f"`allow_private: {network}` opens every private network"
            report.warning(rule.place, what, "write the networks that the host lives in")
        elif not any(_overlaps(network, special.network) for special in SPECIAL_USE):
            what = f"`allow_private: {network}` changes nothing, for the network is public"
            report.warning(rule.place, what, "remove it")


def _overlaps(one: IPNetwork, other: IPNetwork) -> bool:
    return lies_within(one, other) or lies_within(other, one)


class _Denials:
    """Deny rules by what they name, to find the one that covers an allow rule wholly."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        ports: dict[HostPattern | IPNetwork, list[tuple[int, int]]] = {}
        self._first: dict[HostPattern | IPNetwork, Rule] = {}
        for rule in rules:
            if rule.action is Action.DENY:
                ports.setdefault(rule.target, []).extend(rule.ports)
                self._first.setdefault(rule.target, rule)
        # Several deny rules of one host close their ports together.
        self._ports = {target: merge_ports(tuple(found)) for target, found in ports.items()}

    def covering(self, rule: Rule) -> Rule | None:
        """A deny rule because of which the allow rule never matters."""
        if not self._first:
            return None
        for target in _wider(rule.target):
            closed = self._ports.get(target)
            if closed is not None and all(_holds(closed, ports) for ports in rule.ports):
                return self._first[target]
        return None


def _wider(target: HostPattern | IPNetwork) -> Iterator[HostPattern | IPNetwork]:
    """Every target that names all that this one names, itself first."""
    yield target
    if not isinstance(target, HostPattern):
        while target.prefixlen:
            target = target.supernet()
            yield target
        return
    name = target.name
    while name:
        name = name.partition(".")[2]
        yield HostPattern(name, wildcard=True)


def _holds(closed: PortRanges, ports: tuple[int, int]) -> bool:
    # The range that starts last at or before the first port; ranges are sorted and do not touch.
    position = bisect_right(closed, (ports[0], 65536)) - 1
    return position >= 0 and closed[position][1] >= ports[1]
