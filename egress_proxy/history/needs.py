"""What refused requests need: the smallest rules that let them through, and the policies to put them in.

Which rule and which policy is decided as ``explain`` does; here many requests are brought together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import ip_network
from typing import TypeVar

from egress_proxy.config.rules import MAX_PER_RULE, merge_ports
from egress_proxy.core import reasons
from egress_proxy.core.addresses import Grant, vet
from egress_proxy.core.advice import (
    home_of,
    is_guarded,
    new_policy_name,
    opens,
    smallest_rule,
    subject_for,
    why_no_condition,
)
from egress_proxy.core.conditions import Asked, Conditions, see
from egress_proxy.core.decide import Decision, decide, judged_addresses, vet_addresses
from egress_proxy.core.identity import Identity
from egress_proxy.core.names import Authority
from egress_proxy.core.networks import IPNetwork
from egress_proxy.core.policy import (
    DEFAULT_PORTS,
    ClosedNetworks,
    CompiledPolicy,
    HostPattern,
    Policy,
    Rule,
)
from egress_proxy.core.policy import Subject as LoadedSubject
from egress_proxy.core.reason import Reason
from egress_proxy.core.special_use import Surroundings
from egress_proxy.history.edit import Value
from egress_proxy.history.tally import Tally

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Wish:
    """A request that was refused, without what does not matter for the decision."""

    identity: Identity
    destination: Authority
    addresses: tuple[str, ...] = ()
    """Those behind the name, where they are known and rules must open one of them."""
    unknown_address: bool = False
    """Whether it was refused for an address that the log does not name."""
    asked: Asked | None = None
    """What was asked for, where the decision depends on it."""
    reachable: bool = False
    """Whether an address behind the name is known that can be dialled anyway."""


@dataclass(frozen=True, slots=True)
class Hopeless:
    """Why no rule is suggested for a request."""

    reason: str
    """A row of :mod:`egress_proxy.core.reason`."""
    why: str


@dataclass(frozen=True, slots=True, order=True)
class Subject:
    """Whom a new policy is for."""

    key: str
    value: str

    @property
    def yaml(self) -> Value:
        return {self.key: self.value}

    def is_that_of(self, subject: LoadedSubject) -> bool:
        """Whether a loaded subject says the same and no more."""
        network = None if subject.network is None else str(subject.network.network_address)
        said = {"user": subject.user, "namespace": subject.namespace, "cidr": network}
        is_one = subject.network is None or subject.network.num_addresses == 1
        return said == {**dict.fromkeys(said), self.key: self.value} and is_one


@dataclass(slots=True)
class WantedRule:
    """A rule to add, and who asked for it."""

    target: str
    """A host, or a network."""
    is_cidr: bool
    ports: tuple[int, ...]
    networks: tuple[IPNetwork, ...]
    """What it opens beyond public addresses."""
    methods: tuple[str, ...]
    paths: tuple[str, ...]
    """What it is for, where that is not every request."""
    tally: Tally
    clients: Counter[Identity]

    @property
    def values(self) -> list[Value]:
        """As configuration: one rule, unless it has more ports or networks than a rule may."""
        found: list[Value] = []
        ports = tuple((port, port) for port in self.ports)
        plain = not self.networks and not self.methods and not self.paths
        if ports == DEFAULT_PORTS and plain and not self.is_cidr:
            return [self.target]
        for some_networks, some_paths, some_ports in self._parts():
            value: dict[str, str | list[int | str]] = {
                "cidr" if self.is_cidr else "host": self.target,
                "ports": some_ports,
            }
            if self.methods:
                value["methods"] = list(self.methods)
            if some_paths:
                value["paths"] = list(some_paths)
            if some_networks:
                value["allow_private"] = [str(network) for network in some_networks]
            found.append(value)
        return found

    def _parts(self) -> Iterator[tuple[list[IPNetwork], list[str], list[int | str]]]:
        """The networks, paths and ports of each rule that is needed, since a rule has only so many."""
        for some_networks in _chunks(list(self.networks)) or [[]]:
            for some_paths in _chunks(list(self.paths)) or [[]]:
                for some_ports in _chunks(_port_items(self.ports)):
                    yield some_networks, some_paths, some_ports

    def rules(self) -> Iterator[tuple[object, ...]]:
        """What :attr:`values` mean, as :func:`rule_key` spells it."""
        for some_networks, some_paths, some_ports in self._parts():
            ranges = merge_ports(tuple(map(_as_range, some_ports)))
            conditions = (self.methods, tuple(some_paths))
            yield ("allow", self.target, ranges, tuple(some_networks), True, None, conditions)


@dataclass(slots=True)
class Home:
    """A policy and what is to be added to it."""

    policy: Policy | None
    """None where a new one is needed."""
    subject: Subject | None
    """Whom the new one is for."""
    name: str
    rules: list[WantedRule] = field(default_factory=list)


def rule_key(rule: Rule) -> tuple[object, ...]:
    """What a rule means, without where it stands."""
    target = str(rule.target)
    return (
        *(rule.action.value, target, rule.ports, rule.allow_private, rule.tls, rule.upstream),
        _meaning(rule.conditions),
    )


def _meaning(conditions: Conditions | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if conditions is None:
        return (), ()
    return conditions.methods, tuple(pattern.text for pattern in conditions.paths)


# Judging ----------------------------------------------------------------------------------------------------------


def refusal(
    policy: CompiledPolicy,
    identity: Identity,
    destination: Authority,
    addresses: tuple[str, ...],
    asked: Asked | None = None,
) -> tuple[Decision, Reason | None]:
    """What the rules decide, and why they refuse; the mode does not matter.

    ``addresses`` are those behind the name, as far as they are known.
    """
    decision = decide(policy, identity, destination, asked)
    if decision.denial is not None:
        return decision, decision.denial
    addresses = judged_addresses(decision, destination, addresses)
    if not addresses:
        return decision, None
    return decision, vet_addresses(decision, addresses, destination.port)[1]


def that_matter(
    policy: CompiledPolicy,
    identity: Identity,
    destination: Authority,
    addresses: tuple[str, ...],
    asked: Asked | None = None,
) -> tuple[str, ...]:
    """The addresses behind a name if a rule must open one of them; none where one can be dialled anyway."""
    if destination.host.address is not None or decide(policy, identity, destination, asked).parent:
        return ()
    closed = policy.closed_networks(identity, destination.port, see(asked))
    grant = _nothing_lifted(closed, policy.surroundings)
    return () if vet(addresses, destination.port, grant).passed else addresses


def asked_that_matters(
    policy: CompiledPolicy, identity: Identity, destination: Authority, asked: Asked | None
) -> Asked | None:
    """What was asked if the decision depends on it: else requests of one destination are all alike."""
    decision = decide(policy, identity, destination)
    # On a port that no rule is for, the rule on another one says what kind of thing may be asked.
    on_another = decision.match is not None and decision.match.rule.conditions is not None
    return asked if decision.conditional or on_another else None


# The gate remembers its answers by the grant itself.
@lru_cache(maxsize=1024)
def _nothing_lifted(closed: ClosedNetworks | None, surroundings: Surroundings) -> Grant:
    return Grant(closed=closed, surroundings=surroundings)


def lift(policy: CompiledPolicy, wish: Wish) -> tuple[Decision, Rule | Hopeless]:
    """The smallest rule that lets a refused request through."""
    asked = wish.asked
    decision, denial = refusal(policy, wish.identity, wish.destination, wish.addresses, asked)
    addresses = judged_addresses(decision, wish.destination, wish.addresses)
    if wish.unknown_address and denial is None:
        return decision, Hopeless(
            reasons.DESTINATION_IP_PROHIBITED.name,
            "it needs `allow_private` with the network of its address, which the log does not name",
        )
    assert denial is not None  # noqa: S101 - what is not refused is no wish
    if denial is reasons.DENY_RULE:
        return decision, Hopeless(denial.name, "a deny rule beats every rule that could be added")
    if denial is reasons.APPROVAL_REQUIRED:
        return decision, Hopeless(denial.name, "a human must approve it, or the rule be moved")
    why = why_no_condition(decision, asked)
    if why is not None:
        return decision, Hopeless(denial.name, why)
    if any(is_guarded(text, policy.surroundings) for text in addresses):
        return decision, Hopeless(
            denial.name,
            "its address is the machine's own, link-local or a cloud's metadata service",
        )
    rule = smallest_rule(wish.destination, addresses, decision, asked, reachable=wish.reachable)
    about = (wish.identity, wish.destination, addresses, decision, asked)
    if addresses and not opens(rule, policy, *about):
        why = "no rule that could be added opens its address"
        return decision, Hopeless(denial.name, why)
    return decision, rule


def unseen_subjects(policy: CompiledPolicy, named: set[str]) -> list[str]:
    """Which policies depend on what the log does not say. ``named`` is what it does say about clients."""
    by_labels: list[str] = []
    by_missing: dict[str, list[str]] = {"user": [], "namespace": []}
    for found in policy.policies:
        subjects = found.subjects or ()
        if any(subject.pod_labels for subject in subjects):
            by_labels.append(found.name)
        for key, names in by_missing.items():
            if key not in named and any(getattr(subject, key) is not None for subject in subjects):
                names.append(found.name)
    taken_for = "so these policies are taken to be for none of its clients"
    notes = []
    if by_labels:
        notes.append(f"a log names no pod labels, {taken_for}: {', '.join(by_labels)}")
    notes += [
        f"no line of the log names a {key}, {taken_for}: {', '.join(names)}"
        for key, names in by_missing.items()
        if names
    ]
    return notes


# Bringing together ------------------------------------------------------------------------------------------------

#: A policy's number, or whom a new policy is for.
_Where = int | Subject


@dataclass(slots=True)
class _Need:
    """One destination in one policy."""

    networks: set[IPNetwork] = field(default_factory=set)
    tally: Tally = field(default_factory=Tally)
    clients: Counter[Identity] = field(default_factory=Counter)

    def include(self, other: _Need) -> None:
        self.networks |= other.networks
        self.tally.include(other.tally)
        self.clients += other.clients


@dataclass(frozen=True, slots=True)
class _Want:
    """What one request needs."""

    target: str
    is_cidr: bool
    port: int
    method: str
    path: str
    """Both are empty where the rule is for every request."""

    def family(self, networks: tuple[IPNetwork, ...]) -> _Family:
        """What it shares with others that one rule can stand for, and not be wider than all of them."""
        kind = "paths" if self.path else "methods" if self.method else "ports"
        port = self.port if kind != "ports" else 0
        method = self.method if kind == "paths" else ""
        return self.target, self.is_cidr, networks, kind, port, method


_Family = tuple[str, bool, tuple[IPNetwork, ...], str, int, str]


def _want(rule: Rule) -> _Want:
    """What the smallest rule for a request asks for: one port, and at most one method and one path."""
    methods, paths = _meaning(rule.conditions)
    is_cidr = not isinstance(rule.target, HostPattern)
    return _Want(str(rule.target), is_cidr, rule.ports[0][0], "".join(methods), "".join(paths))


class Needs:
    """Collects rules, and then says which policy gets which."""

    def __init__(self, policy: CompiledPolicy) -> None:
        self._policy = policy
        self._numbers = {found.name: number for number, found in enumerate(policy.policies)}
        #: By what is wanted, then by policy.
        self._needs: dict[_Want, dict[_Where, _Need]] = {}
        #: Where rules for some requests alone are wanted: target and port.
        self._narrow: set[tuple[_Where, str, int]] = set()

    def add(self, identity: Identity, decision: Decision, rule: Rule, tally: Tally) -> None:
        """Note that a client needs a rule."""
        where = self._where(identity, decision)
        want = _want(rule)
        if rule.conditions is not None:
            self._narrow.add((where, want.target, want.port))
        need = self._needs.setdefault(want, {}).setdefault(where, _Need())
        need.networks.update(rule.allow_private)
        need.tally.include(tally)
        need.clients[identity] += tally.requests

    def has_narrower(self, identity: Identity, decision: Decision, rule: Rule) -> bool:
        """Whether rules for some requests alone were added where this one, which is for all, would go."""
        where = self._where(identity, decision)
        return (where, str(rule.target), rule.ports[0][0]) in self._narrow

    def _where(self, identity: Identity, decision: Decision) -> _Where:
        home = home_of(self._policy, identity, decision)
        return Subject(*subject_for(identity)) if home is None else self._numbers[home.name]

    def homes(self) -> list[Home]:
        """The policies that get rules, in the order of the configuration, new ones last."""
        rules: dict[_Where, dict[_Family, list[tuple[_Want, _Need]]]] = {}
        for want, places in self._needs.items():
            self._drop_covered(places)
            for where, need in places.items():
                family = want.family(tuple(sorted(need.networks, key=_network_order)))
                rules.setdefault(where, {}).setdefault(family, []).append((want, need))
        taken = set(self._numbers)
        homes: list[Home] = []
        for where, found in sorted(rules.items(), key=lambda item: _where_order(item[0])):
            if isinstance(where, int):
                policy = self._policy.policies[where]
                home = Home(policy, None, policy.name)
            else:
                name = new_policy_name(where.key, where.value, taken)
                taken.add(name)
                home = Home(None, where, name)
            home.rules = [_wanted(family[2], wants) for family, wants in found.items()]
            home.rules.sort(key=_rule_order)
            homes.append(home)
        return homes

    def _drop_covered(self, places: dict[_Where, _Need]) -> None:
        """Leave a rule out of a policy where another one gets it that is for the same clients as well."""
        if len(places) < 2:
            return
        loaded = [place for place in places if isinstance(place, int)]
        for where in sorted(places, key=lambda place: (len(places[place].clients), str(place))):
            need = places[where]
            for other in loaded:
                theirs = places.get(other)
                if (
                    theirs is not None
                    and other != where
                    and need.networks <= theirs.networks
                    and all(other in self._policy.applicable(client) for client in need.clients)
                ):
                    theirs.include(need)
                    del places[where]
                    break


def _wanted(networks: tuple[IPNetwork, ...], wants: list[tuple[_Want, _Need]]) -> WantedRule:
    together = _Need()
    for _, need in wants:
        together.include(need)
    (any_of_them, _), *_ = wants
    return WantedRule(
        *(any_of_them.target, any_of_them.is_cidr),
        tuple(sorted({want.port for want, _ in wants})),
        networks,
        tuple(sorted({want.method for want, _ in wants} - {""})),
        tuple(sorted({want.path for want, _ in wants} - {""})),
        together.tally,
        together.clients,
    )


def _where_order(where: _Where) -> tuple[int, str, str]:
    return (where, "", "") if isinstance(where, int) else (2**62, where.key, where.value)


def _network_order(network: IPNetwork) -> tuple[int, int, int]:
    return network.version, int(network.network_address), network.prefixlen


def _rule_order(rule: WantedRule) -> tuple[object, ...]:
    """Hosts by domain, then networks."""
    if rule.is_cidr:
        network = _network_order(ip_network(rule.target))
        return True, *network, rule.ports, rule.methods, rule.paths
    return False, rule.target.split(".")[::-1], rule.ports, rule.methods, rule.paths


def _port_items(ports: Iterable[int]) -> list[int | str]:
    """Ports as entries of a rule, neighbours as ranges."""
    items: list[int | str] = []
    for low, high in merge_ports(tuple((port, port) for port in ports)):
        items += [f"{low}-{high}"] if high > low + 1 else range(low, high + 1)
    return items


def _as_range(item: int | str) -> tuple[int, int]:
    low, _, high = str(item).partition("-")
    return int(low), int(high or low)


def _chunks(items: list[T]) -> list[list[T]]:
    return [items[start : start + MAX_PER_RULE] for start in range(0, len(items), MAX_PER_RULE)]
