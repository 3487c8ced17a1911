"""Replays: which decisions of a log another policy changes."""

from __future__ import annotations

import msgspec
import pytest

from egress_proxy.config.load import parse
from egress_proxy.history import tally
from egress_proxy.history.replay import Kind, Replay, as_text, replay
from tests.history.patching import allowed, line

POLICY = """\
version: 1
policies:
  - name: everyone
    allow: [a.test, {host: db.test, ports: [5432], allow_private: [10.1.0.0/16]}]
    deny: [bad.test, {cidr: 203.0.113.0/24}]
    ask: [asked.test]
  - name: batch
    subjects: [{user: batch}]
    allow: [b.test, {cidr: 8.8.8.8}]
"""


def replayed(*lines: str, text: str = POLICY) -> Replay:
    return replay(parse(text.encode(), "f.yaml").config.policy, lines)


def kinds(found: Replay) -> list[str]:
    return [f"{change.kind} {change.destination} {change.client}" for change in found.changes]


def test_the_whole_text() -> None:
    found = replayed(
        line("a.test"),
        line("a.test", timestamp="2026-02-01T00:00:00.001Z"),
        line("b.test"),
        line("a.test", 22),
        line(
            "db.test",
            5432,
            event="WOULD_DENY",
            reason="destination_ip_prohibited",
            address="10.1.2.3",
        ),
        line("b.test", client="fd00::1", user="batch"),
        allowed("b.test"),
        allowed("b.test", client="fd00::1", user="batch"),
        allowed("a.test", address="10.0.0.1"),
        allowed("a.test", address="8.8.4.4"),
        allowed("bad.test", timestamp="never"),
        line("asked.test"),
        line("b.test", reason="approval_required"),
        line("asked.test", reason="approval_required"),
        line("a.test", reason="destination_ip_prohibited"),
        line("c.test", reason="destination_ip_prohibited"),
        line("a.test", reason="bare_lf"),
        "junk",
    )
    assert as_text(found) == (
        "NEWLY ALLOWED: a.test:443 for 10.20.0.7: DENIED (host_not_allowed) -> ALLOWED, `allow a.test` of everyone at "
        "f.yaml:4:13; 2 requests, last 2026-02-01T00:00:00Z\n"
        "NEWLY ALLOWED: b.test:443 for fd00::1, user batch: DENIED (host_not_allowed) -> ALLOWED, `allow b.test` of "
        "batch at f.yaml:9:13; 1 request, last 2026-01-31T12:00:00Z\n"
        "NEWLY ALLOWED: db.test:5432 for 10.20.0.7 at 10.1.2.3: WOULD_DENY (destination_ip_prohibited) -> ALLOWED, "
        "`allow db.test` of everyone at f.yaml:4:21; 1 request, last 2026-01-31T12:00:00Z\n"
        "NEWLY DENIED: a.test:443 for 10.20.0.7 at 10.0.0.1: ALLOWED -> DENIED (destination_ip_prohibited), "
        "`allow a.test` of everyone at f.yaml:4:13; 1 request, last 2026-01-31T12:00:00Z\n"
        "NEWLY DENIED: b.test:443 for 10.20.0.7: ALLOWED -> DENIED (host_not_allowed); 1 request, "
        "last 2026-01-31T12:00:00Z\n"
        "NEWLY DENIED: bad.test:443 for 10.20.0.7: ALLOWED -> DENIED (deny_rule), `deny bad.test` of everyone at "
        "f.yaml:5:12; 1 request\n"
        "OTHERWISE DENIED: asked.test:443 for 10.20.0.7: DENIED (host_not_allowed) -> DENIED (approval_required), "
        "`ask asked.test` of everyone at f.yaml:6:11; 1 request, last 2026-01-31T12:00:00Z\n"
        "OTHERWISE DENIED: b.test:443 for 10.20.0.7: DENIED (approval_required) -> DENIED (host_not_allowed); "
        "1 request, last 2026-01-31T12:00:00Z\n"
        "15 requests replayed; 9 decided otherwise (4 newly allowed, 3 newly denied, 2 otherwise denied); 1 more could "
        "not be replayed: they were refused for addresses that the log does not name\n"
    )
    assert (found.requests, found.same, found.not_replayed, found.changed) == (15, 6, 1, True)
    assert found.log.messages() == [
        "line 18: this is neither an audit line nor a line of Squid's access.log",
        "1 line could not be understood",
        "1 line left out: refused as malformed",
    ]
    assert msgspec.json.decode(msgspec.json.encode(found), type=Replay) == found


@pytest.mark.parametrize(
    "lines",
    [
        (),
        (
            allowed("a.test"),
            line("x.test"),
            line("bad.test"),
            line("asked.test", reason="approval_required"),
        ),
        # Another reason for the same decision.
        (line("bad.test"), line("c.test", reason="deny_rule"), line("a.test", 22)),
        (
            allowed("a.test", event="FAILED", reason="dns_nxdomain"),
            line("a.test", reason="draining"),
        ),
        (line("a.test", reason="destination_ip_prohibited"),),
    ],
)
def test_nothing_changes(lines: tuple[str, ...]) -> None:
    found = replayed(*lines)
    assert (found.changes, found.changed) == ((), False)
    assert "no decision changes" in as_text(found)


def test_audit_mode_decides_as_enforce_mode_would() -> None:
    text = f"mode: audit\n{POLICY}"
    found = replayed(allowed("c.test"), line("a.test", event="WOULD_DENY"), text=text)
    assert kinds(found) == [
        "newly_allowed a.test:443 10.20.0.7",
        "newly_denied c.test:443 10.20.0.7",
    ]
    assert found.changes[1].after == "DENIED (host_not_allowed)"


def test_addresses_that_clients_name() -> None:
    found = replayed(
        allowed("203.0.113.7"),
        allowed("a.test", address="203.0.113.7"),
        line("8.8.8.8", reason="destination_ip_prohibited", user="batch"),
        allowed("10.0.0.1"),
    )
    assert kinds(found) == [
        "newly_allowed 8.8.8.8:443 10.20.0.7, user batch",
        "newly_denied 10.0.0.1:443 10.20.0.7",
        "newly_denied 203.0.113.7:443 10.20.0.7",
        "newly_denied a.test:443 10.20.0.7",
    ]


def test_squids_decisions() -> None:
    squid = "1769860800.123     12 10.20.0.7 {} 3900 CONNECT {}:443 - HIER_DIRECT/{} -"
    found = replayed(
        squid.format("TCP_DENIED/403", "a.test", "-"),
        squid.format("TCP_TUNNEL/200", "c.test", "8.8.8.8"),
        squid.format("TCP_TUNNEL/200", "a.test", "8.8.8.8"),
        squid.format("TCP_TUNNEL/200", "a.test", "10.0.0.1"),
        # Why Squid refused is not known, so an `ask` is no change.
        squid.format("TCP_DENIED/403", "asked.test", "-"),
    )
    assert [(change.kind, change.before, change.address) for change in found.changes] == [
        (Kind.NEWLY_ALLOWED, "TCP_DENIED/403", None),
        (Kind.NEWLY_DENIED, "ALLOWED", "10.0.0.1"),
        (Kind.NEWLY_DENIED, "ALLOWED", None),
    ]


def test_the_same_request_stands_once() -> None:
    found = replayed(
        *[allowed("c.test", address=f"8.8.8.{number}") for number in range(9)],
        *[allowed("d.test")] * 10,
    )
    assert [change.requests for change in found.changes] == [10, 9]


def test_policies_that_a_log_says_nothing_about() -> None:
    text = (
        POLICY
        + "  - {name: labelled, subjects: [{pod_labels: {a: b}, namespace: ns}], allow: [a.test]}\n"
    )
    assert replayed(text=text).notes == ()
    found = replayed(allowed("a.test"), text=text)
    assert found.notes == (
        "a log names no pod labels, so these policies are taken to be for none of its clients: labelled",
        "no line of the log names a user, so these policies are taken to be for none of its clients: batch",
        "no line of the log names a namespace, so these policies are taken to be for none of its clients: labelled",
    )
    assert f"note: {found.notes[0]}\n" in as_text(found)
    assert replayed(allowed("a.test", user="batch")).notes == ()


def test_too_many_different_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "MAX_DISTINCT", 2)
    found = replayed(*(allowed(f"h{number}.test") for number in range(5)))
    assert (len(found.changes), found.requests, found.same, found.changed) == (2, 5, 0, True)
    assert found.notes[-1] == (
        "there are more than 2 different requests; 3 requests beyond them left out: read the log in parts"
    )


def test_what_rules_did_not_decide_is_told_apart() -> None:
    found = replayed(
        allowed("a.test"),
        line("a.test", 80, method="POST", path="/", reason="idempotency_key_missing"),
        line("bad.test", reason="request_rate"),
        line("bad.test", reason="byte_budget"),
        line("a.test", reason="bare_lf"),
    )
    assert (found.requests, found.same, found.changes) == (1, 1, ())
    assert found.log.messages() == [
        "1 line left out: refused as malformed",
        "1 line left out: refused for contract headers, not decided by rules",
        "2 lines left out: refused by limits, not decided by rules",
    ]
    assert as_text(found).endswith(
        "\n1 request replayed; no decision changes; 3 more had been refused for contract headers or limits, which is "
        "not decided by rules\n"
    )
