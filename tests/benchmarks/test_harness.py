"""The harness at the smallest scale, with the relay in C as the proxy: errors are errors, and none is lost."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from benchmarks.bench import Bench, bench
from benchmarks.machine import BenchmarkError
from benchmarks.measures import MEASURES
from benchmarks.peers import PEERS, Site
from benchmarks.peers.relay import Relay
from benchmarks.results import Result
from benchmarks.rig import check, rig, wrk_requests
from benchmarks.turns import measure_once

LOCK = Path(__file__).parents[2] / "benchmarks/peers/requirements.txt"
TINY = 0.005  # of the usual work

needs_a_machine = pytest.mark.skipif(
    not shutil.which("cc") or not shutil.which("setpriv") or len(os.sched_getaffinity(0)) < 2,
    reason="needs a C compiler, setpriv and two cores",
)


class Forgetful(Relay):
    """Works, and does not log what it did."""

    name = "forgetful"

    def command(self, site: Site) -> list[str]:
        return [*super().command(site)[:-1], os.devnull]


@pytest.fixture(scope="module")
def made() -> Iterator[Bench]:
    with bench() as there:
        yield there


def measured(made: Bench, figure: str, peer: Relay) -> list[Result]:
    (measure,) = [m for m in MEASURES if figure in {f.name for f in m.figures}]
    return measure_once(made, measure, peer, 1, TINY)


@pytest.mark.e2e
@needs_a_machine
@pytest.mark.parametrize(
    "figure", ["tunnel", "deny", "down-1", "up-32", "idle", "beside", "p50", "start"]
)
def test_a_figure_is_measured_without_an_error(made: Bench, figure: str) -> None:
    for result in measured(made, figure, Relay()):
        assert not result.error
        assert result.value is not None
        assert result.operations > 0


@pytest.mark.e2e
@needs_a_machine
def test_a_proxy_that_does_not_log_has_no_figure(made: Bench) -> None:
    (result,) = measured(made, "tunnel", Forgetful())
    assert result.value is None
    assert re.fullmatch(r"logged 0 lines for \d+ requests", result.error)


@pytest.mark.e2e
@needs_a_machine
def test_a_wrong_answer_is_an_error(made: Bench) -> None:
    """The relay lets a tunnel through that it should: to who expects a denial that is one."""
    with pytest.raises(BenchmarkError, match=r"10 errors, the first: status: 403"):  # noqa: SIM117 - one is the rig's
        with rig(made, Relay()) as running:
            running.load("tunnel", 10, at_once=2, host="other.test")


def test_what_a_load_reports_is_checked() -> None:
    fine = b'{"finished": 5, "errors": 0, "first_error": ""}'
    assert check(fine, 5)["finished"] == 5
    for line in (b"", fine.replace(b"5", b"4"), fine.replace(b": 0", b": 1")):
        with pytest.raises(BenchmarkError):
            check(line, 5)


def test_what_wrk_reports_is_checked() -> None:
    fine = "  41235 requests in 3.00s, 6.29MB read\nRequests/sec:  13742.14\n"
    assert wrk_requests(fine) == 41235
    for line in (
        "  Socket errors: connect 0, read 3, write 0, timeout 0\n",
        "  Non-2xx or 3xx responses: 41235\n",
    ):
        with pytest.raises(BenchmarkError, match=line.strip()):
            wrk_requests(fine + line)
    with pytest.raises(BenchmarkError, match="no request"):
        wrk_requests("  0 requests in 3.00s, 0B read\n")


def test_figures_and_peers_have_names_of_their_own() -> None:
    figures = [figure.name for measure in MEASURES for figure in measure.figures]
    assert len(figures) == len(set(figures))
    assert len(PEERS) == len({peer.name for peer in PEERS})
    groups = {measure.group for measure in MEASURES}
    for peer in PEERS:
        assert set(peer.cannot) <= groups


def test_the_peers_are_pinned_by_hash_and_name_no_index() -> None:
    text = LOCK.read_text(encoding="utf-8")
    lines = text.replace("\\\n", " ").splitlines()
    entries = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
    for entry in entries:
        requirement, *hashes = entry.split(" --hash=")
        assert str(Requirement(requirement).specifier).startswith("==")
        assert hashes
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64} *", each) for each in hashes)
    assert "://" not in text


def test_system_calls_are_left_out_where_nobody_may_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (measure,) = [m for m in MEASURES if "calls" in {f.name for f in m.figures}]
    strace = tmp_path / "strace"
    strace.write_text("#!/bin/sh\necho 'ptrace: Operation not permitted' >&2\nexit 1\n")
    strace.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert measure.missing() == "strace may not trace: ptrace: Operation not permitted"
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert measure.missing() == "not installed: apt-get install strace"
