"""What is measured: a line for each measure, in the order of the table."""

from benchmarks.measures.cpu import CpuEach, CpuEachTls, CpuEachWrk, CpuPerGib
from benchmarks.measures.growth import CpuEachBesideIdle
from benchmarks.measures.measure import AT_ONCE, Measure, one
from benchmarks.measures.memory import MemoryEach
from benchmarks.measures.system_calls import SystemCallsEach
from benchmarks.measures.wait import AddedLatency, Start
from benchmarks.results import Figure

__all__ = ["AT_ONCE", "MEASURES", "Measure"]

IDLE = (
    Figure("idle", "memory per idle tunnel, 5,000 open", "KiB"),
    Figure("slab", "kernel slab per idle tunnel, all four ends", "KiB"),
)
GROWTH = (
    Figure("beside", "CPU per tunnel, 64 beside 8,500 idle", "µs"),
    Figure("growth", "the same, to 64 alone", "times", less_is_better=False),
)
LATENCY = (
    Figure("p50", "added latency at half load, p50", "µs"),
    Figure("p99", "added latency at half load, p99", "µs"),
    Figure("rate", "tunnels a second at half load", "1/s", less_is_better=False),
    Figure("busy", "core busy at half load", "%", less_is_better=False),
)

MEASURES: tuple[Measure, ...] = (
    CpuEach("tunnel", one("tunnel-1", "CPU per tunnel, 1 open", "µs"), "tunnel", 4_000, 1),
    CpuEach("tunnel", one("tunnel", "CPU per tunnel, 64 open", "µs"), "tunnel", 10_000),
    CpuEach("tunnel", one("tunnel-512", "CPU per tunnel, 512 open", "µs"), "tunnel", 10_000, 512),
    CpuEachBesideIdle("growth", GROWTH, 5_000, 8_500),
    CpuEachTls("tls", one("tls", "CPU per tunnel with TLS in it, 64 open", "µs"), 3_000),
    CpuEach("deny", one("deny", "CPU per denial, 64 open", "µs"), "deny", 20_000),
    CpuEach("get", one("get", "CPU per plain GET, 64 kept alive", "µs"), "get", 20_000),
    CpuEachWrk("wrk", one("wrk", "CPU per plain GET, wrk to nginx", "µs"), 3),
    CpuPerGib("bulk", one("down-1", "CPU per GiB down, 1 tunnel", "s"), "down", 1, 3),
    CpuPerGib("bulk", one("down-32", "CPU per GiB down, 32 tunnels", "s"), "down", 32, 3),
    CpuPerGib("bulk", one("up-1", "CPU per GiB up, 1 tunnel", "s"), "up", 1, 3),
    CpuPerGib("bulk", one("up-32", "CPU per GiB up, 32 tunnels", "s"), "up", 32, 3),
    MemoryEach("idle", IDLE, 5_000),
    AddedLatency("latency", LATENCY, 4),
    Start("start", one("start", "start to first request served", "ms")),
    SystemCallsEach("calls", one("calls", "system calls per tunnel, 64 open", "calls"), 2_000),
)
