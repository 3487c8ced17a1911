"""Compiled rules: what the configuration says, indexed so that a decision never scans the rules.

A host is looked up once by its exact text and once for each of its parent domains. Rules by address
are few and are tried in turn. Which policies apply to a client is worked out once per client
address.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from ipaddress import ip_address
from typing import Any

from egress_proxy.core.addresses import IPNetwork
from egress_proxy.core.names import Authority, Host, IPAddress, plain_address

#: Inclusive ranges of ports.
PortRanges = tuple[tuple[int, int], ...]
DEFAULT_PORTS: PortRanges = ((80, 80), (443, 443))
EVERY_PORT: PortRanges = ((1, 65535),)


class Action(StrEnum):
    ALLOW = "allow"
    DENY = "deny"


class Mode(StrEnum):
    ENFORCE = "enforce"
    AUDIT = "audit"


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a configuration file something stands; line and column count from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True, slots=True)
class HostPattern:
    """``example.com``, ``*.example.com`` (every name below it, not itself) or ``*`` (every name)."""

    name: str
    """The canonical name without ``*.``; empty for ``*``."""
    wildcard: bool

    def __str__(self) -> str:
        return (f"*.{self.name}" if self.name else "*") if self.wildcard else self.name


@dataclass(frozen=True, slots=True)
class Rule:
    """One entry of a policy's ``allow`` or ``deny`` list: either of a host pattern or of a network."""

    action: Action
    target: HostPattern | IPNetwork
    place: Place
    ports: PortRanges = DEFAULT_PORTS
    allow_private: tuple[IPNetwork, ...] = ()

    def __str__(self) -> str:
        return f"{self.action} {self.target}"

    def covers_port(self, port: int) -> bool:
        return any(low <= port <= high for low, high in self.ports)


@dataclass(frozen=True, slots=True)
class Policy:
    """A named set of rules for the clients that its subjects describe."""

    name: str
    rules: tuple[Rule, ...]
    subjects: tuple[IPNetwork, ...] | None
    """Networks of client addresses; None means every client."""
    place: Place

    def applies_to(self, client: IPAddress) -> bool:
        if self.subjects is None:
            return True
        return any(
            client.version == network.version and client in network for network in self.subjects
        )


#: A rule with the number of its policy.
_Entry = tuple[int, Rule]


class CompiledPolicy:
    """All policies of one configuration, ready to be asked. Immutable once made."""

    __slots__ = (
        *("_any", "_applicable", "_below", "_closed", "_exact", "_networks"),
        *("memo", "mode", "policies", "rule_count"),
    )

    def __init__(self, policies: Iterable[Policy], mode: Mode = Mode.ENFORCE) -> None:
        self.policies = tuple(policies)
        self.mode = mode
        self.rule_count = sum(len(policy.rules) for policy in self.policies)
        exact: defaultdict[str, list[_Entry]] = defaultdict(list)
        below: defaultdict[str, list[_Entry]] = defaultdict(list)
        self._any: list[_Entry] = []
        self._networks: list[tuple[IPNetwork, _Entry]] = []
        for number, policy in enumerate(self.policies):
            for rule in policy.rules:
                target = rule.target
                if not isinstance(target, HostPattern):
                    self._networks.append((target, (number, rule)))
                elif not target.wildcard:
                    exact[target.name].append((number, rule))
                elif target.name:
                    below[target.name].append((number, rule))
                else:
                    self._any.append((number, rule))
        self._networks.sort(key=lambda row: -row[0].prefixlen)
        # Plain dicts from here on: a look-up must not add a key.
        self._exact = dict(exact)
        self._below = dict(below)
        # Bounded, because whoever can connect chooses the keys.
        self._applicable = lru_cache(maxsize=65536)(self._find_applicable)
        self._closed = lru_cache(maxsize=1024)(self._find_closed)
        self.memo: dict[Any, Any] = {}
        """Where :mod:`egress_proxy.core.decide` keeps what it has worked out, for as long as this policy lives."""

    def applicable(self, client: str) -> frozenset[int]:
        """The numbers of the policies that apply to a client's IP address."""
        return self._applicable(client)

    def _find_applicable(self, client: str) -> frozenset[int]:
        address = plain_address(ip_address(client))
        return frozenset(
            number for number, policy in enumerate(self.policies) if policy.applies_to(address)
        )

    def matches(self, client: str, host: Host) -> Iterator[_Entry]:
        """The rules that name this host, whatever their ports, for this client: the most specific first."""
        applicable = self.applicable(client)
        for entry in self._candidates(host):
            if entry[0] in applicable:
                yield entry

    def naming(self, host: Host) -> Iterator[_Entry]:
        """The rules that name this host for any client, each with its policy's number: for explanations."""
        return self._candidates(host)

    def denied_networks(self, client: str, port: int) -> tuple[IPNetwork, ...]:
        """The networks that deny rules close for this client and port, behind names too."""
        return self._closed(self.applicable(client), port) if self._networks else ()

    def _find_closed(self, applicable: frozenset[int], port: int) -> tuple[IPNetwork, ...]:
        return tuple(
            network
            for network, (number, rule) in self._networks
            if rule.action is Action.DENY and number in applicable and rule.covers_port(port)
        )

    def _candidates(self, host: Host) -> Iterator[_Entry]:
        if host.address is not None:
            address = host.address
            for network, entry in self._networks:
                if address.version == network.version and address in network:
                    yield entry
            return
        name = host.text
        yield from self._exact.get(name, ())
        if self._below:
            dot = name.find(".")
            while dot >= 0:
                yield from self._below.get(name[dot + 1 :], ())
                dot = name.find(".", dot + 1)
        yield from self._any


@dataclass(frozen=True, slots=True)
class Match:
    """A rule that named the destination, with its policy's name."""

    policy: str
    rule: Rule


def matching_rules(compiled: CompiledPolicy, client: str, destination: Authority) -> list[Match]:
    """Every rule that names the destination's host for this client, whatever its ports, the most specific first."""
    return [
        Match(compiled.policies[number].name, rule)
        for number, rule in compiled.matches(client, destination.host)
    ]
