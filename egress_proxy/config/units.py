"""What was most likely meant by a size or a duration in another form than the one that is accepted.

Nothing here makes a value of it: it only chooses what a message says to write.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Final

#: A number with or without a fraction, and a unit of letters. Lengths are bounded: these become numbers.
_PART: Final = re.compile(r"([0-9]{1,12})(?:\.([0-9]{1,9}))? ?([A-Za-z]{1,12})")
_PARTS: Final = re.compile(rf"(?:{_PART.pattern} ?){{1,5}}")
_PER_SECOND: Final = re.compile(r" ?/ ?(?:second|sec|s)|(?<=[Bb])ps")

#: In units of 1 ms; the first of each row is how the configuration writes it.
_DURATIONS: Final = (
    (1, ("ms", "msec", "msecs", "millisecond", "milliseconds")),
    (1000, ("s", "sec", "secs", "second", "seconds")),
    (60_000, ("m", "min", "mins", "minute", "minutes")),
    (3_600_000, ("h", "hr", "hrs", "hour", "hours")),
    (86_400_000, ("d", "day", "days")),
    (604_800_000, ("w", "week", "weeks")),
)
#: In bytes. What Kubernetes writes as `Mi`, and others as `M`, `MB` and `mb`.
_SIZES: Final = (
    (1, ("b", "byte", "bytes")),
    *(
        (1024**power, (letter, f"{letter}i", f"{letter}b", f"{letter}ib"))
        for power, letter in enumerate("kmgt", 1)
    ),
)
#: Of bits; a network's are decimal.
_BITS: Final = tuple(
    (Fraction(1000**power, 8), (f"{prefix}bit", f"{prefix}bits"))
    for power, prefix in enumerate(("", "k", "m", "g", "t"))
)


def _named(*tables: tuple[tuple[int | Fraction, tuple[str, ...]], ...]) -> Mapping[str, Fraction]:
    return {name: Fraction(factor) for table in tables for factor, names in table for name in names}


_DURATION_NAMES: Final = _named(_DURATIONS)
_SIZE_NAMES: Final = _named(_SIZES, _BITS)
_WRITTEN_DURATIONS: Final = (
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1000),
    ("ms", 1),
)
_WRITTEN_SIZES: Final = (
    ("TiB", 2**40),
    ("GiB", 2**30),
    ("MiB", 2**20),
    ("KiB", 2**10),
    ("B", 1),
)


def meant_duration(text: str) -> str | None:
    """The accepted form of ``1.5s``, ``5 S``, ``1h30m`` or ``2 weeks``; None where it cannot be told."""
    if _PARTS.fullmatch(text) is None:
        return None
    total = _total(text, _DURATION_NAMES)
    return None if total is None or total.denominator != 1 else _written(total, _WRITTEN_DURATIONS)


def meant_size(text: str) -> str | None:
    """The accepted form of ``1GB``, ``1.5GiB``, ``512 Mi``, ``1MiB/s`` or ``10Mbit/s``; None where it cannot be told.

    Units are taken for binary ones, as most people mean them, but for those of bits.
    """
    rate = _PER_SECOND.search(text)
    alone = text if rate is None or rate.end() != len(text) else text[: rate.start()]
    if rate is not None and rate[0] == "ps" and alone.endswith("b"):
        # A `Mbps` has bits, a `MBps` bytes.
        alone += "it"
    if _PART.fullmatch(alone) is None:
        return None
    total = _total(alone, _SIZE_NAMES)
    # Bytes are whole, and no more than was meant.
    return None if total is None or total < 1 else _written(Fraction(int(total)), _WRITTEN_SIZES)


def _total(text: str, names: Mapping[str, Fraction]) -> Fraction | None:
    total = Fraction(0)
    for whole, part, unit in _PART.findall(text):
        factor = names.get(unit.lower())
        if factor is None:
            return None
        total += Fraction(f"{whole}.{part or 0}") * factor
    return total


def _written(total: Fraction, units: tuple[tuple[str, int], ...]) -> str | None:
    """In the largest unit of which it is a whole number."""
    for unit, factor in units:
        number = total / factor
        if total and number.denominator == 1:
            return f"{number}{unit}" if number < 10**12 else None
    return None
