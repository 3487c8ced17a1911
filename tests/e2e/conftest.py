"""Real clients meet the proxy as it comes: what their tunnels carry is looked at."""

from __future__ import annotations

import pytest

from tests.conftest import StartProxy
from tests.support.proxy import Proxy, rule


@pytest.fixture
def tls() -> str:
    """``verify``, unless a test is parametrized with ``off``, because its tunnels carry something else."""
    return "verify"


@pytest.fixture
def proxy(start_proxy: StartProxy, tls: str) -> Proxy:
    """A proxy with a rule for ``origin.test``."""
    return start_proxy(allow=[rule("origin.test", tls=tls)])
