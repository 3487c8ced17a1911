"""An HTTP origin whose every answer a test writes by hand, connection by connection and request by request."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Asked:
    """One request, as it came."""

    connection: int
    """How many connections came before this one."""
    number: int
    """How many requests came on this connection before."""
    head: bytes
    """Up to and with the empty line."""
    socket: socket.socket

    @property
    def target(self) -> str:
        return self.head.split(b" ", 2)[1].decode()


#: Answers one request, on its socket; True to end the connection after it.
Script = Callable[[Asked], object]


@dataclass(slots=True)
class Scripted:
    """The handler of a :class:`~tests.support.serving.Server`. Whatever comes is heads without bodies to it."""

    script: Script
    heads: list[list[bytes]] = field(default_factory=list)
    """Every request's head, by connection."""
    ended: list[bool] = field(default_factory=list)
    """Which connections the proxy has ended, or broken off."""
    cut: list[bytes] = field(default_factory=list)
    """What came of a head that did not come whole."""

    def __call__(self, connection: socket.socket) -> None:
        number = len(self.heads)
        heads: list[bytes] = []
        self.heads.append(heads)
        self.ended.append(False)
        data = b""
        try:
            while True:
                while (end := data.find(b"\r\n\r\n")) < 0:
                    more = connection.recv(65536)
                    if not more:
                        self.ended[number] = True
                        if data:
                            self.cut.append(data)
                        return
                    data += more
                head, data = data[: end + 4], data[end + 4 :]
                heads.append(head)
                if self.script(Asked(number, len(heads) - 1, head, connection)):
                    return
        except ConnectionError:
            self.ended[number] = True


def answer(body: bytes | str, *, status: str = "200 OK", head: str = "") -> bytes:
    """A whole answer with its length."""
    data = body.encode() if isinstance(body, str) else body
    return f"HTTP/1.1 {status}\r\n{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


def echoes(asked: Asked) -> None:
    """Says what was asked for, so that nobody can take one answer for another."""
    body = b"" if asked.head.startswith(b"HEAD ") else asked.target.encode()
    asked.socket.sendall(
        f"HTTP/1.1 200 OK\r\nContent-Length: {len(asked.target)}\r\n\r\n".encode() + body
    )
