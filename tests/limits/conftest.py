"""What tests of a shared store need besides."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.support.redis_server import RedisServer, serving


@pytest.fixture
async def _no_task_left(_no_task_left: None) -> None:
    """The loop's first stream takes a descriptor that the loop keeps to its end: that is no test's leak."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
    server.close()
    await server.wait_closed()
    await asyncio.sleep(0)


@pytest.fixture(scope="module")
def one_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with serving(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def server(one_server: RedisServer) -> RedisServer:
    """With nothing in it, and no script that it knows."""
    with one_server.client() as client:
        client.flushall()
        client.script_flush()
    return one_server
