"""What name servers said, for as long as it holds: bounded, in constant time, and without a clock of its own.

``now`` and all times are seconds on one clock, whose zero does not matter.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from itertools import cycle
from typing import Final, Generic, TypeVar

from egress_proxy.config.model import Dns
from egress_proxy.core import reasons
from egress_proxy.core.reason import Reason

T = TypeVar("T")

#: Seconds that a timeout is remembered at most: who asked has waited for ``dns.timeout`` already.
_TIMEOUT_MEMORY: Final = 1.0
#: The last part of its life in which the use of an answer has it asked for again.
_REFRESH: Final = 0.1
#: Seconds that an answer must live for that.
_WORTH_REFRESHING: Final = 1.0

#: The name servers said nothing about the name; what was known of it may still hold.
SERVER_FAILURES: Final = frozenset({reasons.DNS_FAILURE, reasons.DNS_REFUSED, reasons.DNS_TIMEOUT})


class Kept(Generic[T]):
    """Equally good answers to one question, of which each use gets the next."""

    __slots__ = ("expires", "next", "quiet_until", "refresh_at", "stale_until")

    def __init__(self, answers: tuple[T, ...], now: float, lifetime: float) -> None:
        self.next: Callable[[], T] = cycle(answers).__next__
        self.expires = now + lifetime
        self.refresh_at = self.expires
        """Until then it serves without a second look."""
        self.stale_until = self.expires
        """Until then it serves while name servers fail."""
        self.quiet_until = now
        """They have failed, and are not asked again before."""

    def renew(self, now: float, lifetime: float, stale_time: float) -> None:
        """Have it asked for again before it ends, and let it serve for stale_time after that."""
        if lifetime >= _WORTH_REFRESHING:
            self.refresh_at = now + lifetime * (1 - _REFRESH)
        self.stale_until = self.expires + stale_time


class Cache(Generic[T]):
    """Answers by name. The name that was used longest ago makes room."""

    def __init__(self, entries: int) -> None:
        self._limit = entries
        self._kept: OrderedDict[str, Kept[T]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, name: str) -> Kept[T] | None:
        """What is kept of a name, fresh or not."""
        kept = self._kept.get(name)
        if kept is not None:
            self._kept.move_to_end(name)
        return kept

    def put(self, name: str, kept: Kept[T]) -> None:
        if name not in self._kept and len(self._kept) >= self._limit:
            self._kept.popitem(last=False)
        self._kept[name] = kept
        self._kept.move_to_end(name)


def lifetime(settings: Dns, ttl: int, *, incomplete: bool = False) -> float:
    """Seconds for which an answer with a TTL is kept.

    incomplete: the name servers failed to say something that belongs to it, which is remembered like other failures.
    """
    bounded = min(max(float(ttl), settings.min_ttl), settings.max_ttl)
    return min(bounded, max(settings.negative_ttl, settings.min_ttl)) if incomplete else bounded


def failure_lifetime(settings: Dns, reason: Reason, seconds: int | None) -> float:
    """Seconds for which a failure is kept. seconds: what the zone says about something that is not there."""
    if reason is reasons.DNS_TIMEOUT:
        return min(settings.negative_ttl, _TIMEOUT_MEMORY)
    if reason in SERVER_FAILURES or seconds is None:
        return settings.negative_ttl
    return min(settings.negative_ttl, max(float(seconds), settings.min_ttl))
