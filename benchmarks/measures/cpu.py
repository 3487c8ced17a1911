"""CPU time: for each of many small operations, and for bytes."""

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.measures.measure import (
    AT_ONCE,
    Measure,
    missing_nginx,
    missing_openssl,
    missing_tool,
    share,
)
from benchmarks.origins import Origin
from benchmarks.rig import WARM_UP, Rig

GIB = 1 << 30
MIB = 1 << 20


def cpu_seconds(rig: Rig, work: Callable[[], object]) -> float:
    before = rig.tree.cpu_seconds()
    work()
    return rig.tree.cpu_seconds() - before


@dataclass(frozen=True)
class CpuEach(Measure):
    """Of an operation that c/load.c does `at_once` at a time."""

    mode: str
    count: int
    at_once: int = AT_ONCE

    def run(self, rig: Rig, scale: float) -> list[float]:
        count = share(self.count, rig.peer, scale, at_once=self.at_once)
        rig.load(self.mode, max(WARM_UP, self.at_once), at_once=self.at_once)
        used = cpu_seconds(rig, lambda: rig.load(self.mode, count, at_once=self.at_once))
        return [used / count * 1e6]


@dataclass(frozen=True)
class CpuEachTls(Measure):
    """Of a tunnel that carries TLS: a full handshake with nginx, a request and its answer."""

    count: int

    @property
    def origin(self) -> Origin:
        return "tls"

    def missing(self) -> str:
        return missing_nginx() or missing_openssl()

    def run(self, rig: Rig, scale: float) -> list[float]:
        count = share(self.count, rig.peer, scale, at_once=AT_ONCE)
        rig.load_tls(WARM_UP // 2, at_once=AT_ONCE)
        used = cpu_seconds(rig, lambda: rig.load_tls(count, at_once=AT_ONCE))
        return [used / count * 1e6]


@dataclass(frozen=True)
class CpuEachWrk(Measure):
    """Of a plain GET from wrk to nginx: no program of ours at either end."""

    seconds: int

    @property
    def origin(self) -> Origin:
        return "http"

    def missing(self) -> str:
        return missing_nginx() or missing_tool("wrk")

    def run(self, rig: Rig, scale: float) -> list[float]:
        rig.load("get", WARM_UP, at_once=AT_ONCE)
        seconds = max(1, round(self.seconds * scale))
        before = rig.tree.cpu_seconds()
        count = rig.load_wrk(seconds, at_once=AT_ONCE)
        return [(rig.tree.cpu_seconds() - before) / count * 1e6]


@dataclass(frozen=True)
class CpuPerGib(Measure):
    """For bytes, in one direction, over a number of tunnels at once."""

    direction: str
    tunnels: int
    gib: float

    def run(self, rig: Rig, scale: float) -> list[float]:
        size = int(self.gib * scale * rig.peer.share * GIB) // self.tunnels
        warm_up = 16 * MIB // self.tunnels
        tunnels = self.tunnels
        rig.load(self.direction, tunnels, at_once=tunnels, size=warm_up)
        used = cpu_seconds(
            rig, lambda: rig.load(self.direction, tunnels, at_once=tunnels, size=size)
        )
        return [used / (size * tunnels / GIB)]
