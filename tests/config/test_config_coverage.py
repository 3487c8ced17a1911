"""A rule that the lint calls pointless is: without it, every decision stays what it was."""

from __future__ import annotations

from ipaddress import ip_network

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from egress_proxy.config.errors import Code, Report
from egress_proxy.config.lint.rules import lint
from egress_proxy.core import reasons
from egress_proxy.core.addresses import vet
from egress_proxy.core.conditions import Asked, Conditions
from egress_proxy.core.decide import Decision, decide
from egress_proxy.core.identity import Identity
from egress_proxy.core.names import Authority, canonical_host, host_of_address
from egress_proxy.core.networks import IPNetwork
from egress_proxy.core.paths import path_pattern
from egress_proxy.core.policy import (
    DEFAULT_PORTS,
    EVERY_PORT,
    Action,
    CompiledPolicy,
    HostPattern,
    HostSet,
    Place,
    Policy,
    Rule,
    Subject,
)

POINTLESS = {Code.DUPLICATE_RULE, Code.REDUNDANT_RULE, Code.SHADOWED_RULE}

PATTERNS = (
    *("a.test", "b.test", "x.a.test", "y.x.a.test", "test", "a.corp.test"),
    *("*", "*.test", "*.a.test", "*.x.a.test", "*.corp.test"),
)
PRIVATE: tuple[IPNetwork, ...] = tuple(
    map(ip_network, ("10.0.0.0/8", "10.1.0.0/16", "127.0.0.0/8", "169.254.169.254/32"))
)
NETWORKS: tuple[IPNetwork, ...] = tuple(
    ip_network(text)
    for text in (
        *("0.0.0.0/0", "8.0.0.0/5", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32", "8.8.8.0/24"),
        *("169.254.0.0/16", "169.254.169.254/32"),
        *("fd00::/8", "fd00:ec2::/32", "fd00:ec2::254/128"),
    )
)
PORTS = (DEFAULT_PORTS, EVERY_PORT, ((443, 443),), ((80, 80),), ((1, 442),), ((443, 65535),))

HOSTS = [canonical_host(name) for name in PATTERNS if not name.startswith("*")]
HOSTS += [canonical_host("example.com"), canonical_host("z.corp.test")]
ADDRESSES = (
    *("8.8.8.8", "10.1.2.3", "10.9.9.9", "127.0.0.1", "169.254.1.1", "169.254.169.254"),
    *("fd00::1", "fd00:ec2::254", "fd00:ec2::1"),
)
HOSTS += [host_of_address(network[0]) for network in map(ip_network, ADDRESSES)]
CLIENTS = [Identity("10.0.0.1"), Identity("10.2.0.1"), Identity("192.0.2.1")]
#: Most rules have none.
CONDITIONS = (
    *(None, None, None, None, Conditions(("GET",)), Conditions(("GET", "PUT"))),
    *(Conditions((), (path_pattern("/a/"),)), Conditions(("GET",), (path_pattern("/a/*"),))),
)
ASKED = (
    Asked("GET", b"/a/b"),
    Asked("PUT", b"/a/b/c"),
    Asked("PUT", b"/b"),
    Asked("put", b"/A"),
    Asked("GET", b"/a%2fb"),
)
NOWHERE = Place("f", 1, 1)

SUBJECTS = st.sampled_from(
    [
        None,
        (Subject(NOWHERE, ip_network("10.0.0.0/8")),),
        (Subject(NOWHERE, ip_network("10.2.0.0/16")),),
        (Subject(Place("f", 2, 1), ip_network("10.2.0.0/16")),),
    ]
)


def _pattern(text: str) -> HostPattern:
    wildcard = text.startswith("*")
    return HostPattern(text[2:] if wildcard else text, wildcard)


@st.composite
def policies(draw: st.DrawFn) -> tuple[Policy, ...]:
    """Policies whose every rule has a line of its own."""
    entries = st.lists(st.sampled_from(PATTERNS), min_size=1, max_size=4, unique=True)
    sets = [
        HostSet(f"s{number}", NOWHERE, dict.fromkeys(draw(entries), NOWHERE)) for number in range(3)
    ]
    targets = st.one_of(
        st.sampled_from(PATTERNS).map(_pattern), st.sampled_from(sets), st.sampled_from(NETWORKS)
    )
    found: list[Policy] = []
    line = 100
    for number in range(draw(st.integers(1, 3))):
        rules: list[Rule] = []
        for _ in range(draw(st.integers(1, 5))):
            action, target, line = draw(st.sampled_from(Action)), draw(targets), line + 1
            hosts = isinstance(target, HostPattern | HostSet) and action is not Action.DENY
            private = st.lists(st.sampled_from(PRIVATE), max_size=2, unique=True)
            rules.append(
                Rule(
                    action,
                    target,
                    Place("f", line, 1),
                    draw(st.sampled_from(PORTS)),
                    tuple(draw(private)) if hosts else (),
                    tls=action is Action.DENY or draw(st.booleans()),
                    conditions=draw(st.sampled_from(CONDITIONS)),
                )
            )
        found.append(Policy(f"p{number}", tuple(rules), draw(SUBJECTS), NOWHERE))
    return tuple(found)


def outcomes(found: tuple[Policy, ...]) -> list[object]:
    """What becomes of each request, and of each address that its host may have."""
    compiled = CompiledPolicy(found)
    said: list[object] = []
    for client in CLIENTS:
        for host in HOSTS:
            for port in (22, 80, 443, 8443):
                tunnel = decide(compiled, client, Authority(host, port))
                said.append(outcome(tunnel, port))
                for asked in ASKED if port == 80 else ():
                    decision = decide(compiled, client, Authority(host, port), asked)
                    said.append(said[-1] if decision is tunnel else outcome(decision, port))
    return said


def outcome(decision: Decision, port: int) -> object:
    asks = decision.denial is reasons.APPROVAL_REQUIRED
    if not decision.allowed and not asks:
        return None
    return asks, decision.tls, vet(ADDRESSES, port, decision.grant).prohibited


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=200)
@given(policies())
def test_without_pointless_rules_nothing_changes(found: tuple[Policy, ...]) -> None:
    report = Report("f")
    lint(found, report)
    pointless = {
        problem.place.line for problem in report.warnings() if problem.code in POINTLESS
    } - {1}
    rest = tuple(
        Policy(
            policy.name,
            tuple(rule for rule in policy.rules if rule.place.line not in pointless),
            policy.subjects,
            policy.place,
        )
        for policy in found
    )
    assert outcomes(rest) == outcomes(found)
