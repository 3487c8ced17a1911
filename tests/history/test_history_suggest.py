"""Suggestions: which rule, in which policy, what is left alone, and what is said about it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from egress_proxy.config.errors import ConfigError, Problem
from egress_proxy.config.load import load
from egress_proxy.history import tally
from egress_proxy.history.suggest import Suggestion, as_text, suggest
from tests.history.patching import allowed, apply_diff, line

POLICY = """\
version: 1
policies:
  - name: everyone
    allow: [github.com]
    deny: [gist.github.com, {cidr: 10.66.0.0/16}]
    ask: ["*.asked.test"]
  - name: agents  # ours
    subjects: [{cidr: 10.20.0.0/16}]
    allow:
      - {host: db.test, ports: [5432]}
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def suggested(*lines: str, text: str = POLICY, **options: object) -> Suggestion:
    Path("f.yaml").write_text(text)
    return suggest("f.yaml", lines, **options)  # type: ignore[arg-type]


def rules(found: Suggestion) -> dict[str, list[str]]:
    """What is added to each policy."""
    return {
        addition.policy: [text for rule in addition.rules for text in rule.rule]
        for addition in found.additions
    }


# All of it. -------------------------------------------------------------------------------------------------------


def test_the_whole_text() -> None:
    found = suggested(
        line("a.test"),
        line("a.test", 80, timestamp="2026-02-01T00:00:00.001Z"),
        line("a.test", client="10.20.0.8"),
        line("b.test", 8443, client="192.168.0.1"),
        line("github.com", 8080, client="192.168.0.1", reason="port_not_allowed", timestamp="junk"),
        line("github.com"),
        line("gist.github.com", reason="deny_rule"),
        "junk",
    )
    assert as_text(found) == (
        "--- f.yaml\n+++ f.yaml\n"
        "@@ -1,10 +1,13 @@\n"
        " version: 1\n policies:\n   - name: everyone\n"
        "+    # {host: github.com, ports: [8080]}: 1 request from 192.168.0.1\n"
        "+    # {host: b.test, ports: [8443]}: 1 request from 192.168.0.1, last 2026-01-31T12:00:00Z\n"
        "-    allow: [github.com]\n"
        "+    allow: [github.com, {host: github.com, ports: [8080]}, {host: b.test, ports: [8443]}]\n"
        "     deny: [gist.github.com, {cidr: 10.66.0.0/16}]\n"
        '     ask: ["*.asked.test"]\n'
        "   - name: agents  # ours\n"
        "     subjects: [{cidr: 10.20.0.0/16}]\n"
        "     allow:\n"
        "       - {host: db.test, ports: [5432]}\n"
        "+      - a.test  # 3 requests from 10.20.0.7 and 1 other client, last 2026-02-01T00:00:00Z\n"
        "# 7 refused requests in the log, 1 of which this configuration allows already. 3 rules would let 5 of them "
        "through.\n"
        "# To apply it: patch -p0 < FILE\n"
        "# Not lifted: gist.github.com:443 for 10.20.0.7, 1 request: deny_rule: a deny rule beats every rule that "
        "could be added (`deny gist.github.com` of everyone at f.yaml:5:12)\n"
    )
    assert found.log.messages() == [
        "line 8: this is neither an audit line nor a line of Squid's access.log",
        "1 line could not be understood",
    ]


def test_json_says_all_of_it() -> None:
    found = suggested(line("a.test", user="batch"), line("a.test"), text=POLICY)
    assert msgspec.json.decode(msgspec.json.encode(found), type=Suggestion) == found
    (addition,) = found.additions
    assert (addition.policy, addition.place, addition.subject) == ("agents", "f.yaml:7:5", None)
    (rule,) = addition.rules
    assert msgspec.to_builtins(rule) == {
        "rule": ["{host: a.test, ports: [443]}"],
        "requests": 2,
        "client_count": 2,
        "clients": ("10.20.0.7, user batch", "10.20.0.7"),
        "first": "2026-01-31T12:00:00Z",
        "last": "2026-01-31T12:00:00Z",
    }


@pytest.mark.parametrize("lines", [(), (line("github.com"),), (allowed("github.com"),)])
def test_nothing_to_suggest(lines: tuple[str, ...]) -> None:
    found = suggested(*lines)
    assert (found.diff, found.yaml, found.additions, found.unverified) == ("", "", (), None)
    assert as_text(found).endswith(". There is nothing to add.\n")


def test_a_broken_configuration() -> None:
    with pytest.raises(ConfigError):
        suggested(line("a.test"), text="version: 1\n")
    with pytest.raises(ConfigError):
        suggest("nothing.yaml", [])


# Which rule. ------------------------------------------------------------------------------------------------------


def test_ports_of_one_host_are_one_rule() -> None:
    ports = (443, 80, 22, 8000, 8001, 8002, 9000, 9001)
    found = suggested(*(line("a.test", port) for port in ports))
    assert rules(found) == {
        "agents": ['{host: a.test, ports: [22, 80, 443, "8000-8002", 9000, 9001]}']
    }


def test_more_ports_than_a_rule_may_have() -> None:
    found = suggested(*(line("a.test", port) for port in range(1000, 1502, 2)))
    (several,) = (addition.rules[0].rule for addition in found.additions)
    assert [text.count(",") for text in several] == [100, 100, 51]
    assert found.diff
    assert found.lifted == 251


def test_addresses_get_cidr_rules_behind_the_hosts() -> None:
    found = suggested(
        line("8.8.8.8", 53, reason="address_not_allowed"),
        line("2606:4700::1", reason="address_not_allowed"),
        line("10.1.2.3", reason="address_not_allowed"),
        line("a.test"),
        line("1e3.test"),
        line("no"),
    )
    assert rules(found)["agents"] == [
        '{host: "no", ports: [443]}',
        '{host: "1e3.test", ports: [443]}',
        "{host: a.test, ports: [443]}",
        '{cidr: "8.8.8.8/32", ports: [53]}',
        '{cidr: "10.1.2.3/32", ports: [443]}',
        '{cidr: "2606:4700::1/128", ports: [443]}',
    ]


def test_what_squid_refused() -> None:
    squid = "1769860800.123     12 10.20.0.7 {} 3900 {} - HIER_NONE/- text/html"
    found = suggested(
        squid.format("TCP_DENIED/403", "CONNECT a.test:443"),
        squid.format("TCP_DENIED/403", "GET http://a.test/x"),
        squid.format("TCP_DENIED/403", "CONNECT github.com:443"),
    )
    assert rules(found) == {"agents": ["a.test"]}
    assert (found.refused, found.already_allowed, found.lifted) == (3, 1, 2)


def test_a_private_address_is_opened_alone() -> None:
    would_deny = {"event": "WOULD_DENY", "reason": "destination_ip_prohibited"}
    found = suggested(
        line("github.com", address="10.1.2.3", **would_deny),  # type: ignore[arg-type]
        line("github.com", address="10.1.2.4", **would_deny),  # type: ignore[arg-type]
        line("a.test", event="WOULD_DENY", address="10.1.2.5"),
        line("b.test", event="WOULD_DENY", address="8.8.8.8"),
        line("b.test", 80, event="WOULD_DENY", address="10.1.2.5"),
        line("github.com", address="8.8.8.8", **would_deny),  # type: ignore[arg-type]
    )
    assert rules(found) == {
        "everyone": [
            '{host: github.com, ports: [443], allow_private: ["10.1.2.3/32", "10.1.2.4/32"]}'
        ],
        "agents": [
            '{host: a.test, ports: [443], allow_private: ["10.1.2.5/32"]}',
            '{host: b.test, ports: [80], allow_private: ["10.1.2.5/32"]}',
            "{host: b.test, ports: [443]}",
        ],
    }
    assert found.already_allowed == 1


def test_an_address_that_the_log_does_not_name() -> None:
    text = line("github.com", reason="destination_ip_prohibited")
    found = suggested(text, text)
    assert found.diff == ""
    (left,) = found.not_lifted
    assert (left.reason, left.requests) == ("destination_ip_prohibited", 2)
    assert left.why == (
        "it needs `allow_private` with the network of its address, which the log does not name"
    )
    found = suggested(text, text, addresses={"github.com": ("10.1.2.3", "10.1.2.4")})
    assert rules(found) == {
        "everyone": [
            '{host: github.com, ports: [443], allow_private: ["10.1.2.3/32", "10.1.2.4/32"]}'
        ]
    }
    # One that can be dialled is enough.
    found = suggested(text, addresses={"github.com": ("10.1.2.3", "8.8.8.8")})
    assert (found.diff, found.already_allowed) == ("", 1)


@pytest.mark.parametrize(
    ("text", "reason", "why"),
    [
        (line("gist.github.com"), "deny_rule", "a deny rule beats"),
        (line("x.asked.test"), "approval_required", "a human must approve"),
        (line("127.0.0.1"), "address_not_allowed", "the machine's own"),
        (line("169.254.169.254", 80), "address_not_allowed", "metadata service"),
        (line("::1"), "address_not_allowed", "the machine's own"),
        (line("10.66.0.1"), "deny_rule", "a deny rule beats"),
        (
            line("a.test", event="WOULD_DENY", address="10.66.0.1"),
            "host_not_allowed",
            "no rule that could be added",
        ),
        (
            line("github.com", event="WOULD_DENY", address="64:ff9b::a42:1"),
            "destination_ip_prohibited",
            "no rule that could be added",
        ),
        (
            line("a.test", event="WOULD_DENY", address="127.0.0.1"),
            "host_not_allowed",
            "the machine's own",
        ),
    ],
)
def test_what_no_rule_lifts(text: str, reason: str, why: str) -> None:
    found = suggested(text)
    assert (found.diff, found.additions) == ("", ())
    (left,) = found.not_lifted
    assert left.reason == reason
    assert why in left.why
    assert (left.rule is None) == (reason not in ("deny_rule", "approval_required"))


# Which policy. ----------------------------------------------------------------------------------------------------

SUBJECTS = """\
version: 1
policies:
  - name: users
    subjects: [{user: batch}]
    allow: [a.test]
  - name: pods
    subjects: [{namespace: agents}, {cidr: 10.20.0.0/16}]
    allow: [a.test]
  - name: user-carol-x
    subjects: [{namespace: other, user: x}]
    allow: [a.test]
"""


def test_the_policy_closest_to_the_client_gets_the_rule() -> None:
    found = suggested(
        line("u.test", user="batch", namespace="agents"),
        line("n.test", client="192.168.0.1", namespace="agents"),
        line("c.test"),
        text=SUBJECTS,
    )
    assert rules(found) == {
        "users": ["{host: u.test, ports: [443]}"],
        "pods": ["{host: c.test, ports: [443]}", "{host: n.test, ports: [443]}"],
    }


def test_a_client_without_policy_gets_one() -> None:
    found = suggested(
        line("a.test", client="192.168.0.1"),
        line("b.test", client="192.168.0.1"),
        line("a.test", client="fd00::1"),
        line("a.test", client="192.168.0.1", user="carol@x"),
        line("a.test", client="192.168.0.1", user="carol/x".replace("/", "."), namespace="new"),
        line("a.test", client="192.168.0.2", namespace="new"),
        line("a.test", client="192.168.0.1", user="x" * 64),
        line("a.test", client="192.168.0.1", user="x" * 63 + "@"),
        text=SUBJECTS,
    )
    assert [(addition.policy, addition.subject) for addition in found.additions] == [
        ("client-192.168.0.1", '{cidr: "192.168.0.1"}'),
        ("client-fd00--1", '{cidr: "fd00::1"}'),
        ("namespace-new", "{namespace: new}"),
        ("user-carol.x", "{user: carol.x}"),
        # The name is taken.
        ("user-carol-x-2", '{user: "carol@x"}'),
        ("user-" + "x" * 59, f'{{user: "{"x" * 63}@"}}'),
        ("user-" + "x" * 57 + "-2", f"{{user: {'x' * 64}}}"),
    ]
    apply_diff(found.diff, Path())
    after = load("f.yaml").config.policy
    assert len(after.policies) == 10
    assert suggest("f.yaml", [line("b.test", client="192.168.0.1")]).already_allowed == 1


def test_what_a_wider_policy_gets_is_not_added_twice() -> None:
    found = suggested(
        line("a.test"),
        line("a.test", client="192.168.0.1"),
        line("b.test"),
        line("a.test", 80),
    )
    assert rules(found) == {
        "everyone": ["{host: a.test, ports: [443]}"],
        "agents": ["{host: a.test, ports: [80]}", "{host: b.test, ports: [443]}"],
    }
    (rule,) = found.additions[0].rules
    assert (rule.requests, rule.client_count) == (2, 2)


def test_what_else_a_rule_lets_through_is_said() -> None:
    found = suggested(
        line("a.test", client="192.168.0.1"),
        allowed("a.test"),
        allowed("b.test"),
        allowed("github.com"),
        line("a.test", user="u", reason="proxy_credentials_required"),
    )
    assert [(each.client, each.destination) for each in found.also_allowed] == [
        ("10.20.0.7", "a.test:443")
    ]
    assert (
        "# Also let through: a.test:443 for 10.20.0.7, which the log shows as allowed and this configuration "
        "refuses (1 request)\n" in as_text(found)
    )


def test_policies_that_a_log_says_nothing_about() -> None:
    text = POLICY + (
        "  - {name: labelled, subjects: [{pod_labels: {a: b}}], allow: [a.test]}\n"
        "  - {name: users, subjects: [{user: u}], allow: [a.test]}\n"
        "  - {name: spaces, subjects: [{namespace: ns}], allow: [a.test]}\n"
    )
    found = suggested(line("a.test", namespace="ns"), line("b.test"), text=text)
    assert found.notes == (
        "a log names no pod labels, so these policies are taken to be for none of its clients: labelled",
        "no line of the log names a user, so these policies are taken to be for none of its clients: users",
    )


# Which file. ------------------------------------------------------------------------------------------------------


def test_rules_go_into_the_files_of_their_policies() -> None:
    Path("more").mkdir()
    Path("more/b.yaml").write_text(
        "version: 1\npolicies:\n- name: b\n  subjects: [{user: b}]\n  allow: [x.test] # b\n"
    )
    Path("more/a.yaml").write_text(
        "version: 1\npolicies: [{name: a, subjects: [{user: a}], deny: [x.test]}]\n"
    )
    main = "version: 1\ninclude: [more]  # all of them\n"
    lines = [
        line("b.test", user="b"),
        line("a.test", user="a"),
        line("n.test", user="n"),
    ]
    found = suggested(*lines, text=main)
    assert [text for text in found.diff.splitlines() if text[:4] in ("--- ", "+++ ")] == [
        *("--- more/a.yaml", "+++ more/a.yaml"),
        *("--- more/b.yaml", "+++ more/b.yaml"),
    ]
    apply_diff(found.diff, Path())
    # Where the first file has no policies, a new one goes to where the first policy stands.
    assert "user-n" in Path("more/a.yaml").read_text()
    assert suggest("f.yaml", lines).already_allowed == 3


def test_what_is_decided_by_is_what_is_edited() -> None:
    """A file that changes while the log is read does not mix with what it was."""

    Path("f.yaml").write_text(POLICY)

    def lines() -> Iterator[str]:
        Path("f.yaml").write_text("nonsense")
        yield line("a.test")

    found = suggest("f.yaml", lines())
    Path("f.yaml").write_text(POLICY)
    apply_diff(found.diff, Path())
    assert suggest("f.yaml", [line("a.test")]).already_allowed == 1


# What is said about it. -------------------------------------------------------------------------------------------


def test_warnings_are_those_of_the_new_rules() -> None:
    # What was said before, about a line that moves, is not said again.
    text = POLICY.replace("allow: [github.com]", "allow: [c.test]").replace(
        "    allow:\n", "    allow:\n      - github.com\n      - github.com\n"
    )
    assert warnings_of(text)
    assert suggested(line("a.test"), line("a.test", client="192.168.0.1"), text=text).warnings == ()
    found = suggested(line("a.test"), line("10.9.9.9"), line("a.test", 22), text=text)
    before = Path("f.yaml").read_text()
    apply_diff(found.diff, Path())
    after = warnings_of(Path("f.yaml").read_text())
    assert len(found.warnings) == len(after) - len(warnings_of(before)) > 0
    for warning in found.warnings:
        assert f"# In the edited text: {warning}\n" in as_text(found)


def warnings_of(text: str) -> tuple[Problem, ...]:
    Path("g.yaml").write_text(text)
    return load("g.yaml").warnings


@pytest.mark.parametrize(
    ("hosts", "patterns"),
    [
        ([f"h{number}.a.test" for number in range(5)], {"*.a.test": 5}),
        ([f"h{number}.a.test" for number in range(4)], {}),
        ([f"h{number}.x.cdn.a.test" for number in range(6)], {"*.x.cdn.a.test": 6}),
        (
            ["a.test", *(f"{label}.a.test" for label in ("b", "c.b", "d", "e.f", "g"))],
            {"*.a.test": 5},
        ),
        # Nobody owns all of these.
        ([f"h{number}.github.io" for number in range(9)], {}),
        ([f"h{number}.co.uk" for number in range(9)], {}),
        ([f"h{number}.s3.amazonaws.com" for number in range(9)], {}),
        ([f"h{number}.me.github.io" for number in range(9)], {"*.me.github.io": 9}),
        ([f"h{number}.test" for number in range(9)], {}),
        (
            [f"a{number}.{name}.test" for name in "ab" for number in range(5)],
            {"*.a.test": 5, "*.b.test": 5},
        ),
    ],
)
def test_wildcards_are_proposed_and_never_added(hosts: list[str], patterns: dict[str, int]) -> None:
    found = suggested(*(line(host) for host in hosts))
    assert {wildcard.pattern: wildcard.hosts for wildcard in found.wildcards} == patterns
    assert "*" not in found.diff.replace("*.asked.test", "")
    for pattern, number in patterns.items():
        assert (
            f'# Policy agents: "{pattern}" would stand for {number} of these hosts, and allow every other name there '
            "as well\n" in as_text(found)
        )


def test_long_lists_are_cut_in_the_text() -> None:
    found = suggested(
        *(line(f"{number}.gist.test", reason="deny_rule") for number in range(60)),
        text=POLICY.replace("deny: [", 'deny: ["*.gist.test", '),
    )
    assert len(found.not_lifted) == 60
    shown = as_text(found).splitlines()
    assert len(shown) == 52
    assert shown[-1] == "# 10 more refused destinations are in the JSON output"


def test_a_log_with_too_many_different_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "MAX_DISTINCT", 3)
    found = suggested(*(line(f"h{number}.test") for number in range(5)), line("h0.test"))
    assert (found.refused, found.lifted) == (6, 4)
    assert found.notes == (
        "there are more than 3 different requests; 2 requests beyond them left out: read the log in parts",
    )


def test_what_is_printed_obeys_no_terminal() -> None:
    """The name of a file is the one text here that is not canonical."""
    name = "a\n\x1b[31m.yaml"
    Path(name).write_text("version: 1\npolicies: [{name: a, allow: [a.test], deny: [b.test]}]\n")
    found = suggest(name, [line("b.test"), line("c.test")])
    assert found.diff
    shown = as_text(found)
    assert "\x1b" not in shown
    assert [text[:1] for text in shown.splitlines() if "b.test:443" in text] == ["#"]
    names = [text for text in shown.splitlines() if text.startswith("--- ")]
    assert names == ['--- "a\\012\\033[31m.yaml"']
