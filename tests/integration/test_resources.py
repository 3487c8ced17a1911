"""After whatever happened, the proxy holds what it held before: no descriptor, no memory, no CPU time is lost."""

from __future__ import annotations

import contextlib
import time

import pytest

from tests.conftest import Serve, StartProxy
from tests.support.origin import Origin
from tests.support.proxy import Proxy
from tests.support.serving import echo, reset_after_first_bytes, say_nothing
from tests.support.tools import MIB, descriptors, wait_until


def _one_of_everything(proxy: Proxy, origin: Origin, echo_port: int, reset_port: int) -> None:
    base = f"http://origin.test:{origin.http}"
    with proxy.client() as client:
        assert client.connect(f"origin.test:{echo_port}").status == 200
        client.send(b"x" * 300_000)
        client.exactly(300_000)
    with proxy.client() as client:
        client.connect(f"origin.test:{reset_port}")
        client.send(b"x")
        assert client.is_closed()
    with proxy.client() as client:
        client.connect(f"origin.test:{echo_port}")
        client.send(b"x")
        client.reset()
    with proxy.client() as client:
        assert client.get(f"{base}/").status == 200
        assert client.get("http://denied.test/").status == 403
        assert client.get(f"{base}/bytes/{MIB}").status == 200
        assert client.get(f"{base}/malformed/garbage").status == 502
    with proxy.client() as client:
        client.send(f"GET {base}/endless HTTP/1.1\r\nHost: {base[7:]}\r\n\r\n")
        client.until(b"still")
    with proxy.client() as client:
        assert client.get(f"{base}/close").status == 502
    with proxy.client() as client:
        client.send(f"GET {base}/truncated HTTP/1.1\r\nHost: {base[7:]}\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            client.rest()
    with proxy.client() as client:
        assert client.connect("denied.test:443").status == 403
    with proxy.client() as client:
        assert client.connect("origin.test:1").status == 502
    with proxy.client() as client:
        client.send(b"nonsense\r\n\r\n")
        assert client.response().status == 400
    with proxy.client() as client:
        client.send(b"GET")
    proxy.client().close()


def test_descriptors_come_back(proxy: Proxy, origin: Origin, serve: Serve) -> None:
    echoing, resetting = serve(echo), serve(reset_after_first_bytes)
    for _ in range(3):  # what is opened once, pipes and the like
        _one_of_everything(proxy, origin, echoing.port, resetting.port)
    proxy.settled()
    before = len(descriptors(proxy.pid))
    for _ in range(20):
        _one_of_everything(proxy, origin, echoing.port, resetting.port)
    wait_until(
        lambda: len(descriptors(proxy.pid)) <= before,
        what=lambda: f"{before} descriptors, now {descriptors(proxy.pid)}",
    )
    metrics = proxy.metrics()
    assert metrics["egress_proxy_connections_active"] == 0
    assert metrics["egress_proxy_tunnels_active"] == 0


def test_memory_comes_back(proxy: Proxy, serve: Serve) -> None:
    server = serve(echo)

    def tunnels(count: int) -> None:
        for _ in range(count):
            with proxy.client() as client:
                client.connect(f"origin.test:{server.port}")
                client.send(b"x")
                client.exactly(1)
            with proxy.client() as client:
                client.get("http://denied.test/")

    tunnels(200)
    before = proxy.memory()
    tunnels(1500)
    assert proxy.memory() - before < 4 * MIB


def test_an_idle_tunnel_costs_no_cpu_time(proxy: Proxy, serve: Serve) -> None:
    """One whose client has ended its side included: no event is asked for again and again."""
    server = serve(say_nothing)
    with proxy.client() as idle, proxy.client() as half:
        idle.connect(f"origin.test:{server.port}")
        half.connect(f"origin.test:{server.port}")
        half.eof()
        time.sleep(0.2)
        before = _cpu(proxy)
        time.sleep(1)
        assert _cpu(proxy) - before < 0.1


def _cpu(proxy: Proxy) -> float:
    return time.clock_gettime((~proxy.pid << 3) | 2)  # CPUCLOCK_SCHED: clock_getcpuclockid(3)


@pytest.mark.parametrize("count", [600])
def test_hundreds_of_tunnels_at_once(start_proxy: StartProxy, serve: Serve, count: int) -> None:
    server = serve(echo)
    proxy = start_proxy()
    clients = [proxy.client() for _ in range(count)]
    try:
        for client in clients:
            client.send(f"CONNECT origin.test:{server.port} HTTP/1.1\r\nHost: origin.test\r\n\r\n")
        for number, client in enumerate(clients):
            assert client.response("CONNECT").status == 200
            client.send(b"%04d" % number)
        for number, client in enumerate(clients):
            assert client.exactly(4) == b"%04d" % number
        assert proxy.metrics()["egress_proxy_tunnels_active"] == count
    finally:
        for client in clients:
            client.close()
    proxy.wait_for_lines(count, event="ALLOWED", bytes_sent=4, bytes_received=4)
