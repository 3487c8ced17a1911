"""docs/performance.md shows what a run has found, and nothing else."""

from __future__ import annotations

import pytest

from benchmarks.publish import BEGIN, DATA, END, PAGE, plots, with_tables
from benchmarks.results import read
from tests.benchmarks.test_results import RESULTS


def test_the_page_has_the_tables_and_plots_of_the_committed_run() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page.count(BEGIN) == page.count(END) == 1
    assert page == with_tables(page, read(DATA), plots())


def test_tables_and_plots_take_the_place_of_those_before() -> None:
    once = with_tables(f"above\n{BEGIN}{END}below\n", RESULTS, ["bytes", "memory"])
    assert once.startswith(f"above\n{BEGIN}\n|  | egress-proxy |")
    assert once.endswith(f"\n![A plot: memory](performance/memory.png)\n{END}below\n")
    assert with_tables(once, RESULTS, ["bytes", "memory"]) == once


@pytest.mark.parametrize("page", ["nothing", BEGIN, END])
def test_a_page_without_marks_is_left_alone(page: str) -> None:
    with pytest.raises(ValueError, match="marks"):
        with_tables(page, RESULTS, [])
