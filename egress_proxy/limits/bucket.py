"""Bandwidth: a token bucket that many tunnels draw from in turn."""

from __future__ import annotations

from typing import Final

#: Seconds whose bytes may pass at once after a rest: longer than the clock tick of whoever waits.
_BURST: Final = 0.25
#: Bytes that may pass at once whatever the rate.
_LEAST: Final = 4096
#: Bytes that whoever waited gets while others wait behind it: as much as a tunnel moves at once.
_SHARE: Final = 65536
#: Seconds below which waiting costs more than it spares.
_SHORTEST: Final = 0.001


class Bucket:
    """Bytes that may pass now, filled at a rate. Times are of one monotonic clock.

    To look takes nothing: what has passed is taken afterwards, and what was taken beyond what was there is waited for
    by the next. Those who wait stand in a line, for each of whom a share of the bytes to come is set aside; nobody who
    comes later overtakes them, so that none of a thousand tunnels starves.
    """

    __slots__ = ("_at", "_line", "_tokens", "capacity", "rate")

    def __init__(self, rate: int, now: float) -> None:
        self.rate = rate
        """Bytes per second."""
        self.capacity = max(rate * _BURST, _LEAST)
        """Bytes that may pass at once after a rest."""
        self._tokens = self.capacity
        self._at = now
        self._line = 0.0
        """When the last who waits has its turn."""

    def set_rate(self, rate: int, now: float) -> None:
        """Fill at another rate from now on."""
        self._fill(now)
        self.rate = rate
        self.capacity = max(rate * _BURST, _LEAST)
        self._tokens = min(self._tokens, self.capacity)

    def look(self, wanted: int, now: float, turn: float) -> tuple[int, float]:
        """How many bytes may pass now, or 0 and when to look again.

        ``turn`` is what the last look of the same flow returned as that, or 0.0 where it did not have to wait. To look
        sooner than that is worth while once in a while: those before it may have gone.
        """
        self._fill(now)
        # Half of what it holds: whoever comes a little after its turn finds no bytes spilt.
        share = min(wanted, _SHARE, int(self.capacity / 2))
        waits = turn > 0.0
        if self._tokens >= self.capacity:
            # Those whose turn it was are gone; nobody waits for them.
            self._line = now
            return min(wanted, int(self._tokens)), 0.0
        if (turn <= now) if waits else (self._line <= now):
            if self._tokens + 0.5 >= share:
                behind = waits and self._line > turn
                return min(wanted, share if behind else int(self._tokens + 0.5)), 0.0
        elif waits:
            return 0, turn
        if self._line > now:
            self._line += share / self.rate
        else:
            self._line = now + max((share - self._tokens) / self.rate, _SHORTEST)
        return 0, self._line

    def take(self, count: int, now: float) -> None:
        """Note that so many bytes have passed."""
        self._fill(now)
        self._tokens -= count

    def full(self, now: float) -> bool:
        """Whether it is as if it was new."""
        self._fill(now)
        return self._tokens >= self.capacity

    def _fill(self, now: float) -> None:
        if now > self._at:
            tokens = self._tokens + (now - self._at) * self.rate
            self._tokens = min(self.capacity, tokens)
            self._at = now
