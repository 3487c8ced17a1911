"""Memory that open tunnels add: the proxy's own, and the kernel's."""

from dataclasses import dataclass

from benchmarks.machine import slab_kib
from benchmarks.measures.measure import AT_ONCE, Measure, share
from benchmarks.rig import WARM_UP, Rig

AT_LEAST = 2000  # of whom is slow: fewer would fit into what the first ones have left behind


@dataclass(frozen=True)
class MemoryEach(Measure):
    """Of tunnels each of which has carried a few bytes and then rests."""

    count: int

    def run(self, rig: Rig, scale: float) -> list[float]:
        count = max(share(self.count, rig.peer, scale), int(AT_LEAST * scale))
        rig.load("tunnel", WARM_UP, at_once=AT_ONCE)
        before, slab_before = rig.tree.memory_kib(), slab_kib()
        with rig.idle_tunnels(count, at_once=AT_ONCE):
            during, slab_during = rig.tree.memory_kib(), slab_kib()
        return [(during - before) / count, (slab_during - slab_before) / count]
