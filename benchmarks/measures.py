"""What is measured. A measure drives a proxy through its rig and returns one figure."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from benchmarks.peers import Peer
from benchmarks.rig import WARM_UP, Rig

GIB = 1 << 30
MIB = 1 << 20
AT_ONCE = 64


@dataclass(frozen=True)
class Measure(ABC):
    name: str
    group: str  # the word --only knows it by
    title: str
    unit: str

    @abstractmethod
    def run(self, rig: Rig, scale: float) -> float:
        """The figure, from `scale` times the usual work."""

    def applies_to(self, peer: Peer) -> bool:
        return peer.speaks_http or self.group != "get"


@dataclass(frozen=True)
class CpuEach(Measure):
    """CPU time for each of many small operations."""

    count: int

    def run(self, rig: Rig, scale: float) -> float:
        count = int(self.count * scale)
        rig.load(self.group, WARM_UP, at_once=AT_ONCE)
        before = rig.tree.cpu_seconds()
        rig.load(self.group, count, at_once=AT_ONCE)
        return (rig.tree.cpu_seconds() - before) / count * 1e6


@dataclass(frozen=True)
class CpuPerGib(Measure):
    """CPU time for bytes, in one direction, over a number of tunnels at once."""

    direction: str
    tunnels: int
    gib: float

    def run(self, rig: Rig, scale: float) -> float:
        size = int(self.gib * scale * GIB) // self.tunnels
        rig.load(self.direction, self.tunnels, at_once=self.tunnels, size=16 * MIB // self.tunnels)
        before = rig.tree.cpu_seconds()
        rig.load(self.direction, self.tunnels, at_once=self.tunnels, size=size)
        return (rig.tree.cpu_seconds() - before) / (size * self.tunnels / GIB)


@dataclass(frozen=True)
class MemoryEach(Measure):
    """Memory that open tunnels add, each of which has carried a few bytes and then rests."""

    count: int

    def run(self, rig: Rig, scale: float) -> float:
        rig.load("tunnel", WARM_UP, at_once=AT_ONCE)
        before = rig.tree.memory_kib()
        with rig.idle_tunnels(self.count, at_once=AT_ONCE):
            during = rig.tree.memory_kib()
        return (during - before) / self.count


MEASURES: tuple[Measure, ...] = (
    CpuEach("tunnel", "tunnel", f"CPU per tunnel, {AT_ONCE} open", "µs", 10_000),
    CpuEach("deny", "deny", f"CPU per denial, {AT_ONCE} open", "µs", 20_000),
    CpuPerGib("down-1", "bulk", "CPU per GiB down, 1 tunnel", "s", "down", 1, 3),
    CpuPerGib("down-32", "bulk", "CPU per GiB down, 32 tunnels", "s", "down", 32, 3),
    CpuPerGib("up-1", "bulk", "CPU per GiB up, 1 tunnel", "s", "up", 1, 3),
    MemoryEach("idle", "idle", "memory per idle tunnel, 5,000 open", "KiB", 5_000),
    CpuEach("get", "get", f"CPU per plain GET, {AT_ONCE} kept alive", "µs", 20_000),
)
