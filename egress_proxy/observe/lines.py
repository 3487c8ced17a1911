"""One JSON line: its time, its encoding, and the word that must not stand in it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import msgspec

#: Stands in the lines of denials alone, so that ``grep DENIED`` is exact.
DENIED = b"DENIED"
#: The same text to whoever parses the JSON (RFC 8259 §7), another one to grep. Both ends are escaped,
#: because one D may end a word and begin the next.
_ESCAPED = b"\\u0044ENIE\\u0044"

_MILLISECONDS = [f".{number:03d}Z" for number in range(1000)]

# Events may hold any value; what JSON has no form for is told by its str().
_encoder = msgspec.json.Encoder(enc_hook=str)


def encode(value: Any) -> bytes:
    """A value as one line of JSON in ASCII, without the line's end.

    Non-ASCII text is escaped: a terminal takes U+0080 to U+009F for commands, and half a surrogate
    pair has no UTF-8.
    """
    try:
        line = _encoder.encode(value)
        if line.isascii():
            return line
    except UnicodeEncodeError:
        pass
    # The standard library's encoder is much slower, but ours is only needed for what is rare.
    plain = msgspec.to_builtins(value, enc_hook=str, str_keys=True)
    return json.dumps(plain, ensure_ascii=True, separators=(",", ":")).encode("ascii")


def hide_denied(line: bytes) -> bytes:
    """The same JSON value in a line without the text ``DENIED``."""
    return line.replace(DENIED, _ESCAPED)


class Clock:
    """Tells the time in RFC 3339, UTC, milliseconds; what precedes those is made once a second."""

    __slots__ = ("_now", "_second")

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        # One value, replaced as a whole: threads may ask at the same time.
        self._second = (0, "1970-01-01T00:00:00")

    def timestamp(self) -> str:
        now = self._now()
        second = int(now)
        cached, text = self._second
        if cached != second:
            text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            self._second = (second, text)
        return text + _MILLISECONDS[int((now - second) * 1000)]
