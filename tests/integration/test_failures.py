"""Destinations that are allowed and cannot be reached, break off, or talk nonsense; and name servers that fail."""

from __future__ import annotations

import contextlib
import socket
import time

import pytest

from tests.conftest import Serve, StartProxy
from tests.support.client import Response
from tests.support.dns import NXDOMAIN, SERVFAIL, SILENCE, Answer, NameServer
from tests.support.origin import Origin
from tests.support.proxy import SWEEP, Proxy, rule
from tests.support.serving import full_backlog, reset, say_nothing
from tests.support.tools import wait_until

METHODS = pytest.mark.parametrize("method", ["CONNECT", "GET"])


def _ask(proxy: Proxy, method: str, authority: str) -> Response:
    with proxy.client() as client:
        if method == "CONNECT":
            return client.connect(authority)
        return client.get(f"http://{authority}/")


def _failed(proxy: Proxy, response: Response, status: int, reason: str, proxy_status: str) -> None:
    """The answer and the one line of a failure."""
    assert response.status == status
    assert response["x-egress-error"] == "RETRY_LATER"
    assert int(response["retry-after"]) > 0
    assert f"error={proxy_status}" in response["proxy-status"]
    assert (response.error["code"], response.error["reason"]) == ("RETRY_LATER", reason)
    assert response.error["retry"] is True
    line = proxy.wait_for_line(request_id=response.error["request_id"])
    assert (line["event"], line["reason"], line["status"]) == ("FAILED", reason, status)
    assert "DENIED" not in proxy.stdout


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


# Connecting -------------------------------------------------------------------------------------


@METHODS
def test_refused(proxy: Proxy, closed_port: int, method: str) -> None:
    response = _ask(proxy, method, f"origin.test:{closed_port}")
    _failed(proxy, response, 502, "connection_refused", "connection_refused")


@METHODS
def test_not_accepted_in_time(start_proxy: StartProxy, method: str) -> None:
    proxy = start_proxy(timeouts={"connect": "500ms", "connect_attempt": "500ms"})
    with full_backlog() as port:
        start = time.monotonic()
        response = _ask(proxy, method, f"origin.test:{port}")
        assert 0.4 < time.monotonic() - start < 0.5 + SWEEP
    _failed(proxy, response, 504, "connection_timeout", "connection_timeout")


@pytest.mark.parametrize("dead", ["refuses", "is silent"])
def test_a_dead_address_leaves_time_for_the_next(
    start_proxy: StartProxy, serve: Serve, name_server: NameServer, dead: str
) -> None:
    server = serve(say_nothing, host="127.0.0.2")
    name_server.set("origin.test", Answer(("127.0.0.1", "127.0.0.2")))
    proxy = start_proxy(timeouts={"connect": "5s", "connect_attempt": "300ms"})
    with contextlib.ExitStack() as stack:
        if dead == "is silent":
            stack.enter_context(full_backlog(server.port))
        for _ in range(3):  # whatever order the addresses are tried in
            with proxy.client() as client:
                assert client.connect(f"origin.test:{server.port}").status == 200
    wait_until(lambda: server.accepted == 3, what="the third connection")
    for line in proxy.wait_for_lines(3, event="ALLOWED"):
        assert line["address"].startswith("127.0.0.2")


def test_an_ipv6_origin(start_proxy: StartProxy, serve: Serve, name_server: NameServer) -> None:
    server = serve(say_nothing, host="::1")
    name_server.set("origin.test", Answer(("::1",)))
    proxy = start_proxy(allow=[rule("origin.test", allow_private=["::1/128"])])
    with proxy.client() as client:
        assert client.connect(f"origin.test:{server.port}").status == 200
    assert "::1" in proxy.wait_for_line(event="ALLOWED")["address"]


# The origin's answer ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "status", "reason", "proxy_status"),
    [
        ("close", 502, "origin_closed", "connection_terminated"),
        ("reset", 502, "origin_reset", "connection_terminated"),
        ("malformed/status-line", 502, "origin_malformed", "http_protocol_error"),
        ("malformed/garbage", 502, "origin_malformed", "http_protocol_error"),
        ("malformed/two-lengths", 502, "origin_malformed", "http_protocol_error"),
        ("malformed/both-framings", 502, "origin_malformed", "http_protocol_error"),
        ("malformed/space-before-colon", 502, "origin_malformed", "http_protocol_error"),
        ("malformed/huge-head", 502, "origin_malformed", "http_protocol_error"),
    ],
)
def test_no_proper_answer(
    proxy: Proxy, origin: Origin, path: str, status: int, reason: str, proxy_status: str
) -> None:
    with proxy.client() as client:
        response = client.get(f"http://origin.test:{origin.http}/{path}")
        _failed(proxy, response, status, reason, proxy_status)


def test_half_a_head(proxy: Proxy, origin: Origin) -> None:
    with proxy.client() as client:
        response = client.get(f"http://origin.test:{origin.http}/malformed/cut-head")
    assert response.status == 502
    line = proxy.wait_for_line(event="FAILED")
    assert line["reason"] in {"origin_closed", "origin_malformed", "origin_truncated"}


def test_no_answer_in_time(start_proxy: StartProxy, origin: Origin) -> None:
    proxy = start_proxy(timeouts={"response": "500ms"})
    start = time.monotonic()
    with proxy.client() as client:
        response = client.get(f"http://origin.test:{origin.http}/hang")
        assert 0.4 < time.monotonic() - start < 0.5 + SWEEP
        _failed(proxy, response, 504, "origin_timeout", "http_response_timeout")


@pytest.mark.parametrize("path", ["truncated", "cut-chunk", "reset-body", "malformed/bad-chunk"])
def test_a_broken_body_is_not_passed_off_as_whole(proxy: Proxy, origin: Origin, path: str) -> None:
    with proxy.client() as client:
        client.send(
            f"GET http://origin.test:{origin.http}/{path} HTTP/1.1\r\n"
            f"Host: origin.test:{origin.http}\r\n\r\n"
        )
        try:
            got = client.rest()
        except ConnectionResetError:
            got = b""
    assert not got.endswith(b"0\r\n\r\n")
    line = proxy.wait_for_line(event="FAILED")
    assert line["reason"] in {"origin_truncated", "origin_reset", "origin_malformed"}


def test_a_body_that_never_ends(start_proxy: StartProxy, origin: Origin) -> None:
    proxy = start_proxy(timeouts={"idle": "500ms"})
    with proxy.client() as client:
        client.send(
            f"GET http://origin.test:{origin.http}/half HTTP/1.1\r\n"
            f"Host: origin.test:{origin.http}\r\n\r\n"
        )
        client.until(b"hello")
        assert client.is_closed(seconds=0.5 + SWEEP)
    line = proxy.wait_for_line(event="CLOSED")
    assert line["reason"] == "idle_timeout"


def test_a_request_body_that_never_ends(start_proxy: StartProxy, origin: Origin) -> None:
    proxy = start_proxy(timeouts={"idle": "500ms"})
    with proxy.client() as client:
        client.send(
            f"PUT http://origin.test:{origin.http}/upload HTTP/1.1\r\n"
            f"Host: origin.test:{origin.http}\r\nContent-Length: 10\r\n\r\nhello"
        )
        start = time.monotonic()
        client.rest()
        assert time.monotonic() - start < 0.5 + SWEEP
    proxy.wait_for_line(host="origin.test")


def test_an_origin_that_resets_at_once(proxy: Proxy, serve: Serve) -> None:
    server = serve(reset)
    for _ in range(10):
        with proxy.client() as client:
            response = client.get(f"http://origin.test:{server.port}/")
            assert response.status == 502
    assert {line["event"] for line in proxy.wait_for_lines(10, host="origin.test")} == {"FAILED"}


# Names ------------------------------------------------------------------------------------------


@METHODS
@pytest.mark.parametrize(
    ("answer", "status", "reason", "proxy_status"),
    [
        (NXDOMAIN, 502, "dns_nxdomain", "dns_error"),
        (Answer(), 502, "dns_no_address", "dns_error"),
        (SERVFAIL, 502, "dns_failure", "dns_error"),
        (Answer(rcode="REFUSED"), 502, "dns_refused", "dns_error"),
        (SILENCE, 504, "dns_timeout", "dns_timeout"),
    ],
    ids=["nxdomain", "no-address", "servfail", "refused", "silence"],
)
def test_names_that_cannot_be_resolved(
    start_proxy: StartProxy,
    name_server: NameServer,
    method: str,
    answer: Answer,
    status: int,
    reason: str,
    proxy_status: str,
) -> None:
    proxy = start_proxy(dns={"timeout": "600ms"})
    name_server.set("origin.test", answer)
    start = time.monotonic()
    response = _ask(proxy, method, "origin.test:443")
    assert time.monotonic() - start < 0.6 + SWEEP
    _failed(proxy, response, status, reason, proxy_status)
    kinds = [
        name for name in proxy.metrics() if name.startswith("egress_proxy_dns_failures_total{")
    ]
    assert kinds


def test_a_failure_is_remembered_for_a_while(
    start_proxy: StartProxy, name_server: NameServer
) -> None:
    proxy = start_proxy(dns={"negative_ttl": "500ms"})
    name_server.set("origin.test", NXDOMAIN, "127.0.0.1")
    assert _ask(proxy, "CONNECT", "origin.test:1").error["reason"] == "dns_nxdomain"
    assert _ask(proxy, "CONNECT", "origin.test:1").error["reason"] == "dns_nxdomain"
    assert name_server.asked("origin.test") == 1
    time.sleep(0.6)
    assert _ask(proxy, "CONNECT", "origin.test:1").error["reason"] == "connection_refused"


def test_an_answer_is_kept_for_its_ttl(
    start_proxy: StartProxy, origin: Origin, name_server: NameServer
) -> None:
    proxy = start_proxy(dns={"min_ttl": "0s"})
    name_server.set("origin.test", Answer(("127.0.0.1",), ttl=1))
    for _ in range(5):
        assert _ask(proxy, "GET", f"origin.test:{origin.http}").status == 200
    assert name_server.asked("origin.test") <= 2  # its time may have been over
    time.sleep(1)
    assert _ask(proxy, "GET", f"origin.test:{origin.http}").status == 200
    assert name_server.asked("origin.test") in {2, 3}


def test_one_question_for_many_waiting_clients(
    proxy: Proxy, origin: Origin, name_server: NameServer
) -> None:
    name_server.set("origin.test", Answer(("127.0.0.1",), delay=0.3))
    clients = [proxy.client() for _ in range(20)]
    target = f"origin.test:{origin.http}"
    for client in clients:
        client.send(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n")
    for client in clients:
        assert client.response("CONNECT").status == 200
        client.close()
    assert name_server.asked("origin.test") == 1


def test_a_client_that_goes_while_its_name_is_looked_up(
    proxy: Proxy, serve: Serve, name_server: NameServer
) -> None:
    server = serve(say_nothing)
    name_server.set("origin.test", Answer(("127.0.0.1",), delay=0.3))
    with proxy.client() as client:
        client.send(f"CONNECT origin.test:{server.port} HTTP/1.1\r\nHost: origin.test\r\n\r\n")
        time.sleep(0.05)
        client.reset()
    proxy.wait_for_line(host="origin.test")
    proxy.settled()


@pytest.mark.parametrize(
    "answer",
    [
        Answer(("127.0.0.1",), truncate=True),
        Answer(("127.0.0.1",), alias="alias.test"),
        Answer(("127.0.0.1",), delay=0.3),
        Answer(("127.0.0.1",), ttl=0),
        Answer(("127.0.0.1",), ttl=2**31 - 1),
    ],
    ids=["over-tcp", "alias", "late", "ttl-0", "ttl-max"],
)
def test_names_that_can(
    proxy: Proxy, origin: Origin, name_server: NameServer, answer: Answer
) -> None:
    name_server.set("origin.test", answer)
    assert _ask(proxy, "GET", f"origin.test:{origin.http}").status == 200


def test_names_are_absolute_and_asked_for_as_they_are(
    start_proxy: StartProxy, name_server: NameServer
) -> None:
    """No search list, whatever /etc/resolv.conf says; and a name without dots is a name."""
    proxy = start_proxy(allow=[rule("bare"), rule("nowhere.test")])
    assert _ask(proxy, "CONNECT", "bare:443").error["reason"] == "dns_nxdomain"
    assert _ask(proxy, "CONNECT", "NoWhere.Test.:443").error["reason"] == "dns_nxdomain"
    assert {query.name for query in name_server.queries} == {"bare", "nowhere.test"}


def test_a_denied_name_is_never_asked_for(proxy: Proxy, name_server: NameServer) -> None:
    """DNS would carry data out."""
    assert _ask(proxy, "CONNECT", "c2VjcmV0.denied.test:443").status == 403
    assert _ask(proxy, "GET", "c2VjcmV0.denied.test").status == 403
    assert name_server.queries == []


def test_the_second_name_server_answers_for_the_first(
    start_proxy: StartProxy, origin: Origin, name_server: NameServer
) -> None:
    with NameServer() as dead:
        dead.set("origin.test", SERVFAIL)
        proxy = start_proxy(dns={"servers": [dead.address, name_server.address]})
        assert _ask(proxy, "GET", f"origin.test:{origin.http}").status == 200


def test_the_hosts_file_comes_first_and_is_read_again(
    start_proxy: StartProxy,
    origin: Origin,
    name_server: NameServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    hosts = tmp_path_factory.mktemp("hosts") / "hosts"
    hosts.write_text("127.0.0.1 aliased.test origin.test\n")
    proxy = start_proxy(
        allow=[rule("aliased.test"), rule("origin.test"), rule("later.test")],
        dns={"hosts_file": str(hosts), "negative_ttl": "0s"},
    )
    assert _ask(proxy, "GET", f"aliased.test:{origin.http}").status == 200
    assert name_server.queries == []
    assert _ask(proxy, "GET", f"later.test:{origin.http}").error["reason"] == "dns_nxdomain"
    hosts.write_text("127.0.0.1 later.test\n")
    deadline = time.monotonic() + 3
    while _ask(proxy, "GET", f"later.test:{origin.http}").status != 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)
