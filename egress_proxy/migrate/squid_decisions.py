"""What Squid's access lists decide, for each kind of client and region of hosts that acls tell apart.

On which ports and in which ways, CONNECT or a plain request of some method and path, is a set of bits
(:mod:`egress_proxy.migrate.ways`).

An allow counts where it surely matches and a deny wherever it may, so that what cannot be known here is denied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from egress_proxy.core.networks import IPNetwork
from egress_proxy.core.policy import EVERY_PORT
from egress_proxy.migrate.hosts import Region, host_tree
from egress_proxy.migrate.ordered import Ordered, Verdict, union
from egress_proxy.migrate.ranges import EVERY_ADDRESS, networks, pieces
from egress_proxy.migrate.squid_acls import MAYBE, NO, YES, Acl, Literal, cut_conditions
from egress_proxy.migrate.squid_lines import Directive
from egress_proxy.migrate.ways import USUAL_METHODS, Ways
from egress_proxy.migrate.writing import Note

#: Further lists of the same form. Each must let a request pass as well; without lines it lets everything pass.
GATES: Final = ("http_access", "adapted_http_access", "miss_access", "http_reply_access")
#: Looks at responses that Squid can read, which those inside of tunnels are not.
PLAIN_GATE: Final = "http_reply_access"

LITERALS_WHY: Final = (
    "for a request to a bare IP address Squid compares the address's reverse name; nothing here does, so bare "
    "addresses that depend on it are denied"
)
PLAIN_WHY: Final = (
    "where Squid denies CONNECT and allows plain requests, rules here name their methods: "
    f"{', '.join(USUAL_METHODS)}; add others where they are needed"
)
#: Types of acls that ask for something of the request beside its host.
_ABOUT_REQUESTS: Final = frozenset(("method", "proto", "urlpath_regex", "url_regex"))
#: Rules are numbered through all gates; what no rule decides has this number.
NO_RULE: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of an access list."""

    gate: str
    allow: bool
    literals: tuple[Literal, ...]
    line: Directive


@dataclass(slots=True)
class _Walk:
    """What one access list decides about one kind of request, as rule numbers with ports and ways."""

    allowed: dict[int, int] = field(default_factory=dict)
    denied: dict[int, int] = field(default_factory=dict)
    closing: dict[int, int] = field(default_factory=dict)
    lost: dict[tuple[int, int], int] = field(default_factory=dict)
    """What a rule would allow but for a deny before it that may match."""


@dataclass(frozen=True, slots=True)
class _Host:
    """What the acls say about a region of hosts: the same for all regions that this is equal for."""

    values: tuple[int, ...]
    name: bool
    urls: tuple[tuple[str, ...], ...] = ()
    """For each ``url_regex`` the beginnings of paths that it surely matches there."""


@dataclass(frozen=True, slots=True)
class _Request:
    """One kind of request, but for its port, its method and its path."""

    client: int
    host: _Host
    groups: dict[str, tuple[int, int]] = field(default_factory=dict, compare=False)
    """What is known already of acls of acls: several may name the same one."""


class Decisions:
    """What the rules decide, region by region."""

    def __init__(
        self, gates: dict[str, list[Rule]], rules: Sequence[Rule], acls: dict[str, Acl]
    ) -> None:
        self.gates = gates
        self.rules = rules
        self.acls = acls
        self.number = {id(rule): number for number, rule in enumerate(rules)}
        self.host_acls = [
            acl for acl in acls.values() if acl.kind in ("dst", "dstdomain", "dstdom_regex")
        ]
        self.host_position = {acl.name: position for position, acl in enumerate(self.host_acls)}
        self.client_acls = [acl for acl in acls.values() if acl.kind == "src"]
        self.client_position = {acl.name: position for position, acl in enumerate(self.client_acls)}
        self.url_acls = [acl for acl in acls.values() if acl.kind == "url_regex"]
        self.url_position = {acl.name: position for position, acl in enumerate(self.url_acls)}
        methods, paths = cut_conditions(acls.values())
        self.tree = host_tree(
            name for acl in acls.values() for name in (*acl.names.mentioned(), *acl.urls)
        )
        self.client_ranges, self.client_values = _regions(self.client_acls, Acl.about_client)
        self.group_ranges, group_values = _regions(self.host_acls, Acl.about_address)
        no_urls = ((),) * len(self.url_acls)
        self.group_hosts = [_Host(values, name=False, urls=no_urls) for values in group_values]
        self.name_hosts: dict[Region, _Host] = {}
        port_acls = [acl for acl in acls.values() if acl.kind == "port"]
        cuts = [[(80, 80), (443, 443)], *(acl.ranges for acl in port_acls)]
        self.ways = Ways(_port_classes(pieces(EVERY_PORT, cuts), port_acls), methods, paths)
        self.every = self.ways.every
        self.port_masks = {acl.name: self.ways.on_ports(acl.ranges) for acl in port_acls}
        self.memo: dict[tuple[int, _Host], Verdict] = {}
        self.plain_only: set[int] = set()
        """Rules that deny CONNECT where plain requests are allowed."""
        self.effective: set[int] = set()
        """Rules that allow something."""
        self.doubts: dict[int, dict[int, bool]] = {}
        """For each rule that allows less because denies before it may match: these, and whether names are lost too."""
        self.reverse: int | None = None
        """The first rule that decides about literal addresses by their reverse names."""

    def ordered(self) -> Ordered:
        return Ordered(
            tree=self.tree,
            clients=len(self.client_ranges),
            groups=len(self.group_ranges),
            name_verdict=self.name_verdict,
            group_verdict=lambda client, group: self._verdict(client, self.group_hosts[group]),
            closes=self._closes,
            own_policy=lambda rule: rule < len(self.rules) and self._names_hosts(self.rules[rule]),
            natural=self._natural,
            client_cost=self._client_cost,
            network_cost=lambda groups: len(self.networks_of(groups)),
            ways=self.ways,
            # Nobody speaks plain HTTP to this port.
            firm=self.ways.connect & self.ways.on_ports([(443, 443)]),
            closing_rules=tuple(
                number
                for number, rule in enumerate(self.rules)
                if not rule.allow and self._closing_acls(rule)
            ),
        )

    def name_verdict(self, client: int, region: Region) -> Verdict:
        host = self.name_hosts.get(region)
        if host is None:
            name, below = self.tree.names[region[0]], region[1]
            values = tuple(acl.about_name(name, below=below) for acl in self.host_acls)
            urls = tuple(() if below else tuple(acl.urls.get(name, ())) for acl in self.url_acls)
            host = self.name_hosts[region] = _Host(values, name=True, urls=urls)
        return self._verdict(client, host)

    def networks_of(self, groups: Iterable[int]) -> list[IPNetwork]:
        """The networks of groups of literal addresses."""
        return networks(piece for group in groups for piece in self.group_ranges[group])

    def _closes(self, rule: int) -> frozenset[int]:
        """The addresses of the first ``dst`` acl of a deny rule. More of them could only close less."""
        acl = self._closing_acls(self.rules[rule])[0]
        position = self.host_position[acl.name]
        return frozenset(
            group for group, host in enumerate(self.group_hosts) if host.values[position] != NO
        )

    def _closing_acls(self, rule: Rule) -> list[Acl]:
        found = []
        for literal in rule.literals:
            acl = self.acls[literal.name]
            if acl.kind == "dst" and not literal.negated and not acl.no_lookup and not acl.unknown:
                found.append(acl)
        return found

    def _names_hosts(self, rule: Rule) -> bool:
        return any(
            self.acls[literal.name].kind in ("dst", "dstdomain", "dstdom_regex", "any-of", "all-of")
            for literal in rule.literals
        )

    def _natural(self, rule: int) -> frozenset[int]:
        literals = self.rules[rule].literals if rule < len(self.rules) else ()
        found = []
        for client in range(len(self.client_ranges)):
            values = [
                _about(literal, self._client_value(self.acls[literal.name], client))
                for literal in literals
                if self.acls[literal.name].kind == "src"
            ]
            if NO not in values:
                found.append(client)
        return frozenset(found)

    def _client_value(self, acl: Acl, client: int) -> int:
        return self.client_values[client][self.client_position[acl.name]]

    def _client_cost(self, clients: frozenset[int]) -> int:
        return len(self.clients_of(clients) or ())

    def clients_of(self, clients: frozenset[int]) -> list[IPNetwork] | None:
        """The networks of kinds of clients; None for all of them."""
        if len(clients) == len(self.client_ranges):
            return None
        return networks(piece for client in clients for piece in self.client_ranges[client])

    # Trying the rules -------------------------------------------------------------------------------------------

    def _verdict(self, client: int, host: _Host) -> Verdict:
        found = self.memo.get((client, host))
        if found is None:
            found = self.memo[client, host] = self._decide(client, host)
        return found

    def _decide(self, client: int, host: _Host) -> Verdict:
        request = _Request(client, host)
        walks = [
            self._walk(gate, request) for gate in GATES if self.gates[gate] or gate == "http_access"
        ]
        passed = self.every
        for walk in walks:
            passed &= union(walk.allowed)
        denied: dict[int, int] = {}
        left = self.every & ~passed
        for walk in walks:
            for rule, mask in walk.denied.items():
                if mask & left:
                    denied[rule] = denied.get(rule, 0) | (mask & left)
                    left &= ~mask
        plain_only = self._plain_only(passed)
        self.plain_only.update(rule for rule, mask in denied.items() if mask & plain_only)
        closing: dict[int, int] = {}
        for walk in walks:
            for rule, mask in walk.closing.items():
                closing[rule] = closing.get(rule, 0) | mask
        main = walks[0]
        allowed = {rule: mask & passed for rule, mask in main.allowed.items() if mask & passed}
        for walk in walks:
            self.effective.update(rule for rule, mask in walk.allowed.items() if mask & passed)
        self._tell_doubts(walks, passed, name=host.name)
        return Verdict(allowed, denied, closing)

    def _tell_doubts(self, walks: Sequence[_Walk], passed: int, *, name: bool) -> None:
        """Remember what would pass all lists if no deny matched that only may."""
        if not any(walk.lost for walk in walks):
            return
        possible = self.every & ~passed
        for walk in walks:
            possible &= union(walk.allowed) | union(walk.lost)
        for walk in walks:
            for (rule, by), mask in walk.lost.items():
                hit = [rule] if mask & possible else []
                if walk is not walks[0]:
                    # The lines of http_access lose it as well.
                    hit += [one for one, its in walks[0].allowed.items() if its & mask & possible]
                for one in hit:
                    causes = self.doubts.setdefault(one, {})
                    causes[by] = causes.get(by, False) or name

    def _plain_only(self, passed: int) -> int:
        """CONNECT, on the ports where it is denied and plain requests pass whose method and path no rule names."""
        return self.ways.ports_of(passed & self.ways.unnamed) & ~passed

    def _walk(self, gate: str, request: _Request) -> _Walk:
        rules = self.gates[gate]
        walk = _Walk()
        left = self.every
        if gate == PLAIN_GATE:
            walk.allowed[NO_RULE] = self.ways.connect
            left = self.ways.plain
        doubts: dict[int, int] = {}
        for rule in rules:
            number = self.number[id(rule)]
            closing = not rule.allow and request.host.name and bool(self._closing_acls(rule))
            doubtful = union(doubts)
            sure, may = self._matches(rule, request, left | doubtful, closing=closing)
            surely, sure, may = sure, sure & left, may & left
            if closing:
                walk.closing[number] = may
                hit = surely = 0
            elif rule.allow:
                hit = walk.allowed[number] = sure
                _lose(walk, number, doubts, surely)
            else:
                hit = walk.denied[number] = may
            if not request.host.name and may & ~sure and self._looks_up(rule):
                self.reverse = number if self.reverse is None else min(self.reverse, number)
            if surely & doubtful:
                doubts = {by: mask & ~surely for by, mask in doubts.items()}
            if hit & ~sure:
                doubts[number] = hit & ~sure
            left &= ~hit
            if not left and not any(doubts.values()):
                return walk
        # Squid's default is the opposite of the last line, and to deny without any line.
        if rules and not rules[-1].allow and not rules[-1].line.uncertain:
            walk.allowed[NO_RULE] = walk.allowed.get(NO_RULE, 0) | left
            _lose(walk, NO_RULE, doubts, self.every)
        else:
            walk.denied[NO_RULE] = left
        return walk

    def _matches(
        self, rule: Rule, request: _Request, asked: int, *, closing: bool
    ) -> tuple[int, int]:
        """What the rule surely matches, of the ports and ways given, and what it may match."""
        sure, may = (0 if rule.line.uncertain else asked), asked
        for literal in rule.literals:
            acl = self.acls[literal.name]
            if closing and acl.kind == "dst" and not literal.negated:
                continue  # asked of the addresses, once they are known
            its_sure, its_may = self._value(acl, request)
            if literal.negated:
                its_sure, its_may = self.every & ~its_may, self.every & ~its_sure
            sure &= its_sure
            may &= its_may
            if not may:
                break
        return sure, may

    def _value(self, acl: Acl, request: _Request) -> tuple[int, int]:
        """The ports and ways that an acl surely matches, and those that it may."""
        if acl.kind == "port":
            mask = self.port_masks[acl.name]
            return mask, self.every if acl.unknown else mask
        if acl.kind in ("any-of", "all-of"):
            found = request.groups.get(acl.name)
            if found is None:
                found = request.groups[acl.name] = self._value_of_group(acl, request)
            return found
        if acl.kind == "src":
            value = self._client_value(acl, request.client)
        elif acl.name in self.host_position:
            value = request.host.values[self.host_position[acl.name]]
        elif acl.kind in _ABOUT_REQUESTS:
            return self._value_of_way(acl, request)
        else:
            value = MAYBE if acl.unknown else NO
        return self.every * (value == YES), self.every * (value != NO)

    def _value_of_way(self, acl: Acl, request: _Request) -> tuple[int, int]:
        ways = self.ways
        sure = may = 0
        masks = [(ways.connect, acl.connect), (ways.plain, acl.plain)]
        masks += [(ways.with_method(method), value) for method, value in acl.methods.items()]
        masks += [(ways.with_path(path), YES) for path in acl.paths]
        if acl.name in self.url_position:
            port = ways.on_ports([(80, 80)])
            found = request.host.urls[self.url_position[acl.name]]
            masks += [(ways.with_path(path) & port, YES) for path in found]
        for mask, value in masks:
            sure |= mask * (value == YES)
            may |= mask * (value != NO)
        return sure, self.every if acl.unknown else may

    def _value_of_group(self, acl: Acl, request: _Request) -> tuple[int, int]:
        sure, may = 0, self.every if acl.unknown else 0
        for line in acl.lines:
            line_sure = line_may = self.every
            for literal in line:
                its_sure, its_may = self._value(self.acls[literal.name], request)
                if literal.negated:
                    its_sure, its_may = self.every & ~its_may, self.every & ~its_sure
                line_sure &= its_sure
                line_may &= its_may
            sure |= line_sure
            may |= line_may
        return sure, may

    def _looks_up(self, rule: Rule) -> bool:
        return any(
            self.acls[literal.name].kind in ("dstdomain", "dstdom_regex")
            and not self.acls[literal.name].no_lookup
            for literal in rule.literals
        )

    # Telling ----------------------------------------------------------------------------------------------------

    def notes(self) -> Iterable[Note]:
        """What was found on the way, each thing once."""
        for number in sorted(self.plain_only):
            yield self.line(number).note(PLAIN_WHY)
        if self.reverse is not None:
            yield self.line(self.reverse).note(LITERALS_WHY)

    def line(self, number: int) -> Directive:
        """The line of a rule; of the last one for what no rule decides."""
        if number < len(self.rules):
            return self.rules[number].line
        return (self.gates["http_access"] or self.rules)[-1].line


def _lose(walk: _Walk, rule: int, doubts: dict[int, int], surely: int) -> None:
    for by, mask in doubts.items():
        if mask & surely:
            walk.lost[rule, by] = mask & surely


def _about(literal: Literal, value: int) -> int:
    return YES - value if literal.negated else value


def _regions(
    acls: Sequence[Acl], about: Callable[[Acl, int], int]
) -> tuple[list[tuple[tuple[int, int], ...]], list[tuple[int, ...]]]:
    """All addresses, in groups about which the acls say the same."""
    sets = [ranges for acl in acls for ranges in (acl.ranges, acl.doubtful)]
    found: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for piece in pieces(EVERY_ADDRESS, sets):
        values = tuple(about(acl, piece[0]) for acl in acls)
        found.setdefault(values, []).append(piece)
    return [tuple(ranges) for ranges in found.values()], list(found)


def _port_classes(
    found: Sequence[tuple[int, int]], acls: Sequence[Acl]
) -> list[list[tuple[int, int]]]:
    """Ports in classes about which the acls say the same; 80 and 443, which are defaults, stand alone."""
    classes: dict[tuple[object, ...], list[tuple[int, int]]] = {}
    for piece in found:
        key = (
            piece[0] in (80, 443) and piece[0],
            *(any(low <= piece[0] <= high for low, high in acl.ranges) for acl in acls),
        )
        classes.setdefault(key, []).append(piece)
    return list(classes.values())
