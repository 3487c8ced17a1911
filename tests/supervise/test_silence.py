"""A worker is taken for hung when it has answered nothing for long, and not because the whole machine stood still."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from egress_proxy.supervise import member
from egress_proxy.supervise.channel import Asking
from egress_proxy.supervise.member import Member


class Answers:
    """A worker's end: of each question in turn, whether something was heard before the next."""

    def __init__(self, *plan: bool) -> None:
        self.heard = 0
        self.asked = 0
        self._plan = iter(plan)

    async def listen(self) -> None:
        pass

    def tell(self, what: str) -> None:
        assert what == "ping"
        self.asked += 1
        if next(self._plan):
            asyncio.get_running_loop().call_soon(self._hear)

    def _hear(self) -> None:
        self.heard += 1


@pytest.mark.parametrize(
    ("plan", "asked"),
    [
        ((False, False, False), 3),
        ((True, True, False, False, False), 5),
        # One miss, or two, and there it is again.
        ((False, False, True, False, False, False), 6),
    ],
)
def test_so_many_misses_in_a_row(
    monkeypatch: pytest.MonkeyPatch, plan: tuple[bool, ...], asked: int
) -> None:
    assert member.MISSES == 3
    monkeypatch.setattr(member, "PING", 0.001)
    answers = Answers(*plan)

    async def main() -> None:
        process = cast("asyncio.subprocess.Process", None)
        await asyncio.wait_for(Member(1, process, cast("Asking", answers)).silent(), 10)

    asyncio.run(main())
    assert answers.asked == asked
