"""Which way a request goes: the most specific rule that says it decides, whatever the order of the rules."""

from __future__ import annotations

from ipaddress import ip_network
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egress_proxy.core.decide import decide, known_addresses
from egress_proxy.core.explain import explain
from egress_proxy.core.identity import Identity
from egress_proxy.core.names import parse_authority
from egress_proxy.core.policy import (
    DEFAULT_PORTS,
    EVERY_PORT,
    Action,
    CompiledPolicy,
    HostSet,
    Mode,
    Policy,
    PortRanges,
    Rule,
    Subject,
    Target,
)
from egress_proxy.core.reason import Event
from egress_proxy.core.upstream import DIRECT, Parent, Route, Upstream, preference
from tests.core.targets import HERE, target_of

CLIENT = Identity("10.0.0.1")


def parent(text: str, credentials_file: str = "") -> Parent:
    return Parent(parse_authority(text.encode(), 3128), credentials_file)


ONE, TWO, TOP = parent("one.test"), parent("two.test"), parent("top.test")


def hosts_of(text: str) -> Target:
    if text.startswith("@"):
        return HostSet("s", HERE, dict.fromkeys(text[1:].split(","), HERE))
    return target_of(text)


def rule(
    text: str,
    upstream: Route | None = None,
    *,
    action: Action = Action.ALLOW,
    ports: PortRanges = DEFAULT_PORTS,
) -> Rule:
    return Rule(action, hosts_of(text), HERE, ports, upstream=upstream)


def compiled(
    *rules: Rule, mode: Mode = Mode.ENFORCE, upstream: Upstream | None = None
) -> CompiledPolicy:
    return CompiledPolicy([Policy("p", rules, None, HERE)], mode, upstream=upstream)


def way(policy: CompiledPolicy, target: str, client: Identity = CLIENT) -> Parent | None:
    return decide(policy, client, parse_authority(target.encode(), 443)).parent


# The top level ----------------------------------------------------------------------------------------------------


def test_without_upstream_everything_is_direct() -> None:
    assert way(compiled(rule("*")), "a.example") is None
    assert way(compiled(rule("10.0.0.0/8")), "10.0.0.1") is None


@pytest.mark.parametrize(
    ("target", "direct"),
    [
        ("a.example", False),
        ("svc.example", True),
        ("SVC.example.:8443", True),
        ("a.svc.example", False),
        ("asvc.example", False),
        ("a.internal.example", True),
        ("a.b.internal.example", True),
        ("internal.example", False),
        ("ainternal.example", False),
        ("internal.example.evil.test", False),
        ("10.1.2.3", True),
        ("0x0a010203", True),
        ("[::ffff:10.1.2.3]", True),
        ("11.1.2.3", False),
        ("[fd00::1]", True),
        ("[fe00::1]", False),
    ],
)
def test_no_proxy_names_who_is_reached_directly(target: str, *, direct: bool) -> None:
    upstream = Upstream(
        TOP,
        frozenset({"svc.example"}),
        (".internal.example",),
        (ip_network("10.0.0.0/8"), ip_network("fd00::/8")),
    )
    policy = compiled(rule("*"), rule("0.0.0.0/0"), rule("::/0"), upstream=upstream)
    assert way(policy, target) == (None if direct else TOP)


def test_every_name_can_be_reached_directly_and_addresses_through_a_parent() -> None:
    policy = compiled(upstream=Upstream(TOP, suffixes=("",)))
    assert way(policy, "a.example") is None
    assert way(policy, "10.0.0.1") == TOP


# Rules ------------------------------------------------------------------------------------------------------------

RULES = [
    rule("*", ONE),
    rule("*.example", DIRECT),
    rule("*.b.example", TWO),
    rule("*.c.b.example"),
    rule("a.b.example", DIRECT),
    rule("d.b.example"),
    rule("@e.b.example,*.f.b.example", ONE),
    rule("0.0.0.0/0", ONE),
    rule("10.0.0.0/8", DIRECT),
    rule("10.1.0.0/16", TWO),
    rule("10.1.1.0/24"),
]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("z.test", ONE),
        ("example", ONE),
        ("z.example", None),
        ("b.example", None),
        ("z.b.example", TWO),
        ("a.b.example", None),
        ("z.a.b.example", TWO),
        # The most specific rule says nothing about it, so the next one does.
        ("z.c.b.example", TWO),
        ("d.b.example", TWO),
        ("e.b.example", ONE),
        ("z.e.b.example", TWO),
        ("z.f.b.example", ONE),
        ("192.0.2.1", ONE),
        ("10.2.0.1", None),
        ("10.1.2.1", TWO),
        ("10.1.1.1", TWO),
    ],
)
def test_the_most_specific_rule_that_says_it_decides(target: str, expected: Parent | None) -> None:
    for rules in (RULES, RULES[::-1]):
        assert way(compiled(*rules), target) == expected
        # Whatever a rule says goes before the top level.
        assert way(compiled(*rules, upstream=Upstream(TOP)), target) == expected


def test_where_no_rule_says_it_the_top_level_does() -> None:
    policy = compiled(rule("a.example"), rule("b.example", ONE), upstream=Upstream(TOP))
    assert way(policy, "a.example") == TOP
    assert way(policy, "b.example") == ONE


@pytest.mark.parametrize(
    ("routes", "expected"),
    [
        ([DIRECT, ONE], ONE),
        ([TWO, ONE], ONE),
        ([TWO, DIRECT, None], TWO),
        ([parent("one.test", "b"), parent("one.test", "a")], parent("one.test", "a")),
        ([parent("one.test", "a"), ONE], ONE),
        ([parent("one.test:80"), parent("one.test:443")], parent("one.test:443")),
    ],
)
def test_of_equally_specific_rules_a_parent_comes_first_then_the_text(
    routes: list[Route | None], expected: Parent
) -> None:
    for these in (routes, routes[::-1]):
        one_policy = compiled(*(rule("a.example", route) for route in these))
        assert way(one_policy, "a.example") == expected
        several = CompiledPolicy(
            [
                Policy(f"p{n}", (rule("a.example", each),), None, HERE)
                for n, each in enumerate(these)
            ]
        )
        assert way(several, "a.example") == expected
        through_sets = compiled(*(rule("@a.example,b.example", route) for route in these))
        assert way(through_sets, "a.example") == expected


def test_a_set_counts_by_the_pattern_that_names_the_host() -> None:
    rules = rule("@*.b.example,a.example", ONE), rule("*.a.b.example", TWO)
    for these in (rules, rules[::-1]):
        policy = compiled(*these)
        assert way(policy, "z.b.example") == ONE
        assert way(policy, "z.a.b.example") == TWO
        assert way(policy, "a.example") == ONE


def test_other_ports_and_other_clients_say_nothing() -> None:
    other_port = rule("a.example", ONE, ports=((8443, 8443),))
    subject = Subject(HERE, network=ip_network("192.0.2.0/24"))
    policy = CompiledPolicy(
        [
            Policy("everyone", (rule("a.example"), other_port), None, HERE),
            Policy("some", (rule("a.example", TWO),), (subject,), HERE),
        ],
        upstream=Upstream(TOP),
    )
    assert way(policy, "a.example") == TOP
    assert way(policy, "a.example:8443") == ONE
    assert way(policy, "a.example", Identity("192.0.2.7")) == TWO


def test_ask_says_it_as_allow_does() -> None:
    policy = compiled(rule("*.example"), rule("a.example", ONE, action=Action.ASK))
    assert way(policy, "a.example") == ONE


@pytest.mark.parametrize("first", [True, False])
def test_what_is_denied_goes_the_common_way_in_audit_mode(*, first: bool) -> None:
    """Whether a rule was looked at before the denial or after it."""
    rules = [rule("*.example", ONE), rule("a.example", TWO)]
    rules.insert(0 if first else 2, rule("a.example", action=Action.DENY, ports=EVERY_PORT))
    policy = compiled(*rules, mode=Mode.AUDIT, upstream=Upstream(TOP))
    assert way(policy, "a.example") == TOP
    assert way(policy, "b.example") == ONE
    assert way(policy, "none.test") == TOP


ROUTES = st.sampled_from([None, DIRECT, ONE, TWO, parent("one.test", "x")])
TARGETS = st.sampled_from(
    ["*", "*.example", "*.b.example", "a.b.example", "@a.b.example,*.example", "@*,b.example"]
)


@given(st.lists(st.tuples(TARGETS, ROUTES), min_size=1, max_size=8), st.randoms())
@settings(deadline=None)
def test_no_order_matters(said: list[tuple[str, Route | None]], random: Random) -> None:
    shuffled = said.copy()
    random.shuffle(shuffled)
    one, other = (
        compiled(*(rule(text, route) for text, route in these), upstream=Upstream(TOP))
        for these in (said, shuffled)
    )
    for target in ("a.b.example", "z.b.example", "b.example", "example", "z.test"):
        assert way(one, target) == way(other, target)


def test_the_order_of_preference_is_total() -> None:
    every: list[Route] = [DIRECT, ONE, TWO, parent("one.test", "x"), parent("one.test", "y")]
    assert len({preference(route) for route in every}) == len(every)
    assert min(every, key=preference) == ONE
    assert max(every, key=preference) is DIRECT


# Addresses and explanations ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "addresses"),
    [
        ("a.example", ()),
        ("127.1", ("127.0.0.1",)),
        ("[::1]", ("::1",)),
        ("localhost", ("127.0.0.1", "::1")),
        ("LocalHost.", ("127.0.0.1", "::1")),
        ("a.localhost", ("127.0.0.1", "::1")),
        ("notlocalhost", ()),
        ("localhost.example", ()),
    ],
)
def test_what_is_known_of_a_destination_without_asking(
    target: str, addresses: tuple[str, ...]
) -> None:
    assert known_addresses(parse_authority(target.encode(), 443)) == addresses


def test_an_explanation_names_the_parent_and_judges_no_address_behind_a_name() -> None:
    policy = compiled(rule("*"), rule("10.0.0.0/8"), upstream=Upstream(TOP))
    found = explain(policy, CLIENT, parse_authority(b"a.example", 443), ("10.0.0.1",))
    assert (found.outcome, found.parent, found.addresses) == (Event.ALLOWED, "top.test:3128", ())
    direct = explain(compiled(rule("*")), CLIENT, parse_authority(b"a.example", 443), ("10.0.0.1",))
    assert (direct.outcome, direct.parent) == (Event.DENIED, None)


@pytest.mark.parametrize("target", ["192.168.0.1", "169.254.169.254", "localhost", "[::1]"])
def test_what_is_known_is_judged_with_a_parent_too(target: str) -> None:
    policy = compiled(rule("*"), rule("0.0.0.0/0"), rule("::/0"), upstream=Upstream(TOP))
    found = explain(policy, CLIENT, parse_authority(target.encode(), 443))
    assert (found.outcome, found.reason) == (Event.DENIED, "destination_ip_prohibited")
