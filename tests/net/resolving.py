"""What tests of the resolver share: asking, waiting, and letting time pass."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from egress_proxy.net.dns_answer import A
from egress_proxy.net.resolver import Lookup, Resolver
from tests.support.dns import Answer, NameServer


def known(resolver: Resolver, name: str = "a.test", later: float = 0.0) -> Any:
    return resolver.cached(name, time.monotonic() + later)


async def lookup(resolver: Resolver, name: str = "a.test") -> Lookup:
    answer = await resolver.ask(name)
    assert isinstance(answer, Lookup), answer
    return answer


def age(resolver: Resolver, seconds: float, name: str = "a.test") -> None:
    """Let time pass for what is kept of a name."""
    kept = resolver._cache.get(name)
    assert kept is not None
    for attribute in ("expires", "refresh_at", "stale_until", "quiet_until"):
        setattr(kept, attribute, getattr(kept, attribute) - seconds)


async def settled(resolver: Resolver) -> None:
    """When nothing is asked any more, in the background either."""
    async with asyncio.timeout(5):
        while resolver._tasks:
            await asyncio.wait(set(resolver._tasks))


async def forgotten(resolver: Resolver, name_server: NameServer) -> None:
    """When c-ares, too, has nothing left of what was asked before: it asks again for what it could have kept."""
    channel, end = resolver._channel, time.monotonic() + 5
    name_server.set("probe.test", Answer(("192.0.2.9",), ttl=3600))
    await channel.ask("probe.test", A, end)
    asked = name_server.asked("probe.test")
    channel._forget()
    while name_server.asked("probe.test") == asked:
        assert time.monotonic() < end
        await asyncio.sleep(0.005)
        await channel.ask("probe.test", A, end)
