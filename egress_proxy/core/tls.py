"""The first message of TLS: what a tunnel says that it is for, before anything is encrypted.

The parser is strict, so that no server finds another name in the same bytes: there is one server name or none, each
extension stands once, each length fits exactly, and no second message begins in the record that ends the ClientHello.
What it cannot know is what comes later, and no proxy that leaves TLS alone can:

- A renegotiation of TLS 1.2 is encrypted. (A second ClientHello in the clear, after a HelloRetryRequest, is another
  matter: :mod:`egress_proxy.core.retry`.)
- With Encrypted ClientHello (RFC 9849) the name here is the outer one, and the server answers for the inner one.
- The Host or ``:authority`` of a request inside may name anybody.
"""

from __future__ import annotations

import re
import struct
from functools import lru_cache
from typing import Final

import msgspec

from egress_proxy.core import reasons
from egress_proxy.core.errors import HelloError, HostError
from egress_proxy.core.names import canonical_host

#: Alert descriptions (RFC 8446 §6, RFC 6066 §9).
ACCESS_DENIED: Final = 49
DECODE_ERROR: Final = 50
UNRECOGNIZED_NAME: Final = 112

#: Records that one ClientHello may come in. A caller asks again whenever bytes have arrived, and each time all records
#: are looked at, so the cost of tiny ones would grow with their square. No peer may ask for records of fewer than 64
#: bytes (RFC 8449 §4), and so many of these are 4 KiB.
MAX_RECORDS: Final = 64
#: Characters of :attr:`ClientHello.alpn`.
MAX_ALPN_LENGTH: Final = 64

_MAX_FRAGMENT = 2**14  # RFC 8446 §5.1
# As much of a record's version as there is: TLS 1.0 to 1.3.
_RECORD_VERSIONS = {b"", b"\x03", b"\x03\x01", b"\x03\x02", b"\x03\x03", b"\x03\x04"}
_MIN_BODY = 2 + 32 + 1 + 2 + 2 + 1 + 1  # one cipher suite, one compression method, no extensions

SERVER_NAME = 0  # RFC 6066 §3
ALPN = 16  # RFC 7301 §3.1
SUPPORTED_VERSIONS = 43  # RFC 8446 §4.2.1
_ECH = 0xFE0D  # RFC 9849 §5, also the version of an ECHConfig

#: By OpenSSL's names, newest first.
_VERSIONS = {0x0304: "TLSv1.3", 0x0303: "TLSv1.2", 0x0302: "TLSv1.1", 0x0301: "TLSv1"}

_number = struct.Struct(">H").unpack_from
_pair = struct.Struct(">HH").unpack_from  # the type and length of an extension
_headers = struct.Struct(">BHHI").unpack_from  # of a record and of a handshake message
# legacy_version, random, and the length of legacy_session_id.
_beginning = struct.Struct(">H32xB").unpack_from
# Extensions without their type: a list of one name; versions; protocols; an outer ECHClientHello up to enc's length.
_name_list = struct.Struct(">2xHHBH").unpack_from
_version_list = struct.Struct(">2xHB").unpack_from
_protocol_list = struct.Struct(">2xHH").unpack_from
_outer_hello = struct.Struct(">2xHB4xBH").unpack_from

_UNSAFE = re.compile(rb"[^A-Za-z0-9._/:+-]")


class ClientHello(msgspec.Struct, frozen=True, gc=False):
    """What a ClientHello offers, as far as anything depends on it."""

    server_name: str | None
    """The canonical host that it is for (:func:`~egress_proxy.core.names.canonical_host`), if it names one."""
    tls_version: str
    """The newest version that it offers: ``TLSv1.3``, ``TLSv1.2``, ``TLSv1.1`` or ``TLSv1``."""
    alpn: str | None
    """The protocols offered inside, joined by commas, percent-encoded where they're no plain text, and cut with ``...``
    behind 64 characters. For people to read: no decision depends on it."""
    ech: int | None
    """The config_id of an outer Encrypted ClientHello, be it real or GREASE (RFC 9849 §6.2)."""
    size: int
    """Bytes of the records that it came in."""


def parse_client_hello(data: bytes, limit: int) -> ClientHello | None:
    """The ClientHello that the data begins with, or None while bytes of it are missing.

    ``limit`` is in bytes, record headers included: what is longer is refused as soon as it says so, and what stands
    behind is never looked at. None is the answer only while there are fewer bytes than that. Further records, such as
    early data, may follow.

    Raises HelloError: ``tunnel_not_tls`` if this is no TLS handshake at all, else ``client_hello_malformed``.
    """
    if len(data) > 9:
        kind, version, size, handshake = _headers(data)
        # The whole of it in one record, as nearly always: type 1 and the length, in one comparison.
        if (
            kind == 22
            and 0x0301 <= version <= 0x0304
            and handshake == 0x01000000 + size - 4
            and _MIN_BODY + 4 <= size <= _MAX_FRAGMENT
            and size + 5 <= limit
            and size + 5 <= len(data)
        ):
            return _parse_body(data[9 : size + 5], size + 5)
    gathered = _gather(data, limit)
    return None if gathered is None else _parse_body(*gathered)


def alert(description: int) -> bytes:
    """A fatal alert in a record of its own (RFC 8446 §6), in the clear, as an answer to a ClientHello."""
    return bytes((21, 3, 3, 0, 2, 2, description))


def ech_config_ids(ech_config_list: bytes) -> frozenset[int]:
    """The config_ids of an ECHConfigList (RFC 9849 §4), as the ``ech`` parameter of an HTTPS record holds it.

    Configurations of another version are skipped, as clients do: their hellos carry another extension.

    Raises ValueError if it is malformed. A client may be less strict, so this says nothing about what it encrypts with.
    """
    found: set[int] = set()
    try:
        if _number(ech_config_list)[0] + 2 != len(ech_config_list) or len(ech_config_list) < 6:
            raise ValueError("the length of the ECHConfigList does not fit")
        position = 2
        while position < len(ech_config_list):
            version, size = _pair(ech_config_list, position)
            contents = ech_config_list[position + 4 : position + 4 + size]
            position += 4 + size
            if len(contents) != size:
                raise ValueError("an ECHConfig ends too soon")
            if version == _ECH:
                found.add(_ech_config_id(contents))
    except (struct.error, IndexError):
        raise ValueError("the ECHConfigList ends too soon") from None
    return frozenset(found)


# Records -----------------------------------------------------------------------------------------


def _gather(data: bytes, limit: int) -> tuple[bytes, int] | None:
    """The body of the ClientHello, out of records of any size (RFC 8446 §5.1), and the end of those.

    None while it is incomplete.
    """
    message = bytearray()
    position = 0
    for _ in range(MAX_RECORDS):
        _check_record_header(data[position : min(position + 5, limit)], first=position == 0)
        start = position + 5
        if start >= limit:
            raise _too_long()
        if len(data) < start:
            return None
        end = start + _number(data, start - 2)[0]
        if end > limit:
            raise _too_long()
        before = len(message)
        message += data[start:end]
        if message and message[0] != 1:
            raise _malformed("the first handshake message is no ClientHello")
        if len(message) >= 4:
            size = 4 + int.from_bytes(message[1:4])
            if size < 4 + _MIN_BODY:
                raise _malformed("the ClientHello is too short")
            missing = size - before - (end - start)
            if missing < 0:
                raise _malformed("something follows the ClientHello in the same record")
            if missing and end + 5 + missing > limit:
                raise _too_long()
            if len(message) == size:
                return bytes(message[4:]), end
        if len(data) < end:
            return None
        position = end
    raise _malformed(f"the ClientHello comes in more than {MAX_RECORDS} records")


def _check_record_header(header: bytes, *, first: bool) -> None:
    """As much of it as there is."""
    if first and (header[:1] not in (b"", b"\x16") or header[1:2] not in (b"", b"\x03")):
        raise HelloError(reasons.TUNNEL_NOT_TLS, "the first bytes are no TLS handshake record")
    if header[:1] not in (b"", b"\x16"):
        raise _malformed("another record stands in between those of the ClientHello")
    if header[1:3] not in _RECORD_VERSIONS:
        raise _malformed("the version of a record is none of TLS")
    if len(header) == 5 and not 1 <= _number(header, 3)[0] <= _MAX_FRAGMENT:
        raise _malformed("a handshake record is empty or longer than 16384 bytes")


def _too_long() -> HelloError:
    return _malformed("the ClientHello is longer than is allowed")


# The message -------------------------------------------------------------------------------------


def _parse_body(body: bytes, size_of_records: int) -> ClientHello:
    """Read a ClientHello (RFC 8446 §4.1.2) that is there as a whole, without its handshake header."""
    try:
        legacy_version, size = _beginning(body)
        if not 0x0301 <= legacy_version <= 0x0303:
            raise _malformed("legacy_version is none of TLS 1.0 to 1.2")
        if size > 32:
            raise _malformed("legacy_session_id is longer than 32 bytes")
        position = 35 + size
        (size,) = _number(body, position)
        if size == 0 or size & 1:
            raise _malformed("cipher_suites is empty or has an odd length")
        position += 2 + size
        size = body[position]
        # RFC 5246 §7.4.1.2: the list must include null, and TLS 1.3 knows nothing else.
        if 0 not in body[position + 1 : position + 1 + size]:
            raise _malformed("the compression methods lack null")
        position += 1 + size
        end = len(body)
        at: dict[int, int] = {}
        if position != end:
            if _number(body, position)[0] != end - position - 2:
                raise _malformed("the length of the extensions does not fit")
            position += 2
            while position < end:
                kind, size = _pair(body, position)
                if kind in at:
                    raise _malformed("an extension stands twice")
                at[kind] = position
                position += 4 + size
            if position != end:
                raise _malformed("an extension ends too late")
        name = _server_name(body, at[SERVER_NAME]) if SERVER_NAME in at else None
        offered = at.get(SUPPORTED_VERSIONS)
        tls_version = _VERSIONS[legacy_version] if offered is None else _newest(body, offered)
        alpn = _protocols(body, at[ALPN]) if ALPN in at else None
        ech = _config_id(body, at[_ECH]) if _ECH in at else None
        return ClientHello(name, tls_version, alpn, ech, size_of_records)
    except (struct.error, IndexError):
        raise _malformed("a field ends too late") from None


# Each of these reads an extension that begins at the position, and is proven to lie inside the body.


def _server_name(body: bytes, position: int) -> str:
    """A ServerNameList of one host name (RFC 6066 §3)."""
    outer, middle, kind, size = _name_list(body, position)
    if outer != size + 5 or middle != size + 3 or kind != 0 or size == 0:
        raise _malformed("server_name does not hold exactly one host name")
    return _canonical(body[position + 9 : position + 9 + size])


# What hellos say is nearly always what others said before. These caches are bounded, because clients choose the keys,
# and no key is long. What raises is not kept.


@lru_cache(maxsize=8192)
def _canonical(name: bytes) -> str:
    try:
        host = canonical_host(name.decode("ascii"))
    except UnicodeDecodeError:
        raise _malformed("server_name holds bytes beyond ASCII") from None
    except HostError as error:
        raise _malformed(f"server_name is no host name: {error}") from None
    # RFC 6066 §3 forbids addresses, and some clients send them. No client sends another spelling than this one.
    if host.address is not None and host.text.encode() != name:
        raise _malformed("server_name is an unusual spelling of an IPv4 address")
    return host.text


def _newest(body: bytes, position: int) -> str:
    """The newest of the supported_versions (RFC 8446 §4.2.1)."""
    outer, size = _version_list(body, position)
    if outer != size + 1 or size == 0 or size & 1:
        raise _malformed("supported_versions is no list of versions")
    return _newest_of(body[position + 5 : position + 5 + size])


@lru_cache(maxsize=1024)
def _newest_of(versions: bytes) -> str:
    offered = struct.unpack(f">{len(versions) // 2}H", versions)
    # What is no version that we know, GREASE among it (RFC 8701), is nothing to a server either.
    for version, name in _VERSIONS.items():
        if version in offered:
            return name
    raise _malformed("no version of TLS is offered that is known")


def _protocols(body: bytes, position: int) -> str:
    """The ProtocolNameList (RFC 7301 §3.1) as text."""
    outer, size = _protocol_list(body, position)
    if outer != size + 2:
        raise _malformed("the length of the ALPN protocols does not fit")
    names = body[position + 6 : position + 6 + size]
    return _short_text_of(names) if size <= MAX_ALPN_LENGTH else _text_of(names)


def _text_of(protocols: bytes) -> str:
    names: list[bytes] = []
    end, position = len(protocols), 0
    while position < end:
        start = position + 1
        position = start + protocols[position]
        if position == start:
            raise _malformed("an ALPN protocol is empty")
        names.append(protocols[start:position])
    if position != end or not names:
        raise _malformed("the ALPN protocols end too late, or there are none")
    # Each that is shown takes two characters at least, its comma included; the rest is not looked at.
    shown = names[: MAX_ALPN_LENGTH // 2 + 1]
    text = b",".join([_UNSAFE.sub(_percent, name) for name in shown]).decode("ascii")
    return text if len(text) <= MAX_ALPN_LENGTH else f"{text[: MAX_ALPN_LENGTH - 3]}..."


_short_text_of = lru_cache(maxsize=1024)(_text_of)


def _percent(match: re.Match[bytes]) -> bytes:
    return b"%%%02X" % ord(match[0])


def _config_id(body: bytes, position: int) -> int:
    """The config_id of an ECHClientHello (RFC 9849 §5), which must be an outer one."""
    config_id: int
    outer, kind, config_id, enc_size = _outer_hello(body, position)
    if kind != 0:
        # An inner one stands only in what is encrypted.
        raise _malformed("encrypted_client_hello is not of the outer type")
    (payload_size,) = _number(body, position + 12 + enc_size)
    if outer != 8 + enc_size + 2 + payload_size or payload_size == 0:
        raise _malformed("the lengths in encrypted_client_hello do not fit")
    return config_id


def _ech_config_id(contents: bytes) -> int:
    """The config_id of ECHConfigContents (RFC 9849 §4), all of whose lengths must fit."""
    (key_size,) = _number(contents, 3)
    position = 5 + key_size
    (suites_size,) = _number(contents, position)
    position += 2 + suites_size + 1  # and maximum_name_length
    name_size = contents[position]
    position += 1 + name_size
    (extensions_size,) = _number(contents, position)
    if not key_size or not suites_size or suites_size % 4 or not name_size:
        raise ValueError("a field of an ECHConfig is empty")
    if position + 2 + extensions_size != len(contents):
        raise ValueError("the lengths in an ECHConfig do not fit")
    # One with an extension that clients must know and do not is included too: more are found then, never fewer.
    return contents[0]


def _malformed(detail: str) -> HelloError:
    return HelloError(reasons.CLIENT_HELLO_MALFORMED, detail)
