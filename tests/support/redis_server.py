"""A real redis-server (or valkey-server) for a test, and what may lie between it and the proxy."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from egress_proxy.config.model import SharedState

SERVER = shutil.which("redis-server") or shutil.which("valkey-server")
needs_server = pytest.mark.skipif(
    SERVER is None, reason="there is neither redis-server nor valkey-server on this machine"
)


def need_tls() -> None:
    """Skip where the server was built without TLS."""
    assert SERVER is not None
    if b"SSL_CTX_new" not in Path(SERVER).read_bytes():
        pytest.skip(f"{SERVER} was built without TLS")


class RedisServer:
    """A server with nothing in it, on a port of its own; what it is told is gone when it ends."""

    def __init__(
        self, folder: Path, *options: str, tls: tuple[Path, Path, Path] | None = None
    ) -> None:
        self.folder = folder
        self.options = options
        self.tls = tls
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None
        for _ in range(5):  # somebody else may be faster
            self.port = _free_port()
            if self.start():
                return
        raise RuntimeError("redis-server does not start")

    def start(self) -> bool:
        """Start it, again where it was before."""
        assert SERVER is not None
        port: tuple[str, ...] = ("--port", str(self.port))
        if self.tls is not None:
            certificate, key, authority = map(str, self.tls)
            port = (
                *("--port", "0", "--tls-port", str(self.port), "--tls-auth-clients", "no"),
                *("--tls-cert-file", certificate, "--tls-key-file", key),
                *("--tls-ca-cert-file", authority),
            )
        command = [SERVER, *port, "--bind", "127.0.0.1", "--save", "", "--dir", str(self.folder)]
        self._process = subprocess.Popen([*command, *self.options], stdout=subprocess.DEVNULL)
        end = time.monotonic() + 10
        while time.monotonic() < end and self._process.poll() is None:
            address = ("127.0.0.1", self.port)
            with contextlib.suppress(OSError), socket.create_connection(address, 5) as probe:
                if self.tls is not None:
                    return True
                # It listens before it is ready, and may end in between: for another port of its own, say.
                probe.sendall(b"PING\r\n")
                if probe.recv(100).startswith((b"+PONG", b"-NOAUTH")):
                    return True
            time.sleep(0.005)
        self.kill()
        return False

    def kill(self) -> None:
        """As the system does when memory is short."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @contextlib.contextmanager
    def client(self, **options: Any) -> Iterator[redis.Redis]:
        """A client that is not ours."""
        with redis.Redis(port=self.port, decode_responses=True, **options) as client:
            yield client

    def settings(self, **keys: Any) -> SharedState:
        return SharedState(
            host="127.0.0.1", port=self.port, **{"timeout": 2.0, "lease": 60.0, **keys}
        )


@contextlib.contextmanager
def serving(folder: Path, *options: str, **keys: Any) -> Iterator[RedisServer]:
    server = RedisServer(folder, *options, **keys)
    try:
        yield server
    finally:
        server.kill()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        # A cluster's bus is 10,000 above, and 65,535 is the last.
        return port if port < 55_000 else port - 11_000


class Delay:
    """Lies before a server and passes on what comes, as late as it is told."""

    def __init__(self) -> None:
        self.port = 0
        self.seconds = 0.0
        self.connections = 0

    @contextlib.asynccontextmanager
    async def before(self, port: int) -> AsyncIterator[None]:
        tasks: set[asyncio.Task[None]] = set()

        async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                while data := await reader.read(65536):
                    if self.seconds:
                        await asyncio.sleep(self.seconds)
                    writer.write(data)
                    await writer.drain()
            except OSError:
                pass
            finally:
                writer.close()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.connections += 1
            theirs, ours = await asyncio.open_connection("127.0.0.1", port)
            for source, sink in ((reader, ours), (theirs, writer)):
                task = asyncio.get_running_loop().create_task(carry(source, sink))
                tasks.add(task)
                task.add_done_callback(tasks.discard)

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield
        finally:
            server.close()
            for task in list(tasks):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
