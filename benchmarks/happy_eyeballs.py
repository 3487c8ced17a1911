"""How long the first byte takes where a name has dead or slow addresses: curl alone, and through the proxy.

``python -m benchmarks.happy_eyeballs``, as root: two network namespaces and what is in them live as long as it runs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tests.support.certificates import Authority
from tests.support.curl_times import fetch
from tests.support.dns import Answer, NameServer
from tests.support.namespaces import (
    BLACK_HOLE,
    BLACK_HOLE_6,
    NETWORKS,
    NO_ROUTE_6,
    SLOW_6,
    THERE,
    THERE_6,
    Network,
    long_wire,
    network,
    why_impossible,
)
from tests.support.origin import Origin
from tests.support.proxy import Proxy, configuration, rule, write

PATIENCE = 4  # seconds: what curl has for connecting, and the proxy for one address by default


@dataclass(frozen=True)
class Case:
    name: str
    addresses: tuple[str, ...]
    """In the order in which they are to be tried."""
    round_trip: float = 0.0
    """Of the long wire, in seconds."""


CASES = (
    Case("both families are well", (THERE_6, THERE)),
    Case("no route for IPv6", (NO_ROUTE_6, THERE)),
    Case("IPv6 into a black hole", (BLACK_HOLE_6, THERE)),
    Case("IPv6 takes 100 ms there and back", (SLOW_6, THERE), 0.1),
    Case("IPv6 takes 400 ms there and back", (SLOW_6, THERE), 0.4),
    Case("first of two IPv4 addresses into a black hole", (BLACK_HOLE, THERE)),
)


@contextmanager
def proxy(directory: Path, name_server: NameServer, memory: str) -> Iterator[Proxy]:
    """One with the defaults, but for what it remembers."""
    path = directory / f"memory-{memory}.yaml"
    allow = [rule("origin.test", allow_private=NETWORKS)]
    dial = {"failure_memory": memory}
    write(path, configuration(name_server=name_server.address, allow=allow, dial=dial))
    made = Proxy(path)
    try:
        made.wait_until_listening()
        yield made
        made.stop()
    finally:
        made.dispose()


def first_byte(origin: Origin, through: Proxy | None, case: Case) -> float:
    """Milliseconds."""
    timed = fetch(
        origin.http,
        proxy=through.url if through else "",
        addresses=case.addresses,
        patience=PATIENCE,
    )
    if timed.status != 200:
        sys.exit(f"{case.name}: curl's exit status is {timed.exit}")
    return 1000 * timed.first_byte


def measure(
    case: Case, rounds: int, net: Network, origin: Origin, directory: Path
) -> list[list[float]]:
    """Of curl alone; through the proxy when it knows nothing; and when it remembers."""
    figures: list[list[float]] = [[], [], []]
    with NameServer() as name_server, ExitStack() as stack:
        name_server.set("origin.test", Answer(case.addresses))
        forgetful = stack.enter_context(proxy(directory, name_server, "0s"))
        mindful = stack.enter_context(proxy(directory, name_server, "10m"))
        stack.enter_context(
            long_wire(net, case.round_trip / 2) if case.round_trip else nullcontext()
        )
        # The proxy has a family's addresses take turns at being the first: one of two requests meets the black hole.
        turns = 2 if case.addresses[0] == BLACK_HOLE else 1
        for _ in range(turns):
            for each in (forgetful, mindful):
                first_byte(origin, each, case)  # asks the name server; learns what is dead
        for _ in range(rounds):
            figures[0].append(first_byte(origin, None, case))
            figures[1].append(max(first_byte(origin, forgetful, case) for _ in range(turns)))
            figures[2].append(max(first_byte(origin, mindful, case) for _ in range(turns)))
    return figures


def shown(milliseconds: list[float]) -> str:
    return f"{median(milliseconds):.0f} ({min(milliseconds):.0f}–{max(milliseconds):.0f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    if reason := why_impossible():
        sys.exit(reason)
    print("| Time to first byte (ms) | curl alone | through the proxy | when it remembers |")
    print("|---|---:|---:|---:|")
    with tempfile.TemporaryDirectory(prefix="egress-bench-") as name, network() as net:
        directory = Path(name)
        authority = Authority(directory)
        with net.there.entered():
            origin = Origin(authority.server_context(), host="::")
        try:
            with net.here.entered():
                for case in CASES:
                    figures = measure(case, rounds, net, origin, directory)
                    print(f"| {case.name} | {' | '.join(map(shown, figures))} |", flush=True)
        finally:
            origin.close()


if __name__ == "__main__":
    main()
