"""Real clients, each told about the proxy by the environment alone, and what each of them shows of an answer."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest

from tests.support.certificates import Authority
from tests.support.client import parse_head
from tests.support.proxy import clean_environment

CLIENTS = Path(__file__).parent.parent / "clients"


def environment(proxy: str, authority: Authority, home: Path) -> dict[str, str]:
    """Proxy and trusted authority, in every spelling that a client reads, and nothing from this machine.

    curl and wget read the lower-case names alone where the target is plain HTTP.
    """
    home.mkdir(exist_ok=True)
    wget = home / "wgetrc"  # wget has no variable for its authorities
    wget.write_text(f"ca_certificate = {authority.file}\n")
    trust = (
        "SSL_CERT_FILE",
        "CURL_CA_BUNDLE",
        "REQUESTS_CA_BUNDLE",
        "GIT_SSL_CAINFO",
        "NODE_EXTRA_CA_CERTS",
        "PIP_CERT",
    )
    return clean_environment(
        **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), proxy),
        **dict.fromkeys(trust, str(authority.file)),
        HOME=str(home),
        WGETRC=str(wget),
        GIT_CONFIG_NOSYSTEM="1",
        GIT_TERMINAL_PROMPT="0",
        PIP_CONFIG_FILE="/dev/null",
        PIP_DISABLE_PIP_VERSION_CHECK="1",
        PIP_RETRIES="0",  # or a refused CONNECT is asked for six times
        PIP_NO_INPUT="1",
        NODE_USE_ENV_PROXY="1",
        NODE_NO_WARNINGS="1",
    )


@cache
def why_missing(program: str) -> str | None:
    if shutil.which(program) is None:
        return f"{program} is not installed"
    if program == "node":
        (major,) = re.findall(r"v(\d+)", _output("node", "--version"))
        if int(major) < 24 and not (CLIENTS / "node" / "node_modules").is_dir():
            return "tests/clients/node has no node_modules: run `npm ci` there"
    return None


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def need(program: str) -> None:
    """Skip the test where a client is missing."""
    reason = why_missing(program)
    if reason is not None:
        pytest.skip(reason)


@dataclass(frozen=True, slots=True)
class Fetched:
    """What a client shows; None or empty is what it keeps to itself."""

    exit: int
    said: str
    """Everything it wrote, for messages."""
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    error: str | None = None
    """The exception of a library."""


def run(
    command: list[str], env: dict[str, str], *, cwd: Path | None = None, seconds: float = 50
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        command, env=env, cwd=cwd, capture_output=True, timeout=seconds, check=False
    )


def _said(done: subprocess.CompletedProcess[bytes]) -> str:
    return (done.stdout + b"\n" + done.stderr).decode("utf-8", "replace")


def curl(url: str, env: dict[str, str]) -> Fetched:
    heads = Path(env["HOME"]) / "heads"
    done = run(["curl", "-sS", "--max-time", "20", "-D", str(heads), url], env)
    last = heads.read_bytes().strip().rpartition(b"\r\n\r\n")[2] if heads.exists() else b""
    head = parse_head(last) if last else None
    return Fetched(
        done.returncode,
        _said(done),
        head.status if head else None,
        dict(head.fields) if head else {},
        done.stdout,
    )


def wget(url: str, env: dict[str, str]) -> Fetched:
    done = run(
        ["wget", "-q", "-S", "--content-on-error", "--tries=1", "--timeout=20", "-O", "-", url], env
    )
    shown = done.stderr.decode()
    status = re.findall(r"^ *HTTP/1\.1 ([0-9]{3})", shown, re.MULTILINE)
    headers = {
        name.lower(): value
        for name, value in re.findall(r"^  ([\w-]+): (.*)$", shown, re.MULTILINE)
    }
    return Fetched(
        done.returncode, _said(done), int(status[-1]) if status else None, headers, done.stdout
    )


def _from_json(done: subprocess.CompletedProcess[bytes]) -> Fetched:
    assert done.stdout, _said(done)
    shown = json.loads(done.stdout)
    body = shown.get("body")
    return Fetched(
        done.returncode,
        _said(done),
        shown.get("status"),
        shown.get("headers", {}),
        None if body is None else body.encode(),
        shown.get("error"),
    )


def _library(name: str) -> Callable[[str, dict[str, str]], Fetched]:
    def fetch(url: str, env: dict[str, str]) -> Fetched:
        return _from_json(run([sys.executable, str(CLIENTS / "fetch.py"), name, url], env))

    return fetch


def node(url: str, env: dict[str, str]) -> Fetched:
    return _from_json(run(["node", str(CLIENTS / "node" / "fetch.mjs"), url], env))


@dataclass(frozen=True, slots=True)
class Client:
    """How a client behaves when it is refused."""

    name: str
    program: str
    fetch: Callable[[str, dict[str, str]], Fetched]
    tunnel_exit: int
    """Exit code when CONNECT is answered 403."""
    tunnel_says: str
    """What it writes then, as a regular expression."""
    forward_exit: int
    """Exit code when an absolute-form request is answered 403."""
    tunnel_headers: bool = False
    """Whether it shows the headers of a refused CONNECT."""


HTTP_CLIENTS = (
    Client("curl", "curl", curl, 56, "CONNECT tunnel failed, response 403", 0, tunnel_headers=True),
    Client("wget", "wget", wget, 4, "", 8),
    Client(
        "requests",
        sys.executable,
        _library("requests"),
        1,
        "ProxyError.*Tunnel connection failed: 403",
        0,
    ),
    Client("httpx", sys.executable, _library("httpx"), 1, "ProxyError.*403 Forbidden", 0),
    Client(
        "aiohttp",
        sys.executable,
        _library("aiohttp"),
        1,
        "ClientHttpProxyError.*403",
        0,
        tunnel_headers=True,
    ),
    Client("node", "node", node, 1, r"403", 0),
)
