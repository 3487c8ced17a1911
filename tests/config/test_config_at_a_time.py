"""Large files are read, and large policies are let go, a little at a time: with the same outcome as at once."""

from __future__ import annotations

import sys
import weakref
from typing import Any

import pytest

from egress_proxy.config import load as loading
from egress_proxy.config import reload as reloading
from egress_proxy.config.errors import ConfigError
from egress_proxy.config.load import parse
from egress_proxy.config.reload import let_go
from egress_proxy.config.yaml_source import _SLICE

HEAD = "version: 1\npolicies: [{name: one, allow: [a.test]}]\n#"


def padded(length: int) -> str:
    """A configuration of so many characters."""
    return HEAD + "x" * (length - len(HEAD))


@pytest.mark.parametrize("before", range(_SLICE - 2, _SLICE + 2))
class TestWhereSlicesMeet:
    """What is looked for may stand on either side, and what decides about it on the other."""

    def test_a_line_end_of_two_characters(self, before: int) -> None:
        text = padded(before) + "\r\n# more\r\n"
        assert parse(text.encode(), "a.yaml").config.policy.rule_count == 1

    def test_a_lone_carriage_return(self, before: int) -> None:
        with pytest.raises(ConfigError, match=rf"a\.yaml:3:{before - len(HEAD) + 2}.*U\+000D"):
            parse((padded(before) + "\r# more\n").encode(), "a.yaml")

    def test_a_character_that_cannot_be_seen(self, before: int) -> None:
        with pytest.raises(ConfigError, match=r"U\+202E"):
            parse((padded(before) + "\u202e\n").encode(), "a.yaml")

    def test_a_directive(self, before: int) -> None:
        with pytest.raises(ConfigError, match="which is a directive"):
            parse((padded(before) + "\n%TAG\n").encode(), "a.yaml")

    def test_a_percent_sign_within_a_line(self, before: int) -> None:
        text = padded(before) + "%\n"
        assert parse(text.encode(), "a.yaml").config.policy.rule_count == 1


def test_a_carriage_return_at_the_very_end() -> None:
    with pytest.raises(ConfigError, match=r"U\+000D"):
        parse((padded(_SLICE - 1) + "\r").encode(), "a.yaml")


def test_the_event_loop_gets_the_interpreter_back_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a configuration is compiled, and as ever afterwards, whatever came of it."""
    before, during = sys.getswitchinterval(), []
    check_all = loading._check_all

    def look(*given: Any) -> Any:
        during.append(sys.getswitchinterval())
        return check_all(*given)

    monkeypatch.setattr(loading, "_check_all", look)
    parse(HEAD.encode(), "a.yaml")
    with pytest.raises(ConfigError):
        parse(b"nonsense", "a.yaml")
    assert during == pytest.approx([0.0005] * 2)
    assert sys.getswitchinterval() == before


@pytest.mark.parametrize("allowed", ["[a.test, b.test, c.test]", '["@many"]'])
def test_a_policy_is_let_go(monkeypatch: pytest.MonkeyPatch, allowed: str) -> None:
    monkeypatch.setattr(reloading, "_LET_GO", 1)
    text = f"version: 1\nsets: {{many: [x.test, y.test]}}\npolicies: [{{name: one, allow: {allowed}}}]\n"
    if "@" not in allowed:
        text = text.replace("sets: {many: [x.test, y.test]}\n", "")
    held = [parse(text.encode(), "a.yaml").config]
    policy = weakref.ref(held[0].policy)
    let_go(held)
    assert held == []
    assert policy() is None
