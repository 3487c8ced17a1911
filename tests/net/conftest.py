"""Resolvers that ask the name server of a test, and a dialler with ports for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any, Protocol

import pytest

from egress_proxy.config.model import Dns
from egress_proxy.net.resolver import Resolver
from tests.net.dialling import Dialling, Ports, dialling, ports
from tests.support.dns import NameServer


class MakeResolver(Protocol):
    def __call__(self, **settings: Any) -> Resolver: ...


@pytest.fixture
async def make_resolver(name_server: NameServer) -> AsyncIterator[MakeResolver]:
    """A factory of resolvers, closed in the end. Keys are those of ``dns``."""
    resolvers: list[Resolver] = []

    def make(**settings: Any) -> Resolver:
        given = {"servers": (name_server.address,), "hosts_file": "/nonexistent", "timeout": 0.6}
        resolver = Resolver(Dns(**{**given, **settings}), asyncio.get_running_loop())
        resolvers.append(resolver)
        return resolver

    yield make
    for resolver in resolvers:
        await resolver.close()


@pytest.fixture
def port() -> Iterator[Ports]:
    with ports() as made:
        yield made


@pytest.fixture
async def running() -> AsyncIterator[Dialling]:
    async with dialling() as made:
        yield made
