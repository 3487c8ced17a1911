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
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from tests.support.serving import Server

#: What forged replies say: documentation's, so that nobody reaches anything by it (RFC 5737).
FORGED = "192.0.2.66"


@dataclass(frozen=True, slots=True)
class Answer:
    """What is said about a name. Without addresses of the type that is asked for: that there are none."""

    addresses: tuple[str, ...] = ()
    ttl: int = 60
    rcode: str = "NOERROR"
    """As the standards write it: NXDOMAIN, SERVFAIL, REFUSED, NOTIMP, FORMERR."""
    delay: float = 0.0
    """Seconds before it is said."""
    drop: bool = False
    """Nothing is said at all."""
    lose: int = 0
    """So many questions of each type that were lost on the way, before the first that is answered."""
    truncate: bool = False
    """Over UDP only that it does not fit; the whole answer over TCP."""
    alias: str | None = None
    """A CNAME that leads to the addresses."""
    records: tuple[str, ...] = ()
    """More of the answer section, in the notation of zone files, such as ``a.test. 60 IN CNAME b.test.``: aliases, and
    what is of the type that is asked for."""
    soa: tuple[int, int] | None = (5, 5)
    """TTL and minimum of the SOA record that comes with a negative answer; None leaves it out."""
    forged: tuple[str, ...] = ()
    """Replies that somebody else sends first, at once, each with the address FORGED: with another ``id``, to another
    ``question``, from another ``port``, or ``garbage``. A ``perfect`` one shows that it would be believed."""


NXDOMAIN = Answer(rcode="NXDOMAIN")
SERVFAIL = Answer(rcode="SERVFAIL")
REFUSED = Answer(rcode="REFUSED")
SILENCE = Answer(drop=True)


@dataclass(frozen=True, slots=True)
class Query:
    name: str
    kind: str
    """A, AAAA or HTTPS."""
    transport: str
    """udp or tcp."""
    time: float = field(default_factory=time.monotonic)


class NameServer:
    """Answers on 127.0.0.1, over UDP and TCP on the same port. A name that was not set does not exist."""

    def __init__(self) -> None:
        self.queries: list[Query] = []
        self._answers: dict[tuple[str, str | None], tuple[Answer, ...]] = {}
        self._asked: Counter[tuple[str, str]] = Counter()
        self._lost: Counter[tuple[str, str, int]] = Counter()
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

    def set(self, name: str, *answers: str | Answer, kind: str | None = None) -> None:
        """Each question, of each type for itself, takes the next answer; the last one stays.

        A text is an address. With a kind, it is for questions of that type alone.
        """
        name = name.lower()
        self._answers[name, kind] = tuple(
            Answer((answer,)) if isinstance(answer, str) else answer for answer in answers
        )
        for one in ("A", "AAAA", "HTTPS") if kind is None else (kind,):
            del self._asked[name, one]
            for number in range(len(answers)):
                del self._lost[name, one, number]

    def asked(self, name: str, kind: str = "A") -> int:
        """How often a name was asked for."""
        return sum(query.name == name and query.kind == kind for query in self.queries)

    def close(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as waker:
            waker.sendto(b"", ("127.0.0.1", self.port))  # an empty question ends the thread
        self._thread.join(5)
        # From here on nobody starts another.
        for timer in self._timers:
            timer.cancel()
        for timer in self._timers:
            timer.join(5)
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
            for how in answer.forged:
                self._forge(query, client, how)
            if reply is None:
                continue
            if answer.delay:
                timer = threading.Timer(answer.delay, self._say, (reply, client))
                self._timers.append(timer)
                timer.start()
            else:
                self._say(reply, client)

    def _say(self, reply: bytes, client: tuple[str, int]) -> None:
        with contextlib.suppress(OSError):  # the client has gone, or the test is over
            self._udp.sendto(reply, client)

    def _forge(self, wire: bytes, client: tuple[str, int], how: str) -> None:
        """Send what no resolver may believe."""
        query = dns.message.from_wire(wire)
        question = query.question[0]
        if how == "question":
            query.question = [
                dns.rrset.RRset(_name("other.test"), question.rdclass, question.rdtype)
            ]
        response = dns.message.make_response(query, recursion_available=True)
        if question.rdtype == dns.rdatatype.A:
            owner = query.question[0].name
            response.answer.append(dns.rrset.from_text(owner, 3600, "IN", "A", FORGED))
        if how == "id":
            response.id ^= 0x5555
        forged = response.to_wire() if how != "garbage" else wire[:2] + b"\xff" * 40
        if how != "port":
            self._udp.sendto(forged, client)
            return
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.bind(("127.0.0.1", 0))
            stranger.sendto(forged, client)

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
        answers = self._answers.get((name, kind)) or self._answers.get((name, None), (NXDOMAIN,))
        number = min(self._asked[name, kind], len(answers) - 1)
        answer = answers[number]
        if answer.drop:
            return answer, None
        lost = (name, kind, number)
        self._lost[lost] += 1
        if self._lost[lost] <= answer.lose:
            return answer, None
        response = dns.message.make_response(query, recursion_available=True)
        if answer.truncate and transport == "udp":
            response.flags |= dns.flags.TC
            return answer, response.to_wire()
        self._asked[name, kind] += 1
        response.set_rcode(dns.rcode.from_text(answer.rcode))
        version = {"A": 4, "AAAA": 6}.get(kind)
        wanted = {question.rdtype, dns.rdatatype.CNAME}
        addresses = [one for one in answer.addresses if ip_address(one).version == version]
        owner = question.name
        if answer.alias is not None:
            alias = _name(answer.alias)
            response.answer.append(
                dns.rrset.from_text(owner, answer.ttl, "IN", "CNAME", alias.to_text())
            )
            owner = alias
        if addresses:
            response.answer.append(dns.rrset.from_text(owner, answer.ttl, "IN", kind, *addresses))
        more = [record for line in answer.records if (record := _record(line)).rdtype in wanted]
        response.answer += more
        said = addresses or any(record.rdtype == question.rdtype for record in more)
        if not said and answer.soa is not None and answer.rcode in {"NOERROR", "NXDOMAIN"}:
            ttl, minimum = answer.soa
            zone = _name(name.rpartition(".")[2])
            soa = f"ns.invalid. hostmaster.invalid. 1 3600 600 86400 {minimum}"
            response.authority.append(dns.rrset.from_text(zone, ttl, "IN", "SOA", soa))
        # What does not fit into a datagram is truncated by itself.
        size = 65535 if transport == "tcp" else 0
        return answer, response.to_wire(max_size=size, prefer_truncation=True)


def _record(line: str) -> dns.rrset.RRset:
    name, ttl, class_, kind, data = line.split(None, 4)
    if not data.startswith("\\#"):
        return dns.rrset.from_text(name, int(ttl), class_, kind, data)
    # RFC 3597; dnspython itself would want it to make sense.
    wire = bytes.fromhex(data.split(None, 2)[2])
    generic = dns.rdata.GenericRdata(
        dns.rdataclass.from_text(class_), dns.rdatatype.from_text(kind), wire
    )
    return dns.rrset.from_rdata(name, int(ttl), generic)


def _name(text: str) -> dns.name.Name:
    return dns.name.from_text(text)
