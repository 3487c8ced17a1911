"""The decision: deny beats allow, no order matters, and no rule opens more than it says."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egress_proxy.core import reasons
from egress_proxy.core.addresses import PUBLIC_ONLY, Grant
from egress_proxy.core.decide import Decision, decide, vet_addresses
from egress_proxy.core.identity import Identity
from egress_proxy.core.names import parse_authority
from egress_proxy.core.networks import IPNetwork
from egress_proxy.core.policy import (
    DEFAULT_PORTS,
    EVERY_PORT,
    Action,
    CompiledPolicy,
    HostPattern,
    Mode,
    Policy,
    PortRanges,
    Rule,
    Subject,
)
from egress_proxy.core.reason import Reason
from egress_proxy.core.special_use import special_use
from tests.core.targets import HERE, target_of
from tests.support.calm import CALM

CLIENT = "10.0.0.1"
NAMED = [reasons.DENY_RULE, reasons.PORT_NOT_ALLOWED]


def rule(
    action: Action, text: str, ports: PortRanges = DEFAULT_PORTS, private: tuple[str, ...] = ()
) -> Rule:
    return Rule(action, target_of(text), HERE, ports, tuple(map(ip_network, private)))


def allow(text: str, *private: str, ports: PortRanges = DEFAULT_PORTS) -> Rule:
    return rule(Action.ALLOW, text, ports, private)


def deny(text: str, ports: PortRanges = DEFAULT_PORTS) -> Rule:
    return rule(Action.DENY, text, ports)


def policies(*rules: Rule, mode: Mode = Mode.ENFORCE) -> CompiledPolicy:
    return CompiledPolicy([Policy("p", rules, None, HERE)], mode)


def ask(compiled: CompiledPolicy, target: str, client: str = CLIENT) -> Decision:
    return decide(compiled, Identity(client), parse_authority(target.encode(), 443))


def denial(compiled: CompiledPolicy, target: str, client: str = CLIENT) -> Reason | None:
    decision = ask(compiled, target, client)
    assert decision.allowed is (decision.denial is None)
    return decision.denial


def reaches(compiled: CompiledPolicy, target: str, *addresses: str) -> bool | Reason:
    """The whole way: the rules, then the gate. True, or why not; a literal resolves to itself."""
    destination = parse_authority(target.encode(), 443)
    decision = decide(compiled, Identity(CLIENT), destination)
    if decision.denial is not None:
        return decision.denial
    vetting, refused = vet_addresses(
        decision, addresses or (destination.host.text,), destination.port
    )
    assert bool(vetting.passed) is (refused is None)
    return refused or True


@pytest.mark.parametrize(
    ("rules", "target", "expected"),
    [
        ([], "a.example", reasons.HOST_NOT_ALLOWED),
        ([], "192.0.2.1", reasons.ADDRESS_NOT_ALLOWED),
        ([], "[2001:db8::1]", reasons.ADDRESS_NOT_ALLOWED),
        ([allow("a.example")], "a.example", None),
        ([allow("a.example")], "A.EXAMPLE.", None),
        ([allow("a.example")], "a.example:80", None),
        ([allow("a.example")], "a.example:22", reasons.PORT_NOT_ALLOWED),
        ([allow("a.example", ports=((22, 22),))], "a.example:22", None),
        ([allow("a.example", ports=((22, 22),))], "a.example:443", reasons.PORT_NOT_ALLOWED),
        ([allow("a.example")], "b.a.example", reasons.HOST_NOT_ALLOWED),
        ([allow("*.a.example")], "a.example", reasons.HOST_NOT_ALLOWED),
        ([allow("*.a.example")], "c.b.a.example", None),
        ([allow("*")], "a.example", None),
        ([allow("*", ports=EVERY_PORT)], "8.8.8.8", reasons.ADDRESS_NOT_ALLOWED),
        ([allow("*", ports=EVERY_PORT)], "[2606:4700::1]", reasons.ADDRESS_NOT_ALLOWED),
        ([allow("0.0.0.0/0")], "8.8.8.8", None),
        ([allow("0.0.0.0/0")], "8.8.8.8:22", reasons.PORT_NOT_ALLOWED),
        ([allow("0.0.0.0/0")], "a.example", reasons.HOST_NOT_ALLOWED),
        ([allow("0.0.0.0/0")], "[2606:4700::1]", reasons.ADDRESS_NOT_ALLOWED),
        ([deny("a.example")], "a.example", reasons.DENY_RULE),
        ([allow("*"), deny("a.example")], "a.example", reasons.DENY_RULE),
        ([allow("*"), deny("a.example")], "b.example", None),
        (
            [allow("a.example"), deny("*")],
            "a.example",
            reasons.DENY_RULE,
        ),  # however specific the allow rule is
        ([allow("b.a.example"), deny("*.a.example")], "b.a.example", reasons.DENY_RULE),
        ([allow("a.example"), deny("*.a.example")], "a.example", None),
        ([allow("*"), deny("*")], "8.8.8.8", reasons.ADDRESS_NOT_ALLOWED),
        ([allow("8.8.8.8/32"), deny("0.0.0.0/0")], "8.8.8.8", reasons.DENY_RULE),
        ([allow("0.0.0.0/0"), deny("8.8.8.8/32")], "8.8.8.8", reasons.DENY_RULE),
        ([allow("0.0.0.0/0"), deny("8.8.8.8/32")], "8.8.4.4", None),
        (
            [allow("0.0.0.0/0"), deny("8.8.8.8/32")],
            "0x8080808",
            reasons.DENY_RULE,
        ),  # smokescreen #285
        ([allow("0.0.0.0/0"), deny("8.8.8.8/32")], "010.8.8.8", reasons.DENY_RULE),  # 010 is 8
        ([allow("::/0"), deny("8.8.8.8/32")], "[::ffff:8.8.8.8]", reasons.DENY_RULE),
        # A deny rule speaks about its ports alone.
        ([allow("a.example"), deny("a.example", ((80, 80),))], "a.example:80", reasons.DENY_RULE),
        ([allow("a.example"), deny("a.example", ((80, 80),))], "a.example:443", None),
        ([deny("a.example", ((80, 80),))], "a.example:443", reasons.HOST_NOT_ALLOWED),
        (
            [allow("a.example", ports=((22, 22),)), deny("a.example")],
            "a.example:443",
            reasons.DENY_RULE,
        ),
        ([allow("*"), allow("a.example", ports=((22, 22),))], "a.example:443", None),
    ],
)
def test_rules(rules: list[Rule], target: str, expected: Reason | None) -> None:
    assert denial(policies(*rules), target) is expected
    assert denial(policies(*reversed(rules)), target) is expected
    # Nor does it matter which policy a rule stands in.
    apart = CompiledPolicy(
        [Policy(str(number), (rule,), None, HERE) for number, rule in enumerate(rules)]
    )
    assert denial(apart, target) is expected


def test_policies_add_up_for_those_they_apply_to() -> None:
    agents = (Subject(HERE, ip_network("10.20.0.0/16")),)
    compiled = CompiledPolicy(
        [
            Policy("everyone", (allow("a.example"), allow("b.example")), None, HERE),
            Policy("agents", (allow("c.example"), deny("b.example")), agents, HERE),
        ]
    )
    for client in ("10.20.0.1", "::ffff:10.20.0.1", "::ffff:a14:1"):
        assert denial(compiled, "a.example", client) is None
        assert denial(compiled, "b.example", client) is reasons.DENY_RULE
        assert denial(compiled, "c.example", client) is None
    for client in ("10.21.0.1", "2001:db8::1", "::10.20.0.1"):
        assert denial(compiled, "a.example", client) is None
        assert denial(compiled, "b.example", client) is None
        assert denial(compiled, "c.example", client) is reasons.HOST_NOT_ALLOWED


@pytest.mark.parametrize(
    ("rules", "target", "deciding"),
    [
        ([allow("*"), allow("a.example")], "a.example", "allow a.example"),
        ([allow("*"), allow("*.example")], "a.example", "allow *.example"),
        ([allow("*"), deny("*.example"), allow("a.example")], "a.example", "deny *.example"),
        (
            [allow("*", ports=((22, 22),)), allow("a.example", ports=((22, 22),))],
            "a.example",
            "allow a.example",
        ),
        ([allow("a.example", ports=((22, 22),)), allow("*")], "a.example", "allow *"),
        ([deny("a.example", ((22, 22),))], "a.example", None),
        (
            [allow("0.0.0.0/0"), allow("8.8.0.0/16"), allow("8.0.0.0/8")],
            "8.8.8.8",
            "allow 8.8.0.0/16",
        ),
        ([allow("b.example")], "a.example", None),
    ],
)
def test_the_rule_that_decides(rules: list[Rule], target: str, deciding: str | None) -> None:
    match = ask(policies(*rules), target).match
    assert (None if match is None else str(match.rule)) == deciding
    assert match is None or match.policy == "p"


# Rules and addresses.

PUBLIC, PRIVATE, LOOPBACK, METADATA = "8.8.8.8", "10.1.2.3", "127.0.0.1", "169.254.169.254"
PROHIBITED = reasons.DESTINATION_IP_PROHIBITED


@pytest.mark.parametrize(
    ("rules", "target", "addresses", "expected"),
    [
        ([allow("a.example")], "a.example", [PUBLIC], True),
        ([allow("a.example")], "a.example", [PRIVATE], PROHIBITED),  # rebinding
        ([allow("a.example")], "a.example", [PRIVATE, PUBLIC], True),
        ([allow("a.example")], "a.example", [METADATA], PROHIBITED),
        ([allow("a.example")], "a.example", ["64:ff9b::a9fe:a9fe"], PROHIBITED),
        ([allow("a.example")], "a.example", ["fd00:ec2::254"], PROHIBITED),
        ([allow("a.example")], "a.example", ["junk"], PROHIBITED),
        ([allow("a.example", "10.0.0.0/8")], "a.example", [PRIVATE], True),
        ([allow("a.example", "10.0.0.0/16")], "a.example", [PRIVATE], PROHIBITED),
        ([allow("a.example", "0.0.0.0/0")], "a.example", [PRIVATE], True),
        ([allow("a.example", "0.0.0.0/0", "::/0")], "a.example", [LOOPBACK], PROHIBITED),
        ([allow("a.example", "0.0.0.0/0", "::/0")], "a.example", [METADATA], PROHIBITED),
        ([allow("a.example", "169.254.0.0/16")], "a.example", [METADATA], PROHIBITED),
        ([allow("a.example", "169.254.169.254/32")], "a.example", [METADATA], True),
        ([allow("a.example", "127.0.0.0/8")], "a.example", [LOOPBACK], True),
        # The exception of one host is not another's (smokescreen #193).
        (
            [allow("b.example", "10.0.0.0/8"), allow("a.example")],
            "a.example",
            [PRIVATE],
            PROHIBITED,
        ),
        (
            [allow("*.a.example", "10.0.0.0/8"), allow("a.example")],
            "a.example",
            [PRIVATE],
            PROHIBITED,
        ),
        (
            [allow("a.example", "10.0.0.0/8", ports=((22, 22),)), allow("a.example")],
            "a.example",
            [PRIVATE],
            PROHIBITED,
        ),
        # Exceptions of all rules that allow it add up.
        ([allow("a.example"), allow("*.example", "10.0.0.0/8")], "a.example", [PRIVATE], True),
        (
            [allow("a.example", "192.168.0.0/16"), allow("*", "10.0.0.0/8")],
            "a.example",
            [PRIVATE],
            True,
        ),
        # A cidr rule is about literals, not about what names resolve to.
        ([allow("a.example"), allow("10.0.0.0/8")], "a.example", [PRIVATE], PROHIBITED),
        # A deny cidr is about both.
        ([allow("a.example"), deny("8.8.0.0/16")], "a.example", [PUBLIC], PROHIBITED),
        ([allow("a.example"), deny("8.8.0.0/16")], "a.example", ["::ffff:8.8.8.8"], PROHIBITED),
        ([allow("a.example"), deny("8.8.0.0/16")], "a.example", ["64:ff9b::808:808"], PROHIBITED),
        ([allow("a.example"), deny("8.8.0.0/16")], "a.example", [PUBLIC, "1.1.1.1"], True),
        ([allow("a.example"), deny("8.8.0.0/16", ((22, 22),))], "a.example", [PUBLIC], True),
        (
            [allow("a.example", "10.0.0.0/8"), deny("10.1.0.0/16")],
            "a.example",
            [PRIVATE],
            PROHIBITED,
        ),
        ([allow("a.example"), deny("::/0")], "a.example", ["2606:4700::1"], PROHIBITED),
        # Literals.
        ([allow("8.8.8.0/24")], "8.8.8.8", [], True),
        ([allow("0.0.0.0/0")], "10.1.2.3", [], PROHIBITED),  # it means the internet
        ([allow("0.0.0.0/0")], "127.1", [], PROHIBITED),
        ([allow("10.0.0.0/8")], "10.1.2.3", [], True),
        ([allow("10.1.2.3/32")], "10.1.2.3", [], True),
        ([allow("10.0.0.0/7")], "10.1.2.3", [], PROHIBITED),
        ([allow("0.0.0.0/0"), allow("10.0.0.0/8")], "10.1.2.3", [], True),
        ([allow("127.0.0.0/8")], "0x7f.1", [], True),
        ([allow("0.0.0.0/1")], "127.0.0.1", [], PROHIBITED),
        ([allow("169.254.0.0/16")], METADATA, [], PROHIBITED),
        ([allow("169.254.0.0/16")], "169.254.1.1", [], True),
        ([allow("169.254.169.254/32")], METADATA, [], True),
        ([allow("100.64.0.0/10")], "100.100.100.200", [], PROHIBITED),
        ([allow("2000::/3")], "[2606:4700::1]", [], True),
        ([allow("::/0")], "[2606:4700::1]", [], True),
        ([allow("::/0")], "[::1]", [], PROHIBITED),
        ([allow("::/0")], "[fd00::1]", [], PROHIBITED),
        ([allow("::/0")], "[fe80::1%25eth0]", [], PROHIBITED),
        ([allow("::/0")], "[100::1]", [], PROHIBITED),  # not allocated
        ([allow("::/0")], "[::ffff:0:127.0.0.1]", [], PROHIBITED),
        ([allow("::/0")], "[::127.0.0.1]", [], PROHIBITED),
        ([allow("::/0")], "[64:ff9b::127.0.0.1]", [], PROHIBITED),
        ([allow("64:ff9b::/96")], "[64:ff9b::10.1.2.3]", [], PROHIBITED),
        ([allow("64:ff9b::/96")], "[64:ff9b::8.8.8.8]", [], True),
        ([allow("64:ff9b::/96"), deny("8.8.8.8/32")], "[64:ff9b::8.8.8.8]", [], PROHIBITED),
        ([allow("2002::/16")], "[2002:7f00:1::1]", [], PROHIBITED),
        ([allow("fd00::/8")], "[fd00::1]", [], True),
        ([allow("fd00::/8")], "[fd00:ec2::254]", [], PROHIBITED),
        ([allow("::1/128")], "[::1]", [], True),
        ([allow("10.0.0.0/8")], "[::ffff:10.1.2.3]", [], True),
    ],
)
def test_addresses(
    rules: list[Rule], target: str, addresses: list[str], expected: bool | Reason
) -> None:
    assert reaches(policies(*rules), target, *addresses) is expected
    assert reaches(policies(*reversed(rules)), target, *addresses) is expected


def test_no_address_is_no_way_through() -> None:
    decision = ask(policies(allow("a.example")), "a.example")
    vetting, refused = vet_addresses(decision, (), 443)
    assert refused is PROHIBITED
    assert vetting.passed == ()


def test_a_plain_decision_grants_nothing() -> None:
    assert ask(policies(allow("a.example")), "a.example").grant is PUBLIC_ONLY
    assert ask(policies(allow("8.0.0.0/8")), "8.8.8.8").grant is PUBLIC_ONLY


def test_the_port_of_the_destination_is_dialled() -> None:
    decision = ask(policies(allow("a.example", ports=((8443, 8443),))), "a.example:8443")
    vetting, _ = vet_addresses(decision, (PUBLIC,), 8443)
    assert [(vetted.ip, vetted.port) for vetted in vetting.passed] == [(PUBLIC, 8443)]


# Audit mode.


@pytest.mark.parametrize(
    ("rules", "target", "expected"),
    [
        ([], "a.example", reasons.HOST_NOT_ALLOWED),
        ([], "8.8.8.8", reasons.ADDRESS_NOT_ALLOWED),
        ([allow("a.example")], "a.example:22", reasons.PORT_NOT_ALLOWED),
        ([deny("*")], "a.example", reasons.DENY_RULE),
        ([allow("a.example")], "a.example", None),
    ],
)
def test_audit_lets_through_and_keeps_the_reason(
    rules: list[Rule], target: str, expected: Reason | None
) -> None:
    decision = ask(policies(*rules, mode=Mode.AUDIT), target)
    enforced = ask(policies(*rules), target)
    assert decision.allowed
    assert decision.denial is expected
    assert (enforced.denial, enforced.match) == (decision.denial, decision.match)


@pytest.mark.parametrize(
    "rules",
    [[], [allow("a.example")], [deny("a.example")], [deny("10.0.0.0/8"), deny("8.0.0.0/8")]],
)
@pytest.mark.parametrize("address", [PRIVATE, "192.0.2.1", "fd00::1"])
def test_audit_lets_prohibited_addresses_through_and_says_so(
    rules: list[Rule], address: str
) -> None:
    decision = ask(policies(*rules, mode=Mode.AUDIT), "a.example")
    vetting, refused = vet_addresses(decision, (address,), 443)
    assert [vetted.ip for vetted in vetting.passed] == [address]
    assert refused is PROHIBITED


@pytest.mark.parametrize(
    "rules",
    [
        [],
        [allow("*", "0.0.0.0/0", "::/0")],
        [allow("0.0.0.0/0"), allow("::/0")],
        [deny("a.example"), allow("*", "127.0.0.0/8", "169.254.169.254/32", "::1/128", "168.63.129.16/32")],
        [allow("a.example", "127.0.0.0/8", "169.254.169.254/32", "::1/128", "168.63.129.16/32"), deny("*")],
        [deny("127.0.0.0/8"), deny("169.254.0.0/16"), deny("::/0"), deny("168.0.0.0/8"),
         allow("*", "127.0.0.0/8", "169.254.169.254/32", "::1/128", "168.63.129.16/32")],
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "address", [LOOPBACK, METADATA, "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "168.63.129.16"]
)
def test_audit_never_lets_a_guarded_address_through_that_enforcement_would_not(
    rules: list[Rule], address: str
) -> None:
    for order in (rules, rules[::-1]):
        for target in ("a.example", f"[{address}]" if ":" in address else address):
            decision = ask(policies(*order, mode=Mode.AUDIT), target)
            assert decision.allowed
            vetting, refused = vet_addresses(decision, (address,), 443)
            assert vetting.passed == ()
            assert refused is PROHIBITED


def test_audit_finds_nothing_wrong_where_nothing_is() -> None:
    compiled = policies(allow("a.example", "10.0.0.0/8", "127.0.0.0/8"), mode=Mode.AUDIT)
    vetting, refused = vet_addresses(ask(compiled, "a.example"), (PUBLIC, PRIVATE, LOOPBACK), 443)
    assert refused is None
    assert len(vetting.passed) == 3


# The decision against a plain reading of the contract.

HOSTS = [
    "a",
    "b.a",
    "c.b.a",
    "b",
    "ba",
    "8.8.8.8",
    "10.0.0.1",
    "10.1.0.1",
    "127.0.0.1",
    "[fd00::1]",
    "[2606:4700::1]",
]
TARGETS = ["a", "b.a", "*.a", "*.b.a", "*", "b"]
TARGETS += [
    "0.0.0.0/0",
    "8.8.8.8/32",
    "10.0.0.0/8",
    "10.1.0.0/16",
    "127.0.0.0/8",
    "::/0",
    "fd00::/8",
]
PRIVATES = ["10.0.0.0/8", "127.0.0.0/8", "0.0.0.0/0", "fd00::/8"]
RULES = st.builds(
    rule,
    st.sampled_from([Action.ALLOW, Action.DENY]),
    st.sampled_from(TARGETS),
    st.sampled_from([DEFAULT_PORTS, ((443, 443),), ((1, 100),)]),
    st.lists(st.sampled_from(PRIVATES), max_size=2).map(tuple),
)
SUBJECTS = st.sampled_from([None, ("10.0.0.0/8",), ("192.0.2.0/24", "fd00::/8"), ("::/0",)])
CLIENTS = ["10.0.0.1", "192.0.2.9", "::ffff:10.9.9.9", "fd00::9", "203.0.113.1"]
POLICIES = st.lists(st.tuples(st.lists(RULES, max_size=5), SUBJECTS), max_size=4)


def within(text: str, network: str) -> bool:
    address, net = ip_address(text), ip_network(network)
    return address.version == net.version and int(net[0]) <= int(address) <= int(net[-1])


def names(target: str, host: str) -> bool:
    literal = host.startswith("[") or host[0].isdigit()
    if "/" in target:
        return literal and within(host.strip("[]"), target)
    if literal:
        return False
    return target in {"*", host} or (target.startswith("*.") and host.endswith(target[1:]))


def expectation(
    rules: list[tuple[str, Rule]], host: str, port: int
) -> tuple[Reason | None, set[IPNetwork], set[IPNetwork]]:
    """The denial, the networks lifted and those closed; from the rules that apply, with their targets as text."""
    naming = [rule for target, rule in rules if names(target, host)]
    covering = [rule for rule in naming if any(low <= port <= high for low, high in rule.ports)]
    closed = {
        ip_network(target)
        for target, rule in rules
        if "/" in target
        and rule.action is Action.DENY
        and any(low <= port <= high for low, high in rule.ports)
    }
    if any(rule.action is Action.DENY for rule in covering):
        return reasons.DENY_RULE, set(), closed
    if not covering:
        if any(rule.action is Action.ALLOW for rule in naming):
            return reasons.PORT_NOT_ALLOWED, set(), closed
        literal = host.startswith("[") or host[0].isdigit()
        return (reasons.ADDRESS_NOT_ALLOWED if literal else reasons.HOST_NOT_ALLOWED), set(), closed
    lifted: set[IPNetwork] = set()
    for rule in covering:
        if isinstance(rule.target, HostPattern):
            lifted.update(rule.allow_private)
        elif isinstance(rule.target, IPv4Network | IPv6Network):
            special = special_use(ip_address(host.strip("[]")))
            # Both networks hold the address, so the rule's lies within the other if it is not the wider one.
            if special is not None and rule.target.prefixlen >= special.network.prefixlen:
                lifted.add(rule.target)
    return None, lifted, closed


@settings(CALM, max_examples=600)
@given(
    POLICIES,
    st.sampled_from(HOSTS),
    st.sampled_from([22, 80, 443, 8080]),
    st.sampled_from(CLIENTS),
    st.sampled_from(list(Mode)),
    st.randoms(),
)
def test_the_decision_is_what_the_contract_says(
    drawn: list[tuple[list[Rule], tuple[str, ...] | None]],
    host: str,
    port: int,
    client: str,
    mode: Mode,
    random: Random,
) -> None:
    plain = client.removeprefix("::ffff:")
    applying = [
        (str(rule.target), rule)
        for rules, subjects in drawn
        if subjects is None or any(within(plain, subject) for subject in subjects)
        for rule in rules
    ]
    denied, lifted, closed = expectation(applying, host, port)

    def made(order: list[tuple[list[Rule], tuple[str, ...] | None]]) -> CompiledPolicy:
        return CompiledPolicy(
            [
                Policy(
                    f"p{number}",
                    tuple(rules),
                    None
                    if subjects is None
                    else tuple(Subject(HERE, ip_network(text)) for text in subjects),
                    HERE,
                )
                for number, (rules, subjects) in enumerate(order)
            ],
            mode,
        )

    shuffled = [
        (random.sample(rules, len(rules)), subjects)
        for rules, subjects in random.sample(drawn, len(drawn))
    ]
    for order in (drawn, shuffled):
        decision = decide(
            made(order), Identity(client), parse_authority(f"{host}:{port}".encode(), None)
        )
        assert decision.denial is denied
        assert decision.allowed is (denied is None or mode is Mode.AUDIT)
        assert set(decision.grant.allow) == lifted
        for text in ("10.0.0.1", "10.1.0.1", "127.0.0.1", "fd00::1", "8.8.8.8"):
            closes = decision.grant.closed
            assert (closes is not None and closes(ip_address(text))) is any(
                within(text, str(network)) for network in closed
            )
        assert decision.grant.audit is (mode is Mode.AUDIT)
        assert isinstance(decision.grant, Grant)
        # The rule that is named is one that names the host, and of the kind that was decisive.
        if decision.match is None:
            assert denied is not None
            assert denied not in NAMED
        else:
            assert decision.match.rule in [rule for target, rule in applying if names(target, host)]
            assert decision.match.rule.action is (
                Action.DENY if denied is reasons.DENY_RULE else Action.ALLOW
            )
            assert decision.match.rule.covers_port(port) is (denied is not reasons.PORT_NOT_ALLOWED)


# What is remembered -----------------------------------------------------------------------------


def test_a_decision_is_made_once() -> None:
    compiled = policies(allow("a.test"), deny("b.test"))
    for target in ("a.test:443", "b.test:443", "c.test:443"):
        assert ask(compiled, target) is ask(compiled, target)


def test_another_client_port_or_policy_is_another_question() -> None:
    policy = Policy("p", (allow("a.test"),), (Subject(HERE, ip_network("10.0.0.0/24")),), HERE)
    compiled = CompiledPolicy([policy])
    assert ask(compiled, "a.test:443").allowed
    assert not ask(compiled, "a.test:444").allowed
    assert not ask(compiled, "a.test:443", client="10.0.1.1").allowed
    assert not ask(policies(deny("a.test")), "a.test:443").allowed


def test_clients_cannot_fill_the_memory() -> None:
    compiled = policies(allow("*"))
    for number in range(20_000):
        assert ask(compiled, f"h{number}.test:443").allowed
    assert len(compiled.memo) < 10_000


def test_many_denied_networks_are_gathered_once() -> None:
    compiled = policies(allow("*"), *(deny(f"10.{n}.0.0/16") for n in range(200)))
    first, second = (ask(compiled, f"{name}.test:443").grant for name in "ab")
    assert first.closed is second.closed
    assert first.closed is not None
    assert first.closed(ip_address("10.199.0.1"))
