"""Warnings about rules of one target that send it different ways."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Final

from egress_proxy.config.errors import Code, Report, elsewhere
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
                if same_clients and route != other_route and _overlap(rule.ports, other.ports):
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
    report.warning(Code.WITHOUT_EFFECT, rule.place, what, "remove one of the two")


def _overlap(one: PortRanges, other: PortRanges) -> bool:
    return any(
        low <= other_high and other_low <= high
        for low, high in one
        for other_low, other_high in other
    )
