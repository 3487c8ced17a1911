"""What it costs to charge a request to its tenant, and that a thousand tenants cost each no more than one.

``.venv/bin/python benchmarks/micro/limits.py`` (``--fast`` for a quick look). CPU time of one request: admitted, some
bytes counted, released. The tenants take turns.
"""

from __future__ import annotations

import time
from functools import partial

import pyperf

from egress_proxy.core.limits import Limits
from egress_proxy.core.policy import CompiledPolicy, Place, Policy
from egress_proxy.core.tenant import Charge
from egress_proxy.limits.limiter import Admission, Limiter
from egress_proxy.limits.local import LocalStore

TENANTS = (1, 1_000, 10_000)
HERE = Place("policy.yaml", 1, 1)
LIMITS = Limits(
    requests_per_second=1_000_000,
    tunnels=1_000_000,
    requests_per_day=1_000_000_000,
    bytes_per_day=1 << 50,
    new_hosts_per_hour=100,
)
POLICY = Policy("agents", (), None, HERE, limits=LIMITS)


def limiter() -> Limiter:
    made = Limiter(LocalStore(lambda _near: None), lambda _kind, _policy: None)
    made.adopt(CompiledPolicy((POLICY,)))
    return made


def cpu_seconds(made: Limiter, charges: list[tuple[Charge, ...]], loops: int) -> float:
    """The CPU time of so many rounds of all tenants."""
    started = time.process_time()
    for _ in range(loops):
        for each in charges:
            admission = made.admit(each, "api.example.com", tunnel=True)
            assert isinstance(admission, Admission)
            admission.spend(517, 4096)
            admission.release()
    return time.process_time() - started


def main() -> None:
    runner = pyperf.Runner(metadata={"clock": "process_time"})
    found: dict[int, float] = {}
    for count in TENANTS:
        charges = [(Charge(POLICY, f"tenant-{number}"),) for number in range(count)]
        measured = runner.bench_time_func(
            f"{count:,} tenants", partial(cpu_seconds, limiter(), charges), inner_loops=count
        )
        if measured is not None and not runner.args.worker:
            found[count] = measured.median() * 1e6
    if found:
        print("\n| Tenants | one request | to one tenant |\n|---:|---:|---:|")
        for count, microseconds in found.items():
            print(f"| {count:,} | {microseconds:.1f} µs | {microseconds / found[TENANTS[0]]:.2f} |")


if __name__ == "__main__":
    main()
