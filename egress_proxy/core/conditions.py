"""What a rule asks of a request beside its destination: its method and its path.

Only what the proxy can read has them. Nobody sees the requests inside a tunnel, so no condition ever fits a CONNECT.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import msgspec

from egress_proxy.core.paths import PathPattern, Segments, Unclear, normal_path, segments_of

#: Entries of each kind that a rule's text shows.
_SHOWN: Final = 3


class Asked(msgspec.Struct, frozen=True):
    """What a readable request asks of its destination."""

    method: str
    path: bytes
    """In origin-form (RFC 9112 §3.2.1), its query included, as it came."""


class Fit(IntEnum):
    """How a request fits the conditions of a rule; of those that do not, the nearest first."""

    FITS = 0
    NEAR_PATH = 1
    """Some servers may take its path (or its method, too) for one that is meant."""
    NEAR_METHOD = 2
    """Some servers may take its method for one that is meant."""
    OTHER_PATH = 3
    OTHER_METHOD = 4
    TUNNEL = 5
    """It is a CONNECT."""

    @property
    def may_be_meant(self) -> bool:
        """Whether a rule that refuses must not let it pass by."""
        return self <= Fit.NEAR_METHOD


@dataclass(frozen=True, slots=True)
class Seen:
    """A readable request as rules see it, worked out once."""

    method: str
    folded_method: str
    path: bytes | Unclear
    """In normal form, without its query."""
    segments: Segments | None
    """None where the path is unclear."""


def see(asked: Asked | None) -> Seen | None:
    """What rules see of a request; None of a CONNECT."""
    if asked is None:
        return None
    path = normal_path(asked.path.partition(b"?")[0])
    segments = None if isinstance(path, Unclear) else segments_of(path)
    return Seen(asked.method, asked.method.upper(), path, segments)


def to_forward(asked: Asked, seen: Seen) -> bytes | None:
    """The origin-form with the path that rules saw, and the query as it came; None where it is the request's own."""
    if isinstance(seen.path, Unclear):
        return None
    path, mark, query = asked.path.partition(b"?")
    return None if path == seen.path else b"".join((seen.path, mark, query))


class Conditions(msgspec.Struct, frozen=True, gc=False):
    """``methods`` and ``paths`` of a rule; at least one of them is not empty. Both must hold."""

    methods: tuple[str, ...] = ()
    """In upper case; empty where any method will do."""
    paths: tuple[PathPattern, ...] = ()
    """Empty where any path will do."""

    def __str__(self) -> str:
        """``GET, HEAD, /v1/*``, short enough for a line of the log."""
        return ", ".join((*_few(self.methods), *_few(pattern.text for pattern in self.paths)))

    def fit(self, seen: Seen | None) -> Fit:
        """How a request fits."""
        if seen is None:
            return Fit.TUNNEL
        exact = True
        if self.methods and seen.method not in self.methods:
            if seen.folded_method not in self.methods:
                return Fit.OTHER_METHOD
            exact = False
        if self.paths:
            segments = seen.segments
            if segments is None:
                return Fit.NEAR_PATH
            if not any(pattern.matches(segments) for pattern in self.paths):
                near = any(pattern.may_match(segments) for pattern in self.paths)
                return Fit.NEAR_PATH if near else Fit.OTHER_PATH
        return Fit.FITS if exact else Fit.NEAR_METHOD

    def covers(self, other: Conditions) -> bool:
        """Whether every request that fits the other ones fits these."""
        return (
            not self.methods or (bool(other.methods) and {*other.methods} <= {*self.methods})
        ) and (
            not self.paths
            or (
                bool(other.paths)
                and all(any(mine.covers(theirs) for mine in self.paths) for theirs in other.paths)
            )
        )


def _few(texts: Iterable[str]) -> list[str]:
    listed = list(texts)
    if len(listed) <= _SHOWN:
        return listed
    return [*listed[:_SHOWN], f"{len(listed) - _SHOWN} more"]
