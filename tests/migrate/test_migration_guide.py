"""The guide shows what the command really writes, and names reasons, fields and metrics that exist."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from egress_proxy.core.reasons import REASONS
from egress_proxy.core.record import Record
from egress_proxy.migrate.smokescreen import import_smokescreen
from egress_proxy.migrate.squid import import_squid
from tests.migrate.deciding import policy_of

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "migration.md").read_text(encoding="utf-8")
DATA = Path(__file__).parent / "data" / "guide"
BLOCKS = re.findall(r"^```[a-z]*\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
DASHBOARDS = GUIDE.partition("## What dashboards and alerts become")[2]


def read(name: str) -> str:
    return (DATA / Path(name).name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["squid.conf", "allowed.txt", "acl.yaml"])
def test_the_guide_shows_the_files_before(name: str) -> None:
    assert read(name) in BLOCKS


@pytest.mark.parametrize(
    "imported",
    [
        lambda: import_squid("squid.conf", read("squid.conf"), read),
        lambda: import_smokescreen("acl.yaml", read("acl.yaml")),
    ],
    ids=["squid", "smokescreen"],
)
def test_the_guide_shows_the_files_after(imported: Callable[[], object]) -> None:
    made = imported()
    yaml = getattr(made, "yaml", "")
    assert yaml in BLOCKS, f"the guide must show:\n{yaml}"
    policy_of(yaml)


def test_the_tables_name_what_exists() -> None:
    metrics = (ROOT / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
    named = set(re.findall(r"egress_proxy_[a-z_]+", DASHBOARDS))
    assert named
    assert {name for name in named if f"`{name}`" not in metrics} == set()
    # The last column of the other tables; smokescreen's and Squid's own names stand in the first.
    ours = {
        word
        for line in DASHBOARDS.splitlines()
        if line.startswith("| ")
        for cell in line.strip("|").split("|")[1:]
        for word in re.findall(r"`([a-z_]+)`", cell)
    }
    known = {*REASONS, *Record.__struct_fields__, *re.findall(r"egress_proxy_[a-z_]+", metrics)}
    assert len(ours) > 30
    assert ours - known <= {"decision"}, ours - known


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)", GUIDE):
        assert (ROOT / "docs" / target).exists(), target
