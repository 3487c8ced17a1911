"""The admin port on both event loops."""

from __future__ import annotations

import pytest

from tests.admin.running import LOOPS, Host


@pytest.fixture(params=LOOPS, ids=["asyncio", "uvloop"])
def host(request: pytest.FixtureRequest) -> Host:
    return Host(request.param)
