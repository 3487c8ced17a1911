"""A loopback server with a thread for each connection: an origin can be written as plain blocking code."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

Handler = Callable[[socket.socket], None]


class Server:
    """Listens from the start, and closes whatever is still open at its end.

    An exception of a handler is kept and raised by :meth:`close`, except for those that a peer causes by going away.
    """

    def __init__(
        self,
        handler: Handler,
        *,
        tls: ssl.SSLContext | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        receive_buffer: int | None = None,
    ) -> None:
        self._handler = handler
        self._tls = tls
        self._closing = False
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._errors: list[BaseException] = []
        self._listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if receive_buffer is not None:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        try:
            self._listener.bind((host, port))
        except OSError:
            self._listener.close()
            raise
        self._listener.listen(1024)
        self.port: int = self._listener.getsockname()[1]
        self.accepted = 0
        """Connections so far."""
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            if self._closing:
                connection.close()
                return
            self.accepted += 1
            self._open.add(connection)
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        current = connection
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                current = self._tls.wrap_socket(connection, server_side=True)
                self._open.add(current)
            self._handler(current)
            if isinstance(current, ssl.SSLSocket):
                current = current.unwrap()
        except (OSError, EOFError):
            pass  # the peer went away, or did not like the certificate
        except BaseException as error:  # noqa: BLE001 - raised again by close()
            self._errors.append(error)
        finally:
            for one in (current, connection):
                self._open.discard(one)
                one.close()

    def close(self) -> None:
        self._closing = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._acceptor.join(5)
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
            if thread.is_alive():
                raise AssertionError("a handler does not end when its connection does")
        if self._errors:
            raise self._errors[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


@contextlib.contextmanager
def full_backlog(port: int = 0) -> Iterator[int]:
    """A port of 127.0.0.1 where nobody accepts: the system drops what asks to connect."""
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", port))
        full.listen(0)
        for one in (first, second):
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        time.sleep(0.1)
        yield full.getsockname()[1]


def reset(connection: socket.socket) -> None:
    """Close with a TCP reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def until_eof(connection: socket.socket) -> bytes:
    """Everything that the peer sends until it closes its side."""
    received = bytearray()
    while data := connection.recv(65536):
        received += data
    return bytes(received)


# Handlers ---------------------------------------------------------------------------------------


def echo(connection: socket.socket) -> None:
    """Sends back what comes, as it comes."""
    while data := connection.recv(65536):
        connection.sendall(data)


def greet(connection: socket.socket) -> None:
    """Speaks first, as SMTP and SSH servers do; then echoes."""
    connection.sendall(b"220 origin.test ready\r\n")
    echo(connection)


def answer_after_eof(connection: socket.socket) -> None:
    """Answers only when the client has closed its side."""
    connection.sendall(b"you said: " + until_eof(connection))


def say_nothing(connection: socket.socket) -> None:
    """Reads and never answers, until the peer closes."""
    until_eof(connection)


def reset_after_first_bytes(connection: socket.socket) -> None:
    connection.recv(65536)
    reset(connection)


def greet_and_reset(connection: socket.socket) -> None:
    connection.sendall(b"hello")
    connection.recv(65536)
    reset(connection)
