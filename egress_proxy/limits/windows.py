"""Calendar days: when the one that holds a moment began, and when it ends."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta, tzinfo
from functools import lru_cache
from math import floor
from zoneinfo import ZoneInfo


# As many as there are names: the configuration chooses them, and the system's database is read once for each.
@lru_cache(maxsize=1024)
def zone(name: str) -> tzinfo:
    """A time zone by its name. Raises ZoneInfoNotFoundError (a KeyError), ValueError."""
    return UTC if name == "UTC" else ZoneInfo(name)


def day_of(now: float, where: tzinfo) -> tuple[float, float]:
    """The first second of the day that holds ``now``, and that of the next: seconds since the epoch.

    A day has 23 or 25 hours where clocks are changed, and begins when they first show its date: after a gap where
    midnight itself is left out, and with the first of two midnights. So days follow each other without gap or overlap,
    although clocks may show yesterday's date again for a while; that belongs to the new day then.
    """
    # A datetime has microseconds, and rounds what is a little less than midnight up to it.
    today = datetime.fromtimestamp(floor(now), where).date()
    start, end = _begin(today, where), _begin(today + timedelta(days=1), where)
    if now >= end:
        return end, _begin(today + timedelta(days=2), where)
    return start, end


def _begin(day: date, where: tzinfo) -> float:
    """The moment at which a date is first shown."""
    midnight = datetime.combine(day, time(), where)
    first, second = midnight.timestamp(), midnight.replace(fold=1).timestamp()
    if first <= second:
        return first
    # PEP 495: in a gap the two stand around it, and the date begins with the gap's end.
    before, after = int(second) - 1, int(first)
    while after - before > 1:
        middle = (before + after) // 2
        if datetime.fromtimestamp(middle, where).date() < day:
            before = middle
        else:
            after = middle
    return float(after)
