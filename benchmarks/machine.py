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

DESCRIPTORS = 12_000  # 5,000 idle tunnels are 10,000 descriptors in the proxy
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
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < DESCRIPTORS:
        raise BenchmarkError(
            f"needs {DESCRIPTORS} descriptors, the hard limit is {hard}: ulimit -Hn"
        )
    if soft != resource.RLIM_INFINITY and soft < DESCRIPTORS:
        resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, hard))


def check_port_reuse() -> None:
    """A proxy closes tens of thousands of connections to one origin: their ports must come back."""
    setting = Path("/proc/sys/net/ipv4/tcp_tw_reuse")
    if setting.exists() and setting.read_text().strip() == "0":
        raise BenchmarkError("needs sysctl net.ipv4.tcp_tw_reuse=2, the kernel's default")


def free_ports(count: int) -> list[int]:
    found: list[int] = []
    for port in PORTS:
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
