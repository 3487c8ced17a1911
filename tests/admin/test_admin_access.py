"""Who may use /v1/: every case that must not get through."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from egress_proxy.config.model import Listen, SocketAddress
from tests.admin.running import Admin, Host, configuration

TOKEN = "correct horse battery staple"
EVERYWHERE = Listen(admin=SocketAddress("0.0.0.0", 0))


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    return path


@pytest.fixture
def guarded(host: Host, token_file: Path) -> Host:
    host.state.config = configuration(admin_token_file=str(token_file), listen=EVERYWHERE)
    return host


async def refused(admin: Admin, *fields: str) -> bool:
    answer = await admin.ask("GET", "/v1/policy", *fields)
    if answer.status == 200:
        return False
    assert (answer.status, answer.reason) == (401, "credentials_required")
    assert answer.fields["www-authenticate"].startswith("Bearer")
    return True


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_token_opens(guarded: Host, scheme: str) -> None:
    async def conversation(admin: Admin) -> None:
        assert not await refused(admin, f"Authorization: {scheme} {TOKEN}")

    guarded.run(conversation)


@pytest.mark.parametrize(
    "fields",
    [
        [],
        ["Authorization: Bearer"],
        ["Authorization: Bearer x"],
        [f"Authorization: Bearer {TOKEN}x"],
        [f"Authorization: Bearer {TOKEN[:-1]}"],
        [f"Authorization: Bearer {TOKEN.upper()}"],
        [f"Authorization: Basic {TOKEN}"],
        [f"Authorization: {TOKEN}"],
        [f"Proxy-Authorization: Bearer {TOKEN}"],
        [f"Authorization: Bearer {TOKEN}", f"Authorization: Bearer {TOKEN}"],
        ["Authorization: Bearer \xff\xfe"],
    ],
)
def test_anything_else_does_not(guarded: Host, fields: list[str]) -> None:
    async def conversation(admin: Admin) -> None:
        assert await refused(admin, *fields)

    guarded.run(conversation)


def test_health_and_metrics_are_open(guarded: Host) -> None:
    async def conversation(admin: Admin) -> None:
        for path in ("/healthz", "/readyz", "/metrics"):
            assert (await admin.ask("GET", path, host="10.0.0.7:9090")).status == 200

    guarded.run(conversation)


def test_everything_under_v1_is_closed_even_what_does_not_exist(guarded: Host) -> None:
    async def conversation(admin: Admin) -> None:
        asked = [("POST", "/v1/reload"), ("POST", "/v1/explain"), ("GET", "/v1/x"), ("PUT", "/v1/")]
        for method, path in asked:
            answer = await admin.ask(method, path)
            assert (answer.status, answer.reason) == (401, "credentials_required")
        assert guarded.state.reloads == 0

    guarded.run(conversation)


def test_a_token_closes_loopback_too(host: Host, token_file: Path) -> None:
    host.state.config = configuration(admin_token_file=str(token_file))

    async def conversation(admin: Admin) -> None:
        assert await refused(admin)
        assert not await refused(admin, f"Authorization: Bearer {TOKEN}")

    host.run(conversation)


def test_with_the_token_the_host_does_not_matter(guarded: Host) -> None:
    async def conversation(admin: Admin) -> None:
        fields = (f"Authorization: Bearer {TOKEN}", "Origin: http://dashboard.example")
        answer = await admin.ask("GET", "/v1/policy", *fields, host="admin.example:9090")
        assert answer.status == 200

    guarded.run(conversation)


def test_without_a_token_a_port_that_others_reach_is_closed(host: Host) -> None:
    host.state.config = configuration(listen=EVERYWHERE)

    async def conversation(admin: Admin) -> None:
        assert await refused(admin)
        assert await refused(admin, "Authorization: Bearer")
        assert await refused(admin, "Authorization: Bearer x")

    host.run(conversation)


def test_the_file_is_read_again_when_it_changes(guarded: Host, token_file: Path) -> None:
    async def conversation(admin: Admin) -> None:
        assert not await refused(admin, f"Authorization: Bearer {TOKEN}")
        token_file.write_text("another one")
        assert await refused(admin, f"Authorization: Bearer {TOKEN}")
        assert not await refused(admin, "Authorization: Bearer another one")
        # As a mounted Secret changes: by a link. Even size and time are the same.
        was = token_file.stat()
        other = token_file.with_name("other")
        other.write_text("yet-another")
        os.utime(other, ns=(was.st_atime_ns, was.st_mtime_ns))
        other.replace(token_file)
        assert await refused(admin, "Authorization: Bearer another one")
        assert not await refused(admin, "Authorization: Bearer yet-another")

    guarded.run(conversation)


@pytest.mark.parametrize("content", [b"", b"\n", b"  \n"])
def test_an_empty_file_admits_nobody(guarded: Host, token_file: Path, content: bytes) -> None:
    token_file.write_bytes(content)

    async def conversation(admin: Admin) -> None:
        assert await refused(admin)
        assert await refused(admin, "Authorization: Bearer")
        assert await refused(admin, "Authorization: Bearer  ")

    guarded.run(conversation)


def test_a_file_that_is_gone_admits_nobody_until_it_is_back(
    guarded: Host, token_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[dict[str, Any]] = []

    class Log:
        def warning(self, event: str, **fields: Any) -> None:
            assert event == "admin_token_unusable"
            warnings.append(fields)

    monkeypatch.setattr("egress_proxy.admin.access.log", Log())

    async def conversation(admin: Admin) -> None:
        token = f"Authorization: Bearer {TOKEN}"
        assert not await refused(admin, token)
        token_file.unlink()
        assert await refused(admin, token)
        assert await refused(admin, token)
        token_file.write_text(TOKEN)
        assert not await refused(admin, token)
        token_file.unlink()
        token_file.mkdir()
        assert await refused(admin, token)

    guarded.run(conversation)
    assert [entry["error"] for entry in warnings] == ["No such file or directory", "Is a directory"]


def test_a_reload_can_name_another_file(guarded: Host, tmp_path: Path) -> None:
    other = tmp_path / "second"
    other.write_text("second token")

    async def conversation(admin: Admin) -> None:
        assert not await refused(admin, f"Authorization: Bearer {TOKEN}")
        guarded.state.config = replace(guarded.state.config, admin_token_file=str(other))
        assert await refused(admin, f"Authorization: Bearer {TOKEN}")
        assert not await refused(admin, "Authorization: Bearer second token")

    guarded.run(conversation)


LOCAL_HOSTS = [
    "localhost",
    "localhost:9090",
    "LOCALHOST.",
    "127.0.0.1:9090",
    "127.5.5.5",
    "[::1]:9090",
]


@pytest.mark.parametrize("name", LOCAL_HOSTS)
def test_a_local_program_needs_no_token(host: Host, name: str) -> None:
    async def conversation(admin: Admin) -> None:
        assert (await admin.ask("GET", "/v1/policy", host=name)).status == 200

    host.run(conversation)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("evil.example:9090", []),
        ("localhost.evil.example", []),
        ("127.0.0.1.evil.example", []),
        ("0.0.0.0:9090", []),
        ("10.0.0.1:9090", []),
        ("[::]:9090", []),
        ("user@localhost", []),
        ("", []),
        ("localhost", ["Origin: http://evil.example"]),
        ("127.0.0.1:9090", ["Origin: null"]),
    ],
)
def test_a_browser_does_not_get_in(host: Host, name: str, fields: list[str]) -> None:
    """DNS rebinding brings the page's own name in Host; a page that posts to loopback brings Origin."""

    async def conversation(admin: Admin) -> None:
        answer = await admin.ask("POST", "/v1/reload", *fields, host=name)
        assert (answer.status, answer.reason) == (403, "forbidden_host")
        assert host.state.reloads == 0

    host.run(conversation)
