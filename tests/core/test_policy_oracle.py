"""The compiled rules against a plain reading of the contract: a scan of every rule, for every question.

What is drawn is a configuration as text would say it. The oracle reads that; the code under test gets it compiled.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from ipaddress import ip_address, ip_network
from itertools import cycle
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egress_proxy.core import decide as decide_module
from egress_proxy.core import reasons
from egress_proxy.core.decide import Decision, _decide, decide, vet_addresses
from egress_proxy.core.identity import Identity, identity
from egress_proxy.core.names import Authority, parse_authority
from egress_proxy.core.networks import IPNetwork
from egress_proxy.core.policy import (
    Action,
    CompiledPolicy,
    HostSet,
    Match,
    Mode,
    Place,
    Policy,
    Rule,
    Subject,
    Target,
    matching_rules,
)
from egress_proxy.core.reason import Reason
from tests.core.targets import HERE, target_of
from tests.support.calm import CALM

# What can be drawn: few names, networks and clients, all related, so that rules meet and quarrel -------------------

NAMES = ["a", "b.a", "c.b.a", "cb.a", "b", "ba"]
PATTERNS = ["*", *NAMES, "*.a", "*.b.a", "*.b", "*.ba"]
SETS = ["@one", "@two"]
NETWORKS = [
    "0.0.0.0/0",
    "8.8.0.0/16",
    "8.8.8.8/32",
    "10.0.0.0/8",
    "10.1.0.0/16",
    "127.0.0.0/8",
    "127.0.0.1/32",
]
NETWORKS += [
    "169.254.0.0/16",
    "169.254.169.254/32",
    "::/0",
    "2606:4700::/32",
    "fd00::/8",
    "::1/128",
    "64:ff9b::/96",
]
OPENED = [
    "0.0.0.0/0",
    "::/0",
    "10.1.0.0/16",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "169.254.169.254/32",
    "64:ff9b::/96",
]
PORTS = [("1-65535",), (("80", "443")), ("443",), ("1-100", "8000-8080"), ("1-65535",)]
ASKED_PORTS = [80, 443, 8080]
LABELS = [("app", "web"), ("app", "db"), ("tier", "web")]


@dataclass(frozen=True)
class Kind:
    """What the contract says about an address."""

    lies_in: str | None = None
    """Its special-use network; None for an ordinary address."""
    guarded: bool = False
    leads_to: str | None = None
    """The IPv4 address inside an IPv6 one."""


ADDRESSES = {
    "8.8.8.8": Kind(),
    "8.8.4.4": Kind(),
    "2606:4700::1": Kind(),
    "10.1.2.3": Kind("10.0.0.0/8"),
    "10.2.2.3": Kind("10.0.0.0/8"),
    "127.0.0.1": Kind("127.0.0.0/8", guarded=True),
    "169.254.169.254": Kind("169.254.169.254/32", guarded=True),
    "169.254.1.1": Kind("169.254.0.0/16", guarded=True),
    "fd00::1": Kind("fc00::/7"),
    "::1": Kind("::1/128", guarded=True),
    "64:ff9b::808:808": Kind(leads_to="8.8.8.8"),
    "64:ff9b::a01:203": Kind("10.0.0.0/8", leads_to="10.1.2.3"),
    "64:ff9b::7f00:1": Kind("127.0.0.0/8", guarded=True, leads_to="127.0.0.1"),
}  # fmt: skip


@dataclass(frozen=True)
class DrawnRule:
    action: str
    target: str
    ports: tuple[str, ...]
    allow_private: tuple[str, ...]
    tls: str


@dataclass(frozen=True)
class DrawnSubject:
    cidr: str | None
    user: str | None
    namespace: str | None
    pod_labels: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class DrawnPolicy:
    name: str
    subjects: tuple[DrawnSubject, ...] | None
    rules: tuple[DrawnRule, ...]


@dataclass(frozen=True)
class Drawn:
    sets: dict[str, tuple[str, ...]]
    policies: tuple[DrawnPolicy, ...]
    mode: Mode


def some(values: list, most: int) -> st.SearchStrategy:
    return st.lists(st.sampled_from(values), max_size=most, unique=True).map(tuple)


def perhaps(values: list) -> st.SearchStrategy:
    return st.none() | st.sampled_from(values)


HOST_RULES = st.builds(
    DrawnRule,
    st.sampled_from(["allow", "allow", "ask", "deny"]),
    st.sampled_from(3 * SETS + PATTERNS),
    st.sampled_from(PORTS),
    some(OPENED, 3),
    st.sampled_from(["verify", "verify", "off"]),
).map(lambda drawn: drawn if drawn.action != "deny" else replace(drawn, allow_private=(), tls="verify"))  # fmt: skip
NETWORK_RULES = st.builds(
    DrawnRule,
    st.sampled_from(["allow", "allow", "ask", "deny"]),
    st.sampled_from(NETWORKS),
    st.sampled_from(PORTS),
    st.just(()),
    st.sampled_from(["verify", "verify", "off"]),
).map(lambda drawn: drawn if drawn.action != "deny" else replace(drawn, tls="verify"))
# A subject names one thing or several.
SUBJECTS = st.builds(
    DrawnSubject,
    perhaps(["10.20.0.0/16", "10.0.0.0/8", "2001:db8::/32", "0.0.0.0/0"]),
    perhaps(["batch", "agent"]),
    perhaps(["agents", "web"]),
    some(LABELS, 2).filter(lambda labels: len(dict(labels)) == len(labels)),
).filter(lambda subject: subject != DrawnSubject(None, None, None, ()))
CONFIGURATIONS = st.builds(
    Drawn,
    st.fixed_dictionaries(
        {name: st.lists(st.sampled_from(PATTERNS), min_size=1, max_size=5, unique=True).map(tuple) for name in SETS}
    ),
    st.lists(
        st.builds(
            DrawnPolicy,
            st.sampled_from("pqrst"),
            st.none() | st.none() | st.lists(SUBJECTS, min_size=1, max_size=3).map(tuple),
            st.lists(HOST_RULES | HOST_RULES | NETWORK_RULES, min_size=2, max_size=8).map(tuple),
        ),
        min_size=1,
        max_size=4,
        unique_by=lambda policy: policy.name,
    ).map(tuple),
    st.sampled_from([Mode.ENFORCE, Mode.ENFORCE, Mode.AUDIT]),
)  # fmt: skip
IDENTITIES = st.builds(
    lambda client, user, namespace, labels: identity(client, user, namespace, dict(labels)),
    st.sampled_from(["10.20.0.1", "10.21.0.1", "192.0.2.1", "2001:db8::1", "::ffff:10.20.0.1"]),
    perhaps(["batch", "agent", "other"]),
    perhaps(["agents", "web", "other"]),
    some(LABELS, 3),
)
#: Every destination of interest is asked about in each example.
HOSTS = [*NAMES, "d.c.b.a", *(f"[{text}]" if ":" in text else text for text in ADDRESSES)]
DESTINATIONS = [
    parse_authority(f"{host}:{port}".encode(), None) for host in HOSTS for port in ASKED_PORTS
]


# The code under test gets it as the configuration's reader would hand it over --------------------------------------


def to_compiled(drawn: Drawn) -> CompiledPolicy:
    sets = {
        name: HostSet(name.removeprefix("@"), HERE, dict.fromkeys(patterns, HERE))
        for name, patterns in drawn.sets.items()
    }

    def to_target(text: str) -> Target:
        if text.startswith("@"):
            return sets[text]
        return target_of(text)

    def to_rule(rule: DrawnRule, number: int) -> Rule:
        return Rule(
            Action(rule.action),
            to_target(rule.target),
            Place("policy.yaml", number, 1),
            tuple(port_range(text) for text in rule.ports),
            tuple(map(ip_network, rule.allow_private)),
            rule.tls == "verify",
        )

    def to_subject(subject: DrawnSubject) -> Subject:
        network = None if subject.cidr is None else ip_network(subject.cidr)
        labels = tuple(sorted(subject.pod_labels))
        return Subject(HERE, network, subject.user, subject.namespace, labels)

    return CompiledPolicy(
        [
            Policy(
                policy.name,
                tuple(to_rule(rule, number) for number, rule in enumerate(policy.rules)),
                None if policy.subjects is None else tuple(map(to_subject, policy.subjects)),
                HERE,
            )
            for policy in drawn.policies
        ],
        drawn.mode,
    )


# The oracle --------------------------------------------------------------------------------------------------------


@cache
def port_range(text: str) -> tuple[int, int]:
    low, _, high = text.partition("-")
    return int(low), int(high or low)


@cache
def holds(network: str, address: str) -> bool:
    """By first and last address, not by prefix."""
    found, wanted = ip_network(network), ip_address(address)
    return found.version == wanted.version and int(found[0]) <= int(wanted) <= int(found[-1])


@cache
def lies_in(inner: str, outer: str) -> bool:
    found: IPNetwork = ip_network(inner)
    return holds(outer, str(found[0])) and holds(outer, str(found[-1]))


def pattern_names(pattern: str, name: str) -> bool:
    """``example.com`` is that host alone. ``*.example.com`` is every name below it, not itself. ``*`` is every host."""
    return pattern in ("*", name) or (pattern.startswith("*.") and name.endswith(pattern[1:]))


def describes(subject: DrawnSubject, who: Identity) -> bool:
    """Keys of one entry must all hold."""
    return (
        (subject.cidr is None or holds(subject.cidr, who.client))
        and (subject.user is None or subject.user == who.user)
        and (subject.namespace is None or subject.namespace == who.namespace)
        and all(dict(who.pod_labels).get(key) == value for key, value in subject.pod_labels)
    )


@dataclass(frozen=True)
class Expected:
    denial: Reason | None
    deciding: list[tuple[str, DrawnRule]]
    """The rules that may be named as the one that decided: equals, among which nothing chooses."""
    tls: bool
    lifting: list[str]
    closing: list[str]
    naming: list[tuple[str, DrawnRule]]
    """The rules that name the host, whatever their ports."""


def expectation(drawn: Drawn, who: Identity, destination: Authority) -> Expected:
    """Over all policies whose subjects match: deny beats ask beats allow, and what nothing allows is denied."""
    host, port = destination.host.text, destination.port
    literal = destination.host.address is not None

    def names(rule: DrawnRule) -> bool:
        if (
            "/" in rule.target
        ):  # a literal is matched by `cidr:` rules alone, a name by none of them
            return literal and holds(rule.target, host)
        patterns = drawn.sets.get(rule.target, (rule.target,))
        return not literal and any(pattern_names(pattern, host) for pattern in patterns)

    def covers(rule: DrawnRule) -> bool:
        return any(low <= port <= high for low, high in map(port_range, rule.ports))

    applying = [
        (policy.name, rule)
        for policy in drawn.policies
        if policy.subjects is None or any(describes(subject, who) for subject in policy.subjects)
        for rule in policy.rules
    ]
    naming = [(name, rule) for name, rule in applying if names(rule)]
    closing = [
        rule.target
        for _, rule in applying
        if "/" in rule.target and rule.action == "deny" and covers(rule)
    ]
    by_action = {
        action: [(name, rule) for name, rule in naming if rule.action == action and covers(rule)]
        for action in ("deny", "ask", "allow")
    }
    if by_action["deny"]:
        return Expected(reasons.DENY_RULE, by_action["deny"], True, [], closing, naming)
    letting = [rule for _, rule in by_action["ask"] + by_action["allow"]]
    if not letting:
        elsewhere = [(name, rule) for name, rule in naming if rule.action != "deny"]
        refused = reasons.ADDRESS_NOT_ALLOWED if literal else reasons.HOST_NOT_ALLOWED
        if elsewhere:
            refused = reasons.PORT_NOT_ALLOWED
        return Expected(refused, elsewhere, True, [], closing, naming)
    lifting = [network for rule in letting for network in rule.allow_private]
    if literal and (special := ADDRESSES[host].lies_in) is not None:
        # A cidr rule opens the special-use network that it lies in; a wider one means the internet.
        lifting = [rule.target for rule in letting if lies_in(rule.target, special)]
    return Expected(
        reasons.APPROVAL_REQUIRED if by_action["ask"] else None,
        by_action["ask"] or by_action["allow"],
        all(rule.tls == "verify" for rule in letting),
        lifting,
        closing,
        naming,
    )


def dialled(expected: Expected, addresses: tuple[str, ...], mode: Mode) -> tuple[list[str], bool]:
    """The addresses that may be dialled, and whether that is refused, or in audit mode would be."""

    def is_lifted(address: str) -> bool:
        kind = ADDRESSES[address]
        if kind.lies_in is None:
            return True
        return any(
            holds(network, address) and (not kind.guarded or lies_in(network, kind.lies_in))
            for network in expected.lifting
        )

    def is_closed(address: str) -> bool:
        inside = ADDRESSES[address].leads_to
        return any(
            holds(network, address) or (inside is not None and holds(network, inside))
            for network in expected.closing
        )

    passed = [address for address in addresses if is_lifted(address) and not is_closed(address)]
    if passed or mode is Mode.ENFORCE:
        return passed, not passed
    # Audit mode reports and lets through, but never to the machine itself or a cloud's metadata service.
    return [address for address in addresses if not ADDRESSES[address].guarded], True


# The properties ----------------------------------------------------------------------------------------------------


def answers(
    compiled: CompiledPolicy, who: Identity, resolved: list[tuple[str, ...]]
) -> Iterator[tuple[Authority, tuple[str, ...], Decision, list[str], bool]]:
    """Every destination, the addresses behind it, the decision, what may be dialled, and whether that is refused."""
    for destination, behind in zip(DESTINATIONS, cycle(resolved), strict=False):
        decision = decide(compiled, who, destination)
        literal = destination.host.address is not None
        addresses = (destination.host.text,) if literal else behind
        vetting, refused = vet_addresses(decision, addresses, destination.port)
        assert refused in (None, reasons.DESTINATION_IP_PROHIBITED)
        assert all(vetted.port == destination.port for vetted in vetting.passed)
        yield (
            destination,
            addresses,
            decision,
            [vetted.ip for vetted in vetting.passed],
            refused is not None,
        )


#: What names resolve to, one after the other.
RESOLVED = st.lists(
    st.lists(st.sampled_from(list(ADDRESSES)), min_size=1, max_size=2).map(tuple),
    min_size=1,
    max_size=5,
)


@settings(CALM, max_examples=200)
@given(CONFIGURATIONS, IDENTITIES, RESOLVED)
def test_a_decision_is_what_a_scan_of_the_rules_finds(
    drawn: Drawn, who: Identity, resolved: list[tuple[str, ...]]
) -> None:
    compiled = to_compiled(drawn)
    for destination, addresses, decision, passed, refused in answers(compiled, who, resolved):
        expected = expectation(drawn, who, destination)
        assert decision.denial is expected.denial, destination
        assert decision.allowed is (expected.denial is None or drawn.mode is Mode.AUDIT)
        assert decision.tls is expected.tls, destination
        # A set that names a host by several of its patterns may be found as often.
        matches = matching_rules(compiled, who, destination)
        assert {drawn_rule(drawn, match) for match in matches} == set(expected.naming)
        if decision.match is None:
            assert expected.deciding == []
        else:
            assert drawn_rule(drawn, decision.match) in expected.deciding
        # What a refused destination would be granted is nobody's business.
        if decision.allowed:
            assert (passed, refused) == dialled(expected, addresses, drawn.mode), destination


def drawn_rule(drawn: Drawn, match: Match) -> tuple[str, DrawnRule]:
    (policy,) = (policy for policy in drawn.policies if policy.name == match.policy)
    return policy.name, policy.rules[match.rule.place.line]


def shuffled(drawn: Drawn, random: Random) -> Drawn:
    def mixed(values: tuple) -> tuple:
        return tuple(random.sample(values, len(values)))

    return Drawn(
        dict(mixed(tuple((name, mixed(patterns)) for name, patterns in drawn.sets.items()))),
        mixed(
            tuple(
                replace(
                    policy,
                    rules=mixed(policy.rules),
                    subjects=None if policy.subjects is None else mixed(policy.subjects),
                )
                for policy in drawn.policies
            )
        ),
        drawn.mode,
    )


@settings(CALM, max_examples=120)
@given(CONFIGURATIONS, IDENTITIES, RESOLVED, st.randoms(use_true_random=False))
def test_no_order_matters(
    drawn: Drawn, who: Identity, resolved: list[tuple[str, ...]], random: Random
) -> None:
    """Neither of policies, nor of rules, subjects, sets and the hosts in them."""
    one, other = to_compiled(drawn), to_compiled(shuffled(drawn, random))
    assert one.rule_count == other.rule_count
    for here, there in zip(answers(one, who, resolved), answers(other, who, resolved), strict=True):
        destination, _, decision, *gate = here
        _, _, again, *gate_again = there
        assert gate == gate_again, destination
        assert plainly(decision) == plainly(again), destination
        if decision.denial is not reasons.PORT_NOT_ALLOWED:
            assert action(decision) is action(again), destination


def plainly(decision: Decision) -> tuple[object, ...]:
    """A decision without the rule that made it and without the grant, which is compared by what it does."""
    return decision.allowed, decision.denial, decision.tls, set(decision.grant.allow)


def action(decision: Decision) -> Action | None:
    return None if decision.match is None else decision.match.rule.action


@settings(CALM, max_examples=100)
@given(CONFIGURATIONS, st.lists(IDENTITIES, min_size=1, max_size=4), st.integers(1, 40))
def test_what_is_remembered_is_what_would_be_decided(
    drawn: Drawn, clients: list[Identity], size: int
) -> None:
    """Whoever asked before, however often, and whatever was forgotten meanwhile."""
    compiled = to_compiled(drawn)
    questions = [(who, destination) for who in clients for destination in DESTINATIONS[::2]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decide_module, "_MEMO_SIZE", size)
        for who, destination in questions + questions[::-1]:
            remembered = decide(compiled, who, destination)
            assert decide(compiled, who, destination) is remembered
            assert len(compiled.memo) <= size
            fresh = _decide(compiled, who, destination)
            assert (plainly(remembered), remembered.match) == (plainly(fresh), fresh.match)
            gates = [
                vet_addresses(each, tuple(ADDRESSES), destination.port)
                for each in (remembered, fresh)
            ]
            assert repr(gates[0]) == repr(gates[1]), destination


def test_the_alphabet_meets() -> None:
    """The properties above would hold of nothing at all if no rule ever named what is asked."""
    drawn = Drawn(
        {"@one": ("a", "*.b.a"), "@two": ("*",)},
        (
            DrawnPolicy("p", None, (DrawnRule("allow", "@one", ("443",), (), "off"),)),
            DrawnPolicy(
                "q",
                (DrawnSubject(None, "batch", None, ()),),
                (DrawnRule("deny", "@one", ("443",), (), "verify"),),
            ),
        ),
        Mode.ENFORCE,
    )
    asked = parse_authority(b"c.b.a:443", None)
    assert expectation(drawn, identity("192.0.2.1"), asked).denial is None
    assert not expectation(drawn, identity("192.0.2.1"), asked).tls
    assert expectation(drawn, identity("192.0.2.1", "batch"), asked).denial is reasons.DENY_RULE
    assert dialled(
        Expected(None, [], True, ["0.0.0.0/0"], [], []), ("127.0.0.1",), Mode.ENFORCE
    ) == (
        [],
        True,
    )
    assert dialled(Expected(None, [], True, [], [], []), ("10.1.2.3",), Mode.AUDIT) == (
        ["10.1.2.3"],
        True,
    )
