"""A real Squid with somebody's rules, asked over real connections, and stopped in the end."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.support.tools import wait_until

PROGRAM = shutil.which("squid", path=f"{os.environ.get('PATH', '')}:/usr/sbin") or ""
#: Whom it becomes when root starts it, for it refuses to stay root.
USER = "nobody"
#: What it needs besides the rules: no name server, no cache, nothing outside of its folder, and no patience.
HARNESS = """
http_port 127.0.0.1:{port}
visible_hostname squid.test
hosts_file {folder}/hosts
dns_nameservers 127.0.0.1
dns_timeout 1 second
connect_timeout 2 seconds
connect_retries 0
forward_max_tries 1
retry_on_error off
shutdown_lifetime 0 seconds
cache deny all
cache_mem 0
memory_cache_shared off
pinger_enable off
client_db off
icp_port 0
digest_generation off
max_filedescriptors 256
access_log none
cache_log {folder}/cache.log
cache_store_log none
coredump_dir {folder}
pid_filename {folder}/squid.pid
"""


class RealSquid:
    def __init__(self, port: int) -> None:
        self.port = port

    def allows(self, client: str, method: str, host: str, port: int, path: str = "/") -> bool:
        """Whether it lets a request through: what is behind need not exist."""
        target = f"{host}:{port}" if method == "CONNECT" else f"http://{host}:{port}{path}"
        head = f"{method} {target} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n"
        head += "Content-Length: 0\r\n\r\n" if method not in {"CONNECT", "GET"} else "\r\n"
        with socket.socket() as connection:
            connection.settimeout(10)
            connection.bind((client, 0))
            connection.connect(("127.0.0.1", self.port))
            connection.sendall(head.encode())
            answer = b""
            while b"\r\n\r\n" not in answer:
                data = connection.recv(65536)
                assert data, f"no answer to {method} {target}: {answer!r}"
                answer += data
        lines = answer.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
        status = int(lines[0].split()[1])
        denied = any(line.startswith("X-Squid-Error: ERR_ACCESS_DENIED") for line in lines)
        assert denied == (status == 403), lines
        # What was let through finds nobody, or somebody: anything else is a mistake of this test.
        assert denied or status in (200, 404, 503), lines
        return not denied


def need_squid() -> None:
    if not PROGRAM:
        pytest.skip("squid is not installed")


@contextlib.contextmanager
def running_squid(
    folder: Path, config: str, hosts: Iterable[tuple[str, str]]
) -> Iterator[RealSquid]:
    """A Squid with these rules and these names, for as long as the context lasts."""
    (folder / "hosts").write_text("".join(f"{address} {name}\n" for name, address in hosts))
    if os.geteuid() == 0:
        shutil.chown(folder, USER)
        for parent in folder.parents:
            if parent.owner() == "root" and parent.stat().st_mode & 0o001 == 0:
                parent.chmod(0o711)
    process, port = _started(folder, config)
    try:
        yield RealSquid(port)
    finally:
        process.kill()
        process.wait(10)


def _started(folder: Path, config: str) -> tuple[subprocess.Popen[bytes], int]:
    """Squid takes no port 0: a free one is looked for, and somebody else may be faster."""
    said = folder / "said"
    for _ in range(3):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        text = config + HARNESS.format(port=port, folder=folder)
        if os.geteuid() == 0:
            text += f"cache_effective_user {USER}\n"
        (folder / "running.conf").write_text(text)
        command = [PROGRAM, "-N", "-n", f"migrate{port}", "-f", str(folder / "running.conf")]
        with said.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=folder)
        if _is_up(process, port, said):
            return process, port
    raise AssertionError(f"Squid does not start: {said.read_text()}")


def _is_up(process: subprocess.Popen[bytes], port: int, said: Path) -> bool:
    """Waits until it listens, or has ended."""
    try:
        wait_until(
            lambda: process.poll() is not None or _listens(port),
            seconds=15,
            what=lambda: f"Squid listens: {said.read_text()}",
        )
    except BaseException:
        process.kill()
        process.wait(10)
        raise
    return process.poll() is None


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
