"""HTTP/1 message heads that were understood, as values."""

from __future__ import annotations

import msgspec

from egress_proxy.core.fields import Field, Framing
from egress_proxy.core.names import Authority
from egress_proxy.core.sections import Section

END_OF_HEAD = b"\r\n\r\n"

#: Methods whose repetition changes nothing more (RFC 9110 §9.2.2).
_IDEMPOTENT = frozenset(("GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"))


class HeadLimits(msgspec.Struct, frozen=True):
    """How large a head may be."""

    size: int
    """Bytes of the whole head, request line and last empty line included."""
    fields: int
    """Number of header lines."""


class Head(msgspec.Struct, frozen=True):
    """A request head whose syntax is right; what it means is another question."""

    method: str
    target: bytes
    minor: int
    """The minor version: 0 or 1."""
    section: Section

    @property
    def fields(self) -> list[Field]:
        return self.section.fields

    def values(self, name: bytes) -> list[bytes]:
        """The values of all fields of a name, which is given in lower case."""
        return self.section.values(name)


class ProxyRequest(msgspec.Struct, frozen=True):
    """A request to this proxy: CONNECT, or another method with an ``http://`` URL as target."""

    method: str
    destination: Authority
    path: bytes
    """Origin-form (RFC 9112 §3.2.1) to send on; empty for CONNECT."""
    minor: int
    keep_alive: bool
    """Whether the client wants the connection to stay open (RFC 9112 §9.3)."""
    framing: Framing
    length: int
    """Bytes of the body where framing is LENGTH, else 0."""
    expects_continue: bool
    section: Section
    is_connect: bool
    upgrade: bytes | None = None
    """The protocol to switch to, as the client wrote it, where it asks for one that is passed on: WebSocket alone."""
    max_forwards: int | None = None
    """How many more proxies a TRACE or OPTIONS request may pass (RFC 9110 §7.6.2): with 0 it ends here."""

    @property
    def fields(self) -> list[Field]:
        return self.section.fields

    @property
    def idempotent(self) -> bool:
        """Whether sending it twice has the effect of sending it once (RFC 9110 §9.2.2)."""
        return self.method in _IDEMPOTENT


class ResponseHead(msgspec.Struct, frozen=True):
    """An origin's answer, before its body."""

    status: int
    status_line: bytes
    """As it came, without CRLF."""
    framing: Framing
    length: int
    section: Section
    keep_alive: bool = False
    """Whether the origin's connection can carry another request once this answer's body has ended (RFC 9112 §9.3)."""

    @property
    def fields(self) -> list[Field]:
        return self.section.fields
