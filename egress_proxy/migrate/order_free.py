"""From rules whose first match decides to policies whose order does not matter.

What an ordered list of rules decides is worked out for each kind of client and each region of hosts, with the ports as
a set of bits, each port once for each way to ask on it (:mod:`egress_proxy.migrate.ways`). This module writes those
decisions as allow and deny rules of ours:

- A wildcard that is allowed covers all below it, so what is decided otherwise below it needs a deny.
- A deny beats every allow. Where something below a denied wildcard is allowed again, which no order-free rules can say,
  it is lost: the result is narrower than the original and never wider.
- No rule allows CONNECT alone, so what it lets through besides needs a deny as well; nor does one deny CONNECT alone.
  Where that would cost plain requests that are allowed, CONNECT stays closed on the port, but for those where it is
  what matters (443): there the plain requests are lost.
- Rules go to as many clients as they do no harm to, because "all clients", or a network as it was written, reads better
  than what remains of it after exceptions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from egress_proxy.migrate.hosts import Region
from egress_proxy.migrate.ordered import Draft, Entry, Kept, Loss, Ordered, union

#: What a loss calls destinations that are no names.
_ADDRESSES: Final = "bare IP addresses"


@dataclass(slots=True)
class _View:
    """What one kind of client may reach once it is written without order, and the entries that say so."""

    exact: list[int]
    below: list[int]
    under: list[int]
    """Everything that some name below may be reached by."""
    cover: list[int]
    """What wildcards above a name grant."""
    denied: dict[Region, int]
    """What must be denied of a region that a rule grants it."""
    groups: list[int]
    closed: list[int]
    """For each group of addresses what closing rules deny."""
    free: dict[int, int]
    """For each closing rule what some name must not be closed for by it."""
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


# One kind of client ---------------------------------------------------------------------------------------------


def _view(rules: Ordered, client: int, losses: dict[Loss, None]) -> _View:
    tree = rules.tree
    size = len(tree.names)
    exact, below, under, cover = ([0] * size for _ in range(4))
    groups, closed = ([0] * rules.groups for _ in range(2))
    view = _View(exact, below, under, cover, {}, groups, closed, {})
    wanted = _wanted(rules, client)
    sought = [0] * size  # whatever is wanted of the names below a name
    for node in reversed(range(1, size)):
        sought[tree.parent[node]] |= sought[node] | wanted[node, False] | wanted[node, True]
    granted = [0] * size
    killed = [0] * size  # what wildcards deny for all below a name
    everywhere = _never_wanted(rules, wanted, sought[0] | wanted[0, True])
    for node in range(size):
        parent = tree.parent[node]
        kill = killed[parent] if node else everywhere
        above = view.cover[node] = granted[parent] & ~kill if node else 0
        for region in _regions(node):
            want = wanted[region] & ~kill
            found = _settled(rules, want, above, kill, sought[node] if region[1] else 0)
            _note_lost(rules, client, region, found, losses, wanted[region] & kill)
            may = want & ~found.unsaid & ~found.denied
            if region[1]:
                view.below[node] = may
                granted[node] = above | rules.ways.allowed(may & ~above)
                killed[node] = kill | found.denied
            else:
                view.exact[node] = may
            view.denied[region] = found.denied
    view.denied[0, True] |= everywhere
    for node in reversed(range(size)):
        view.under[node] |= view.below[node]
        if node:
            parent = tree.parent[node]
            view.under[parent] |= view.under[node] | view.exact[node]
    for node in sorted(range(size), key=lambda node: tree.rank[tree.names[node]]):
        _write_name(rules, client, node, view)
    _close(rules, client, view, losses)
    _write_groups(rules, client, view, losses)
    return view


def _wanted(rules: Ordered, client: int) -> dict[Region, int]:
    """What the original allows of each region of names."""
    return {
        region: union(rules.name_verdict(client, region).allowed)
        for node in range(len(rules.tree.names))
        for region in _regions(node)
    }


def _regions(node: int) -> tuple[Region, ...]:
    """A name, and all below it; the root is no name."""
    return ((node, False), (node, True)) if node else ((0, True),)


def _never_wanted(rules: Ordered, wanted: dict[Region, int], anywhere: int) -> int:
    """What several regions must deny because CONNECT is allowed there, and none allows: one deny is for all of them."""
    once = again = 0
    for want in wanted.values():
        gap = rules.ways.allowed(want) & ~want
        again |= once & gap
        once |= gap
    return rules.ways.denied(again & ~rules.ways.undeniable(anywhere)) if again else 0


@dataclass(frozen=True, slots=True)
class _Settled:
    """How a region is written that is not allowed as a whole."""

    denied: int
    unsaid: int
    """What is not allowed after all."""
    lost: int
    """What of it the denial takes."""


def _settled(rules: Ordered, want: int, cover: int, kill: int, sought: int) -> _Settled:
    """What must be denied of a region; ``sought`` is wanted of names below it, and denied with it.

    CONNECT is given up on ports where its denials would cost something that can be kept without it.
    """
    ways = rules.ways

    def denial(kept: int) -> int:
        return ways.denied((cover | ways.allowed(kept)) & ~kept & ~kill)

    denied = denial(want)
    harm = denied & (want | sought)
    unsaid = 0
    if harm:
        plain = want & ~(ways.ports_of(harm) & want & ~cover & ~rules.firm)
        # Only where that helps.
        still = denial(plain) & (plain | sought)
        unsaid = want & ~plain & ~ways.ports_of(still)
        denied = denial(want & ~unsaid)
    return _Settled(denied, unsaid, want & ~unsaid & denied)


def _note_lost(
    rules: Ordered,
    client: int,
    region: Region,
    found: _Settled,
    losses: dict[Loss, None],
    killed: int,
) -> None:
    """Note what is not allowed after all: what a wildcard above denies, and what the region's own denial costs."""
    if not (killed or found.lost or found.unsaid):
        return
    pattern = _pattern(rules, region)
    for rule, mask in rules.name_verdict(client, region).allowed.items():
        if mask & killed:
            by = _denier(rules, client, region[0], mask & killed)
            whole = killed & rules.ways.connect or not mask & ~killed
            losses[Loss(rule, by, pattern, Kept.NOTHING if whole else Kept.CONNECT)] = None
        if mask & found.lost:
            losses[Loss(rule, None, pattern, Kept.CONNECT)] = None
        if mask & found.unsaid:
            losses[Loss(rule, None, pattern, Kept.PLAIN)] = None


def _pattern(rules: Ordered, region: Region) -> str:
    node, below = region
    name = rules.tree.names[node]
    if not below:
        return name
    return f"*.{name}" if name else "*"


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
    for region in _regions(node):
        pattern = _pattern(rules, region)
        verdict = rules.name_verdict(client, region)
        may = view.below[node] if region[1] else view.exact[node]
        for rule, mask in verdict.allowed.items():
            if wanted := mask & may & ~view.cover[node]:
                _add(view.allow, rule, Entry(pattern, frozenset(), rules.ways.allowed(wanted)))
        excess = view.denied[region]
        beside: dict[int, int] = {}
        for rule, mask in verdict.denied.items():
            if excess & mask and rules.own_policy(rule):
                beside[rule] = beside.get(rule, 0) | (excess & mask)
                excess &= ~mask
        if excess:
            for rule, mask in _covering(rules, client, region, view, excess):
                beside[rule] = beside.get(rule, 0) | mask
        for rule, mask in beside.items():
            _add(view.deny, rule, Entry(pattern, frozenset(), rules.ways.denied(mask)))


def _covering(
    rules: Ordered, client: int, region: Region, view: _View, excess: int
) -> Iterator[tuple[int, int]]:
    """The rules beside which this is denied: those that grant it, here or by a wildcard above."""
    node, below = region
    found = rules.name_verdict(client, region)
    while excess:
        may = view.below[node] if below else view.exact[node]
        for rule, mask in found.allowed.items():
            mine = rules.ways.allowed(mask & may) & excess
            if mine:
                yield rule, mine
                excess &= ~mine
        if not node:
            break
        node, below = rules.tree.parent[node], True
        found = rules.name_verdict(client, (node, True))
    # What is denied once for all names is denied by what denies it to names in general.
    for rule, mask in found.denied.items():
        if mask & excess:
            yield rule, mask & excess
            excess &= ~mask
    if excess:
        yield min(found.denied, default=0), excess


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
    for rule, closing_ports in wanted.items():
        ports = rules.ways.denied(closing_ports)
        if not ports:
            continue
        _add(view.deny, rule, Entry("", rules.closes(rule), ports))
        for group in rules.closes(rule):
            view.closed[group] |= ports
        if ports & view.free[rule]:
            losses[Loss(rule, rule, "")] = None


def _write_groups(rules: Ordered, client: int, view: _View, losses: dict[Loss, None]) -> None:
    """The entries about literal addresses.

    Denials there are only of what CONNECT opens besides: any set of addresses can be allowed by itself.
    """
    ways = rules.ways
    names = view.under[0]  # a denied network is closed to names as well
    allowing: dict[tuple[int, int], set[int]] = {}
    denying: dict[tuple[int, int], set[int]] = {}
    for group in range(rules.groups):
        verdict = rules.group_verdict(client, group)
        closed = view.closed[group]
        want = union(verdict.allowed) & ~closed
        found = _settled(rules, want, 0, view.closed[group], names)
        # What would still cost names something is not allowed at all.
        spared = ways.on_its_ports(found.denied & names)
        may = want & ~found.unsaid & ~found.denied & ~spared
        denied = ways.denied(ways.allowed(may) & ~may & ~view.closed[group])
        may &= ~denied
        view.groups[group] = may
        view.closed[group] |= denied
        for rule, mask in verdict.allowed.items():
            if mask & may:
                allowing.setdefault((rule, mask & may), set()).add(group)
            if opened := ways.allowed(mask & may) & denied:
                denying.setdefault((rule, opened), set()).add(group)
            if lost := mask & want & ~may:
                kept = Kept.PLAIN if lost & ways.connect else Kept.CONNECT
                losses[Loss(rule, None, _ADDRESSES, kept)] = None
            if mask & closed:
                by = next(one for one in rules.closing_rules if group in rules.closes(one))
                losses[Loss(rule, by, _ADDRESSES)] = None
    for (rule, ports), some in allowing.items():
        exactly = frozenset(some)
        opened = ways.allowed(ports)
        # What else may be covered: it is allowed by another rule, or denied by a closing one.
        freely = exactly | {
            group
            for group in range(rules.groups)
            if not opened & ~(view.groups[group] | view.closed[group])
        }
        best = min((exactly, freely), key=rules.network_cost)
        _add(view.allow, rule, Entry("", best, opened))
    for (rule, ports), some in denying.items():
        _add(view.deny, rule, Entry("", frozenset(some), ways.denied(ports)))


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
    ports = rules.ways.denied(rules.ways.everywhere(entry.ports))
    widest = Entry(entry.pattern, entry.groups, ports)
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
        found = entry.ports & view.free.get(rule, view.under[0])
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
