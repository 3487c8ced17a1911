"""The tests' own peers, without a proxy between: what is wrong with them must not look like a defect of the proxy."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import dns.exception
import dns.message
import dns.query
import dns.rcode
import pytest

from tests.conftest import Serve
from tests.support.client import RawClient
from tests.support.dns import NXDOMAIN, SERVFAIL, SILENCE, Answer, NameServer
from tests.support.origin import Origin
from tests.support.serving import answer_after_eof, greet, reset_after_first_bytes
from tests.support.tools import MIB, digest_of_blocks


def _ask(
    server: NameServer, name: str, kind: str = "A", *, tcp: bool = False
) -> dns.message.Message:
    query = dns.message.make_query(name, kind)
    ask = dns.query.tcp if tcp else dns.query.udp
    return ask(query, "127.0.0.1", port=server.port, timeout=0.5)


def _addresses(message: dns.message.Message) -> list[str]:
    return [item.to_text() for answer in message.answer for item in answer]


def test_the_name_server(name_server: NameServer) -> None:
    name_server.set("a.test", "192.0.2.1", "192.0.2.2", Answer(("2001:db8::1",), ttl=7))
    assert [_addresses(_ask(name_server, "a.test")) for _ in range(4)] == [
        ["192.0.2.1"],
        ["192.0.2.2"],
        [],
        [],
    ]
    for expected in ([], [], ["2001:db8::1"]):
        assert _addresses(_ask(name_server, "a.test", "AAAA")) == expected
    assert _ask(name_server, "a.test", "AAAA", tcp=True).answer[0].ttl == 7
    missing = _ask(name_server, "missing.test")
    assert missing.rcode() is dns.rcode.NXDOMAIN
    assert "SOA" in missing.authority[0].to_text()
    name_server.set("b.test", SERVFAIL, NXDOMAIN)
    assert _ask(name_server, "b.test").rcode() is dns.rcode.SERVFAIL
    name_server.set("c.test", SILENCE)
    with pytest.raises(dns.exception.Timeout):
        _ask(name_server, "c.test")
    name_server.set("d.test", Answer(("192.0.2.1",), truncate=True))
    assert _addresses(_ask(name_server, "d.test")) == []
    assert _addresses(_ask(name_server, "d.test", tcp=True)) == ["192.0.2.1"]
    name_server.set("e.test", Answer(("192.0.2.1",), alias="f.test", delay=0.1))
    assert _addresses(_ask(name_server, "e.test")) == ["f.test.", "192.0.2.1"]
    assert name_server.asked("a.test") == 4
    assert name_server.asked("a.test", "AAAA") == 4


def test_the_origin(origin: Origin) -> None:
    address = f"127.0.0.1:{origin.http}"

    def get(path: str, method: str = "GET", body: bytes = b"", head: str = "") -> bytes:
        client.send(f"{method} {path} HTTP/1.1\r\nHost: x\r\n{head}\r\n".encode() + body)
        return client.response(method).body

    with RawClient(address) as client:
        for path in ("/bytes", "/chunked", "/until-close"):
            got = get(f"{path}/{3 * MIB + 1}")
            assert hashlib.sha256(got).hexdigest() == digest_of_blocks(3 * MIB + 1)
    with RawClient(address) as client:
        sent = json.loads(get("/upload", "PUT", b"hello", "Content-Length: 5\r\n"))
        assert sent["sha256"] == hashlib.sha256(b"hello").hexdigest()
        chunks = b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"
        again = json.loads(get("/upload", "PUT", chunks, "Transfer-Encoding: chunked\r\n"))
        assert again["chunked"]
        assert again["sha256"] == sent["sha256"]
        assert get("/head").startswith(b"GET /head HTTP/1.1\r\nHost: x\r\n")
        assert get("/status/204") == b""
        assert get("/drip/3") == b"..."
    with RawClient(address) as client:
        client.send("GET /reset HTTP/1.1\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            client.rest()


def test_servers(serve: Serve) -> None:
    with RawClient(f"127.0.0.1:{serve(greet).port}") as client:
        assert client.until(b"\r\n") == b"220 origin.test ready\r\n"
    with RawClient(f"127.0.0.1:{serve(answer_after_eof).port}") as client:
        client.send(b"question")
        assert client.is_silent(0.1)
        client.eof()
        assert client.rest() == b"you said: question"
    with RawClient(f"127.0.0.1:{serve(reset_after_first_bytes).port}") as client:
        client.send(b"question")
        assert client.is_closed()


# What tests/conftest.py forbids ------------------------------------------------------------------

_GUARDED = {
    "a descriptor left open": (
        "import os\nkept = []\ndef test_it():\n    kept.append(os.open('/dev/null', os.O_RDONLY))\n",
        "left open",
    ),
    "a task left behind": (
        "import asyncio\nasync def test_it():\n    asyncio.ensure_future(asyncio.sleep(60))\n",
        "tasks left behind",
    ),
    "a skip in CI": (
        "import pytest\ndef test_it():\n    pytest.skip('no client')\n",
        "EGRESS_TEST_NO_SKIP=1 forbids",
    ),
    "a skipped module in CI": (
        "import pytest\npytest.importorskip('no_such_module')\n",
        "EGRESS_TEST_NO_SKIP=1 forbids",
    ),
}


def _run(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_inner.py").write_text(code)
    (folder / "pytest.toml").write_text('[pytest]\nasyncio_mode = "auto"\n')
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider"]
    environment = {**os.environ, "EGRESS_TEST_NO_SKIP": "1"}
    for name in ("PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER"):
        environment.pop(name, None)
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("name", _GUARDED)
def test_what_a_test_may_not_do(tmp_path: Path, name: str) -> None:
    code, says = _GUARDED[name]
    done = _run(tmp_path, code)
    assert done.returncode != 0, done.stdout
    assert says in done.stdout


def test_both_loops(tmp_path: Path) -> None:
    code = (
        "import asyncio, pytest\n"
        "@pytest.mark.asyncio(loop_factories=['uvloop', 'asyncio'])\n"
        "async def test_both():\n    print(type(asyncio.get_running_loop()).__module__)\n"
        "async def test_one():\n    print(type(asyncio.get_running_loop()).__module__)\n"
        "def test_plain():\n    pass\n"
    )
    done = _run(tmp_path, code)
    assert done.returncode == 0, done.stdout
    assert "4 passed" in done.stdout
