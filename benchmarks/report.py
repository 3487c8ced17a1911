"""Results as Markdown: a table of ratios first, a table of figures, and the facts."""

from collections.abc import Iterator

from benchmarks.results import Results, Spread

SUBJECT = "ours"  # ratios are this one's to each other
ONLY_OURS = "egress-proxy"  # as a reader knows it


def markdown(results: Results) -> str:
    parts = [[*figures(results)], [*notes(results)]]
    if SUBJECT in results.peers and len(results.peers) > 1:
        parts.insert(0, [*ratios(results)])
    return "\n\n".join("\n".join(part) for part in parts)


def ratios(results: Results) -> Iterator[str]:
    """What egress-proxy takes, and as a multiple of what each other takes: below 1 it takes less."""
    others = [peer for peer in results.peers if peer != SUBJECT]
    yield row(["", ONLY_OURS, *(f"to {other}" for other in others)])
    yield row(["---", *("---:" for _ in results.peers)])
    for figure in results.figures:
        if figure.less_is_better:
            cells = [cell(results.ratio(figure.name, SUBJECT, other)) for other in others]
            ours = value(results, figure.name, SUBJECT)
            yield row([f"{figure.title} ({figure.unit})", ours, *cells])


def figures(results: Results) -> Iterator[str]:
    yield row(["", *results.peers])
    yield row(["---", *("---:" for _ in results.peers)])
    for figure in results.figures:
        cells = [value(results, figure.name, peer) for peer in results.peers]
        yield row([f"{figure.title} ({figure.unit})", *cells])


def notes(results: Results) -> Iterator[str]:
    rounds = f"{results.rounds} round" + "s" * (results.rounds > 1)
    yield f"Median (least–most) of {rounds}, proxies in turn; ratios are taken round by round."
    operations = sum(result.operations for result in results.all)
    yield f"{operations:,} operations checked, {len(results.failures())} measurements failed."
    yield ", ".join(f"{peer} {version}" for peer, version in results.versions.items()) + "."
    yield "; ".join(f"{name}: {fact}" for name, fact in results.facts.items()) + "."
    for line in results.left_out:
        yield f"- Left out: {line}"
    for result in results.failures():
        yield f"- FAILED in round {result.round}: {result.figure}, {result.peer}: {result.error}"


def row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def value(results: Results, figure: str, peer: str) -> str:
    return "FAILED" if results.failed(figure, peer) else cell(results.figure(figure, peer))


def cell(spread: Spread | None) -> str:
    if spread is None:
        return "–"
    if spread.low == spread.high:
        return plain(spread.middle)
    return f"{plain(spread.middle)} ({plain(spread.low)}–{plain(spread.high)})"


def plain(number: float) -> str:
    """Three digits: more would be noise."""
    if abs(number) >= 100:
        return f"{number:,.0f}"
    return f"{number:.1f}" if abs(number) >= 10 else f"{number:.2f}"
