"""Contract headers as curl sends them, or does not."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from uuid import uuid4

import pytest

from tests.conftest import StartProxy
from tests.support.certificates import Authority
from tests.support.clients import environment, need
from tests.support.origin import Origin

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(60)]

WITH = ("-H", f"Idempotency-Key: {uuid4()}", "-H", "X-Tenant-ID: team-a")
CASES = [
    ("GET", (), 200),
    ("HEAD", ("-I",), 200),
    ("OPTIONS", ("-X", "OPTIONS"), 200),
    ("POST", ("-d", "a=1"), 400),
    ("PUT", ("-X", "PUT", "-d", "a=1"), 400),
    ("PATCH", ("-X", "PATCH", "-d", "a=1"), 400),
    ("DELETE", ("-X", "DELETE"), 400),
]


def test_methods(
    start_proxy: StartProxy, origin: Origin, base: str, authority: Authority, tmp_path: Path
) -> None:
    need("curl")
    proxy = start_proxy(contract_headers="enforce")
    env = environment(proxy.url, authority, tmp_path / "home")

    def curl(*arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            ["curl", "-sS", "--max-time", "20", "-w", "\n%{http_code}", *arguments],
            env=env,
            capture_output=True,
            text=True,
            check=True,
        )
        body, _, status = done.stdout.rpartition("\n")
        return int(status), body

    for method, how, status in CASES:
        found, body = curl(*how, f"{base}/upload")
        assert found == status, method
        if status == 400:
            assert json.loads(body)["error"]["reason"] == "idempotency_key_missing"
        assert curl(*how, *WITH, f"{base}/upload")[0] == 200, method
    # What is in a tunnel is nobody's business.
    assert curl("-d", "a=1", f"https://origin.test:{origin.https}/upload")[0] == 200
    lines = proxy.stop()
    assert [line["method"] for line in lines if line["event"] == "DENIED"] == [
        method for method, _, status in CASES if status == 400
    ]
