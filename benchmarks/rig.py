"""One proxy, set up, running and under load: what a measure works with."""

import json
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import PIPE
from typing import IO, cast

from benchmarks.machine import BenchmarkError, cores, free_ports
from benchmarks.peers import DENIED_HOST, ORIGIN_HOST, Peer, Site
from benchmarks.process import Tree, running

SOURCES = Path(__file__).parent / "c"
PROGRAMS = ("load", "origin", "relay")
WARM_UP = 500  # operations before each measurement
SECONDS = 60  # after which a load gives up
START = 20  # seconds a proxy may take to listen


@dataclass(frozen=True)
class Bench:
    """What stands for the whole run: the compiled programs, the origin, the cores and ports."""

    directory: Path
    origin_port: int
    ports: tuple[int, int]  # the proxy's and its admin port
    proxy_core: int
    load_core: int


@contextmanager
def bench(hosts: Sequence[str] = (ORIGIN_HOST,)) -> Iterator[Bench]:
    proxy_core, load_core = cores()
    origin_port, proxy_port, admin_port = free_ports(3)
    with tempfile.TemporaryDirectory(prefix="egress-bench-") as name:
        directory = Path(name)
        compile_programs(directory)
        (directory / "hosts").write_text("".join(f"127.0.0.1 {host}\n" for host in hosts))
        origin = [str(directory / "origin"), str(origin_port)]
        with running(origin, load_core, stdin=PIPE):
            yield Bench(directory, origin_port, (proxy_port, admin_port), proxy_core, load_core)


def compile_programs(into: Path) -> None:
    for program in PROGRAMS:
        source = SOURCES / f"{program}.c"
        flags = ["-O2", "-Wall", "-Wextra", "-Werror"]
        try:
            subprocess.run(["cc", *flags, "-o", into / program, source], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise BenchmarkError(f"cannot compile {source.name}: {error}") from error


@dataclass
class Rig:
    bench: Bench
    site: Site
    tree: Tree
    requests: int = field(default=0)  # each owes the log a line

    def load(
        self, mode: str, count: int, *, at_once: int, size: int = 0, host: str = ORIGIN_HOST
    ) -> None:
        """Puts load on the proxy and comes back when both are done with it."""
        with self._load(mode, count, at_once, size, host) as (_, output):
            check(output.readline(), count)
        self.tree.settle()

    @contextmanager
    def idle_tunnels(self, count: int, *, at_once: int) -> Iterator[None]:
        """Opens them, `at_once` at a time, and closes them after the block."""
        with self._load("idle", count, at_once, 0, ORIGIN_HOST) as (control, output):
            line = output.readline()
            if line != b"open\n":
                check(line, 0)
            self.tree.settle()
            yield
            control.close()
            check(output.readline(), count)
        self.tree.settle()

    @contextmanager
    def _load(
        self, mode: str, count: int, at_once: int, size: int, host: str
    ) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
        self.requests += count
        command = [
            str(self.bench.directory / "load"),
            mode,
            str(self.site.proxy_port),
            DENIED_HOST if mode == "deny" else host,
            str(self.site.origin_port),
            *map(str, (count, at_once, size, SECONDS)),
        ]
        with running(command, self.bench.load_core, stdin=PIPE, stdout=PIPE) as load:
            yield cast("IO[bytes]", load.stdin), cast("IO[bytes]", load.stdout)


def check(line: bytes, count: int) -> None:
    """Every single operation must have worked."""
    if not line:
        raise BenchmarkError("the load generator broke off")
    report = json.loads(line)
    if report["errors"] or report["finished"] != count:
        raise BenchmarkError(f"{report['errors']} errors, the first: {report['first_error']}")


@contextmanager
def rig(bench: Bench, peer: Peer) -> Iterator[Rig]:
    """Starts a proxy afresh, so that no measurement sees what another left behind."""
    with tempfile.TemporaryDirectory(prefix=f"{peer.name}-", dir=bench.directory) as name:
        directory = Path(name)
        site = Site(
            directory=directory,
            proxy_port=bench.ports[0],
            admin_port=bench.ports[1],
            origin_port=bench.origin_port,
            hosts_file=bench.directory / "hosts",
            relay=bench.directory / "relay",
        )
        errors = directory / "errors.log"
        with site.log.open("ab") as log, errors.open("ab") as err:
            command = peer.command(site)
            with running(command, bench.proxy_core, stdout=log, stderr=err) as process:
                wait_ready(peer, site, process, errors)
                tree = Tree(process.pid)
                tree.settle()
                made = Rig(bench, site, tree)
                yield made
        lines = count_lines(site.log)
        if lines < made.requests:
            raise BenchmarkError(f"logged {lines} lines for {made.requests} requests")


def wait_ready(peer: Peer, site: Site, process: subprocess.Popen[bytes], errors: Path) -> None:
    deadline = time.monotonic() + START
    while not peer.ready(site):
        if process.poll() is not None or time.monotonic() > deadline:
            said = (errors.read_text() + site.log.read_text()).split("\n")[-2:]
            raise BenchmarkError(f"did not start: {' '.join(said).strip() or 'without a word'}")


def count_lines(file: Path) -> int:
    with file.open("rb") as lines:
        return sum(1 for _ in lines)
