"""Rounds of measurements, peers in turn."""

import sys
from collections.abc import Iterator, Sequence

from benchmarks.bench import Bench
from benchmarks.machine import BenchmarkError
from benchmarks.measures import Measure
from benchmarks.peers import Peer
from benchmarks.results import Result
from benchmarks.rig import rig


def measure_all(
    bench: Bench, measures: Sequence[Measure], peers: Sequence[Peer], rounds: int, scale: float
) -> list[Result]:
    """A B C, B C A, … for each measure: those compared run within seconds of each other, and nobody is always first."""
    results: list[Result] = []
    for number in range(1, rounds + 1):
        first = (number - 1) % len(peers)
        for measure in measures:
            for peer in [*peers[first:], *peers[:first]]:
                if measure.group not in peer.cannot:
                    found = measure_once(bench, measure, peer, number, scale)
                    results += found
                    for title, result in zip(measure.figures, found, strict=True):
                        told = f"{result.value:.3g}" if result.value is not None else result.error
                        say(f"round {number}/{rounds}  {title.title:43} {peer.name:10} {told}")
    return results


def measure_once(
    bench: Bench, measure: Measure, peer: Peer, number: int, scale: float
) -> list[Result]:
    try:
        with rig(bench, peer, measure.origin) as made:
            values = measure.run(made, scale)
    except BenchmarkError as error:
        return [Result(number, f.name, peer.name, None, error=str(error)) for f in measure.figures]
    return [
        Result(number, figure.name, peer.name, value, made.requests)
        for figure, value in zip(measure.figures, values, strict=True)
    ]


def present(
    peers: Sequence[Peer], measures: Sequence[Measure]
) -> tuple[list[Peer], list[Measure], list[str]]:
    """What can be measured here, and a sentence for each thing that cannot."""
    left_out: list[str] = []
    can_run: list[Peer] = []
    for peer in peers:
        if reason := peer.missing():
            left_out.append(f"{peer.name}: {reason}")
        else:
            can_run.append(peer)
    can_measure: list[Measure] = []
    for measure in measures:
        if reason := measure.missing():
            left_out.append(f"figure {measure.group}: {reason}")
        else:
            can_measure.append(measure)
    groups = list(dict.fromkeys(measure.group for measure in can_measure))
    for peer in can_run:
        left_out += without(peer, groups)
    for line in left_out:
        say(f"left out: {line}")
    return can_run, can_measure, left_out


def without(peer: Peer, groups: Sequence[str]) -> Iterator[str]:
    """What a peer that is measured does not do, or does less of."""
    for reason in dict.fromkeys(peer.cannot.values()):
        if cannot := [group for group in groups if peer.cannot.get(group) == reason]:
            yield f"{', '.join(cannot)} of {peer.name}: {reason}"
    if peer.share < 1:
        rest = round(100 * (1 - peer.share))
        yield f"{rest} % of the operations of {peer.name}, and idle tunnels beyond 2,000: it is slow"


def say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
