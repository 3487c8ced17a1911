"""What is suggested lets the request through that was refused, and nothing beside it."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from egress_proxy.config.load import parse
from egress_proxy.core.conditions import Asked
from egress_proxy.core.decide import decide, vet_addresses
from egress_proxy.core.explain import Explanation, explain
from egress_proxy.core.identity import Identity
from egress_proxy.core.names import parse_authority
from egress_proxy.core.policy import CompiledPolicy

CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

HOSTS = ["one.test", "two.one.test", "192.0.2.7"]
PORTS = [80, 443]
METHODS = ["GET", "POST", "PUT"]
PATHS = ["/v1/a", "/v1/b", "/"]
CLIENTS = ["10.20.0.1", "10.30.0.1"]
#: Of no network that is opened, of one, of another one, and the machine's own.
ADDRESSES = ["93.184.215.14", "10.1.0.9", "10.2.0.9", "127.0.0.1"]

QUESTIONS = [
    (client, f"{host}:{port}".encode(), asked)
    for client, host, port in product(CLIENTS, HOSTS, PORTS)
    for asked in (
        None,
        *(Asked(method, path.encode()) for method, path in product(METHODS, PATHS)),
    )
]


@st.composite
def rules(draw: st.DrawFn) -> dict[str, Any]:
    host = draw(st.sampled_from([*HOSTS[:2], "*.test"]))
    rule: dict[str, Any] = {"host": host}
    if draw(st.booleans()):
        rule["ports"] = draw(st.sampled_from([[80], [443], [80, 443], [8080]]))
    if draw(st.booleans()):
        rule["methods"] = draw(st.lists(st.sampled_from(METHODS), min_size=1, max_size=2))
    if draw(st.booleans()):
        rule["paths"] = draw(st.sampled_from([["/v1/a"], ["/v1/"], ["/v1/*", "/other"]]))
    if draw(st.booleans()):
        opened = st.sampled_from([["10.1.0.0/16"], ["10.1.0.0/16", "10.2.0.9/32"], ["127.0.0.0/8"]])
        rule["allow_private"] = draw(opened)
    if draw(st.integers(0, 3)) == 0:
        rule = {"cidr": "192.0.2.0/24"} | {
            key: value for key, value in rule.items() if key in {"ports", "methods", "paths"}
        }
    return rule


@st.composite
def policies(draw: st.DrawFn) -> list[dict[str, Any]]:
    found = []
    for number in range(draw(st.integers(1, 2))):
        policy: dict[str, Any] = {"name": f"p{number}"}
        if draw(st.booleans()):
            policy["subjects"] = [{"cidr": draw(st.sampled_from(["10.20.0.0/16", "10.30.0.0/16"]))}]
        policy["allow"] = draw(st.lists(rules(), min_size=1, max_size=3))
        if draw(st.integers(0, 2)) == 0:
            policy["ask"] = draw(st.lists(rules(), min_size=1, max_size=1))
        if draw(st.integers(0, 2)) == 0:
            policy["deny"] = [{"host": "two.one.test", "methods": ["PUT"]}]
        found.append(policy)
    return found


def compiled(found: list[dict[str, Any]]) -> CompiledPolicy:
    text = yaml.safe_dump({"version": 1, "policies": found})
    return parse(text.encode(), "f.yaml").config.policy


def applied(found: list[dict[str, Any]], addition: str) -> list[dict[str, Any]]:
    """The configuration with what an explanation says to add."""
    (new,) = yaml.safe_load(addition)["policies"]
    if all(policy["name"] != new["name"] for policy in found):
        return [*found, new]
    return [
        policy | {"allow": [*policy["allow"], *new["allow"]]}
        if policy["name"] == new["name"]
        else policy
        for policy in found
    ]


def added_rule(addition: str) -> dict[str, Any]:
    rule: dict[str, Any] = yaml.safe_load(addition)["policies"][0]["allow"][0]
    return rule


def passing(policy: CompiledPolicy, client: str, target: bytes, asked: Asked | None) -> set[str]:
    """The addresses at which a request goes through; empty where rules refuse it."""
    destination = parse_authority(target, None)
    decision = decide(policy, Identity(client), destination, asked)
    if decision.denial is not None:
        return set()
    if destination.host.address is not None:
        own = vet_addresses(decision, (destination.host.text,), destination.port)[0].passed
        return {destination.host.text} if own else set()
    return {
        address
        for address in ADDRESSES
        if vet_addresses(decision, (address,), destination.port)[0].passed
    }


def ask(
    policy: CompiledPolicy, about: tuple[str, bytes, Asked | None], known: tuple[str, ...] = ()
) -> Explanation:
    client, target, asked = about
    return explain(policy, Identity(client), parse_authority(target, None), known, asked=asked)


@CALM
@given(
    policies(), st.sampled_from(QUESTIONS), st.sampled_from([(), (), *((a,) for a in ADDRESSES)])
)
def test_a_suggestion_lets_the_request_through_and_nothing_beside_it(
    found: list[dict[str, Any]],
    about: tuple[str, bytes, Asked | None],
    known: tuple[str, ...],
) -> None:
    before = compiled(found)
    told = ask(before, about, known)
    if told.add is None:
        return
    after = compiled(applied(found, told.add))
    assert ask(after, about, known).outcome == "ALLOWED"
    client, target, asked = about
    rule = added_rule(told.add)
    opened = set(rule.get("allow_private", ()))
    if known and not target[:1].isdigit():
        assert {*known} <= passing(after, *about)
        assert opened <= {f"{address}/32" for address in known}
    for other in QUESTIONS:
        more = passing(after, *other) - passing(before, *other)
        if not more or other == about:
            continue
        # The same destination; and where what was asked can be seen and rules look at it, the same deed.
        assert other[1] == target
        assert other[0] == client or "subjects" not in told.add
        if "methods" in rule:
            assert other[2] is not None
            assert asked is not None
            assert other[2].method == asked.method
        if "paths" in rule:
            assert other[2] is not None
        if told.conditions is not None and ("methods" not in rule and "paths" not in rule):
            # That a tunnel's rule is for plain requests too is said.
            assert asked is None
            assert told.hint is not None
            assert "every method and path" in told.hint


NEIGHBOUR = """\
version: 1
policies:
  - name: everyone
    allow:
      - {host: in.test, ports: [80], methods: [GET], allow_private: [10.1.0.0/16]}
      - {host: deep.test, ports: [80], paths: [/v1/], allow_private: [10.1.0.0/16]}
      - {host: own.test, ports: [80], methods: [GET], allow_private: [127.0.0.0/8, 10.1.0.0/16]}
      - {host: self.test, ports: [80], methods: [GET], allow_private: [127.0.0.0/8]}
      - {host: out.test, methods: [GET], paths: [/v1/]}
"""


@pytest.mark.parametrize(
    ("target", "asked", "known", "added", "said"),
    [
        (b"in.test:80", Asked("POST", b"/"), (),
         {"host": "in.test", "ports": [80], "methods": ["POST"], "allow_private": ["10.1.0.0/16"]}, None),
        # Known, they are named one by one; a public one needs nothing.
        (b"in.test:80", Asked("POST", b"/"), ("10.1.0.9",),
         {"host": "in.test", "ports": [80], "methods": ["POST"], "allow_private": ["10.1.0.9/32"]}, None),
        (b"in.test:80", Asked("POST", b"/"), ("93.184.215.14",),
         {"host": "in.test", "ports": [80], "methods": ["POST"]}, None),
        (b"deep.test:80", Asked("GET", b"/v2"), (),
         {"host": "deep.test", "ports": [80], "paths": ["/v2"], "allow_private": ["10.1.0.0/16"]}, None),
        # An address is in the way, not the path: what the rule there says of paths goes on to hold.
        (b"deep.test:80", Asked("GET", b"/v1/x"), ("10.2.0.9",),
         {"host": "deep.test", "ports": [80], "paths": ["/v1/"], "allow_private": ["10.2.0.9/32"]}, None),
        (b"in.test:80", None, (),
         {"host": "in.test", "ports": [80], "allow_private": ["10.1.0.0/16"]},
         "to `in.test` on port 80, where `allow in.test (GET)` at f.yaml:5:9 names some."),
        (b"out.test:443", None, (), {"host": "out.test", "ports": [443]}, "every method and path"),
        # Another port does not widen what may be asked there.
        (b"out.test:8080", Asked("GET", b"/v1/x"), (),
         {"host": "out.test", "ports": [8080], "methods": ["GET"], "paths": ["/v1/x"]}, None),
        # The machine's own addresses are for people to open.
        (b"own.test:80", Asked("PUT", b"/"), (),
         {"host": "own.test", "ports": [80], "methods": ["PUT"], "allow_private": ["10.1.0.0/16"]},
         "`allow own.test (GET)` at f.yaml:7:9 opens 127.0.0.0/8, which no suggestion does"),
        (b"self.test:80", Asked("PUT", b"/"), (),
         {"host": "self.test", "ports": [80], "methods": ["PUT"]},
         "`allow self.test (GET)` at f.yaml:8:9 opens 127.0.0.0/8, which no suggestion does"),
    ],
)  # fmt: skip
def test_what_the_neighbouring_rule_says_goes_on_to_hold(
    target: bytes,
    asked: Asked | None,
    known: tuple[str, ...],
    added: dict[str, Any],
    said: str | None,
) -> None:
    policy = parse(NEIGHBOUR.encode(), "f.yaml").config.policy
    told = ask(policy, ("10.20.0.1", target, asked), known)
    assert told.add is not None
    assert added_rule(told.add) == added
    if said is None:
        assert told.hint is None
    else:
        assert told.hint is not None
        assert said in told.hint


def test_all_that_is_to_know_about_a_rule_is_said() -> None:
    policy = parse(NEIGHBOUR.encode(), "f.yaml").config.policy
    told = ask(policy, ("10.20.0.1", b"self.test:80", None), ())
    assert told.reason == "connect_not_allowed"
    assert told.hint is not None
    assert "every method and path" in told.hint
    assert "opens 127.0.0.0/8, which no suggestion does" in told.hint
    # What no rule opens anyway is no news where the parent proxy finds the address.
    upstream = f'upstream: {{proxy: "http://up.test:3128"}}\n{NEIGHBOUR}'
    told = ask(
        parse(upstream.encode(), "f.yaml").config.policy, ("10.20.0.1", b"self.test:80", None), ()
    )
    assert told.hint is not None
    assert "127.0.0.0/8" not in told.hint
