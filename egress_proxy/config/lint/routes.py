"""Warnings about rules of one target that send it different ways."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Final

from egress_proxy.config.errors import Code, Report, elsewhere
from egress_proxy.config.lint.coverage import asks_no_more, within
from egress_proxy.core.paths import PathPattern
from egress_proxy.core.policy import Policy, PortRanges, Rule, Target
from egress_proxy.core.upstream import Direct, Route, preference

#: Rules of one target that are compared with each other.
_MAX_ALIKE: Final = 20


def lint_routes(policies: Iterable[tuple[Hashable, Policy]], report: Report) -> None:
    """Warn of a rule whose ``upstream`` another one of the same target overrules for the same clients.

    Each policy comes with whom it is for: None for all, and what is equal for the same clients.
    """
    said: dict[Target, list[tuple[Hashable, Rule, Route]]] = {}
    for clients, policy in policies:
        for rule in policy.rules:
            route = rule.upstream
            if route is None:
                continue
            alike = said.setdefault(rule.target, [])
            for other_clients, other, other_route in alike:
                same_clients = clients == other_clients or None in (clients, other_clients)
                if same_clients and route != other_route and _meet(rule, other):
                    if preference(route) < preference(other_route):
                        _report(other, rule, route, report)
                    else:
                        _report(rule, other, other_route, report)
                    break
            if len(alike) < _MAX_ALIKE:
                alike.append((clients, rule, route))


def _report(rule: Rule, deciding: Rule, route: Route, report: Report) -> None:
    shown = "`direct`" if isinstance(route, Direct) else f"http://{route}"
    if rule.upstream is not None and preference(rule.upstream)[:2] == preference(route)[:2]:
        shown += " with other credentials"
    there = elsewhere(deciding.place, rule.place)
    what = f"`upstream` of `{rule.target}` changes nothing: the rule on {there} says {shown}"
    instead = "remove one of the two"
    if not (within(rule.ports, deciding.ports) and asks_no_more(deciding, rule)):
        what = (
            f"`upstream` of `{rule.target}` does not always hold: the rule on {there} says {shown}"
        )
        instead = "write rules that no request fits both of"
    report.warning(Code.WITHOUT_EFFECT, rule.place, what, instead)


def _meet(one: Rule, other: Rule) -> bool:
    """Whether a request can fit two rules of one target."""
    if not _overlap(one.ports, other.ports):
        return False
    if one.conditions is None or other.conditions is None:
        return True
    methods, paths = one.conditions.methods, one.conditions.paths
    theirs = other.conditions
    if methods and theirs.methods and not {*methods} & {*theirs.methods}:
        return False
    return (
        not paths
        or not theirs.paths
        or any(_share(path, their) for path in paths for their in theirs.paths)
    )


def _share(one: PathPattern, other: PathPattern) -> bool:
    """Whether a path can be one of both patterns'."""
    short, long = sorted((one, other), key=lambda pattern: len(pattern.segments))
    if len(short.segments) == len(long.segments):
        # `/a/` is every path that begins so, and `/a` is not.
        if one.below != other.below:
            return False
    elif not short.below:
        return False
    return all(
        mine is None or theirs is None or mine == theirs
        for mine, theirs in zip(short.segments, long.segments, strict=False)
    )


def _overlap(one: PortRanges, other: PortRanges) -> bool:
    return any(
        low <= other_high and other_low <= high
        for low, high in one
        for other_low, other_high in other
    )
