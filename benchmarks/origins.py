"""What stands behind the proxies: our own origin in C, and nginx, with and without TLS."""

import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import trustme

from benchmarks.machine import BenchmarkError
from benchmarks.peers import ORIGIN_HOST
from benchmarks.process import running

Origin = Literal["echo", "http", "tls"]
AUTHORITY = "authority.pem"  # in the bench's directory: what clients trust
PATIENCE = 10  # seconds nginx may take to listen

CONFIG = """\
daemon off;
master_process off;
pid {directory}/nginx.pid;
error_log {directory}/nginx.log;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    server {{
        listen 127.0.0.1:{http};
        listen 127.0.0.1:{tls} ssl;
        ssl_protocols TLSv1.3;
        ssl_certificate {directory}/origin.pem;
        ssl_certificate_key {directory}/origin.pem;
        location / {{ return 200 "hello\\n"; }}
    }}
}}
"""


@dataclass(frozen=True)
class Origins:
    """Their ports."""

    echo: int  # c/origin.c
    http: int  # nginx
    tls: int  # nginx

    def port(self, origin: Origin) -> int:
        return {"echo": self.echo, "http": self.http, "tls": self.tls}[origin]


def nginx_path() -> str:
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin") or ""


@contextmanager
def nginx(directory: Path, origins: Origins, core: int) -> Iterator[None]:
    """With a certificate of an authority that was made for this run."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(directory / AUTHORITY)
    leaf = authority.issue_cert(ORIGIN_HOST)
    leaf.private_key_and_cert_chain_pem.write_to_path(directory / "origin.pem")
    file = directory / "nginx.conf"
    file.write_text(CONFIG.format(directory=directory, http=origins.http, tls=origins.tls))
    log = directory / "nginx.log"
    with log.open("ab") as errors:
        command = [nginx_path(), "-e", str(log), "-p", str(directory), "-c", str(file)]
        with running(command, core, stderr=errors) as process:
            deadline = time.monotonic() + PATIENCE
            while not listening(origins.http):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise BenchmarkError(f"nginx did not start: {log.read_text().strip()}")
                time.sleep(0.02)
            yield


def listening(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False
