"""Policies and their rules: from YAML to the values that are compiled."""

from __future__ import annotations

import re
from typing import Final

from egress_proxy.config.destinations import host_pattern, network
from egress_proxy.config.errors import Report, quoted
from egress_proxy.config.nodes import fields, in_quotes, items, scalar, text
from egress_proxy.config.values import ListOf
from egress_proxy.config.yaml_source import Mapping, Node, Scalar, place_of
from egress_proxy.core.addresses import IPNetwork
from egress_proxy.core.policy import (
    DEFAULT_PORTS,
    EVERY_PORT,
    Action,
    HostPattern,
    Place,
    Policy,
    PortRanges,
    Rule,
)

#: Entries of one rule's list. A decision walks along them.
MAX_PER_RULE: Final = 100
#: Networks of one policy's subjects.
MAX_SUBJECTS: Final = 1000

POLICY_KEYS: Final = ("name", "subjects", "allow", "deny")
POLICY_NOT_YET: Final = {
    "ask": "remove it: what no rule allows stays denied",
    "limits": "remove it, and limit the traffic elsewhere",
    "on_revoke": "remove it: open tunnels outlive a change of the policy",
    "tls": "remove it: what flows inside a tunnel is not looked at",
    "contract_headers": "remove it: no header is required",
    "sets": "remove it, and write the hosts into the policy",
    "include": "remove it, and write the policy into this file",
    "upstream": "remove it: destinations are reached directly",
}
SUBJECT_KEYS: Final = ("cidr",)
_BY_ADDRESS: Final = "write {cidr: …} with the addresses of these clients"
SUBJECT_NOT_YET: Final = {
    "user": _BY_ADDRESS,
    "namespace": _BY_ADDRESS,
    "pod_labels": _BY_ADDRESS,
    "service_account": _BY_ADDRESS,
}
RULE_KEYS: Final = ("host", "cidr", "ports", "allow_private")
RULE_NOT_YET: Final = {
    "tls": "remove it: what flows inside a tunnel is not looked at",
    "set": "remove it, and write a rule for each host of the set",
    "on_revoke": POLICY_NOT_YET["on_revoke"],
    "upstream": POLICY_NOT_YET["upstream"],
}

_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_NAME_FORM: Final = "write 1 to 64 letters, digits, dots, hyphens or underscores"
_POLICIES_EXAMPLE: Final = "a list of policies, each `- name: …` with `allow:`"
_RULES_EXAMPLE: Final = "a list of hosts, each `- example.com`"
_RULE_EXAMPLE: Final = "a host, or {host: example.com, ports: [443]}"

_allow_private: Final = ListOf(network, MAX_PER_RULE, "[10.0.0.0/8]")


def policies(node: Node, name: str, report: Report) -> tuple[Policy, ...]:
    """Read ``policies:``; what is broken is reported and left out."""
    found: list[Policy] = []
    names: dict[str, Place] = {}
    for item in items(node, name, report, _POLICIES_EXAMPLE) or ():
        policy = _policy(item, report, names)
        if policy is not None:
            found.append(policy)
    return tuple(found)


def _policy(node: Node, report: Report, names: dict[str, Place]) -> Policy | None:
    found = fields(
        node, "a policy", report, POLICY_KEYS, POLICY_NOT_YET, "`name: …` and `allow: […]`"
    )
    if not isinstance(node, Mapping):
        return None
    place = place_of(node, report)
    name = _policy_name(found, node, report, names)
    subjects = _subjects(found["subjects"], report) if "subjects" in found else None
    rules: list[Rule] = []
    for action in Action:
        if action in found:
            rules += _rules(found[action], action, report)
    # A key that was reported does not count as missing.
    if not {key.text for key, _ in node.entries} & {"allow", "deny", *POLICY_NOT_YET}:
        report.error(place, "the policy has no rules", f"write `allow:` with {_RULES_EXAMPLE}")
    return Policy(name, tuple(rules), subjects, place)


def _policy_name(
    found: dict[str, Node], policy: Mapping, report: Report, names: dict[str, Place]
) -> str:
    if "name" not in found:
        if "name" not in {key.text for key, _ in policy.entries}:
            report.error(place_of(policy, report), "the policy has no name", "write `name: …`")
        return ""
    node = found["name"]
    name = text(node, "the name of a policy", report, _NAME_FORM, in_quotes)
    if name is None:
        return ""
    place = place_of(node, report)
    if not _NAME.fullmatch(name):
        report.error(place, f"{quoted(name)} cannot be the name of a policy", _NAME_FORM)
    elif name in names:
        what = f"the name {quoted(name)} is taken by the policy on line {names[name].line}"
        report.error(place, what, "write another one")
    names.setdefault(name, place)
    return name


def _subjects(node: Node, report: Report) -> tuple[IPNetwork, ...]:
    entries = items(node, "`subjects`", report, "[{cidr: 10.20.0.0/16}]") or []
    if len(entries) > MAX_SUBJECTS:
        what = f"`subjects` has {len(entries):,} entries"
        report.error(place_of(node, report), what, f"write at most {MAX_SUBJECTS:,}")
        return ()
    networks: list[IPNetwork] = []
    for entry in entries:
        found = fields(
            entry, "a subject", report, SUBJECT_KEYS, SUBJECT_NOT_YET, "{cidr: 10.20.0.0/16}"
        )
        if "cidr" in found:
            subject = network(found["cidr"], "the `cidr` of a subject", report)
            if subject is not None:
                networks.append(subject)
    return tuple(networks)


def _rules(node: Node, action: Action, report: Report) -> list[Rule]:
    found: list[Rule] = []
    for item in items(node, f"`{action}`", report, _RULES_EXAMPLE) or ():
        read = _short_rule if isinstance(item, Scalar) else _long_rule
        rule = read(item, action, report)
        if rule is not None:
            found.append(rule)
    return found


def _default_ports(action: Action) -> PortRanges:
    """An allow opens as little, and a deny closes as much, as its writer may have meant."""
    return DEFAULT_PORTS if action is Action.ALLOW else EVERY_PORT


def _short_rule(node: Node, action: Action, report: Report) -> Rule | None:
    pattern = host_pattern(node, f"a rule of `{action}`", report)
    if pattern is None:
        return None
    return Rule(action, pattern, place_of(node, report), _default_ports(action))


def _long_rule(node: Node, action: Action, report: Report) -> Rule | None:
    found = fields(node, "a rule", report, RULE_KEYS, RULE_NOT_YET, _RULE_EXAMPLE)
    if not isinstance(node, Mapping):
        return None
    place = place_of(node, report)
    ports: PortRanges | None = _default_ports(action)
    if "ports" in found:
        ports = _ports(found["ports"], report)
    lifted: tuple[IPNetwork, ...] | None = ()
    if "allow_private" in found:
        lifted = _allow_private(found["allow_private"], "`allow_private`", report)
        if action is not Action.ALLOW or "cidr" in found:
            what = "`allow_private` belongs to a rule with `host` under `allow`"
            report.error(place_of(found["allow_private"], report), what, "remove it")
    if "host" in found and "cidr" in found:
        report.error(place, "a rule has both `host` and `cidr`", "write two rules")
        return None
    target: HostPattern | IPNetwork | None = None
    if "host" in found:
        target = host_pattern(found["host"], "`host`", report)
    elif "cidr" in found:
        target = network(found["cidr"], "`cidr`", report)
    elif node.entries and all(key.text in ("ports", "allow_private") for key, _ in node.entries):
        report.error(place, "the rule has neither `host` nor `cidr`", f"write {_RULE_EXAMPLE}")
    if target is None or ports is None or lifted is None:
        return None
    return Rule(action, target, place, ports, lifted)


# Ports ------------------------------------------------------------------------------------------

_PORT: Final = re.compile(r"[1-9][0-9]{0,4}")
_PORT_FORM: Final = 'write a number from 1 to 65535, or a range such as "8000-8010"'


def _ports(node: Node, report: Report) -> PortRanges | None:
    if isinstance(node, Scalar):
        example = node.text if _PORT.fullmatch(node.text) else "443"
        what = f"`ports` must be a list, not {quoted(node.text)}"
        report.error(place_of(node, report), what, f"write [{example}]")
        return None
    ranges = ListOf(_port_range, MAX_PER_RULE, "[443]")(node, "`ports`", report)
    return None if ranges is None else merge_ports(ranges)


def _port_range(node: Node, name: str, report: Report) -> tuple[int, int] | None:
    found = scalar(node, name, report, _PORT_FORM)
    if found is None:
        return None
    place = place_of(node, report)
    low, dash, high = found.text.partition("-")
    if not dash and not found.plain and _PORT.fullmatch(low):
        report.error(place, f"{name} is a number in quotes", f"write {low} without quotes")
        return None
    if not _PORT.fullmatch(low) or (dash and not _PORT.fullmatch(high)):
        report.error(place, f"{name} is not a port: {quoted(found.text)}", _PORT_FORM)
        return None
    first, last = int(low), int(high) if dash else int(low)
    if last > 65535 or first > 65535:
        report.error(place, f"{name} is not a port: {quoted(found.text)}", _PORT_FORM)
        return None
    if first > last:
        report.error(
            place, f"{name} ends before it starts: {quoted(found.text)}", f"write {last}-{first}"
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
