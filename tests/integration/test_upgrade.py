"""Upgrade: WebSocket passes end to end, and nothing else does (RFC 9110 §7.8, RFC 6455)."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from functools import partial
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from egress_proxy.core import reasons
from egress_proxy.core.names import parse_authority
from egress_proxy.core.record import Record
from egress_proxy.net import plain
from egress_proxy.net.poller import Interrupted
from tests.conftest import Serve, StartProxy
from tests.support.client import RawClient, Response
from tests.support.dns import NameServer
from tests.support.parent import ScriptedParent, reloaded, says, then_echoes, through
from tests.support.proxy import SWEEP, Proxy, rule
from tests.support.scripted import Asked, Scripted, answer, echoes
from tests.support.serving import echo

ASKS = "Connection: Upgrade\r\nUpgrade: websocket\r\n"
HANDSHAKE = (
    ASKS + "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    "Sec-WebSocket-Protocol: chat\r\n"
)
SWITCHES = (
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)


def switches(asked: Asked, behind: bytes = b"") -> bool:
    """Switches, and echoes from then on."""
    asked.socket.sendall(SWITCHES + behind)
    echo(asked.socket)
    return True


def opened(proxy: Proxy, authority: str, behind: str = "") -> tuple[RawClient, Response]:
    client = proxy.client()
    client.send(
        f"GET http://{authority}/ws HTTP/1.1\r\nHost: {authority}\r\n{HANDSHAKE}\r\n{behind}"
    )
    return client, client.response()


def _fields(head: bytes) -> dict[str, str]:
    lines = head.decode().removesuffix("\r\n\r\n").split("\r\n")[1:]
    return {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}


# End to end -----------------------------------------------------------------------------------------------------------


async def _echo(request: web.Request) -> web.WebSocketResponse:
    conversation = web.WebSocketResponse(protocols=("chat",), max_msg_size=0)
    await conversation.prepare(request)
    async for message in conversation:
        if message.type is aiohttp.WSMsgType.TEXT:
            await conversation.send_str(message.data)
        else:
            await conversation.send_bytes(message.data)
    return conversation


# libuv holds a descriptor in reserve for each loop that listens.
@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_two_libraries_talk_through_the_proxy(proxy: Proxy) -> None:
    application = web.Application()
    application.router.add_get("/ws", _echo)
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        size = 1 << 20
        async with (
            asyncio.timeout(20),
            aiohttp.ClientSession() as session,
            # With this scheme the request is in absolute-form; with ws:// the library says so there, too.
            session.ws_connect(
                f"http://origin.test:{port}/ws",
                proxy=proxy.url,
                protocols=("chat",),
                max_msg_size=0,
            ) as conversation,
        ):
            assert conversation.protocol == "chat"
            await conversation.send_str("hello")
            assert await conversation.receive_str() == "hello"
            await conversation.send_bytes(bytes(size))
            assert await conversation.receive_bytes() == bytes(size)
            await conversation.ping()
            await conversation.close()
            assert conversation.close_code == 1000
    finally:
        await runner.cleanup()
    line = await asyncio.to_thread(proxy.wait_for_line, path="/ws")
    assert (line["event"], line["method"], line["status"]) == ("ALLOWED", "GET", 101)
    assert size < line["bytes_sent"] < size + 1000
    assert size < line["bytes_received"] < size + 1000


def test_what_the_origin_and_the_client_are_told(proxy: Proxy, serve: Serve) -> None:
    server = Scripted(switches)
    authority = f"origin.test:{serve(server).port}"
    client, response = opened(proxy, authority)
    with client:
        assert (response.status, response["upgrade"]) == (101, "WebSocket")
        assert response["connection"].lower() == "upgrade"
        assert response["sec-websocket-accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        assert "content-length" not in response
        assert "transfer-encoding" not in response
        client.send(b"ping\0\xff")
        assert client.exactly(6) == b"ping\0\xff"
        assert proxy.metrics()["egress_proxy_tunnels_active"] == 1
        assert proxy.idle_origins() == 0
        # An end is passed on, and answered.
        client.eof()
        assert client.rest() == b""
    fields = _fields(server.heads[0][0])
    assert (fields["connection"], fields["upgrade"]) == ("Upgrade", "websocket")
    assert fields["sec-websocket-key"] == "dGhlIHNhbXBsZSBub25jZQ=="
    assert fields["sec-websocket-protocol"] == "chat"
    line = proxy.wait_for_line(event="ALLOWED")
    assert (line["status"], line["bytes_sent"], line["bytes_received"]) == (101, 6, 6)
    assert proxy.metrics()["egress_proxy_tunnels_active"] == 0


def test_bytes_that_come_with_the_request_and_with_the_101(proxy: Proxy, serve: Serve) -> None:
    """What is behind them belongs to the other protocol: it goes on in order, and is never read as HTTP."""
    smuggled = "GET http://denied.test/ HTTP/1.1\r\nHost: denied.test\r\n\r\n"
    server = serve(Scripted(partial(switches, behind=b"HTTP/1.1 200 OK\r\n\r\nfirst")))
    client, _ = opened(proxy, f"origin.test:{server.port}", smuggled)
    with client:
        said = b"HTTP/1.1 200 OK\r\n\r\nfirst"
        assert client.exactly(len(said)) == said
        # The scripted origin has taken what came with the request for another one, and does not echo that.
        client.send(b"second")
        assert client.exactly(6)[-6:] in {b"second", smuggled.encode()[:6]}
    assert len(proxy.stop()) == 1


def test_nothing_goes_on_before_the_101(proxy: Proxy, serve: Serve) -> None:
    """What the client says ahead is not the origin's as long as the two still speak HTTP."""
    heard: list[bytes] = []

    def origin(connection: socket.socket) -> None:
        heard.append(connection.recv(65536))
        connection.settimeout(0.2)
        with contextlib.suppress(TimeoutError):
            heard.append(connection.recv(65536))
        connection.sendall(answer("no", status="426 Upgrade Required"))

    client, response = opened(proxy, f"origin.test:{serve(origin).port}", "early")
    with client:
        assert response.status == 426
    assert len(heard) == 1
    assert heard[0].endswith(b"\r\n\r\n")


# What does not pass ---------------------------------------------------------------------------------------------------

NOT_PASSED = [
    (
        "GET",
        "1.1",
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
    ),
    ("GET", "1.1", "Connection: Upgrade\r\nUpgrade: websocket, h2c\r\n"),
    ("GET", "1.1", "Connection: Upgrade\r\nUpgrade: h2c\r\nUpgrade: websocket\r\n"),
    ("GET", "1.1", "Connection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n"),
    ("GET", "1.1", "Connection: Upgrade\r\nUpgrade: TLS/1.0\r\n"),
    ("GET", "1.1", "Connection: Upgrade\r\nUpgrade: websocket/13\r\n"),
    ("GET", "1.1", "Upgrade: websocket\r\n"),
    ("GET", "1.1", "Connection: close\r\nUpgrade: websocket\r\n"),
    ("GET", "1.0", "Connection: Upgrade\r\nUpgrade: websocket\r\n"),
    ("POST", "1.1", "Connection: Upgrade\r\nUpgrade: websocket\r\n"),
    ("HEAD", "1.1", "Connection: Upgrade\r\nUpgrade: websocket\r\n"),
    ("GET", "1.1", "Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 0\r\n"),
    ("GET", "1.1", "Connection: Upgrade\r\n"),
]


def test_what_is_not_asked_of_the_origin_and_not_taken_from_it(proxy: Proxy, serve: Serve) -> None:
    """The request goes on without Upgrade (RFC 9110 §7.8 lets us); an origin that switches all the same is refused."""
    for method, version, head in NOT_PASSED:
        polite = Scripted(echoes)
        rude = Scripted(partial(_switches_to, b"h2c"))
        ruder = Scripted(switches)
        for server, status in ((polite, 200), (rude, 502), (ruder, 502)):
            authority = f"origin.test:{serve(server).port}"
            with proxy.client() as client:
                client.send(
                    f"{method} http://{authority}/ HTTP/{version}\r\nHost: {authority}\r\n{head}\r\n"
                )
                assert client.response(method).status == status, head
            fields = _fields(server.heads[0][0])
            assert not {"upgrade", "http2-settings"} & set(fields), head
            assert fields.get("connection", "close") == "close", head
    assert proxy.metrics()["egress_proxy_tunnels_active"] == 0


def _switches_to(protocol: bytes, asked: Asked) -> bool:
    asked.socket.sendall(
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %b\r\n\r\n" % protocol
    )
    echo(asked.socket)
    return True


BAD_ANSWERS = [
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket, h2c\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\r\n",
    b"HTTP/1.0 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
]


def test_a_switch_to_something_else(proxy: Proxy, serve: Serve) -> None:
    for number, said in enumerate(BAD_ANSWERS, 1):
        client, response = opened(
            proxy, f"origin.test:{serve(ScriptedParent(then_echoes(said))).port}"
        )
        with client:
            assert response.status == 502, said
            assert response.error["reason"] == "origin_malformed"
            assert client.is_closed()
        proxy.wait_for_lines(number, event="FAILED", status=502)


def test_an_origin_that_does_not_switch(proxy: Proxy, serve: Serve) -> None:
    """Its answer is one like others, and so is the client's next request. But nobody else gets that connection."""
    server = Scripted(
        lambda asked: (
            echoes(asked)
            if asked.target != "/ws"
            else asked.socket.sendall(answer("no", status="426 Upgrade Required"))
        )
    )
    authority = f"origin.test:{serve(server).port}"
    client, response = opened(proxy, authority)
    with client:
        assert (response.status, response.body) == (426, b"no")
        assert proxy.idle_origins() == 0
        assert client.get(f"http://{authority}/next").body == b"/next"
    assert [len(heads) for heads in server.heads] == [1, 1]


def test_a_kept_connection_is_not_what_switches(proxy: Proxy, serve: Serve) -> None:
    server = Scripted(lambda asked: switches(asked) if asked.target == "/ws" else echoes(asked))
    authority = f"origin.test:{serve(server).port}"
    with proxy.client() as client:
        assert client.get(f"http://{authority}/").status == 200
    client, response = opened(proxy, authority)
    with client:
        assert response.status == 101
        assert [len(heads) for heads in server.heads] == [1, 1]


# How it ends ----------------------------------------------------------------------------------------------------------


def test_a_permission_that_is_taken_back(
    proxy: Proxy, serve: Serve, name_server: NameServer
) -> None:
    client, response = opened(proxy, f"origin.test:{serve(Scripted(switches)).port}")
    with client:
        assert response.status == 101
        reloaded(proxy, name_server, allow=[rule("other.test")])
        assert client.is_closed()
    line = proxy.wait_for_line(event="CLOSED")
    assert (line["reason"], line["status"]) == ("policy_revoked", 101)


def test_silence_ends_it(start_proxy: StartProxy, serve: Serve) -> None:
    proxy = start_proxy(timeouts={"idle": "200ms"})
    client, response = opened(proxy, f"origin.test:{serve(Scripted(switches)).port}")
    with client:
        assert response.status == 101
        assert client.is_closed(seconds=0.2 + SWEEP)
    line = proxy.wait_for_line(event="CLOSED")
    assert (line["reason"], line["status"]) == ("idle_timeout", 101)


def test_an_end_that_comes_with_the_101(proxy: Proxy, serve: Serve) -> None:
    """The tunnel may be over before it has begun, and its line says that all the same."""
    server = serve(ScriptedParent(says(SWITCHES + b"bye")))
    client, response = opened(proxy, f"origin.test:{server.port}")
    with client:
        assert response.status == 101
        client.eof()
        assert client.rest() == b"bye"
    assert proxy.wait_for_line(path="/ws")["status"] == 101


def test_through_a_parent(start_proxy: StartProxy, serve: Serve) -> None:
    parent = ScriptedParent(then_echoes(SWITCHES))
    proxy = start_proxy(upstream=through(serve(parent)))
    client, response = opened(proxy, "origin.test:80")
    with client:
        assert response.status == 101
        client.send("ping")
        assert client.exactly(4) == b"ping"
    fields = dict(parent.fields)
    assert (fields["connection"], fields["upgrade"]) == ("Upgrade", "websocket")
    assert parent.heads[0].startswith(b"GET http://origin.test/ws HTTP/1.1\r\n") or parent.heads[
        0
    ].startswith(b"GET http://origin.test:80/ws HTTP/1.1\r\n")
    line = proxy.wait_for_line(path="/ws")
    assert (line["event"], line["status"], line["bytes_sent"]) == ("ALLOWED", 101, 4)


async def test_a_permission_that_is_taken_back_while_the_101_is_on_its_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever looks for what to close goes through a list that was made before the tunnel was."""
    ours, theirs = socket.socketpair()
    closed: list[int] = []
    config: Any = SimpleNamespace(timeouts=SimpleNamespace(idle=60.0))
    worker: Any = SimpleNamespace(config=config, poller=SimpleNamespace(close=closed.append))
    exchange: Any = SimpleNamespace(switching=SWITCHES, rest=b"", status=None)
    record = Record()

    async def send(data: bytes, _seconds: float) -> None:
        assert data == SWITCHES
        worker.config = object()

    monkeypatch.setattr(plain, "reason_to_revoke", lambda *_: reasons.HOST_NOT_ALLOWED)
    monkeypatch.setattr(plain, "begin_tunnel", lambda *_, **__: pytest.fail("a tunnel"))
    client: Any = SimpleNamespace(send=send, buffer=b"")
    permit: Any = SimpleNamespace(destination=parse_authority(b"a.test:80", None))
    origin = socket.SocketType(fileno=ours.detach())
    descriptor = origin.fileno()
    with theirs:
        with pytest.raises(Interrupted) as caught:
            await plain._switch(worker, client, origin, config, permit, record, exchange)
        assert caught.value.reason is reasons.POLICY_REVOKED
        assert closed == [descriptor]
        socket.socket(fileno=descriptor).close()
