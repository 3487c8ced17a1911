"""Who asks: credentials that are required, optional, wrong, many, changed, and never passed on."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from egress_proxy.config.model import Credentials as CredentialsSettings
from egress_proxy.core import reasons
from egress_proxy.core.http1 import HeadLimits, parse_request
from egress_proxy.core.identity import Identity
from egress_proxy.identity.credentials import Credentials
from egress_proxy.net.session import _who_asks
from tests.conftest import Serve, StartProxy
from tests.support.client import Response
from tests.support.credentials import authorization, hashed, write_users
from tests.support.origin import Origin
from tests.support.proxy import Proxy, rule
from tests.support.serving import echo
from tests.support.tools import wait_until

RIGHT = authorization("batch", "correct-horse")
WRONG = authorization("batch", "battery-staple")
NOBODY = authorization("hunter2", "correct-horse")


class StartWithUsers:
    """Starts proxies that have users: ``batch``, who may ask for ``user.test`` too, and ``ci``."""

    def __init__(self, start: StartProxy, users: Path) -> None:
        self._start = start
        self.users = users
        write_users(users, batch="correct-horse", ci="correct-horse")

    def __call__(self, *, required: bool = False, **keys: Any) -> Proxy:
        policies = [
            {"name": "everyone", "allow": [rule("origin.test")], "deny": ["denied.test"]},
            {
                "name": "robots",
                "subjects": [{"user": "batch"}],
                "allow": [rule("user.test"), rule("denied.test")],
            },
        ]
        credentials = {"users_file": str(self.users), "required": required}
        return self._start(credentials=credentials, **{"policies": policies, **keys})


@pytest.fixture
def start(start_proxy: StartProxy, tmp_path: Path, name_server: Any) -> StartWithUsers:
    name_server.set("user.test", "127.0.0.1")
    return StartWithUsers(start_proxy, tmp_path / "users")


def _challenged(response: Response, reason: str) -> None:
    assert response.status == 407
    assert response["proxy-authenticate"] == 'Basic realm="egress-proxy"'
    assert response["x-egress-error"] == "UNAUTHORIZED"
    assert (response.error["code"], response.error["reason"]) == ("UNAUTHORIZED", reason)
    assert response.error["retry"] is False
    assert "retry-after" not in response


# Required ---------------------------------------------------------------------------------------


def test_required_and_right(start: StartWithUsers, origin: Origin, base: str) -> None:
    proxy = start(required=True)
    with proxy.client() as client:
        assert client.get(f"{base}/", head=RIGHT).body == b"hello from http\n"
        assert client.connect(f"origin.test:{origin.http}", head=RIGHT).status == 200
    get, connect = proxy.stop()
    assert (get["event"], get["user"], get["method"]) == ("ALLOWED", "batch", "GET")
    assert (connect["event"], connect["user"]) == ("ALLOWED", "batch")
    assert list(get)[3:7] == ["request_id", "client", "user", "method"]


def test_required_and_missing(start: StartWithUsers, origin: Origin, base: str) -> None:
    proxy = start(required=True)
    with proxy.client() as client:
        _challenged(client.get(f"{base}/"), "proxy_credentials_required")
        # Git's libcurl asks without them first, and then again on the same connection.
        assert client.get(f"{base}/", head=RIGHT).status == 200
        # They hold for one request, not for the connection.
        _challenged(client.get(f"{base}/"), "proxy_credentials_required")
        _challenged(client.connect("origin.test:443"), "proxy_credentials_required")
        # Nobody knows whether bytes behind a CONNECT are a request.
        assert client.is_closed()
    lines = proxy.stop()
    assert [line["status"] for line in lines] == [407, 200, 407, 407]
    assert [line.get("user") for line in lines] == [None, "batch", None, None]
    assert lines[0]["event"] == "DENIED"
    assert (lines[0]["code"], lines[0]["reason"]) == ("UNAUTHORIZED", "proxy_credentials_required")
    assert len(origin.heads) == 1


def test_head_is_challenged_without_a_body(start: StartWithUsers, base: str) -> None:
    proxy = start(required=True)
    with proxy.client() as client:
        assert client.get(f"{base}/", method="HEAD").status == 407
        assert client.get(f"{base}/", method="HEAD", head=RIGHT).status == 200


def test_a_body_that_nobody_read_ends_the_connection(start: StartWithUsers, base: str) -> None:
    proxy = start(required=True)
    with proxy.client() as client:
        response = client.get(
            f"{base}/upload", method="POST", head="Content-Length: 5\r\n", body=b"hello"
        )
        _challenged(response, "proxy_credentials_required")
        assert response["connection"] == "close"
        assert client.is_closed()


def test_who_asks_comes_before_where_to(start: StartWithUsers) -> None:
    """Without credentials, nobody learns which destinations exist."""
    proxy = start(required=True)
    with proxy.client() as client:
        for host in ("origin.test", "denied.test", "unknown.test", "127.0.0.1"):
            _challenged(client.get(f"http://{host}/"), "proxy_credentials_required")


def test_metrics_count_them(start: StartWithUsers, base: str) -> None:
    proxy = start(required=True)
    with proxy.client() as client:
        client.get(f"{base}/")
        client.get(f"{base}/", head=WRONG)
    proxy.wait_for_lines(2, event="DENIED")
    requests = {
        name: count
        for name, count in proxy.metrics().items()
        if name.startswith("egress_proxy_requests_total")
    }
    for reason in ("proxy_credentials_required", "proxy_credentials_wrong"):
        (found,) = (name for name in requests if f'reason="{reason}"' in name)
        assert 'decision="denied"' in found
        assert requests[found] == 1


# Wrong ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("required", [True, False])
@pytest.mark.parametrize(
    "head",
    [
        WRONG,
        NOBODY,
        "Proxy-Authorization: Bearer abcdef\r\n",
        "Proxy-Authorization: Basic\r\n",
        "Proxy-Authorization:\r\n",
        "Proxy-Authorization: Basic ===\r\n",
        "Proxy-Authorization: Basic YmF0Y2g6Y29ycmVjdC1ob3JzZQ\r\n",
        authorization("batch", "x" * 73),
        authorization("batch", "correct-horse\0"),
    ],
)
def test_wrong_ones_are_refused_wherever(
    start: StartWithUsers, base: str, head: str, required: bool
) -> None:
    proxy = start(required=required)
    with proxy.client() as client:
        for _ in range(2):  # the second time from memory
            _challenged(client.get(f"{base}/", head=head), "proxy_credentials_wrong")
        assert client.get(f"{base}/", head=RIGHT).status == 200
        _challenged(client.connect("origin.test:443", head=head), "proxy_credentials_wrong")
    lines = proxy.stop()
    assert [line["status"] for line in lines] == [407, 407, 200, 407]
    assert ["user" in line for line in lines] == [False, False, True, False]
    for line in (lines[0], lines[3]):
        assert (line["event"], line["reason"]) == ("DENIED", "proxy_credentials_wrong")


def test_what_is_malformed_is_said(start: StartWithUsers, base: str) -> None:
    proxy = start()
    with proxy.client() as client:
        said = client.get(f"{base}/", head="Proxy-Authorization: Bearer x\r\n").error["message"]
        assert "Basic with the base64 of user:password" in said
        # Which of user and password was wrong is not.
        assert (
            client.get(f"{base}/", head=WRONG).error["message"]
            == client.get(f"{base}/", head=NOBODY).error["message"]
            == "The credentials for the proxy are wrong."
        )


def test_odd_capitals_are_the_same_field(start: StartWithUsers, base: str) -> None:
    proxy = start(required=True)
    with proxy.client() as client:
        for name in ("PROXY-AUTHORIZATION", "proxy-authorization", "pRoXy-AuThOrIzAtIoN"):
            value = RIGHT.partition(":")[2].replace("Basic", "bASIC")
            assert client.get(f"{base}/", head=f"{name}:{value}").status == 200


@pytest.mark.parametrize("required", [True, False])
@pytest.mark.parametrize("second", [RIGHT, WRONG, RIGHT.upper(), "proxy-authorization:\r\n"])
def test_two_of_them_are_no_request(
    start: StartWithUsers, origin: Origin, base: str, second: str, required: bool
) -> None:
    """Which of them counts is for nobody to guess; 400, since other credentials would not help."""
    proxy = start(required=required)
    for way in ("GET", "CONNECT"):
        with proxy.client() as client:
            if way == "GET":
                response = client.get(f"{base}/", head=RIGHT + "X: y\r\n" + second)
            else:
                response = client.connect(f"origin.test:{origin.http}", head=RIGHT + second)
            assert (response.status, response.error["reason"]) == (400, "duplicate_credentials")
            assert client.is_closed()
    assert origin.heads == []
    assert {line["event"] for line in proxy.stop()} == {"DENIED"}


# Optional ---------------------------------------------------------------------------------------


def test_optional_and_missing(start: StartWithUsers, base: str) -> None:
    proxy = start()
    with proxy.client() as client:
        assert client.get(f"{base}/").status == 200
    (line,) = proxy.stop()
    assert "user" not in line


def test_optional_and_right(start: StartWithUsers, origin: Origin) -> None:
    """What a policy's subjects say about users holds."""
    proxy = start()
    with proxy.client() as client:
        url = f"http://user.test:{origin.http}/"
        assert client.get(url, head=RIGHT).body == b"hello from http\n"
        response = client.get(url, head=authorization("ci", "correct-horse"))
        assert (response.status, response.error["reason"]) == (403, "host_not_allowed")
        # A deny rule beats what a user may.
        assert client.get("http://denied.test/", head=RIGHT).error["reason"] == "deny_rule"
    allowed, refused, denied = proxy.stop()
    assert (allowed["user"], allowed["policy"]) == ("batch", "robots")
    assert (refused["user"], refused["event"]) == ("ci", "DENIED")
    assert (denied["user"], denied["policy"]) == ("batch", "everyone")


def test_what_users_alone_may_do_is_challenged(start: StartWithUsers, origin: Origin) -> None:
    """After a 403, a client that shows its credentials only when it is asked would give up."""
    proxy = start()
    with proxy.client() as client:
        url = f"http://user.test:{origin.http}/"
        _challenged(client.get(url), "proxy_credentials_required")
        assert client.get(url, head=RIGHT).status == 200
        _challenged(client.get(url), "proxy_credentials_required")
        # What nobody may do is not.
        assert client.get("http://denied.test/").error["reason"] == "deny_rule"
        assert client.get("http://unknown.test/").error["reason"] == "host_not_allowed"


# Audit mode, and none ---------------------------------------------------------------------------


def _tunnel(origin: Origin) -> str:
    return f"origin.test:{origin.http}"


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        ("", "proxy_credentials_required"),
        (WRONG, "proxy_credentials_wrong"),
        ("Proxy-Authorization: Bearer x\r\n", "proxy_credentials_wrong"),
    ],
)
def test_audit_mode_refuses_nobody(
    start: StartWithUsers, lan_origin: Origin, head: str, reason: str
) -> None:
    proxy = start(required=True, mode="audit")
    with proxy.client() as client:
        url = f"http://origin.test:{lan_origin.http}/"
        assert client.get(url, head=head).status == 200
        assert client.get(url, head=RIGHT).status == 200
    first, second = proxy.stop()
    assert (first["event"], first["reason"], first["code"]) == (
        "WOULD_DENY",
        reason,
        "UNAUTHORIZED",
    )
    assert "user" not in first
    assert second["user"] == "batch"
    assert "DENIED" not in proxy.stdout


def test_without_users_nothing_is_looked_at(
    start_proxy: StartProxy, origin: Origin, base: str
) -> None:
    proxy = start_proxy()
    with proxy.client() as client:
        assert client.get(f"{base}/", head=WRONG + WRONG).status == 200
        assert client.connect(_tunnel(origin), head="Proxy-Authorization: x\r\n").status == 200
    assert ["user" in line for line in proxy.stop()] == [False, False]
    (head,) = origin.heads
    assert b"authorization" not in head.lower()


# What is never told -----------------------------------------------------------------------------


def test_credentials_stay_here(start: StartWithUsers, origin: Origin, base: str) -> None:
    """Not to the origin, not in a line, not in an answer, not on stderr, not in the metrics."""
    proxy = start()
    secrets = ["correct-horse", "battery-staple", "hunter2"]
    secrets += [head.split()[2] for head in (RIGHT, WRONG, NOBODY)]
    answers = []
    with proxy.client() as client:
        for head in (RIGHT, RIGHT.replace("Proxy-A", "pROXY-a"), WRONG, NOBODY, NOBODY):
            answers.append(client.get(f"{base}/head", head=head))
            answers.append(client.get("http://unknown.test/", head=head))
        url = f"{base}/head?q={secrets[0]}"
        answers.append(client.get(url, head=RIGHT + "Connection: proxy-authorization\r\n"))
        answers.append(client.connect("unknown.test:443", head=RIGHT))
    with proxy.client() as client:
        answers.append(client.get(f"{base}/head", head=NOBODY + RIGHT))
    metrics = proxy.ask_admin("/metrics").body.decode()
    proxy.stop()
    heads = b"".join(origin.heads).decode()
    assert len(origin.heads) == 3
    assert "uthorization" not in heads
    told = "".join(str(answer) for answer in answers).replace(f"?q={secrets[0]}", "")
    for secret in secrets:
        assert secret not in heads.replace(f"?q={secrets[0]}", "")
        assert secret not in told + proxy.stdout + proxy.stderr + metrics


# Reload -----------------------------------------------------------------------------------------


def _wait_for_generation(proxy: Proxy, generation: int) -> None:
    wait_until(lambda: proxy.policy()["generation"] == generation, what=f"generation {generation}")


def _hang_up(proxy: Proxy) -> None:
    proxy.signal(signal.SIGHUP)


def _ask_admin(proxy: Proxy) -> None:
    assert proxy.ask_admin("/v1/reload", method="POST").status == 200


def _wait(proxy: Proxy) -> None:
    """The file is looked at without anybody's asking."""


@pytest.mark.parametrize("how", [_hang_up, _ask_admin, _wait])
def test_the_users_file_is_read_again(
    start: StartWithUsers, base: str, how: Callable[[Proxy], None]
) -> None:
    proxy = start(required=True)
    new = authorization("batch", "changed")
    with proxy.client() as client:
        assert client.get(f"{base}/", head=RIGHT).status == 200
        assert client.get(f"{base}/", head=new).status == 407
        write_users(start.users, batch="changed")
        how(proxy)
        _wait_for_generation(proxy, 2)
        # On the same connection, with what was known a moment ago.
        _challenged(client.get(f"{base}/", head=RIGHT), "proxy_credentials_wrong")
        assert client.get(f"{base}/", head=new).status == 200
        gone = authorization("ci", "correct-horse")
        _challenged(client.get(f"{base}/", head=gone), "proxy_credentials_wrong")


def test_a_broken_users_file_changes_nothing(start: StartWithUsers, base: str) -> None:
    proxy = start(required=True)
    start.users.write_text("batch:correct-horse\n")
    response = proxy.ask_admin("/v1/reload", method="POST")
    assert response.status == 422
    assert b"users:1:7" in response.body
    assert b"correct-horse" not in response.body
    with proxy.client() as client:
        assert client.get(f"{base}/", head=RIGHT).status == 200
    assert "correct-horse" not in proxy.stderr


def test_credentials_can_be_switched_on_and_off(start: StartWithUsers, base: str) -> None:
    proxy = start(required=True)
    with_users = proxy.config.read_text()
    without = with_users.replace("required: true", "required: false")
    for generation, text, status in ((2, without, 200), (3, with_users, 407)):
        proxy.reload(text)
        _wait_for_generation(proxy, generation)
        with proxy.client() as client:
            assert client.get(f"{base}/").status == status
            assert client.get(f"{base}/", head=RIGHT).status == 200


async def test_a_table_that_comes_between_a_verdict_and_its_use() -> None:
    """The check ended well; when its request goes on, the user is gone."""
    credentials = Credentials({"batch": hashed("correct-horse")}, asyncio.get_running_loop())

    async def result_of(future: asyncio.Future[Any], _: float) -> Any:
        verdict = await future
        credentials.adopt({})
        return verdict

    worker = SimpleNamespace(credentials=credentials, poller=SimpleNamespace(now=time.monotonic()))
    client = SimpleNamespace(
        key="192.0.2.1",
        identity=Identity("192.0.2.1"),
        strand=SimpleNamespace(result_of=result_of),
    )
    head = f"GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\n{RIGHT}\r\n".encode()
    request = parse_request(head, HeadLimits(32768, 100))
    found = await _who_asks(worker, client, CredentialsSettings(), request)  # type: ignore[arg-type]
    assert found == (None, reasons.PROXY_CREDENTIALS_WRONG, None)
    credentials.close()


# Floods -----------------------------------------------------------------------------------------


def test_a_flood_of_guesses_stops_nobody(start: StartWithUsers, base: str, serve: Serve) -> None:
    """Traffic and those who are known go on, and whoever is new has a turn."""
    write_users(start.users, cost=8, batch="correct-horse", ci="correct-horse")
    proxy = start(required=True)
    server = serve(echo)
    stop = threading.Event()
    statuses: list[int] = []

    def guess(number: int) -> None:
        count = 0
        while not stop.is_set():
            count += 1
            with proxy.client(source=f"127.0.0.{number % 4 + 10}", seconds=30) as client:
                head = authorization("batch", f"guess {number} {count}")
                statuses.append(client.get(f"{base}/", head=head).status)

    with proxy.client() as tunnel, proxy.client() as known:
        assert tunnel.connect(f"origin.test:{server.port}", head=RIGHT).status == 200
        threads = [threading.Thread(target=guess, args=(number,)) for number in range(40)]
        for thread in threads:
            thread.start()
        try:
            wait_until(lambda: len(statuses) > 10, seconds=30)
            slowest = 0.0
            for _ in range(20):
                began = time.monotonic()
                tunnel.send(b"x")
                assert tunnel.exactly(1) == b"x"
                assert known.get(f"{base}/", head=RIGHT).status == 200
                slowest = max(slowest, time.monotonic() - began)
            before = len(statuses)
            with proxy.client(seconds=30) as new:
                ci = authorization("ci", "correct-horse")
                assert new.get(f"{base}/", head=ci).status == 200
            before_it = len(statuses) - before
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert slowest < 2
    # One that runs and one of each of the four others, instead of forty.
    assert before_it < 20
    assert set(statuses) <= {407, 503}


def test_a_full_queue_is_said(start: StartWithUsers, base: str) -> None:
    """A client has room for a hundred checks; 503 says that it is not the credentials."""
    write_users(start.users, cost=8, batch="correct-horse")
    proxy = start(required=True)
    clients = [proxy.client(seconds=30) for _ in range(150)]
    authority = base.removeprefix("http://")
    try:
        for number, client in enumerate(clients):
            head = authorization("batch", f"guess {number}")
            client.send(f"GET {base}/ HTTP/1.1\r\nHost: {authority}\r\n{head}\r\n")
        responses = [client.response() for client in clients]
    finally:
        for client in clients:
            client.close()
    statuses = [response.status for response in responses]
    assert set(statuses) == {407, 503}
    assert statuses.count(503) > 20
    for response in responses:
        if response.status == 503:
            assert response.error["reason"] == "credentials_unchecked"
            assert response["x-egress-error"] == "RETRY_LATER"
            assert response["retry-after"] == "5"
            assert "proxy-authenticate" not in response
    lines = proxy.stop()
    assert {line["event"] for line in lines if line["status"] == 503} == {"FAILED"}
    assert not any("user" in line for line in lines)


def test_the_end_does_not_wait_for_checks(start: StartWithUsers, base: str) -> None:
    write_users(start.users, cost=13, batch="correct-horse")
    proxy = start(required=True, drain_timeout="0s")
    clients = [proxy.client() for _ in range(20)]
    authority = base.removeprefix("http://")
    for number, client in enumerate(clients):
        head = authorization("batch", f"guess {number}")
        client.send(f"GET {base}/ HTTP/1.1\r\nHost: {authority}\r\n{head}\r\n")
    wait_until(lambda: proxy.metrics()["egress_proxy_connections_active"] == 20)
    began = time.monotonic()
    proxy.stop()
    assert time.monotonic() - began < 5
    for client in clients:
        client.close()
