"""`suggest` and `replay` as a person calls them, with the wrong file."""

from __future__ import annotations

from pathlib import Path

import pytest

from egress_proxy.cli import main
from tests.history.patching import line

POLICY = "version: 1\npolicies: [{name: p, allow: [a.test]}]\n"
VERBS = ["replay", "suggest"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("f.yaml").write_text(POLICY)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("content", [b"\x00\xff\x80\n\x1b[2J\n", b"# a page\n", POLICY.encode()])
def test_what_is_no_log_passes_no_gate(
    verb: str, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("log").write_bytes(content)
    assert main([verb, "--config", "f.yaml", "log"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.endswith(
        "egress-proxy: LOG: no line in it is about a request; name audit lines, or Squid's access.log\n"
    )
    assert "\x1b" not in said.err


@pytest.mark.parametrize("verb", VERBS)
def test_a_line_that_is_understood_is_enough(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("log").write_text(f"junk\n{line('b.test')}\n")
    assert main([verb, "--config", "f.yaml", "log"]) == 0
    assert "1 line could not be understood" in capsys.readouterr().err
    # So is an empty log, on a quiet day.
    Path("log").write_bytes(b"")
    assert main([verb, "--config", "f.yaml", "log"]) == 0


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("log", "said"),
    [
        (".", "LOG: .: Is a directory\n"),
        ("none", "LOG: none: No such file or directory\n"),
        ("", "LOG: No such file or directory\n"),
        ("a\x1b[2J", "LOG: a\\x1b[2J: No such file or directory\n"),
    ],
)
def test_a_log_that_cannot_be_read(
    verb: str, log: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([verb, "--config", "f.yaml", log]) == 2
    assert capsys.readouterr().err == f"egress-proxy: {said}"


@pytest.mark.parametrize("verb", VERBS)
def test_the_events_of_the_proxy_are_no_log(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    events = '{"event":"listening","proxy":"127.0.0.1:3128"}\n{"event":"stopped"}\n'
    Path("log").write_text(f"{events}Traceback\n")
    assert main([verb, "--config", "f.yaml", "log"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "egress-proxy: no audit line was in it: 2 lines about other things" in said.err
    # One request between them is enough, and one that was refused as malformed is one.
    for audit in (line("b.test"), '{"event":"DENIED","client":"10.0.0.1","reason":"bare_lf"}'):
        Path("log").write_text(f"{events}{audit}\n")
        assert main([verb, "--config", "f.yaml", "log"]) == 0
        assert "no audit line" not in capsys.readouterr().err
