"""What it costs to read a real ClientHello: in one piece, with a name that is new, and in the ways that cost most.

``.venv/bin/python benchmarks/micro/hello.py`` (``--fast`` for a quick look). CPU time of one call, so that other work
on the machine disturbs little. The hellos are those of the tests' corpus.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyperf

from egress_proxy.core.known_hellos import parse_known_hello
from egress_proxy.core.tls import MAX_RECORDS, ClientHello, parse_client_hello
from tests.support.hellos import alpn_extension, handshake_of, message, records

CORPUS = Path(__file__).parents[2] / "tests" / "core" / "data" / "hellos"
LIMIT = 32 * 1024
#: The aim, in microseconds: what a browser's hello in one piece may cost.
AIM = 6.0
#: Names that differ: more than are remembered.
NEW_NAMES = 20_000
#: What is said of one that is like one before.
KNOWN = ", as before"


def hello_of(name: str) -> bytes:
    return (CORPUS / f"{name}.bin").read_bytes()


def new_names(hello: bytes) -> list[bytes]:
    """The hello, each time for another host of the same length."""
    assert hello.count(b"origin.test") == 1
    return [hello.replace(b"origin.test", b"h%05d.test" % number) for number in range(NEW_NAMES)]


def trickled(hello: bytes) -> bytes:
    """In as many tiny records as may be, the last of them missing: read again whenever a byte arrives."""
    tiny = MAX_RECORDS - 1
    return records(handshake_of(hello)[:tiny], [1] * tiny) + b"\x16"


def cases() -> dict[str, list[bytes]]:
    chromium = hello_of("chromium")
    found = {name: [hello_of(name)] for name in ("chromium", "firefox", "go", "curl", "python")}
    return found | {
        f"curl{KNOWN}": [hello_of("curl")],
        "chromium, new name": new_names(chromium),
        "chromium, half of it": [chromium[:1000]],
        "chromium, two records": [records(handshake_of(chromium), [700])],
        "chromium, 63 tiny records": [trickled(chromium)],
        "7,000 extensions": [records(message([(1000 + each, b"") for each in range(7_000)]))],
        "14,000 protocols": [records(message([alpn_extension(*["x"] * 14_000)]))],
    }


Parse = Callable[[bytes, int], ClientHello | None]


def known(hello: bytes, limit: int) -> ClientHello | None:
    return parse_known_hello(hello, limit, "origin.test")


def cpu_seconds(hellos: list[bytes], parse: Parse, loops: int) -> float:
    """The CPU time of so many rounds of all of them."""
    started = time.process_time()
    for _ in range(loops):
        for hello in hellos:
            parse(hello, LIMIT)
    return time.process_time() - started


def main() -> None:
    runner = pyperf.Runner(metadata={"clock": "process_time"})
    found: dict[str, float] = {}
    for name, hellos in cases().items():
        awaited = name.endswith(("half of it", "tiny records"))
        assert isinstance(parse_client_hello(hellos[0], LIMIT), ClientHello) is not awaited
        parse = known if name.endswith(KNOWN) else parse_client_hello
        measured = runner.bench_time_func(
            name, partial(cpu_seconds, hellos, parse), inner_loops=len(hellos)
        )
        if measured is not None and not runner.args.worker:
            found[name] = measured.median() * 1e6
    if found:
        print("\n| ClientHello | bytes | one call |\n|---|---:|---:|")
        for name, microseconds in found.items():
            above = " (above the aim)" if name == "chromium" and microseconds > AIM else ""
            size = len(cases()[name][0])
            print(f"| {name} | {size:,} | {microseconds:,.1f} µs{above} |")


if __name__ == "__main__":
    main()
