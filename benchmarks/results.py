"""What a run has found, to the last single value; medians and ratios of it; as JSON and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Figure:
    """One line of the table."""

    name: str
    title: str
    unit: str
    less_is_better: bool = True  # False: it only explains another, and no ratio is made of it


@dataclass(frozen=True)
class Result:
    round: int
    figure: str
    peer: str
    value: float | None  # none: it failed
    operations: int = 0  # each of which was checked
    error: str = ""


@dataclass(frozen=True)
class Spread:
    middle: float
    low: float
    high: float


@dataclass(frozen=True)
class Results:
    facts: Mapping[str, str]
    versions: Mapping[str, str]  # by peer, in the order of the table
    figures: Sequence[Figure]
    rounds: int
    scale: float
    left_out: Sequence[str]  # what was not measured, and why: a sentence each
    all: Sequence[Result]

    @property
    def peers(self) -> list[str]:
        return list(self.versions)

    def failures(self) -> list[Result]:
        return [result for result in self.all if result.value is None]

    def failed(self, figure: str, peer: str) -> bool:
        return any((r.figure, r.peer) == (figure, peer) for r in self.failures())

    def figure(self, figure: str, peer: str) -> Spread | None:
        return spread(list(self._values(figure, peer).values()))

    def ratio(self, figure: str, peer: str, other: str) -> Spread | None:
        """Within each round first: what drifts slowly has then moved both sides alike."""
        ours, theirs = self._values(figure, peer), self._values(figure, other)
        # Nothing can be said against nothing, nor against what noise has made negative.
        return spread([ours[r] / theirs[r] for r in ours if theirs.get(r, 0) > 0])

    def write(self, file: Path) -> None:
        """A line for each single value, so that two runs can be compared with diff."""
        head = {
            "facts": dict(self.facts),
            "versions": dict(self.versions),
            "figures": [asdict(figure) for figure in self.figures],
            "rounds": self.rounds,
            "scale": self.scale,
            "left_out": list(self.left_out),
        }
        text = json.dumps(head, indent=1, ensure_ascii=False).removesuffix("\n}")
        lines = ",\n".join(f"  {json.dumps(asdict(r), ensure_ascii=False)}" for r in self.all)
        file.write_text(f'{text},\n "results": [\n{lines}\n ]\n}}\n', encoding="utf-8")

    def _values(self, figure: str, peer: str) -> dict[int, float]:
        """By round, and none at all if any round failed."""
        found = [r for r in self.all if (r.figure, r.peer) == (figure, peer)]
        if any(r.value is None for r in found):
            return {}
        return {r.round: r.value for r in found if r.value is not None}


def read(file: Path) -> Results:
    """What `Results.write` wrote."""
    document: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return Results(
        facts=document["facts"],
        versions=document["versions"],
        figures=[Figure(**figure) for figure in document["figures"]],
        rounds=document["rounds"],
        scale=document["scale"],
        left_out=document["left_out"],
        all=[Result(**result) for result in document["results"]],
    )


def spread(values: list[float]) -> Spread | None:
    return Spread(median(values), min(values), max(values)) if values else None
