"""An origin may end a connection that is kept at any moment: what is sent once more, and what never is."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import product

from tests.conftest import Serve, StartProxy
from tests.support.proxy import Proxy
from tests.support.scripted import Asked, Script, Scripted, answer, echoes
from tests.support.serving import reset
from tests.support.tools import wait_until


def closes(asked: Asked) -> bool:
    return True


def resets(asked: Asked) -> bool:
    reset(asked.socket)
    return True


def says(data: bytes, then: Callable[[Asked], bool] = closes) -> Callable[[Asked], bool]:
    def script(asked: Asked) -> bool:
        asked.socket.sendall(data)
        return then(asked)

    return script


class Stale(Scripted):
    """Answers the first request of each connection, and does something else to the second."""

    def __init__(self, does: Callable[[Asked], object], *, always: bool = False) -> None:
        def script(asked: Asked) -> object:
            if asked.number or always:
                return does(asked)
            echoes(asked)
            return False

        super().__init__(script)


def base_of(serve: Serve, server: Scripted) -> str:
    return f"http://origin.test:{serve(server).port}"


def test_the_end_that_meets_a_request(proxy: Proxy, serve: Serve) -> None:
    for does, method in product((closes, resets), ("GET", "HEAD", "OPTIONS", "PUT", "DELETE")):
        server = Stale(does)
        base = base_of(serve, server)
        with proxy.client() as client:
            assert client.get(f"{base}/1").body == b"/1"
            response = client.get(f"{base}/{method}", method=method)
            body = b"" if method == "HEAD" else f"/{method}".encode()
            assert (response.status, response.body) == (200, body)
        seen = [[head.split()[1].decode() for head in heads] for heads in server.heads]
        assert seen == [["/1", f"/{method}"], [f"/{method}"]]
    lines = [line for line in proxy.stop() if line["path"] != "/1"]
    # The client's request is one request, and it was connected to in the end.
    assert len(lines) == 10
    for line in lines:
        assert (line["event"], line["status"]) == ("ALLOWED", 200)
        assert "connect_ms" in line


def test_once_more_and_no_more(proxy: Proxy, serve: Serve) -> None:
    """With two that wait, and a new connection that ends as well."""
    for does, reason in ((closes, "origin_closed"), (resets, "origin_reset")):
        together = threading.Barrier(2)
        ending = threading.Event()

        def script(
            asked: Asked,
            does: Script = does,
            together: threading.Barrier = together,
            ending: threading.Event = ending,
        ) -> object:
            if ending.is_set():
                return does(asked)
            together.wait(10)
            echoes(asked)
            return False

        server = Scripted(script)
        base = base_of(serve, server)
        with proxy.client() as client, proxy.client() as other:
            for one in (client, other):
                one.send(f"GET {base}/ HTTP/1.1\r\nHost: {base[7:]}\r\n\r\n")
            for one in (client, other):
                assert one.response().status == 200
            ending.set()
            assert client.get(f"{base}/{reason}").error["reason"] == reason
        assert len(server.heads) == 3
        assert sorted(map(len, server.heads)) == [1, 1, 2]
        line = proxy.wait_for_line(path=f"/{reason}")
        assert (line["event"], line["status"]) == ("FAILED", 502)
        # Nor is a first connection tried twice.
        server = Stale(does, always=True)
        with proxy.client() as client:
            assert client.get(base_of(serve, server)).error["reason"] == reason
        assert len(server.heads) == 1


OK_10 = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"


HEARD = [
    (says(b"H"), "origin_malformed"),
    (says(b"HTTP/1.1 200 OK\r\nContent-"), "origin_malformed"),
    (says(b"HTTP/1.1 103 Early Hints\r\n\r\n"), "origin_closed"),
    (says(b"HTTP/1.1 100 Continue\r\n\r\n"), "origin_closed"),
    (says(b"\r\n"), "origin_malformed"),
    (says(OK_10 + b"half"), "origin_truncated"),
    (says(OK_10), "origin_truncated"),
]


def test_what_was_heard_of_is_not_asked_for_again(proxy: Proxy, serve: Serve) -> None:
    for number, (does, reason) in enumerate(HEARD):
        server = Stale(does)
        base = base_of(serve, server)
        with proxy.client() as client:
            assert client.get(f"{base}/first").status == 200
            client.send(f"GET {base}/{number} HTTP/1.1\r\nHost: {base[7:]}\r\n\r\n")
            line = proxy.wait_for_line(path=f"/{number}")
        assert (line["event"], line["reason"]) == ("FAILED", reason)
        assert [len(heads) for heads in server.heads] == [2]


def test_the_end_before_a_request(proxy: Proxy, serve: Serve) -> None:
    """Noticed while it waits, or by whoever would have taken it: nobody's request meets it."""
    over = threading.Event()

    def script(asked: Asked) -> bool:
        echoes(asked)
        return asked.target == "/last"

    server = Scripted(script)
    base = base_of(serve, server)
    with proxy.client() as client:
        for number in range(20):
            assert client.get(f"{base}/{number}").status == 200
            assert client.get(f"{base}/last").status == 200
            if number % 2:
                over.wait(0.001)
    assert [line["status"] for line in proxy.stop()] == [200] * 40


def test_an_end_with_nobody_there_is_seen_at_once(proxy: Proxy, serve: Serve) -> None:
    go = threading.Event()

    def script(asked: Asked) -> bool:
        echoes(asked)
        return go.wait(10)

    base = base_of(serve, Scripted(script))
    with proxy.client() as client:
        assert client.get(f"{base}/").status == 200
        assert proxy.idle_origins() == 1
        go.set()
        wait_until(lambda: proxy.idle_origins() == 0)


def test_a_request_that_was_pipelined_behind_is_not_lost(proxy: Proxy, serve: Serve) -> None:
    server = Stale(closes)
    base = base_of(serve, server)
    with proxy.client() as client:
        client.send(
            "".join(
                f"GET {base}/{number} HTTP/1.1\r\nHost: {base[7:]}\r\n\r\n" for number in range(6)
            )
        )
        assert [client.response().body for _ in range(6)] == [b"/%d" % n for n in range(6)]
    assert sum(map(len, server.heads)) == 11


def test_an_origin_that_is_silent_is_not_asked_again(start_proxy: StartProxy, serve: Serve) -> None:
    go = threading.Event()
    server = Stale(lambda _: go.wait(10))
    base = base_of(serve, server)
    proxy = start_proxy(timeouts={"response": "200ms"})
    with proxy.client() as client:
        assert client.get(f"{base}/1").status == 200
        assert client.get(f"{base}/2").error["reason"] == "origin_timeout"
    go.set()
    assert [len(heads) for heads in server.heads] == [2]


def test_a_timeout_that_an_origin_tells_to_nobody(proxy: Proxy, serve: Serve) -> None:
    """Some say 408 before they close a connection that waits. It is an answer to nothing that was asked."""
    said = threading.Event()

    def script(asked: Asked) -> bool:
        echoes(asked)
        if asked.target == "/1":
            asked.socket.sendall(answer("late", status="408 Request Timeout"))
            said.set()
            return True
        return False

    server = Scripted(script)
    base = base_of(serve, server)
    with proxy.client() as client:
        assert client.get(f"{base}/1").status == 200
        assert said.wait(10)
        assert client.get(f"{base}/2").body == b"/2"
