"""`make bench-quick`: fails when egress-proxy has become dear beside Squid or, where that is absent, the floor.

Only ratios of figures that were taken in turn are judged, and no time. The margins are wide: this finds what has
doubled, and not what has grown by a tenth. A figure beyond its margin gets a second, longer hearing before it fails.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks import machine
from benchmarks.bench import Bench, bench
from benchmarks.measures import MEASURES, Measure
from benchmarks.peers import Peer
from benchmarks.peers.ours import Ours
from benchmarks.peers.relay import Relay
from benchmarks.peers.squid import Squid
from benchmarks.results import Results
from benchmarks.turns import measure_all, present, say

SCALE = 0.3  # of the usual work
ROUNDS = 3
SECOND_HEARING = 7  # rounds


@dataclass(frozen=True)
class Margin:
    """The most that egress-proxy's figure may be, as a multiple of Squid's, or of the floor's; none: not compared."""

    figure: str
    squid: float | None
    floor: float | None

    def reference(self, peers: Sequence[str]) -> tuple[str, float] | None:
        if self.squid is not None and "squid" in peers:
            return "squid", self.squid
        return ("relay", self.floor) if self.floor is not None else None


#: Usual ratios stand beside them: to Squid, to the floor.
MARGINS = (
    Margin("tunnel", 1.2, 3.5),  # 0.7, 2.0
    Margin("deny", 0.5, 4.0),  # 0.3, 2.4
    Margin("get", 1.5, None),  # 0.9
    Margin("down-1", 0.9, 2.0),  # 0.45, 1.0
    Margin("down-32", 0.9, 2.5),  # 0.45, 1.0
    Margin("up-1", 0.9, 2.0),  # 0.5, 1.1
    Margin("idle", 0.15, None),  # 0.05; the floor keeps next to nothing
    Margin("calls", None, 1.4),  # 1.1
)


def judge(margin: Margin, results: Results) -> tuple[bool, str]:
    """Whether it holds, and the line that says so."""
    reference = margin.reference(results.peers)
    if reference is None or margin.figure not in {figure.name for figure in results.figures}:
        return True, f"--      {margin.figure}: nothing to compare with here"
    other, at_most = reference
    if wrong := [result for result in results.failures() if result.figure == margin.figure]:
        return False, f"FAILED  {margin.figure}, {wrong[0].peer}: {wrong[0].error}"
    ratio = results.ratio(margin.figure, "ours", other)
    if ratio is None:
        return False, f"FAILED  {margin.figure}: no figure to compare with"
    holds = ratio.middle <= at_most
    verdict = "ok    " if holds else "BROKEN"
    spread = f"{ratio.low:.2f}–{ratio.high:.2f}"
    return (
        holds,
        f"{verdict}  {margin.figure}: {ratio.middle:.2f} ({spread}) of {other}'s, at most {at_most}",
    )


def hear(
    bench: Bench, margin: Margin, measure: Measure, peers: Sequence[Peer], rounds: int
) -> tuple[bool, str]:
    """Measures what one margin needs, and judges."""
    reference = margin.reference([peer.name for peer in peers])
    compared = [peer for peer in peers if reference and peer.name in ("ours", reference[0])]
    results = Results(
        facts={},
        versions={peer.name: "" for peer in compared},
        figures=measure.figures,
        rounds=rounds,
        scale=SCALE,
        left_out=[],
        all=measure_all(bench, [measure], compared, rounds, SCALE) if reference else [],
    )
    return judge(margin, results)


def main() -> int:
    argparse.ArgumentParser(prog="gate", description=__doc__.partition("\n")[0]).parse_args()
    by_figure = {figure.name: measure for measure in MEASURES for figure in measure.figures}
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    verdicts: list[tuple[bool, str]] = []
    try:
        machine.raise_descriptor_limit()
        machine.check_port_reuse()
        wanted = list(dict.fromkeys(by_figure[margin.figure] for margin in MARGINS))
        peers, measures, _ = present([Ours(), Squid(), Relay()], wanted)
        if "ours" not in [peer.name for peer in peers]:
            raise machine.BenchmarkError("there is nothing to judge")
        with bench() as made:
            for margin in MARGINS:
                measure = by_figure[margin.figure]
                if measure not in measures:
                    continue
                verdict = hear(made, margin, measure, peers, ROUNDS)
                if not verdict[0]:
                    say(f"{verdict[1]}: once more, {SECOND_HEARING} rounds")
                    verdict = hear(made, margin, measure, peers, SECOND_HEARING)
                verdicts.append(verdict)
    except machine.BenchmarkError as error:
        say(f"bench-quick: {error}")
        return 2
    except KeyboardInterrupt:
        return 130
    print("\n".join(line for _, line in verdicts))
    return 0 if all(holds for holds, _ in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
