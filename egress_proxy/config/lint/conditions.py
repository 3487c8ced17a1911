"""Warnings about rules with ``methods`` and ``paths``, which are for requests that the proxy can read alone."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence

from egress_proxy.config.errors import Code, Report, elsewhere
from egress_proxy.config.lint.coverage import Above, Coverage, SetViews, names_above
from egress_proxy.config.rules import merge_ports
from egress_proxy.core.policy import (
    Action,
    HostPattern,
    HostSet,
    Place,
    Policy,
    PortRanges,
    Rule,
    Target,
)
from egress_proxy.core.special_use import Surroundings

#: The clients of a policy, equal for equal ones; None for all.
_Clients = Hashable


def lint_conditions(
    policies: Sequence[tuple[_Clients, Policy]], report: Report, surroundings: Surroundings
) -> None:
    """Warn, once for each rule, of what its conditions leave out and its writer may not have meant to."""
    conditional = [
        (clients, rule)
        for clients, policy in policies
        for rule in policy.rules
        if rule.conditions is not None
    ]
    if not conditional:
        return
    denials = [(clients, rule) for clients, rule in conditional if rule.action is Action.DENY]
    tunnels: dict[Place, tuple[Rule, PortRanges]] = {}
    if denials:
        for place, rule, ports in _Tunnels(policies, surroundings).past(denials):
            tunnels.setdefault(place, (rule, ports))
    for _, rule in conditional:
        opening = tunnels.get(rule.place)
        if rule.ports == ((443, 443),):
            what = f"`{rule.target}` has conditions on port 443 alone, where no request can be read: they never hold"
            instead = "write the port of plain HTTP, or remove `methods` and `paths`"
            report.warning(Code.WITHOUT_EFFECT, rule.place, what, instead)
        elif opening is not None:
            there = elsewhere(opening[0].place, rule.place)
            what = f"tunnels to `{rule.target}`, in which nobody sees requests, stay open by the rule on {there}"
            instead = f"deny them too, with {_example(rule.target, opening[1])}"
            if opening[1] == ((80, 80),):
                instead = "remove its `tls: off`"
            report.warning(Code.TUNNEL_OPEN, rule.place, what, instead)
        elif rule.action is Action.DENY:
            _lint_depth(rule, report)


def _example(target: Target, ports: PortRanges) -> str:
    listed = ", ".join(
        str(low) if low == high else f'"{low}-{high}"' for low, high in merge_ports(ports)
    )
    key = "host" if isinstance(target, HostPattern | HostSet) else "cidr"
    text = str(target)
    if key == "cidr" or not text[0].isalnum():
        text = f'"{text}"'
    return f"{{{key}: {text}, ports: [{listed}]}}"


def _lint_depth(rule: Rule, report: Report) -> None:
    """Warn of a deny rule that denies one level where all below it may be meant."""
    paths = () if rule.conditions is None else rule.conditions.paths
    for pattern in paths:
        prefix = pattern.text.removesuffix("*")
        if pattern.text.endswith("/*") and not any(other.text == prefix for other in paths):
            what = f"`{pattern}` denies one segment there, and nothing below it"
            instead = f'write "{prefix}" for all that begins so'
            report.warning(Code.ONE_SEGMENT, rule.place, what, instead)
            return


class _Tunnels:
    """Finds the rules that let tunnels through to what a rule denies for some requests."""

    def __init__(
        self, policies: Sequence[tuple[_Clients, Policy]], surroundings: Surroundings
    ) -> None:
        self._views = SetViews()
        self._surroundings = surroundings
        opening: dict[_Clients, list[Rule]] = {}
        closing: dict[_Clients, list[Rule]] = {}
        for clients, policy in policies:
            for rule in policy.rules:
                if rule.conditions is None:
                    by_clients = closing if rule.action is Action.DENY else opening
                    by_clients.setdefault(clients, []).append(rule)
        self._opening = opening
        self._coverage = {clients: self._covering(rules) for clients, rules in opening.items()}
        self._closing = {clients: self._covering(rules) for clients, rules in closing.items()}

    def _covering(self, rules: Iterable[Rule]) -> Coverage:
        return Coverage(rules, self._views, self._surroundings)

    def past(
        self, denials: Sequence[tuple[_Clients, Rule]]
    ) -> Iterator[tuple[Place, Rule, PortRanges]]:
        """The place of each rule past which tunnels lead, with one that lets them through."""
        by_clients: dict[_Clients, list[Rule]] = {}
        for clients, rule in denials:
            by_clients.setdefault(clients, []).append(rule)
        for clients, rules in by_clients.items():
            found = self._covering(rules)
            for others, opening in self._opening.items():
                # Whom else two policies may have in common nobody can tell here.
                if clients is not None and others is not None and clients != others:
                    continue
                closing = [
                    self._closing[each] for each in {None, clients, others} if each in self._closing
                ]
                # What is opened around that which is denied, and then what is opened inside of it.
                for denial in rules:
                    for rule in self._coverage[others].naming(
                        denial.target, self._above(denial, self._coverage[others])
                    ):
                        ports = self._open(denial, rule, denial.target, closing)
                        if ports:
                            yield denial.place, rule, ports
                for rule in opening:
                    for denial in found.naming(rule.target, self._above(rule, found)):
                        ports = self._open(denial, rule, rule.target, closing)
                        if ports:
                            yield denial.place, rule, ports

    def _above(self, rule: Rule, coverage: Coverage) -> Above:
        if not isinstance(rule.target, HostPattern) or not coverage.wildcards:
            return ()
        return names_above(rule.target.name, [coverage.wildcards])

    def _open(
        self, denial: Rule, rule: Rule, target: Target, closing: Sequence[Coverage]
    ) -> PortRanges:
        """The ports on which a rule lets tunnels past another one that denies some requests."""
        ports = _shared(denial.ports, rule.ports)
        if rule.tls:
            # A tunnel there would have to be TLS, and nobody speaks that.
            ports = tuple(each for each in ports if each != (80, 80))
        tunnel = Rule(rule.action, target, rule.place, ports)
        closed = any(
            coverage.closing(tunnel, self._above(tunnel, coverage)) for coverage in closing
        )
        return () if closed else ports


def _shared(ports: PortRanges, others: PortRanges) -> PortRanges:
    """The ports that are in both, with 80 by itself."""
    found: list[tuple[int, int]] = []
    for low, high in ports:
        for other_low, other_high in others:
            first, last = max(low, other_low), min(high, other_high)
            for start, end in (
                (first, min(last, 79)),
                (max(first, 80), min(last, 80)),
                (max(first, 81), last),
            ):
                if start <= end:
                    found.append((start, end))
    return tuple(sorted(found))
