"""A client that says exactly what a test wants said, byte by byte, and reads what comes back."""

from __future__ import annotations

import json
import re
import socket
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from tests.support.serving import reset


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    version: str
    fields: tuple[tuple[str, str], ...]
    """Names in lower case."""
    body: bytes
    trailers: bytes = b""

    def values(self, name: str) -> list[str]:
        return [value for found, value in self.fields if found == name]

    def __getitem__(self, name: str) -> str:
        """The value of a field that stands once."""
        (value,) = self.values(name)
        return value

    def __contains__(self, name: str) -> bool:
        return bool(self.values(name))

    @property
    def error(self) -> dict[str, Any]:
        """What a refusal says in its body."""
        assert self["content-type"] == "application/json", self
        error: dict[str, Any] = json.loads(self.body)["error"]
        return error


def parse_head(head: bytes) -> Response:
    lines = head.decode("latin-1").split("\r\n")
    found = re.fullmatch(r"HTTP/(1\.[01]) ([0-9]{3}) ?.*", lines[0])
    assert found is not None, head
    fields = []
    for line in lines[1:]:
        if line:
            name, colon, value = line.partition(":")
            assert colon, head
            fields.append((name.lower(), value.strip()))
    return Response(int(found[2]), found[1], tuple(fields), b"")


class RawClient:
    """One connection, to the proxy mostly. Every wait has an end."""

    def __init__(
        self,
        address: str,
        *,
        seconds: float = 10.0,
        receive_buffer: int | None = None,
        source: str | None = None,
    ) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.socket()
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(seconds)
        try:
            if source is not None:
                self.socket.bind((source, 0))
            self.socket.connect((host, int(port)))
        except OSError:
            self.socket.close()
            raise
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = bytearray()

    @property
    def name(self) -> str:
        """This side's address, as the audit line has it."""
        host, port = self.socket.getsockname()
        return f"{host}:{port}"

    def send(self, *parts: bytes | str) -> None:
        for part in parts:
            self.socket.sendall(part.encode() if isinstance(part, str) else part)

    def connect(self, authority: str, *, head: str = "") -> Response:
        """Ask for a tunnel."""
        self.send(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n{head}\r\n")
        return self.response("CONNECT")

    def get(self, url: str, *, method: str = "GET", head: str = "", body: bytes = b"") -> Response:
        """One request in absolute-form."""
        authority = re.split("[/?]", url.removeprefix("http://"))[0]
        self.send(f"{method} {url} HTTP/1.1\r\nHost: {authority}\r\n{head}\r\n".encode() + body)
        return self.response(method)

    def eof(self) -> None:
        """Close this side, and keep reading."""
        self.socket.shutdown(socket.SHUT_WR)

    def urgent(self, byte: bytes) -> None:
        """Send a byte out of band (RFC 9293 §3.8.5), before which a read of the proxy's stops."""
        self.socket.send(byte, socket.MSG_OOB)

    def reset(self) -> None:
        reset(self.socket)

    def _fill(self, size: int = 65536) -> bool:
        data = self.socket.recv(size)
        self._buffer += data
        return bool(data)

    def some(self) -> bytes:
        """What is there, a byte at least; empty at the end."""
        if not self._buffer:
            self._fill(1 << 20)
        return self.exactly(len(self._buffer))

    def exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            assert self._fill(), (
                f"closed after {len(self._buffer)} of {size} bytes: {self._buffer!r}"
            )
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def until(self, mark: bytes) -> bytes:
        """Up to the mark, and with it."""
        while (found := self._buffer.find(mark)) < 0:
            assert self._fill(), f"closed before {mark!r}: {bytes(self._buffer)!r}"
        return self.exactly(found + len(mark))

    def rest(self) -> bytes:
        """Everything until the peer closes."""
        while self._fill():
            pass
        return self.exactly(len(self._buffer))

    def response(self, method: str = "GET") -> Response:
        """One whole response, interim ones before it included only if nothing else came."""
        head = parse_head(self.until(b"\r\n\r\n"))
        status = head.status
        if status < 200 or status in {204, 304} or method == "HEAD":
            return head
        if method == "CONNECT" and status < 300:
            return head
        trailers = b""
        if "transfer-encoding" in head:
            assert head["transfer-encoding"] == "chunked"
            assert "content-length" not in head
            body, trailers = self._chunked()
        elif "content-length" in head:
            body = self.exactly(int(head["content-length"]))
        else:
            body = self.rest()
        return Response(status, head.version, head.fields, body, trailers)

    def _chunked(self) -> tuple[bytes, bytes]:
        body = bytearray()
        while size := int(self.until(b"\r\n").split(b";")[0], 16):
            body += self.exactly(size)
            assert self.exactly(2) == b"\r\n"
        trailers = b""
        while (line := self.until(b"\r\n")) != b"\r\n":
            trailers += line
        return bytes(body), trailers

    def is_closed(self, *, seconds: float = 5.0) -> bool:
        """Whether the peer closes, or resets, within these seconds without sending anything more."""
        self.socket.settimeout(seconds)
        try:
            return not self._buffer and not self._fill()
        except ConnectionResetError:
            return True
        except TimeoutError:
            return False

    def is_silent(self, seconds: float) -> bool:
        """Whether nothing at all comes for these seconds: no byte, no end."""
        before = self.socket.gettimeout()
        self.socket.settimeout(seconds)
        start = time.monotonic()
        try:
            self._fill()
        except TimeoutError:
            return not self._buffer
        else:
            return False
        finally:
            assert time.monotonic() - start < seconds + 5
            self.socket.settimeout(before)

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
