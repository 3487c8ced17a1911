"""From rules whose first match decides to policies whose order does not matter.

What an ordered list of rules decides is worked out for each kind of client and each region of hosts, with the ports as
a set of bits. This module writes those decisions as allow and deny rules of ours:

- A wildcard that is allowed covers all below it, so what is decided otherwise below it needs a deny.
- A deny beats every allow. Where something below a denied wildcard is allowed again, which no order-free rules can say,
  it is lost: the result is narrower than the original and never wider.
- Rules go to as many clients as they do no harm to, because "all clients", or a network as it was written, reads better
  than what remains of it after exceptions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from egress_proxy.migrate.hosts import HostTree, Region

Clients = frozenset[int]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What ordered rules decide about one kind of client and one region of hosts: rule numbers with sets of ports.

    The ports of ``allowed`` and ``denied`` do not overlap. Ports in neither are denied too, by no rule in particular.
    """

    allowed: dict[int, int]
    denied: dict[int, int]
    closing: dict[int, int]
    """Rules that deny the host all the same where one of its addresses lies in their networks."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One rule of ours: a name or a wildcard, or else the networks of some groups of addresses."""

    pattern: str
    """Empty for networks."""
    groups: frozenset[int]
    ports: int


@dataclass(frozen=True, slots=True)
class Draft:
    """A policy before its clients, ports and networks are written out."""

    rule: int
    clients: Clients
    allow: tuple[Entry, ...]
    deny: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Loss:
    """An allowed destination that order-free rules cannot keep."""

    rule: int
    """The rule that allowed it."""
    by: int | None
    """The rule that now denies it; None for one that is not known."""
    what: str
    """A pattern, or empty for names in general."""


@dataclass(frozen=True, slots=True)
class Ordered:
    """A list of rules whose first match decides, over finitely many kinds of clients and hosts."""

    tree: HostTree
    clients: int
    groups: int
    """How many kinds of literal addresses there are."""
    name_verdict: Callable[[int, Region], Verdict]
    """By client and region of names."""
    group_verdict: Callable[[int, int], Verdict]
    """By client and group of addresses."""
    closes: Callable[[int], frozenset[int]]
    """The groups of addresses that a closing rule denies."""
    own_policy: Callable[[int], bool]
    """Whether what a rule denies belongs into a policy of its own, or beside what it is an exception from."""
    natural: Callable[[int], Clients]
    """The clients that a rule names."""
    client_cost: Callable[[Clients], int]
    """How many subjects say these clients: 0 for all of them."""
    network_cost: Callable[[frozenset[int]], int]
    every_port: int
    closing_rules: tuple[int, ...] = ()


@dataclass(slots=True)
class _View:
    """What one kind of client may reach once it is written without order, and the entries that say so."""

    exact: list[int]
    below: list[int]
    under: list[int]
    """Every port that some name below may be reached on."""
    groups: list[int]
    closed: list[int]
    """For each group of addresses the ports that closing rules deny."""
    free: dict[int, int]
    """For each closing rule the ports on which some name must not be closed by it."""
    allow: dict[int, list[Entry]] = field(default_factory=dict)
    deny: dict[int, list[Entry]] = field(default_factory=dict)


def order_free(rules: Ordered) -> tuple[list[Draft], list[Loss]]:
    """The drafts, by the number of their rule, and what they lose."""
    losses: dict[Loss, None] = {}
    views = [_view(rules, client, losses) for client in range(rules.clients)]
    drafts: list[Draft] = []
    for rule in sorted({rule for view in views for rule in (*view.allow, *view.deny)}):
        drafts += _drafts(rules, views, rule)
    return drafts, list(losses)


def union(masks: dict[int, int]) -> int:
    found = 0
    for mask in masks.values():
        found |= mask
    return found


# One kind of client ---------------------------------------------------------------------------------------------


def _view(rules: Ordered, client: int, losses: dict[Loss, None]) -> _View:
    tree = rules.tree
    size = len(tree.names)
    view = _View([0] * size, [0] * size, [0] * size, [], [0] * rules.groups, {})
    killed = [0] * size  # ports that wildcards close for all below a name
    for node in range(size):
        parent = tree.parent[node]
        kill = killed[parent] if node else 0
        below = rules.name_verdict(client, (node, True))
        open_below = union(below.allowed)
        if node:
            exact = rules.name_verdict(client, (node, False))
            for verdict, shape in ((exact, "{}"), (below, "*.{}")):
                for rule, mask in verdict.allowed.items():
                    if mask & kill:
                        by = _denier(rules, client, node, mask & kill)
                        losses[Loss(rule, by, shape.format(tree.names[node]))] = None
            view.exact[node] = union(exact.allowed) & ~kill
            view.below[node] = open_below & ~kill
            killed[node] = kill | (view.below[parent] & ~view.below[node])
        else:
            view.below[node] = open_below
    for node in reversed(range(size)):
        view.under[node] |= view.below[node]
        if node:
            parent = tree.parent[node]
            view.under[parent] |= view.under[node] | view.exact[node]
    for node in sorted(range(size), key=lambda node: tree.rank[tree.names[node]]):
        _write_name(rules, client, node, view)
    _close(rules, client, view, losses)
    _write_groups(rules, client, view)
    return view


def _denier(rules: Ordered, client: int, node: int, ports: int) -> int | None:
    """A rule because of which a wildcard above this name closes these ports."""
    while node:
        node = rules.tree.parent[node]
        for rule, mask in rules.name_verdict(client, (node, True)).denied.items():
            if mask & ports:
                return rule
    return None


def _write_name(rules: Ordered, client: int, node: int, view: _View) -> None:
    """The entries about one mentioned name and about all below it."""
    tree = rules.tree
    name = tree.names[node]
    cover = view.below[tree.parent[node]] if node else 0
    for below in (False, True):
        if not node and not below:
            continue
        pattern = (f"*.{name}" if name else "*") if below else name
        verdict = rules.name_verdict(client, (node, below))
        may = view.below[node] if below else view.exact[node]
        for rule, mask in verdict.allowed.items():
            if mask & may & ~cover:
                _add(view.allow, rule, Entry(pattern, frozenset(), mask & may))
        excess = cover & ~may
        if not excess:
            continue
        beside: dict[int, int] = {}
        for rule, mask in verdict.denied.items():
            if excess & mask and rules.own_policy(rule):
                beside[rule] = beside.get(rule, 0) | (excess & mask)
                excess &= ~mask
        if excess:
            for rule, mask in _covering(rules, client, node, view, excess):
                beside[rule] = beside.get(rule, 0) | mask
        for rule, mask in beside.items():
            _add(view.deny, rule, Entry(pattern, frozenset(), mask))


def _covering(
    rules: Ordered, client: int, node: int, view: _View, ports: int
) -> Iterator[tuple[int, int]]:
    """The rules whose wildcards above this name allow these ports."""
    while ports and node:
        node = rules.tree.parent[node]
        for rule, mask in rules.name_verdict(client, (node, True)).allowed.items():
            found = mask & view.below[node] & ports
            if found:
                yield rule, found
                ports &= ~found


def _add(entries: dict[int, list[Entry]], rule: int, entry: Entry) -> None:
    entries.setdefault(rule, []).append(entry)


def _close(rules: Ordered, client: int, view: _View, losses: dict[Loss, None]) -> None:
    """Networks that names must not resolve into."""
    wanted = dict.fromkeys(rules.closing_rules, 0)
    view.free = dict.fromkeys(rules.closing_rules, 0)
    for node in range(len(rules.tree.names) if rules.closing_rules else 0):
        for below in (False, True):
            may = view.below[node] if below else view.exact[node]
            if may:
                closing = rules.name_verdict(client, (node, below)).closing
                for rule in rules.closing_rules:
                    wanted[rule] |= may & closing.get(rule, 0)
                    view.free[rule] |= may & ~closing.get(rule, 0)
    for rule, ports in wanted.items():
        if not ports:
            continue
        _add(view.deny, rule, Entry("", rules.closes(rule), ports))
        for group in rules.closes(rule):
            view.closed[group] |= ports
        if ports & view.free[rule]:
            losses[Loss(rule, rule, "")] = None


def _write_groups(rules: Ordered, client: int, view: _View) -> None:
    """The entries about literal addresses: allow rules alone, since any set of addresses can be written."""
    verdicts = [rules.group_verdict(client, group) for group in range(rules.groups)]
    view.groups = [
        union(verdict.allowed) & ~view.closed[group] for group, verdict in enumerate(verdicts)
    ]
    wanted: dict[tuple[int, int], set[int]] = {}
    for group, verdict in enumerate(verdicts):
        for rule, mask in verdict.allowed.items():
            if mask & view.groups[group]:
                wanted.setdefault((rule, mask & view.groups[group]), set()).add(group)
    for (rule, ports), found in wanted.items():
        exactly = frozenset(found)
        # What else may be covered: it is allowed by another rule, or denied by a closing one.
        freely = exactly | {
            group
            for group in range(rules.groups)
            if not ports & ~(view.groups[group] | view.closed[group])
        }
        best = min((exactly, freely), key=rules.network_cost)
        _add(view.allow, rule, Entry("", best, ports))


# All clients ----------------------------------------------------------------------------------------------------


def _drafts(rules: Ordered, views: list[_View], rule: int) -> Iterator[Draft]:
    """The policies of one rule: one, unless its clients need different entries."""
    variants: dict[tuple[tuple[Entry, ...], tuple[Entry, ...]], set[int]] = {}
    for client, view in enumerate(views):
        entries = (tuple(view.allow.get(rule, ())), tuple(view.deny.get(rule, ())))
        if any(entries):
            variants.setdefault(entries, set()).add(client)
    ordered = sorted(variants.items(), key=lambda item: -len(item[0][0]) - len(item[0][1]))
    kept: list[tuple[tuple[tuple[Entry, ...], tuple[Entry, ...]], set[int], set[int]]] = []
    for entries, clients in ordered:
        for larger, its_clients, unharmed in kept:
            if clients <= unharmed and all(
                set(mine) <= set(theirs) for mine, theirs in zip(entries, larger, strict=True)
            ):
                its_clients.update(clients)
                break
        else:
            harmless = {
                client
                for client, view in enumerate(views)
                if client in clients or _harmless(rules, view, rule, *entries)
            }
            kept.append((entries, clients, harmless))
    for (allow, deny), clients, harmless in kept:
        candidates = (clients | (harmless & rules.natural(rule)), clients, harmless)
        best = min(map(frozenset, candidates), key=rules.client_cost)
        chosen = [views[client] for client in best]
        yield Draft(
            rule, best, allow, tuple(_widened(rules, chosen, rule, entry) for entry in deny)
        )


def _widened(rules: Ordered, views: list[_View], rule: int, entry: Entry) -> Entry:
    """The deny for every port, which is what one without ports means, where that denies nothing more."""
    widest = Entry(entry.pattern, entry.groups, rules.every_port)
    return entry if any(_loses(rules, view, rule, widest) for view in views) else widest


def _harmless(
    rules: Ordered, view: _View, rule: int, allow: tuple[Entry, ...], deny: tuple[Entry, ...]
) -> bool:
    """Whether a client to which the entries were not written for loses and gains nothing by them."""
    return not any(_gains(rules, view, entry) for entry in allow) and not any(
        _loses(rules, view, rule, entry) for entry in deny
    )


def _gains(rules: Ordered, view: _View, entry: Entry) -> int:
    if not entry.pattern:
        found = 0
        for group in entry.groups:
            found |= entry.ports & ~(view.groups[group] | view.closed[group])
        return found
    node, below = _region(rules, entry.pattern)
    # Below a wildcard, what the client may not reach is denied wherever its own wildcards cover it.
    return entry.ports & ~(view.below[node] if below else view.exact[node])


def _loses(rules: Ordered, view: _View, rule: int, entry: Entry) -> int:
    if not entry.pattern:
        found = entry.ports & view.free.get(rule, 0)
        for group in entry.groups:
            found |= entry.ports & view.groups[group]
        return found
    node, below = _region(rules, entry.pattern)
    return entry.ports & (view.under[node] if below else view.exact[node])


def _region(rules: Ordered, pattern: str) -> Region:
    if pattern == "*":
        return 0, True
    below = pattern.startswith("*.")
    return rules.tree.number[pattern.removeprefix("*.")], below
