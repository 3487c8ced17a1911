"""Rounds of measurements, peers in turn."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median

from benchmarks.machine import BenchmarkError
from benchmarks.measures import Measure
from benchmarks.peers import Peer
from benchmarks.rig import Bench, rig


@dataclass(frozen=True)
class Result:
    round: int
    measure: str
    peer: str
    value: float | None  # none: it failed
    error: str = ""


@dataclass(frozen=True)
class Spread:
    middle: float
    low: float
    high: float


@dataclass(frozen=True)
class Results:
    measures: Sequence[Measure]
    peers: Sequence[Peer]
    all: Sequence[Result]

    def failures(self) -> list[Result]:
        return [result for result in self.all if result.value is None]

    def figure(self, measure: str, peer: str) -> Spread | None:
        return spread(list(self._values(measure, peer).values()))

    def ratio(self, measure: str, peer: str, other: str) -> Spread | None:
        """Within each round first: what drifts slowly has then moved both sides alike."""
        ours, theirs = self._values(measure, peer), self._values(measure, other)
        return spread([ours[r] / theirs[r] for r in ours if theirs.get(r)])

    def as_json(self) -> list[dict[str, object]]:
        return [asdict(result) for result in self.all]

    def _values(self, measure: str, peer: str) -> dict[int, float]:
        """By round, and none at all if any round failed."""
        found = [r for r in self.all if (r.measure, r.peer) == (measure, peer)]
        if any(r.value is None for r in found):
            return {}
        return {r.round: r.value for r in found if r.value is not None}


def spread(values: list[float]) -> Spread | None:
    return Spread(median(values), min(values), max(values)) if values else None


def measure_all(
    bench: Bench, measures: Sequence[Measure], peers: Sequence[Peer], rounds: int, scale: float
) -> Results:
    """A B C, A B C, … for each measure, so that those compared run within seconds of each other."""
    results: list[Result] = []
    for number in range(1, rounds + 1):
        for measure in measures:
            for peer in peers:
                if measure.applies_to(peer):
                    result = measure_once(bench, measure, peer, number, scale)
                    results.append(result)
                    say(f"round {number}/{rounds}  {measure.title:36} {peer.name:8} {told(result)}")
    return Results(measures, peers, results)


def measure_once(bench: Bench, measure: Measure, peer: Peer, number: int, scale: float) -> Result:
    try:
        with rig(bench, peer) as made:
            value = measure.run(made, scale)
    except BenchmarkError as error:
        return Result(number, measure.name, peer.name, None, str(error))
    return Result(number, measure.name, peer.name, value)


def told(result: Result) -> str:
    return f"FAILED: {result.error}" if result.value is None else f"{result.value:.3g}"


def say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
