"""What a measure is: it drives a proxy through its rig and returns its figures."""

import shutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.bench import TLS_HEADER
from benchmarks.machine import has_header
from benchmarks.origins import Origin, nginx_path
from benchmarks.peers import Peer
from benchmarks.results import Figure
from benchmarks.rig import Rig

AT_ONCE = 64


@dataclass(frozen=True)
class Measure(ABC):
    group: str  # the word --only knows it by
    figures: tuple[Figure, ...]

    @property
    def origin(self) -> Origin:
        """What stands behind the proxy."""
        return "echo"

    @abstractmethod
    def run(self, rig: Rig, scale: float) -> Sequence[float]:
        """A value for each figure, from `scale` times the usual work."""

    def missing(self) -> str:
        """Why it cannot be measured here, or nothing."""
        return missing_nginx() if self.origin != "echo" else ""


def one(name: str, title: str, unit: str) -> tuple[Figure, ...]:
    return (Figure(name, title, unit),)


def share(count: int, peer: Peer, scale: float, *, at_once: int = 1) -> int:
    """How many operations a peer is given: enough to be `at_once` open."""
    return max(int(count * scale * peer.share), at_once)


def missing_nginx() -> str:
    return "" if nginx_path() else "not installed: apt-get install nginx"


def missing_openssl() -> str:
    return "" if has_header(TLS_HEADER) else "not installed: apt-get install libssl-dev"


def missing_tool(tool: str) -> str:
    return "" if shutil.which(tool) else f"not installed: apt-get install {tool}"
