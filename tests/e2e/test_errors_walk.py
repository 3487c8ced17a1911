"""The walk through all error codes (docs/errors-walk.md) says what happens, and leaves no code out.

When it is behind: `.venv/bin/python -m tests.support.walk`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from egress_proxy.core.error_table import rows
from egress_proxy.core.reason import Code
from tests.support.clients import need
from tests.support.walk import PAGE, walked

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(60)]

TEXT = PAGE.read_text(encoding="utf-8")
#: What the page shows beneath each code.
SECTIONS = dict(re.findall(r"^## ([A-Z_]+)\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL))


def test_every_code_is_on_the_page_in_their_order() -> None:
    assert [*SECTIONS] == [*Code]


def test_the_page_shows_what_happens(tmp_path: Path) -> None:
    need("curl")
    assert walked(TEXT, tmp_path).splitlines() == TEXT.splitlines()


@pytest.mark.parametrize("code", SECTIONS)
def test_a_section_is_about_its_code(code: str) -> None:
    """Answers as they stand there, read as a client reads them."""
    answers = re.findall(
        r"^HTTP/1\.1 (\d+) .*\n((?:[\w-]+: .*\n)+)\n(\{.*\})$", SECTIONS[code], re.MULTILINE
    )
    found = []
    for status, head, body in answers:
        fields = dict(line.split(": ", 1) for line in head.splitlines())
        error = json.loads(body)["error"]
        if "X-Egress-Error" not in fields:
            continue
        assert fields["X-Egress-Error"] == error["code"]
        (row,) = rows(error["reason"])
        assert (int(status), row.code) == (row.status, error["code"])
        assert f"error={row.proxy_status};" in fields["Proxy-Status"]
        assert ("Retry-After" in fields) == error["retry"] == row.retry
        if row.retry_after is not None:
            assert fields["Retry-After"] == str(row.retry_after)
        assert error["request_id"] == "…"
        found.append(error["code"])
    assert set(found) == {code}


def test_a_walk_that_went_wrong_is_noticed(tmp_path: Path) -> None:
    """It compares with what it has just seen, not with the page."""
    need("curl")
    start = TEXT.partition("## FORBIDDEN")[0]
    wrong = start.replace("X-Egress-Error: POLICY_BLOCKED", "X-Egress-Error: SOMETHING_ELSE")
    assert wrong != start
    assert walked(wrong, tmp_path) == start
