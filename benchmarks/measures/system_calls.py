"""How often a proxy calls the kernel."""

import os
import subprocess
from dataclasses import dataclass

from benchmarks.measures.measure import AT_ONCE, Measure, missing_tool, share
from benchmarks.rig import WARM_UP, Rig


@dataclass(frozen=True)
class SystemCallsEach(Measure):
    """For a tunnel, as strace counts them. It slows the proxy, which then does more per wake-up and waits less."""

    count: int

    def missing(self) -> str:
        return missing_tool("strace") or _may_not_trace()

    def run(self, rig: Rig, scale: float) -> list[float]:
        count = share(self.count, rig.peer, scale, at_once=AT_ONCE)
        rig.load("tunnel", WARM_UP, at_once=AT_ONCE)
        with rig.system_calls() as counted:
            rig.load("tunnel", count, at_once=AT_ONCE)
        return [counted[0] / count]


def _may_not_trace() -> str:
    """Why strace cannot be used here, or nothing: some sandboxes forbid ptrace(2)."""
    tried = subprocess.run(
        ["strace", "-qq", "-o", os.devnull, "true"],
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
    )
    return "" if tried.returncode == 0 else f"strace may not trace: {tried.stderr.strip()[:200]}"
