"""How often a proxy calls the kernel."""

from dataclasses import dataclass

from benchmarks.measures.measure import AT_ONCE, Measure, missing_tool, share
from benchmarks.rig import WARM_UP, Rig


@dataclass(frozen=True)
class SystemCallsEach(Measure):
    """For a tunnel, as strace counts them. It slows the proxy, which then does more per wake-up and waits less."""

    count: int

    def missing(self) -> str:
        return missing_tool("strace")

    def run(self, rig: Rig, scale: float) -> list[float]:
        count = share(self.count, rig.peer, scale, at_once=AT_ONCE)
        rig.load("tunnel", WARM_UP, at_once=AT_ONCE)
        with rig.system_calls() as counted:
            rig.load("tunnel", count, at_once=AT_ONCE)
        return [counted[0] / count]
