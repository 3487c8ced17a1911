"""What was decided of a squid.conf as policies, with the names of Squid's acls."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from egress_proxy.config.rules import MAX_PER_RULE
from egress_proxy.config.sets import MAX_SETS
from egress_proxy.config.subjects import MAX_SUBJECTS
from egress_proxy.migrate.ordered import Draft, Entry
from egress_proxy.migrate.squid_decisions import Decisions, Rule
from egress_proxy.migrate.ways import EVERY_PATH, Said
from egress_proxy.migrate.writing import (
    WrittenPolicy,
    WrittenRule,
    flow_text,
    policy_name,
)

#: Hosts about which several rules, or long ones, say the same: so many are written once, as a set.
_WORTH_A_SET: Final = 3

#: Names of sets, by their hosts.
Sets = dict[tuple[str, ...], str]


def written(
    decisions: Decisions, drafts: Iterable[Draft]
) -> tuple[list[WrittenPolicy], dict[str, tuple[str, ...]]]:
    """The policies, and the sets of hosts that they use."""
    taken: set[str] = set()
    sets: Sets = {}
    policies: list[WrittenPolicy] = []
    for draft in drafts:
        if draft.rule < len(decisions.rules):
            rule = decisions.rules[draft.rule]
            wanted = _name(rule)
            comment = f"{rule.line.file}:{rule.line.line}: {rule.line}"
        else:
            wanted = "default"
            comment = "What no line of Squid's decides: the opposite of its last line."
        allow, deny = (
            tuple(_rules(decisions, entries, sets, wanted, deny=denying))
            for entries, denying in ((draft.allow, False), (draft.deny, True))
        )
        if not allow and not deny:
            continue
        comments = (comment, *_explained(allow, deny))
        for subjects in _subjects(decisions, draft.clients):
            name = policy_name(wanted, taken)
            policies.append(WrittenPolicy(name, comments, subjects, allow, deny))
    return policies, {name: hosts for hosts, name in sets.items()}


def _explained(allow: Sequence[WrittenRule], deny: Sequence[WrittenRule]) -> Iterable[str]:
    """Why a policy denies what it seems to allow, or seems to deny all."""
    if any(rule.paths == (EVERY_PATH,) and not rule.methods for rule in deny):
        beside = "Squid allows CONNECT alone" if allow else "CONNECT stays as it is"
        yield f"The deny with `paths: [/]` is for plain requests, and never for tunnels: {beside}."


def _name(rule: Rule) -> str:
    """The names of the rule's acls, but for those that a policy does not need."""
    names = [
        ("not-" if literal.negated else "") + literal.name
        for literal in rule.literals
        if literal.name not in ("all", "connect") or len(rule.literals) == 1
    ]
    return "-".join(names) or "all"


def _subjects(decisions: Decisions, clients: frozenset[int]) -> Iterable[tuple[str, ...] | None]:
    """The subjects of each policy that is needed to name these clients."""
    found = decisions.clients_of(clients)
    if found is None:
        yield None
        return
    for start in range(0, len(found), MAX_SUBJECTS):
        yield tuple(
            f"{{cidr: {flow_text(str(network))}}}"
            for network in found[start : start + MAX_SUBJECTS]
        )


def _rules(
    decisions: Decisions, entries: Sequence[Entry], sets: Sets, wanted: str, *, deny: bool
) -> Iterable[WrittenRule]:
    alike: dict[int, list[str]] = {}
    for entry in entries:
        if entry.pattern not in ("", "*"):
            alike.setdefault(entry.ports, []).append(entry.pattern)
    done: set[int] = set()
    sayings = {
        ports: decisions.ways.said(ports, deny=deny) for ports in {one.ports for one in entries}
    }
    for entry in entries:
        said = sayings[entry.ports]
        hosts = alike.get(entry.ports, [])
        targets: Iterable[str] = [entry.pattern]
        if not entry.pattern:
            targets = map(str, decisions.networks_of(entry.groups))
        elif entry.pattern != "*" and len(hosts) >= _WORTH_A_SET and _is_long(said):
            if entry.ports in done:
                continue
            done.add(entry.ports)
            name = _set_of(tuple(hosts), sets, wanted)
            targets = hosts if name is None else [f"@{name}"]
        for target in targets:
            for every, methods, paths in said:
                for start in range(0, len(every), MAX_PER_RULE):
                    ports = every[start : start + MAX_PER_RULE]
                    yield WrittenRule(target, ports, not entry.pattern, methods, paths)


def _is_long(said: Sequence[Said]) -> bool:
    return len(said) > 1 or any(one.methods or one.paths for one in said)


def _set_of(hosts: tuple[str, ...], sets: Sets, wanted: str) -> str | None:
    """The name of the set of these hosts; None where there are too many sets already."""
    if hosts not in sets:
        if len(sets) >= MAX_SETS:
            return None
        sets[hosts] = policy_name(wanted, {*sets.values()})
    return sets[hosts]
