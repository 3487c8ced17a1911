"""Plain requests of a log, where rules are about their methods and paths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from egress_proxy.config.load import load, parse
from egress_proxy.core.conditions import Asked
from egress_proxy.history.logs import LogReader
from egress_proxy.history.replay import Replay, as_text, replay
from egress_proxy.history.suggest import Suggestion, suggest
from egress_proxy.history.suggest import as_text as suggestion_text
from tests.history.patching import allowed, apply_diff, line

POLICY = """\
version: 1
policies:
  - name: everyone
    allow:
      - {host: api.test, methods: [GET], paths: [/v1/, /status]}
      - {host: read.test, methods: [GET]}
      - {host: paths.test, paths: [/a]}
      - wide.test
    deny:
      - {host: wide.test, paths: [/admin/]}
    ask:
      - {host: wide.test, methods: [DELETE]}
"""


def plain(
    host: str, method: str, path: str | None, reason: str = "host_not_allowed", **more: Any
) -> str:
    return line(host, 80, method=method, path=path, reason=reason, **more)


def let_through(host: str, method: str, path: str | None) -> str:
    return allowed(host, 80, method=method, path=path)


# Lines. -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        (line("a.test"), None),
        (line("a.test", method=None), None),
        (plain("a.test", "GET", "/a"), Asked("GET", b"/a")),
        (plain("a.test", "get", "/a/../%zz"), Asked("get", b"/a/../%zz")),
        # Without a path, no rule with paths can be sure of it.
        (plain("a.test", "GET", None), Asked("GET", b"")),
        (plain("a.test", "OPTIONS", "*"), Asked("OPTIONS", b"*")),
        ("1738324800.123 5 10.0.0.1 TCP_DENIED/403 0 POST http://a.test/b?c - HIER_NONE/- -", Asked("POST", b"/b?c")),
        ("1738324800.123 5 10.0.0.1 TCP_DENIED/403 0 CONNECT a.test:443 - HIER_NONE/- -", None),
        ("1738324800.123 5 10.0.0.1 TCP_MISS/200 9 GET https://a.test/b - HIER_DIRECT/192.0.2.1 -", None),
    ],
)  # fmt: skip
def test_what_a_line_says_was_asked(text: str, asked: Asked | None) -> None:
    (found,) = LogReader([text])
    assert found.asked == asked


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("G ET", "/"),
        ("", "/"),
        (7, "/"),
        ("GET", "/a b"),
        ("GET", ""),
        ("GET", "/\n"),
        ("GET", 7),
        ("GET", "/ü"),
    ],
)
def test_what_is_no_method_and_no_path(method: Any, path: Any) -> None:
    reader = LogReader([plain("a.test", method, path)])
    assert list(reader) == []
    assert reader.summary().not_understood == 1


# Replay. ----------------------------------------------------------------------------------------------------------


def replayed(*lines: str) -> Replay:
    return replay(parse(POLICY.encode(), "f.yaml").config.policy, lines)


def test_nothing_changes() -> None:
    found = replayed(
        let_through("api.test", "GET", "/v1/x"),
        plain("api.test", "PUT", "/v1/x", "method_not_allowed"),
        plain("api.test", "GET", "/v2", "path_not_allowed"),
        line("api.test", reason="connect_not_allowed"),
        plain("wide.test", "GET", "//admin", "deny_rule"),
        plain("wide.test", "DELETE", "/x", "approval_required"),
        let_through("wide.test", "PUT", "/x"),
        allowed("wide.test"),
    )
    assert (found.same, found.changes) == (8, ())


def test_what_changes_is_told_with_its_method_and_path() -> None:
    found = replayed(
        *[let_through("api.test", "PUT", "/v1/x")] * 2,
        plain("api.test", "GET", "/x/../v1/y"),
        allowed("api.test"),
        let_through("wide.test", "GET", "/admin/%2561"),
        plain("other.test", "GET", "/1", "deny_rule"),
        plain("other.test", "GET", "/2", "deny_rule"),
    )
    assert [
        (change.kind, change.destination, change.method, change.path, change.requests)
        for change in found.changes
    ] == [
        ("newly_allowed", "api.test:80", "GET", "/x/../v1/y", 1),
        ("newly_denied", "api.test:80", "PUT", "/v1/x", 2),
        ("newly_denied", "api.test:443", None, None, 1),
        ("newly_denied", "wide.test:80", "GET", "/admin/%2561", 1),
    ]
    assert (
        as_text(found)
        .splitlines()[1]
        .startswith(
            "NEWLY DENIED: PUT /v1/x of api.test:80 for 10.20.0.7: ALLOWED -> DENIED (method_not_allowed), "
            "`allow api.test (GET, /v1/, /status)` of everyone at f.yaml:5:9; 2 requests"
        )
    )


# Suggestions. -----------------------------------------------------------------------------------------------------


def suggested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *lines: str, policy: str = POLICY
) -> Suggestion:
    monkeypatch.chdir(tmp_path)
    Path("f.yaml").write_text(policy)
    return suggest("f.yaml", lines)


def test_the_smallest_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = [
        *(plain("api.test", "GET", "/v2/b", "path_not_allowed"), plain("api.test", "GET", "/v2/a", "path_not_allowed")),
        plain("api.test", "POST", "/v1/x", "method_not_allowed"),
        *(plain("read.test", method, f"/{method}", "method_not_allowed") for method in ("PUT", "POST")),
        plain("paths.test", "PUT", "/b/./c", "path_not_allowed"),
        line("api.test", reason="connect_not_allowed"),
        plain("none.test", "PUT", "/x"),
    ]  # fmt: skip
    found = suggested(tmp_path, monkeypatch, *refused)
    (addition,) = found.additions
    assert [text for rule in addition.rules for text in rule.rule] == [
        '{host: api.test, ports: [80], methods: ["GET"], paths: ["/v2/a", "/v2/b"]}',
        '{host: api.test, ports: [80], methods: ["POST"], paths: ["/v1/x"]}',
        "{host: api.test, ports: [443]}",
        "{host: none.test, ports: [80]}",
        '{host: paths.test, ports: [80], paths: ["/b/c"]}',
        '{host: read.test, ports: [80], methods: ["POST", "PUT"]}',
    ]
    assert (found.unverified, found.lifted) == (None, len(refused))
    apply_diff(found.diff, tmp_path)
    policy = load("f.yaml").config.policy
    assert replay(policy, refused).same == 0
    beside = [
        plain("api.test", "GET", "/v2/c", "path_not_allowed"),
        plain("api.test", "POST", "/v2/a", "path_not_allowed"),
        plain("read.test", "DELETE", "/", "method_not_allowed"),
    ]
    assert replay(policy, beside).same == len(beside)


def test_what_no_rule_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = suggested(
        *(tmp_path, monkeypatch),
        plain("api.test", "GET", "/v2/", "path_not_allowed"),
        plain("api.test", "GET", "/v2%2fa", "path_not_allowed"),
        plain("read.test", "put", "/", "method_not_allowed"),
        plain("wide.test", "delete", "/", "method_not_allowed"),
        plain("wide.test", "GET", "/admin", "deny_rule"),
    )
    assert found.additions == ()
    assert {(each.destination, each.reason, each.why.partition(",")[0]) for each in found.not_lifted} == {
        ("api.test:80", "path_not_allowed", "its path ends in a slash"),
        ("api.test:80", "path_not_allowed", "its path holds an encoded slash or backslash"),
        ("read.test:80", "method_not_allowed", "its method is not in upper case"),
        ("wide.test:80", "method_not_allowed", "some servers would take it for what a rule asks a human about"),
        ("wide.test:80", "deny_rule", "a deny rule beats every rule that could be added"),
    }  # fmt: skip


def test_what_is_allowed_by_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = suggested(
        tmp_path,
        monkeypatch,
        plain("api.test", "GET", "/v1/a"),
        plain("api.test", "GET", "/status"),
    )
    assert (found.refused, found.already_allowed) == (2, 2)


def test_more_paths_than_a_rule_may_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = suggested(
        *(tmp_path, monkeypatch),
        *(plain("paths.test", "GET", f"/{number}", "path_not_allowed") for number in range(150)),
    )
    (rule,) = found.additions[0].rules
    assert [text.count("/") for text in rule.rule] == [100, 50]
    assert found.unverified is None


def test_what_reads_the_same_stands_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = suggested(
        *(tmp_path, monkeypatch),
        plain("wide.test", "GET", "/admin/a", "deny_rule", timestamp="2026-02-01T00:00:00.001Z"),
        plain("wide.test", "GET", "/admin/b", "deny_rule"),
        plain("none.test", "GET", "/"),
        let_through("none.test", "GET", "/a"),
        let_through("none.test", "PUT", "/b"),
    )
    (left,) = found.not_lifted
    assert (left.destination, left.requests, left.last) == (
        "wide.test:80",
        2,
        "2026-02-01T00:00:00Z",
    )
    (also,) = found.also_allowed
    assert (also.destination, also.requests) == ("none.test:80", 2)
    assert suggestion_text(found).count("# Not lifted:") == 1


def test_what_a_rule_for_a_tunnel_opens_besides_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = suggested(
        *(tmp_path, monkeypatch),
        line("read.test", reason="connect_not_allowed"),
        line("read.test", reason="connect_not_allowed", client="10.0.0.9"),
        line("none.test"),
    )
    (said,) = found.besides
    assert said.startswith("No rule is for tunnels alone: the one to add lets plain HTTP requests")
    assert "`allow read.test (GET)` at f.yaml:6:9" in said
    assert f"# {said}\n" in suggestion_text(found)


def test_what_the_neighbour_opens_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = "read.test, methods: [GET]"
    inside = POLICY.replace(methods, f"{methods}, allow_private: [10.1.0.0/16]")
    put = plain("read.test", "PUT", "/", "method_not_allowed")
    found = suggested(tmp_path, monkeypatch, put, policy=inside)
    assert found.additions[0].rules[0].rule == [
        '{host: read.test, ports: [80], methods: ["PUT"], allow_private: ["10.1.0.0/16"]}'
    ]
    # In audit mode the line names the address. Of a public one, nothing needs to be opened.
    for address, opened in (
        ("10.1.0.9", ', allow_private: ["10.1.0.9/32"]'),
        ("93.184.215.14", ""),
    ):
        would = plain(
            *("read.test", "PUT", "/", "method_not_allowed"), event="WOULD_DENY", address=address
        )
        (addition,) = suggested(tmp_path, monkeypatch, would, policy=inside).additions
        assert addition.rules[0].rule == [
            f'{{host: read.test, ports: [80], methods: ["PUT"]{opened}}}'
        ]


LOOPBACK = """\
version: 1
policies:
  - name: p
    allow:
      - {host: api.test, ports: [18080], methods: [GET], paths: [/v1/]}
      - {host: out.test, ports: [80], methods: [GET], paths: [/v1/]}
"""
TUNNEL = line("api.test", 18080, reason="connect_not_allowed")
NARROW = [
    line("api.test", 18080, method="GET", path="/v2/x", reason="path_not_allowed"),
    line("api.test", 18080, method="PUT", path="/v1/x", reason="method_not_allowed"),
]


@pytest.mark.parametrize("lines", [[TUNNEL, *NARROW], [*NARROW, TUNNEL]])
def test_a_rule_for_a_tunnel_does_not_swallow_narrower_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:
    found = suggested(tmp_path, monkeypatch, *lines, policy=LOOPBACK)
    (addition,) = found.additions
    assert [text for rule in addition.rules for text in rule.rule] == [
        '{host: api.test, ports: [18080], methods: ["GET"], paths: ["/v2/x"]}',
        '{host: api.test, ports: [18080], methods: ["PUT"], paths: ["/v1/x"]}',
    ]
    assert (found.lifted, found.unverified, found.warnings) == (2, None, ())
    (left,) = found.not_lifted
    assert (left.destination, left.reason) == ("api.test:18080", "connect_not_allowed")
    assert "`{host: api.test, ports: [18080]}` would let plain HTTP requests" in left.why
    apply_diff(found.diff, tmp_path)
    # No more than was asked for is open.
    beside = line("api.test", 18080, method="DELETE", path="/v2/x", reason="method_not_allowed")
    assert replay(load("f.yaml").config.policy, [TUNNEL, beside]).changes == ()


def test_a_tunnel_on_another_port_or_of_another_host_has_its_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = [
        line("api.test", 443, reason="port_not_allowed"),
        line("out.test", 80, reason="connect_not_allowed"),
    ]
    found = suggested(tmp_path, monkeypatch, *NARROW, *others, policy=LOOPBACK)
    assert (found.lifted, found.not_lifted) == (4, ())


def test_another_port_does_not_widen_what_may_be_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    get = line("out.test", 8080, method="GET", path="/v1/x", reason="port_not_allowed")
    tunnel = line("out.test", 8080, reason="port_not_allowed")
    found = suggested(tmp_path, monkeypatch, tunnel, get, policy=LOOPBACK)
    (addition,) = found.additions
    assert addition.rules[0].rule == [
        '{host: out.test, ports: [8080], methods: ["GET"], paths: ["/v1/x"]}'
    ]
    assert [left.reason for left in found.not_lifted] == ["port_not_allowed"]


@pytest.mark.parametrize(
    ("lines", "counts", "said"),
    [
        ([TUNNEL], (0, 1), "1 rule would let 1 of them through, unless the host's address is one that no"),
        (NARROW, (0, 2), "2 rules would let 2 of them through, unless"),
        ([*NARROW, line("none.test")], (1, 2), "3 rules would let 1 of them through and 2 more, unless"),
        # Where the address is known, it is not in the way.
        ([line("api.test", 18080, event="WOULD_DENY", reason="connect_not_allowed", address="93.184.215.14")],
         (1, 0), "1 rule would let 1 of them through.\n"),
    ],
)  # fmt: skip
def test_what_stays_closed_is_not_said_to_be_let_through(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lines: list[str],
    counts: tuple[int, int],
    said: str,
) -> None:
    policy = LOOPBACK.replace("[18080],", "[18080], allow_private: [127.0.0.0/8],")
    found = suggested(tmp_path, monkeypatch, *lines, policy=policy)
    assert (found.lifted, found.perhaps_closed) == counts
    assert said in suggestion_text(found)
    closed = [note for note in found.besides if "opens 127.0.0.0/8, which no suggestion" in note]
    assert len(closed) == (counts[1] > 0)
    tunnels = [note for note in found.besides if note.startswith("No rule is for tunnels alone")]
    assert len(tunnels) == (TUNNEL in lines or counts == (1, 0))
