"""An HTTP/1.1 origin that behaves, or misbehaves, as its path says, over plain TCP and over TLS.

It is written without an HTTP library, so that what it got can be told to the byte, and what it sends may be wrong.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.support.serving import Server, reset
from tests.support.tools import blocks

Extension = Callable[["Exchange"], None]


@dataclass(slots=True)
class Exchange:
    """One request, and the means to answer it."""

    connection: socket.socket
    file: io.BufferedReader
    head: bytes
    """As it came, up to and with the empty line."""
    method: str
    target: str
    fields: dict[str, str]
    """Names in lower case; the last one of a name wins."""
    scheme: str
    close: bool = False
    """Set when the connection must end after this answer."""
    _read: bool = False

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def query(self) -> str:
        return self.target.partition("?")[2]

    def body(self) -> Iterator[bytes]:
        """The request's body in pieces, its framing removed."""
        if self._read:
            return
        self._read = True
        if self.fields.get("expect", "").lower() == "100-continue":
            self.connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if self.fields.get("transfer-encoding") == "chunked":
            while size := int(self._line().split(b";")[0], 16):
                yield self._exactly(size)
                self._exactly(2)
            while self._line() != b"\r\n":
                pass
            return
        left = int(self.fields.get("content-length", "0"))
        while left:
            piece = self._exactly(min(left, 256 * 1024))
            left -= len(piece)
            yield piece

    def _line(self) -> bytes:
        line = self.file.readline()
        if not line.endswith(b"\n"):
            raise EOFError
        return line

    def _exactly(self, size: int) -> bytes:
        data = self.file.read(size)
        if len(data) < size:
            raise EOFError
        return data

    def answer(
        self, body: bytes = b"", *, status: str = "200 OK", head: str = "", kind: str = "text/plain"
    ) -> None:
        """A whole answer with its length; the request's body is read to its end first."""
        for _ in self.body():
            pass
        self.start(f"{head}Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n", status=status)
        if self.method != "HEAD":
            self.connection.sendall(body)

    def start(self, head: str, *, status: str = "200 OK") -> None:
        self.connection.sendall(f"HTTP/1.1 {status}\r\n{head}\r\n".encode())

    def chunk(self, data: bytes | memoryview) -> None:
        self.connection.sendall(b"%x\r\n" % len(data))
        self.connection.sendall(data)
        self.connection.sendall(b"\r\n")


class Origin:
    """``http`` and ``https`` are ports of the same origin.

    ``/``                   a short text
    ``/bytes/N``            N bytes with Content-Length
    ``/chunked/N``          N bytes, chunked, with a trailer
    ``/until-close/N``      N bytes whose end is the connection's
    ``/upload``             what came: its length, hash and framing, as JSON
    ``/head``               the request's head, as it came
    ``/status/CODE``        that status: 204 and 304 without a body
    ``/redirect``           302 to ``/``
    ``/interim``            103, then 200
    ``/drip/N``             N bytes, one every 50 ms
    ``/early``              an answer before the request's body is read
    ``/hang``               no answer
    ``/half``               half of the body, then nothing more
    ``/endless``            a chunked body that never ends
    ``/close``, ``/reset``  no answer, but the end
    ``/truncated``, ``/cut-chunk``, ``/reset-body``   an answer that ends too soon
    ``/malformed/KIND``     see _MALFORMED
    """

    def __init__(self, tls: ssl.SSLContext, *, host: str = "127.0.0.1") -> None:
        self.heads: list[bytes] = []
        """Every request's head, as it came."""
        self.extensions: dict[str, Extension] = {}
        """Further paths by their first part, such as ``/git``."""
        self.http_server = Server(lambda connection: self._serve(connection, "http"), host=host)
        self.https_server = Server(
            lambda connection: self._serve(connection, "https"), tls=tls, host=host
        )
        self.http = self.http_server.port
        self.https = self.https_server.port

    def close(self) -> None:
        try:
            self.http_server.close()
        finally:
            self.https_server.close()

    def _serve(self, connection: socket.socket, scheme: str) -> None:
        with connection.makefile("rb", 256 * 1024) as file:
            assert isinstance(file, io.BufferedReader)
            while True:
                head = bytearray()
                while not head.endswith(b"\r\n\r\n"):
                    line = file.readline()
                    if not line:
                        return
                    head += line
                self.heads.append(bytes(head))
                exchange = _exchange(connection, file, bytes(head), scheme)
                self._answer(exchange)
                if exchange.close or exchange.fields.get("connection", "").lower() == "close":
                    return

    def _answer(self, exchange: Exchange) -> None:
        first = re.match(r"/[^/]*", exchange.path)
        name = first[0] if first else exchange.path
        if name in self.extensions:
            self.extensions[name](exchange)
        else:
            _ANSWERS.get(name, _not_found)(exchange)


def _exchange(
    connection: socket.socket, file: io.BufferedReader, head: bytes, scheme: str
) -> Exchange:
    lines = head.decode("latin-1").split("\r\n")
    method, target, _ = lines[0].split(" ")
    fields = {}
    for line in lines[1:-2]:
        name, _, value = line.partition(":")
        fields[name.lower()] = value.strip()
    return Exchange(connection, file, head, method, target, fields, scheme)


def _size(exchange: Exchange) -> int:
    return int(exchange.path.rpartition("/")[2])


def _small(exchange: Exchange) -> None:
    exchange.answer(f"hello from {exchange.scheme}\n".encode())


def _bytes(exchange: Exchange) -> None:
    size = _size(exchange)
    exchange.start(f"Content-Type: application/octet-stream\r\nContent-Length: {size}\r\n")
    if exchange.method != "HEAD":
        for block in blocks(size):
            exchange.connection.sendall(block)


def _chunked(exchange: Exchange) -> None:
    exchange.start("Transfer-Encoding: chunked\r\nTrailer: X-Checksum\r\n")
    for block in blocks(_size(exchange)):
        exchange.chunk(block)
    exchange.connection.sendall(b"0\r\nX-Checksum: right\r\n\r\n")


def _until_close(exchange: Exchange) -> None:
    exchange.close = True
    exchange.start("Content-Type: application/octet-stream\r\n")
    for block in blocks(_size(exchange)):
        exchange.connection.sendall(block)


def _upload(exchange: Exchange) -> None:
    digest, length = hashlib.sha256(), 0
    for piece in exchange.body():
        digest.update(piece)
        length += len(piece)
    got = {
        "method": exchange.method,
        "length": length,
        "sha256": digest.hexdigest(),
        "chunked": "transfer-encoding" in exchange.fields,
        "expect": exchange.fields.get("expect"),
    }
    exchange.answer(json.dumps(got).encode(), kind="application/json")


def _head(exchange: Exchange) -> None:
    exchange.answer(exchange.head)


def _status(exchange: Exchange) -> None:
    status = exchange.path.rpartition("/")[2]
    if status == "204":
        exchange.start("", status="204 No Content")
    elif status == "304":
        exchange.start('ETag: "x"\r\nContent-Length: 5\r\n', status="304 Not Modified")
    else:
        exchange.answer(b"status\n", status=f"{status} Test")


def _redirect(exchange: Exchange) -> None:
    exchange.answer(b"", status="302 Found", head="Location: /\r\n")


def _interim(exchange: Exchange) -> None:
    exchange.start("Link: </style.css>; rel=preload\r\n", status="103 Early Hints")
    exchange.answer(b"final\n")


def _drip(exchange: Exchange) -> None:
    size = _size(exchange)
    exchange.start(f"Content-Length: {size}\r\n")
    for _ in range(size):
        exchange.connection.sendall(b".")
        time.sleep(0.05)


def _early(exchange: Exchange) -> None:
    exchange.start("Content-Length: 8\r\nConnection: close\r\n", status="413 Content Too Large")
    exchange.connection.sendall(b"too big\n")
    exchange.connection.shutdown(socket.SHUT_WR)  # and read on, as RFC 9112 §9.6 asks
    _wait_for_end(exchange)


def _hang(exchange: Exchange) -> None:
    _wait_for_end(exchange)


def _half(exchange: Exchange) -> None:
    exchange.start("Content-Length: 10\r\n")
    exchange.connection.sendall(b"hello")
    _wait_for_end(exchange)


def _endless(exchange: Exchange) -> None:
    exchange.start("Transfer-Encoding: chunked\r\n")
    while True:
        exchange.chunk(b"still here\n")
        time.sleep(0.05)


def _wait_for_end(exchange: Exchange) -> None:
    exchange.close = True
    while exchange.file.read1():
        pass


def _close(exchange: Exchange) -> None:
    exchange.close = True


def _reset(exchange: Exchange) -> None:
    exchange.close = True
    reset(exchange.connection)


def _truncated(exchange: Exchange) -> None:
    exchange.close = True
    exchange.start("Content-Length: 1000\r\n")
    exchange.connection.sendall(b"not a thousand bytes")


def _cut_chunk(exchange: Exchange) -> None:
    exchange.close = True
    exchange.start("Transfer-Encoding: chunked\r\n")
    exchange.chunk(b"whole")
    exchange.connection.sendall(b"ff\r\ncut")


def _reset_body(exchange: Exchange) -> None:
    exchange.close = True
    exchange.start("Content-Length: 1000\r\n")
    exchange.connection.sendall(b"not a thousand bytes")
    time.sleep(0.1)  # or the reset may overtake what was sent
    reset(exchange.connection)


_MALFORMED = {
    "status-line": b"HTTP/9.9 OK\r\n\r\n",
    "garbage": b"SSH-2.0-OpenSSH_9.2\r\n",
    "two-lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    "both-framings": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"5\r\nhello\r\n0\r\n\r\n"
    ),
    "space-before-colon": b"HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\nhello",
    "huge-head": b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * (1 << 20) + b"\r\n\r\n",
    "bad-chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\nhello\r\n0\r\n\r\n",
    "cut-head": b"HTTP/1.1 200 OK\r\nContent-",
}


def _malformed(exchange: Exchange) -> None:
    exchange.close = True
    exchange.connection.sendall(_MALFORMED[exchange.path.rpartition("/")[2]])


def _not_found(exchange: Exchange) -> None:
    exchange.answer(b"no such path\n", status="404 Not Found")


_ANSWERS: dict[str, Extension] = {
    "/": _small,
    "/bytes": _bytes,
    "/chunked": _chunked,
    "/until-close": _until_close,
    "/upload": _upload,
    "/head": _head,
    "/status": _status,
    "/redirect": _redirect,
    "/interim": _interim,
    "/drip": _drip,
    "/early": _early,
    "/hang": _hang,
    "/half": _half,
    "/endless": _endless,
    "/close": _close,
    "/reset": _reset,
    "/truncated": _truncated,
    "/cut-chunk": _cut_chunk,
    "/reset-body": _reset_body,
    "/malformed": _malformed,
}
