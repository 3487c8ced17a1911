"""What tests of the edges share: bare requests, a proxy that stands still, and one that is at rest."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.support.client import RawClient
from tests.support.proxy import Proxy
from tests.support.serving import Server
from tests.support.tools import MIB, wait_until


def request(url: str, *, method: str = "GET", head: str = "", version: str = "1.1") -> bytes:
    host = url.split("/")[2]
    return f"{method} {url} HTTP/{version}\r\nHost: {host}\r\n{head}\r\n".encode()


def connect(authority: str) -> bytes:
    return f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode()


def no_trace(proxy: Proxy) -> None:
    """Nothing went wrong inside."""
    assert "Traceback" not in proxy.stderr
    assert not {line.get("event") for line in proxy.events()} & {"defect", "library_message"}
    assert "internal_error" not in proxy.stdout


def at_rest(proxy: Proxy) -> None:
    """No connection is left, in the system's eyes and in the proxy's own."""
    proxy.settled()
    metrics = proxy.metrics()
    assert metrics["egress_proxy_connections_active"] == 0
    assert metrics["egress_proxy_tunnels_active"] == 0
    no_trace(proxy)


def wait_for(things: list[Any], count: int) -> None:
    """Until a peer's list has so many entries."""
    wait_until(lambda: len(things) == count, what=lambda: f"{count} entries in {things}")


@contextlib.contextmanager
def stopped(proxy: Proxy) -> Iterator[None]:
    """What the peers do meanwhile comes to the proxy at once."""
    proxy.signal(signal.SIGSTOP)
    wait_until(
        lambda: Path(f"/proc/{proxy.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T",
        what="the proxy's standstill",
    )
    try:
        yield
    finally:
        proxy.signal(signal.SIGCONT)


@contextlib.contextmanager
def in_background(*calls: Callable[[], object]) -> Iterator[None]:
    """Threads that end when their connections do."""

    def quietly(call: Callable[[], object]) -> None:
        with contextlib.suppress(OSError):
            call()

    threads = [threading.Thread(target=quietly, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()


def tunnel_whose_200_waits(
    proxy: Proxy, base: str, server: Server, *, early: bytes = b""
) -> tuple[RawClient, int]:
    """A client whose connection is filled to the last byte by an answer of that size when its tunnel is made."""
    target = f"origin.test:{server.port}"
    whole = f"/bytes/{8 * MIB}"
    for attempt in range(1, 21):
        accepted = server.accepted
        with proxy.client(receive_buffer=4096) as probe:
            probe.send(request(base + whole))
            time.sleep(0.2)
            probe.reset()
            size = proxy.wait_for_lines(attempt, path=whole)[-1]["bytes_received"]
        client = proxy.client(receive_buffer=4096, seconds=20)
        client.send(request(f"{base}/bytes/{size}"), connect(target), early)
        time.sleep(0.2)
        if server.accepted > accepted and not proxy.metrics()["egress_proxy_tunnels_active"]:
            return client, size
        client.reset()  # the system took another number of bytes this time
        wait_until(lambda: not proxy.metrics()["egress_proxy_connections_active"], what="its end")
    raise AssertionError("each time, the system took another number of bytes")
