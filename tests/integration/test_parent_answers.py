"""What a parent proxy answers, well or badly, and what becomes of it: a tunnel, or a refusal of our own."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from egress_proxy.core.http1 import HeadLimits
from egress_proxy.net.parent import open_tunnel
from egress_proxy.net.poller import READABLE
from tests.conftest import Serve, StartProxy
from tests.support.client import Response
from tests.support.hellos import client_hello
from tests.support.parent import ESTABLISHED, Script, ScriptedParent, says, then_echoes
from tests.support.proxy import SWEEP, Proxy, rule
from tests.support.serving import echo, reset, say_nothing

#: A name that nobody here can resolve: the parent's business.
FAR = "far.example"

Behind = Callable[..., tuple[Proxy, ScriptedParent]]


@pytest.fixture
def behind(start_proxy: StartProxy, serve: Serve) -> Behind:
    """Starts a proxy whose parent follows a script."""

    def start(script: Script, *, tls: str = "off", **keys: object) -> tuple[Proxy, ScriptedParent]:
        parent = ScriptedParent(script)
        port = serve(parent).port
        keys.setdefault("upstream", {"proxy": f"http://127.0.0.1:{port}"})
        return start_proxy(allow=[rule(FAR, allow_private=[], tls=tls)], **keys), parent

    return start


def _refused(proxy: Proxy, response: Response, status: int, reason: str, detail: str) -> None:
    """The answer of a failure, and its one line."""
    assert (response.status, response.error["reason"]) == (status, reason)
    assert response.error["message"].endswith(f": {detail}."), response.error
    assert "proxy-authenticate" not in response
    line = proxy.wait_for_line(request_id=response.error["request_id"])
    assert (line["event"], line["reason"], line["status"]) == ("FAILED", reason, status)
    assert line["address"] == "127.0.0.1"
    assert line["parent"].startswith("127.0.0.1:")
    assert "DENIED" not in proxy.stdout


def _echoes(proxy: Proxy, *, first: bytes = b"") -> None:
    with proxy.client() as client:
        response = client.connect(f"{FAR}:443")
        assert response.status == 200
        assert client.exactly(len(first)) == first
        client.send(b"ping")
        assert client.exactly(4) == b"ping"
    line = proxy.wait_for_line(event="ALLOWED")
    assert (line["bytes_sent"], line["bytes_received"]) == (4, 4 + len(first))


# Answers that open a tunnel -------------------------------------------------------------------------------------


def test_what_the_parent_is_asked(behind: Behind) -> None:
    proxy, parent = behind(then_echoes(ESTABLISHED))
    with proxy.client() as client:
        head = "Proxy-Authorization: Basic Y2xpZW50OnNlY3JldA==\r\nUser-Agent: curl/8\r\n"
        assert client.connect(f"{FAR}:443", head=head).status == 200
    assert parent.heads[0].startswith(f"CONNECT {FAR}:443 HTTP/1.1\r\nHost: {FAR}:443\r\n".encode())
    (host, via) = parent.fields
    assert host == ("host", f"{FAR}:443")
    assert via[0] == "via"
    assert via[1].startswith("1.1 egress-proxy-")


GOOD = [
    ESTABLISHED,
    b"HTTP/1.0 200 OK\r\n\r\n",
    b"HTTP/1.1 200\r\n\r\n",
    b"HTTP/1.1 299 Fine\r\nProxy-Agent: x\r\nContent-Length: 7\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n" + ESTABLISHED,
    b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" * 40 + ESTABLISHED,
]


def test_an_answer_that_opens_a_tunnel(behind: Behind) -> None:
    proxy, parent = behind(says())
    for number, answer in enumerate(GOOD, 1):
        parent.script = then_echoes(answer)
        with proxy.client() as client:
            response = client.connect(f"{FAR}:443")
            # The answer is our own, whatever the parent's says.
            assert (response.status, response.fields) == (200, ())
            client.send(b"ping")
            assert client.exactly(4) == b"ping"
        lines = proxy.wait_for_lines(number, event="ALLOWED")
        assert {(line["bytes_sent"], line["bytes_received"]) for line in lines} == {(4, 4)}


def test_an_answer_in_pieces(behind: Behind) -> None:
    pieces = [bytes([byte]) for byte in b"HTTP/1.1 100 C\r\n\r\nHTTP/1.1 200 OK\r\nX: y\r\n\r\n"]
    proxy, _ = behind(then_echoes(*pieces, pause=0.002))
    _echoes(proxy)


@pytest.mark.parametrize("size", [1, 3, 20_000, 300_000])
def test_bytes_behind_the_answer_are_the_tunnel_s(behind: Behind, size: int) -> None:
    first = bytes(number & 255 for number in range(size))
    proxy, _ = behind(then_echoes(ESTABLISHED + first))
    _echoes(proxy, first=first)


def test_an_answer_that_is_there_before_anybody_waits() -> None:
    """No edge tells of what lies behind it, so the tunnel must look by itself."""

    class Busy:
        edges = 0

    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.sendall(ESTABLISHED + b"more")
        strand: Any = Busy()
        opening = open_tunnel(strand, ours, b"CONNECT", HeadLimits(1000, 10), 0.0)
        with pytest.raises(StopIteration) as ended:
            opening.send(None)
        assert ended.value.value is None
        assert strand.edges & READABLE
        assert (ours.recv(100), theirs.recv(100)) == (b"more", b"CONNECT")


def test_an_answer_that_ends_with_its_connection(behind: Behind) -> None:
    proxy, _ = behind(says(ESTABLISHED + b"bye"))
    with proxy.client() as client:
        assert client.connect(f"{FAR}:443").status == 200
        assert client.rest() == b"bye"
    line = proxy.wait_for_line(event="ALLOWED")
    assert (line["bytes_sent"], line["bytes_received"]) == (0, 3)


def test_what_the_client_sends_early_waits_for_the_answer(behind: Behind) -> None:
    answered = threading.Event()
    before: list[bytes] = []

    def script(connection: socket.socket) -> None:
        assert answered.wait(5)
        connection.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            before.append(connection.recv(100))
        connection.setblocking(True)
        connection.sendall(ESTABLISHED)
        echo(connection)

    proxy, _ = behind(script)
    with proxy.client() as client:
        client.send(f"CONNECT {FAR}:443 HTTP/1.1\r\nHost: {FAR}:443\r\n\r\n", b"early")
        assert client.is_silent(0.2)
        answered.set()
        assert client.response("CONNECT").status == 200
        assert client.exactly(5) == b"early"
    assert before == []


# Answers that open none -----------------------------------------------------------------------------------------


#: What a status means, and what the client gets for it.
REFUSALS = {
    **dict.fromkeys((300, 302, 400, 401, 403, 404, 405, 421, 451), (403, "parent_refused")),
    407: (502, "parent_credentials"),
    **dict.fromkeys((408, 429, 500, 501, 502, 503, 511, 599), (502, "parent_failed")),
    504: (504, "parent_timeout"),
}


def test_a_status_that_opens_no_tunnel(behind: Behind) -> None:
    body = b"<script>the parent's words</script>"
    proxy, parent = behind(says())
    for answered, (status, reason) in REFUSALS.items():
        parent.script = says(
            f"HTTP/1.1 {answered} Its own words\r\nContent-Length: {len(body)}\r\n"
            'Proxy-Authenticate: Basic realm="theirs"\r\nLocation: http://evil.test/\r\n'
            "X-Egress-Error: CONFLICT\r\nRetry-After: 86399\r\n\r\n".encode()
            + body
        )
        with proxy.client() as client:
            response = client.connect(f"{FAR}:443")
        _refused(proxy, response, status, reason, f"it answered {answered}")
        for words in ("words", "evil.test", "theirs", "86399", "CONFLICT"):
            assert words not in str(response)
            assert words not in proxy.stdout
    metrics = proxy.metrics()
    for reason, count in Counter(reason for _, reason in REFUSALS.values()).items():
        assert metrics[f'egress_proxy_upstream_failures_total{{reason="{reason}"}}'] == count


NONSENSE = [
    b"garbage\r\n\r\n",
    b"\x15\x03\x01\x00\x02\x02\x46",
    b"SSH-2.0-OpenSSH_9.6\r\n",
    b"HTTP/2 200 OK\r\n\r\n",
    b"HTTP/1.1 200 OK\nX: y\n\n\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nX : y\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nX: y\r\n z\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nX: \0\r\n\r\n",
    b"HTTP/1.1 2000 OK\r\n\r\n",
    b"HTTP/1.1 099 OK\r\n\r\n",
    b"HTTP/1.1 600 OK\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: tls\r\n\r\n" + ESTABLISHED,
    b"\r\n" + ESTABLISHED,
    b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 101 + b"\r\n",
    b"HTTP/1.1 200 OK\r\nX: " + b"y" * 40_000 + b"\r\n\r\n",
]


def test_an_answer_that_makes_no_sense(behind: Behind) -> None:
    """The parent stays silent behind it, so that nothing but the answer ends the wait."""
    proxy, parent = behind(says(), timeouts={"connect": "30s"})
    for answer in NONSENSE:
        parent.script = then_echoes(answer)
        with proxy.client() as client:
            response = client.connect(f"{FAR}:443")
        _refused(proxy, response, 502, "parent_failed", "its answer is malformed")


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\nX: y\r\n"])
@pytest.mark.parametrize("how", ["closes", "resets"])
def test_a_parent_that_ends_before_it_has_answered(behind: Behind, head: bytes, how: str) -> None:
    def script(connection: socket.socket) -> None:
        connection.sendall(head)
        if how == "resets":
            reset(connection)

    proxy, _ = behind(script)
    with proxy.client() as client:
        response = client.connect(f"{FAR}:443")
    _refused(proxy, response, 502, "parent_failed", "it closed the connection without an answer")


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"])
def test_a_parent_that_does_not_answer(behind: Behind, head: bytes) -> None:
    def script(connection: socket.socket) -> None:
        connection.sendall(head)
        say_nothing(connection)

    proxy, _ = behind(script, timeouts={"connect": "300ms", "connect_attempt": "300ms"})
    with proxy.client() as client:
        start = time.monotonic()
        response = client.connect(f"{FAR}:443")
        assert 0.25 < time.monotonic() - start < 0.3 + SWEEP
    _refused(
        proxy, response, 504, "parent_timeout", "it accepted the connection, and did not answer"
    )


def test_interim_answers_without_end(behind: Behind) -> None:
    """They end with the time for the answer, and others have their turn meanwhile."""

    def script(connection: socket.socket) -> None:
        while True:
            connection.sendall(b"HTTP/1.1 102 Processing\r\n\r\n" * 100)

    proxy, _ = behind(script, timeouts={"connect": "300ms", "connect_attempt": "300ms"})
    with proxy.client() as client:
        response = client.connect(f"{FAR}:443")
    assert response.error["reason"] == "parent_timeout"


def test_a_client_that_goes_away_meanwhile(behind: Behind) -> None:
    """Nothing is left open; the fixture sees to that."""
    asked = threading.Event()

    def script(connection: socket.socket) -> None:
        asked.set()
        time.sleep(0.1)
        connection.sendall(ESTABLISHED)
        say_nothing(connection)

    proxy, _ = behind(script)
    client = proxy.client()
    client.send(f"CONNECT {FAR}:443 HTTP/1.1\r\nHost: {FAR}:443\r\n\r\n")
    assert asked.wait(5)
    client.reset()
    proxy.wait_for_line(host=FAR)


# The check of what a tunnel begins with ---------------------------------------------------------------------------


def test_the_right_handshake_goes_through(behind: Behind) -> None:
    proxy, _ = behind(then_echoes(ESTABLISHED), tls="verify")
    hello = client_hello(FAR)
    with proxy.client() as client:
        assert client.connect(f"{FAR}:443").status == 200
        client.send(hello)
        assert client.exactly(len(hello)) == hello
    assert proxy.wait_for_line(event="ALLOWED")["sni"] == FAR


def test_a_handshake_for_another_host_does_not_reach_the_parent(
    behind: Behind,
) -> None:
    received: list[bytes] = []

    def script(connection: socket.socket) -> None:
        connection.sendall(ESTABLISHED)
        received.append(connection.recv(65536))

    proxy, _ = behind(script, tls="verify")
    with proxy.client() as client:
        assert client.connect(f"{FAR}:443").status == 200
        client.send(client_hello("evil.example"))
        client.some()
        assert client.is_closed()
    assert proxy.wait_for_line(event="DENIED")["reason"] == "sni_mismatch"
    assert received in ([], [b""])


@pytest.mark.parametrize("pause", [0.0, 0.1])
def test_who_speaks_first_behind_the_parent_is_not_tls(behind: Behind, pause: float) -> None:
    """Whether its greeting comes with the parent's answer or later."""
    script = then_echoes(ESTABLISHED, b"220 ready\r\n", pause=pause)
    if not pause:
        script = then_echoes(ESTABLISHED + b"220 ready\r\n")
    proxy, _ = behind(script, tls="verify")
    with proxy.client() as client:
        start = time.monotonic()
        assert client.connect(f"{FAR}:443").status == 200
        assert client.is_closed()
        assert time.monotonic() - start < 5
    assert proxy.wait_for_line(event="DENIED")["reason"] == "tunnel_not_tls"


# Absolute-form ----------------------------------------------------------------------------------------------------


def test_a_request_goes_to_the_parent_in_absolute_form(behind: Behind) -> None:
    proxy, parent = behind(says(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"))
    with proxy.client() as client:
        response = client.get(
            f"http://{FAR}/a?b",
            head="Proxy-Authorization: Basic Y2xpZW50OnNlY3JldA==\r\nX-Kept: 1\r\n",
        )
        assert (response.status, response.body) == (200, b"hi")
        assert client.get(f"http://{FAR}/c").body == b"hi"
    assert [head.split(b"\r\n")[0] for head in parent.heads] == [
        f"GET http://{FAR}/a?b HTTP/1.1".encode(),
        f"GET http://{FAR}/c HTTP/1.1".encode(),
    ]
    assert all(b"roxy-" not in head.replace(b"egress-proxy-", b"") for head in parent.heads)
    assert b"\r\nX-Kept: 1\r\n" in parent.heads[0]
    for line in proxy.wait_for_lines(2, event="ALLOWED"):
        assert (line["host"], line["address"]) == (FAR, "127.0.0.1")
        assert line["parent"].startswith("127.0.0.1:")


def test_the_parent_s_answer_passes_through(behind: Behind) -> None:
    proxy, parent = behind(says())
    for status in (200, 302, 401, 403, 404, 500, 502, 504):
        parent.script = says(f"HTTP/1.1 {status} X\r\nContent-Length: 2\r\n\r\nhi".encode())
        with proxy.client() as client:
            response = client.get(f"http://{FAR}/")
        assert (response.status, response.body) == (status, b"hi")
        proxy.wait_for_line(event="ALLOWED", status=status)


def test_a_request_for_our_credentials_does_not_reach_the_client(behind: Behind) -> None:
    """The client would show the parent what it shows to us."""
    proxy, _ = behind(
        says(
            b"HTTP/1.1 407 Proxy Authentication Required\r\n"
            b'Proxy-Authenticate: Basic realm="theirs"\r\nContent-Length: 5\r\n\r\nwords'
        )
    )
    with proxy.client() as client:
        response = client.get(f"http://{FAR}/")
    assert (response.status, response.error["reason"]) == (502, "parent_credentials")
    assert "theirs" not in str(response)
    assert proxy.wait_for_line(event="FAILED")["reason"] == "parent_credentials"


@pytest.mark.parametrize(
    ("script", "status", "reason"),
    [
        (says(b"garbage\r\n\r\n"), 502, "parent_failed"),
        (says(b"HTTP/1.1 200 OK\r\nContent-Length: 2, 3\r\n\r\n"), 502, "parent_failed"),
        (says(), 502, "parent_failed"),
        (reset, 502, "parent_failed"),
        (say_nothing, 504, "parent_timeout"),
    ],
    ids=["garbage", "framing", "closes", "resets", "silent"],
)
def test_a_parent_that_fails_before_its_answer(
    behind: Behind, script: Script, status: int, reason: str
) -> None:
    proxy, _ = behind(script, timeouts={"response": "300ms"})
    with proxy.client() as client:
        response = client.get(f"http://{FAR}/")
    assert (response.status, response.error["reason"]) == (status, reason)
    assert proxy.wait_for_line(event="FAILED")["reason"] == reason


def test_a_body_that_ends_too_soon(behind: Behind) -> None:
    proxy, _ = behind(says(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhi"))
    with proxy.client() as client:
        client.send(f"GET http://{FAR}/ HTTP/1.1\r\nHost: {FAR}\r\n\r\n")
        assert client.until(b"\r\n\r\n")
        assert client.exactly(2) == b"hi"
        assert client.is_closed()
    assert proxy.wait_for_line(event="FAILED")["reason"] == "origin_truncated"
