"""The limiter: what it makes of a store's answers, those that come later among them."""

from __future__ import annotations

import asyncio
from asyncio import Future
from pathlib import Path

import pytest

from egress_proxy.config.model import FileState, MemoryState
from egress_proxy.core import reasons
from egress_proxy.core.limits import Kind, Limits
from egress_proxy.core.reasons import REASONS
from egress_proxy.core.tenant import Charge
from egress_proxy.limits.limiter import Admission, Limiter, Refusal
from egress_proxy.limits.local import LocalStore
from egress_proxy.limits.opening import open_store
from egress_proxy.limits.persistent import PersistentStore
from egress_proxy.limits.store import Account, Exceeded
from tests.limits.clocks import Limited, limited, policy

EACH = policy(limits=Limits(tunnels=1))
CHARGES = (Charge(EACH, "t"),)


class Later(LocalStore):
    """A store that asks somebody else."""

    def __init__(self) -> None:
        super().__init__(lambda _: None)
        self.asked: list[Future[tuple[Account, ...] | Exceeded]] = []

    def admit(  # type: ignore[override]
        self, charges: tuple[Charge, ...], host: str, *, tunnel: bool
    ) -> Future[tuple[Account, ...] | Exceeded]:
        self.asked.append(asyncio.get_running_loop().create_future())
        return self.asked[-1]

    def answer(self) -> None:
        self.asked.pop(0).set_result(super().admit(CHARGES, "a.test", tunnel=True))

    @property
    def tunnels(self) -> int:
        return self.account("everyone", "t", Limits()).tunnels


class Answering(LocalStore):
    """A store that says what it is told to say."""

    answer: Exceeded

    def __init__(self) -> None:
        super().__init__(lambda _: None)

    def admit(self, charges: tuple[Charge, ...], host: str, *, tunnel: bool) -> Exceeded:
        return self.answer


def later() -> tuple[Later, Limiter, list[tuple[Kind, str]]]:
    store, told = Later(), list[tuple[Kind, str]]()
    return store, Limiter(store, lambda *what: told.append(what)), told


async def test_an_answer_that_comes_later() -> None:
    store, limiter, told = later()
    answers = [limiter.admit(CHARGES, "a.test", tunnel=True) for _ in range(2)]
    for answer in answers:
        assert isinstance(answer, Future)
        assert not answer.done()
        store.answer()
    one, two = [await answer for answer in answers if isinstance(answer, Future)]
    assert isinstance(one, Admission)
    assert isinstance(two, Refusal)
    assert two.reason is reasons.TUNNEL_LIMIT
    assert told == [(Kind.TUNNELS, "everyone")]
    one.release()
    assert store.tunnels == 0


@pytest.mark.parametrize("when", ["before", "after", "cancelled"])
async def test_whoever_is_gone_holds_nothing(when: str) -> None:
    store, limiter, _ = later()
    answer = limiter.admit(CHARGES, "a.test", tunnel=True)
    assert isinstance(answer, Future)
    if when == "before":
        limiter.abandon(answer)
    elif when == "cancelled":
        answer.cancel()
    store.answer()
    if when == "after":
        await answer
        assert store.tunnels == 1
        limiter.abandon(answer)
    for _ in range(3):
        await asyncio.sleep(0)
    assert store.tunnels == 0


async def test_to_abandon_what_was_cancelled_or_refused_is_nothing() -> None:
    store, limiter, _ = later()
    answer, other = (limiter.admit(CHARGES, "a.test", tunnel=True) for _ in range(2))
    assert isinstance(answer, Future)
    assert isinstance(other, Future)
    answer.cancel()
    limiter.abandon(answer)
    limiter.abandon(other)
    store.asked[1].set_result(Exceeded(Kind.TUNNELS, "everyone", "t", 1.0, "no"))
    store.answer()
    for _ in range(3):
        await asyncio.sleep(0)
    assert store.tunnels == 0


def test_without_limits_nothing_is_asked() -> None:
    made = limited(policy())
    assert not made.limiter.active
    assert not Limited().limiter.active
    assert limited(policy(), EACH).limiter.active


def test_every_kind_has_its_reason() -> None:
    """Of its own name, so that the log, the metric and the answer say the same."""
    store, limiter = Answering(), Limited().limiter
    limiter.store = store
    for kind in Kind:
        store.answer = Exceeded(kind, "everyone", "t", 5.0, "no")
        refused = limiter.admit(CHARGES, "a.test", tunnel=False)
        assert isinstance(refused, Refusal)
        assert refused.reason is REASONS[kind.value]
        assert refused.reason.status == (503 if kind is Kind.STORE_UNAVAILABLE else 429)


def test_a_tunnel_that_is_cut_is_counted() -> None:
    each, other = policy("a", Limits(bytes_per_day=10)), policy("b", Limits(bytes_per_day=10**6))
    made = limited(each, other)
    tunnel = made.admitted(other, each)
    assert tunnel.spend(10, 0) is reasons.BYTE_BUDGET_SPENT
    assert made.exceeded == [("byte_budget", "a")]
    tunnel.release()
    assert tunnel.spend(10, 0) is None


async def test_the_store_that_is_configured(tmp_path: Path) -> None:
    store = open_store(MemoryState(), lambda _: None, lambda _: None)
    assert type(store) is LocalStore
    await store.close()
    store = open_store(FileState(str(tmp_path / "state.db")), lambda _: None, lambda _: None)
    assert type(store) is PersistentStore
    await store.close()
