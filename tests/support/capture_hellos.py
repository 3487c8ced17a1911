"""Captures the ClientHellos of real clients, as the corpus of ``tests/core/test_tls_corpus.py``.

``python -m tests.support.capture_hellos [NAME…]`` runs each client against a port of this machine that takes the first
message of TLS, be it at once or behind a CONNECT, and hangs up. It writes ``tests/core/data/hellos/NAME.bin``, and the
client's row of ``manifest.csv``: what the client was told to offer, by the table below. Only the config_id of an
Encrypted ClientHello is read from the bytes where the client makes it up. A client that is not installed keeps what
was captured before. The tests need none of them.

The commands are looked for on PATH; ``--python`` names an interpreter with grpcio, pyOpenSSL and trustme.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.support.capture_programs import GO, JAVA, NODE, PYTHON

CORPUS = Path(__file__).parents[1] / "core" / "data" / "hellos"
FIELDS = ("name", "client", "server_name", "tls_version", "alpn", "ech")
URL = "https://origin.test/"

H2 = "h2,http/1.1"
H1 = "http/1.1"


@dataclass(frozen=True)
class Client:
    """A command, and what its hello says. ``{port}``, ``{proxy}``, ``{url}`` and the programs' files are filled in."""

    command: str
    alpn: str = ""
    tls_version: str = "TLSv1.3"
    server_name: str = "origin.test"
    ech: str = ""
    """A config_id, or ``grease`` where the client makes it up."""
    version: str = ""
    """The command that says its name and version, without: the same one with ``--version``."""


def _python(what: str, alpn: str = "", tls_version: str = "TLSv1.3") -> Client:
    command = "{python} {python_program}"
    return Client(
        f"{command} {what} {{port}}", alpn, tls_version, version=f"{command} version {what}"
    )


def _own(what: str) -> Client:
    """A library of the tests' own environment."""
    program = "import ssl, {0}; print('{0}', {0}.__version__ + ',', ssl.OPENSSL_VERSION)"
    said = f'{sys.executable} -c "{program.format(what)}"'
    return Client(f"{sys.executable} tests/clients/fetch.py {what} {{url}}", H1, version=said)


def _s_client(arguments: str, alpn: str = "", **fields: str) -> Client:
    command = f"openssl s_client -connect 127.0.0.1:{{port}} {arguments}"
    return Client(command, alpn, version="openssl version", **fields)


def _curl(arguments: str, alpn: str = H2, tls_version: str = "TLSv1.3") -> Client:
    command = f"curl -sk --max-time 10 -x {{proxy}} {arguments}"
    return Client(command, alpn, tls_version, version="curl --version | cut -d' ' -f1,2,4,5")


def _node(what: str, alpn: str = "") -> Client:
    return Client(f"node {{node_program}} {{port}} {what}", alpn, version=NODE_VERSION)


def _go(arguments: str, alpn: str = "", **fields: str) -> Client:
    return Client(f"go run {{go_program}} {arguments}", alpn, version="go version", **fields)


NODE_VERSION = "echo Node.js $(node --version), OpenSSL $(node -p process.versions.openssl)"
PROTOCOLS = [f"protocol-{number}" for number in range(40)]

CLIENTS = {
    "curl": _curl("{url}"),
    "curl-http1": _curl("--http1.1 {url}", H1),
    "curl-no-alpn": _curl("--no-alpn {url}", ""),
    "curl-tls12": _curl("--tls-max 1.2 {url}", H2, "TLSv1.2"),
    "curl-tls13-only": _curl("--tlsv1.3 {url}"),
    "curl-upper-case": _curl("https://ORIGIN.Test/"),
    "curl-trailing-dot": _curl("https://origin.test./"),
    "openssl": _s_client("-servername origin.test"),
    "openssl-no-sni": _s_client("-noservername", server_name=""),
    "openssl-sni-upper-case": _s_client("-servername ORIGIN.TEST"),
    "openssl-sni-trailing-dot": _s_client("-servername origin.test."),
    "openssl-sni-address": _s_client("-servername 192.0.2.1", server_name="192.0.2.1"),
    "openssl-tls1": _s_client(
        "-servername origin.test -tls1 -cipher DEFAULT@SECLEVEL=0", tls_version="TLSv1"
    ),
    "openssl-tls11": _s_client(
        "-servername origin.test -tls1_1 -cipher DEFAULT@SECLEVEL=0", tls_version="TLSv1.1"
    ),
    "openssl-tls12": _s_client(
        "-servername origin.test -tls1_2 -alpn h2,http/1.1", H2, tls_version="TLSv1.2"
    ),
    "openssl-small-records": _s_client(
        f"-servername origin.test -max_send_frag 512 -alpn {','.join(PROTOCOLS)}",
        ",".join(PROTOCOLS),
    ),
    "openssl4": _python("openssl", "h2"),
    "python": _python("ssl"),
    "python-tls12": _python("ssl_tls12", H2, "TLSv1.2"),
    "python-tls12-ticket": _python("ssl_tls12_ticket", "", "TLSv1.2"),
    "python-tls13-ticket": _python("ssl_tls13_ticket"),
    "grpc": _python("grpc", "h2"),
    "requests": _own("requests"),
    "httpx": _own("httpx"),
    "aiohttp": _own("aiohttp"),
    "pip": Client(
        "{python} -m pip --disable-pip-version-check download --no-deps --retries 0 -i {url} sample",
        H1,
        version="{python} -m pip --version | cut -d' ' -f1,2",
    ),
    "uv": Client("uv --no-config pip compile -i {url} {requirement} --no-cache", H2),
    "git": Client("git ls-remote {url}sample.git", H2),
    "wget": Client("wget -t 1 -O - {url}"),
    "gnutls": Client("gnutls-cli --insecure --sni-hostname origin.test -p {port} 127.0.0.1"),
    "node": _node("tls"),
    "node-https": _node("https"),
    "node-http2": _node("http2", "h2"),
    "undici": Client("node tests/clients/node/fetch.mjs {url}", H1, version=NODE_VERSION),
    "npm": Client(
        "npm view sample --registry {url} --fetch-retries 0", version="echo npm $(npm -v)"
    ),
    "java": Client("java {java_program} {proxy}", H2),
    "go": _go("get", H2),
    "go-tls": _go("tls 127.0.0.1:{port}"),
    "go-ech": _go("ech 127.0.0.1:{port}", "h2", server_name="public.test", ech="165"),
    "chromium": Client(
        "chromium --headless --no-sandbox --disable-gpu --user-data-dir={home}/chromium"
        " --proxy-server={proxy} --dump-dom {url}",
        H2,
        ech="grease",
    ),
    "firefox": Client(
        "firefox-esr --headless --no-remote --profile {firefox_profile} {url}", H2, ech="grease"
    ),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", metavar="NAME", help="all without")
    parser.add_argument("--python", default=sys.executable)
    options = parser.parse_args()
    CORPUS.mkdir(parents=True, exist_ok=True)
    rows = read_manifest()
    for name in options.names or CLIENTS:
        client = CLIENTS[name]
        with tempfile.TemporaryDirectory(prefix="hello-") as folder:
            hello, said = capture(client, Path(folder), options.python)
        if not hello:
            print(f"{name}: nothing captured: {said}")
            continue
        (CORPUS / f"{name}.bin").write_bytes(hello)
        ech = grease_config_id(hello) if client.ech == "grease" else client.ech
        values = (name, said, client.server_name, client.tls_version, client.alpn, ech)
        rows[name] = dict(zip(FIELDS, values, strict=True))
        print(f"{name}: {len(hello)} bytes of {said}")
        write_manifest([rows[name] for name in CLIENTS if name in rows])
    return 0


def read_manifest() -> dict[str, dict[str, str]]:
    path = CORPUS / "manifest.csv"
    if not path.exists():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def write_manifest(rows: list[dict[str, str]]) -> None:
    with (CORPUS / "manifest.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def capture(client: Client, folder: Path, python: str) -> tuple[bytes, str]:
    """The hello, and the client's version or what went wrong."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(60)
        places = make_places(folder, listener.getsockname()[1], python)
        command = client.command.format(**places)
        tool = command.split()[0]
        if shutil.which(tool) is None:
            return b"", f"{tool} is not installed"
        home = {"HOME": str(folder), "GOFLAGS": "-mod=mod", "GOTOOLCHAIN": "local"}
        proxies = dict.fromkeys(("https_proxy", "HTTPS_PROXY", "npm_config_proxy"), places["proxy"])
        env = {**os.environ, **home, **proxies}
        with (folder / "output").open("w+b") as output:
            process = subprocess.Popen(
                ["bash", "-c", f"exec {command}"],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            try:
                hello = first_hello(listener)
            except OSError as error:
                output.seek(0)
                return b"", f"{error}: {output.read()[-300:]!r}"
            finally:
                process.terminate()
                process.wait()
        version = client.version.format(**places) or f"{tool} --version"
        said = subprocess.run(
            ["bash", "-c", version],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            check=False,
        )
    return hello, said.stdout.splitlines()[0].strip()


def make_places(folder: Path, port: int, python: str) -> dict[str, str]:
    """What a command may name in braces."""
    programs = {
        "python_program": ("client.py", PYTHON),
        "node_program": ("client.cjs", NODE),
        "go_program": ("client.go", GO),
        "java_program": ("Client.java", JAVA),
        "requirement": ("requirements.in", "sample\n"),
    }
    for name, text in programs.values():
        (folder / name).write_text(text, encoding="utf-8")
    profile = folder / "firefox"
    profile.mkdir()
    (profile / "user.js").write_text(
        "".join(
            f"user_pref({key}, {value});\n"
            for key, value in (
                ('"network.proxy.type"', "1"),
                ('"network.proxy.ssl"', '"127.0.0.1"'),
                ('"network.proxy.ssl_port"', f"{port}"),
                ('"browser.shell.checkDefaultBrowser"', "false"),
            )
        ),
        encoding="utf-8",
    )
    return {
        "port": str(port),
        "proxy": f"http://127.0.0.1:{port}",
        "url": URL,
        "home": str(folder),
        "python": python,
        "firefox_profile": str(profile),
        **{key: str(folder / name) for key, (name, _) in programs.items()},
    }


def first_hello(listener: socket.socket) -> bytes:
    """Of the first connection that is for the origin: browsers connect elsewhere too."""
    while True:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.settimeout(10)
            data = connection.recv(65536)
            if data.startswith(b"CONNECT "):
                if not data.startswith(b"CONNECT origin.test") and b"ORIGIN" not in data[:20]:
                    connection.sendall(b"HTTP/1.1 503 Not here\r\nContent-Length: 0\r\n\r\n")
                    continue
                connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                data = connection.recv(65536)
            while not (hello := whole_hello(data)):
                more = connection.recv(65536)
                if not more:
                    break
                data += more
            if hello:
                return hello


def whole_hello(data: bytes) -> bytes:
    """The records of the first handshake message, once they are there, and nothing behind them."""
    handshake, position = b"", 0
    while position + 5 <= len(data):
        end = position + 5 + int.from_bytes(data[position + 3 : position + 5])
        handshake += data[position + 5 : end]
        if len(handshake) >= 4 and len(handshake) >= 4 + int.from_bytes(handshake[1:4]):
            return data[:end]
        position = end
    return b""


def grease_config_id(hello: bytes) -> str:
    """By the looks of the extension: its type, its length, outer, HKDF-SHA256 and one of three AEADs, config_id."""
    found = re.search(rb"\xfe\x0d..\x00\x00\x01\x00[\x01-\x03](.)", hello, re.DOTALL)
    if found is None:
        raise SystemExit("no Encrypted ClientHello where one was expected")
    return str(found[1][0])


if __name__ == "__main__":
    sys.exit(main())
