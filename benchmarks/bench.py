"""What stands for a whole run: the compiled programs, the origins, the cores and ports."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE

from benchmarks.machine import BenchmarkError, cores, free_ports, has_header
from benchmarks.origins import Origins, nginx
from benchmarks.peers import ORIGIN_HOST
from benchmarks.process import running

SOURCES = Path(__file__).parent / "c"
FLAGS = ("-O2", "-Wall", "-Wextra", "-Werror")
TLS_HEADER = "openssl/ssl.h"


@dataclass(frozen=True)
class Bench:
    directory: Path
    origins: Origins
    ports: tuple[int, int]  # the proxy's and its admin port
    proxy_core: int
    load_core: int


@contextmanager
def bench(hosts: Sequence[str] = (ORIGIN_HOST,), *, with_nginx: bool = False) -> Iterator[Bench]:
    proxy_core, load_core = cores()
    echo, http, tls, proxy_port, admin_port = free_ports(5)
    with ExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory(prefix="egress-bench-"))
        directory = Path(name)
        compile_programs(directory)
        (directory / "hosts").write_text("".join(f"127.0.0.1 {host}\n" for host in hosts))
        origins = Origins(echo, http, tls)
        origin = [str(directory / "origin"), str(echo)]
        stack.enter_context(running(origin, load_core, stdin=PIPE))
        if with_nginx:
            stack.enter_context(nginx(directory, origins, load_core))
        yield Bench(directory, origins, (proxy_port, admin_port), proxy_core, load_core)


def compile_programs(into: Path) -> None:
    programs = {"load": ["-lm"], "origin": [], "relay": []}
    if shutil.which("cc") and has_header(TLS_HEADER):
        programs["tls"] = ["-lssl", "-lcrypto", "-lm"]
    for program, libraries in programs.items():
        source = SOURCES / f"{program}.c"
        try:
            subprocess.run(["cc", *FLAGS, "-o", into / program, source, *libraries], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise BenchmarkError(f"cannot compile {source.name}: {error}") from error
