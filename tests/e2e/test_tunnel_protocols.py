"""What people carry in tunnels besides HTTP/1.1 over TLS: HTTP/2, WebSocket, SSH."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import hashlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
import trustme
from aiohttp import web

from tests.conftest import Serve, StartProxy
from tests.support.certificates import Authority
from tests.support.clients import need, run
from tests.support.proxy import Proxy, clean_environment, rule
from tests.support.tools import MIB, digest_of_blocks, write_blocks

pytestmark = pytest.mark.e2e


# HTTP/2 -----------------------------------------------------------------------------------------

_NGINX = """
daemon off;
worker_processes 1;
{user}
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_max_body_size 0;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port} ssl http2;
        server_name origin.test;
        ssl_certificate {folder}/chain.pem;
        ssl_certificate_key {folder}/key.pem;
        root {folder}/files;
    }}
}}
"""


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[str]:
    """The URL of an nginx with TLS and HTTP/2, without its slash; it serves ``/small``, and ``/large`` of 16 MiB."""
    need("nginx")
    folder = _nginx_folder(tmp_path)
    (folder / "files").mkdir(parents=True)
    (folder / "files" / "small").write_text("hello from nginx\n")
    write_blocks(folder / "files" / "large", 16 * MIB)
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "authority.pem")
    leaf = authority.issue_cert("origin.test")
    leaf.cert_chain_pems[0].write_to_path(folder / "chain.pem")
    leaf.private_key_pem.write_to_path(folder / "key.pem")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        config = folder / "nginx.conf"
        # Its workers would become somebody who cannot read the files.
        user = f"user {getpass.getuser()};" if os.geteuid() == 0 else ""
        config.write_text(_NGINX.format(folder=folder, port=port, user=user))
        # As it hands its sockets on to its successor when it is upgraded; so no port is guessed.
        env = clean_environment(NGINX=f"{listener.fileno()};")
        command = ["nginx", "-p", str(folder), "-c", str(config), "-e", str(folder / "error.log")]
        process = subprocess.Popen(command, env=env, pass_fds=[listener.fileno()])
        try:
            yield f"https://origin.test:{port}"
            assert process.poll() is None, (folder / "error.log").read_text()
        finally:
            process.terminate()  # which ends its worker, too
            process.wait(10)


def _curl(proxy: Proxy, tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    need("curl")
    command = ["curl", "-sS", "--http2", "--max-time", "20", "--proxy", proxy.url]
    command += ["--cacert", str(_nginx_folder(tmp_path) / "authority.pem"), *arguments]
    return run(command, clean_environment())


def _nginx_folder(tmp_path: Path) -> Path:
    return tmp_path / "nginx"


def test_http_2(proxy: Proxy, nginx: str, tmp_path: Path) -> None:
    done = _curl(proxy, tmp_path, "-w", "%{http_version} %{http_code}", f"{nginx}/small")
    assert done.stdout == b"hello from nginx\n2 200", done.stderr
    (line,) = proxy.stop()
    assert (line["event"], line["alpn"]) == ("ALLOWED", "h2,http/1.1")


def test_many_streams_of_http_2_in_one_tunnel(proxy: Proxy, nginx: str, tmp_path: Path) -> None:
    """Large answers at the same time, so that both sides' flow control has something to do."""
    files = [("-o", str(tmp_path / f"got-{number}"), f"{nginx}/large") for number in range(4)]
    words = [word for each in files for word in each]
    done = _curl(proxy, tmp_path, "--parallel", *words, "-w", "%{http_version} ")
    assert done.stdout.split() == [b"2"] * 4, done.stderr
    for number in range(4):
        got = hashlib.sha256((tmp_path / f"got-{number}").read_bytes()).hexdigest()
        assert got == digest_of_blocks(16 * MIB)
    (line,) = proxy.stop()
    assert line["bytes_received"] > 64 * MIB


# WebSocket --------------------------------------------------------------------------------------


async def _echo(request: web.Request) -> web.WebSocketResponse:
    ws = web.WebSocketResponse()
    await ws.prepare(request)
    async for message in ws:
        if message.type is aiohttp.WSMsgType.TEXT:
            await ws.send_str(f"you said: {message.data}")
        elif message.type is aiohttp.WSMsgType.BINARY:
            await ws.send_bytes(message.data)
    return ws


@pytest.mark.asyncio(
    loop_factories=["asyncio"]
)  # libuv keeps a descriptor of its own for each loop
async def test_a_websocket(proxy: Proxy, authority: Authority) -> None:
    """Both directions, both kinds of messages, and the closing handshake."""
    application = web.Application()
    application.router.add_get("/", _echo)
    runner = web.AppRunner(application)
    await runner.setup()
    listener = socket.create_server(("127.0.0.1", 0))
    await web.SockSite(runner, listener, ssl_context=authority.server_context()).start()
    url = f"wss://origin.test:{listener.getsockname()[1]}/"
    try:
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(
                url, proxy=proxy.url, ssl=authority.client_context(), max_msg_size=0
            ) as ws,
        ):
            for number in range(20):
                await ws.send_str(str(number))
                assert await ws.receive_str() == f"you said: {number}"
            large = bytes(3 * MIB)
            await ws.send_bytes(large)
            assert await ws.receive_bytes() == large
            await ws.ping()
            assert await ws.close(code=4000)
    finally:
        await runner.cleanup()
    await asyncio.sleep(0)
    (line,) = proxy.stop()
    assert (line["event"], line["sni"], line["status"]) == ("ALLOWED", "origin.test", 200)
    assert line["bytes_sent"] > 3 * MIB
    assert line["bytes_received"] > 3 * MIB


# SSH --------------------------------------------------------------------------------------------

_SSHD = """
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin yes
"""

#: What `nc -X connect` does, for ssh's ProxyCommand.
_CONNECT = """
import os, socket, sys, threading

proxy, target = sys.argv[1:]
host, _, port = proxy.rpartition(":")
tunnel = socket.create_connection((host, int(port)))
tunnel.sendall(f"CONNECT {target} HTTP/1.1\\r\\nHost: {target}\\r\\n\\r\\n".encode())
head = b""
while not head.endswith(b"\\r\\n\\r\\n"):
    head += tunnel.recv(1) or sys.exit("the proxy has closed")
sys.stderr.write(head.decode().splitlines()[0] + "\\n")
head.startswith(b"HTTP/1.1 200 ") or sys.exit(1)

def up():
    while data := os.read(0, 65536):
        tunnel.sendall(data)
    tunnel.shutdown(socket.SHUT_WR)

threading.Thread(target=up, daemon=True).start()
while data := tunnel.recv(65536):
    os.write(1, data)
"""


class Ssh:
    """A client with a key, and a server that knows it: as many processes as there are connections."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sshd = shutil.which("sshd") or ""
        for name in ("host_key", "client_key"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
            subprocess.run(command, check=True)
        shutil.copy(folder / "client_key.pub", folder / "authorized_keys")
        (folder / "sshd_config").write_text(_SSHD.format(folder=folder))
        (folder / "connect.py").write_text(_CONNECT)
        self.log = folder / "sshd.log"

    def serve(self, connection: socket.socket) -> None:
        """One connection, by a process of its own."""
        with self.log.open("ab") as log:
            subprocess.run(
                [self._sshd, "-i", "-e", "-f", str(self._folder / "sshd_config")],
                stdin=connection.fileno(),
                stdout=connection.fileno(),
                stderr=log,
                check=False,
                timeout=20,
            )

    def run(
        self, proxy: Proxy, port: int, command: str, data: bytes
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command on the server, through the proxy."""
        through = f"{sys.executable} {self._folder}/connect.py {proxy.address} %h:%p"
        key = (self._folder / "host_key.pub").read_text()
        (self._folder / "known_hosts").write_text(f"[origin.test]:{port} {key}")
        options = {
            "ProxyCommand": through,
            "IdentityFile": f"{self._folder}/client_key",
            "UserKnownHostsFile": f"{self._folder}/known_hosts",
            "StrictHostKeyChecking": "yes",
            "BatchMode": "yes",
        }
        words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        target = ["-F", "none", "-p", str(port), f"{getpass.getuser()}@origin.test", command]
        return subprocess.run(
            ["ssh", *words, *target],
            input=data,
            env=clean_environment(HOME=str(self._folder)),
            capture_output=True,
            check=False,
            timeout=20,
        )


@pytest.fixture
def ssh(tmp_path: Path) -> Ssh:
    for program in ("ssh", "sshd", "ssh-keygen"):
        need(program)
    if os.geteuid() == 0:
        # It insists on its empty folder, which whatever starts the service makes.
        with contextlib.suppress(OSError):
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    folder = tmp_path / "ssh"
    folder.mkdir(mode=0o700)
    return Ssh(folder)


@pytest.mark.parametrize("tls", ["off"])
def test_ssh(proxy: Proxy, serve: Serve, ssh: Ssh) -> None:
    port = serve(ssh.serve).port
    data = bytes(range(256)) * 4096
    done = ssh.run(proxy, port, "cat", data)
    assert done.returncode == 0, (done.stderr, ssh.log.read_text())
    assert done.stdout == data
    assert b"HTTP/1.1 200" in done.stderr
    line = proxy.wait_for_line(event="ALLOWED", port=port)
    assert line["bytes_sent"] > MIB
    assert line["bytes_received"] > MIB
    assert "sni" not in line


def test_ssh_where_tunnels_must_be_tls(start_proxy: StartProxy, serve: Serve, ssh: Ssh) -> None:
    """Refused at once, by whoever of the two speaks first, and none is told what the other said."""
    proxy = start_proxy(allow=[rule("origin.test", tls="verify")], timeouts={"client_hello": "30s"})
    port = serve(ssh.serve).port
    begun = time.monotonic()
    done = ssh.run(proxy, port, "cat", b"")
    assert time.monotonic() - begun < 10
    assert done.returncode == 255
    assert done.stdout == b""
    assert re.search(b"Connection closed|kex_exchange_identification", done.stderr), done.stderr
    line = proxy.wait_for_line(event="DENIED", reason="tunnel_not_tls")
    assert (line["bytes_sent"], line["bytes_received"]) == (0, 0)
