"""`make bench ARGS="--quick"`, or `python -m benchmarks --help`."""

import argparse
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks import machine
from benchmarks.bench import bench
from benchmarks.measures import MEASURES
from benchmarks.peers import PEERS
from benchmarks.report import markdown
from benchmarks.results import Results
from benchmarks.turns import measure_all, present, say

QUICK = 0.1  # of the usual work: enough to see that all works, too little to believe the figures


def words(known: list[str]) -> Callable[[str], list[str]]:
    """A comma-separated choice of known words."""

    def parse(text: str) -> list[str]:
        chosen = text.split(",")
        if unknown := [word for word in chosen if word not in known]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not one of {', '.join(known)}")
        return chosen

    return parse


def main() -> int:
    groups = list(dict.fromkeys(measure.group for measure in MEASURES))
    names = [peer.name for peer in PEERS]
    parser = argparse.ArgumentParser(prog="benchmarks", description="CPU and memory, in turn.")
    parser.add_argument("--rounds", type=int, metavar="N", help="default 5, with --quick 1")
    parser.add_argument("--only", type=words(groups), default=groups, metavar=",".join(groups))
    parser.add_argument("--peers", type=words(names), default=names, metavar=",".join(names))
    parser.add_argument("--quick", action="store_true", help="a tenth of the work, one round")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every single result as well")
    options = parser.parse_args()
    rounds = options.rounds or (1 if options.quick else 5)
    scale = QUICK if options.quick else 1.0

    facts = machine.facts()
    # SIGTERM unwinds as Ctrl-C does, so that every process started here ends with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        machine.raise_descriptor_limit()
        machine.check_port_reuse()
        chosen = [peer for peer in PEERS if peer.name in options.peers]
        wanted = [measure for measure in MEASURES if measure.group in options.only]
        peers, measures, left_out = present(chosen, wanted)
        if not peers or not measures:
            raise machine.BenchmarkError("there is nothing to measure")
        with bench(with_nginx=any(measure.origin != "echo" for measure in measures)) as made:
            results = Results(
                facts=facts,
                versions={peer.name: peer.version() for peer in peers},
                figures=[figure for measure in measures for figure in measure.figures],
                rounds=rounds,
                scale=scale,
                left_out=left_out,
                all=measure_all(made, measures, peers, rounds, scale),
            )
    except machine.BenchmarkError as error:
        say(f"benchmarks: {error}")
        return 2
    except KeyboardInterrupt:
        return 130
    print(markdown(results))
    if options.json:
        results.write(options.json)
    return 1 if results.failures() else 0


if __name__ == "__main__":
    sys.exit(main())
