"""Puts a run into `docs/`: its JSON, its plots, and its tables between the two marks in performance.md.

``python -m benchmarks.publish result.json``. A test holds the page equal to the JSON, so a figure that nobody measured
cannot be written into the tables.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.peers import environment
from benchmarks.report import markdown
from benchmarks.results import Results, read

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "performance.md"
DATA = DOCS / "performance.json"
PLOTS = DOCS / "performance"
BEGIN = "<!-- What stands here is written by benchmarks.publish, from performance.json. -->\n"
END = "<!-- Until here. -->\n"


def plots() -> list[str]:
    return sorted(path.stem for path in PLOTS.glob("*.png"))


def with_tables(page: str, results: Results, plots: Sequence[str]) -> str:
    """The page, with the tables and plots of these results in place of what it had."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE.name} has lost its marks")
    shown = "".join(f"![A plot: {plot}]({PLOTS.name}/{plot}.png)\n" for plot in plots)
    return f"{before}{BEGIN}\n{markdown(results)}\n\n{shown}{END}{after}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("result", type=Path, help="what `make bench ARGS='--json FILE'` wrote")
    results = read(parser.parse_args().result)
    if results.failures() or results.scale != 1:
        sys.exit("not a whole run: something failed, or it was a --quick one")
    if not (python := environment.executable("python")):
        sys.exit(f"no matplotlib for the plots: {environment.ABSENT}")
    results.write(DATA)
    command = [python, "-m", "benchmarks.plots", str(DATA), str(PLOTS)]
    subprocess.run(command, check=True, cwd=DOCS.parent)
    page = with_tables(PAGE.read_text(encoding="utf-8"), results, plots())
    PAGE.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
