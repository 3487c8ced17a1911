"""Suggestions about addresses that only the configuration knows as internal, or as IPv4 behind a translator."""

from __future__ import annotations

from pathlib import Path

import pytest

from egress_proxy.history.suggest import Suggestion, suggest
from tests.history.patching import line

POLICY = """\
version: 1
networks: {internal: [11.1.0.0/16], nat64: ["2600:1f00:64::/96"]}
policies:
  - name: everyone
    allow: [github.com]
    deny: [{cidr: 9.9.9.9}]
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def suggested(host: str, address: str | None, text: str = POLICY) -> Suggestion:
    Path("f.yaml").write_text(text)
    return suggest("f.yaml", [line(host, event="WOULD_DENY", address=address)])


@pytest.mark.parametrize(
    ("host", "address", "rule"),
    [
        ("a.test", "11.1.2.3", '{host: a.test, ports: [443], allow_private: ["11.1.2.3/32"]}'),
        ("a.test", "11.2.2.3", "{host: a.test, ports: [443]}"),
        (
            "a.test",
            "2600:1f00:64::a00:1",
            '{host: a.test, ports: [443], allow_private: ["2600:1f00:64::a00:1/128"]}',
        ),
        ("a.test", "2600:1f00:64::808:808", "{host: a.test, ports: [443]}"),
        ("11.1.2.3", None, '{cidr: "11.1.2.3/32", ports: [443]}'),
    ],
)
def test_an_internal_address_is_opened_alone(host: str, address: str | None, rule: str) -> None:
    found = suggested(host, address)
    assert [text for each in found.additions[0].rules for text in each.rule] == [rule]
    assert found.lifted == 1


@pytest.mark.parametrize(
    ("host", "address", "why"),
    [
        ("a.test", "2600:1f00:64::7f00:1", "the machine's own"),
        ("a.test", "2600:1f00:64::a9fe:a9fe", "metadata service"),
        ("a.test", "2600:1f00:64::909:909", "no rule that could be added"),
        # A rule with `cidr` opens nothing behind a translator.
        ("2600:1f00:64::a00:1", None, "no rule that could be added"),
    ],
)
def test_what_no_rule_opens(host: str, address: str | None, why: str) -> None:
    found = suggested(host, address)
    assert (found.diff, found.additions) == ("", ())
    (left,) = found.not_lifted
    assert why in left.why


def test_without_networks_they_are_ordinary() -> None:
    text = POLICY.replace(POLICY.splitlines(keepends=True)[1], "")
    for address in ("11.1.2.3", "2600:1f00:64::7f00:1"):
        found = suggested("a.test", address, text)
        assert [text for each in found.additions[0].rules for text in each.rule] == [
            "{host: a.test, ports: [443]}"
        ]
