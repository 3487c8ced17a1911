"""Resolvers that ask the name server of a test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Protocol

import pytest

from egress_proxy.config.model import Dns
from egress_proxy.net.resolver import Resolver
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
