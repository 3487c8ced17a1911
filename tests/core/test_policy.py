"""Compiled rules: the index finds what a plain look at every rule would find, and nothing else."""

from __future__ import annotations

import gc
import random
import time
import weakref
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egress_proxy.core.identity import Identity
from egress_proxy.core.names import (
    Authority,
    Host,
    canonical_host,
    host_of_address,
    parse_authority,
)
from egress_proxy.core.networks import IPNetwork
from egress_proxy.core.policy import (
    DEFAULT_PORTS,
    EVERY_PORT,
    Action,
    CompiledPolicy,
    HostPattern,
    Match,
    Mode,
    Place,
    Policy,
    Rule,
    Subject,
    matching_rules,
)
from tests.core.targets import HERE, target_of
from tests.support.calm import CALM

CLIENT = "10.0.0.1"
ME = Identity(CLIENT)


def allow(text: str, line: int = 1) -> Rule:
    return Rule(Action.ALLOW, target_of(text), Place("policy.yaml", line, 5))


def deny(text: str, line: int = 1) -> Rule:
    return Rule(Action.DENY, target_of(text), Place("policy.yaml", line, 5))


def policy(*rules: Rule, name: str = "p", subjects: tuple[str, ...] | None = None) -> Policy:
    if subjects is None:
        return Policy(name, rules, None, HERE)
    return Policy(name, rules, tuple(Subject(HERE, ip_network(text)) for text in subjects), HERE)


def found(compiled: CompiledPolicy, host: str, client: str = CLIENT) -> list[str]:
    destination = parse_authority(f"{host}:443".encode(), None)
    return [
        str(match.rule.target) for match in matching_rules(compiled, Identity(client), destination)
    ]


def names(rule: str, host: str) -> bool:
    return found(CompiledPolicy([policy(allow(rule))]), host) != []


@pytest.mark.parametrize(
    ("rule", "host", "expected"),
    [
        ("example.com", "example.com", True),
        ("example.com", "EXAMPLE.com.", True),
        ("example.com", "a.example.com", False),
        ("example.com", "com", False),
        ("example.com", "example.com.evil.net", False),
        ("trusted.net", "nottrusted.net", False),  # tinyproxy #627
        ("trusted.net", "trusted.network", False),
        ("trusted.net", "trusted-net", False),
        ("trusted.net", "trustedxnet", False),
        ("*.trusted.net", "a.trusted.net", True),
        ("*.trusted.net", "A.Trusted.Net.", True),
        ("*.trusted.net", "a.b.c.trusted.net", True),
        ("*.trusted.net", "trusted.net", False),  # the apex is another rule
        ("*.trusted.net", "nottrusted.net", False),
        ("*.trusted.net", "a.nottrusted.net", False),
        ("*.trusted.net", "trusted.net.evil.net", False),
        ("*.trusted.net", "a.trusted.net.evil.net", False),
        ("*.trusted.net", "net", False),
        ("*.net", "a.net", True),
        ("*.net", "a.b.net", True),
        ("*.net", "net", False),
        ("*", "net", True),
        ("*", "a.b.c", True),
        ("*", "127.0.0.1", False),  # gh-aw-firewall #137: an address skipped the name rules
        ("*", "[2001:db8::1]", False),
        ("*", "0x7f.1", False),
        ("*.1", "127.0.0.1", False),
        ("*.0.0.1", "127.0.0.1", False),
        ("127.0.0.1", "127.0.0.1", False),  # an address is named by a network alone
        ("127.0.0.0/8", "127.0.0.1", True),
        ("127.0.0.0/8", "127.1", True),
        ("127.0.0.0/8", "0x7f000001", True),
        ("127.0.0.0/8", "017700000001", True),
        ("127.0.0.0/8", "[::ffff:127.0.0.1]", True),
        ("127.0.0.0/8", "[::127.0.0.1]", False),
        ("127.0.0.0/8", "128.0.0.1", False),
        ("127.0.0.0/8", "localhost", False),
        ("0.0.0.0/0", "a.example", False),
        ("0.0.0.0/0", "[2001:db8::1]", False),
        ("::/0", "127.0.0.1", False),
        ("::/0", "[::ffff:127.0.0.1]", False),
        ("2001:db8::/32", "[2001:DB8:0::1%25eth0]", True),
        ("2001:db8::/32", "[2001:db9::1]", False),
    ],
)
def test_what_a_rule_names(rule: str, host: str, expected: bool) -> None:
    assert names(rule, host) is expected


def test_the_most_specific_rule_comes_first() -> None:
    rules = [allow(text) for text in ("*", "*.com", "*.b.com", "a.b.com", "*.a.b.com")]
    assert found(CompiledPolicy([policy(*rules)]), "a.b.com") == [
        "a.b.com",
        "*.b.com",
        "*.com",
        "*",
    ]
    networks = [
        allow(text)
        for text in ("0.0.0.0/0", "10.1.0.0/16", "10.0.0.0/8", "10.1.1.1/32", "10.2.0.0/16")
    ]
    assert found(CompiledPolicy([policy(*networks)]), "10.1.1.1") == [
        "10.1.1.1/32",
        "10.1.0.0/16",
        "10.0.0.0/8",
        "0.0.0.0/0",
    ]


def test_rules_alike_come_in_the_order_of_the_file() -> None:
    compiled = CompiledPolicy(
        [policy(allow("a", 1), deny("a", 2), name="x"), policy(allow("a", 3), name="y")]
    )
    assert matching_rules(compiled, ME, Authority(Host("a"), 1)) == [
        Match("x", allow("a", 1)),
        Match("x", deny("a", 2)),
        Match("y", allow("a", 3)),
    ]


@pytest.mark.parametrize(
    ("subjects", "client", "expected"),
    [
        (None, "10.0.0.1", True),
        (None, "2001:db8::1", True),
        ((), "10.0.0.1", False),
        (("10.0.0.0/8",), "10.255.255.255", True),
        (("10.0.0.0/8",), "11.0.0.0", False),
        (("10.0.0.0/8",), "2001:db8::1", False),
        (("10.0.0.0/8",), "::ffff:10.0.0.1", True),  # a dual-stack listener sees IPv4 clients so
        (("10.0.0.0/8",), "::ffff:a00:1", True),
        (("10.0.0.0/8",), "::ffff:11.0.0.1", False),
        (("10.0.0.0/8",), "::10.0.0.1", False),
        (("0.0.0.0/0",), "2001:db8::1", False),
        (("::/0",), "2001:db8::1", True),
        (("::/0",), "10.0.0.1", False),
        (("::/0",), "::ffff:10.0.0.1", False),
        (("fe80::/10",), "fe80::1%eth0", True),
        (("2001:db8::/32",), "2001:DB8::1", True),
        (("192.0.2.0/24", "10.0.0.1/32"), "10.0.0.1", True),
        (("192.0.2.0/24", "10.0.0.1/32"), "10.0.0.2", False),
    ],
)
def test_subjects(subjects: tuple[str, ...] | None, client: str, expected: bool) -> None:
    compiled = CompiledPolicy(
        [policy(allow("a"), subjects=subjects), policy(allow("b"), subjects=("203.0.113.0/24",))]
    )
    assert compiled.applicable(Identity(client)) == (frozenset({0}) if expected else frozenset())
    assert found(compiled, "a", client) == (["a"] if expected else [])
    assert found(compiled, "b", client) == []


@pytest.mark.parametrize("client", ["", "localhost", "10.0.0", "10.0.0.1:80", "[::1]", "010.0.0.1"])
def test_a_client_without_address_is_an_error(client: str) -> None:
    """It comes from the kernel; were it ever anything else, no policy may be guessed."""
    with pytest.raises(ValueError, match="does not appear to be an IPv4 or IPv6 address"):
        CompiledPolicy([policy(allow("*"))]).applicable(Identity(client))


@pytest.mark.parametrize(
    ("ports", "port", "expected"),
    [
        (DEFAULT_PORTS, 80, True),
        (DEFAULT_PORTS, 443, True),
        (DEFAULT_PORTS, 81, False),
        (DEFAULT_PORTS, 8080, False),
        (EVERY_PORT, 1, True),
        (EVERY_PORT, 65535, True),
        (((8000, 8080),), 7999, False),
        (((8000, 8080),), 8000, True),
        (((8000, 8080),), 8080, True),
        (((8000, 8080),), 8081, False),
        (((22, 22), (8000, 8080)), 22, True),
        ((), 443, False),
    ],
)
def test_ports(ports: tuple[tuple[int, int], ...], port: int, expected: bool) -> None:
    assert Rule(Action.ALLOW, target_of("a"), HERE, ports).covers_port(port) is expected


def test_the_networks_that_deny_rules_close() -> None:
    everywhere = Rule(Action.DENY, ip_network("192.0.2.0/24"), HERE, EVERY_PORT)
    compiled = CompiledPolicy(
        [
            policy(deny("10.0.0.0/8"), everywhere, allow("198.51.100.0/24"), deny("a")),
            policy(deny("203.0.113.0/24"), subjects=("10.0.0.0/8",)),
        ]
    )
    addresses = {"every": "192.0.2.1", "own": "203.0.113.1", "eight": "10.0.0.1"}

    def closed(client: str, port: int) -> set[str]:
        closes = compiled.closed_networks(Identity(client), port)
        assert closes is not None
        assert not closes(ip_address("198.51.100.1"))
        assert not closes(ip_address("2001:db8::1"))
        return {name for name, address in addresses.items() if closes(ip_address(address))}

    assert closed("10.0.0.1", 443) == {"every", "own", "eight"}
    assert closed("10.0.0.1", 22) == {"every"}
    assert closed("192.0.2.1", 443) == {"every", "eight"}
    assert CompiledPolicy([policy(deny("a"))]).closed_networks(ME, 443) is None


def test_how_things_are_written() -> None:
    assert [str(target_of(text)) for text in ("a.b", "*.a.b", "*", "10.0.0.0/8")] == [
        "a.b",
        "*.a.b",
        "*",
        "10.0.0.0/8",
    ]
    assert str(deny("*.a.b")) == "deny *.a.b"
    assert str(Place("x.yaml", 3, 7)) == "x.yaml:3:7"


def test_the_count_and_the_mode() -> None:
    compiled = CompiledPolicy([policy(allow("a"), deny("b")), policy(allow("*"))], Mode.AUDIT)
    assert compiled.rule_count == 3
    assert compiled.mode is Mode.AUDIT
    assert CompiledPolicy([]).rule_count == 0
    assert CompiledPolicy([]).mode is Mode.ENFORCE
    assert found(CompiledPolicy([]), "a") == []
    assert CompiledPolicy(iter([policy(allow("a"))])).rule_count == 1


def test_looking_adds_nothing() -> None:
    """A host that clients choose must not grow the index."""
    compiled = CompiledPolicy([policy(allow("a.example"), allow("*.b.example"))])
    for number in range(100):
        found(compiled, f"{number}.x.example")
    assert len(compiled._exact) == len(compiled._below) == 1


def test_a_policy_goes_when_nobody_needs_it() -> None:
    """A server that reloads collects no garbage: a cycle would keep each million hosts for ever."""
    compiled = CompiledPolicy([policy(allow("a.example"), deny("192.0.2.0/24"))])
    compiled.applicable(ME)
    assert compiled.closed_networks(ME, 443) is not None
    seen = weakref.ref(compiled)
    gc.disable()
    try:
        del compiled
        assert seen() is None
    finally:
        gc.enable()


# The index against a plain look at every rule.

LABELS = ["a", "b", "aa", "a-a"]
HOSTS = st.lists(st.sampled_from(LABELS), min_size=1, max_size=4).map(".".join)
IPV4 = st.sampled_from(
    ["10.0.0.0", "10.0.0.1", "10.0.1.0", "127.0.0.1", "192.0.2.1", "0.0.0.0", "255.255.255.255"]
)
IPV6 = st.sampled_from(["::", "::1", "fd00::1", "2001:db8::1", "2001:db8:0:1::", "ffff::"])
NETWORKS = st.one_of(
    st.tuples(IPV4, st.sampled_from([0, 1, 8, 24, 31, 32])),
    st.tuples(IPV6, st.sampled_from([0, 1, 7, 32, 64, 128])),
).map(lambda pair: f"{ip_network(f'{pair[0]}/{pair[1]}', strict=False)}")
PORTS = st.sampled_from([DEFAULT_PORTS, EVERY_PORT, ((443, 443),), ((1, 79), (8000, 9000))])
RULES = st.builds(
    lambda action, text, ports, line: Rule(
        action, target_of(text), Place("policy.yaml", line, 1), ports
    ),
    st.sampled_from(list(Action)),
    st.one_of(HOSTS, HOSTS.map("*.".__add__), st.just("*"), NETWORKS),
    PORTS,
    st.integers(1, 9),
)
POLICIES = st.lists(
    st.builds(
        lambda rules, subjects, name: policy(*rules, name=name, subjects=subjects),
        st.lists(RULES, max_size=6),
        st.none() | st.lists(NETWORKS, max_size=3).map(tuple),
        st.sampled_from("pqr"),
    ),
    max_size=4,
)
CLIENTS = st.one_of(IPV4, IPV6, IPV4.map("::ffff:".__add__))
DESTINATIONS = st.one_of(
    HOSTS.map(canonical_host),
    st.one_of(IPV4, IPV6).map(lambda text: host_of_address(ip_address(text))),
)


def holds(network: IPNetwork, text: str) -> bool:
    """Bit by bit, not as the code under test does it."""
    address = ip_address(text.removeprefix("::ffff:") if "." in text else text)
    shift = network.max_prefixlen - network.prefixlen
    return address.version == network.version and int(address) >> shift == int(network[0]) >> shift


def rule_names(rule: Rule, host: Host) -> bool:
    if isinstance(rule.target, IPv4Network | IPv6Network):
        return host.address is not None and holds(rule.target, host.text)
    assert isinstance(rule.target, HostPattern)
    if host.address is not None:
        return False
    if not rule.target.wildcard:
        return rule.target.name == host.text
    return not rule.target.name or host.text.endswith("." + rule.target.name)


def applies(policy: Policy, client: str) -> bool:
    return policy.subjects is None or any(
        subject.network is not None and holds(subject.network, client)
        for subject in policy.subjects
    )


@settings(CALM, max_examples=500)
@given(POLICIES, CLIENTS, DESTINATIONS, st.sampled_from([22, 80, 443, 8080]))
def test_the_index_finds_what_a_scan_finds(
    policies: list[Policy], client: str, host: Host, port: int
) -> None:
    compiled = CompiledPolicy(policies)
    scanned = [
        (number, rule)
        for number, policy in enumerate(policies)
        if applies(policy, client)
        for rule in policy.rules
        if rule_names(rule, host)
    ]
    matched = list(compiled.matches(Identity(client), host))
    assert len(matched) == len(scanned)
    assert all(entry in matched for entry in scanned)
    assert list(compiled.matches(Identity(client), host)) == matched
    closed = [
        rule.target
        for policy in policies
        if applies(policy, client)
        for rule in policy.rules
        if isinstance(rule.target, IPv4Network | IPv6Network)
        and rule.action is Action.DENY
        and rule.covers_port(port)
    ]
    closes = compiled.closed_networks(Identity(client), port)
    for text in (host.text, "10.0.0.1", "127.0.0.1", "fd00::1"):
        if host.address is not None or text != host.text:
            assert (closes is not None and closes(ip_address(text))) is any(
                holds(network, text) for network in closed
            )


def test_a_decision_does_not_scan_the_rules() -> None:
    """Forty thousand rules take about as long as ten."""

    def cost(count: int) -> float:
        rules = [allow(f"{number}.example") for number in range(count)]
        rules += [allow(f"*.{number}.example") for number in range(count)]
        compiled = CompiledPolicy([policy(*rules)])
        hosts = [
            Host(f"a.b.{random.Random(number).randrange(count)}.example") for number in range(2000)
        ]
        start = time.process_time()
        for host in hosts:
            assert len(list(compiled.matches(ME, host))) == 1
        return time.process_time() - start

    assert min(cost(20_000) for _ in range(2)) < 20 * max(cost(10) for _ in range(2))
