"""Name servers and hosts files that fail, and more connections than there is room for."""

from __future__ import annotations

import contextlib
import random
import resource
import threading
import time

import pytest

from tests.conftest import Serve, StartProxy
from tests.support.dns import Answer, NameServer
from tests.support.edges import (
    at_rest,
    connect,
    no_trace,
    request,
)
from tests.support.origin import Origin
from tests.support.proxy import Proxy, rule
from tests.support.serving import (
    echo,
    say_nothing,
)
from tests.support.tools import descriptors, wait_until

# Names ------------------------------------------------------------------------------------------


class _HalfDeaf(NameServer):
    """Says nothing when asked for a type, as some do that do not know it."""

    deaf_to = "AAAA"

    def _reply(self, wire: bytes, transport: str) -> tuple[Answer, bytes | None]:
        answer, reply = super()._reply(wire, transport)
        return answer, None if self.queries[-1].kind == self.deaf_to else reply


def test_silence_about_ipv6_does_not_hide_ipv4(start_proxy: StartProxy, serve: Serve) -> None:
    server = serve(say_nothing)
    with _HalfDeaf() as deaf:
        deaf.set("origin.test", "127.0.0.1")
        proxy = start_proxy(dns={"servers": [deaf.address], "timeout": "600ms"})
        with proxy.client() as client:
            assert client.connect(f"origin.test:{server.port}").status == 200


def test_answers_that_come_after_the_clients_have_left(
    proxy: Proxy, serve: Serve, name_server: NameServer
) -> None:
    """They are worth keeping, and nobody who left is answered in another's place."""
    server = serve(echo)
    name_server.set("origin.test", Answer(("127.0.0.1",), delay=0.4))
    target = f"origin.test:{server.port}"
    left = [proxy.client() for _ in range(20)]
    for number, client in enumerate(left):
        client.send(connect(target) if number % 2 else request(f"http://{target}/"))
    time.sleep(0.1)
    for number, client in enumerate(left):
        (client.reset if number % 4 < 2 else client.close)()
    with proxy.client() as client:
        # Its descriptor may be one that has just been given back.
        assert client.get("http://denied.test/").status == 403
        assert client.connect(target).status == 200
        client.send(b"mine")
        assert client.exactly(4) == b"mine"
    proxy.wait_for_lines(21, host="origin.test")
    assert name_server.asked("origin.test") == 1
    at_rest(proxy)


def test_a_hosts_file_that_becomes_unreadable(
    start_proxy: StartProxy,
    origin: Origin,
    name_server: NameServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Whatever it holds, the proxy goes on; what it no longer says is asked for."""
    hosts = tmp_path_factory.mktemp("hosts") / "hosts"
    hosts.write_text("127.0.0.1 origin.test\n")
    proxy = start_proxy(dns={"hosts_file": str(hosts)})

    def get() -> int:
        with proxy.client() as client:
            return client.get(f"http://origin.test:{origin.http}/").status

    assert get() == 200
    assert name_server.queries == []
    hosts.write_bytes(b"\xff\xfe\x00\n#\n127.0.0.1\nx y z\n1.2.3.4.5 origin.test\n" + b"a " * 5000)
    wait_until(lambda: get() == 200 and name_server.queries, what="the question")
    hosts.unlink()
    hosts.mkdir()
    time.sleep(1)  # it is looked at once a second
    assert get() == 200
    no_trace(proxy)


# Too many ---------------------------------------------------------------------------------------


def test_running_out_of_descriptors(proxy: Proxy, serve: Serve, origin: Origin) -> None:
    """Some are refused or wait; nothing breaks, and all is well when there is room again."""
    server = serve(echo)
    base = f"http://origin.test:{origin.http}"
    with proxy.client() as client:
        assert client.get(f"{base}/").status == 200
    proxy.settled()
    room = max(descriptors(proxy.pid)) + 12
    hard = resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE)[1]
    resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE, (room, hard))
    clients = [proxy.client(seconds=0.1) for _ in range(16)]
    tunnels, refused = 0, 0
    for client in clients:
        client.send(connect(f"origin.test:{server.port}"))
    for client in clients:
        with contextlib.suppress(TimeoutError):
            response = client.response("CONNECT")
            if response.status == 200:
                tunnels += 1
                client.send(b"x" * 200_000)
                assert client.exactly(200_000) == b"x" * 200_000
            else:
                refused += 1
                assert response.status in {502, 503}
                assert response["x-egress-error"] == "RETRY_LATER"
    assert tunnels
    for client in clients:
        client.close()
    resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE, (hard, hard))
    wait_until(lambda: proxy.stdout.count("\n") == len(clients) + 1, what="a line for each client")
    with proxy.client() as client:
        assert client.get(f"{base}/").status == 200
    at_rest(proxy)


def test_the_limit_of_connections_is_exact(start_proxy: StartProxy, serve: Serve) -> None:
    """Tunnels and idle connections count alike, and each one that ends makes room for one."""
    proxy = start_proxy(limits={"connections": 4})
    server = serve(echo)
    target = f"origin.test:{server.port}"
    open_ones = [proxy.client() for _ in range(4)]
    for number, client in enumerate(open_ones):
        status = (
            client.connect(target).status
            if number % 2
            else client.get("http://denied.test/").status
        )
        assert status == (200 if number % 2 else 403)

    def admitted() -> bool:
        with proxy.client() as client:
            return client.connect(target).status == 200

    for client in open_ones[:]:
        assert not admitted()
        client.close()
        wait_until(admitted, what="room for one")
        wait_until(
            lambda: proxy.metrics()["egress_proxy_connections_active"] == 3, what="that one's end"
        )
        open_ones.append(proxy.client())
        assert open_ones[-1].connect(target).status == 200
    assert not admitted()
    for client in open_ones:
        client.close()
    assert {line["reason"] for line in proxy.lines if line["event"] == "FAILED"} == {"overloaded"}
    at_rest(proxy)


def _abort_somewhere(proxy: Proxy, target: str, base: str, chance: random.Random) -> None:
    """One connection that is given up at some moment."""
    requests = [
        connect(target) + b"x" * chance.choice([0, 10, 40_000, 300_000]),
        connect("denied.test:443") + b"x" * chance.choice([0, 100]),
        request(f"{base}/bytes/{chance.choice([0, 100, 200_000, 5_000_000])}"),
        request(f"{base}/chunked/{chance.choice([10, 300_000])}") * 3,
        request(f"{base}/upload", method="PUT", head="Content-Length: 500000\r\n")
        + b"x" * chance.randrange(600_000),
        request(f"{base}/upload", method="PUT", head="Transfer-Encoding: chunked\r\n")
        + b"5\r\nhello\r\n" * chance.randrange(5),
        request(f"{base}/drip/3"),
        request(f"{base}/reset-body"),
        request("http://slow.test/"),
        b"GET http",
    ]
    with proxy.client(seconds=2) as client, contextlib.suppress(OSError, AssertionError):
        data = b"".join(chance.choices(requests, k=chance.choice([1, 1, 2])))
        cut = chance.choice([len(data), len(data), chance.randrange(1, len(data))])
        client.socket.settimeout(chance.choice([0.001, 0.02, 0.2]))
        client.socket.sendall(data[:cut])
        if chance.random() < 0.3:
            client.eof()
        for _ in range(chance.choice([0, 0, 1, 5])):
            client.some()
        time.sleep(chance.choice([0, 0, 0.001, 0.01]))
        if chance.random() < 0.4:
            client.reset()


def test_connections_given_up_at_any_moment(
    start_proxy: StartProxy, origin: Origin, name_server: NameServer, serve: Serve
) -> None:
    """Hundreds of them leave nothing behind: no descriptor, no number that is off by one."""
    proxy = start_proxy(
        allow=[rule("origin.test"), rule("slow.test")],
        timeouts={"idle": "2s", "response": "1s", "head": "1s"},
    )
    name_server.set("slow.test", Answer(("127.0.0.1",), delay=0.2, ttl=0))
    server = serve(echo)
    target, base = f"origin.test:{server.port}", f"http://origin.test:{origin.http}"
    before = len(descriptors(proxy.pid))

    def some(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(60):
            _abort_somewhere(proxy, target, base, chance)

    threads = [threading.Thread(target=some, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_until(
        lambda: proxy.metrics()["egress_proxy_connections_active"] == 0,
        seconds=8,
        what=lambda: f"rest; {proxy.metrics()}",
    )
    at_rest(proxy)
    with proxy.client() as client:
        assert client.connect(target).status == 200
        client.send(b"x")
        assert client.exactly(1) == b"x"
    wait_until(
        lambda: len(descriptors(proxy.pid)) <= before + 2 * 64,  # pipes are kept
        what=lambda: f"{before} descriptors before, now {descriptors(proxy.pid)}",
    )
    lines = proxy.stop()
    assert len({line["request_id"] for line in lines}) == len(lines)
