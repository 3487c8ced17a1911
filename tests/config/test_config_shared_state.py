"""``state: redis://…`` in a configuration: what is read, and that a password stays where it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from egress_proxy.config.errors import ConfigError
from egress_proxy.config.load import Loaded, load, parse
from egress_proxy.config.model import OnStoreFailure, SharedState
from tests.support.certificates import Authority

SECRET = "correct-horse"
POLICIES = "policies: [{name: a, allow: [example.com]}]\n"


def parsed(state: str) -> Loaded:
    return parse(f"version: 1\nstate: {state}\n{POLICIES}".encode(), "f.yaml")


def said(state: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parsed(state)
    assert SECRET not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "password").write_text(f"{SECRET}\n")
    return tmp_path


def written(folder: Path, state: str) -> str:
    path = folder / "policy.yaml"
    path.write_text(f"version: 1\nstate: {state}\n{POLICIES}")
    return str(path)


# What is read -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://redis.test", SharedState(host="redis.test")),
        ("redis://Redis.Test:7000/", SharedState(host="redis.test", port=7000)),
        ("rediss://127.0.0.1:6379/3", SharedState(host="127.0.0.1", database=3, tls=True)),
        ("redis://[2001:db8::1]:1", SharedState(host="2001:db8::1", port=1)),
    ],
)
def test_a_url_alone(url: str, expected: SharedState) -> None:
    assert parsed(f'"{url}"').config.state == expected
    assert parsed(f'{{url: "{url}"}}').config.state == expected


def test_everything(folder: Path) -> None:
    ca = Authority(folder).file.read_text()
    state = load(
        written(
            folder,
            '{url: "rediss://proxy@redis.test", password_file: password, ca_file: authority.pem, '
            "on_store_failure: closed, timeout: 50ms, prefix: eu-1, lease: 30s}",
        )
    ).config.state
    assert state == SharedState(
        host="redis.test",
        tls=True,
        user="proxy",
        password_file=str(folder / "password"),
        ca_file=str(folder / "authority.pem"),
        on_store_failure=OnStoreFailure.CLOSED,
        timeout=0.05,
        prefix="eu-1",
        lease=30.0,
        password=SECRET,
        ca=ca,
    )
    assert str(state) == "rediss://redis.test:6379/0"
    assert SECRET not in repr(state)
    assert "BEGIN" not in repr(state)


def test_the_password_is_no_part_of_the_digest(folder: Path) -> None:
    """Anybody may ask for that, and could try passwords on it."""
    path = written(folder, '{url: "redis://redis.test", password_file: password}')
    before = load(path).config
    (folder / "password").write_text("another")
    after = load(path).config
    assert before.digest == after.digest
    assert before.state != after.state


# What is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        f"redis://user:{SECRET}@redis.test",
        f"redis://:{SECRET}@redis.test:6379/0",
        f"rediss://user:{SECRET}@{SECRET}@redis.test",
        f"REDIS://user:{SECRET}@redis.test",
        f"valkey://user:{SECRET}@redis.test",
    ],
)
def test_a_password_in_the_url_is_refused_and_not_shown(url: str) -> None:
    for state in (f'"{url}"', f'{{url: "{url}"}}'):
        text = said(state)
        assert "has a password in its URL" in text
        assert "`password_file`" in text


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("redis://", "is no URL of a store"),
        ("redis:redis.test", "is no URL of a store"),
        ("redis://redis.test:0", "is no URL of a store"),
        ("redis://redis.test:65536", "is no URL of a store"),
        ("redis://redis.test/x", "is no URL of a store"),
        ("redis://redis.test/0?password=x", "is no URL of a store"),
        ("redis://redis.test#x", "is no URL of a store"),
        ("redis://a..b", "is no URL of a store"),
        ("redis://[::1", "is no URL of a store"),
        ("redis://a b", "is no URL of a store"),
        ("REDIS://redis.test", "is no URL of a store"),
        ("redis://1.2.3", "is no URL of a store"),
        ("redis+unix:///run/redis.sock", ""),
        ("valkey://redis.test", "write redis://, which Valkey speaks as well"),
        ("valkeys://redis.test", "write rediss://, which Valkey speaks as well"),
    ],
)
def test_what_is_no_store_is_refused(url: str, what: str) -> None:
    assert what in said(f'"{url}"')


@pytest.mark.parametrize(
    ("state", "what"),
    [
        ("{prefix: a}", "has no `url`"),
        ("{}", "is an empty mapping"),
        ("[redis://redis.test]", "must be a single value, not a list"),
        ('{url: "redis://redis.test", password: x}', "`password` is not a key"),
        ('{url: "redis://redis.test", prefix: "a:b"}', "`prefix` cannot be"),
        ('{url: "redis://redis.test", prefix: "{a}"}', "`prefix` cannot be"),
        ('{url: "redis://redis.test", timeout: 0ms}', "`timeout` is out of range"),
        ('{url: "redis://redis.test", lease: 1h}', "`lease` is out of range"),
        ('{url: "redis://redis.test", on_store_failure: open}', "`on_store_failure` cannot be"),
        ('{url: "redis://redis.test", ca_file: ca.pem}', "write rediss://"),
        ('"redis://user@redis.test"', "has a user, and no password"),
        ('{url: "redis://user@redis.test"}', "has a user, and there is no `password_file`"),
        ('{url: "redis://redis.test", password_file: /nowhere/password}', "there is no such file"),
        (
            '{url: "sqlite:///tmp/x"}',
            "names no store that replicas share; write `state: sqlite:///tmp/x`",
        ),
        ("{url: memory}", "names no store that replicas share; write `state: memory`"),
        (
            '{url: "sqlite://u@x/y"}',
            "names no store that replicas share; write `state: sqlite:///PATH`",
        ),
    ],
)
def test_what_does_not_fit_is_refused(state: str, what: str) -> None:
    assert what in said(state)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "the file is empty"),
        (b"\n", "the file is empty"),
        (f"{SECRET}\n\n".encode(), "more than one line"),
        (f"{SECRET}\r\n".encode(), "more than one line, or line ends"),
        (b"\xff\xfe", "not UTF-8"),
        (b"x" * 5000, "longer than 4,096 bytes"),
    ],
)
def test_a_password_is_one_line(folder: Path, data: bytes, what: str) -> None:
    (folder / "password").write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        load(written(folder, '{url: "redis://redis.test", password_file: password}'))
    assert what in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"no certificate", b"\xff"])
def test_an_authority_that_cannot_be_read_is_refused(folder: Path, data: bytes) -> None:
    (folder / "ca.pem").write_bytes(data)
    with pytest.raises(ConfigError, match="no certificates that can be read"):
        load(written(folder, '{url: "rediss://redis.test", ca_file: ca.pem}'))
