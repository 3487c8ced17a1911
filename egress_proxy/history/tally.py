"""Counting: how often something stands in a log, and when first and last."""

from __future__ import annotations

from collections.abc import Hashable, ItemsView
from typing import Final, Generic, TypeVar

#: Different requests that are kept apart: about 1 KiB each.
MAX_DISTINCT: Final = 1_000_000

K = TypeVar("K", bound=Hashable)


class Tally:
    """How often something was seen, and when first and last."""

    __slots__ = ("first", "last", "requests")

    def __init__(self) -> None:
        self.requests = 0
        self.first = ""
        self.last = ""

    def add(self, time: str) -> None:
        self.requests += 1
        if time:
            self.last = max(self.last, time)
            self.first = min(self.first or time, time)

    def include(self, other: Tally) -> None:
        self.requests += other.requests
        self.last = max(self.last, other.last)
        self.first = min(filter(None, (self.first, other.first)), default="")


class Distinct(Generic[K]):
    """A tally for each different thing, so many of them at most."""

    def __init__(self) -> None:
        self._tallies: dict[K, Tally] = {}
        self.left_out = 0
        """Requests that came after there were too many different ones."""

    def add(self, key: K, time: str) -> None:
        tally = self._tallies.get(key)
        if tally is None:
            if len(self._tallies) >= MAX_DISTINCT:
                self.left_out += 1
                return
            tally = self._tallies[key] = Tally()
        tally.add(time)

    def items(self) -> ItemsView[K, Tally]:
        return self._tallies.items()


def left_out_message(left_out: int) -> str:
    return (
        f"there are more than {MAX_DISTINCT:,} different requests; {count(left_out, 'request')} beyond them "
        "left out: read the log in parts"
    )


def count(number: int, noun: str) -> str:
    """A number with its noun."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def one_line(text: str) -> str:
    """The text as it may be printed: the name of a file can hold what ends a line or what a terminal obeys."""
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")
