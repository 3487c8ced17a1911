"""The end of the process in every state of a connection: nobody is cut without a line, and nothing holds it up."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import Serve, StartProxy
from tests.support.client import RawClient
from tests.support.dns import SILENCE, NameServer
from tests.support.edges import tunnel_whose_200_waits
from tests.support.origin import Origin
from tests.support.proxy import SWEEP, Proxy, rule
from tests.support.serving import echo, full_backlog, say_nothing
from tests.support.tools import MIB, blocks, wait_until

Fields = dict[str, Any]


class Stage:
    """Where connections can be brought into any state."""

    def __init__(self, origin: Origin, serve: Serve, silent_port: int) -> None:
        self.base = f"http://origin.test:{origin.http}"
        self.heads = origin.heads
        self.echo = serve(echo).port
        self.silent = silent_port
        self.pushing = serve(self._push).port
        self.deaf = serve(self._never_read, receive_buffer=4096).port
        self.over = threading.Event()

    def _push(self, connection: socket.socket) -> None:
        for block in blocks(64 * MIB):
            connection.sendall(block)

    def _never_read(self, connection: socket.socket) -> None:
        self.over.wait(20)

    def request(self, path: str, method: str = "GET", head: str = "") -> str:
        return f"{method} {self.base}{path} HTTP/1.1\r\nHost: {self.base[7:]}\r\n{head}\r\n"

    # Each returns what its audit line must say ------------------------------------------------

    def reading_a_head(self, client: RawClient) -> Fields:
        client.send("GET http://origin.test/ HTTP/1.1\r\nHost: ori")
        return {}

    def resolving(self, client: RawClient) -> Fields:
        client.send("CONNECT silence.test:443 HTTP/1.1\r\nHost: silence.test:443\r\n\r\n")
        return {"host": "silence.test"}

    def resolving_for_a_get(self, client: RawClient) -> Fields:
        client.send("GET http://silence.test/ HTTP/1.1\r\nHost: silence.test\r\n\r\n")
        return {"host": "silence.test", "path": "/"}

    def dialling(self, client: RawClient) -> Fields:
        target = f"origin.test:{self.silent}"
        client.send(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n")
        return {"port": self.silent}

    def dialling_again(self, client: RawClient) -> Fields:
        assert client.get(f"{self.base}/bytes/10").status == 200
        return self.dialling(client)

    def tunnelling(self, client: RawClient) -> Fields:
        assert client.connect(f"origin.test:{self.echo}").status == 200
        client.send(b"x" * 200_000)
        assert client.exactly(200_000) == b"x" * 200_000
        return {"bytes_sent": 200_000, "bytes_received": 200_000, "status": 200}

    def tunnelling_half_closed(self, client: RawClient) -> Fields:
        assert client.connect(f"origin.test:{self.deaf}").status == 200
        client.send(b"bye")
        client.eof()
        return {"bytes_sent": 3, "bytes_received": 0, "status": 200}

    def tunnelling_to_a_slow_reader(self, client: RawClient) -> Fields:
        assert client.connect(f"origin.test:{self.pushing}").status == 200
        client.exactly(100_000)
        return {"bytes_sent": 0, "status": 200}

    def tunnelling_to_a_slow_origin(self, client: RawClient) -> Fields:
        assert client.connect(f"origin.test:{self.deaf}").status == 200
        client.socket.settimeout(0.2)
        with contextlib.suppress(TimeoutError):
            for block in blocks(64 * MIB):
                client.socket.sendall(block)
        client.socket.settimeout(10)
        return {"bytes_received": 0, "status": 200}

    def sending_a_body(self, client: RawClient) -> Fields:
        client.send(self.request("/upload", "PUT", "Content-Length: 1000\r\n"), b"x" * 10)
        return {"method": "PUT", "bytes_sent": 10}

    def waiting_for_an_answer(self, client: RawClient) -> Fields:
        client.send(self.request("/hang"))
        return {"path": "/hang"}

    def receiving_a_body(self, client: RawClient) -> Fields:
        client.send(self.request("/half"))
        client.until(b"hello")
        return {"path": "/half", "status": 200, "bytes_received": 5}

    def receiving_a_body_slowly(self, client: RawClient) -> Fields:
        client.send(self.request(f"/bytes/{64 * MIB}"))
        client.until(b"\r\n\r\n")
        return {"status": 200}


STATES = [name for name, value in vars(Stage).items() if name[0] != "_" and name != "request"]
#: Nothing has been sent to these clients, so that they can still be told.
UNANSWERED = [
    "reading_a_head",
    "resolving",
    "resolving_for_a_get",
    "dialling",
    "dialling_again",
    "sending_a_body",
    "waiting_for_an_answer",
]


@pytest.fixture
def stage(origin: Origin, serve: Serve, name_server: NameServer) -> Iterator[Stage]:
    name_server.set("silence.test", SILENCE)
    with full_backlog() as port:
        made = Stage(origin, serve, port)
        yield made
        made.over.set()


@contextlib.contextmanager
def _crowd(
    start_proxy: StartProxy, stage: Stage, *, drain_timeout: str
) -> Iterator[tuple[Proxy, dict[str, RawClient], dict[str, Fields]]]:
    """A proxy with a client in each state, and what their lines must say."""
    proxy = start_proxy(
        allow=[rule("origin.test"), rule("silence.test")],
        dns={"timeout": "30s"},
        timeouts={"connect": "30s", "connect_attempt": "30s", "head": "30s"},
        drain_timeout=drain_timeout,
    )
    with contextlib.ExitStack() as stack:
        clients = {
            name: stack.enter_context(proxy.client(receive_buffer=16_384)) for name in STATES
        }
        expected = {name: getattr(stage, name)(client) for name, client in clients.items()}
        wait_until(
            lambda: proxy.metrics()["egress_proxy_connections_active"] == len(STATES),
            what="a connection in each state",
        )
        time.sleep(0.1)
        yield proxy, clients, expected


def _check_lines(proxy: Proxy, expected: dict[str, Fields]) -> None:
    """One for each that was cut, and none but these, apart from the one request that was served whole."""
    lines = [line for line in proxy.lines if line["event"] != "ALLOWED"]
    assert len(lines) == len(expected), lines
    assert {(line["event"], line["reason"]) for line in lines} == {("CLOSED", "drain_timeout")}
    for name, fields in expected.items():
        assert any(fields.items() <= line.items() for line in lines), (name, lines)
    assert len({line["request_id"] for line in proxy.lines}) == len(proxy.lines)
    assert "DENIED" not in proxy.stdout
    _check_events(proxy)


def _check_events(proxy: Proxy) -> None:
    assert "Traceback" not in proxy.stderr
    assert not [line for line in proxy.events() if line.get("level") == "error"]


def test_nothing_outlives_the_drain_timeout(start_proxy: StartProxy, stage: Stage) -> None:
    with _crowd(start_proxy, stage, drain_timeout="700ms") as (proxy, clients, expected):
        start = time.monotonic()
        proxy.signal(signal.SIGTERM)
        assert proxy.wait() == 0
        assert 0.6 < time.monotonic() - start < 0.7 + 2 * SWEEP
        _check_lines(proxy, expected)
        for client in clients.values():
            with contextlib.suppress(ConnectionResetError):
                client.rest()


def test_who_has_no_answer_yet_is_told_when_time_is_over(
    start_proxy: StartProxy, stage: Stage
) -> None:
    """The reason has a status for it: 503, and when to come again."""
    with _crowd(start_proxy, stage, drain_timeout="300ms") as (proxy, clients, _):
        proxy.signal(signal.SIGTERM)
        assert proxy.wait() == 0
        for name in UNANSWERED:
            response = clients[name].response()
            assert (response.status, response.error["reason"]) == (503, "drain_timeout"), name
            assert response["retry-after"]
            assert clients[name].is_closed()


def test_a_second_signal_cuts_everything_at_once(start_proxy: StartProxy, stage: Stage) -> None:
    with _crowd(start_proxy, stage, drain_timeout="30s") as (proxy, _, expected):
        start = time.monotonic()
        proxy.signal(signal.SIGTERM)
        proxy.wait_for_event("draining")
        proxy.signal(signal.SIGTERM)
        assert proxy.wait() == 0
        assert time.monotonic() - start < 3
        _check_lines(proxy, expected)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_up_to_the_very_end(
    start_proxy: StartProxy, stage: Stage, number: signal.Signals
) -> None:
    """None of them makes a good end a bad one, not even after the event loop has ended."""
    proxy = start_proxy(drain_timeout="100ms")
    with proxy.client() as client:
        expected = stage.tunnelling(client)
        proxy.signal(signal.SIGTERM)
        while proxy.process.poll() is None:
            proxy.signal(number)
            time.sleep(0.0005)
    assert proxy.wait() == 0
    (line,) = proxy.lines
    assert expected.items() <= line.items()
    _check_events(proxy)


def test_what_has_begun_is_finished(start_proxy: StartProxy, stage: Stage) -> None:
    """Whoever goes on while the proxy drains is served to the end, and then closed."""
    proxy = start_proxy(drain_timeout="10s")
    with contextlib.ExitStack() as stack:

        def client() -> RawClient:
            return stack.enter_context(proxy.client())

        upload, half_head, pipelined, tunnel, drip = (client() for _ in range(5))
        stage.sending_a_body(upload)
        half_head.send("GET http://origin.test/ HTTP/1.1\r\n")
        pipelined.send(stage.request("/drip/10"), stage.request("/"))
        stage.tunnelling(tunnel)
        drip.send(stage.request("/drip/10"))
        drip.until(b"\r\n\r\n")
        proxy.signal(signal.SIGTERM)
        proxy.wait_for_event("draining")
        upload.send(b"x" * 990)
        response = upload.response()
        assert response.status == 200
        assert b'"length": 1000' in response.body
        assert upload.is_closed()
        half_head.send("Host: origin.test\r\n\r\n")
        response = half_head.response()
        assert (response.status, response.error["reason"]) == (503, "draining")
        assert half_head.is_closed()
        assert pipelined.response().body == b"." * 10
        response = pipelined.response()
        assert (response.status, response.error["reason"]) == (503, "draining")
        assert pipelined.is_closed()
        assert drip.exactly(10) == b"." * 10
        assert drip.is_closed()
        for size in (1, 70_000, 300_000):
            tunnel.send(b"y" * size)
            assert tunnel.exactly(size) == b"y" * size
        tunnel.eof()
        assert tunnel.is_closed()
    start = time.monotonic()
    assert proxy.wait() == 0
    assert time.monotonic() - start < 2
    events = sorted(line["event"] for line in proxy.lines)
    assert events == ["ALLOWED"] * 4 + ["FAILED"] * 2
    _check_events(proxy)


def test_a_200_that_waits(start_proxy: StartProxy, serve: Serve, origin: Origin) -> None:
    """The one state that takes some doing; see there."""
    proxy = start_proxy(drain_timeout="500ms")
    server = serve(say_nothing)
    client, _ = tunnel_whose_200_waits(proxy, f"http://origin.test:{origin.http}", server)
    with client:
        proxy.signal(signal.SIGTERM)
        assert proxy.wait() == 0
    line = proxy.wait_for_line(method="CONNECT", event="CLOSED")
    assert line["reason"] == "drain_timeout"
    _check_events(proxy)


def test_who_was_let_in_by_the_system_is_not_reset(start_proxy: StartProxy) -> None:
    """Requests that wait to be accepted when the signal comes have been sent in good faith."""
    proxy = start_proxy(drain_timeout="5s")
    with contextlib.ExitStack() as stack:
        proxy.signal(signal.SIGSTOP)
        clients = [stack.enter_context(proxy.client()) for _ in range(400)]
        for client in clients:
            client.send("GET http://denied.test/ HTTP/1.1\r\nHost: denied.test\r\n\r\n")
        proxy.signal(signal.SIGTERM)
        time.sleep(0.05)
        proxy.signal(signal.SIGCONT)
        for client in clients:
            assert client.response().status in {403, 503}
    assert proxy.wait() == 0
    assert len(proxy.lines) == 400
