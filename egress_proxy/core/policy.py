"""Compiled rules: what the configuration says, indexed so that a decision never scans the rules.

A host is looked up once by its exact text and once for each of its parent domains, an address once for each prefix
length that occurs. Which policies apply to a client is worked out once per identity.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache, partial
from ipaddress import ip_address
from typing import Any

import msgspec

from egress_proxy.core.addresses import PUBLIC_ONLY, Grant
from egress_proxy.core.conditions import Conditions, Seen
from egress_proxy.core.contract import ContractHeaders
from egress_proxy.core.identity import Identity
from egress_proxy.core.limits import Limits
from egress_proxy.core.names import Authority, Host, IPAddress, plain_address
from egress_proxy.core.networks import IPNetwork, NetworkIndex
from egress_proxy.core.special_use import ANYWHERE, Surroundings
from egress_proxy.core.upstream import Route, Upstream

#: Inclusive ranges of ports.
PortRanges = tuple[tuple[int, int], ...]
DEFAULT_PORTS: PortRanges = ((80, 80), (443, 443))
EVERY_PORT: PortRanges = ((1, 65535),)


class Action(StrEnum):
    """What a rule says about a destination. Deny beats ask, and ask beats allow."""

    ALLOW = "allow"
    ASK = "ask"
    """Allowed once a human has approved; until then denied."""
    DENY = "deny"


class Mode(StrEnum):
    ENFORCE = "enforce"
    AUDIT = "audit"


# There is one of each of the next three for every rule. As structs that the garbage collector passes over, a million
# of them cost half the memory and a third of the time that dataclasses do.
class Place(msgspec.Struct, frozen=True, gc=False):
    """Where in a configuration file something stands; line and column count from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{shown_path(self.file)}:{self.line}:{self.column}"


def shown_path(path: str) -> str:
    """A path for a message: a file's name may hold what a terminal obeys."""
    return path if path.isprintable() else path.encode("unicode_escape").decode("ascii")


class HostPattern(msgspec.Struct, frozen=True, gc=False):
    """``example.com``, ``*.example.com`` (every name below it, not itself) or ``*`` (every name)."""

    name: str
    """The canonical name without ``*.``; empty for ``*``."""
    wildcard: bool

    def __str__(self) -> str:
        return (f"*.{self.name}" if self.name else "*") if self.wildcard else self.name


@dataclass(frozen=True, slots=True, eq=False)
class HostSet:
    """A named set of host patterns, which rules use together."""

    name: str
    place: Place
    patterns: Mapping[str, Place]
    """Each pattern as its text, with where it stands."""

    def __str__(self) -> str:
        return f"@{self.name}"

    def naming(self, host: Host) -> Iterator[tuple[str, Place]]:
        """The patterns that name the host, the most specific first."""
        if host.address is None:
            for text in (host.text, *(f"*.{parent}" for parent in parents(host.text)), "*"):
                place = self.patterns.get(text)
                if place is not None:
                    yield text, place


def parents(name: str) -> Iterator[str]:
    """The names above a name, the nearest first: ``b.c`` and ``c`` of ``a.b.c``."""
    dot = name.find(".")
    while dot >= 0:
        yield name[dot + 1 :]
        dot = name.find(".", dot + 1)


#: What a rule can name.
Target = HostPattern | IPNetwork | HostSet


class Rule(msgspec.Struct, frozen=True, gc=False):
    """One entry of a policy's ``allow``, ``ask`` or ``deny`` list."""

    action: Action
    target: Target
    place: Place
    ports: PortRanges = DEFAULT_PORTS
    allow_private: tuple[IPNetwork, ...] = ()
    tls: bool = True
    """Whether a tunnel must be TLS to the host that was asked for (``tls: verify``)."""
    upstream: Route | None = None
    """How its destinations are reached; None where the rule does not say."""
    conditions: Conditions | None = None
    """What it asks of the request besides; None where it is for every request, tunnels included."""

    def __str__(self) -> str:
        text = f"{self.action.value} {self.target}"
        return text if self.conditions is None else f"{text} ({self.conditions})"

    def covers_port(self, port: int) -> bool:
        return any(low <= port <= high for low, high in self.ports)

    def denies(self, seen: Seen | None) -> bool:
        """Whether a deny rule for this destination and port concerns a request, or may: what is unclear is denied."""
        return self.conditions is None or self.conditions.fit(seen).may_be_meant


@dataclass(frozen=True, slots=True)
class Subject:
    """Clients that a policy is for. All that is named must hold."""

    place: Place
    network: IPNetwork | None = None
    user: str | None = None
    namespace: str | None = None
    pod_labels: tuple[tuple[str, str], ...] = ()

    def describes(self, identity: Identity, address: IPAddress) -> bool:
        """Whether the client is one of these; ``address`` is the identity's, parsed."""
        network = self.network
        if network is not None and (address.version != network.version or address not in network):
            return False
        if self.user is not None and self.user != identity.user:
            return False
        if self.namespace is not None and self.namespace != identity.namespace:
            return False
        return all(label in identity.pod_labels for label in self.pod_labels)


@dataclass(frozen=True, slots=True)
class Policy:
    """A named set of rules for the clients that its subjects describe."""

    name: str
    rules: tuple[Rule, ...]
    subjects: tuple[Subject, ...] | None
    """None means every client."""
    place: Place
    contract_headers: ContractHeaders | None = None
    """None where the policy does not say, and what the whole configuration says holds."""
    limits: Limits | None = None
    """What each tenant may do at most, whatever other policies say besides."""
    tenant: str | None = None
    """Whom its requests are charged to; None where that depends on who asks."""
    trust_tenant_header: bool = False
    """Whether clients may name their tenant themselves (``X-Tenant-ID``)."""

    def applies_to(self, identity: Identity, address: IPAddress) -> bool:
        return self.subjects is None or any(
            subject.describes(identity, address) for subject in self.subjects
        )


#: A rule with the number of its policy.
Entry = tuple[int, Rule]
#: Entries by name. A single one stands by itself, for a million hosts have one rule each.
_Index = dict[str, Entry | list[Entry]]


class CompiledPolicy:
    """All policies of one configuration, ready to be asked. Immutable once made."""

    __slots__ = (
        *("_any", "_applicable", "_below", "_closed", "_denied", "_exact", "_grant", "_networks"),
        *("_sometimes_denied", "conditional"),
        *("__weakref__", "memo", "mode", "policies", "rule_count", "surroundings", "upstream"),
    )

    def __init__(
        self,
        policies: Iterable[Policy],
        mode: Mode = Mode.ENFORCE,
        surroundings: Surroundings = ANYWHERE,
        upstream: Upstream | None = None,
    ) -> None:
        self.policies = tuple(policies)
        self.mode = mode
        self.surroundings = surroundings
        self.upstream = upstream
        self._exact: _Index = {}
        self._below: _Index = {}
        self._any: list[Entry] = []
        self._networks: NetworkIndex[Entry] = NetworkIndex()
        self._denied: NetworkIndex[Entry] = NetworkIndex()
        self._sometimes_denied: list[Entry] = []
        self.conditional = False
        """Whether any rule has conditions."""
        sets: dict[HostSet, list[Entry]] = {}
        count = 0
        for number, policy in enumerate(self.policies):
            for rule in policy.rules:
                target, entry = rule.target, (number, rule)
                self.conditional = self.conditional or rule.conditions is not None
                if isinstance(target, HostPattern):
                    self._add(target, entry)
                elif isinstance(target, HostSet):
                    sets.setdefault(target, []).append(entry)
                    count += len(target.patterns) - 1
                else:
                    self._networks.add(target, entry)
                    if rule.action is Action.DENY:
                        self._denied.add(target, entry)
                        if rule.conditions is not None:
                            self._sometimes_denied.append(entry)
            count += len(policy.rules)
        for hosts, entries in sets.items():
            self._add_set(hosts, entries)
        self.rule_count = count
        """Rules in force, each host of a set that a rule uses counted as one."""
        # Bounded, because whoever can connect chooses the keys.
        # No method of ours is cached: it would refer to us, and a policy that another one has replaced must go at once.
        self._applicable = lru_cache(maxsize=65536)(partial(_find_applicable, self.policies))
        self._closed = lru_cache(maxsize=1024)(ClosedNetworks)
        self._grant = lru_cache(maxsize=1024)(
            partial(Grant, audit=mode is Mode.AUDIT, surroundings=surroundings)
        )
        self.memo: dict[Any, Any] = {}
        """Where :mod:`egress_proxy.core.decide` keeps what it has worked out, for as long as this policy lives."""

    def _add(self, pattern: HostPattern, entry: Entry) -> None:
        if not pattern.name:
            self._any.append(entry)
            return
        index = self._below if pattern.wildcard else self._exact
        there = index.setdefault(pattern.name, entry)
        if isinstance(there, list):
            there.append(entry)
        elif there is not entry:
            index[pattern.name] = [there, entry]

    def _add_set(self, hosts: HostSet, entries: list[Entry]) -> None:
        """Index the hosts of a set, which share one list of entries. After all other rules, whose lists grow."""
        one_or_all = entries if len(entries) > 1 else entries[0]
        for text in hosts.patterns:
            if text == "*":
                self._any.extend(entries)
                continue
            index, name = (self._below, text[2:]) if text[0] == "*" else (self._exact, text)
            there = index.setdefault(name, one_or_all)
            if there is not one_or_all:
                index[name] = _joined(there, entries)

    def applicable(self, identity: Identity) -> frozenset[int]:
        """The numbers of the policies that apply to a client."""
        return self._applicable(identity)

    def matches(self, identity: Identity, host: Host) -> Iterator[Entry]:
        """The rules that name this host, whatever their ports, for this client: the most specific first."""
        applicable = self.applicable(identity)
        for entry in self.naming(host):
            if entry[0] in applicable:
                yield entry

    def naming(self, host: Host) -> Iterator[Entry]:
        """The rules that name this host for any client, the most specific first."""
        if host.address is not None:
            yield from self._networks.holding(host.address)
            return
        name = host.text
        found = self._exact.get(name)
        if found is not None:
            yield from _each(found)
        below = self._below
        if below:
            dot = name.find(".")
            while dot >= 0:
                found = below.get(name[dot + 1 :])
                if found is not None:
                    yield from _each(found)
                dot = name.find(".", dot + 1)
        yield from self._any

    @property
    def closes_by_request(self) -> bool:
        """Whether it depends on the request which networks are closed."""
        return bool(self._sometimes_denied)

    @property
    def closes_by_path(self) -> bool:
        """Whether it depends on the path, which then has to be sent as it was compared."""
        return any(
            rule.conditions is not None and rule.conditions.paths
            for _, rule in self._sometimes_denied
        )

    def closed_networks(
        self, identity: Identity, port: int, seen: Seen | None = None
    ) -> ClosedNetworks | None:
        """What deny rules close for this client and port, behind names too; None where no rule denies a network.

        ``seen`` is the request; None for a CONNECT.
        """
        if not self._denied:
            return None
        # By the rules that do not concern the request, and not by the request: of those there are only so many.
        spared = tuple(rule for _, rule in self._sometimes_denied if not rule.denies(seen))
        return self._closed(self._denied, self.applicable(identity), port, spared)

    def grant(self, lifted: tuple[IPNetwork, ...], closed: ClosedNetworks | None) -> Grant:
        """What the address gate may pass. Equal ones are one object, because the gate remembers its answers by it."""
        nothing_else = self.mode is not Mode.AUDIT and self.surroundings is ANYWHERE
        if nothing_else and not lifted and closed is None:
            return PUBLIC_ONLY
        return self._grant(lifted, closed)


def _find_applicable(policies: tuple[Policy, ...], identity: Identity) -> frozenset[int]:
    address = plain_address(ip_address(identity.client))
    return frozenset(
        number for number, policy in enumerate(policies) if policy.applies_to(identity, address)
    )


def _each(found: Entry | list[Entry]) -> Iterable[Entry]:
    return found if isinstance(found, list) else (found,)


def _joined(there: Entry | list[Entry], more: list[Entry]) -> list[Entry]:
    """The entries of one name in the order of their policies. A new list: what is there may be shared."""
    return sorted([*_each(there), *more], key=lambda entry: entry[0])


@dataclass(frozen=True, slots=True, eq=False)
class ClosedNetworks:
    """The networks that deny rules close for one kind of client and one port."""

    _denied: NetworkIndex[Entry]
    _applicable: frozenset[int]
    _port: int
    _spared: tuple[Rule, ...] = ()
    """Rules with conditions that the request does not meet."""

    def __call__(self, address: IPAddress) -> bool:
        """Whether one of them holds the address."""
        return any(
            number in self._applicable
            and rule.covers_port(self._port)
            and not (rule.conditions is not None and rule in self._spared)
            for number, rule in self._denied.holding(address)
        )


@dataclass(frozen=True, slots=True)
class Match:
    """A rule that named the destination, with its policy's name."""

    policy: str
    rule: Rule
    text: str = field(init=False, compare=False)
    """The rule as a line of the log shows it; made once, since a decision is remembered."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", str(self.rule))


def matching_rules(
    compiled: CompiledPolicy, identity: Identity, destination: Authority
) -> list[Match]:
    """Every rule that names the destination's host for this client, whatever its ports, the most specific first."""
    return [
        Match(compiled.policies[number].name, rule)
        for number, rule in compiled.matches(identity, destination.host)
    ]
