"""The machine: which cores are whose, what limits hold, and the facts a reader of figures needs."""

import os
import platform
import re
import resource
import socket
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

DESCRIPTORS = 12_000  # 5,000 idle tunnels are 10,000 descriptors in the proxy ...
MANY_DESCRIPTORS = 20_000  # ... and 8,500 are 17,000: one figure is left out without them
PORTS = range(20_000, 30_000)  # below the range that outgoing connections take theirs from


class BenchmarkError(Exception):
    """The run is worth nothing, for the reason given."""


def cores() -> tuple[int, int]:
    """One core for the proxy, one for the load generator and the origin."""
    available = sorted(os.sched_getaffinity(0))
    if len(available) < 2:
        raise BenchmarkError("needs two cores: one for the proxy, one for its load")
    return available[-1], available[0]


def raise_descriptor_limit() -> None:
    """To what all figures need or, where the hard limit is lower and may not be raised, to that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY not in (soft, hard):
        try:
            wanted = max(soft, MANY_DESCRIPTORS)
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(hard, wanted)))
        except (OSError, ValueError):  # not root, or root without the capability
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    elif soft != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, MANY_DESCRIPTORS), hard))
    if descriptor_limit() < DESCRIPTORS:
        raise BenchmarkError(
            f"needs {DESCRIPTORS} descriptors, the hard limit is {hard}: ulimit -Hn"
        )


def descriptor_limit() -> int:
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MANY_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft


def check_port_reuse() -> None:
    """A proxy closes tens of thousands of connections to one origin: their ports must come back."""
    setting = Path("/proc/sys/net/ipv4/tcp_tw_reuse")
    if setting.exists() and setting.read_text().strip() == "0":
        raise BenchmarkError("needs sysctl net.ipv4.tcp_tw_reuse=2, the kernel's default")


def free_ports(count: int) -> list[int]:
    """Each process begins elsewhere: what one has found may look free to another for as long as nobody listens."""
    found: list[int] = []
    first = os.getpid() * 16 % len(PORTS)
    for port in [*PORTS[first:], *PORTS[:first]]:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise BenchmarkError("no free ports")


def first_line(*command: str) -> str:
    """What a command says first, or nothing when it cannot be run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.partition("\n")[0].strip()


def has_header(header: str) -> bool:
    """Whether the C compiler finds it."""
    command = ["cc", "-E", "-include", header, "-x", "c", os.devnull, "-o", os.devnull]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def slab_kib() -> int:
    """What the kernel has in its slabs, for all the machine: sockets, files, epoll sets."""
    meminfo = Path("/proc/meminfo").read_text()
    return next(int(line.split()[1]) for line in meminfo.splitlines() if line.startswith("Slab:"))


def facts() -> dict[str, str]:
    model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    try:
        uvloop = version("uvloop")
    except PackageNotFoundError:
        uvloop = "absent"
    return {
        "date": time.strftime("%Y-%m-%d %H:%M %Z"),
        "commit": first_line("git", "describe", "--always", "--dirty") or "unknown",
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": f"{model[1] if model else 'unknown'}, {os.cpu_count()} cores",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "uvloop": uvloop,
        "compiler": first_line("cc", "--version"),
        "load average before": f"{os.getloadavg()[0]:.2f}",
    }
