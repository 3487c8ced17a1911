"""A parent proxy that says what a test wants said, and tells what it was asked."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any

from tests.support.client import Response
from tests.support.dns import NameServer
from tests.support.proxy import Proxy, configuration, rule
from tests.support.serving import Server, echo
from tests.support.tools import wait_until

#: What it does once it has read a request's head.
Script = Callable[[socket.socket], None]

ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"


class ScriptedParent:
    """The handler of a :class:`~tests.support.serving.Server`."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.heads: list[bytes] = []
        """Every request's head, as it came, up to and with the empty line."""

    def __call__(self, connection: socket.socket) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            data = connection.recv(1)
            if not data:
                return
            head += data
        self.heads.append(head)
        self.script(connection)

    @property
    def fields(self) -> list[tuple[str, str]]:
        """Those of the one request that came; names in lower case."""
        (head,) = self.heads
        lines = head.decode().removesuffix("\r\n\r\n").split("\r\n")[1:]
        return [
            (name.lower(), value) for name, _, value in (line.partition(": ") for line in lines)
        ]


def says(*pieces: bytes, pause: float = 0.0) -> Script:
    """Sends the pieces, each in a segment of its own, and closes."""

    def script(connection: socket.socket) -> None:
        for number, piece in enumerate(pieces):
            if number:
                time.sleep(pause)
            connection.sendall(piece)

    return script


def then_echoes(*pieces: bytes, pause: float = 0.0) -> Script:
    """Sends the pieces, then echoes what comes through the tunnel."""
    say = says(*pieces, pause=pause)

    def script(connection: socket.socket) -> None:
        say(connection)
        echo(connection)

    return script


# Configurations and requests --------------------------------------------------------------------------------------


def plain(host: str, **more: Any) -> dict[str, Any]:
    """A rule for a host whose addresses nobody judges here."""
    return rule(host, allow_private=[]) | more


def through(parent: Proxy | Server, **more: Any) -> dict[str, Any]:
    """`upstream` with this parent."""
    port = parent.port if isinstance(parent, Server) else parent.address.rpartition(":")[2]
    return {"proxy": f"http://127.0.0.1:{port}", **more}


def ask(proxy: Proxy, method: str, authority: str, head: str = "") -> Response:
    with proxy.client() as client:
        if method == "CONNECT":
            return client.connect(authority, head=head)
        return client.get(f"http://{authority}/", head=head)


def reloaded(proxy: Proxy, name_server: NameServer, *, allow: list[Any], **keys: Any) -> None:
    """Gives a proxy another configuration, and waits until it has it."""
    generation = proxy.policy()["generation"]
    proxy.reload(configuration(name_server=name_server.address, allow=allow, **keys))
    wait_until(lambda: proxy.policy()["generation"] == generation + 1)
