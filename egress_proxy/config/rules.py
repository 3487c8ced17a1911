"""Policies and their rules: from YAML to the values that are compiled."""

from __future__ import annotations

import re
from difflib import get_close_matches
from functools import lru_cache
from typing import Final

from egress_proxy.config.conditions import read_conditions
from egress_proxy.config.destinations import host_pattern, network
from egress_proxy.config.errors import Code, Report, elsewhere, quoted
from egress_proxy.config.limits import read_limits, tenant_name
from egress_proxy.config.nodes import fields, in_quotes, items, scalar, text
from egress_proxy.config.sets import Sets
from egress_proxy.config.subjects import read_subjects
from egress_proxy.config.upstream import ParentCredentials, read_route
from egress_proxy.config.values import NAME, NAME_FORM, ChoiceWithOff, ListOf, Reader, boolean
from egress_proxy.config.yaml_source import Mapping, Node, Scalar, Sequence, place_of
from egress_proxy.core.contract import ContractHeaders
from egress_proxy.core.networks import IPNetwork
from egress_proxy.core.policy import (
    DEFAULT_PORTS,
    EVERY_PORT,
    Action,
    HostPattern,
    HostSet,
    Place,
    Policy,
    PortRanges,
    Rule,
    Target,
)
from egress_proxy.core.upstream import Route

#: Entries of one rule's list. A decision walks along them.
MAX_PER_RULE: Final = 100
POLICY_KEYS: Final = (
    *("name", "subjects", *Action, "contract_headers"),
    *("limits", "tenant", "trust_tenant_header"),
)
POLICY_NOT_YET: Final = {
    "upstream": "write it on the rules, or at the top level",
}
RULE_KEYS: Final = (
    *("host", "cidr", "ports", "methods", "paths", "allow_private", "tls", "upstream"),
)
RULE_NOT_YET: Final[dict[str, str]] = {}

_POLICIES_EXAMPLE: Final = "a list of policies, each `- name: …` with `allow:`"
_RULES_EXAMPLE: Final = "a list of hosts, each `- example.com`"
_RULE_EXAMPLE: Final = "a host, or {host: example.com, ports: [443]}"

contract_headers: Final[Reader] = ChoiceWithOff(ContractHeaders)
allow_private_networks: Final = ListOf(network, MAX_PER_RULE, "[10.0.0.0/8]")


class PolicyReader:
    """Reads ``policies:`` of one file after the other; what is broken is reported and left out."""

    def __init__(self, sets: Sets, parents: ParentCredentials) -> None:
        self.policies: list[Policy] = []
        self.used_sets: set[str] = set()
        self._sets = sets
        self._parents = parents
        self._names: dict[str, Place] = {}

    def read(self, node: Node, report: Report) -> None:
        for item in items(node, "`policies`", report, _POLICIES_EXAMPLE) or ():
            policy = self._policy(item, report)
            if policy is not None:
                self.policies.append(policy)

    def _policy(self, node: Node, report: Report) -> Policy | None:
        example = "`name: …` and `allow: […]`"
        found = fields(node, "a policy", report, POLICY_KEYS, POLICY_NOT_YET, example)
        if not isinstance(node, Mapping):
            return None
        place = place_of(node, report)
        name = _policy_name(found, node, report, self._names)
        subjects = read_subjects(found["subjects"], report) if "subjects" in found else None
        rules: list[Rule] = []
        for action in Action:
            if action in found:
                rules += self._rules(found[action], action, report)
        # A key that was reported does not count as missing.
        if not {key.text for key, _ in node.entries} & {*Action, *POLICY_NOT_YET}:
            what = "the policy has no rules"
            report.error(Code.MISSING_KEY, place, what, f"write `allow:` with {_RULES_EXAMPLE}")
        contract: ContractHeaders | None = None
        if "contract_headers" in found:
            contract = contract_headers(found["contract_headers"], "`contract_headers`", report)
        limits = read_limits(found["limits"], report) if "limits" in found else None
        tenant: str | None = None
        if "tenant" in found:
            tenant = tenant_name(found["tenant"], "`tenant`", report)
        trust: bool | None = False
        if "trust_tenant_header" in found:
            trust = boolean(found["trust_tenant_header"], "`trust_tenant_header`", report)
        _warn_of_idle_limits(found, report)
        return Policy(
            *(name, tuple(rules), subjects, place, contract, limits, tenant),
            trust_tenant_header=bool(trust),
        )

    def _rules(self, node: Node, action: Action, report: Report) -> list[Rule]:
        found: list[Rule] = []
        for item in items(node, f"`{action}`", report, _RULES_EXAMPLE) or ():
            read = self._short_rule if isinstance(item, Scalar) else self._long_rule
            rule = read(item, action, report)
            if rule is not None:
                found.append(rule)
        return found

    def _short_rule(self, node: Node, action: Action, report: Report) -> Rule | None:
        target = self._hosts(node, f"a rule of `{action}`", report)
        if target is None:
            return None
        return Rule(action, target, place_of(node, report), _default_ports(action))

    def _long_rule(self, node: Node, action: Action, report: Report) -> Rule | None:
        found = fields(node, "a rule", report, RULE_KEYS, RULE_NOT_YET, _RULE_EXAMPLE)
        if not isinstance(node, Mapping):
            return None
        place = place_of(node, report)
        ports: PortRanges | None = _default_ports(action)
        if "ports" in found:
            ports = _ports(found["ports"], report)
        lifted: tuple[IPNetwork, ...] | None = ()
        if "allow_private" in found:
            lifted = allow_private_networks(found["allow_private"], "`allow_private`", report)
            if action is Action.DENY or "cidr" in found:
                what = "`allow_private` belongs to a rule with `host` under `allow` or `ask`"
                there = place_of(found["allow_private"], report)
                report.error(Code.CONFLICT, there, what, "remove it")
        tls: bool | None = True
        if "tls" in found:
            tls = _tls(found["tls"], report)
            if action is Action.DENY:
                what = "`tls` belongs to a rule under `allow` or `ask`"
                report.error(Code.CONFLICT, place_of(found["tls"], report), what, "remove it")
        route: Route | None = None
        if "upstream" in found:
            route = read_route(found["upstream"], report, self._parents)
            if action is Action.DENY:
                what = "`upstream` belongs to a rule under `allow` or `ask`"
                report.error(Code.CONFLICT, place_of(found["upstream"], report), what, "remove it")
        conditions, understood = read_conditions(found, report)
        if "tls" in found and conditions is not None:
            what = "a rule with `methods` or `paths` is for no tunnel, so `tls` says nothing"
            report.error(Code.CONFLICT, place_of(found["tls"], report), what, "remove it")
        if "host" in found and "cidr" in found:
            what = "a rule has both `host` and `cidr`"
            report.error(Code.CONFLICT, place, what, "write two rules")
            return None
        target: Target | None = None
        if "host" in found:
            target = self._hosts(found["host"], "`host`", report)
        elif "cidr" in found:
            target = network(found["cidr"], "`cidr`", report)
        elif node.entries and all(
            key.text in RULE_KEYS and key.text not in ("host", "cidr") for key, _ in node.entries
        ):
            what = "the rule has neither `host` nor `cidr`"
            report.error(Code.MISSING_KEY, place, what, f"write {_RULE_EXAMPLE}")
        if target is None or ports is None or lifted is None or tls is None or not understood:
            return None
        return Rule(action, target, place, ports, lifted, tls, route, conditions)

    def _hosts(self, node: Node, name: str, report: Report) -> HostPattern | HostSet | None:
        """A host pattern, or ``@NAME`` for a set."""
        if not isinstance(node, Scalar) or not node.text.startswith("@"):
            return host_pattern(node, name, report)
        wanted = node.text[1:]
        found = self._sets.get(wanted)
        if found is None:
            what = f"there is no set {quoted(wanted)}" if wanted else "`@` names no set"
            instead = "define it under `sets`" if wanted else 'write "@NAME"'
            close = get_close_matches(wanted[:64], self._sets, n=1)
            if close:
                instead = f'did you mean "@{close[0]}"?'
            report.error(Code.UNKNOWN_SET, place_of(node, report), what, instead)
            return None
        self.used_sets.add(wanted)
        return found


def _warn_of_idle_limits(found: dict[str, Node], report: Report) -> None:
    """What a policy says about its tenants, and nobody ever asks."""
    if "limits" in found and not {Action.ALLOW, Action.ASK} & found.keys():
        what = "the policy lets nothing through, so its `limits` never take effect"
        there = place_of(found["limits"], report)
        report.warning(Code.WITHOUT_EFFECT, there, what, "write them in the policy with `allow`")
    trust = found.get("trust_tenant_header")
    if "tenant" in found and isinstance(trust, Scalar) and trust.text == "true":
        what = "the policy names its `tenant`, so `trust_tenant_header` never takes effect"
        there = place_of(trust, report)
        report.warning(Code.WITHOUT_EFFECT, there, what, "remove one of them")


def _policy_name(
    found: dict[str, Node], policy: Mapping, report: Report, names: dict[str, Place]
) -> str:
    if "name" not in found:
        if "name" not in {key.text for key, _ in policy.entries}:
            report.error(
                Code.MISSING_KEY,
                place_of(policy, report),
                "the policy has no name",
                "write `name: …`",
            )
        return ""
    node = found["name"]
    name = text(node, "the name of a policy", report, NAME_FORM, in_quotes)
    if name is None:
        return ""
    place = place_of(node, report)
    if not NAME.fullmatch(name):
        report.error(
            Code.BAD_VALUE, place, f"{quoted(name)} cannot be the name of a policy", NAME_FORM
        )
    elif name in names:
        taken = elsewhere(names[name], place)
        what = f"the name {quoted(name)} is taken by the policy on {taken}"
        report.error(Code.CONFLICT, place, what, "write another one")
    names.setdefault(name, place)
    return name


def _default_ports(action: Action) -> PortRanges:
    """An allow opens as little, and a deny closes as much, as its writer may have meant."""
    return EVERY_PORT if action is Action.DENY else DEFAULT_PORTS


def _tls(node: Node, report: Report) -> bool | None:
    """Read ``tls: off`` or ``tls: verify``. To YAML 1.1 the first is a truth value, and to its writer it never was."""
    instead = "write `tls: off` or `tls: verify`"
    found = scalar(node, "`tls`", report, instead)
    if found is None:
        return None
    if found.text not in ("off", "verify"):
        what = f"`tls` cannot be {quoted(found.text)}"
        report.error(Code.BAD_VALUE, place_of(node, report), what, instead)
        return None
    return found.text == "verify"


# Ports ------------------------------------------------------------------------------------------

_PORT: Final = re.compile(r"[1-9][0-9]{0,4}")
_PORT_FORM: Final = 'write a number from 1 to 65535, or a range such as "8000-8010"'


def _ports(node: Node, report: Report) -> PortRanges | None:
    if isinstance(node, Scalar):
        example = node.text if _PORT.fullmatch(node.text) else "443"
        what = f"`ports` must be a list, not {quoted(node.text)}"
        report.error(Code.WRONG_TYPE, place_of(node, report), what, f"write [{example}]")
        return None
    if isinstance(node, Sequence):
        # Many rules of a long file have the same ports.
        known = _good_ports(
            tuple(
                (item.text, item.plain and not item.several_lines)
                if isinstance(item, Scalar)
                else ("", False)
                for item in node.items
            )
        )
        if known is not None:
            return known
    ranges = ListOf(_port_range, MAX_PER_RULE, "[443]")(node, "`ports`", report)
    return None if ranges is None else merge_ports(ranges)


@lru_cache(maxsize=1024)
def _good_ports(items: tuple[tuple[str, bool], ...]) -> PortRanges | None:
    """The ports of a list of plain numbers, each with whether it is plain; None for whatever needs a closer look."""
    if not 0 < len(items) <= MAX_PER_RULE:
        return None
    if not all(plain and _PORT.fullmatch(text) and int(text) <= 65535 for text, plain in items):
        return None
    return merge_ports(tuple((int(text), int(text)) for text, _ in items))


def _port_range(node: Node, name: str, report: Report) -> tuple[int, int] | None:
    found = scalar(node, name, report, _PORT_FORM)
    if found is None:
        return None
    place = place_of(node, report)
    low, dash, high = found.text.partition("-")
    if not dash and not found.plain and _PORT.fullmatch(low):
        report.error(
            Code.WRONG_TYPE, place, f"{name} is a number in quotes", f"write {low} without quotes"
        )
        return None
    if not _PORT.fullmatch(low) or (dash and not _PORT.fullmatch(high)):
        report.error(
            Code.BAD_PORT, place, f"{name} is not a port: {quoted(found.text)}", _PORT_FORM
        )
        return None
    first, last = int(low), int(high) if dash else int(low)
    if last > 65535 or first > 65535:
        report.error(
            Code.BAD_PORT, place, f"{name} is not a port: {quoted(found.text)}", _PORT_FORM
        )
        return None
    if first > last:
        report.error(
            Code.BAD_PORT,
            place,
            f"{name} ends before it starts: {quoted(found.text)}",
            f"write {last}-{first}",
        )
        return None
    return first, last


def merge_ports(ranges: tuple[tuple[int, int], ...]) -> PortRanges:
    """The same ports as few ranges, in order."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], high))
        else:
            merged.append((low, high))
    return tuple(merged)
