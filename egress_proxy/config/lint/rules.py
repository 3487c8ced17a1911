"""Warnings about rules that load and probably do not say what their writer meant.

Every check looks rules up and none compares each with each, so that a file of a million rules is
still checked in seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Final

from egress_proxy.config.errors import Code, Report, elsewhere
from egress_proxy.config.lint.conditions import lint_conditions
from egress_proxy.config.lint.coverage import Above, Coverage, SetViews, names_above, says_the_same
from egress_proxy.config.lint.hosts import HostLint
from egress_proxy.config.lint.networks import lint_allow_private, lint_network
from egress_proxy.config.lint.routes import lint_routes
from egress_proxy.config.lint.services import SERVICES, Service
from egress_proxy.config.model import Credentials
from egress_proxy.core.policy import (
    DEFAULT_PORTS,
    Action,
    HostPattern,
    HostSet,
    Policy,
    PortRanges,
    Rule,
    Subject,
)
from egress_proxy.core.special_use import ANYWHERE, Surroundings

#: Ports of one rule beyond which nobody has thought of each.
_MANY_PORTS: Final = 1000


def lint(
    policies: tuple[Policy, ...],
    report: Report,
    credentials: Credentials | None = None,
    surroundings: Surroundings = ANYWHERE,
) -> None:
    """Add a warning for each rule that cannot matter, opens very much, or is probably a slip."""
    _lint_subjects(policies, report, credentials)
    uses: dict[HostSet, list[Rule]] = {}
    for policy in policies:
        for rule in policy.rules:
            if isinstance(rule.target, HostSet):
                uses.setdefault(rule.target, []).append(rule)
    _Overlaps(policies, report, surroundings).lint(uses)
    lint_routes(((_clients(policy), policy) for policy in policies), report)
    lint_conditions([(_clients(policy), policy) for policy in policies], report, surroundings)
    lint_host = HostLint(report)
    for hosts, rules in uses.items():
        lint_host.check_set(hosts, rules)
    for policy in policies:
        for rule in policy.rules:
            target = rule.target
            if isinstance(target, HostPattern):
                lint_host.check(target, rule)
            elif not isinstance(target, HostSet):
                lint_network(rule, report, surroundings)
            if rule.action is Action.DENY:
                continue
            if rule.allow_private:
                lint_allow_private(rule, report, surroundings)
            if rule.ports != DEFAULT_PORTS:
                _lint_ports(rule, report)
            if not rule.tls and rule.conditions is None:
                _lint_tls(rule, report)


# Policies that apply to nobody --------------------------------------------------------------------


def _lint_subjects(
    policies: tuple[Policy, ...], report: Report, credentials: Credentials | None
) -> None:
    for policy in policies:
        subjects = policy.subjects or ()
        doubts = [_why_nobody(subject, report, credentials) for subject in subjects]
        nobody = "this subject describes nobody"
        if all(doubts):
            nobody = f"the policy `{policy.name}` applies to nobody"
        if any(rule.action is Action.DENY for rule in policy.rules):
            nobody += ", and its `deny` denies them nothing"
        for subject, doubt in zip(subjects, doubts, strict=True):
            if doubt is not None:
                why, instead = doubt
                report.warning(
                    Code.UNREACHABLE_POLICY, subject.place, f"{why}, so {nobody}", instead
                )


def _why_nobody(
    subject: Subject, report: Report, credentials: Credentials | None
) -> tuple[str, str] | None:
    """Why no client can be a subject, and what to write instead."""
    if subject.namespace is not None or subject.pod_labels:
        what = "this version does not know the namespace and the labels of a client's pod"
        return what, "write the `cidr` or the `user` of these clients"
    # What was reported about users already is not known here.
    if subject.user is None or report.failed:
        return None
    if credentials is None:
        what = "without `credentials` no client has a user"
        return what, "write `credentials: {users_file: …}`"
    if subject.user not in credentials.users:
        what = f"{credentials.users_file} has no user `{subject.user}`"
        return what, "add the user there, or write another one"
    return None


# Ports ------------------------------------------------------------------------------------------


def _lint_ports(rule: Rule, report: Report) -> None:
    count = sum(high - low + 1 for low, high in rule.ports)
    if count > _MANY_PORTS:
        what = f"`{rule.target}` is open on {count:,} ports"
        report.warning(Code.RISKY_PORT, rule.place, what, "write the ports that are needed")
        return
    found = _services(rule.ports)
    if not found:
        return
    by_harm: dict[str, list[tuple[int, Service]]] = {}
    for port, service in found:
        by_harm.setdefault(service.harm, []).append((port, service))
    for harm, services in by_harm.items():
        what = f"`{rule.target}` is open on {_listed(services)}, through which {harm}"
        instead = f"remove {'it' if len(services) == 1 else 'them'} from `ports` unless it is meant"
        report.warning(Code.RISKY_PORT, rule.place, what, instead)
    if rule.tls and rule.conditions is None:
        _lint_plain(rule, found, report)


# Many rules of a long file have the same ports.
@lru_cache(maxsize=1024)
def _services(ports: PortRanges) -> list[tuple[int, Service]]:
    """What is usually found on these ports."""
    return [
        (port, service)
        for port, service in SERVICES.items()
        if any(low <= port <= high for low, high in ports)
    ]


def _lint_plain(rule: Rule, found: list[tuple[int, Service]], report: Report) -> None:
    """Warn of ports on which the TLS that the rule asks for does not come."""
    plain = [(port, service) for port, service in found if service.plain]
    if not plain:
        return
    some = "" if all(service.plain == "never" for _, service in plain) else "seldom "
    verb = f"{some}starts" if some else "does not start"
    what = f"what speaks on {_listed(plain)} {verb} with TLS, and a tunnel without it is closed"
    instead = "write `tls: off`"
    if len(plain) < sum(high - low + 1 for low, high in rule.ports):
        instead = f"write {_numbers(plain)} in a rule of its own, with `tls: off`"
    report.warning(Code.TLS_MISSING, rule.place, what, instead)


def _listed(services: list[tuple[int, Service]]) -> str:
    listed = ", ".join(f"{port} ({service.name})" for port, service in services)
    return f"port{'s'[: len(services) > 1]} {listed}"


def _numbers(services: list[tuple[int, Service]]) -> str:
    return f"port{'s'[: len(services) > 1]} {', '.join(str(port) for port, _ in services)}"


def _lint_tls(rule: Rule, report: Report) -> None:
    """Warn of ``tls: off`` where TLS is spoken."""
    if not _holds_https(rule.ports):
        return
    target = rule.target
    what = f"with `tls: off`, nothing checks that a tunnel to `{target}` on port 443 ends there"
    instead = "remove `tls: off`, or write `ports` without 443"
    if not isinstance(target, HostPattern | HostSet):
        what = f"with `tls: off`, nothing checks that a tunnel to `{target}` on port 443 is TLS"
    elif isinstance(target, HostPattern) and target.wildcard:
        what = f"with `tls: off` on port 443, a tunnel through any name that `{target}` stands for"
        what += " may end at every host that the same servers serve"
        instead = "write the one host that needs `tls: off`"
    report.warning(Code.TLS_OFF, rule.place, what, instead)


def _holds_https(ports: PortRanges) -> bool:
    return any(low <= 443 <= high for low, high in ports)


# Rules that cannot matter -----------------------------------------------------------------------

#: The clients of a policy; None for all.
_Clients = frozenset[tuple[object, ...]] | None


class _Overlaps:
    """Finds the rules that change nothing, because of another rule for the same clients."""

    def __init__(
        self, policies: tuple[Policy, ...], report: Report, surroundings: Surroundings
    ) -> None:
        self._report = report
        self._surroundings = surroundings
        self._views = SetViews()
        self._groups: dict[_Clients, list[Policy]] = {}
        for policy in policies:
            self._groups.setdefault(_clients(policy), []).append(policy)
        # What policies without subjects deny and ask about concerns every client.
        self._denials = self._coverage(Action.DENY, self._groups.get(None, []))
        self._questions = self._coverage(Action.ASK, self._groups.get(None, []))

    def lint(self, sets: Iterable[HostSet]) -> None:
        for hosts in sets:
            self._find_repeated_hosts(hosts)
        for clients, policies in self._groups.items():
            denials, questions = [self._denials], [self._questions]
            if clients is not None:
                denials.append(self._coverage(Action.DENY, policies))
                questions.append(self._coverage(Action.ASK, policies))
            alone = len(policies) == 1
            for policy in policies:
                own = {
                    Action.ALLOW: self._coverage(Action.ALLOW, [policy]),
                    Action.ASK: questions[-1] if alone else self._coverage(Action.ASK, [policy]),
                    Action.DENY: denials[-1] if alone else self._coverage(Action.DENY, [policy]),
                }
                self._lint(policy, _filled(denials), _filled(questions), own)

    def _lint(
        self,
        policy: Policy,
        denials: list[Coverage],
        questions: list[Coverage],
        own: dict[Action, Coverage],
    ) -> None:
        # Once for all: most hosts lie below none of them.
        coverages = {*denials, *questions, *own.values()}
        wildcards = [coverage.wildcards for coverage in coverages if coverage.wildcards]
        for rule in policy.rules:
            above: Above = ()
            if wildcards and isinstance(rule.target, HostPattern):
                above = names_above(rule.target.name, wildcards)
            if not (
                (denials and self._is_closed(rule, above, denials))
                or (questions and self._is_asked_about(rule, above, questions))
                or self._is_repeated(rule, above, own[rule.action])
            ):
                self._find_closed_networks(rule, denials)

    def _coverage(self, action: Action, policies: list[Policy]) -> Coverage:
        rules = (rule for policy in policies for rule in policy.rules if rule.action is action)
        return Coverage(rules, self._views, self._surroundings)

    def _is_closed(self, rule: Rule, above: Above, denials: list[Coverage]) -> bool:
        if rule.action is Action.DENY:
            return False
        for coverage in denials:
            denial = coverage.closing(rule, above)
            if denial is not None:
                place = elsewhere(denial.place, rule.place)
                what = f"`{rule.target}` is denied by the rule on {place}"
                instead = "remove one of the two rules"
                self._report.warning(Code.SHADOWED_RULE, rule.place, what, instead)
                return True
        return False

    def _is_asked_about(self, rule: Rule, above: Above, questions: list[Coverage]) -> bool:
        if rule.action is not Action.ALLOW:
            return False
        for coverage in questions:
            question = coverage.repeating(rule, above)
            if question is not None:
                place = elsewhere(question.place, rule.place)
                what = f"`{rule.target}` is never allowed without a human: `ask` on {place} comes first"
                instead = "remove one of the two rules"
                self._report.warning(Code.SHADOWED_RULE, rule.place, what, instead)
                return True
        return False

    def _is_repeated(self, rule: Rule, above: Above, coverage: Coverage) -> bool:
        other = coverage.repeating(rule, above, sweeping=False)
        if other is None:
            return False
        target, there = rule.target, elsewhere(other.place, rule.place)
        code, instead = Code.REDUNDANT_RULE, "remove it"
        if other.target == target and says_the_same(other, rule):
            code, instead = Code.DUPLICATE_RULE, "remove one of them"
            what = f"`{target}` stands twice, first on {there}"
        elif isinstance(other.target, HostSet) and str(target) in other.target.patterns:
            if says_the_same(other, rule):
                code = Code.DUPLICATE_RULE
            what = f"`{target}` stands in `{other.target}` too, which the rule on {there} names"
        else:
            what = f"`{target}` adds nothing to `{other.target}` on {there}"
        self._report.warning(code, rule.place, what, instead)
        return True

    def _find_repeated_hosts(self, hosts: HostSet) -> None:
        """Warn of a set's hosts that its wildcards name too."""
        # Those of whole top-level domains are the entries to remove, and have their own warning.
        wildcards = {name for name in self._views[hosts].below if "." in name}
        if not wildcards:
            return
        for text, place in hosts.patterns.items():
            for name in names_above(text[2:] if text[0] == "*" else text, [wildcards])[:1]:
                there = elsewhere(hosts.patterns[f"*.{name}"], place)
                what = f"`{text}` adds nothing to `*.{name}` on {there}"
                self._report.warning(Code.REDUNDANT_RULE, place, what, "remove it")

    def _find_closed_networks(self, rule: Rule, denials: list[Coverage]) -> None:
        """Warn of private networks that a rule opens and a deny rule closes."""
        for network in rule.allow_private:
            inner = Rule(
                *(rule.action, network, rule.place, rule.ports), conditions=rule.conditions
            )
            closing: Iterator[Rule | None] = (coverage.closing(inner, ()) for coverage in denials)
            denial = next((found for found in closing if found is not None), None)
            if denial is not None:
                place = elsewhere(denial.place, rule.place)
                what = f"`allow_private: {network}` changes nothing: the rule on {place} denies it"
                instead = "remove one of the two"
                self._report.warning(Code.WITHOUT_EFFECT, rule.place, what, instead)


def _filled(coverages: list[Coverage]) -> list[Coverage]:
    return [coverage for coverage in coverages if not coverage.is_empty]


def _clients(policy: Policy) -> _Clients:
    if policy.subjects is None:
        return None
    return frozenset(
        (subject.network, subject.user, subject.namespace, subject.pod_labels)
        for subject in policy.subjects
    )
