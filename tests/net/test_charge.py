"""A request that waits for the store that counts it: for so long and no longer, and what comes later is given back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from egress_proxy.core import reasons
from egress_proxy.core.limits import Kind, Limits
from egress_proxy.core.policy import CompiledPolicy, Mode
from egress_proxy.core.tenant import Charge
from egress_proxy.limits.limiter import Admission, Limiter, Refusal
from egress_proxy.limits.local import LocalAccount, LocalStore
from egress_proxy.limits.store import Exceeded
from egress_proxy.net import charge
from egress_proxy.net.poller import Interrupted, Poller, Strand
from tests.limits.clocks import policy

EACH = policy(limits=Limits(tunnels=5))


class SlowStore(LocalStore):
    """Answers when the test has it answer."""

    def __init__(self) -> None:
        super().__init__(lambda _: None)
        self.asked: list[asyncio.Future[Any]] = []

    def admit(self, charges: Any, host: str, *, tunnel: bool) -> Any:
        self.asked.append(asyncio.get_running_loop().create_future())
        return self.asked[-1]

    def counts(self) -> Any:
        """What it would have answered: the request is counted."""
        return super().admit((Charge(EACH, "t"),), "a.test", tunnel=True)

    @property
    def account_of_all(self) -> LocalAccount:
        return self.account("everyone", "t", Limits())


class Waiting:
    """A strand that waits for a store, and what became of it."""

    def __init__(self) -> None:
        self.poller = Poller(asyncio.get_running_loop())
        self.store = SlowStore()
        self.limiter = Limiter(self.store, lambda *_: None)
        self.limiter.adopt(CompiledPolicy((EACH,), Mode.ENFORCE))
        self.strand = Strand(self.poller)
        self.became: list[Admission | Refusal | Exception] = []
        worker: Any = SimpleNamespace(limiter=self.limiter)
        answer: Any = self.limiter.admit((Charge(EACH, "t"),), "a.test", tunnel=True)

        async def run() -> None:
            try:
                self.became.append(await charge._wait_for(worker, self.strand, answer))
            except Interrupted as stop:
                self.became.append(stop)

        self.strand.start(run())
        (self.answer,) = self.store.asked

    @property
    def open(self) -> tuple[int, int]:
        account = self.store.account_of_all
        return account.held, account.tunnels


@pytest.fixture
async def waiting(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Waiting]:
    # Its time is over with the first look.
    monkeypatch.setattr(charge, "_PATIENCE", 0.0)
    made = Waiting()
    assert made.became == []
    yield made
    assert made.poller.connections == set()
    made.poller.shut()


async def turns() -> None:
    """Whatever a future has to tell, and whoever is told to tell."""
    for _ in range(5):
        await asyncio.sleep(0)


def refused(waiting: Waiting) -> None:
    (became,) = waiting.became
    assert isinstance(became, Refusal)
    assert became.reason is reasons.OVERLOADED
    assert became.retry_after > 0


async def test_an_answer_in_time(waiting: Waiting) -> None:
    waiting.answer.set_result(waiting.store.counts())
    await turns()
    (admission,) = waiting.became
    assert isinstance(admission, Admission)
    assert waiting.open == (1, 1)
    admission.release()
    assert waiting.open == (0, 0)


async def test_a_store_that_never_answers_lets_nothing_through(waiting: Waiting) -> None:
    waiting.poller.sweep()
    refused(waiting)
    assert waiting.poller.connections == set()
    assert waiting.open == (0, 0)


async def test_an_admission_that_comes_too_late_is_given_back(waiting: Waiting) -> None:
    waiting.poller.sweep()
    waiting.answer.set_result(waiting.store.counts())
    assert waiting.open == (1, 1)
    await turns()
    refused(waiting)
    assert waiting.open == (0, 0)


async def test_a_refusal_that_comes_too_late_changes_nothing(waiting: Waiting) -> None:
    waiting.poller.sweep()
    waiting.answer.set_result(Exceeded(Kind.TUNNELS, "everyone", "t", 5.0, "at most 5 at once"))
    await turns()
    refused(waiting)
    assert waiting.open == (0, 0)


@pytest.mark.parametrize("turns_between", [0, 1])
async def test_an_admission_that_comes_with_the_end_of_its_time_is_given_back(
    waiting: Waiting, turns_between: int
) -> None:
    """It is there, and nobody has been told yet."""
    waiting.answer.set_result(waiting.store.counts())
    for _ in range(turns_between):
        await asyncio.sleep(0)
    waiting.poller.sweep()
    await turns()
    if waiting.became and isinstance(admission := waiting.became[0], Admission):
        assert waiting.open == (1, 1)
        admission.release()
    else:
        refused(waiting)
    assert len(waiting.became) == 1
    assert waiting.open == (0, 0)


async def test_whoever_is_gone_meanwhile_gives_it_back(waiting: Waiting) -> None:
    waiting.strand.interrupt(Interrupted(reasons.DRAIN_TIMEOUT))
    assert [type(each) for each in waiting.became] == [Interrupted]
    waiting.answer.set_result(waiting.store.counts())
    await turns()
    assert waiting.open == (0, 0)
