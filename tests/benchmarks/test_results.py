"""Ratios are taken within a round, failures are shown, and what was written can be read again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from benchmarks.report import markdown
from benchmarks.results import Figure, Result, Results, Spread, read

RESULTS = Results(
    facts={"kernel": "Linux 6.18"},
    versions={"ours": "1.0", "squid": "5.7"},
    figures=[Figure("tunnel", "CPU per tunnel", "µs"), Figure("rate", "rate", "1/s", False)],
    rounds=3,
    scale=1,
    left_out=["get of relay: it knows CONNECT alone"],
    all=[
        Result(1, "tunnel", "ours", 100.0, 500),
        Result(1, "tunnel", "squid", 200.0, 500),
        Result(2, "tunnel", "squid", 900.0, 500),
        Result(2, "tunnel", "ours", 300.0, 500),
        Result(3, "tunnel", "ours", 110.0, 500),
        Result(3, "tunnel", "squid", 200.0, 500),
        Result(1, "rate", "ours", 2500.0),
    ],
)
BROKEN = replace(RESULTS, all=[*RESULTS.all, Result(4, "tunnel", "squid", None, 0, "closed early")])


def test_a_ratio_is_taken_within_each_round() -> None:
    """The medians alone would say 110/200: a round in which the machine was slow for both would then count for one."""
    assert RESULTS.ratio("tunnel", "ours", "squid") == Spread(0.5, 1 / 3, 0.55)


def test_a_figure_is_the_median_with_the_least_and_the_most() -> None:
    assert RESULTS.figure("tunnel", "ours") == Spread(110.0, 100.0, 300.0)


def test_one_failure_takes_the_whole_figure_away() -> None:
    assert BROKEN.figure("tunnel", "squid") is None
    assert BROKEN.ratio("tunnel", "ours", "squid") is None
    said = markdown(BROKEN)
    assert "FAILED" in said
    assert "- FAILED in round 4: tunnel, squid: closed early" in said


def test_no_ratio_is_made_against_nothing() -> None:
    """Noise may make an added latency 0 or less."""
    flat = replace(RESULTS, all=[Result(1, "p", "ours", 5.0), Result(1, "p", "squid", 0.0)])
    assert flat.ratio("p", "ours", "squid") is None


def test_what_was_written_can_be_read_again(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    BROKEN.write(file)
    assert read(file) == BROKEN


def test_the_tables_have_ratios_first_and_say_what_was_left_out() -> None:
    lines = markdown(RESULTS).splitlines()
    assert lines[0] == "|  | egress-proxy | to squid |"
    assert lines[2] == "| CPU per tunnel (µs) | 110 (100–300) | 0.50 (0.33–0.55) |"
    assert "| CPU per tunnel (µs) | 110 (100–300) | 200 (200–900) |" in lines
    assert "| rate (1/s) | 2,500 | – |" in lines
    assert not any(line.startswith("| rate") for line in lines[:4])  # no ratio of it
    assert "3,000 operations checked, 0 measurements failed." in lines
    assert "- Left out: get of relay: it knows CONNECT alone" in lines
