"""`egress-proxy errors`: the table as a person, a program and a reader of the page see it."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

from egress_proxy.cli import main
from egress_proxy.core.error_table import as_text, rows
from egress_proxy.core.reason import MEANINGS, Code
from egress_proxy.core.reasons import REASONS

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"

#: In the order in which a request can meet them.
CODES = [
    *("POLICY_BLOCKED", "FORBIDDEN", "UNAUTHORIZED", "SCHEMA_VALIDATION_FAILED"),
    *("RATE_LIMIT_EXCEEDED", "BUDGET_EXCEEDED", "HITL_REQUIRED", "CONFLICT", "RETRY_LATER"),
    "INVARIANT_VIOLATION",
]


def test_there_are_ten_codes_and_each_has_a_reason_and_a_meaning() -> None:
    assert [code.value for code in Code] == CODES
    assert [*MEANINGS] == [*Code]
    assert {row.code for row in REASONS.values()} == set(Code)


def test_every_reason_is_a_row_in_the_order_of_the_codes() -> None:
    table = rows()
    assert {row.reason for row in table} == REASONS.keys()
    assert len(table) == len(REASONS)
    found = [row.code for row in table]
    assert found == sorted(found, key=CODES.index)
    for row in table:
        reason = REASONS[row.reason]
        assert (row.status, row.proxy_status) == (reason.status, reason.proxy_status)
        assert row.retry == (reason.retry_after is not None)
        assert (row.message, row.advice) == (reason.message, reason.advice)


def test_the_seconds_of_a_limit_are_the_answer_s_to_say() -> None:
    told = {row.reason: row.retry_after for row in rows()}
    assert told["dns_nxdomain"] == 30
    assert told["host_not_allowed"] is None
    for code in (Code.RATE_LIMIT_EXCEEDED, Code.BUDGET_EXCEEDED):
        for row in rows(code):
            assert row.retry
            assert row.retry_after is None
            assert "when it says" in as_text((row,))


def test_a_line_is_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["errors"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    columns = ["CODE", "REASON", "STATUS", "PROXY-STATUS", "RETRY", "WHAT TO DO"]
    starts = [head.index(column) for column in columns]
    assert len(lines) == len(REASONS)
    for line, row in zip(lines, rows(), strict=True):
        cells = [
            line[start:end].strip() for start, end in zip(starts, [*starts[1:], None], strict=True)
        ]
        assert cells[:4] == [row.code, row.reason, str(row.status), row.proxy_status]
        assert (cells[4] == "no") == (not row.retry)
        assert cells[5] == row.advice


def test_json_is_the_whole_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["errors", "--format", "json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert len(table) == len(REASONS)
    assert set(table[0]) == {
        *("code", "reason", "status", "proxy_status", "retry", "retry_after"),
        *("message", "advice", "docs"),
    }
    by_name = {row["reason"]: row for row in table}
    assert by_name["dns_timeout"]["retry_after"] == 5
    assert by_name["deny_rule"]["docs"] == "docs/reference/reasons.md#deny_rule"


def test_one_reason_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["errors", "connection_refused"]) == 0
    assert capsys.readouterr().out == (
        "connection_refused: The destination refused the connection.\n"
        "  code:         RETRY_LATER: Allowed, and not possible at the moment. Send the same again after "
        "`Retry-After`.\n"
        "  status:       502\n"
        "  Proxy-Status: error=connection_refused\n"
        "  retry:        yes, after 5 s\n"
        "  what to do:   Retry later.\n"
    )
    assert main(["errors", "deny_rule"]) == 0
    assert "  retry:        no\n" in capsys.readouterr().out


def test_a_code_stands_for_its_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["errors", "CONFLICT"]) == 0
    assert "\nCONFLICT  idempotency_key_reused" in capsys.readouterr().out
    assert main(["errors", "UNAUTHORIZED", "--format", "json"]) == 0
    found = {row["status"] for row in json.loads(capsys.readouterr().out)}
    assert found == {401, 407}


def test_a_status_stands_for_its_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    """It is what a person sees first, and a program in the end."""
    assert main(["errors", "429"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.startswith("CODE ")
    assert {line.split()[1] for line in lines} == {
        row.name for row in REASONS.values() if row.status == 429
    }
    assert len(lines) > 1
    assert main(["errors", "409", "--format", "json"]) == 0
    assert [row["reason"] for row in json.loads(capsys.readouterr().out)] == [
        "idempotency_key_reused"
    ]


@pytest.mark.parametrize("status", ["418", "42", "4290", "0429", "-429", "٤٢٩"])
def test_what_is_no_status_of_an_error(status: str) -> None:
    assert rows(status) == ()


def test_the_likeliest_cause_of_a_refused_path_comes_first() -> None:
    advice = REASONS["path_not_allowed"].advice
    assert 0 < advice.index("not among those") < advice.index("plainest form")


@pytest.mark.parametrize("name", ["Deny_Rule", "DENY_RULE", "conflict", "Conflict", "CoNfLiCt"])
def test_a_name_may_be_in_any_case(capsys: pytest.CaptureFixture[str], name: str) -> None:
    plain = "deny_rule" if "_" in name else "CONFLICT"
    assert main(["errors", plain]) == 0
    expected = capsys.readouterr().out
    assert main(["errors", name]) == 0
    assert capsys.readouterr().out == expected


def test_no_reason_is_a_code_in_another_case() -> None:
    assert not {code.lower() for code in CODES} & {name.lower() for name in REASONS}


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("idempotency_key", "did you mean idempotency_key_"),
        ("Host-Not-Alowed", "did you mean host_not_allowed?"),
        ("policy_bloked", "did you mean POLICY_BLOCKED?"),
        ("", "shows them all"),
        ("\x1b[31m" * 1000, "shows them all"),
    ],
)
def test_what_is_no_name(capsys: pytest.CaptureFixture[str], name: str, hint: str) -> None:
    assert main(["errors", name]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert hint in said.err
    assert said.err.startswith(
        "egress-proxy errors: REASON: no reason, code or status has this name"
    )
    assert "\x1b" not in said.err


def test_the_page_of_errors_is_the_table() -> None:
    """After a change: `python docs/reference/generate.py`."""
    page = runpy.run_path(str(REFERENCE / "generate.py"))["errors_page"]()
    assert page == (REFERENCE / "errors.md").read_text(encoding="utf-8")
    for name in REASONS:
        assert page.count(f"reasons.md#{name})") == 1
