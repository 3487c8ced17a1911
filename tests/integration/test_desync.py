"""Whatever an origin sends, and whatever a client does: no byte of one message becomes part of another.

Each attack sends a first request whose answer is tricky, and then other clients' requests to the same origin. Those
must be answered with what the origin said to them, on whatever connection, and it must have seen whole requests.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import partial
from itertools import product

from tests.conftest import Serve
from tests.support.client import Response
from tests.support.proxy import Proxy
from tests.support.scripted import Asked, Scripted, answer, echoes
from tests.support.tools import wait_until

#: What the attacker wants somebody else to be given.
EVIL = answer("EVIL")
SIZE = len(EVIL)
OK = "HTTP/1.1 200 OK\r\n"
EARLY = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"


@dataclass(frozen=True)
class Attack:
    """An answer, and what the client who asked for it must get."""

    said: str
    status: int
    body: bytes = b""
    method: str = "GET"
    trailers: bytes = b""
    behind: bytes = EVIL
    """What the origin sends behind it: in one piece with it, or later."""


CHUNKS = "5\r\nhello\r\n0\r\n\r\n"

ATTACKS = {
    "longer than its length": Attack(f"{OK}Content-Length: 5\r\n\r\nhello", 200, b"hello"),
    "length 0": Attack(f"{OK}Content-Length: 0\r\n\r\n", 200),
    "an empty line behind it": Attack(
        f"{OK}Content-Length: 5\r\n\r\nhello", 200, b"hello", behind=b"\r\n"
    ),
    "a part of a status line": Attack(
        f"{OK}Content-Length: 5\r\n\r\nhello", 200, b"hello", behind=b"HTTP/1.1 200 O"
    ),
    "an interim answer behind it": Attack(
        f"{OK}Content-Length: 2\r\n\r\nok", 200, b"ok", behind=b"HTTP/1.1 100 Continue\r\n\r\n"
    ),
    "chunked": Attack(f"{OK}Transfer-Encoding: chunked\r\n\r\n{CHUNKS}", 200, b"hello"),
    "chunked with trailers": Attack(
        f"{OK}Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 1\r\nAge: 1\r\n\r\n",
        *(200, b"hello"),
        trailers=b"X-Sum: 1\r\n",
    ),
    "chunked with an extension": Attack(
        f"{OK}Transfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0;x\r\n\r\n", 200, b"hello"
    ),
    "chunked and garbage": Attack(
        f"{OK}Transfer-Encoding: chunked\r\n\r\n{CHUNKS}", 200, b"hello", behind=b"0\r\n\r\n\0"
    ),
    "204": Attack("HTTP/1.1 204 No Content\r\n\r\n", 204),
    "204 with a length": Attack(f"HTTP/1.1 204 No Content\r\nContent-Length: {SIZE}\r\n\r\n", 204),
    "204 with chunks": Attack("HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", 204),
    "304 with a length": Attack(
        f"HTTP/1.1 304 Not Modified\r\nContent-Length: {SIZE}\r\n\r\n", 304
    ),
    "304 with chunks": Attack(
        "HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n", 304
    ),
    "304 with two lengths": Attack(
        "HTTP/1.1 304 Not Modified\r\nContent-Length: 0\r\nContent-Length: 5\r\n\r\n", 304
    ),
    "HEAD": Attack(f"{OK}Content-Length: {SIZE}\r\n\r\n", 200, method="HEAD"),
    "HEAD without framing": Attack(f"{OK}\r\n", 200, method="HEAD"),
    "HEAD with chunks": Attack(f"{OK}Transfer-Encoding: chunked\r\n\r\n", 200, method="HEAD"),
    "interim answers": Attack(f"{EARLY * 20}{OK}Content-Length: 2\r\n\r\nok", 200, b"ok"),
    "an interim answer with a length": Attack(
        f"HTTP/1.1 103 Early Hints\r\nContent-Length: {SIZE}\r\n\r\n{OK}Content-Length: 2\r\n\r\nok",
        *(200, b"ok"),
    ),
    "HTTP/1.0": Attack("HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", 200, b"ok"),
    "HTTP/1.0 that stays": Attack(
        "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok", 200, b"ok"
    ),
    "close": Attack(f"{OK}Connection: close\r\nContent-Length: 2\r\n\r\nok", 200, b"ok"),
    "close, to proxies": Attack(
        f"{OK}Proxy-Connection: close\r\nContent-Length: 2\r\n\r\nok", 200, b"ok"
    ),
    "205 with a body": Attack(
        "HTTP/1.1 205 Reset Content\r\nContent-Length: 2\r\n\r\nok", 205, b"ok"
    ),
    "a switch that nobody asked for": Attack(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", 502
    ),
    "two lengths": Attack(f"{OK}Content-Length: 2\r\nContent-Length: {SIZE}\r\n\r\nok", 502),
    "length and chunks": Attack(
        f"{OK}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n{CHUNKS}", 502
    ),
    "a coding that is not chunked": Attack(
        f"{OK}Transfer-Encoding: gzip, chunked\r\n\r\n{CHUNKS}", 502
    ),
    "a length with a sign": Attack(f"{OK}Content-Length: +2\r\n\r\nok", 502),
    "a bad chunk": Attack(f"{OK}Transfer-Encoding: chunked\r\n\r\n5\r\nhello!\r\n0\r\n\r\n", 502),
}


class Attacked:
    """An origin that says something tricky to ``/first``, and to all others what they asked for."""

    def __init__(self, attack: Attack, *, late: bool) -> None:
        self.attack = attack
        self.late = late
        self.asked = threading.Event()
        """Set when the first client has its answer, and the rest may come."""
        self.said = threading.Event()
        """Set when all of it was sent."""
        self.origin = Scripted(self._answer)

    def _answer(self, asked: Asked) -> None:
        if asked.target != "/first":
            echoes(asked)
            return
        said, behind = self.attack.said.encode(), self.attack.behind
        if self.late:
            asked.socket.sendall(said)
            self.asked.wait(10)
            asked.socket.sendall(behind)
        else:
            asked.socket.sendall(said + behind)
        self.said.set()


def _first(proxy: Proxy, base: str, attack: Attack) -> Response:
    """What the attacker gets in the end."""
    with proxy.client() as client:
        client.send(f"{attack.method} {base}/first HTTP/1.1\r\nHost: {base[7:]}\r\n\r\n")
        while (response := client.response(attack.method)).status < 200:
            pass
        return response


def test_an_answer_is_nobody_elses(proxy: Proxy, serve: Serve) -> None:
    for (name, attack), late in product(ATTACKS.items(), (False, True)):
        attacked = Attacked(attack, late=late)
        base = f"http://origin.test:{serve(attacked.origin).port}"
        first = _first(proxy, base, attack)
        attacked.asked.set()
        assert first.status == attack.status, name
        if attack.status == 502:
            assert first.error["reason"] == "origin_malformed", name
        else:
            assert (first.body, first.trailers) == (attack.body, attack.trailers), name
        # What comes late has come, seen or not, before anybody asks again.
        assert attacked.said.wait(10), name
        for number in range(3):
            with proxy.client() as client:
                client.send(f"GET {base}/{number} HTTP/1.1\r\nHost: {base[7:]}\r\n\r\n")
                response = client.response()
                assert (response.status, response.body) == (200, f"/{number}".encode()), name
                assert client.is_silent(0.001), name
        heads = attacked.origin.heads
        # The connection with something on it served nobody else; the clean one, all of them.
        assert [len(one) for one in heads] == [1, 3], name
        wait_until(partial(attacked.origin.ended.__getitem__, 0), what=f"the end of {name}")
        assert not attacked.origin.cut, name


SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: origin.test\r\n\r\n"


def test_an_origin_that_takes_bodies_for_requests(proxy: Proxy, serve: Serve) -> None:
    """It passes over Content-Length, or answers before the body is there. Half a request waits for its other half."""
    attacks = [
        f"POST {{}}/first HTTP/1.1\r\n{{}}Content-Length: {len(SMUGGLED)}\r\n\r\n".encode()
        + SMUGGLED,
        f"POST {{}}/first HTTP/1.1\r\n{{}}Content-Length: {len(SMUGGLED) - 2}\r\n\r\n".encode()
        + SMUGGLED[:-2],
        f"PUT {{}}/first HTTP/1.1\r\n{{}}Transfer-Encoding: chunked\r\n\r\n{len(SMUGGLED) - 4:x}\r\n".encode()
        + SMUGGLED[:-4]
        + b"\r\n0\r\n\r\n",
        f"GET {{}}/first HTTP/1.1\r\n{{}}Content-Length: {len(SMUGGLED) - 2}\r\n\r\n".encode()
        + SMUGGLED[:-2],
        b"OPTIONS {}/first HTTP/1.1\r\n{}Content-Length: 0\r\n\r\n",
    ]
    for attack, early in product(attacks, (False, True)):
        origin = Scripted(echoes)
        base = f"http://origin.test:{serve(origin).port}"
        sent = attack.replace(b"{}", base.encode(), 1).replace(
            b"{}", f"Host: {base[7:]}\r\n".encode(), 1
        )
        head, body = sent.split(b"\r\n\r\n", 1)
        with proxy.client() as attacker, proxy.client() as client:
            attacker.send(head, b"\r\n\r\n", b"" if early else body)
            assert attacker.response().body == b"/first"
            assert client.get(f"{base}/mine").body == b"/mine"
            if early:
                attacker.send(body)
            assert client.get(f"{base}/mine/too").body == b"/mine/too"
        assert origin.heads[0][0].endswith(b"\r\nConnection: close\r\n\r\n")
        assert not any(b" /mine" in one for one in origin.heads[0])
        assert [one.split()[1] for one in origin.heads[1]] == [b"/mine", b"/mine/too"]
        wait_until(partial(origin.ended.__getitem__, 0))


def test_pipelined_requests_of_two_clients_do_not_mix(proxy: Proxy, serve: Serve) -> None:
    origin = Scripted(echoes)
    base = f"http://origin.test:{serve(origin).port}"
    targets = [[f"/{client}/{number}" for number in range(40)] for client in range(6)]
    clients = [proxy.client() for _ in targets]
    for client, mine in zip(clients, targets, strict=True):
        client.send(
            "".join(f"GET {base}{one} HTTP/1.1\r\nHost: {base[7:]}\r\n\r\n" for one in mine)
        )
    for client, mine in zip(clients, targets, strict=True):
        assert [client.response().body.decode() for _ in mine] == mine
        client.close()
    seen = [head.split()[1].decode() for heads in origin.heads for head in heads]
    assert sorted(seen) == sorted(one for mine in targets for one in mine)
    assert len(origin.heads) <= len(clients)
