"""Whatever the addresses of a destination do, in whatever order."""

from __future__ import annotations

import asyncio
import errno
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egress_proxy.config.model import Dial, Family
from egress_proxy.core import reasons
from tests.net.dialling import dialling, failing, ports, reached, sockets

DOES = st.sampled_from(["listens", "refuses", "is silent", "has no route", "has no descriptor"])
NUMBERS = {"has no route": errno.ENETUNREACH, "has no descriptor": errno.EMFILE}


@settings(max_examples=40, deadline=None)
@given(
    st.lists(DOES, max_size=6),
    st.booleans(),
    st.sampled_from(Family),
    st.integers(1, 7),
    st.sampled_from([0.01, 0.03, 1.0]),
)
def test_one_that_listens_is_found_and_nothing_is_left(
    each: list[str], over_ipv6: bool, prefer: Family, most: int, stagger: float
) -> None:
    async def run() -> None:
        with ports() as port, pytest.MonkeyPatch.context() as patch:
            numbers = count(2)
            what = {f"127.0.0.{next(numbers)}": does for does in each}
            if over_ipv6:
                what["::1"] = "listens" if len(each) % 2 else "is silent"
            for ip, does in what.items():
                if does == "listens":
                    port.listen(ip)
                elif does == "is silent":
                    port.silence(ip)
            failing(patch, {ip: NUMBERS[does] for ip, does in what.items() if does in NUMBERS})
            assert port.number
            before = sockets()
            async with dialling() as running:
                told = Dial(prefer=prefer, max_attempts=most, stagger=stagger)
                for _ in range(2):
                    dialled = await running.dial(
                        *what, port=port.number, settings=told, connect_attempt=0.03
                    )
                    tried = min(most, len(what))
                    assert dialled.attempts <= tried
                    if dialled.socket is not None:
                        assert what[reached(dialled)] == "listens"
                    else:
                        assert dialled.reason is not None
                        assert dialled.attempts == tried
                        assert list(what.values()).count("listens") <= len(what) - tried
                        assert len(dialled.failed) == (tried if tried > 1 else 0)
                        if not what:
                            assert dialled.reason is reasons.CONNECTION_FAILED
                    listening = dialled.socket is not None
                    assert sockets() - before == len(running.watched) == listening
                    assert running.dialer._beside == 0
                    running.hang_up()

    asyncio.run(run())
