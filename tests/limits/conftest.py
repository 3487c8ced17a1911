"""What tests of a shared store need besides."""

from __future__ import annotations

import asyncio

import pytest


@pytest.fixture
async def _no_task_left(_no_task_left: None) -> None:
    """The loop's first stream takes a descriptor that the loop keeps to its end: that is no test's leak."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
    server.close()
    await server.wait_closed()
    await asyncio.sleep(0)
