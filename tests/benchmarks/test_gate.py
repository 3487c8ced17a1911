"""The gate of `make bench-quick`: what it lets through, and what not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.gate import MARGINS, Margin, judge
from benchmarks.measures import MEASURES
from benchmarks.results import Result
from tests.benchmarks.test_results import BROKEN, RESULTS

WITHOUT_SQUID = replace(
    RESULTS,
    versions={"ours": "1.0", "relay": "c"},
    all=[Result(1, "tunnel", "ours", 100.0), Result(1, "tunnel", "relay", 40.0)],
)


@pytest.mark.parametrize(
    ("margin", "line"),
    [
        (Margin("tunnel", 0.6, None), "ok      tunnel: 0.50 (0.33–0.55) of squid's, at most 0.6"),
        (Margin("tunnel", 0.4, None), "BROKEN  tunnel: 0.50 (0.33–0.55) of squid's, at most 0.4"),
    ],
)
def test_a_margin_holds_the_median_of_the_ratios(margin: Margin, line: str) -> None:
    assert judge(margin, RESULTS) == (line.startswith("ok"), line)


def test_without_squid_the_floor_takes_its_place() -> None:
    assert judge(Margin("tunnel", 0.1, 3), WITHOUT_SQUID)[0]
    holds, line = judge(Margin("tunnel", 3, 2), WITHOUT_SQUID)
    assert not holds
    assert "2.50 (2.50–2.50) of relay's, at most 2" in line


def test_an_error_breaks_any_margin() -> None:
    holds, line = judge(Margin("tunnel", 1000, None), BROKEN)
    assert not holds
    assert line == "FAILED  tunnel, squid: closed early"


def test_a_figure_without_a_partner_is_said_not_to_be_compared() -> None:
    assert judge(Margin("tunnel", 1, None), WITHOUT_SQUID) == (
        True,
        "--      tunnel: nothing to compare with here",
    )


def test_the_margins_are_of_figures_that_are_measured() -> None:
    measured = {figure.name for measure in MEASURES for figure in measure.figures}
    assert {margin.figure for margin in MARGINS} <= measured
