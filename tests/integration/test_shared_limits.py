"""Two proxies and one store: they hold one limit, and do what they were told while it is away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import StartProxy
from tests.support.proxy import Proxy, rule
from tests.support.redis_server import RedisServer, needs_server, serving
from tests.support.tools import wait_until

pytestmark = needs_server


def limited(**limits: Any) -> list[dict[str, Any]]:
    return [{"name": "test", "allow": [rule("origin.test")], "limits": limits}]


def ask(proxy: Proxy, url: str) -> httpx.Response:
    with httpx.Client(proxy=proxy.url, trust_env=False) as client:
        return client.get(url)


@pytest.fixture
def state(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "password").write_text("correct-horse")
    return {"password_file": str(tmp_path / "password"), "timeout": "5s"}


def served(tmp_path: Path) -> Any:
    return serving(tmp_path, "--requirepass", "correct-horse")


def test_two_proxies_hold_one_limit(
    tmp_path: Path, state: dict[str, Any], start_proxy: StartProxy, base: str
) -> None:
    with served(tmp_path) as server:
        keys = {
            "policies": limited(requests_per_day=5),
            "state": {"url": f"redis://127.0.0.1:{server.port}", **state},
        }
        both = [start_proxy(**keys) for _ in range(2)]
        wait_for_store(server, *both)
        answers = [ask(both[turn % 2], f"{base}/") for turn in range(8)]
        assert [each.status_code for each in answers] == [200] * 5 + [429] * 3
        assert {each.headers["x-egress-error"] for each in answers[5:]} == {"BUDGET_EXCEEDED"}
        for proxy in both:
            proxy.settled()
            proxy.stop()
            assert "correct-horse" not in proxy.stdout + proxy.stderr


def test_closed_requests_are_refused_while_the_store_is_away(
    tmp_path: Path, state: dict[str, Any], start_proxy: StartProxy, base: str
) -> None:
    with served(tmp_path) as server:
        proxy = start_proxy(
            policies=limited(requests_per_second=1000),
            state={
                "url": f"redis://127.0.0.1:{server.port}",
                "on_store_failure": "closed",
                **state,
            },
        )
        wait_for_store(server, proxy)
        assert ask(proxy, f"{base}/").status_code == 200
        server.kill()
        answer = ask(proxy, f"{base}/")
        assert (answer.status_code, answer.headers["x-egress-error"]) == (503, "RETRY_LATER")
        assert answer.json()["error"]["reason"] == "store_unavailable"
        assert int(answer.headers["retry-after"]) >= 1
        assert proxy.wait_for_event("state_failed")["error"] == "the connection failed"
        assert server.start()
        proxy.wait_for_event("state_recovered", seconds=20)
        assert ask(proxy, f"{base}/").status_code == 200


def wait_for_store(server: RedisServer, *proxies: Proxy) -> None:
    """Its name is in the store once it counts there."""
    with server.client(password="correct-horse") as client:
        seen = len(proxies)
        wait_until(lambda: client.zcard("{egress-proxy}:replicas") >= seen, seconds=10)
