"""Explanations: the server's own decision, told, with what to write to change it."""

from __future__ import annotations

import itertools
import re
from ipaddress import ip_network

import msgspec
import pytest

from egress_proxy.config.load import parse
from egress_proxy.core.decide import decide, vet_addresses
from egress_proxy.core.errors import HostError
from egress_proxy.core.explain import Explanation, OtherRule, explain, parse_address, parse_target
from egress_proxy.core.identity import Identity
from egress_proxy.core.policy import CompiledPolicy
from egress_proxy.core.reason import Event
from egress_proxy.core.reasons import REASONS

POLICY = """\
version: 1
policies:
  - name: everyone
    allow:
      - example.com
      - "*.example.org"
      - {host: internal.test, allow_private: [10.0.0.0/8]}
      - {cidr: 192.0.2.0/24}
      - {cidr: 203.0.113.0/24}
    deny:
      - bad.example.org
      - {cidr: 10.66.0.0/16}
      - {cidr: 203.0.113.7}
  - name: agents
    subjects: [{cidr: 10.20.0.0/16}]
    allow: [example.com, agents.example.net]
  - name: one-agent
    subjects: [{cidr: 10.20.30.0/24}, {cidr: "fd00::/64"}]
    allow: [{host: example.com, ports: [8443]}]
"""


def compiled(text: str = POLICY) -> CompiledPolicy:
    return parse(text.encode(), "f.yaml").config.policy


def explained(
    target: str, *addresses: str, client: str = "192.168.0.1", text: str = POLICY
) -> Explanation:
    return explain(compiled(text), Identity(client), parse_target(target), addresses)


def with_addition(addition: str, text: str = POLICY) -> str:
    """The configuration with the policies of an addition as further ones, for the clients of those they belong to."""
    name = re.search(r"name: (\S+)", addition)
    assert name is not None
    policy = re.search(rf"name: {re.escape(name[1])}\n    subjects: (.*)\n", text)
    subjects = f"\n    subjects: {policy[1]}" if policy and "subjects" not in addition else ""
    entry = addition.removeprefix("policies:\n").replace(name[0], f"name: added{subjects}", 1)
    # Behind the subjects stands a comment.
    return text + re.sub(r" +# the policy at \S+", "", entry)


# What is told. ----------------------------------------------------------------------------------------------------


def test_an_allowed_host() -> None:
    told = explained("example.com")
    assert told == Explanation(
        outcome=Event.ALLOWED,
        client="192.168.0.1",
        destination="example.com:443",
        policy="everyone",
        rule="allow example.com",
        place="f.yaml:5:9",
        others=(
            OtherRule(
                "agents",
                "allow example.com",
                "f.yaml:16:13",
                "its policy is not for the client 192.168.0.1",
            ),
            OtherRule(
                "one-agent",
                "allow example.com",
                "f.yaml:19:13",
                "its policy is not for the client 192.168.0.1",
            ),
        ),
    )


def test_other_rules_say_why_they_did_not_decide() -> None:
    told = explained("example.com", client="10.20.30.1")
    assert [(other.policy, other.why) for other in told.others] == [
        ("agents", "it allows as well"),
        ("one-agent", "it is for port 8443"),
    ]
    told = explained("bad.example.org")
    assert (told.outcome, told.reason, told.place) == (Event.DENIED, "deny_rule", "f.yaml:11:9")
    assert [(other.rule, other.why) for other in told.others] == [
        ("allow *.example.org", "deny beats allow")
    ]
    assert told.add is None
    assert told.hint == (
        "No rule can be added, because deny beats allow: remove or narrow `deny bad.example.org` at f.yaml:11:9."
    )


def test_a_rule_beside_the_mark_is_shown() -> None:
    told = explained("example.org")
    assert (told.outcome, told.reason, told.rule) == (Event.DENIED, "host_not_allowed", None)
    assert [(other.place, other.why) for other in told.others] == [
        ("f.yaml:6:9", "it covers the names below example.org, not example.org itself")
    ]
    told = explained("a.b.example.com")
    assert [(other.place, other.why) for other in told.others] == [
        ("f.yaml:5:9", "it covers example.com alone, not the names below"),
        ("f.yaml:16:13", "it covers example.com alone, not the names below"),
        ("f.yaml:19:13", "it covers example.com alone, not the names below"),
    ]


def test_the_number_of_other_rules_is_bounded() -> None:
    text = "version: 1\npolicies:\n" + "".join(
        f"  - {{name: p{number}, allow: [example.com]}}\n" for number in range(200)
    )
    assert len(explained("example.com", text=text).others) == 50


def test_another_port() -> None:
    told = explained("example.com:22")
    assert (told.outcome, told.reason, told.place) == (
        Event.DENIED,
        "port_not_allowed",
        "f.yaml:5:9",
    )
    assert told.add == (
        "policies:\n  - name: everyone  # the policy at f.yaml:3:5\n    allow:\n"
        "      - {host: example.com, ports: [22]}\n"
    )


def test_the_policy_to_add_to_is_the_closest_to_the_client() -> None:
    for client, policy in (
        ("192.168.0.1", "everyone"),
        ("10.20.0.1", "agents"),
        ("10.20.30.1", "one-agent"),
        ("fd00::1", "one-agent"),
    ):
        told = explained("new.test", client=client)
        assert told.add is not None
        assert f"name: {policy}  #" in told.add


def test_a_client_without_a_policy_gets_one() -> None:
    text = (
        "version: 1\npolicies: [{name: a, subjects: [{cidr: 10.0.0.0/8}], allow: [example.com]}]\n"
    )
    for client, name in (("192.168.0.1", "client-192.168.0.1"), ("fd00::1", "client-fd00--1")):
        told = explained("example.com", client=client, text=text)
        assert told.add == (
            f'policies:\n  - name: {name}\n    subjects: [{{cidr: "{client}"}}]\n    allow:\n'
            "      - {host: example.com, ports: [443]}\n"
        )
        assert parse(f"version: 1\n{told.add}".encode(), "f.yaml").warnings == ()


# Addresses. -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "addresses", "outcome", "told"),
    [
        ("example.com", ("8.8.8.8",), Event.ALLOWED, ["8.8.8.8 True public"]),
        ("example.com", ("10.0.0.1",), Event.DENIED, ["10.0.0.1 False private (10.0.0.0/8)"]),
        (
            "example.com",
            ("10.0.0.1", "8.8.8.8"),
            Event.ALLOWED,
            ["10.0.0.1 False private (10.0.0.0/8)", "8.8.8.8 True public"],
        ),
        (
            "internal.test",
            ("10.0.0.1",),
            Event.ALLOWED,
            ["10.0.0.1 True private (10.0.0.0/8), opened by the rule"],
        ),
        (
            "internal.test",
            ("10.66.0.1",),
            Event.DENIED,
            ["10.66.0.1 False closed by `deny 10.66.0.0/16` of everyone (f.yaml:12:9)"],
        ),
        (
            "example.com",
            ("169.254.169.254",),
            Event.DENIED,
            ["169.254.169.254 False metadata (169.254.169.254/32)"],
        ),
        (
            "example.com",
            ("::ffff:127.0.0.1",),
            Event.DENIED,
            ["::ffff:127.0.0.1 False loopback (127.0.0.0/8)"],
        ),
        ("8.8.8.8", (), Event.DENIED, ["8.8.8.8 True public"]),
        (
            "192.0.2.1",
            (),
            Event.ALLOWED,
            ["192.0.2.1 True documentation (192.0.2.0/24), opened by the rule"],
        ),
        ("127.1", (), Event.DENIED, ["127.0.0.1 False loopback (127.0.0.0/8)"]),
        ("[::1]", (), Event.DENIED, ["::1 False loopback (::1/128)"]),
    ],
)
def test_addresses(
    target: str, addresses: tuple[str, ...], outcome: Event, told: list[str]
) -> None:
    found = explained(target, *addresses)
    assert found.outcome == outcome
    assert [f"{answer.address} {answer.passes} {answer.why}" for answer in found.addresses] == told


def test_a_name_with_a_private_address_needs_that_address_alone() -> None:
    told = explained("example.com", "10.0.0.1", "fd00::1")
    assert told.reason == "destination_ip_prohibited"
    assert told.place == "f.yaml:5:9"
    assert told.add is not None
    assert (
        '{host: example.com, ports: [443], allow_private: ["10.0.0.1/32", "fd00::1/128"]}'
        in told.add
    )


def test_an_addition_for_a_new_name_opens_no_private_address_without_need() -> None:
    told = explained("new.test", "10.0.0.1", "8.8.8.8")
    assert told.add is not None
    assert "allow_private" not in told.add


@pytest.mark.parametrize("address", ["169.254.169.254", "127.0.0.1", "::1", "fe80::1", "0.0.0.0"])
def test_no_rule_is_suggested_for_an_address_that_attackers_want(address: str) -> None:
    for told in (explained("example.com", address), explained("new.test", address)):
        assert told.outcome == Event.DENIED
        assert told.add is None
        assert told.hint is not None


def test_no_rule_is_suggested_against_a_deny_rule_for_addresses() -> None:
    for told in (explained("internal.test", "10.66.0.1"), explained("new.test", "10.66.0.1")):
        assert told.outcome == Event.DENIED
        assert told.add is None
        assert told.hint is not None
    assert explained("203.0.113.7").reason == "deny_rule"


# Audit mode. ------------------------------------------------------------------------------------------------------


def test_audit_mode() -> None:
    text = f"mode: audit\n{POLICY}"
    assert explained("example.com", text=text).outcome == Event.ALLOWED
    told = explained("new.test", text=text)
    assert (told.outcome, told.reason) == (Event.WOULD_DENY, "host_not_allowed")
    assert told.add is not None
    told = explained("example.com", "10.0.0.1", text=text)
    assert (told.outcome, told.reason) == (Event.WOULD_DENY, "destination_ip_prohibited")
    assert not told.addresses[0].passes
    told = explained("example.com", "127.0.0.1", text=text)
    assert (told.outcome, told.reason) == (Event.DENIED, "destination_ip_prohibited")
    # The rules would let it through in this mode, so it is the gate that refuses.
    told = explained("new.test", "127.0.0.1", text=text)
    assert (told.outcome, told.reason) == (Event.DENIED, "destination_ip_prohibited")


# All together. ----------------------------------------------------------------------------------------------------

TARGETS = (
    "example.com",
    "example.com:8443",
    "http://example.com/",
    "www.example.org",
    "bad.example.org",
    "example.org",
    "internal.test",
    "no",
    "1e3.test",
    "new.test:22",
    "8.8.8.8",
    "10.1.2.3",
    "192.0.2.1:22",
    "203.0.113.7",
    "169.254.169.254:80",
    "[2606:4700::1]",
    "[fd00::1]:443",
    "[64:ff9b::a00:1]",
    "[2002:a00:1::]",
)
CLIENTS = ("192.168.0.1", "10.20.0.1", "10.20.30.1", "fd00::1")
ADDRESSES = (
    (),
    ("8.8.8.8",),
    ("10.0.0.1",),
    ("10.66.0.1", "10.0.0.1"),
    ("169.254.169.254",),
    ("64:ff9b::a00:1",),
)


@pytest.mark.parametrize("mode", ["enforce", "audit"])
def test_it_says_what_the_server_decides_and_its_advice_works(mode: str) -> None:
    text = f"mode: {mode}\n{POLICY}"
    policy = compiled(text)
    advised = 0
    for target, client, addresses in itertools.product(TARGETS, CLIENTS, ADDRESSES):
        destination = parse_target(target)
        told = explain(policy, Identity(client), destination, addresses)
        decision = decide(policy, Identity(client), destination)
        if destination.host.address is not None:
            addresses = (destination.host.text,)  # noqa: PLW2901 - as the server does
        denial = decision.denial
        if addresses:
            vetting, prohibition = vet_addresses(decision, addresses, destination.port)
            denial = denial or prohibition
            if decision.allowed and not vetting.passed:
                denial = prohibition
        assert told.reason == (None if denial is None else denial.name)
        assert (told.outcome == Event.ALLOWED) == (denial is None)
        assert (told.add is None) == (told.hint is not None) or denial is None
        if told.add is not None:
            advised += 1
            # In force, where nothing passes by the mode alone.
            mended = compiled(with_addition(told.add))
            assert (
                explain(mended, Identity(client), destination, addresses).outcome == Event.ALLOWED
            ), told
    assert advised > 100


def test_it_can_be_sent_as_json() -> None:
    told = explained("bad.example.org", "10.0.0.1")
    assert msgspec.json.decode(msgspec.json.encode(told), type=Explanation) == told
    assert told.reason in REASONS


# Targets. ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "destination"),
    [
        ("example.com", "example.com:443"),
        ("Example.COM.", "example.com:443"),
        ("example.com:22", "example.com:22"),
        ("http://example.com", "example.com:80"),
        ("HTTP://example.com/a?b#c", "example.com:80"),
        ("https://example.com?x", "example.com:443"),
        ("https://example.com:8443/a:b@c", "example.com:8443"),
        ("127.1", "127.0.0.1:443"),
        ("http://0x7f000001:8080/", "127.0.0.1:8080"),
        ("[::1]", "[::1]:443"),
        ("https://[2001:DB8::1%25eth0]:8443/", "[2001:db8::1]:8443"),
        ("[::ffff:10.0.0.1]:80", "10.0.0.1:80"),
        ("bücher.example", "xn--bcher-kva.example:443"),
        ("https://bücher.example:8443/ü", "xn--bcher-kva.example:8443"),
    ],
)
def test_targets(text: str, destination: str) -> None:
    assert str(parse_target(text)) == destination


@pytest.mark.parametrize(
    "text",
    [
        "",
        "https://",
        "ftp://example.com",
        "://example.com",
        "user@example.com",
        "https://user:secret@example.com/",
        "example.com:",
        "example.com:0",
        "example.com:65536",
        "example.com:http",
        "example.com:٤٤٣",
        "bücher.example:٤٤٣",
        "ü:ü:ü",
        "example.com/path",
        "exa mple.com",
        "a..b",
        "::1",
        "[::1",
        "*.example.com",
        "a" * 300,
        "\0",
        "\ud800",
    ],
)
def test_what_is_no_target(text: str) -> None:
    with pytest.raises(HostError) as caught:
        parse_target(text)
    assert "secret" not in str(caught.value)


def test_client_addresses() -> None:
    assert parse_address("::ffff:10.0.0.1") == "10.0.0.1"
    assert parse_address("FE80::1%eth0") == "fe80::1"
    for text in ("", "x", "10.0.0", "127.1", "10.0.0.0/8", "\0"):
        with pytest.raises(HostError):
            parse_address(text)


def test_the_trial_network_is_not_wider_than_the_address() -> None:
    told = explained("198.51.100.7:8080")
    assert told.add is not None
    assert f'cidr: "{ip_network("198.51.100.7")}", ports: [8080]' in told.add
