"""Replicas that share one store, and what a test asks of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest

from egress_proxy.config.model import OnStoreFailure, SharedState
from egress_proxy.core.limits import Limits
from egress_proxy.core.policy import Policy
from egress_proxy.core.tenant import Charge
from egress_proxy.limits.link import Change
from egress_proxy.limits.shared import SharedStore
from egress_proxy.limits.shared_account import SharedAccount
from egress_proxy.limits.store import Account, Exceeded, Near
from tests.limits import clocks
from tests.support.redis_server import RedisServer

MIB = 2**20

Answer = tuple[Account, ...] | Exceeded


def policy(limits: Limits, name: str = "agents") -> Policy:
    return clocks.policy(name, limits)


class Replica:
    """A store with one policy, ``agents``, and what it has told."""

    def __init__(self, settings: SharedState, limits: Limits, *others: Policy) -> None:
        self.near: list[Near] = []
        self.changes: list[Change] = []
        self.store = SharedStore(settings, self.near.append, self.changes.append)
        self.policy = policy(limits)
        self.policies = (self.policy, *others)
        self.store.adopt({each.name: each.limits for each in self.policies if each.limits})

    async def ask(
        self, host: str = "example.com", tenant: str = "acme", *, tunnel: bool = False
    ) -> Answer:
        charges = tuple(Charge(each, tenant) for each in self.policies)
        answer = self.store.admit(charges, host, tunnel=tunnel)
        return await answer if isinstance(answer, asyncio.Future) else answer

    async def admitted(
        self, host: str = "example.com", *, tunnel: bool = False
    ) -> tuple[Account, ...]:
        answer = await self.ask(host, tunnel=tunnel)
        assert not isinstance(answer, Exceeded), answer
        return answer

    async def refused(self, host: str = "example.com", *, tunnel: bool = False) -> Exceeded:
        answer = await self.ask(host, tunnel=tunnel)
        assert isinstance(answer, Exceeded)
        return answer

    def release(self, accounts: tuple[Account, ...], *, tunnel: bool = False) -> None:
        self.store.release(accounts, tunnel=tunnel)

    def account(self, tenant: str = "acme") -> SharedAccount:
        return self.store.account("agents", tenant, self.policy.limits or Limits())


@contextlib.asynccontextmanager
async def replicas(
    settings: SharedState, limits: Limits, count: int = 2, *others: Policy
) -> AsyncIterator[list[Replica]]:
    made = [Replica(settings, limits, *others) for _ in range(count)]
    try:
        for each in made:
            each.store.start()
            await each.store.ready(settings.timeout)
        yield made
    finally:
        for each in made:
            await each.store.close()


async def until(condition: Callable[[], object], seconds: float = 10) -> None:
    """Wait for what the event loop will do soon."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - of the code under test
            await asyncio.sleep(0.002)


async def lost(*gone: Replica) -> None:
    """Have replicas find out that their store is away: they would with the next request, or beat."""
    for each in gone:
        assert each.store._link is not None
        each.store._link.call(*each.store.teller._beat_call()[:4])
        while each.store.up:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.002)


def closed(settings: SharedState) -> SharedState:
    return replace(settings, on_store_failure=OnStoreFailure.CLOSED)


def stored(server: RedisServer, kind: str) -> dict[str, str]:
    """The one hash of a kind, of the tenant ``acme``; empty where there is none."""
    with server.client() as client:
        keys = list(client.scan_iter(f"*:{kind}:*"))
        assert len(keys) <= 1
        found: Any = client.hgetall(keys[0]) if keys else {}
        return dict(found)


async def told(replica: Replica) -> None:
    """Have the store know all, and the replica what it says to that."""
    for _ in range(3):
        await replica.store.states()


def losing(monkeypatch: pytest.MonkeyPatch, replica: Replica, script: str) -> Callable[[], int]:
    """The store hears what it is told with this script, and its answers are lost; returns how many so far."""
    link = replica.store._link
    assert link is not None
    prepare, times = link.prepare, 0

    def lossy(which: Any, keys: Any, arguments: Any, on_reply: Any) -> Any:
        def lose(_reply: Any) -> None:
            nonlocal times
            times += 1
            on_reply(None)

        keep = script not in which.text
        return prepare(which, keys, arguments, on_reply if keep else lose)

    monkeypatch.setattr(link, "prepare", lossy)
    return lambda: times


TELL, ADMIT = "Tell what this replica", "Count one request for several"
