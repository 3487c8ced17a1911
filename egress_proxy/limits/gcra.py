"""The generic cell rate algorithm (ITU-T I.371, annex A): a rate and a burst in one number.

That number is the theoretical arrival time. A request conforms while it comes no more than the tolerance before it, and
moves it on by the interval. So in any stretch of ``t`` seconds no more than ``t / interval + burst`` requests conform.
"""

from __future__ import annotations

import math

#: Times are floats; a millionth of a second is no reason to refuse whoever came when he was told to.
_EPSILON = 1e-6


def tolerance(burst: int, interval: float) -> float:
    """Seconds by which a request may come early, so that ``burst`` of them may come at once."""
    return (burst - 1) * interval


def wait(arrival: float, now: float, early: float) -> float:
    """Seconds until a request conforms; 0 where it does now. ``early`` is the tolerance."""
    left = arrival - early - now
    return left if left > _EPSILON else 0.0


def counted(arrival: float, now: float, interval: float) -> float:
    """The theoretical arrival time after a request that conformed."""
    return max(now, arrival) + interval


def taken(arrival: float, now: float, interval: float) -> int:
    """Requests that are taken of a burst: each takes one of it, and time gives it back."""
    return max(0, math.ceil((arrival - now) / interval - _EPSILON))
