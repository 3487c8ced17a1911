"""Requests that went, or would go, through a parent proxy: the addresses in their lines are not the destination's."""

from __future__ import annotations

from pathlib import Path

import pytest

from egress_proxy.config.load import parse
from egress_proxy.history.logs import LogReader
from egress_proxy.history.replay import replay
from egress_proxy.history.suggest import suggest
from tests.history.patching import allowed, line

POLICY = "version: 1\npolicies: [{name: p, allow: [a.test, {host: b.test, upstream: direct}]}]\n"
PARENT = 'upstream: {proxy: "http://parent.test:3128"}\n'


def decided(text: str, *lines: str) -> list[str]:
    found = replay(parse(text.encode(), "f.yaml").config.policy, lines)
    return [f"{change.destination}: {change.before} -> {change.after}" for change in found.changes]


def test_the_address_of_a_parent_is_not_the_destination_s() -> None:
    lines = [allowed("a.test", address="10.0.0.1", parent="parent.test:3128")]
    (request,) = LogReader(lines)
    assert request.address is None
    assert decided(POLICY, *lines) == []
    # As against what was reached directly.
    assert decided(POLICY, allowed("a.test", address="10.0.0.1")) == [
        "a.test:443: ALLOWED -> DENIED (destination_ip_prohibited)"
    ]


def test_behind_a_parent_the_address_of_a_name_decides_nothing() -> None:
    lines = [allowed(host, address="10.0.0.1") for host in ("a.test", "b.test")]
    assert decided(POLICY + PARENT, *lines) == [
        "b.test:443: ALLOWED -> DENIED (destination_ip_prohibited)"
    ]


def test_what_was_refused_for_its_address_goes_through_a_parent() -> None:
    """Whether the log names the address or not."""
    for address in (None, "10.0.0.1"):
        refused = line("a.test", reason="destination_ip_prohibited", address=address)
        assert decided(POLICY + PARENT, refused) == [
            "a.test:443: DENIED (destination_ip_prohibited) -> ALLOWED"
        ]


def test_no_private_network_is_suggested_for_a_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [
        line("c.test", event="WOULD_DENY", address="10.0.0.1", parent="parent.test:3128"),
        line("d.test", event="WOULD_DENY", address="10.0.0.1"),
    ]
    for text, networks in ((POLICY, 1), (POLICY + PARENT, 0)):
        Path("f.yaml").write_text(text)
        found = suggest("f.yaml", lines)
        added = [entry for each in found.additions for rule in each.rules for entry in rule.rule]
        assert sorted(entry.count("allow_private") for entry in added) == sorted([0, networks])
