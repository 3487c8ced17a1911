"""Results as a Markdown table."""

from collections.abc import Iterator, Mapping

from benchmarks.results import Results, Spread

SUBJECT = "ours"  # ratios are this one's to each other


def markdown(results: Results, facts: Mapping[str, str], rounds: int) -> str:
    return "\n".join([*table(results), "", *notes(results, facts, rounds)])


def table(results: Results) -> Iterator[str]:
    names = [peer.name for peer in results.peers]
    others = [name for name in names if name != SUBJECT] if SUBJECT in names else []
    yield row(["", *names, *(f"{SUBJECT} / {other}" for other in others)])
    yield row(["---", *("---:" for _ in names + others)])
    failed = {(result.measure, result.peer) for result in results.failures()}
    for measure in results.measures:
        figures = [
            "FAILED" if (measure.name, name) in failed else cell(results.figure(measure.name, name))
            for name in names
        ]
        ratios = [cell(results.ratio(measure.name, SUBJECT, other)) for other in others]
        yield row([f"{measure.title} ({measure.unit})", *figures, *ratios])


def notes(results: Results, facts: Mapping[str, str], rounds: int) -> Iterator[str]:
    yield f"Median (least–most) of rounds in turn, {rounds} in all; ratios are taken round by round."
    versions = ", ".join(f"{peer.name} {peer.version()}" for peer in results.peers)
    yield f"{versions}."
    yield "; ".join(f"{name}: {value}" for name, value in facts.items()) + "."
    for result in results.failures():
        yield f"- FAILED in round {result.round}: {result.measure}, {result.peer}: {result.error}"


def row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def cell(spread: Spread | None) -> str:
    if spread is None:
        return "–"
    return f"{plain(spread.middle)} ({plain(spread.low)}–{plain(spread.high)})"


def plain(value: float) -> str:
    """Three digits: more would be noise."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
