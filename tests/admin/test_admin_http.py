"""HTTP on the admin port: connections, framing, bounds."""

from __future__ import annotations

import asyncio
import time

import pytest

from egress_proxy.admin import http as module
from egress_proxy.admin.http import MAX_BODY
from tests.admin.running import Admin, Host, faster
from tests.support.contract import contract

SMUGGLED = (
    b"POST /v1/reload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
POST = f"POST /v1/reload HTTP/1.1\r\nHost: localhost\r\n{contract()}".encode()
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


def test_a_connection_carries_many_requests(host: Host) -> None:
    async def conversation(admin: Admin) -> None:
        client = await admin.client()
        for _ in range(5):
            await client.send(HEALTH)
            answer = await client.answer()
            assert (answer.status, answer.fields["connection"]) == (200, "keep-alive")

    host.run(conversation)


def test_requests_may_come_together_or_in_pieces(host: Host) -> None:
    async def conversation(admin: Admin) -> None:
        client = await admin.client()
        post = POST + b"Content-Length: 2\r\n\r\n{}"
        await client.send(HEALTH + post + HEALTH)
        assert [(await client.answer()).status for _ in range(3)] == [200, 200, 200]
        for byte in HEALTH:
            await client.send(bytes([byte]))
            await asyncio.sleep(0)
        assert (await client.answer()).body == b"ok\n"

    host.run(conversation)


@pytest.mark.parametrize(
    ("request_head", "connection"),
    [
        (b"GET /healthz HTTP/1.0\r\n\r\n", "close"),
        (b"GET /healthz HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", "keep-alive"),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "close"),
    ],
)
def test_the_client_says_whether_the_connection_stays(
    host: Host, request_head: bytes, connection: str
) -> None:
    async def conversation(admin: Admin) -> None:
        client = await admin.client()
        await client.send(request_head)
        answer = await client.answer()
        assert (answer.status, answer.fields["connection"]) == (200, connection)
        if connection == "close":
            assert await client.ends()

    host.run(conversation)


def test_head_has_the_head_of_get(host: Host) -> None:
    async def conversation(admin: Admin) -> None:
        client = await admin.client()
        for path in (b"/healthz", b"/nothing"):
            for method in (b"GET", b"HEAD"):
                await client.send(method + b" " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n")
            get, head = await client.answer(), await client.answer("HEAD")
            assert (head.status, head.body) == (get.status, b"")
            assert head.fields.keys() == get.fields.keys()

    host.run(conversation)


@pytest.mark.parametrize(
    ("data", "status", "reason"),
    [
        (b"NONSENSE\r\n\r\n", 400, "malformed_request_line"),
        (b"GET /healthz HTTP/2.0\r\n\r\n", 400, "version_not_supported"),
        (b"GET /healthz HTTP/1.1\r\n\r\n", 400, "missing_host"),
        (b"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, "duplicate_host"),
        (b"GET /healthz HTTP/1.1\n\n", 400, "bare_lf"),
        (b"GET /healthz HTTP/1.1\r\nA b: c\r\n\r\n", 400, "malformed_header"),
        (b"GET /healthz HTTP/1.1\r\n" + b"A: b\r\n" * 101 + b"\r\n", 400, "too_many_headers"),
        (b"GET /" + b"a" * 20_000, 400, "head_too_large"),
        (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 400, "head_too_large"),
        (b"POST /v1/reload HTTP/1.1\r\nContent-Length: x\r\n\r\n", 400, "bad_content_length"),
        (
            SMUGGLED,
            400,
            "bad_transfer_encoding",
        ),
        (
            b"POST /v1/reload HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n",
            400,
            "bad_chunk",
        ),
        (
            b"POST /v1/reload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 65537\r\n\r\n",
            413,
            "body_too_large",
        ),
    ],
)
def test_what_cannot_be_understood_is_refused_and_ends_the_connection(
    host: Host, data: bytes, status: int, reason: str
) -> None:
    async def conversation(admin: Admin) -> None:
        client = await admin.client()
        await client.send(data)
        answer = await client.answer()
        assert (answer.status, answer.reason) == (status, reason)
        if reason not in {"missing_host", "duplicate_host"}:
            assert answer.fields["connection"] == "close"
            client.writer.write_eof()
            assert await client.ends()
        assert host.state.reloads == 0

    host.run(conversation)


def test_chunked_bodies_are_read(host: Host) -> None:
    async def conversation(admin: Admin) -> None:
        client = await admin.client()
        head = POST + b"Transfer-Encoding: chunked\r\n\r\n"
        for piece in (head, b"3\r\nabc\r", b"\n0\r\n\r", b"\n" + HEALTH):
            await client.send(piece)
            await asyncio.sleep(0.01)
        assert (await client.answer()).status == 200
        assert (await client.answer()).body == b"ok\n"

    host.run(conversation)


def test_a_chunked_body_is_bounded_too(host: Host) -> None:
    async def conversation(admin: Admin) -> None:
        chunk = b"1000\r\n" + b"a" * 4096 + b"\r\n"
        head = POST + b"Transfer-Encoding: chunked\r\n\r\n"
        answer = await admin.raw(head + chunk * (MAX_BODY // 4096 + 1))
        assert (answer.status, answer.reason) == (413, "body_too_large")

    host.run(conversation)


def test_a_client_that_goes_on_sending_still_reads_why_it_was_refused(host: Host) -> None:
    async def conversation(admin: Admin) -> None:
        head = b"POST /v1/reload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500000\r\n\r\n"
        answer = await admin.raw(head + b"a" * 500_000)
        assert (answer.status, answer.reason) == (413, "body_too_large")

    host.run(conversation)


def test_a_client_that_waits_to_be_told_to_go_on_is_told(host: Host) -> None:
    async def conversation(admin: Admin) -> None:
        client = await admin.client()
        await client.send(POST + b"Content-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(b"{}")
        assert (await client.answer()).status == 200

    host.run(conversation)


def test_a_slow_request_is_refused(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    async def conversation(admin: Admin) -> None:
        head = b"POST /v1/reload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n"
        for start in (b"GET /hea", head + b"{"):
            answer = await admin.raw(start)
            assert (answer.status, answer.reason) == (408, "head_timeout")
        assert host.state.reloads == 0

    with faster(monkeypatch, REQUEST_TIMEOUT=0.05):
        host.run(conversation)


def test_a_client_that_says_nothing_is_let_go(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    async def conversation(admin: Admin) -> None:
        silent = await admin.client()
        assert await silent.ends()
        idle = await admin.client()
        await idle.send(HEALTH)
        assert (await idle.answer()).status == 200
        assert await idle.ends()

    with faster(monkeypatch, REQUEST_TIMEOUT=0.05, KEEP_ALIVE_TIMEOUT=0.05):
        host.run(conversation)


@pytest.mark.parametrize(
    "start",
    [b"", b"GET /", b"POST /v1/reload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{"],
)
def test_a_client_that_goes_away_is_forgotten(host: Host, start: bytes) -> None:
    async def conversation(admin: Admin) -> None:
        client = await admin.client()
        await client.send(start)
        await client.close()
        assert (await admin.ask("GET", "/healthz")).status == 200
        assert host.state.reloads == 0

    host.run(conversation)


def test_a_client_that_resets_is_forgotten(host: Host) -> None:
    async def conversation(admin: Admin) -> None:
        for _ in range(10):
            client = await admin.client()
            await client.send(HEALTH * 50)
            client.writer.transport.abort()
        assert (await admin.ask("GET", "/healthz")).status == 200

    host.run(conversation)


def test_a_client_that_does_not_read_is_let_go(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    async def conversation(admin: Admin) -> None:
        client = await admin.client()
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        request = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"

        async def go_on() -> None:
            while True:
                await client.send(request * 10)

        with pytest.raises(ConnectionError):
            await asyncio.wait_for(go_on(), 20)
        assert (await admin.ask("GET", "/healthz")).status == 200

    with faster(monkeypatch, REQUEST_TIMEOUT=0.3, LINGER_TIMEOUT=0.05):
        host.run(conversation)


def test_the_number_of_connections_is_bounded(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("egress_proxy.admin.server.MAX_CONNECTIONS", 3)

    async def conversation(admin: Admin) -> None:
        clients = [await admin.client() for _ in range(3)]
        for client in clients:
            await client.send(HEALTH)
            assert (await client.answer()).status == 200
        refused = await admin.client()
        answer = await refused.answer()
        assert (answer.status, answer.reason) == (503, "overloaded")
        assert await refused.ends()
        await clients[0].close()
        await refused.close()
        await asyncio.sleep(0.05)
        assert (await admin.ask("GET", "/healthz")).status == 200

    host.run(conversation)


def test_closing_ends_open_connections_soon(host: Host) -> None:
    async def conversation(admin: Admin) -> None:
        idle = await admin.client()
        await idle.send(HEALTH)
        assert (await idle.answer()).status == 200
        half = await admin.client()
        await half.send(b"GET /hea")
        await asyncio.sleep(0.01)
        start = time.monotonic()
        await admin.server.close()
        assert time.monotonic() - start < module.LINGER_TIMEOUT * 3
        assert await idle.ends()

    host.run(conversation)


def test_the_loop_goes_on_during_a_scrape(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def exposition() -> bytes:
        time.sleep(0.3)
        return b""

    monkeypatch.setattr(host.state.metrics, "exposition", exposition)

    async def conversation(admin: Admin) -> None:
        scrape = asyncio.ensure_future(admin.ask("GET", "/metrics"))
        await asyncio.sleep(0.05)
        start = time.monotonic()
        assert (await admin.ask("GET", "/healthz")).status == 200
        assert time.monotonic() - start < 0.2
        assert not scrape.done()
        assert (await scrape).status == 200

    host.run(conversation)
