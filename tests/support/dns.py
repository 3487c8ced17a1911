"""A name server that says what a test wants: wrong, late, never, or something else each time."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from ipaddress import ip_address
from types import TracebackType
from typing import Self

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset

from tests.support.serving import Server

SOA = "ns.invalid. hostmaster.invalid. 1 3600 600 86400 5"


@dataclass(frozen=True, slots=True)
class Answer:
    """What is said about a name. Without addresses of the type that is asked for: that there are none."""

    addresses: tuple[str, ...] = ()
    ttl: int = 60
    rcode: str = "NOERROR"
    """As the standards write it: NXDOMAIN, SERVFAIL, REFUSED."""
    delay: float = 0.0
    """Seconds before it is said."""
    drop: bool = False
    """Nothing is said at all."""
    truncate: bool = False
    """Over UDP only that it does not fit; the whole answer over TCP."""
    alias: str | None = None
    """A CNAME that leads to the addresses."""


NXDOMAIN = Answer(rcode="NXDOMAIN")
SERVFAIL = Answer(rcode="SERVFAIL")
SILENCE = Answer(drop=True)


@dataclass(frozen=True, slots=True)
class Query:
    name: str
    kind: str
    """A or AAAA."""
    transport: str
    """udp or tcp."""
    time: float = field(default_factory=time.monotonic)


class NameServer:
    """Answers on 127.0.0.1, over UDP and TCP on the same port. A name that was not set does not exist."""

    def __init__(self) -> None:
        self.queries: list[Query] = []
        self._answers: dict[str, tuple[Answer, ...]] = {}
        self._asked: Counter[tuple[str, str]] = Counter()
        self._timers: list[threading.Timer] = []
        self._udp, self._tcp = self._bind()
        self._thread = threading.Thread(target=self._serve_udp, daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return self._tcp.port

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def set(self, name: str, *answers: str | Answer) -> None:
        """Each question, of each type for itself, takes the next answer; the last one stays.

        A text is an address.
        """
        self._answers[name.lower()] = tuple(
            Answer((answer,)) if isinstance(answer, str) else answer for answer in answers
        )
        for kind in ("A", "AAAA"):
            del self._asked[name.lower(), kind]

    def asked(self, name: str, kind: str = "A") -> int:
        """How often a name was asked for."""
        return sum(query.name == name and query.kind == kind for query in self.queries)

    def close(self) -> None:
        for timer in self._timers:
            timer.cancel()
        for timer in self._timers:
            timer.join(5)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as waker:
            waker.sendto(b"", ("127.0.0.1", self.port))  # an empty question ends the thread
        self._thread.join(5)
        self._udp.close()
        self._tcp.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _bind(self) -> tuple[socket.socket, Server]:
        while True:
            udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            udp.bind(("127.0.0.1", 0))
            try:
                return udp, Server(self._serve_tcp, port=udp.getsockname()[1])
            except OSError:
                udp.close()  # the TCP port of this number is taken

    def _serve_udp(self) -> None:
        while True:
            try:
                query, client = self._udp.recvfrom(65535)
            except OSError:
                return
            if not query:
                return
            answer, reply = self._reply(query, "udp")
            if reply is None:
                continue
            if answer.delay:
                timer = threading.Timer(answer.delay, self._udp.sendto, (reply, client))
                self._timers.append(timer)
                timer.start()
            else:
                with contextlib.suppress(OSError):  # the client has gone
                    self._udp.sendto(reply, client)

    def _serve_tcp(self, connection: socket.socket) -> None:
        with connection.makefile("rb") as file:
            while header := file.read(2):
                (length,) = struct.unpack("!H", header)
                answer, reply = self._reply(file.read(length), "tcp")
                if reply is None:
                    continue
                time.sleep(answer.delay)
                connection.sendall(struct.pack("!H", len(reply)) + reply)

    def _reply(self, wire: bytes, transport: str) -> tuple[Answer, bytes | None]:
        query = dns.message.from_wire(wire)
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True).lower()
        kind = dns.rdatatype.to_text(question.rdtype)
        self.queries.append(Query(name, kind, transport))
        answers = self._answers.get(name, (NXDOMAIN,))
        answer = answers[min(self._asked[name, kind], len(answers) - 1)]
        if answer.drop:
            return answer, None
        response = dns.message.make_response(query, recursion_available=True)
        if answer.truncate and transport == "udp":
            response.flags |= dns.flags.TC
            return answer, response.to_wire()
        self._asked[name, kind] += 1
        response.set_rcode(dns.rcode.from_text(answer.rcode))
        version = {"A": 4, "AAAA": 6}.get(kind)
        addresses = [one for one in answer.addresses if ip_address(one).version == version]
        owner = question.name
        if answer.alias is not None:
            alias = dns.name.from_text(answer.alias)
            response.answer.append(
                dns.rrset.from_text(owner, answer.ttl, "IN", "CNAME", alias.to_text())
            )
            owner = alias
        if addresses:
            response.answer.append(dns.rrset.from_text(owner, answer.ttl, "IN", kind, *addresses))
        elif answer.rcode in {"NOERROR", "NXDOMAIN"}:
            zone = dns.name.from_text(name.rpartition(".")[2])
            response.authority.append(dns.rrset.from_text(zone, 5, "IN", "SOA", SOA))
        return answer, response.to_wire()
