"""ClientHellos like one that has been parsed before: quicker, and with the same answer.

What a client says to one host is the same each time, but for its random, its session, its keys and tickets, on whose
contents the answer does not depend. So the bytes on which it does depend are remembered, with their places, and
compared at once. Among them are all lengths and all types: a message that agrees in these is read in the same places.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec

from egress_proxy.core.tls import (
    ALPN,
    SERVER_NAME,
    SUPPORTED_VERSIONS,
    ClientHello,
    parse_client_hello,
)

#: Clients choose the lengths and, of what is allowed, the hosts, so there is a bound. It takes some 4 MiB.
MAX_KNOWN: Final = 2048
#: Messages of another kind, for the same host and as long, after which one is forgotten that may come no more.
MAX_MISSES: Final = 32

#: Behind the lengths of a record and of a message, and legacy_version; and behind the random.
_END_OF_VERSION, _END_OF_RANDOM = 11, 43
#: The extensions whose contents are read. (That of Encrypted ClientHello is never the same, nor is anything else then.)
_READ: Final = frozenset({SERVER_NAME, ALPN, SUPPORTED_VERSIONS})


class _Known(msgspec.Struct, gc=False):
    hello: ClientHello
    unpack: Callable[[bytes], tuple[Any, ...]]
    """The bytes that parsing it has read, of a message of the same length."""
    read: tuple[bytes, ...]
    misses: int = 0


_known: dict[tuple[str, int], _Known] = {}


def parse_known_hello(data: bytes, limit: int, host: str) -> ClientHello | None:
    """As :func:`~egress_proxy.core.tls.parse_client_hello`, which it asks where it must.

    ``host`` is whom the message is likely to be for; the answer does not depend on it. Raises HelloError.
    """
    key = host, len(data)
    known = _known.get(key)
    if known is not None:
        if known.unpack(data) == known.read and known.hello.size <= limit:
            return known.hello
        known.misses += 1
        if known.misses >= MAX_MISSES:
            del _known[key]
        return parse_client_hello(data, limit)
    hello = parse_client_hello(data, limit)
    if hello is not None and hello.size == len(data) and hello.ech is None and _is_one_record(data):
        if len(_known) >= MAX_KNOWN:
            _known.clear()
        layout = struct.Struct("".join(_layout(data)))
        _known[key] = _Known(hello, layout.unpack, layout.unpack(data))
    return hello


def _is_one_record(data: bytes) -> bool:
    return int.from_bytes(data[3:5]) == len(data) - 5


def _layout(data: bytes) -> Iterator[str]:
    """The format of a whole ClientHello in one record, with what has been read and, as padding, what has not."""
    position = _END_OF_RANDOM
    yield f"{_END_OF_VERSION}s{_END_OF_RANDOM - _END_OF_VERSION}x"
    size = data[position]  # of legacy_session_id
    yield f"1s{size}x"
    position += 1 + size
    size = int.from_bytes(data[position : position + 2])  # of cipher_suites
    yield f"2s{size}x"
    position += 2 + size
    size = 1 + data[position]  # of the compression methods
    yield f"{size}s"
    position += size
    if position < len(data):
        yield "2s"
        position += 2
    while position < len(data):
        kind, size = struct.unpack_from(">HH", data, position)
        yield f"{4 + size}s" if kind in _READ else f"4s{size}x"
        position += 4 + size
