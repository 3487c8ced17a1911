"""Results as plots: ``.venv-peers/bin/python -m benchmarks.plots performance.json DIRECTORY``.

It runs in the peers' environment, which has matplotlib, and so may import nothing but `results.py` and `report.py`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from benchmarks.report import plain
from benchmarks.results import Results, read

SUBJECT = "ours"
COLOURS = {SUBJECT: "#c44e52", "relay": "#8c8c8c"}
OTHERS = "#4c72b0"


@dataclass(frozen=True)
class Plot:
    file: str
    title: str
    figures: tuple[str, ...]


PLOTS = (
    Plot("tunnels", "CPU per tunnel", ("tunnel-1", "tunnel", "tunnel-512", "tls")),
    Plot("requests", "CPU per denial and per plain GET", ("deny", "get", "wrk")),
    Plot("bytes", "CPU per GiB", ("down-1", "down-32", "up-1", "up-32")),
    Plot("memory", "Memory per idle tunnel", ("idle", "slab")),
    Plot("waiting", "Added latency at half load, and start", ("p50", "p99", "start")),
)


def draw(results: Results, plot: Plot, directory: Path) -> None:
    """A panel for each figure, and in it a line for each proxy."""
    known = {figure.name: figure for figure in results.figures}
    figures = [known[name] for name in plot.figures if name in known]
    if not figures:
        return
    height = 0.9 + 0.32 * len(results.peers)
    canvas, panels = plt.subplots(
        1, len(figures), figsize=(3.4 * len(figures), height), layout="constrained", squeeze=False
    )
    for panel, figure in zip(panels[0], figures, strict=True):
        points(panel, results, figure.name)
        panel.set_title(f"{figure.title}\n({figure.unit})", fontsize=9)
    canvas.suptitle(f"{plot.title}: less is better", fontsize=10)
    # No date and no version in the file: the same results make the same bytes.
    canvas.savefig(directory / f"{plot.file}.png", dpi=110, metadata={"Software": None})
    plt.close(canvas)


def points(panel: plt.Axes, results: Results, figure: str) -> None:
    """The median with its number, and a line from the least to the most.

    On a logarithmic axis, as the slowest takes fifty times what the quickest does; so points, as a bar would have to
    begin somewhere.
    """
    middles: list[float] = []
    for peer in reversed(results.peers):
        colour = COLOURS.get(peer, OTHERS)
        spread = results.figure(figure, peer)
        if not spread or spread.middle <= 0:
            panel.plot([], [])
            continue
        middles.append(spread.middle)
        panel.plot([max(spread.low, spread.middle / 100), spread.high], [peer, peer], color=colour)
        panel.plot([spread.middle], [peer], "o", color=colour)
        place = {"textcoords": "offset points", "xytext": (0, 5), "ha": "center"}
        panel.annotate(plain(spread.middle), (spread.middle, peer), fontsize=7, **place)
    panel.set_xscale("log")
    panel.set_xmargin(0.15)
    panel.set_ymargin(0.1)
    wide = bool(middles) and max(middles) > 50 * min(middles)
    panel.xaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    panel.tick_params(labelsize=8)
    panel.grid(axis="x", linewidth=0.3)
    panel.spines[["top", "right"]].set_visible(False)


def main(arguments: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("directory", type=Path)
    options = parser.parse_args(arguments and list(arguments))
    mpl.use("Agg")
    options.directory.mkdir(parents=True, exist_ok=True)
    results = read(options.results)
    for plot in PLOTS:
        draw(results, plot, options.directory)


if __name__ == "__main__":
    main()
