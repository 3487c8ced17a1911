"""How long a configuration of a million hosts takes to load, and how much memory at most.

``.venv/bin/python benchmarks/micro/load.py [--count N] [--only text,short,long]``. Each form is loaded in a process of
its own, so that its peak is its own. The time is CPU time; the files are made in a temporary directory.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

HEAD = "version: 1\n"
POLICY = "policies:\n  - name: everyone\n    allow:\n"


def text(count: int, directory: Path) -> None:
    """A set in a plain text file, used by one rule."""
    _write(directory / "hosts.txt", (f"h{number}.example.org\n" for number in range(count)))
    config = [HEAD, "sets:\n  hosts: {file: hosts.txt}\n", POLICY, '      - "@hosts"\n']
    _write(directory / "policy.yaml", iter(config))


def short(count: int, directory: Path) -> None:
    """A YAML list of hosts."""
    _write(directory / "policy.yaml", _rules(count, "      - h{}.example.org\n"))


def long(count: int, directory: Path) -> None:
    """A YAML list of rules that say more than the host."""
    form = "      - {{host: h{}.example.org, ports: [443]}}\n"
    _write(directory / "policy.yaml", _rules(count, form))


FORMS = {
    "text": (text, "a text file of hosts"),
    "short": (short, "YAML, `- host`"),
    "long": (long, "YAML, `- {host: …, ports: [443]}`"),
}


def _rules(count: int, form: str) -> Iterator[str]:
    yield HEAD + POLICY
    for number in range(count):
        yield form.format(number)


def _write(path: Path, lines: Iterator[str]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(lines)


def measure(path: str) -> dict[str, float]:
    """Load the file in this process."""
    from egress_proxy.config.load import load

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started, cpu_started = time.perf_counter(), time.process_time()
    loaded = load(path)
    return {
        "cpu": time.process_time() - cpu_started,
        "wall": time.perf_counter() - started,
        "before": before,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "rules": loaded.config.policy.rule_count,
        "warnings": len(loaded.warnings),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000, metavar="N")
    parser.add_argument("--only", default=",".join(FORMS), metavar=",".join(FORMS))
    parser.add_argument("--load", metavar="FILE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load:
        print(json.dumps(measure(options.load)))
        return 0
    print("| | file | CPU | elapsed | peak | of which before |\n|---|---:|---:|---:|---:|---:|")
    for name in options.only.split(","):
        make, title = FORMS[name]
        with tempfile.TemporaryDirectory(prefix="egress-proxy-load-") as made:
            make(options.count, Path(made))
            size = sum(file.stat().st_size for file in Path(made).iterdir())
            # This process stays small: the peak that a child is told starts with what its parent had (getrusage(2)).
            command = [sys.executable, __file__, "--load", f"{made}/policy.yaml"]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
        found = json.loads(output)
        if found["rules"] != options.count:
            print(f"{found['rules']} rules instead of {options.count}", file=sys.stderr)
            return 1
        print(
            f"| {title} | {size / 2**20:.0f} MiB | {found['cpu']:.1f} s | {found['wall']:.1f} s "
            f"| {found['peak'] / 2**10:,.0f} MiB | {found['before'] / 2**10:.0f} MiB |",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
