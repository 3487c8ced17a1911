"""How long a client waits: for a tunnel at a fixed load, and for a proxy that was just started."""

from dataclasses import dataclass

from benchmarks.measures.cpu import cpu_seconds
from benchmarks.measures.measure import AT_ONCE, Measure, share
from benchmarks.rig import WARM_UP, Rig

#: Of the proxy's core. A proxy that is busier than that has no room for a neighbour's burst.
LOAD = 0.5
#: Tunnels a second beyond which the load generator's own core would be too busy to be exact.
AT_MOST = 2500
OPEN_AT_MOST = 4096
CALIBRATION = 3000  # tunnels from which the rate is found ...
FEW = 4  # ... so many at a time, as at half load: with more, one costs less


@dataclass(frozen=True)
class AddedLatency(Measure):
    """Of a whole tunnel at half load, less what it takes without a proxy at the same rate: p50, p99.

    Then what explains them: the rate, and how busy the proxy's core was in truth (%).
    """

    seconds: float

    def run(self, rig: Rig, scale: float) -> list[float]:
        rig.load("tunnel", WARM_UP, at_once=AT_ONCE)
        count = share(CALIBRATION, rig.peer, scale, at_once=AT_ONCE)
        used = cpu_seconds(rig, lambda: rig.load("tunnel", count, at_once=FEW))
        rate = min(LOAD / (used / count), AT_MOST)
        count = max(int(rate * self.seconds * scale), 100)
        without = rig.load_directly("tunnel", count, at_once=OPEN_AT_MOST, rate=rate)
        before = rig.tree.cpu_seconds()
        through = rig.load("tunnel", count, at_once=OPEN_AT_MOST, rate=rate)
        busy = (rig.tree.cpu_seconds() - before) / through["seconds"]
        added = [(through[p] - without[p]) * 1e6 for p in ("p50", "p99")]
        return [*added, rate, busy * 100]


@dataclass(frozen=True)
class Start(Measure):
    """From the start of the process to the answer to its first request."""

    def run(self, rig: Rig, scale: float) -> list[float]:
        return [rig.served_after * 1000]
