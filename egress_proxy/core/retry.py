"""A second ClientHello: what a client may say in clear once more, after its server has asked for it.

A server that cannot use the keys of the first ClientHello answers with a HelloRetryRequest (RFC 8446 §4.1.4), and
the client begins again. Its second ClientHello must name the same server (§4.1.2), but there are servers that do not
compare the two, and go by the second: who is only checked once could then name somebody else.

So both directions are looked at until the first thing that the server says shows that it asks for none, or until the
second ClientHello has been compared.
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec

from egress_proxy.core import reasons
from egress_proxy.core.errors import HelloError
from egress_proxy.core.tls import ClientHello, parse_client_hello

#: The random of a ServerHello that is a HelloRetryRequest (RFC 8446 §4.1.3).
HELLO_RETRY_REQUEST: Final = bytes.fromhex(
    "cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c"
)

_CHANGE_CIPHER_SPEC, _ALERT, _HANDSHAKE, _APPLICATION_DATA = 20, 21, 22, 23
_SERVER_HELLO = 2
_WARNINGS = (_CHANGE_CIPHER_SPEC, _ALERT)
_HEADER = 5
# Record header, handshake header, legacy_version, random.
_END_OF_RANDOM = 43
_record = struct.Struct(">B2xH").unpack_from  # its type and length
_server_hello = struct.Struct(
    ">5xB5x32s"
).unpack_from  # of a record: the message's type and its random
# RFC 8446 §5.2: of what a record of application data may hold.
_MAX_RECORD = 2**14 + 256
#: Records smaller than this cost more than they carry. There may be a few of them in early data.
_SMALL = 64
MAX_SMALL_RECORDS: Final = 64


class HelloRetry(msgspec.Struct, gc=False):
    """What goes through a tunnel behind its first ClientHello, until nothing more can be hidden in it."""

    first: ClientHello
    limit: int
    """In bytes, as of :func:`~egress_proxy.core.tls.parse_client_hello`."""
    may_change_ech: bool
    """Whether a second ClientHello may be encrypted otherwise than the first one."""
    over: bool = False
    """Whether nothing needs to be looked at any more."""
    _answer: bytes | None = b""
    """The beginning of what the server says; None once it is, or may be, a HelloRetryRequest."""
    _held: bytes = b""
    _passing: int = 0
    """Bytes until the client's next record."""
    _small: int = 0
    """Small records that have come."""

    def from_server(self, data: bytes) -> None:
        """Look at what the server says, before the client can know it."""
        if self._answer is None:
            return
        answer, start = self._answer + data, 0
        while len(answer) - start >= _HEADER:
            kind, size = _record(answer, start)
            if kind == _HANDSHAKE and size >= _END_OF_RANDOM - _HEADER:
                if len(answer) - start < _END_OF_RANDOM:
                    break
                message, random = _server_hello(answer, start)
                if message == _SERVER_HELLO and random == HELLO_RETRY_REQUEST:
                    self._answer = None
                else:
                    self.over = True
                return
            if kind in _WARNINGS and size <= 2:
                # They may come first.
                if len(answer) - start < _HEADER + size:
                    break
                start += _HEADER + size
            elif kind in _WARNINGS or kind == _HANDSHAKE:
                # No record of a server that does as others do: it may be anything.
                self._answer = None
                return
            else:
                self.over = True
                return
        self._answer = answer[start:]

    def from_client(self, data: bytes) -> bytes:
        """What of that which the client says behind its first ClientHello may go on to the server now.

        The rest is held back until it is whole.

        Raises HelloError where the second ClientHello is for somebody else than the first one.
        """
        # Where it is refused, all of it stays here.
        data = self._held = self._held + data
        position, end = 0, len(data)
        while position < end:
            if self._passing:
                step = min(self._passing, end - position)
                self._passing -= step
                position += step
            elif data[position] == _HANDSHAKE:
                # In clear, a client has nothing to say in a handshake of TLS 1.3 but this.
                second = parse_client_hello(data[position:], self.limit)
                if second is None:
                    break
                self._compare(second)
                self.over, self._held = True, b""
                return data
            elif end - position < _HEADER:
                break
            else:
                header = data[position : position + _HEADER]
                self._passing = _HEADER + self._size_of_record(header)
        self._held = data[position:]
        return data[:position]

    def release(self) -> bytes:
        """What was held back, once it is over."""
        held, self._held = self._held, b""
        return held

    def _size_of_record(self, header: bytes) -> int:
        """Of early data (RFC 8446 §2.3), or of what middleboxes want to see (§D.4)."""
        size = int.from_bytes(header[3:5])
        if size < _SMALL:
            self._small += 1
        if (
            header[0] not in (_CHANGE_CIPHER_SPEC, _ALERT, _APPLICATION_DATA)
            or not 0 < size <= _MAX_RECORD
            or self._small > MAX_SMALL_RECORDS
        ):
            raise HelloError(
                reasons.CLIENT_HELLO_MALFORMED, "no client of TLS sends this behind its ClientHello"
            )
        return size

    def _compare(self, second: ClientHello) -> None:
        if second.server_name != self.first.server_name:
            reason = reasons.SNI_MISSING if second.server_name is None else reasons.SNI_MISMATCH
            raise HelloError(reason, "the second ClientHello is for another host than the first")
        if not self.may_change_ech and second.ech not in (None, self.first.ech):
            raise HelloError(
                reasons.ECH_NOT_ALLOWED, "the second ClientHello is encrypted in another way"
            )
