"""What curl can do beyond a plain fetch: old versions, tunnels to plain ports, expectations, and large bodies."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import pytest

from tests.support.certificates import Authority
from tests.support.clients import environment, need
from tests.support.origin import Origin
from tests.support.proxy import Proxy
from tests.support.tools import GIB, MIB, digest_of_blocks, write_blocks

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(150)]


class Curl:
    """curl, told about the proxy by the environment."""

    def __init__(self, env: dict[str, str], tmp_path: Path) -> None:
        self.env = env
        self.tmp_path = tmp_path

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        command = ["curl", "-sS", "--max-time", "100", *arguments]
        return subprocess.run(command, env=self.env, capture_output=True, check=False)

    def fetch(self, *arguments: str) -> bytes:
        done = self(*arguments)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    def digest(self, *arguments: str) -> tuple[int, str]:
        """Size and hash of what it prints, which may be large."""
        command = ["curl", "-sS", "--fail", "--max-time", "100", *arguments]
        digest, size = hashlib.sha256(), 0
        with subprocess.Popen(command, env=self.env, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            while data := process.stdout.read(MIB):
                digest.update(data)
                size += len(data)
        assert process.returncode == 0
        return size, digest.hexdigest()

    def file(self, size: int) -> str:
        return str(write_blocks(self.tmp_path / f"{size}.bin", size))


@pytest.fixture
def curl(proxy: Proxy, authority: Authority, tmp_path: Path) -> Curl:
    need("curl")
    return Curl(environment(proxy.url, authority, tmp_path / "home"), tmp_path)


def test_http_1_0(curl: Curl, proxy: Proxy, origin: Origin) -> None:
    assert curl.fetch("-0", f"http://origin.test:{origin.http}/") == b"hello from http\n"
    body = curl.fetch("-0", f"http://origin.test:{origin.http}/chunked/300000")
    assert hashlib.sha256(body).hexdigest() == digest_of_blocks(300_000)
    assert [line["event"] for line in proxy.stop()] == ["ALLOWED", "ALLOWED"]


def test_connect_in_http_1_0(curl: Curl, proxy: Proxy, origin: Origin) -> None:
    url = f"https://origin.test:{origin.https}/"
    assert curl.fetch("--proxy1.0", proxy.address, url) == b"hello from https\n"
    assert proxy.stop()[0]["event"] == "ALLOWED"


@pytest.mark.parametrize("tls", ["off"])
def test_a_tunnel_to_a_plain_port(curl: Curl, proxy: Proxy, origin: Origin) -> None:
    url = f"http://origin.test:{origin.http}/"
    assert curl.fetch("--proxytunnel", url) == b"hello from http\n"
    (line,) = proxy.stop()
    assert line["method"] == "CONNECT"


@pytest.mark.parametrize(
    ("way", "tls"), [("absolute-form", "verify"), ("tunnel", "off"), ("tls", "verify")]
)
def test_post_that_expects_100_continue(curl: Curl, proxy: Proxy, origin: Origin, way: str) -> None:
    body = curl.file(2 * MIB)
    scheme, port = ("https", origin.https) if way == "tls" else ("http", origin.http)
    more = ["--proxytunnel"] if way == "tunnel" else []
    said = curl.fetch(
        *more,
        "-H",
        "Expect: 100-continue",
        "--expect100-timeout",
        "90",  # longer than curl may take in all: without the 100 it fails
        "--data-binary",
        f"@{body}",
        f"{scheme}://origin.test:{port}/upload",
    )
    got = json.loads(said)
    assert (got["length"], got["sha256"]) == (2 * MIB, digest_of_blocks(2 * MIB))
    assert got["expect"] == "100-continue"
    proxy.stop()


@pytest.mark.parametrize(("way", "tls"), [("absolute-form", "verify"), ("tunnel", "off")])
def test_upload_of_256_mib(curl: Curl, proxy: Proxy, origin: Origin, way: str) -> None:
    size = 256 * MIB
    more = ["--proxytunnel"] if way == "tunnel" else []
    said = curl.fetch(*more, "-T", curl.file(size), f"http://origin.test:{origin.http}/upload")
    got = json.loads(said)
    assert (got["method"], got["length"]) == ("PUT", size)
    assert got["sha256"] == digest_of_blocks(size)
    assert not got["chunked"]
    (line,) = proxy.stop()
    assert line["event"] == "ALLOWED"
    assert size <= line["bytes_sent"] <= size + 2000


def test_chunked_upload(curl: Curl, proxy: Proxy, origin: Origin) -> None:
    body = curl.file(8 * MIB)
    chunked = ("-H", "Transfer-Encoding: chunked", "-T", body)
    got = json.loads(curl.fetch(*chunked, f"http://origin.test:{origin.http}/upload"))
    assert (got["chunked"], got["length"]) == (True, 8 * MIB)
    assert got["sha256"] == digest_of_blocks(8 * MIB)
    proxy.stop()


@pytest.mark.parametrize(("way", "tls"), [("absolute-form", "verify"), ("tunnel", "off")])
def test_download_of_1_gib(curl: Curl, proxy: Proxy, origin: Origin, way: str) -> None:
    more = ["--proxytunnel"] if way == "tunnel" else []
    got = curl.digest(*more, f"http://origin.test:{origin.http}/bytes/{GIB}")
    assert got == (GIB, digest_of_blocks(GIB))
    (line,) = proxy.stop()
    assert line["event"] == "ALLOWED"
    assert GIB <= line["bytes_received"] <= GIB + 1000


@pytest.mark.parametrize("kind", ["bytes", "chunked", "until-close"])
@pytest.mark.parametrize("way", ["absolute-form", "tls"])
def test_download_of_64_mib(curl: Curl, proxy: Proxy, origin: Origin, kind: str, way: str) -> None:
    size = 64 * MIB
    scheme, port = ("https", origin.https) if way == "tls" else ("http", origin.http)
    got = curl.digest(f"{scheme}://origin.test:{port}/{kind}/{size}")
    assert got == (size, digest_of_blocks(size))
    assert proxy.stop()[0]["event"] == "ALLOWED"


def test_head_204_304_and_redirect(curl: Curl, proxy: Proxy, origin: Origin) -> None:
    base = f"http://origin.test:{origin.http}"
    code = ("-o", "/dev/null", "-w", "%{http_code} ")
    said = curl.fetch(
        *(*code, "-I", f"{base}/bytes/1000", "--next", "-sS"),
        *(*code, f"{base}/status/204", "--next", "-sS"),
        *(*code, f"{base}/status/304", "--next", "-sS"),
        *(*code, "-L", f"{base}/redirect"),
    )
    assert said == b"200 204 304 200 "
    assert [line["status"] for line in proxy.stop()] == [200, 204, 304, 302, 200]


def test_connections_are_kept_alive(curl: Curl, proxy: Proxy, origin: Origin) -> None:
    """Several requests on one connection, a refusal among them."""
    base = f"http://origin.test:{origin.http}"
    said = curl.fetch(
        *("-w", "%{http_code} %{num_connects}\n", "-o", "/dev/null", f"{base}/"),
        *("-o", "/dev/null", "http://denied.test/", "-o", "/dev/null", f"{base}/chunked/100000"),
    )
    assert said.decode().splitlines() == ["200 1", "403 0", "200 0"]
    lines = proxy.stop()
    assert [line["event"] for line in lines] == ["ALLOWED", "DENIED", "ALLOWED"]
    assert len({line["client"] for line in lines}) == 1
