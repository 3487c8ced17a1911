"""Absolute-form HTTP: what reaches the origin, what comes back, and what becomes of the client's connection."""

from __future__ import annotations

import hashlib
import json
import threading
import time

import pytest

from tests.conftest import StartProxy
from tests.support.client import RawClient
from tests.support.origin import Exchange, Origin
from tests.support.proxy import SWEEP, Proxy
from tests.support.tools import MIB, blocks, digest_of_blocks, socket_buffers, wait_until


def _lines(head: bytes) -> list[str]:
    return head.decode().removesuffix("\r\n\r\n").split("\r\n")


def test_the_origin_sees_a_clean_request(proxy: Proxy, origin: Origin, base: str) -> None:
    with proxy.client() as client:
        response = client.get(
            f"{base}/head?a=b&c=%20",
            head=(
                "User-Agent: test\r\nAccept: */*\r\nAuthorization: Basic b3JpZ2lu\r\n"
                "Proxy-Authorization: Basic cHJveHk=\r\nProxy-Connection: keep-alive\r\n"
                "Proxy-Anything: x\r\nConnection: keep-alive, X-Hop\r\nKeep-Alive: timeout=5\r\n"
                "X-Hop: secret\r\nTE: trailers\r\nUpgrade: websocket\r\nTrailer: X-T\r\n"
                "X-Kept: yes\r\nX-Kept: twice\r\nCookie: a=b\r\n"
            ),
        )
    assert response.status == 200
    lines = _lines(response.body)
    assert lines[0] == "GET /head?a=b&c=%20 HTTP/1.1"
    fields = [line.partition(": ")[::2] for line in lines[1:]]
    names = [name.lower() for name, _ in fields]
    assert fields[0] == ("Host", f"origin.test:{origin.http}")
    assert names.count("host") == 1
    gone = {"proxy-authorization", "proxy-connection", "proxy-anything", "keep-alive", "x-hop"}
    gone |= {"te", "upgrade", "trailer"}
    assert not gone & set(names)
    assert [value for name, value in fields if name == "X-Kept"] == ["yes", "twice"]
    assert ("Cookie", "a=b") in fields
    assert ("Authorization", "Basic b3JpZ2lu") in fields
    assert ("User-Agent", "test") in fields
    assert b"secret" not in response.body
    assert b"cHJveHk" not in response.body
    assert "a=b" not in proxy.stdout


def test_the_path_may_be_missing(proxy: Proxy, origin: Origin, base: str) -> None:
    with proxy.client() as client:
        assert client.get(base).status == 200
        assert client.get(f"{base}?q").status == 200
    assert [_lines(head)[0] for head in origin.heads] == ["GET / HTTP/1.1", "GET /?q HTTP/1.1"]


def test_hop_by_hop_fields_of_a_response_are_removed(
    proxy: Proxy, origin: Origin, base: str
) -> None:
    def answer(exchange: Exchange) -> None:
        origin_answer = (
            "Connection: X-Hop\r\nX-Hop: secret\r\nKeep-Alive: timeout=5\r\n"
            "Proxy-Authenticate: Basic\r\nX-Kept: yes\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n"
        )
        exchange.answer(b"body", head=origin_answer)

    origin.extensions["/special"] = answer
    with proxy.client() as client:
        response = client.get(f"{base}/special")
    assert response["x-kept"] == "yes"
    assert response.values("set-cookie") == ["a=1", "b=2"]
    assert "x-hop" not in response
    assert "proxy-authenticate" not in response


def test_several_requests_on_one_connection_with_a_denial_between(proxy: Proxy, base: str) -> None:
    with proxy.client() as client:
        assert client.get(f"{base}/").body == b"hello from http\n"
        denied = client.get("http://denied.test/")
        assert denied.error["reason"] == "host_not_allowed"
        assert client.get(f"{base}/chunked/1000").status == 200
        assert client.get(f"{base}/status/204").status == 204
        assert client.get(f"{base}/status/304").status == 304
        head = client.get(f"{base}/bytes/1000", method="HEAD")
        assert head["content-length"] == "1000"
        assert client.get(f"{base}/status/404").status == 404
        assert client.get(f"{base}/").body == b"hello from http\n"
    lines = proxy.stop()
    assert [line["event"] for line in lines] == ["ALLOWED", "DENIED", *["ALLOWED"] * 6]
    assert [line["status"] for line in lines] == [200, 403, 200, 204, 304, 200, 404, 200]
    assert len({line["request_id"] for line in lines}) == 8
    assert denied.error["request_id"] == lines[1]["request_id"]


def test_pipelined_requests_are_answered_in_order(proxy: Proxy, base: str) -> None:
    urls = [f"{base}/bytes/{size}" for size in (10, 100_000, 1)]
    urls[1:1] = ["http://denied.test/x"]
    with proxy.client() as client:
        client.send(
            "".join(f"GET {url} HTTP/1.1\r\nHost: {url.split('/')[2]}\r\n\r\n" for url in urls)
        )
        first, denied, second, third = (client.response() for _ in urls)
    assert [len(one.body) for one in (first, second, third)] == [10, 100_000, 1]
    assert denied.status == 403


def test_a_pipelined_request_behind_a_body(proxy: Proxy, base: str, origin: Origin) -> None:
    host = f"Host: origin.test:{origin.http}\r\n"
    with proxy.client() as client:
        client.send(
            f"POST {base}/upload HTTP/1.1\r\n{host}Content-Length: 5\r\n\r\nhello"
            f"POST {base}/upload HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\n\r\n"
            f"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nX-T: dropped\r\n\r\n"
            f"GET {base}/ HTTP/1.1\r\n{host}\r\n"
        )
        assert json.loads(client.response().body)["length"] == 5
        assert json.loads(client.response().body)["length"] == 5
        assert client.response().body == b"hello from http\n"


def test_a_client_that_ends_its_side_gets_its_answer(proxy: Proxy, base: str) -> None:
    with proxy.client() as client:
        client.send(f"GET {base}/drip/5 HTTP/1.1\r\nHost: {base[7:]}\r\n\r\n")
        client.eof()
        assert client.response().body == b"....."
        assert client.is_closed()
    proxy.wait_for_line(event="ALLOWED")


def test_connection_close_is_obeyed(proxy: Proxy, base: str) -> None:
    with proxy.client() as client:
        response = client.get(f"{base}/", head="Connection: close\r\n")
        assert response["connection"] == "close"
        assert client.is_closed()


def test_an_idle_kept_connection_is_closed_without_a_line(
    start_proxy: StartProxy, base: str
) -> None:
    proxy = start_proxy(timeouts={"keep_alive": "500ms"})
    with proxy.client() as client:
        assert client.get(f"{base}/").status == 200
        assert client.is_closed(seconds=0.5 + SWEEP)
    assert len(proxy.stop()) == 1


@pytest.mark.parametrize("size", [0, 1, 65_536, 3 * MIB])
@pytest.mark.parametrize("kind", ["bytes", "chunked", "until-close"])
def test_bodies_arrive_whole(proxy: Proxy, base: str, kind: str, size: int) -> None:
    with proxy.client() as client:
        response = client.get(f"{base}/{kind}/{size}")
        assert len(response.body) == size
        assert hashlib.sha256(response.body).hexdigest() == digest_of_blocks(size)
    line = proxy.wait_for_line(event="ALLOWED")
    assert line["bytes_received"] >= size


@pytest.mark.parametrize("kind", ["bytes", "chunked", "until-close"])
def test_an_http_1_0_client_never_sees_chunks(proxy: Proxy, base: str, kind: str) -> None:
    with proxy.client() as client:
        client.send(f"GET {base}/{kind}/100000 HTTP/1.0\r\n\r\n")
        response = client.response()
        assert "transfer-encoding" not in response
        assert hashlib.sha256(response.body).hexdigest() == digest_of_blocks(100_000)
        assert client.is_closed()


def test_an_http_1_0_client_can_keep_its_connection(proxy: Proxy, base: str) -> None:
    with proxy.client() as client:
        for _ in range(2):
            client.send(f"GET {base}/ HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            response = client.response()
            assert response.body == b"hello from http\n"
            if response["connection"].lower() == "close":
                break


@pytest.mark.parametrize("size", [0, 1, 65_537, 3 * MIB])
@pytest.mark.parametrize("chunked", [False, True])
def test_uploads_arrive_whole(proxy: Proxy, base: str, size: int, chunked: bool) -> None:
    body = b"".join(bytes(block) for block in _pieces(size))
    framing = f"Content-Length: {size}\r\n"
    if chunked:
        framing = "Transfer-Encoding: chunked\r\n"
        body = b"".join(b"%x\r\n%b\r\n" % (len(one), one) for one in _pieces(size)) + b"0\r\n\r\n"
    with proxy.client() as client:
        response = client.get(f"{base}/upload", method="PUT", head=framing, body=body)
        got = json.loads(response.body)
        assert (got["length"], got["sha256"]) == (size, digest_of_blocks(size))
        assert got["chunked"] == chunked
        assert client.get(f"{base}/").status == 200


def _pieces(size: int) -> list[bytes]:
    whole = b"".join(bytes(block) for block in blocks(size))
    return [whole[start : start + 10_000] for start in range(0, size, 10_000)]


def test_100_continue_comes_before_the_body_is_sent(proxy: Proxy, base: str) -> None:
    with proxy.client() as client:
        client.send(
            f"POST {base}/upload HTTP/1.1\r\nHost: {base[7:]}\r\n"
            "Content-Length: 5\r\nExpect: 100-continue\r\n\r\n"
        )
        assert client.response().status == 100
        client.send(b"hello")
        assert json.loads(client.response().body)["length"] == 5


def test_a_denied_expectation_gets_no_100(proxy: Proxy) -> None:
    with proxy.client() as client:
        response = client.get(
            "http://denied.test/",
            method="POST",
            head="Content-Length: 5\r\nExpect: 100-continue\r\n",
        )
        assert response.status == 403


def test_a_denied_request_with_a_body_does_not_turn_its_body_into_a_request(proxy: Proxy) -> None:
    hidden = b"GET http://origin.test/hidden HTTP/1.1\r\nHost: origin.test\r\n\r\n"
    with proxy.client() as client:
        response = client.get(
            "http://denied.test/",
            method="POST",
            head=f"Content-Length: {len(hidden)}\r\n",
            body=hidden,
        )
        assert response.status == 403
        client.eof()
        client.rest()
    (line,) = proxy.stop()
    assert line["method"] == "POST"


def test_interim_responses_pass(proxy: Proxy, base: str) -> None:
    with proxy.client() as client:
        first = client.get(f"{base}/interim")
        if first.status == 103:  # to drop it would be allowed (RFC 9110 §15.2)
            first = client.response()
        assert first.body == b"final\n"


def test_an_answer_before_the_bodys_end_passes(proxy: Proxy, base: str) -> None:
    """The origin answers 413 and closes while the client still sends."""
    with proxy.client() as client:
        client.send(
            f"POST {base}/early HTTP/1.1\r\nHost: {base[7:]}\r\nContent-Length: {100 * MIB}\r\n\r\n",
            b"x" * 1000,
        )
        response = client.response()
        assert (response.status, response.body) == (413, b"too big\n")
    proxy.wait_for_line(status=413)


def test_a_client_that_goes_ends_the_origins_work(proxy: Proxy, origin: Origin, base: str) -> None:
    with proxy.client() as client:
        client.send(f"GET {base}/endless HTTP/1.1\r\nHost: {base[7:]}\r\n\r\n")
        client.until(b"still here\n")
    line = proxy.wait_for_line(host="origin.test")
    assert (line["event"], line["reason"]) == ("FAILED", "client_aborted")
    proxy.settled()


def test_a_slow_body_comes_as_it_is_sent(proxy: Proxy, base: str) -> None:
    """Server-sent events and progress bars: nothing is held back until a buffer is full."""
    with proxy.client() as client:
        start = time.monotonic()
        client.send(f"GET {base}/drip/40 HTTP/1.1\r\nHost: {base[7:]}\r\n\r\n")
        client.until(b"\r\n\r\n")
        client.exactly(1)
        assert time.monotonic() - start < 1
        client.exactly(39)


@pytest.mark.parametrize("direction", ["download", "upload"])
def test_a_slow_reader_holds_the_writer_back(
    proxy: Proxy, base: str, origin: Origin, direction: str
) -> None:
    slack = 16 * MIB
    buffered = socket_buffers() + slack
    size = 4 * buffered
    pushed = 0
    go_on = threading.Event()

    def stall(exchange: Exchange) -> None:
        go_on.wait(20)

    origin.extensions["/stall"] = stall
    with proxy.client(receive_buffer=64 * 1024) as client:
        before = proxy.memory()
        if direction == "download":
            client.send(f"GET {base}/bytes/{size} HTTP/1.1\r\nHost: {base[7:]}\r\n\r\n")
            time.sleep(1)
        else:
            client.socket.settimeout(1)
            client.send(
                f"PUT {base}/stall HTTP/1.1\r\nHost: {base[7:]}\r\nContent-Length: {size}\r\n\r\n"
            )
            try:
                for block in blocks(size):
                    client.socket.sendall(block)
                    pushed += len(block)
            except TimeoutError:
                pass
            assert pushed < buffered
        assert proxy.memory() - before < slack
        client.close()
        go_on.set()
    line = proxy.wait_for_line(host="origin.test")
    assert line.get("bytes_received", 0) < buffered
    assert line.get("bytes_sent", 0) < buffered


def test_many_requests_in_parallel(proxy: Proxy, base: str) -> None:
    failures: list[object] = []

    def fetch() -> None:
        try:
            with RawClient(proxy.address) as client:
                for _ in range(20):
                    assert client.get(f"{base}/").body == b"hello from http\n"
                    assert client.get("http://denied.test/").status == 403
        except BaseException as error:  # noqa: BLE001 - shown below
            failures.append(error)

    threads = [threading.Thread(target=fetch) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    wait_until(lambda: len(proxy.lines) >= 400, what="400 lines")
    events = [line["event"] for line in proxy.stop()]
    assert (events.count("ALLOWED"), events.count("DENIED")) == (200, 200)
