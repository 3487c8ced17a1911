"""TLS ClientHellos made to order, well-formed or not, in as many records as a test wants.

::

    client_hello("origin.test", alpn=("h2", "http/1.1"))    # bytes for a socket: one record
    client_hello("origin.test", ech=7, sizes=(2, 100))       # three records: 2 bytes, 100 bytes, the rest
    records(message([server_name_extension("a.test", "b.test")]))    # whatever a client should never send

A peer that is to finish a handshake must be a real one: the keys in here are no keys.
"""

from __future__ import annotations

import contextlib
import ssl
import struct
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Extension = tuple[int, bytes]

SERVER_NAME = 0
ALPN = 16
PADDING = 21
SUPPORTED_VERSIONS = 43
ENCRYPTED_CLIENT_HELLO = 0xFE0D
#: A value that a client sends to keep servers tolerant (RFC 8701); as version, cipher suite and extension.
GREASE = 0x3A3A

TLS10, TLS11, TLS12, TLS13 = 0x0301, 0x0302, 0x0303, 0x0304

#: What a server of either version can choose from.
SUITES = (0x1301, 0x1302, 0x1303, 0xC02B, 0xC02F, 0xC02C, 0xC030, 0x009C, 0x002F)


def client_hello(
    server_name: str | bytes | None = "origin.test",
    *,
    alpn: Sequence[str | bytes] = (),
    versions: Sequence[int] | None = (TLS13, TLS12),
    ech: int | None = None,
    extra: Sequence[Extension] = (),
    sizes: Iterable[int] = (),
) -> bytes:
    """A ClientHello as it goes over the wire.

    None leaves the extension out; ``ech`` is the config_id of an outer Encrypted ClientHello, as real and as GREASE
    ones look; ``extra`` extensions come last; ``sizes`` are those of the records, see :func:`records`.
    """
    return records(
        message(
            typical(server_name, alpn=alpn, versions=versions, ech=ech) + list(extra),
        ),
        sizes,
    )


def typical(
    server_name: str | bytes | None = "origin.test",
    *,
    alpn: Sequence[str | bytes] = (),
    versions: Sequence[int] | None = (TLS13, TLS12),
    ech: int | None = None,
) -> list[Extension]:
    """The extensions of a client that means well, with those that a server of TLS 1.2 needs."""
    found: list[Extension] = []
    if server_name is not None:
        found.append(server_name_extension(server_name))
    found += [
        (10, sized(2, numbers(0x001D, 0x0017))),  # supported_groups
        (11, sized(1, b"\0")),  # ec_point_formats
        (13, sized(2, numbers(0x0403, 0x0804, 0x0401))),  # signature_algorithms
        (23, b""),  # extended_master_secret
    ]
    if alpn:
        found.append(alpn_extension(*alpn))
    if versions is not None:
        found.append(versions_extension(*versions))
        found.append((51, sized(2, numbers(0x001D) + sized(2, bytes(range(32))))))  # key_share
    if ech is not None:
        found.append(ech_extension(ech))
    return found


def message(
    extensions: Sequence[Extension] | bytes | None,
    *,
    legacy_version: int = TLS12,
    random: bytes = bytes(range(32)),
    session_id: bytes = b"",
    suites: Sequence[int] | bytes = SUITES,
    compression: bytes = b"\0",
    kind: int = 1,
    after: bytes = b"",
) -> bytes:
    """The handshake message (RFC 8446 §4.1.2). Every length is right, whatever the fields are.

    ``extensions`` as bytes are the inside of the block; None leaves the block out, as old clients do. ``after`` stands
    behind the block, inside the message.
    """
    body = struct.pack(">H", legacy_version) + random + sized(1, session_id)
    body += sized(2, suites if isinstance(suites, bytes) else numbers(*suites))
    body += sized(1, compression)
    if extensions is not None:
        body += sized(2, extensions if isinstance(extensions, bytes) else block(extensions))
    return bytes([kind]) + sized(3, body + after)


def records(handshake: bytes, sizes: Iterable[int] = (), version: int = TLS10) -> bytes:
    """The message in records of so many bytes each, and what is left in records that are as large as may be."""
    wire = b""
    for size in sizes:
        wire += record(handshake[:size], version=version)
        handshake = handshake[size:]
    while handshake:
        wire += record(handshake[: 2**14], version=version)
        handshake = handshake[2**14 :]
    return wire


def record(fragment: bytes, *, kind: int = 22, version: int = TLS10) -> bytes:
    return struct.pack(">BH", kind, version) + sized(2, fragment)


def handshake_of(wire: bytes) -> bytes:
    """The first handshake message of the records, without looking any further."""
    handshake = b""
    while len(handshake) < 4 or len(handshake) < 4 + int.from_bytes(handshake[1:4]):
        size = int.from_bytes(wire[3:5])
        handshake, wire = handshake + wire[5 : 5 + size], wire[5 + size :]
    return handshake


def block(extensions: Iterable[Extension]) -> bytes:
    return b"".join(struct.pack(">H", kind) + sized(2, data) for kind, data in extensions)


def server_name_extension(*names: str | bytes | tuple[int, bytes]) -> Extension:
    """A ServerNameList (RFC 6066 §3) of host names, or of entries of another type."""
    entries = b""
    for name in names:
        kind, text = name if isinstance(name, tuple) else (0, name)
        entries += bytes([kind]) + sized(2, text.encode() if isinstance(text, str) else text)
    return SERVER_NAME, sized(2, entries)


def alpn_extension(*protocols: str | bytes) -> Extension:
    names = [name.encode() if isinstance(name, str) else name for name in protocols]
    return ALPN, sized(2, b"".join(sized(1, name) for name in names))


def versions_extension(*versions: int) -> Extension:
    return SUPPORTED_VERSIONS, sized(1, numbers(*versions))


def ech_extension(
    config_id: int, *, enc: bytes = bytes(32), payload: bytes = bytes(208)
) -> Extension:
    """An ECHClientHello of type outer (RFC 9849 §5)."""
    return ENCRYPTED_CLIENT_HELLO, (
        struct.pack(">BHHB", 0, 0x0001, 0x0001, config_id) + sized(2, enc) + sized(2, payload)
    )


def ech_config(
    config_id: int,
    *,
    version: int = 0xFE0D,
    public_key: bytes = bytes(32),
    suites: bytes = b"\0\1\0\1",
    public_name: bytes = b"public.test",
    extensions: Sequence[Extension] = (),
    after: bytes = b"",
) -> bytes:
    """An ECHConfig (RFC 9849 §4); ``after`` stands behind its contents, inside it."""
    contents = struct.pack(">BH", config_id, 0x0020) + sized(2, public_key)
    contents += sized(2, suites) + b"\0"
    contents += sized(1, public_name) + sized(2, block(extensions))
    return struct.pack(">H", version) + sized(2, contents + after)


def ech_config_list(*configs: bytes) -> bytes:
    """As the ``ech`` parameter of an HTTPS record holds it."""
    return sized(2, b"".join(configs))


def numbers(*values: int) -> bytes:
    return struct.pack(f">{len(values)}H", *values)


def sized(octets: int, data: bytes) -> bytes:
    """The data behind its length, which takes so many octets."""
    return len(data).to_bytes(octets) + data


@dataclass(frozen=True)
class Seen:
    """What a server made of a hello."""

    names: list[str | None]
    """The server name of each ClientHello that was understood so far as to ask for it."""
    answered: bool
    """With its own hello, or with a request for another one."""


class OpenSSL:
    """OpenSSL as a server in memory, which takes every version and cipher suite that it still has."""

    def __init__(self, context: ssl.SSLContext) -> None:
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.sni_callback = self._note
        self._context = context
        self._names: list[str | None] = []

    def sees(self, wire: bytes) -> Seen:
        self._names = []
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        server = self._context.wrap_bio(incoming, outgoing, server_side=True)
        incoming.write(wire)
        # Python cannot hand on a name beyond ASCII: it is noted as one that nobody else could have.
        before, sys.unraisablehook = sys.unraisablehook, lambda _: self._names.append("\ufffd")
        try:
            with contextlib.suppress(ssl.SSLError):
                server.do_handshake()
        finally:
            sys.unraisablehook = before
        return Seen(self._names, outgoing.read(1) == b"\x16")

    def _note(self, _server: ssl.SSLObject, name: str | None, _context: ssl.SSLContext) -> None:
        self._names.append(name)
