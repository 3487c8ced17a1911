"""One proxy, set up, running and under load: what a measure works with."""

import json
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import PIPE
from typing import IO, cast

from benchmarks.bench import Bench
from benchmarks.first_request import is_served
from benchmarks.machine import BenchmarkError
from benchmarks.origins import AUTHORITY, Origin
from benchmarks.peers import DENIED_HOST, ORIGIN_HOST, Peer, Site
from benchmarks.process import Tree, running

WARM_UP = 500  # operations before each measurement
SECONDS = 60  # after which a load gives up
START = 20  # seconds a proxy may take to serve its first request
HTTP_MODES = ("get", "deny")  # the proxy reads these requests, even if its tunnels take no CONNECT


@dataclass
class Rig:
    bench: Bench
    peer: Peer
    site: Site
    tree: Tree
    served_after: float  # seconds from its start to the answer to its first request
    requests: int = field(default=1)  # each owes the log a line; that was the first

    def load(
        self,
        mode: str,
        count: int,
        *,
        at_once: int,
        size: int = 0,
        host: str = ORIGIN_HOST,
        rate: float = 0,
    ) -> dict[str, float]:
        """Puts load on the proxy and comes back when both are done with it: what c/load.c reports."""
        with self._load(mode, count, at_once, size, host, rate) as (_, output):
            report = check(output.readline(), count)
        self.tree.settle()
        return report

    def load_directly(
        self, mode: str, count: int, *, at_once: int, rate: float
    ) -> dict[str, float]:
        """The same load, put on the origin without a proxy."""
        port = self.site.origin_port
        command = self._command(mode, port, count, at_once, 0, ORIGIN_HOST, rate, "relay")
        with running(command, self.bench.load_core, stdin=PIPE, stdout=PIPE) as load:
            return check(cast("IO[bytes]", load.stdout).readline(), count)

    @contextmanager
    def idle_tunnels(self, count: int, *, at_once: int) -> Iterator[None]:
        """Opens them, `at_once` at a time, and closes them after the block."""
        with self._load("idle", count, at_once, 0, ORIGIN_HOST, 0) as (control, output):
            line = output.readline()
            if line != b"open\n":
                check(line, 0)
            self.tree.settle()
            yield
            control.close()
            check(output.readline(), count)
        self.tree.settle()

    def load_tls(self, count: int, *, at_once: int) -> None:
        """Tunnels with a TLS handshake through them, which ends at nginx."""
        self.requests += count
        command = [
            str(self.bench.directory / "tls"),
            str(self.peer.port(self.site, http=False)),
            ORIGIN_HOST,
            *map(str, (self.site.origin_port, count, at_once, SECONDS)),
            "connect" if self.peer.takes_connect else "relay",
            str(self.bench.directory / AUTHORITY),
        ]
        with running(command, self.bench.load_core, stdout=PIPE) as load:
            check(cast("IO[bytes]", load.stdout).readline(), count)
        self.tree.settle()

    def load_wrk(self, seconds: int, *, at_once: int) -> int:
        """Plain GETs by wrk, on connections that are kept alive: how many it made."""
        url = f"http://{ORIGIN_HOST}:{self.site.origin_port}/"
        script = self.site.directory / "absolute.lua"
        script.write_text(f'function request() return wrk.format("GET", "{url}") end\n')
        port = self.peer.port(self.site, http=True)
        options = ["-t1", f"-c{at_once}", f"-d{seconds}s", "--timeout", "5s", "-s", str(script)]
        host = ["-H", f"Host: {ORIGIN_HOST}:{self.site.origin_port}"]
        command = ["wrk", *options, *host, f"http://127.0.0.1:{port}/"]
        with running(command, self.bench.load_core, stdout=PIPE) as load:
            said = cast("IO[bytes]", load.stdout).read().decode()
        self.tree.settle()
        count = wrk_requests(said)
        self.requests += count
        return count

    @contextmanager
    def system_calls(self) -> Iterator[list[int]]:
        """Counts those of the proxy during the block: the list has the number after it."""
        counted: list[int] = []
        file = self.site.directory / "strace"
        targets = [word for pid in self.tree.pids() for word in ("-p", str(pid))]
        command = ["strace", "-f", "-c", "-U", "calls,name", "-o", str(file), *targets]
        with running(command, self.bench.load_core, stderr=PIPE) as strace:
            said = cast("IO[bytes]", strace.stderr).readline().decode().strip()
            if not said.endswith("attached") and "attached with" not in said:
                raise BenchmarkError(f"strace: {said or 'ended without a word'}")
            yield counted
            strace.send_signal(signal.SIGINT)
            strace.wait(SECONDS)
        total = re.search(r"^ *(\d+) total$", file.read_text(), re.MULTILINE)
        if not total:
            raise BenchmarkError("strace printed no total")
        counted.append(int(total[1]))

    @contextmanager
    def _load(
        self, mode: str, count: int, at_once: int, size: int, host: str, rate: float
    ) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
        self.requests += count
        is_http = mode in HTTP_MODES
        via = "connect" if is_http or self.peer.takes_connect else "relay"
        port = self.peer.port(self.site, http=is_http)
        command = self._command(mode, port, count, at_once, size, host, rate, via)
        with running(command, self.bench.load_core, stdin=PIPE, stdout=PIPE) as load:
            yield cast("IO[bytes]", load.stdin), cast("IO[bytes]", load.stdout)

    def _command(
        self,
        mode: str,
        port: int,
        count: int,
        at_once: int,
        size: int,
        host: str,
        rate: float,
        via: str,
    ) -> list[str]:
        return [
            str(self.bench.directory / "load"),
            mode,
            str(port),
            DENIED_HOST if mode == "deny" else host,
            *map(str, (self.site.origin_port, count, at_once, size, SECONDS, rate)),
            via,
        ]


def check(line: bytes, count: int) -> dict[str, float]:
    """Every single operation must have worked."""
    if not line:
        raise BenchmarkError("the load generator broke off")
    report = json.loads(line)
    if report["errors"] or report["finished"] != count:
        raise BenchmarkError(f"{report['errors']} errors, the first: {report['first_error']}")
    return cast("dict[str, float]", report)


def wrk_requests(said: str) -> int:
    """Of wrk's report, in which there must be no error."""
    for trouble in ("Socket errors", "Non-2xx"):
        if trouble in said:
            raise BenchmarkError(f"wrk: {said[said.index(trouble) :].partition(chr(10))[0]}")
    made = re.search(r"(\d+) requests in", said)
    if not made or not int(made[1]):
        raise BenchmarkError("wrk made no request")
    return int(made[1])


@contextmanager
def rig(bench: Bench, peer: Peer, origin: Origin = "echo") -> Iterator[Rig]:
    """Starts a proxy afresh, so that no measurement sees what another left behind."""
    with tempfile.TemporaryDirectory(prefix=f"{peer.name}-", dir=bench.directory) as name:
        directory = Path(name)
        site = Site(
            directory=directory,
            proxy_port=bench.ports[0],
            admin_port=bench.ports[1],
            origin_port=bench.origins.port(origin),
            hosts_file=bench.directory / "hosts",
            relay=bench.directory / "relay",
        )
        errors = directory / "errors.log"
        with site.log.open("ab") as log, errors.open("ab") as err:
            command = peer.command(site)
            begin = time.monotonic()
            with running(command, bench.proxy_core, stdout=log, stderr=err) as process:
                wait_until_served(peer, site, process, errors)
                served_after = time.monotonic() - begin
                tree = Tree(process.pid)
                tree.settle()
                made = Rig(bench, peer, site, tree, served_after)
                yield made
        lines = count_lines(site.log)
        if lines < made.requests:
            raise BenchmarkError(f"logged {lines} lines for {made.requests} requests")


def wait_until_served(
    peer: Peer, site: Site, process: subprocess.Popen[bytes], errors: Path
) -> None:
    deadline = time.monotonic() + START
    while not is_served(peer, site):
        if process.poll() is not None or time.monotonic() > deadline:
            said = (errors.read_text() + site.log.read_text()).split("\n")[-2:]
            raise BenchmarkError(f"did not start: {' '.join(said).strip() or 'without a word'}")


def count_lines(file: Path) -> int:
    with file.open("rb") as lines:
        return sum(1 for _ in lines)
