"""The real proxy as a process of its own: its configuration, its lines, its metrics and its end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.support.client import RawClient, Response
from tests.support.contract import contract
from tests.support.tools import descriptors, wait_until

LOOPBACK = "127.0.0.0/8"
ANY_PORT = ["1-65535"]
#: Deadlines are looked at once a second at least; and the machine may be busy.
SWEEP = 1.5

COMMAND = (sys.executable, "-m", "egress_proxy", "serve")

_ROOT = Path(__file__).parent.parent.parent


def rule(
    host: str,
    *,
    ports: list[Any] | None = None,
    allow_private: list[str] | None = None,
    tls: str = "off",
) -> dict[str, Any]:
    """A rule for a host that the fake name server puts on loopback, on every port, for tunnels that carry anything."""
    lifted = [LOOPBACK] if allow_private is None else allow_private
    made: dict[str, Any] = {"host": host, "ports": ports or ANY_PORT, "tls": tls}
    return made | ({"allow_private": lifted} if lifted else {})


def configuration(
    *, name_server: str, allow: list[Any], deny: list[Any] | None = None, **keys: Any
) -> dict[str, Any]:
    """A configuration for tests. Further keys replace top-level ones, or add to ``dns``."""
    policy: dict[str, Any] = {"name": "test", "allow": allow}
    if deny:
        policy["deny"] = deny
    config: dict[str, Any] = {
        "version": 1,
        "listen": {"proxy": "127.0.0.1:0", "admin": "127.0.0.1:0"},
        "policies": [policy],
        "audit": {"flush_interval": "5ms"},
        **keys,
    }
    config["dns"] = {"servers": [name_server], "timeout": "2s", **config.get("dns", {})}
    return config


class _Plain(yaml.SafeDumper):
    """Without anchors, which the configuration's YAML does not have."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def write(path: Path, config: Mapping[str, Any] | str) -> None:
    """As Kubernetes does it: the new file takes the old one's place in one step."""
    text = config if isinstance(config, str) else yaml.dump(config, Dumper=_Plain, sort_keys=False)
    new = path.with_name(f".{path.name}.new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


def clean_environment(**more: str) -> dict[str, str]:
    """The environment without anything that could send a client another way, or hide a difference between machines."""
    kept = ("PATH", "LANG", "LC_ALL", "TMPDIR", "SYSTEMROOT", "LD_LIBRARY_PATH")
    return {name: os.environ[name] for name in kept if name in os.environ} | more


class Proxy:
    """One running proxy."""

    def __init__(
        self,
        config: Path,
        *,
        loop: str = "uvloop",
        read_stdout: bool = True,
        command: tuple[str, ...] = COMMAND,
    ) -> None:
        self.config = config
        self.stderr_lines: list[str] = []
        self._stdout = bytearray()
        self.process = subprocess.Popen(
            [*command, "--loop", loop, "--config", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=clean_environment(PYTHONUNBUFFERED="1"),
            cwd=_ROOT,
        )
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self._readers = [threading.Thread(target=self._read_stderr, daemon=True)]
        if read_stdout:
            self._readers.append(threading.Thread(target=self._read_stdout, daemon=True))
        for reader in self._readers:
            reader.start()
        self.address = ""
        """``host:port`` of the proxy itself."""
        self.admin = ""
        """``host:port`` of the admin port."""
        self.sockets_at_start = 0

    def _read_stdout(self) -> None:
        assert self.process.stdout is not None
        while data := self.process.stdout.read1(65536):  # type: ignore[attr-defined]  # a BufferedReader
            self._stdout += data

    def _read_stderr(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.stderr_lines.append(line.decode().rstrip("\n"))

    # What it said -------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def stdout(self) -> str:
        """The audit log so far."""
        return self._stdout.decode()

    @property
    def stderr(self) -> str:
        return "\n".join(self.stderr_lines)

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The audit lines so far."""
        text = self.stdout
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def events(self) -> list[dict[str, Any]]:
        """The operational lines on stderr so far."""
        return [json.loads(line) for line in list(self.stderr_lines) if line.startswith("{")]

    def wait_for_line(self, *, seconds: float = 5.0, **fields: Any) -> dict[str, Any]:
        """The one audit line with these values; fails when there is none in time, or more than one."""
        found = self.wait_for_lines(1, seconds=seconds, **fields)
        return found[0]

    def wait_for_lines(
        self, count: int, *, seconds: float = 5.0, **fields: Any
    ) -> list[dict[str, Any]]:
        """The audit lines with these values, exactly so many."""

        def matching() -> list[dict[str, Any]]:
            return [line for line in self.lines if fields.items() <= line.items()]

        wait_until(
            lambda: len(matching()) >= count,
            seconds=seconds,
            what=lambda: (
                f"{count} lines with {fields}; stdout:\n{self.stdout}\nstderr:\n{self.stderr}"
            ),
        )
        found = matching()
        assert len(found) == count, found
        return found

    def wait_for_event(self, event: str, *, seconds: float = 5.0, count: int = 1) -> dict[str, Any]:
        """The latest of so many operational lines of this name."""

        def matching() -> list[dict[str, Any]]:
            return [line for line in self.events() if line.get("event") == event]

        wait_until(
            lambda: len(matching()) >= count or self.process.poll() is not None,
            seconds=seconds,
            what=lambda: f"event {event} on stderr:\n{self.stderr}",
        )
        found = matching()
        assert len(found) >= count, f"{event} was not said before the end:\n{self.stderr}"
        return found[-1]

    # What it is asked ---------------------------------------------------------------------------

    def client(self, **options: Any) -> RawClient:
        return RawClient(self.address, **options)

    def ask_admin(
        self, path: str, *, method: str = "GET", body: bytes = b"", head: str = ""
    ) -> Response:
        if method not in {"GET", "HEAD"} and "Idempotency-Key" not in head:
            head += contract()
        with RawClient(self.admin) as client:
            client.send(
                f"{method} {path} HTTP/1.1\r\nHost: {self.admin}\r\nConnection: close\r\n"
                f"Content-Length: {len(body)}\r\n{head}\r\n".encode(),
                body,
            )
            return client.response(method)

    def policy(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.ask_admin("/v1/policy").body)
        return found

    def metrics(self) -> dict[str, float]:
        """Samples by name with labels, as they stand in the exposition."""
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            f"http://{self.admin}/metrics", timeout=5
        ) as response:
            text = response.read().decode()
        samples = (line.rpartition(" ") for line in text.splitlines() if line[:1] not in {"#", ""})
        return {name: float(value) for name, _, value in samples}

    # Its resources ------------------------------------------------------------------------------

    def sockets(self) -> int:
        """Open sockets of the process."""
        return sum(target.startswith("socket:") for target in descriptors(self.pid).values())

    def memory(self) -> int:
        """Bytes that the process holds resident."""
        pages = Path(f"/proc/{self.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    # Its life -----------------------------------------------------------------------------------

    def wait_until_listening(self) -> None:
        said = self.wait_for_event("listening", seconds=15)
        self.address, self.admin = said["proxy"], said["admin"]
        self.sockets_at_start = self.sockets()

    def reload(
        self, config: Mapping[str, Any] | str, how: Callable[[], object] | None = None
    ) -> None:
        """Write the file, then ask for it by ``how``, SIGHUP by default."""
        write(self.config, config)
        if how is None:
            self.signal(signal.SIGHUP)
        else:
            how()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, seconds: float = 10.0) -> int:
        """The exit code, when it has ended."""
        code = self.process.wait(seconds)
        for reader in self._readers:
            reader.join(5)
        return code

    def settled(self) -> None:
        """Fails unless all connections' sockets are closed soon, but for those that wait for another request."""
        wait_until(
            lambda: self.sockets() - self.idle_origins() <= self.sockets_at_start,
            seconds=5,
            what=lambda: f"{self.sockets()} sockets instead of {self.sockets_at_start}",
        )

    def idle_origins(self) -> int:
        """Connections to origins that wait for another request."""
        return int(self.metrics()["egress_proxy_origin_connections_idle"])

    def stop(self, *, seconds: float = 10.0) -> list[dict[str, Any]]:
        """End it with SIGTERM, which must go well; all audit lines."""
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        code = self.wait(seconds)
        assert code == 0, f"exit {code}; stderr:\n{self.stderr}"
        assert "Traceback" not in self.stderr, self.stderr
        return self.lines

    def dispose(self) -> None:
        """What must happen whatever became of the test."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for reader in self._readers:
            reader.join(5)
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()


def wait_out(seconds: float) -> None:
    """Let this time pass: for what must not happen within it."""
    time.sleep(seconds)
