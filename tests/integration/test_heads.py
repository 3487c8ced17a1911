"""Request heads as they come over a wire: in pieces, too large, too slow, malformed, or never."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import pytest

from tests.conftest import Serve, StartProxy
from tests.support.origin import Origin
from tests.support.proxy import SWEEP, Proxy
from tests.support.serving import echo


def test_a_head_of_one_byte_and_the_end(proxy: Proxy) -> None:
    with proxy.client() as client:
        client.send(b"G")
        client.eof()
        assert client.response().error["reason"] == "incomplete_request"
        assert client.is_closed()
    line = proxy.wait_for_line(event="DENIED")
    assert (line["status"], line["reason"]) == (400, "incomplete_request")


def test_a_client_that_says_nothing_and_goes_leaves_no_line(proxy: Proxy) -> None:
    for _ in range(3):
        proxy.client().close()
    with proxy.client() as client:
        client.eof()
        assert client.is_closed()
    assert proxy.stop() == []


@pytest.mark.parametrize("beginning", ["", "G", "GET http://origin.test/ HTTP/1.1\r\nHost: origin"])
def test_a_silent_client_is_told_and_closed(start_proxy: StartProxy, beginning: str) -> None:
    proxy = start_proxy(timeouts={"head": "500ms"})
    start = time.monotonic()
    with proxy.client() as client:
        client.send(beginning)
        response = client.response()
        assert response.status == 408
        assert response.error["reason"] == "head_timeout"
        assert response["retry-after"]
        assert client.is_closed()
    assert 0.4 < time.monotonic() - start < 0.5 + SWEEP
    line = proxy.wait_for_line(event="DENIED")
    assert (line["reason"], line["status"]) == ("head_timeout", 408)


def test_a_dripping_head_has_no_more_time(start_proxy: StartProxy) -> None:
    proxy = start_proxy(timeouts={"head": "500ms"})
    start = time.monotonic()
    # The write after the answer may find the connection closed.
    with proxy.client() as client, contextlib.suppress(ConnectionError):
        for byte in b"CONNECT origin.test:443 HTTP/1.1\r\n" + b"X-Drip: 1\r\n" * 20:
            client.send(bytes([byte]))
            time.sleep(0.02)
            if time.monotonic() - start > 0.5 + SWEEP:
                break
    line = proxy.wait_for_line(event="DENIED")
    assert line["reason"] == "head_timeout"
    assert line["duration_ms"] < (0.5 + SWEEP) * 1000


def test_a_head_byte_by_byte(proxy: Proxy, origin: Origin) -> None:
    head = (
        f"GET http://origin.test:{origin.http}/ HTTP/1.1\r\nHost: origin.test:{origin.http}\r\n\r\n"
    )
    with proxy.client() as client:
        for byte in head.encode():
            client.send(bytes([byte]))
        assert client.response().body == b"hello from http\n"


def _halves(whole: bytes) -> Iterator[tuple[bytes, bytes]]:
    for position in range(1, len(whole)):
        yield whole[:position], whole[position:]


def test_a_connect_split_at_every_byte(proxy: Proxy, serve: Serve) -> None:
    """Early data included: whatever the pieces, the tunnel carries what came after the head."""
    server = serve(echo)
    target = f"origin.test:{server.port}"
    whole = f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\nEARLY".encode()
    for first, second in _halves(whole):
        with proxy.client() as client:
            client.send(first)
            time.sleep(0.002)
            client.send(second)
            assert client.response("CONNECT").status == 200
            assert client.exactly(5) == b"EARLY"
    proxy.wait_for_lines(len(whole) - 1, event="ALLOWED", bytes_sent=5, bytes_received=5)


def test_a_head_of_1_mib(proxy: Proxy) -> None:
    with proxy.client() as client:
        # The proxy answers and closes before it has read all of it.
        with contextlib.suppress(ConnectionError):
            client.send(b"GET http://origin.test/ HTTP/1.1\r\n", b"X-Long: " + b"x" * (1 << 20))
        response = client.response()
        assert response.status in {400, 431}
        assert response.error["reason"] == "head_too_large"
        assert client.is_closed()
    line = proxy.wait_for_line(event="DENIED")
    assert line["reason"] == "head_too_large"


def test_too_many_headers(proxy: Proxy) -> None:
    with proxy.client() as client:
        response = client.get("http://origin.test/", head="X-A: b\r\n" * 200)
        assert response.error["reason"] == "too_many_headers"
    proxy.wait_for_line(event="DENIED", reason="too_many_headers")


def test_empty_lines_before_a_request(proxy: Proxy, origin: Origin) -> None:
    """RFC 9112 §2.2 asks servers to ignore at least one; to refuse it is strict, to hang is wrong."""
    with proxy.client() as client:
        client.send("\r\n")
        response = client.get(f"http://origin.test:{origin.http}/")
        assert response.status in {200, 400}


_HOST = "Host: origin.test\r\n"
_MALFORMED = {
    "garbage": ("\x00\x01\x02\x03\r\n\r\n", None),
    "a TLS hello": ("\x16\x03\x01\x00\x05hello\r\n\r\n", None),
    "origin-form": (f"GET / HTTP/1.1\r\n{_HOST}\r\n", "not_a_proxy_request"),
    "https in absolute-form": (
        f"GET https://origin.test/ HTTP/1.1\r\n{_HOST}\r\n",
        "scheme_not_supported",
    ),
    "HTTP/2.0": (f"GET http://origin.test/ HTTP/2.0\r\n{_HOST}\r\n", "version_not_supported"),
    "HTTP/0.9": ("GET http://origin.test/\r\n\r\n", "malformed_request_line"),
    "no Host": ("GET http://origin.test/ HTTP/1.1\r\n\r\n", "missing_host"),
    "two Hosts": (f"GET http://origin.test/ HTTP/1.1\r\n{_HOST}{_HOST}\r\n", "duplicate_host"),
    "another Host": (
        "GET http://origin.test/ HTTP/1.1\r\nHost: evil.test\r\n\r\n",
        "host_mismatch",
    ),
    "another Host in CONNECT": (
        "CONNECT origin.test:443 HTTP/1.1\r\nHost: evil.test:443\r\n\r\n",
        "host_mismatch",
    ),
    "CONNECT without port": (f"CONNECT origin.test HTTP/1.1\r\n{_HOST}\r\n", "bad_authority"),
    "CONNECT with a URL": (f"CONNECT http://origin.test/ HTTP/1.1\r\n{_HOST}\r\n", None),
    "port 0": (f"CONNECT origin.test:0 HTTP/1.1\r\n{_HOST}\r\n", "bad_authority"),
    "port 65536": (f"CONNECT origin.test:65536 HTTP/1.1\r\n{_HOST}\r\n", "bad_authority"),
    "user information": (f"GET http://u@origin.test/ HTTP/1.1\r\n{_HOST}\r\n", None),
    "a folded header": (
        f"GET http://origin.test/ HTTP/1.1\r\n{_HOST}X-A: b\r\n c\r\n\r\n",
        "obs_fold",
    ),
    "bare LF": ("GET http://origin.test/ HTTP/1.1\nHost: origin.test\n\n", "bare_lf"),
    "a NUL in a header": (
        f"GET http://origin.test/ HTTP/1.1\r\n{_HOST}X-A: b\x00c\r\n\r\n",
        "control_byte",
    ),
    "a CR in a header": (
        f"GET http://origin.test/ HTTP/1.1\r\n{_HOST}X-A: b\rc\r\n\r\n",
        "control_byte",
    ),
    "a space before the colon": (
        f"GET http://origin.test/ HTTP/1.1\r\n{_HOST}X-A : b\r\n\r\n",
        "malformed_header",
    ),
    "an unknown expectation": (
        f"GET http://origin.test/ HTTP/1.1\r\n{_HOST}Expect: miracles\r\n\r\n",
        "bad_expect",
    ),
}


@pytest.mark.parametrize("name", _MALFORMED)
def test_malformed_requests_are_refused_and_closed(proxy: Proxy, name: str) -> None:
    text, reason = _MALFORMED[name]
    with proxy.client() as client:
        client.send(text.encode("latin-1"))
        response = client.response()
        assert response.status == (417 if reason == "bad_expect" else 400)
        assert response["x-egress-error"] == "SCHEMA_VALIDATION_FAILED"
        assert "http_request_error" in response["proxy-status"]
        assert reason is None or response.error["reason"] == reason
        assert client.is_closed()
    line = proxy.wait_for_line(event="DENIED", reason=response.error["reason"])
    assert line["client"].startswith("127.0.0.1")
    assert proxy.stdout.count("DENIED") == 1


# What two parsers could read as two different requests. The body would be a request of its own.
_HIDDEN = "GET /hidden HTTP/1.1\r\nHost: origin.test\r\n\r\n"
_SMUGGLING = {
    "both framings": "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
    "two lengths": "Content-Length: 0\r\nContent-Length: 45\r\n",
    "two equal lengths": "Content-Length: 45\r\nContent-Length: 45\r\n",
    "a list of lengths": "Content-Length: 45, 45\r\n",
    "a signed length": "Content-Length: +45\r\n",
    "a negative length": "Content-Length: -1\r\n",
    "a hexadecimal length": "Content-Length: 0x2d\r\n",
    "an empty length": "Content-Length:\r\n",
    "an enormous length": "Content-Length: 99999999999999999999\r\n",
    "a length with a space": "Content-Length: 4 5\r\n",
    "another coding": "Transfer-Encoding: xchunked\r\n",
    "chunked twice": "Transfer-Encoding: chunked, chunked\r\n",
    "two codings": "Transfer-Encoding: gzip, chunked\r\n",
    "two fields": "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
    "identity": "Transfer-Encoding: identity\r\n",
    "a space before the colon": "Transfer-Encoding : chunked\r\n",
    "a tab before chunked and a colon": "Transfer-Encoding: \x0bchunked\r\n",
    "a folded coding": "Transfer-Encoding:\r\n chunked\r\n",
}


@pytest.mark.parametrize("name", _SMUGGLING)
def test_nothing_is_smuggled(proxy: Proxy, origin: Origin, name: str) -> None:
    url = f"http://origin.test:{origin.http}/upload"
    host = f"Host: origin.test:{origin.http}\r\n"
    with proxy.client() as client:
        client.send(f"POST {url} HTTP/1.1\r\n{host}{_SMUGGLING[name]}\r\n0\r\n\r\n{_HIDDEN}")
        assert client.response().status == 400
        assert client.is_closed()
    assert origin.heads == []
    proxy.wait_for_line(event="DENIED", status=400)
    assert proxy.stdout.count("DENIED") == 1


def test_transfer_encoding_in_http_1_0_is_refused(proxy: Proxy, origin: Origin) -> None:
    url = f"http://origin.test:{origin.http}/upload"
    with proxy.client() as client:
        client.send(f"POST {url} HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
        assert client.response().error["reason"] == "bad_transfer_encoding"
        assert client.is_closed()
    assert origin.heads == []


@pytest.mark.parametrize(
    "chunks",
    [
        "xyz\r\n",
        "-5\r\nhello\r\n",
        "0x5\r\nhello\r\n",
        "5\r\nhelloX0\r\n\r\n",
        "5 \r\nhello\r\n",
        "5\nhello\n",
    ],
)
def test_a_malformed_chunk_is_refused(proxy: Proxy, origin: Origin, chunks: str) -> None:
    url = f"http://origin.test:{origin.http}/upload"
    with proxy.client() as client:
        response = client.get(
            url, method="POST", head="Transfer-Encoding: chunked\r\n", body=chunks.encode()
        )
        assert response.status == 400
        assert response.error["reason"] == "bad_chunk"
        assert client.is_closed()
    proxy.wait_for_line(event="DENIED", reason="bad_chunk")


def test_a_client_that_goes_in_the_middle_of_a_body(proxy: Proxy, origin: Origin) -> None:
    with proxy.client() as client:
        client.send(
            f"POST http://origin.test:{origin.http}/upload HTTP/1.1\r\n"
            f"Host: origin.test:{origin.http}\r\nContent-Length: 1000\r\n\r\nnot a thousand"
        )
        time.sleep(0.1)
        client.reset()
    line = proxy.wait_for_line(method="POST")
    assert line["reason"] in {"client_aborted", "incomplete_request"}


def test_a_client_that_resets_at_once(proxy: Proxy) -> None:
    for _ in range(20):
        client = proxy.client()
        client.socket.send(b"GET")
        client.reset()
    with proxy.client() as client:
        assert client.get("http://denied.test/").status == 403


def test_a_client_that_never_reads_its_denials(proxy: Proxy) -> None:
    """Pipelined denials do not fill the proxy's memory."""
    request = b"GET http://denied.test/ HTTP/1.1\r\nHost: denied.test\r\n\r\n"
    before = proxy.memory()
    with proxy.client(receive_buffer=4096, seconds=1) as client:
        with contextlib.suppress(TimeoutError):
            for _ in range(200):
                client.socket.sendall(request * 500)
        assert proxy.memory() - before < 32 * (1 << 20)


def test_many_connections_at_once(start_proxy: StartProxy) -> None:
    """Over ``limits.connections`` a client is told so."""
    proxy = start_proxy(limits={"connections": 20})
    clients = [proxy.client() for _ in range(20)]
    try:
        for client in clients:
            assert client.get("http://denied.test/").status == 403
        with proxy.client() as one_more:
            one_more.send("GET http://denied.test/ HTTP/1.1\r\nHost: denied.test\r\n\r\n")
            response = one_more.response()
            assert response.status == 503
            assert response.error["reason"] == "overloaded"
            assert response["retry-after"]
    finally:
        for client in clients:
            client.close()
    proxy.settled()
    with proxy.client() as client:
        assert client.get("http://denied.test/").status == 403
