"""What a tunnel costs where many others are open."""

from dataclasses import dataclass

from benchmarks.machine import descriptor_limit
from benchmarks.measures.cpu import cpu_seconds
from benchmarks.measures.measure import AT_ONCE, Measure, share
from benchmarks.rig import WARM_UP, Rig


@dataclass(frozen=True)
class CpuEachBesideIdle(Measure):
    """CPU time of a tunnel while many are idle, and how much more that is than in the same process before them."""

    count: int
    idle: int

    def missing(self) -> str:
        # Some are for what else a proxy has open: logs, pipes, kept connections to origins.
        needed = 2 * (self.idle + AT_ONCE) + 1500
        limit = descriptor_limit()
        return "" if limit >= needed else f"{needed} descriptors needed, the limit is {limit}"

    def run(self, rig: Rig, scale: float) -> list[float]:
        count = share(self.count, rig.peer, scale, at_once=AT_ONCE)
        rig.load("tunnel", WARM_UP, at_once=AT_ONCE)
        alone = cpu_seconds(rig, lambda: rig.load("tunnel", count, at_once=AT_ONCE)) / count
        with rig.idle_tunnels(int(self.idle * scale), at_once=AT_ONCE):
            rig.load("tunnel", WARM_UP, at_once=AT_ONCE)
            beside = cpu_seconds(rig, lambda: rig.load("tunnel", count, at_once=AT_ONCE)) / count
        return [beside * 1e6, beside / alone]
