"""Every guard that docs/security.md claims has the test that it names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
REFERENCES = sorted(set(re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", PAGE)))


@pytest.mark.parametrize(("file", "name"), REFERENCES)
def test_the_attack_is_there(file: str, name: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    assert re.search(
        rf"^(async )?def {name}\(" if name else r"^(async )?def test_", text, re.MULTILINE
    )


def test_every_way_around_has_a_test() -> None:
    table = PAGE.partition("### Ways around an allow-list")[2].partition("###")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 20
    assert [row for row in rows if "`tests/" not in row] == []
