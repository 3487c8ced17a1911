"""What only the configuration knows: the cluster's own networks, and its translators from IPv6 to IPv4."""

from __future__ import annotations

import gc
import ipaddress
import weakref
from ipaddress import IPv4Address, IPv6Address, IPv6Network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egress_proxy.core import reasons
from egress_proxy.core.addresses import PUBLIC_ONLY, vet
from egress_proxy.core.decide import Decision, decide, vet_addresses
from egress_proxy.core.explain import explain
from egress_proxy.core.identity import Identity
from egress_proxy.core.names import parse_authority
from egress_proxy.core.policy import (
    EVERY_PORT,
    Action,
    CompiledPolicy,
    HostPattern,
    Mode,
    Place,
    Policy,
    Rule,
)
from egress_proxy.core.special_use import ANYWHERE, Surroundings, special_around, special_use
from tests.core.address_forms import IPAddress, embedded, grant, holds, nat64, passes, surroundings
from tests.support.calm import CALM

ME = Identity("198.51.100.1")
#: A cluster whose pods have public addresses, with a translator of its own.
PODS = "11.1.0.0/16"
PODS6 = "2600:1f00:aaaa::/48"
PREFIX = "2600:1f00:64::/96"
HERE = surroundings(PODS, PODS6, nat64=(PREFIX,))


def rule(target: str, *private: str, action: Action = Action.ALLOW) -> Rule:
    place = Place("f.yaml", 1, 1)
    lifted = tuple(map(ipaddress.ip_network, private))
    if "/" in target or target[0].isdigit():
        return Rule(action, ipaddress.ip_network(target), place, EVERY_PORT)
    wildcard = target.startswith("*")
    pattern = HostPattern(target.removeprefix("*").removeprefix("."), wildcard)
    return Rule(action, pattern, place, EVERY_PORT, lifted)


def policy(*rules: Rule, around: Surroundings = HERE, mode: Mode = Mode.ENFORCE) -> CompiledPolicy:
    return CompiledPolicy([Policy("p", rules, None, Place("f.yaml", 1, 1))], mode, around)


def decided(compiled: CompiledPolicy, host: str, port: int = 443) -> Decision:
    return decide(compiled, ME, parse_authority(f"{host}:{port}".encode(), None))


def outcome(compiled: CompiledPolicy, host: str, *addresses: str) -> str:
    """``passes``, or why not: of a name that leads to the addresses, or of an address."""
    decision = decided(compiled, host)
    if not decision.allowed:
        assert decision.denial is not None
        return decision.denial.name
    found = addresses or (host.strip("[]"),)
    prohibition = vet_addresses(decision, found, 443)[1]
    return "passes" if prohibition is None else prohibition.name


PROHIBITED = reasons.DESTINATION_IP_PROHIBITED.name

# Internal networks.


@pytest.mark.parametrize("text", ["11.1.0.0", "11.1.255.255", "2600:1f00:aaaa::1"])
def test_an_internal_address_is_refused(text: str) -> None:
    assert passes(text)
    assert not passes(text, grant(around=HERE))
    special = special_use(ipaddress.ip_address(text), HERE)
    assert special is not None
    assert (special.kind, special.guarded) == ("internal", False)
    assert str(special.network) in (PODS, PODS6)


@pytest.mark.parametrize("text", ["11.0.255.255", "11.2.0.0", "8.8.8.8", "2600:1f00:aaab::1"])
def test_what_is_beside_passes(text: str) -> None:
    assert passes(text, grant(around=HERE))
    assert special_use(ipaddress.ip_address(text), HERE) is None


@pytest.mark.parametrize("name", embedded(IPv4Address(0)))
def test_an_internal_address_is_refused_in_every_embedding(name: str) -> None:
    assert not passes(str(embedded(IPv4Address("11.1.2.3"))[name]), grant(around=HERE))


@pytest.mark.parametrize("name", ["mapped", "NAT64", "ISATAP"])
def test_its_embeddings_pass_elsewhere(name: str) -> None:
    assert passes(str(embedded(IPv4Address("11.1.2.3"))[name]))


@pytest.mark.parametrize(
    ("private", "expected"),
    [
        ((), PROHIBITED),
        ((PODS,), "passes"),
        (("11.1.2.3/32",), "passes"),
        (("11.0.0.0/8",), "passes"),  # as with private networks
        (("11.2.0.0/16",), PROHIBITED),
        (("10.0.0.0/8",), PROHIBITED),
        (("::/0",), PROHIBITED),
    ],
)
def test_allow_private_opens_one(private: tuple[str, ...], expected: str) -> None:
    compiled = policy(rule("pod.test", *private), rule("other.test"))
    assert outcome(compiled, "pod.test", "11.1.2.3") == expected
    assert outcome(compiled, "other.test", "11.1.2.3") == PROHIBITED
    assert outcome(compiled, "other.test", "11.1.2.3", "8.8.8.8") == "passes"


@pytest.mark.parametrize(
    ("cidr", "expected"),
    [
        (PODS, "passes"),
        ("11.1.2.0/24", "passes"),
        ("11.0.0.0/8", PROHIBITED),
        ("0.0.0.0/0", PROHIBITED),
    ],
)
def test_a_cidr_rule_opens_the_network_that_it_lies_in(cidr: str, expected: str) -> None:
    assert outcome(policy(rule(cidr)), "11.1.2.3") == expected
    assert outcome(policy(rule(cidr), around=ANYWHERE), "11.1.2.3") == "passes"


def test_an_internal_network_inside_another() -> None:
    nested = surroundings("11.0.0.0/8", PODS)
    special = special_use(ipaddress.ip_address("11.1.2.3"), nested)
    assert special is not None
    assert str(special.network) == PODS
    # By the narrower one, a rule for the wider one opens nothing of it.
    assert outcome(policy(rule("11.0.0.0/8"), around=nested), "11.1.2.3") == PROHIBITED
    assert outcome(policy(rule("11.0.0.0/8"), around=nested), "11.2.2.3") == "passes"


@pytest.mark.parametrize(
    "text", ["127.0.0.1", "169.254.169.254", "168.63.129.16", "::1", "fe80::1"]
)
@pytest.mark.parametrize("internal", [("0.0.0.0/0", "::/0"), ("127.0.0.0/8", "168.63.129.16/32")])
def test_to_call_a_guarded_address_internal_does_not_open_it(
    text: str, internal: tuple[str, ...]
) -> None:
    around = surroundings(*internal)
    for wide in ((), ("0.0.0.0/0", "::/0"), ("126.0.0.0/7", "168.0.0.0/8")):
        assert not passes(text, grant(*wide, around=around))
        assert not passes(text, grant(*wide, around=around, audit=True))


def test_everything_may_be_internal() -> None:
    """Then nothing but what a rule names is reached."""
    around = surroundings("0.0.0.0/0", "::/0")
    compiled = policy(rule("*"), rule("a.test", "140.82.112.0/20"), around=around)
    assert outcome(compiled, "b.test", "140.82.112.3", "2606:4700::1") == PROHIBITED
    assert outcome(compiled, "a.test", "140.82.112.3") == "passes"
    assert outcome(compiled, "a.test", "64:ff9b::140.82.112.3") == PROHIBITED


def test_audit_mode_lets_through_and_says_so() -> None:
    compiled = policy(mode=Mode.AUDIT)
    vetting, prohibition = vet_addresses(decided(compiled, "pod.test"), ("11.1.2.3",), 443)
    assert [vetted.ip for vetted in vetting.passed] == ["11.1.2.3"]
    assert prohibition is reasons.DESTINATION_IP_PROHIBITED


# Translators.

EVERY_PREFIX = [
    "2600:1f00::/32",
    "2600:1f00:6400::/40",
    "2600:1f00:64::/48",
    "2600:1f00:64:6400::/56",
    "2600:1f00:64:64::/64",
    PREFIX,
    "fd00:64::/96",
    "fd00:64:64:64::/64",
    "64:ff9b:1::/48",
    "64:ff9b:1:64::/64",
    "64:ff9b:1:64::/96",
]


@pytest.mark.parametrize("prefix", EVERY_PREFIX)
@settings(CALM, max_examples=100)
@given(address=st.ip_addresses(v=4).map(IPv4Address))
def test_the_address_inside_decides(prefix: str, address: IPv4Address) -> None:
    written = str(nat64(address, prefix))
    around = surroundings(PODS, nat64=(prefix,))
    assert passes(written, grant(around=around)) is passes(str(address), grant(around=around))
    for guarded in ("127.0.0.1", "169.254.169.254", "0.0.0.0"):
        hidden = str(nat64(IPv4Address(guarded), prefix))
        for wide in (
            ("::/0", "0.0.0.0/0"),
            (prefix,),
            (hidden,),
            ("127.0.0.0/8", "169.254.0.0/16"),
        ):
            for audit in (False, True):
                assert not passes(hidden, grant(*wide, around=around, audit=audit))


@pytest.mark.parametrize("prefix", EVERY_PREFIX)
@pytest.mark.parametrize(
    ("inside", "expected"),
    [("8.8.8.8", True), ("10.0.0.1", False), ("11.1.2.3", False), ("224.0.0.1", False)],
)
def test_some_addresses_inside(prefix: str, inside: str, expected: bool) -> None:
    written = str(nat64(IPv4Address(inside), prefix))
    assert passes(written, grant(around=surroundings(PODS, nat64=(prefix,)))) is expected
    # As with 64:ff9b::/96: an IPv4 network does not open it, an IPv6 one does.
    around = surroundings(PODS, nat64=(prefix,))
    assert passes(written, grant(inside, around=around)) is expected
    assert passes(written, grant(prefix, around=around))


def test_without_the_prefix_a_private_address_behind_it_passes() -> None:
    """Which is why the prefix has to be known."""
    assert passes(str(nat64(IPv4Address("10.0.0.1"), PREFIX)))


@pytest.mark.parametrize("prefix", EVERY_PREFIX)
def test_bits_that_nobody_knows_the_meaning_of(prefix: str) -> None:
    network = IPv6Network(prefix)
    around = surroundings(nat64=(prefix,))
    written = int(nat64(IPv4Address("8.8.8.8"), prefix))
    odd = [written | 1 << 56] if network.prefixlen < 96 else []
    odd += [written | 1] if network.prefixlen < 96 else []
    for number in odd:
        text = str(IPv6Address(number))
        special = special_use(IPv6Address(number), around)
        assert special is not None
        assert (special.kind, special.guarded) == ("transition", True)
        assert not passes(text, grant("::/0", around=around, audit=True))


@pytest.mark.parametrize("text", ["fd00:ec2::254", "fe80::1", "::1", "2002:7f00:1::", "ff02::1"])
@pytest.mark.parametrize("length", [32, 40, 48, 56, 64, 96])
def test_no_prefix_opens_what_is_special_otherwise(text: str, length: int) -> None:
    """The loader refuses most of these; the gate does not depend on it."""
    prefix = IPv6Network((int(IPv6Address(text)) & ~(0xFF << 56), length), strict=False)
    around = Surroundings(nat64=(prefix,))
    assert not passes(text, grant(around=around))
    hidden = str(nat64(IPv4Address("8.8.8.8"), str(prefix)))
    if not text.startswith("fd00:"):
        assert not passes(hidden, grant(around=around))


def test_a_prefix_in_an_internal_network() -> None:
    public, pod = (str(nat64(IPv4Address(text), PREFIX)) for text in ("8.8.8.8", "11.1.2.3"))
    around = surroundings("2600:1f00::/32", PODS, nat64=(PREFIX,))
    assert passes(public, grant(around=around))
    assert not passes(pod, grant(around=around))
    assert not passes("2600:1f00::1", grant(around=around))
    # Where the whole prefix is called internal, or a part of it, it is.
    for internal in (PREFIX, "2600:1f00:64::800:0/104"):
        around = surroundings(internal, nat64=(PREFIX,))
        assert not passes(public, grant(around=around))


def test_deny_rules_see_through_translators() -> None:
    inside = str(nat64(IPv4Address("9.9.9.9"), PREFIX))
    other = str(nat64(IPv4Address("9.9.8.9"), PREFIX))
    compiled = policy(rule("*"), rule("::/0"), rule("9.9.9.0/24", action=Action.DENY))
    for host in ("a.test", f"[{inside}]"):
        assert outcome(compiled, host, inside) == PROHIBITED
    for host in ("a.test", f"[{other}]"):
        assert outcome(compiled, host, other) == "passes"
    unaware = policy(rule("*"), rule("9.9.9.0/24", action=Action.DENY), around=surroundings(PODS))
    assert outcome(unaware, "a.test", inside) == "passes"


def test_a_denied_translator_is_closed() -> None:
    inside = str(nat64(IPv4Address("9.9.9.9"), PREFIX))
    assert (
        outcome(policy(rule("*"), rule(PREFIX, action=Action.DENY)), "a.test", inside) == PROHIBITED
    )


@pytest.mark.parametrize(
    "prefix", ["2001:db8::/33", "2001:db8::/95", "2001:db8::/128", "::/0", "2001:db8:0:0:1200::/96"]
)
def test_what_is_no_prefix_cannot_be_one(prefix: str) -> None:
    with pytest.raises(ValueError, match="no prefix of NAT64"):
        surroundings(nat64=(prefix,))


# Networks in networks.


@pytest.mark.parametrize(
    ("network", "around"),
    [
        (PODS, PODS),
        ("11.1.2.0/24", PODS),
        ("11.0.0.0/8", None),
        ("10.1.0.0/16", "10.0.0.0/8"),
        ("2600:1f00:aaaa:1::/64", PODS6),
        ("8.8.8.0/24", None),
        ("0.0.0.0/0", None),
    ],
)
def test_the_special_network_around_another(network: str, around: str | None) -> None:
    special = special_around(ipaddress.ip_network(network), HERE)
    assert (None if special is None else str(special.network)) == around


# Grants, by whose identity the gate remembers its answers.


def test_equal_grants_of_a_policy_are_one() -> None:
    compiled = policy(rule("*"), rule("a.test", PODS), rule("9.9.9.0/24", action=Action.DENY))
    assert decided(compiled, "b.test").grant is decided(compiled, "c.test").grant
    assert decided(compiled, "a.test").grant is not decided(compiled, "b.test").grant
    for around, mode in ((HERE, Mode.ENFORCE), (ANYWHERE, Mode.AUDIT)):
        compiled = policy(rule("*"), around=around, mode=mode)
        first, second = (decided(compiled, host).grant for host in ("a.test", "b.test"))
        assert first is second
        assert first is not PUBLIC_ONLY
        assert (first.surroundings, first.audit) == (around, mode is Mode.AUDIT)


def test_without_surroundings_nothing_is_made() -> None:
    compiled = policy(rule("*"), around=ANYWHERE)
    assert decided(compiled, "a.test").grant is PUBLIC_ONLY
    assert PUBLIC_ONLY.surroundings is ANYWHERE


def test_a_grant_is_one_policy_s_own() -> None:
    """Another configuration's answers are not remembered as this one's."""
    wider = policy(rule("*"), around=surroundings("11.0.0.0/8"))
    narrower = policy(rule("*"))
    assert outcome(narrower, "a.test", "11.2.2.2") == "passes"
    assert outcome(wider, "a.test", "11.2.2.2") == PROHIBITED
    assert outcome(policy(rule("*"), around=ANYWHERE), "a.test", "11.1.2.3") == "passes"
    assert outcome(narrower, "a.test", "11.1.2.3") == PROHIBITED


def test_a_replaced_policy_goes_although_its_grants_are_remembered() -> None:
    compiled = policy(rule("*"), rule("9.9.9.0/24", action=Action.DENY))
    assert outcome(compiled, "a.test", "11.1.2.3") == PROHIBITED
    gone = weakref.ref(compiled)
    gc.disable()
    try:
        del compiled
        assert gone() is None
    finally:
        gc.enable()


@settings(CALM, max_examples=300)
@given(
    st.ip_addresses(),
    st.lists(st.sampled_from([PODS, PODS6, "11.0.0.0/8", "0.0.0.0/0", "::/0"]), max_size=3),
)
def test_what_is_internal_opens_nothing(address: IPAddress, internal: list[str]) -> None:
    text = str(address)
    around = surroundings(*internal)
    now = passes(text, grant(around=around))
    if isinstance(address, IPv4Address):
        inside = any(holds(network, address) for network in around.internal)
        assert now is (passes(text) and not inside)
    else:
        assert passes(text) or not now


# Explanations.


def explained(compiled: CompiledPolicy, host: str, *addresses: str) -> tuple[str, ...]:
    found = explain(compiled, ME, parse_authority(f"{host}:443".encode(), None), addresses)
    return (found.outcome.value, *(each.why for each in found.addresses), found.add or "")


def test_explain_names_the_internal_network() -> None:
    outcome_, why, add = explained(policy(rule("pod.test")), "pod.test", "11.1.2.3")
    assert (outcome_, why) == ("DENIED", f"internal ({PODS})")
    assert "allow_private: [" in add
    assert "11.1.2.3/32" in add
    outcome_, why, _ = explained(policy(rule("pod.test", PODS)), "pod.test", "11.1.2.3")
    assert (outcome_, why) == ("ALLOWED", f"internal ({PODS}), opened by the rule")


def test_explain_adds_a_rule_for_an_internal_address() -> None:
    _, _, add = explained(policy(), "11.1.2.3")
    assert "11.1.2.3/32" in add


def test_explain_adds_no_rule_that_opens_nothing() -> None:
    """A rule with `cidr` for an address of a translator does not open the private address behind it."""
    _, why, add = explained(policy(), f"[{nat64(IPv4Address('10.0.0.1'), PREFIX)}]")
    assert (why, add) == ("private (10.0.0.0/8)", "")
    assert explained(policy(), f"[{nat64(IPv4Address('8.8.8.8'), PREFIX)}]")[2]


def test_explain_looks_into_translators() -> None:
    def why(inside: str) -> str:
        return explained(policy(rule("a.test")), "a.test", str(nat64(IPv4Address(inside), PREFIX)))[
            1
        ]

    assert why("8.8.8.8") == "public"
    assert why("10.0.0.1") == "private (10.0.0.0/8)"
    assert why("11.1.2.3") == f"internal ({PODS})"
    # Nobody is told how to open the metadata service, wherever it hides.
    hidden = str(nat64(IPv4Address("169.254.169.254"), PREFIX))
    found = explain(policy(rule("a.test")), ME, parse_authority(b"a.test:443", None), (hidden,))
    assert found.add is None
    assert found.hint is not None
    assert "metadata service" in found.hint


def test_a_vetting_knows_the_surroundings() -> None:
    vetting = vet(["11.1.2.3", "8.8.8.8"], 443, grant(around=HERE))
    assert ([vetted.ip for vetted in vetting.passed], vetting.prohibited) == (
        ["8.8.8.8"],
        ("11.1.2.3",),
    )
