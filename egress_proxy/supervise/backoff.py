"""How long to wait before a worker that has ended is started again."""

from __future__ import annotations

from typing import Final

#: Seconds before the first start again: a single crash is hardly noticed.
FIRST: Final = 0.1
#: Seconds at most: what ends at once would else keep a processor busy with starting it.
LONGEST: Final = 30.0
#: Seconds after which a worker that ended counts as one that worked.
LONG_LIFE: Final = 60.0


class Backoff:
    """Twice as long each time, until a worker has lived for long."""

    __slots__ = ("_next",)

    def __init__(self) -> None:
        self._next = FIRST

    def after(self, life: float) -> float:
        """Seconds to wait after a life of so many seconds."""
        if life >= LONG_LIFE:
            self._next = FIRST
        wait, self._next = self._next, min(self._next * 2, LONGEST)
        return wait
