"""When a client without credentials is asked for some instead of being refused."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest

from egress_proxy.core import reasons
from egress_proxy.core.challenge import credentials_would_help
from egress_proxy.core.conditions import Asked, Conditions
from egress_proxy.core.decide import decide
from egress_proxy.core.identity import Identity
from egress_proxy.core.names import parse_authority
from egress_proxy.core.paths import path_pattern
from egress_proxy.core.policy import (
    EVERY_PORT,
    Action,
    CompiledPolicy,
    HostPattern,
    Mode,
    Policy,
    Rule,
    Subject,
)
from tests.core.targets import HERE, host_pattern

ALL_PORTS = EVERY_PORT
BATCH = Subject(HERE, user="batch")


def rule(action: Action, host: str, ports: tuple[tuple[int, int], ...] = ((443, 443),)) -> Rule:
    return Rule(action, host_pattern(host), HERE, ports)


def policy(name: str, rules: list[Rule], *subjects: Subject) -> Policy:
    return Policy(name, tuple(rules), subjects or None, HERE)


def helps(
    *policies: Policy,
    target: str = "a.test:443",
    user: str | None = None,
    namespace: str | None = None,
    mode: Mode = Mode.ENFORCE,
) -> bool:
    compiled = CompiledPolicy(policies, mode)
    identity = Identity("10.0.0.1", user, namespace)
    destination = parse_authority(target.encode(), None)
    decision = decide(compiled, identity, destination)
    return credentials_would_help(compiled, identity, destination, decision)


ALLOW = rule(Action.ALLOW, "a.test")
ALLOW_ANY = rule(Action.ALLOW, "a.test", ALL_PORTS)


@pytest.mark.parametrize("mode", Mode)
def test_what_a_user_may_do_is_worth_asking_for(mode: Mode) -> None:
    assert helps(policy("p", [ALLOW], BATCH), mode=mode)
    assert helps(policy("p", [rule(Action.ALLOW, "*.test")], BATCH), mode=mode)
    assert helps(policy("p", [rule(Action.ALLOW, "*")], Subject(HERE, user="ci"), BATCH), mode=mode)


def test_what_a_user_must_have_approved_too() -> None:
    assert helps(policy("p", [rule(Action.ASK, "a.test")], BATCH))


def test_a_port_and_an_address_too() -> None:
    everyone = policy("everyone", [rule(Action.ALLOW, "a.test", ((80, 80),))])
    assert helps(everyone, policy("p", [ALLOW], BATCH))
    network = Rule(Action.ALLOW, ip_network("192.0.2.0/24"), HERE)
    assert helps(policy("p", [network], BATCH), target="192.0.2.1:443")


def test_what_nobody_may_do_is_not() -> None:
    assert not helps()
    assert not helps(policy("p", [ALLOW], BATCH), target="b.test:443")
    assert not helps(policy("p", [ALLOW], BATCH), target="a.test:8443")
    assert not helps(policy("p", [ALLOW], BATCH), target="192.0.2.1:443")
    assert not helps(policy("p", [rule(Action.DENY, "a.test", ALL_PORTS)], BATCH))


def test_what_a_deny_rule_closes_is_not() -> None:
    """For everybody, or for every user who otherwise might."""
    allowed = policy("p", [ALLOW], BATCH)
    assert not helps(policy("everyone", [rule(Action.DENY, "*", ALL_PORTS)]), allowed)
    assert not helps(allowed, policy("q", [rule(Action.DENY, "a.test", ALL_PORTS)], BATCH))
    other = policy("r", [ALLOW], Subject(HERE, user="ci"))
    assert helps(allowed, policy("q", [rule(Action.DENY, "a.test", ALL_PORTS)], BATCH), other)


def test_what_waits_for_an_approval_is_not() -> None:
    """Ask beats allow, whoever it is."""
    assert not helps(policy("everyone", [rule(Action.ASK, "a.test")]), policy("p", [ALLOW], BATCH))


def test_what_is_allowed_anyway_is_not() -> None:
    assert not helps(policy("everyone", [ALLOW]), policy("p", [ALLOW], BATCH))


def test_a_policy_for_others_is_not() -> None:
    assert not helps(policy("p", [ALLOW], Subject(HERE, namespace="agents")))
    elsewhere = Subject(HERE, network=ip_network("10.1.0.0/16"), user="batch")
    assert not helps(policy("p", [ALLOW], elsewhere))
    there = Subject(HERE, namespace="agents", user="batch")
    assert not helps(policy("p", [ALLOW], there), namespace="other")
    assert helps(policy("p", [ALLOW], there), namespace="agents")


def test_who_has_shown_some_is_not_asked_again() -> None:
    assert not helps(policy("p", [ALLOW], BATCH), user="ci")


def test_asking_costs_a_walk_along_the_users_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever can connect can ask for it again and again."""
    elsewhere = ip_network("10.1.0.0/16")
    subjects = [Subject(HERE, network=elsewhere, user=f"u{number}") for number in range(1000)]
    compiled = CompiledPolicy([policy("p", [rule(Action.ALLOW, "*", ALL_PORTS)], *subjects)])
    identity = Identity("10.0.0.1")
    looked = 0
    describes = Subject.describes

    def counting(subject: Subject, *arguments: Any) -> bool:
        nonlocal looked
        looked += 1
        return describes(subject, *arguments)

    monkeypatch.setattr(Subject, "describes", counting)
    destination = parse_authority(b"a.test:22", None)
    for _ in range(3):
        decision = decide(compiled, identity, destination)
        assert not credentials_would_help(compiled, identity, destination, decision)
    # Once to see whom the policy is for, once for its users.
    assert looked == 2000
    # No users that nobody has shown are remembered as clients.
    assert compiled._applicable.cache_info().currsize == 1


# Rules with conditions. -------------------------------------------------------------------------------------------


def conditional(
    action: Action, *, methods: tuple[str, ...] = (), paths: tuple[str, ...] = ()
) -> Rule:
    conditions = Conditions(methods, tuple(map(path_pattern, paths)))
    return Rule(
        action, HostPattern("a.test", wildcard=False), HERE, ALL_PORTS, conditions=conditions
    )


@pytest.mark.parametrize(
    ("rules", "asked", "expected"),
    [
        ([conditional(Action.ALLOW, methods=("POST",))], Asked("POST", b"/"), True),
        ([conditional(Action.ALLOW, methods=("POST",))], Asked("post", b"/"), False),
        ([conditional(Action.ALLOW, methods=("POST",))], Asked("GET", b"/"), False),
        ([conditional(Action.ALLOW, methods=("POST",))], None, False),
        ([conditional(Action.ALLOW, paths=("/a/",))], Asked("POST", b"/x/../a/b?c"), True),
        ([conditional(Action.ALLOW, paths=("/a/",))], Asked("POST", b"/a%2fb"), False),
        ([conditional(Action.ASK, paths=("/a/",))], Asked("POST", b"/a/b"), True),
        (
            [ALLOW_ANY, conditional(Action.DENY, paths=("/a/",))],
            Asked("POST", b"/a/b"),
            False,
        ),
        ([ALLOW_ANY, conditional(Action.DENY, paths=("/a/",))], Asked("POST", b"/b"), True),
        ([ALLOW_ANY, conditional(Action.DENY, paths=("/a/",))], Asked("POST", b"//b"), False),
        ([ALLOW_ANY, conditional(Action.DENY, paths=("/a/",))], None, True),
        # It would be refused, because some servers may take it for what a rule asks about.
        ([ALLOW_ANY, conditional(Action.ASK, paths=("/a/",))], Asked("POST", b"//b"), False),
    ],
)
def test_what_a_user_may_ask_for(rules: list[Rule], asked: Asked | None, expected: bool) -> None:
    everyone = policy("everyone", [conditional(Action.ALLOW, methods=("HEAD",), paths=("/z",))])
    compiled = CompiledPolicy([everyone, policy("p", rules, BATCH)])
    identity, destination = Identity("10.0.0.1"), parse_authority(b"a.test:80", None)
    for _ in range(2):
        decision = decide(compiled, identity, destination, asked)
        assert decision.denial is not None
        found = credentials_would_help(compiled, identity, destination, decision, asked)
        assert found is expected
        if found:
            user = Identity("10.0.0.1", "batch")
            its_own = decide(compiled, user, destination, asked).denial
            assert its_own in (None, reasons.APPROVAL_REQUIRED)


def test_paths_do_not_fill_the_memory() -> None:
    compiled = CompiledPolicy([policy("p", [conditional(Action.ALLOW, paths=("/a/",))], BATCH)])
    identity, destination = Identity("10.0.0.1"), parse_authority(b"a.test:80", None)
    for number in range(100):
        asked = Asked("GET", b"/%d" % number)
        decision = decide(compiled, identity, destination, asked)
        assert not credentials_would_help(compiled, identity, destination, decision, asked)
    assert len(compiled.memo) == 2
