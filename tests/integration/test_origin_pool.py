"""Connections to origins that are used again: by whom, for what, how often, and when not."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path

from tests.conftest import Serve, StartProxy
from tests.support.client import RawClient
from tests.support.credentials import authorization, write_users
from tests.support.dns import Answer, NameServer
from tests.support.origin import Exchange, Origin
from tests.support.parent import reloaded, through
from tests.support.proxy import Proxy, rule
from tests.support.scripted import Asked, Scripted, answer, echoes
from tests.support.tools import wait_until


def get(proxy: Proxy, url: str, head: str = "", **options: object) -> bytes:
    """The body of an answer that a client of its own gets."""
    with RawClient(proxy.address, **options) as client:  # type: ignore[arg-type]  # those of a client
        response = client.get(url, head=head)
        assert response.status == 200, response
        return response.body


# It is used again -----------------------------------------------------------------------------------------------------


def test_the_next_request_goes_over_the_same_connection(
    proxy: Proxy, origin: Origin, base: str
) -> None:
    with proxy.client() as client:
        for path in ("/", "/chunked/100", "/status/204", "/status/304", "/bytes/70000", "/interim"):
            assert client.get(base + path).status in {200, 204, 304, 103}
            if path == "/interim":
                assert client.response().body == b"final\n"
        assert client.get(f"{base}/bytes/9", method="HEAD").status == 200
    # Nor does it matter whose it was, of clients for whom the same is allowed; or that he left.
    for _ in range(3):
        assert get(proxy, f"{base}/", source="127.0.0.9") == b"hello from http\n"
    assert origin.http_server.accepted == 1
    assert not any(b"\r\nConnection:" in head for head in origin.heads)
    assert proxy.idle_origins() == 1
    lines = proxy.stop()
    assert len(lines) == 10
    assert {line["address"] for line in lines} == {"127.0.0.1"}
    assert ["connect_ms" in line for line in lines] == [True, *[False] * 9]


def test_a_client_that_leaves_its_connection_leaves_the_origins(
    proxy: Proxy, origin: Origin, base: str
) -> None:
    for head in ("Connection: close\r\n", "Proxy-Connection: close\r\n", ""):
        assert get(proxy, f"{base}/", head) == b"hello from http\n"
    with proxy.client() as client:
        client.send(f"GET {base}/ HTTP/1.0\r\n\r\n")
        assert client.response().body == b"hello from http\n"
    assert origin.http_server.accepted == 1


def test_a_download_that_a_client_breaks_off_is_not_finished_for_the_next(
    proxy: Proxy, origin: Origin, base: str
) -> None:
    with proxy.client() as client:
        client.send(f"GET {base}/endless HTTP/1.1\r\nHost: {base[7:]}\r\n\r\n")
        client.until(b"still here")
        client.reset()
    proxy.wait_for_line(reason="client_aborted")
    assert get(proxy, f"{base}/") == b"hello from http\n"
    assert origin.http_server.accepted == 2


def test_what_carried_a_body_or_might_have_is_not_used_again(
    proxy: Proxy, origin: Origin, base: str
) -> None:
    requests = [
        ("POST", "Content-Length: 2\r\n", b"ab"),
        ("PUT", "Transfer-Encoding: chunked\r\n", b"2\r\nab\r\n0\r\n\r\n"),
        ("GET", "Content-Length: 2\r\n", b"ab"),
        ("DELETE", "Content-Length: 0\r\n", b""),
    ]
    with proxy.client() as client:
        assert client.get(f"{base}/").status == 200
        for count, (method, head, body) in enumerate(requests, 2):
            assert client.get(f"{base}/upload", method=method, head=head, body=body).status == 200
            assert origin.http_server.accepted == count
            assert b"\r\nConnection: close\r\n" in origin.heads[-1]
        # None of them took it, and none of them left another.
        assert client.get(f"{base}/").status == 200
    assert origin.http_server.accepted == len(requests) + 1
    assert proxy.idle_origins() == 1


def test_a_post_without_a_body_takes_none(proxy: Proxy, origin: Origin, base: str) -> None:
    """If it met the connection's end, nobody could say whether it was carried out."""
    for count, method in enumerate(("GET", "POST", "PATCH"), 1):
        with proxy.client() as client:
            assert client.get(f"{base}/", method=method).status == 200
        assert origin.http_server.accepted == count
    with proxy.client() as client:
        for method in ("GET", "HEAD", "OPTIONS", "PUT", "DELETE"):
            assert client.get(f"{base}/", method=method).status == 200
    assert origin.http_server.accepted == 3


def test_a_connection_that_was_logged_in_is_nobodys(
    proxy: Proxy, origin: Origin, base: str
) -> None:
    for count, scheme in enumerate(("NTLM", "negotiate", "Negotiate"), 1):
        get(proxy, f"{base}/", f"Authorization: {scheme} TlRMTVNTUAAB\r\n")
        assert origin.http_server.accepted == count
        assert proxy.idle_origins() == 0
    get(proxy, f"{base}/", "Authorization: Basic b3JpZ2lu\r\n")
    get(proxy, f"{base}/")
    assert origin.http_server.accepted == 4


LASTING = [
    ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n", True),
    ("HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n", True),
    ("HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 2\r\n", True),
    ("HTTP/1.0 200 OK\r\nContent-Length: 2\r\n", False),
    ("HTTP/1.1 200 OK\r\nConnection: x, Close\r\nContent-Length: 2\r\n", False),
    (
        "HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nConnection: close\r\nContent-Length: 2\r\n",
        False,
    ),
]


def test_the_origin_says_whether_it_stays(proxy: Proxy, serve: Serve) -> None:
    for said, again in LASTING:
        whole = f"{said}\r\nok".encode()
        server = Scripted(partial(_say, whole))
        base = f"http://origin.test:{serve(server).port}"
        assert [get(proxy, base), get(proxy, base)] == [b"ok", b"ok"]
        assert [len(heads) for heads in server.heads] == ([2] if again else [1, 1]), said


def _say(data: bytes, asked: Asked) -> None:
    asked.socket.sendall(data)


# Among whom -----------------------------------------------------------------------------------------------------------


def test_users_share_with_nobody(
    start_proxy: StartProxy, origin: Origin, base: str, tmp_path: Path
) -> None:
    users = write_users(tmp_path / "users", batch="correct-horse", ci="correct-horse")
    proxy = start_proxy(credentials={"users_file": str(users), "required": False})
    batch, ci = authorization("batch", "correct-horse"), authorization("ci", "correct-horse")
    for count, head in enumerate((batch, ci, ""), 1):
        get(proxy, f"{base}/", head)
        get(proxy, f"{base}/", head)
        assert origin.http_server.accepted == count
    # One client connection, other users: each has its own.
    with proxy.client() as client:
        for head in (batch, ci, "", batch):
            assert client.get(f"{base}/", head=head).status == 200
    assert origin.http_server.accepted == 3


def test_clients_with_other_policies_share_with_nobody(
    start_proxy: StartProxy, origin: Origin, base: str
) -> None:
    more = {"name": "more", "subjects": [{"cidr": "127.0.0.2/32"}], "allow": ["elsewhere.test"]}
    proxy = start_proxy(policies=[{"name": "all", "allow": [rule("origin.test")]}, more])
    for source in ("127.0.0.1", "127.0.0.2", "127.0.0.1", "127.0.0.3", "127.0.0.2"):
        get(proxy, f"{base}/", source=source)
    assert origin.http_server.accepted == 2


def test_another_name_or_port_is_another_destination(
    start_proxy: StartProxy, origin: Origin, serve: Serve
) -> None:
    proxy = start_proxy(allow=[rule("origin.test"), rule("other.test")])
    other = Scripted(echoes)
    urls = [f"http://{host}.test:{origin.http}/head" for host in ("origin", "other")]
    urls.append(f"http://origin.test:{serve(other).port}/")
    for _ in range(2):
        assert [get(proxy, url) for url in urls][2] == b"/"
    assert origin.http_server.accepted == 2
    assert [len(heads) for heads in other.heads] == [2]


# What ends it ---------------------------------------------------------------------------------------------------------


def test_a_reload_closes_all(proxy: Proxy, serve: Serve, name_server: NameServer) -> None:
    server = Scripted(echoes)
    base = f"http://origin.test:{serve(server).port}"
    get(proxy, base)
    reloaded(proxy, name_server, allow=[rule("origin.test"), rule("more.test")])
    wait_until(lambda: server.ended == [True])
    assert proxy.idle_origins() == 0
    get(proxy, base)
    # A rule that is taken back.
    reloaded(proxy, name_server, allow=[rule("more.test")])
    wait_until(lambda: server.ended == [True, True])
    with proxy.client() as client:
        assert client.get(base).error["reason"] == "host_not_allowed"


def test_a_reload_in_the_middle_of_an_answer(
    proxy: Proxy, origin: Origin, base: str, name_server: NameServer
) -> None:
    """It goes on, for it is still allowed; but its connection is not kept under a policy that it was not made for."""
    going, go = threading.Event(), threading.Event()

    def slow(exchange: Exchange) -> None:
        exchange.start("Content-Length: 2\r\n")
        going.set()
        assert go.wait(10)
        exchange.connection.sendall(b"ok")

    origin.extensions["/slow"] = slow
    with proxy.client() as client:
        client.send(f"GET {base}/slow HTTP/1.1\r\nHost: {base[7:]}\r\n\r\n")
        assert going.wait(10)
        reloaded(proxy, name_server, allow=[rule("origin.test"), rule("more.test")])
        go.set()
        assert client.response().body == b"ok"
        assert proxy.idle_origins() == 0
        assert client.get(f"{base}/").status == 200
    assert origin.http_server.accepted == 2


def test_a_name_that_leads_elsewhere(
    start_proxy: StartProxy, serve: Serve, name_server: NameServer
) -> None:
    first, second = (
        Scripted(partial(_say, answer("first"))),
        Scripted(partial(_say, answer("second"))),
    )
    port = serve(first).port
    serve(second, host="127.0.0.2", port=port)
    lifted = rule("origin.test", allow_private=["127.0.0.1/32", "127.0.0.2/32"])
    proxy = start_proxy(allow=[lifted], dns={"min_ttl": "0s"})
    url = f"http://origin.test:{port}/"
    name_server.set("origin.test", Answer(("127.0.0.1",), ttl=0))
    assert [get(proxy, url), get(proxy, url)] == [b"first", b"first"]
    name_server.set("origin.test", Answer(("127.0.0.2",), ttl=0))
    assert [get(proxy, url), get(proxy, url)] == [b"second", b"second"]
    assert [len(first.heads), len(second.heads)] == [1, 1]
    wait_until(lambda: first.ended == [True])
    # And where the gate does not let it: what waits is not a way in.
    name_server.set("origin.test", Answer(("127.0.0.3",), ttl=0))
    with proxy.client() as client:
        assert client.get(url).status == 403


def test_nobody_waits_for_ever(start_proxy: StartProxy, serve: Serve) -> None:
    server = Scripted(echoes)
    proxy = start_proxy(timeouts={"origin_keep_alive": "100ms"})
    get(proxy, f"http://origin.test:{serve(server).port}/")
    wait_until(lambda: server.ended == [True])
    assert proxy.idle_origins() == 0


def test_draining_closes_them_at_once_and_keeps_no_more(
    start_proxy: StartProxy, serve: Serve
) -> None:
    go = threading.Event()

    def script(asked: Asked) -> None:
        if asked.target == "/slow":
            asked.socket.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
            assert go.wait(10)
            asked.socket.sendall(b"ok")
        else:
            echoes(asked)

    server = Scripted(script)
    base = f"http://origin.test:{serve(server).port}"
    proxy = start_proxy(drain_timeout="20s")
    with proxy.client() as client:
        client.send(f"GET {base}/slow HTTP/1.1\r\nHost: {base[7:]}\r\n\r\n")
        client.until(b"\r\n\r\n")
        get(proxy, f"{base}/")
        assert proxy.idle_origins() == 1
        proxy.process.terminate()
        wait_until(lambda: server.ended == [False, True])
        go.set()
        assert client.exactly(2) == b"ok"
        # It would wait for the one that was kept.
        assert proxy.wait(10) == 0


# How many -------------------------------------------------------------------------------------------------------------


def test_none_at_all(start_proxy: StartProxy, origin: Origin, base: str) -> None:
    proxy = start_proxy(limits={"idle_origins": 0})
    with proxy.client() as client:
        for _ in range(3):
            assert client.get(f"{base}/").status == 200
    assert origin.http_server.accepted == 3
    assert all(b"\r\nConnection: close\r\n" in head for head in origin.heads)
    assert proxy.idle_origins() == 0


def test_no_more_than_the_bounds(start_proxy: StartProxy, serve: Serve) -> None:
    """Of 200 that are in flight at once, to three origins."""
    count = 200
    together = threading.Barrier(count)

    def script(asked: Asked) -> None:
        if asked.number == 0:
            together.wait(20)
        echoes(asked)

    servers = [Scripted(script) for _ in range(3)]
    ports = [serve(server).port for server in servers]
    proxy = start_proxy(limits={"idle_origins": 12, "idle_per_origin": 5})
    clients = [proxy.client(seconds=30) for _ in range(count)]
    try:
        for number, client in enumerate(clients):
            authority = f"origin.test:{ports[number % 3]}"
            client.send(f"GET http://{authority}/{number} HTTP/1.1\r\nHost: {authority}\r\n\r\n")
        for number, client in enumerate(clients):
            assert client.response().body == f"/{number}".encode()
        assert proxy.idle_origins() == 12
        wait_until(lambda: sum(sum(server.ended) for server in servers) == count - 12)
        left = sorted(server.ended.count(False) for server in servers)
        assert left[2] <= 5
    finally:
        for client in clients:
            client.close()


def test_a_parents_are_for_one_request(start_proxy: StartProxy, serve: Serve) -> None:
    parent = Scripted(partial(_say, answer("from the parent")))
    proxy = start_proxy(upstream=through(serve(parent)))
    for _ in range(2):
        assert get(proxy, "http://origin.test/") == b"from the parent"
    assert [len(heads) for heads in parent.heads] == [1, 1]
    assert all(b"\r\nConnection: close\r\n" in head for (head,) in parent.heads)
    assert proxy.idle_origins() == 0
